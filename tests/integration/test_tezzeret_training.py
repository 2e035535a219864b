"""A run whose kernels workers make: the same bits as one that makes them itself, and a clear word if none come."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from training import SHORT, Place, go_on, place

from esper.artifacts import open_store
from esper.artifacts.memory import MemoryStore
from esper.artifacts.signing import SigningKey
from esper.blueprints.canonical import blueprint_id
from esper.blueprints.forging.forge import Forge
from esper.blueprints.forging.jobs import MOST_REMADE, job_id, toolchain
from esper.blueprints.forging.submission import Author, retire
from esper.blueprints.ir import SiteSignature
from esper.blueprints.kernels.shelf import KernelShelf
from esper.blueprints.library import load_library
from esper.errors import LogUnavailable, SignatureInvalid, TrainingError
from esper.events import Event, Fact, fact_of
from esper.events.kernel import (
    CompilationFailed,
    CompilationRequested,
    KernelCharacterized,
    KernelCompiled,
    KernelQuarantined,
    KernelRejected,
    KernelValidated,
    MeasurementRequested,
)
from esper.events.run import RunFailed, RunFinished, RunPaused, RunStarted
from esper.events.seed import KernelLoaded, KernelsOffered
from esper.handlers.runtime.health import Health
from esper.handlers.runtime.life import Life
from esper.handlers.runtime.worker import Worker
from esper.handlers.tezzeret import TezzeretWorker
from esper.handlers.urabrask import Urabrask
from esper.ids import derived_id
from esper.oona.consuming.consumer import Consumer
from esper.oona.memory import MemoryLog
from esper.oona.open import open_log
from esper.oona.port import ANY, iterate
from esper.tolaria.launch import start
from esper.tolaria.orders import Order, OrderStopped, Workers

LIBRARY = load_library()
LINEAR = SiteSignature(kind="linear", rank="NC", channels=16, in_channels=8, positions=(), causal=False)
CONFIG = msgspec.structs.replace(SHORT, total_steps=160, policy="earliest-site", blueprints=["conv_bottleneck"])
OFFERED = ("site", "offers")


# --- whole runs


@contextmanager
def workers_at(folder: Path) -> Iterator[None]:
    """Let a Tezzeret worker and Urabrask work on the log of a folder, each in a thread."""
    tezzeret = TezzeretWorker({"max_concurrent_jobs": 1})
    lives: list[tuple[Life, asyncio.AbstractEventLoop]] = []

    async def measure() -> None:
        with open_log(f"sqlite:///{folder}/log.db") as log, open_store(f"file:///{folder}/artifacts") as store:
            life = Life(Health("urabrask", "u"), drain_s=10.0)
            lives.append((life, asyncio.get_running_loop()))
            handler = Urabrask(log)
            consumer = Consumer(
                log,
                group="urabrask",
                member="u",
                topics=handler.topics,
                sender_id="handler:urabrask",
                trace_id="ab" * 16,
            )
            assert await Worker(consumer, handler, log=log, store=store).run(life)

    threads = [threading.Thread(target=asyncio.run, args=(work(),)) for work in (tezzeret.run, measure)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        tezzeret.stop()
        for life, loop in lives:
            loop.call_soon_threadsafe(life.stop, "the test is over")
        for thread in threads:
            thread.join()


def offers(where: Place) -> list[tuple[Any, ...]]:
    return [tuple(getattr(fact, name) for name in OFFERED) for fact in where.of(KernelsOffered)]


def test_a_run_with_workers_has_the_same_offers_and_bits_as_one_without_and_goes_on_where_they_were_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = place()
    start("digits", CONFIG, log=here.log, store=here.store)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path))
    with place(tmp_path).log as log, place(tmp_path).store as store:
        there = Place(log, store)
        with pytest.raises(TrainingError, match=r"have no verdict after 0.2 s \(\d+ not compiled\)") as late:
            start("digits", CONFIG, log=log, store=store, workers=Workers(wait_s=0.2))
        assert "esper handler start tezzeret" in late.value.hint
        [started] = there.of(RunStarted)
        assert "no verdict" in there.of(RunFailed)[0].message
        told: list[tuple[int, int]] = []
        with workers_at(tmp_path):
            done = go_on(there, started.run_id, workers=Workers(wait_s=120, progress=lambda *now: told.append(now)))
        assert done.model is not None
        assert told[-1][0] == told[-1][1] == len(there.of(CompilationRequested))
        assert {fact.job_id for fact in there.of(KernelCompiled)} == {
            fact.job_id for fact in there.of(CompilationRequested)
        }
        assert all(fact.worker is not None for fact in there.of(KernelCompiled))
        assert offers(there) == offers(here) != []
        assert there.of(KernelLoaded)
        assert there.of(RunFinished)[0].parameter_digest == here.of(RunFinished)[0].parameter_digest


def test_ctrl_c_while_a_run_waits_pauses_it_and_it_can_be_resumed() -> None:
    where = place()

    def interrupted(_done: int, _total: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    trained = start(
        "digits", CONFIG, log=where.log, store=where.store, workers=Workers(wait_s=60, progress=interrupted)
    )
    assert trained.model is None
    [paused] = where.of(RunPaused)
    assert (paused.step, paused.reason) == (0, "asked to stop while it waited for its kernels")
    assert go_on(where, trained.run_id).model is not None


# --- an order by itself


class Desk:
    """A log and a store, and an order whose workers do what a test says whenever the order tells its progress."""

    def __init__(self, folder: Path) -> None:
        self.log = MemoryLog()
        self.store = MemoryStore()
        self.key = SigningKey.create(folder / "signing.pem")
        self.shelf = KernelShelf(self.store, key=self.key, trusted=[])
        self.told: list[tuple[int, int]] = []

    def forge(self, shelf: KernelShelf | None = None) -> Forge:
        return Forge(self.log, self.store, sender_id="workers", trace_id="c" * 32, shelf=shelf or self.shelf)

    def make(self, *names: str, shelf: KernelShelf | None = None) -> None:
        """Do what workers would."""
        self.forge(shelf).ensure([LINEAR], [LIBRARY[name] for name in names])

    def order(
        self,
        *names: str,
        meanwhile: Callable[[], object] = lambda: None,
        wait_s: float = 30.0,
        stop: Callable[[], bool] = lambda: False,
    ) -> list[str]:
        """Order blueprints at one site and return the names of those on offer."""

        def progress(done: int, total: int) -> None:
            self.told.append((done, total))
            meanwhile()

        order = Order(
            self.log,
            self.shelf,
            self.forge(),
            Workers(wait_s=wait_s, progress=progress),
            sender_id="tolaria",
            trace_id="d" * 32,
            stop=stop,
        )
        return [one.name for one in order.ensure([LINEAR, LINEAR], [LIBRARY[name] for name in names])]

    def of(self, *kinds: type[Fact]) -> list[Any]:
        return [fact for fact in map(fact_of, iterate(self.log)) if isinstance(fact, kinds)]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_an_order_asks_once_for_each_job_and_gives_what_a_forge_would(desk: Desk) -> None:
    assert desk.order("res_mlp", "lora", meanwhile=lambda: desk.make("lora", "res_mlp")) == ["res_mlp", "lora"]
    wanted = {job_id(blueprint_id(LIBRARY[name]), LINEAR) for name in ("lora", "res_mlp")}
    asked = desk.of(CompilationRequested)
    assert {one.job_id for one in asked} == wanted
    assert (len(asked), {one.requested_by for one in asked}) == (2, {"tolaria"})
    assert (desk.told[0], desk.told[-1]) == ((0, 2), (2, 2))
    assert desk.order("res_mlp", "lora") == ["res_mlp", "lora"]
    assert len(desk.of(CompilationRequested)) == 2
    assert desk.forge().ensure([LINEAR], [LIBRARY["res_mlp"], LIBRARY["lora"]])[1].name == "lora"


def test_failed_rejected_and_retired_blueprints_are_verdicts_and_not_offered(desk: Desk) -> None:
    names = ("lora", "res_mlp", "affine")
    ids = [blueprint_id(LIBRARY[name]) for name in names]

    def meanwhile() -> None:
        if len(desk.told) > 1:
            return
        failed = CompilationFailed(
            blueprint_id=ids[0],
            signature=msgspec.to_builtins(LINEAR),
            error="WorkFailed",
            message="too slow",
            job_id=job_id(ids[0], LINEAR),
            reason="time_limit",
        )
        say(desk, failed)
        retire(desk.log, ids[1], "worse than none", Author("ada", "operator:ada", "b" * 32))
        desk.make("affine")
        [compiled] = desk.of(KernelCompiled)
        say(desk, KernelRejected(**names_of(compiled), measurements_digest=bytes(32), failed=["shape"]))
        say(desk, MeasurementRequested(**names_of(compiled), reason="?", toolchain="?", requested_by="ada"))
        judge(desk, compiled, toolchain(), validated=False)

    assert desk.order(*names, meanwhile=meanwhile) == []


def names_of(compiled: KernelCompiled) -> dict[str, Any]:
    return {"blueprint_id": compiled.blueprint_id, "kernel_id": compiled.kernel_id}


def say(desk: Desk, fact: Fact) -> None:
    number = desk.log.end()
    event = Event(fact=fact, event_id=derived_id("said", number), sender_id="ada", trace_id="b" * 32)
    desk.log.append([event], stream=fact.stream, expected=ANY)


def judge(desk: Desk, compiled: KernelCompiled, used: str, *, validated: bool) -> None:
    """Say that a kernel was measured with a toolchain."""
    say(
        desk,
        KernelCharacterized(
            **names_of(compiled),
            checks={},
            numbers={},
            measurements_digest=bytes(32),
            latency_p50_s=None,
            latency_p99_s=None,
            measured_seconds=0.0,
            toolchain=used,
        ),
    )
    if validated:
        say(desk, KernelValidated(**names_of(compiled), measurements_digest=bytes(32)))
    else:
        say(desk, KernelRejected(**names_of(compiled), measurements_digest=bytes(32), failed=["shape"]))


def test_a_verdict_of_another_toolchain_is_asked_for_anew_and_waited_for(desk: Desk) -> None:
    desk.make("lora")
    [compiled] = desk.of(KernelCompiled)
    judge(desk, compiled, "torch 2.0.0", validated=True)
    assert desk.order("lora", meanwhile=lambda: judge(desk, compiled, toolchain(), validated=True)) == ["lora"]
    [wish] = desk.of(MeasurementRequested)
    assert (wish.reason, wish.requested_by) == ("another toolchain", "tolaria")
    assert desk.told == [(0, 1), (1, 1)]


def test_a_kernel_that_does_not_hold_is_put_in_quarantine_and_waited_for(desk: Desk) -> None:
    desk.make("lora")
    [compiled] = desk.of(KernelCompiled)
    desk.store.delete(bytes.fromhex(compiled.kernel_id))

    def meanwhile() -> None:
        if desk.of(KernelQuarantined):
            desk.make("lora")

    assert desk.order("lora", meanwhile=meanwhile) == ["lora"]
    assert [fact.reason for fact in desk.of(KernelQuarantined)] == ["missing"]
    assert desk.shelf.has(compiled.kernel_id)


def test_a_kernel_that_stays_in_quarantine_is_not_waited_for(desk: Desk) -> None:
    desk.make("lora")
    [compiled] = desk.of(KernelCompiled)
    for _ in range(MOST_REMADE + 1):
        found = {"reason": "damaged", "message": "", "evidence_digest": None, "found_by": "ada"}
        say(desk, KernelQuarantined(**names_of(compiled), **found))
    assert desk.order("lora") == []


def test_a_kernel_of_a_worker_that_is_not_trusted_here_is_told_with_its_key(desk: Desk, tmp_path: Path) -> None:
    stranger = SigningKey.create(tmp_path / "stranger.pem")
    shelf = KernelShelf(desk.store, key=stranger, trusted=[])
    with pytest.raises(SignatureInvalid, match=stranger.public.key_id):
        desk.order("lora", meanwhile=lambda: desk.make("lora", shelf=shelf))


def test_the_deadline_says_how_far_each_kernel_came(desk: Desk) -> None:
    desk.make("lora")
    [compiled] = desk.of(KernelCompiled)
    found = {"reason": "damaged", "message": "", "evidence_digest": None, "found_by": "ada"}
    say(desk, KernelQuarantined(**names_of(compiled), **found))
    with pytest.raises(TrainingError) as late:
        desk.order("lora", "res_mlp", "affine", wait_s=0.1)
    assert late.value.message == (
        "3 of 3 kernels have no verdict after 0.1 s (1 in quarantine, 2 not compiled): "
        "lora at linear NC 16; res_mlp at linear NC 16; affine at linear NC 16"
    )


def test_waiting_ends_when_it_is_asked_to(desk: Desk) -> None:
    with pytest.raises(OrderStopped):
        desk.order("lora", stop=lambda: True)


class Flickering(MemoryLog):
    """A log that cannot be reached for a while, once an order has been placed."""

    refusals = 0

    def end(self) -> int:
        if self.refusals:
            self.refusals -= 1
            raise LogUnavailable("no answer")
        return super().end()


def test_a_log_that_is_away_for_a_moment_does_not_end_the_wait(desk: Desk) -> None:
    desk.log = log = Flickering()

    def meanwhile() -> None:
        if len(desk.told) == 1:
            desk.make("lora")
            log.refusals = 2

    assert desk.order("lora", meanwhile=meanwhile) == ["lora"]
    assert log.refusals == 0
