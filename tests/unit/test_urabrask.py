"""Urabrask: given kernels that were compiled, soundly or not, these verdicts; and it lives on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import msgspec
import pytest

from esper.artifacts.memory import MemoryStore
from esper.artifacts.signatures import verify_signed
from esper.artifacts.signing import SigningKey
from esper.blueprints.bench.workbench import Limits, Workbench, shared_bench
from esper.blueprints.canonical import blueprint_id, canonical_json
from esper.blueprints.forging.jobs import compiled_event_id, toolchain, verdict_event_id
from esper.blueprints.ir import Blueprint, SiteSignature, parse
from esper.blueprints.kernels.build import build
from esper.blueprints.kernels.kernel import encode_kernel, kernel_seed
from esper.blueprints.kernels.shelf import KernelShelf
from esper.blueprints.library import load_library
from esper.errors import LeaseLost, WorkFailed
from esper.events import Envelope, Event, Fact, fact_of
from esper.events.blueprint import BlueprintSubmitted
from esper.events.kernel import (
    KernelCharacterized,
    KernelCompiled,
    KernelQuarantined,
    KernelRejected,
    KernelTagged,
    KernelValidated,
    MeasurementRequested,
)
from esper.handlers.runtime.handler import Context
from esper.handlers.runtime.health import Health
from esper.handlers.runtime.life import Life
from esper.handlers.runtime.worker import Worker
from esper.handlers.urabrask import Urabrask
from esper.oona.consuming.consumer import Consumer
from esper.oona.consuming.lanes import Delivery
from esper.oona.consuming.parking import parked_events
from esper.oona.memory import MemoryLog
from esper.oona.port import ANY

LINEAR = SiteSignature(kind="linear", rank="NC", channels=16, in_channels=8, positions=(), causal=False)
AFFINE = canonical_json(load_library()["affine"])
JUDGED = ["KernelCharacterized", "KernelValidated", "KernelTagged"]


@pytest.fixture(scope="module")
def bench() -> Iterator[Workbench]:
    """A bench whose measurements are made up, and at which some kernels misbehave; see ``tests.forge_tasks``."""
    made = Workbench(Limits(wall_s=2.0, memory_bytes=128 << 20), tasks="tests.forge_tasks")
    yield made
    made.close()


class World:
    """A log and a store, and what happens in them."""

    def __init__(self, bench: Workbench) -> None:
        self.log = MemoryLog()
        self.store = MemoryStore()
        self.bench = bench
        self.shelf = KernelShelf(self.store)
        self.toolchain = toolchain()

    def say(self, fact: Fact, event_id: bytes) -> None:
        event = Event(fact=fact, event_id=event_id, sender_id="tezzeret", trace_id="b" * 32)
        self.log.append([event], stream=fact.stream, expected=ANY)

    def compiled(
        self, name: str = "affine", *, signature: SiteSignature = LINEAR, shelf: KernelShelf | None = None
    ) -> KernelCompiled:
        """Put a kernel on the shelf and say that it is there."""
        blueprint = named(name)
        identity = blueprint_id(blueprint)
        submitted = BlueprintSubmitted(
            blueprint_id=identity,
            name=name,
            kind=blueprint.kind,
            architecture_ir=canonical_json(blueprint),
            submitted_by="ada",
        )
        self.say(submitted, identity[:16].encode())
        data = encode_kernel(blueprint, LINEAR, build(blueprint, LINEAR, seed=kernel_seed(blueprint, LINEAR)))
        kernel = (shelf or self.shelf).put(data)
        fact = KernelCompiled(
            blueprint_id=identity,
            kernel_id=kernel,
            signature=msgspec.to_builtins(signature),
            symbols={"C": 16, "P": 1},
            parameters=32,
            flops=32,
            size_bytes=len(data),
            compile_seconds=0.1,
            toolchain=self.toolchain,
        )
        self.say(fact, compiled_event_id(kernel))
        return fact

    def work(self, urabrask: Urabrask | None = None, *, group: str = "urabrask") -> None:
        """Let Urabrask work until nothing is left to do."""
        asyncio.run(self._work(urabrask or self.urabrask(), group))

    def urabrask(self) -> Urabrask:
        return Urabrask(self.log, lambda _: self.shelf, bench=self.bench)

    async def _work(self, urabrask: Urabrask, group: str) -> None:
        consumer = Consumer(
            self.log,
            group=group,
            member="a",
            topics=urabrask.topics,
            attempts=2,
            ttl_s=2.0,
            first_delay_s=0.01,
            sender_id="handler:urabrask",
            trace_id="ab" * 16,
        )
        life = Life(Health("urabrask", "a"), drain_s=10.0, until_idle=True)
        assert await Worker(consumer, urabrask, log=self.log, store=self.store).run(life)

    @property
    def facts(self) -> list[Fact]:
        return [fact_of(envelope) for envelope in self.log.read(0, 10_000) if envelope.stream.startswith("blueprint/")]

    @property
    def names(self) -> list[str]:
        return [type(fact).__name__ for fact in self.facts]

    @property
    def parked(self) -> int:
        return len(list(parked_events(self.log, "urabrask")))


def named(name: str) -> Blueprint:
    return parse(AFFINE.replace('"id":"affine"', f'"id":"{name}"'))


@pytest.fixture
def world(bench: Workbench) -> World:
    return World(bench)


def test_a_kernel_that_was_compiled_is_measured_judged_and_tagged_with_its_raw_numbers_stored(world: World) -> None:
    compiled = world.compiled()
    world.work()
    characterized, validated, tagged = world.facts[2:]
    assert isinstance(characterized, KernelCharacterized)
    assert isinstance(validated, KernelValidated)
    assert isinstance(tagged, KernelTagged)
    assert characterized.kernel_id == validated.kernel_id == tagged.kernel_id == compiled.kernel_id
    raw = json.loads(world.store.get(validated.measurements_digest))
    assert raw["checks"] == characterized.checks
    assert raw["toolchain"] == characterized.toolchain == toolchain()
    envelopes = world.log.read(0, 100, topics=["validation.kernel.characterized"])
    assert {one.trace_id for one in envelopes} == {"b" * 32}
    assert {one.sender_id for one in envelopes} == {"handler:urabrask"}
    assert envelopes[1].event_id == verdict_event_id(compiled.kernel_id, toolchain())
    assert world.parked == 0


def test_the_real_crucible_validates_a_sound_kernel(world: World) -> None:
    world.compiled()
    world.work(Urabrask(world.log, bench=shared_bench()))
    assert world.names[2:] == JUDGED
    assert world.facts[2].checks["birth_identity"]


@pytest.mark.parametrize(
    ("what", "failed"),
    [
        ("never_ends", "time_limit"),
        ("takes_memory", "memory_limit"),
        ("forks", "forked"),
        ("dies", "died"),
        ("raises", "error"),
        ("yields_nan", "finite_float32"),
    ],
)
def test_a_kernel_that_misbehaves_is_rejected_and_the_next_one_is_measured(
    world: World, what: str, failed: str
) -> None:
    bad = world.compiled(f"{what}_in_measure")
    world.compiled("good")
    world.work()
    [rejected] = [fact for fact in world.facts if isinstance(fact, KernelRejected)]
    assert (rejected.kernel_id, rejected.failed) == (bad.kernel_id, [failed])
    assert json.loads(world.store.get(rejected.measurements_digest))["checks"] == {failed: False}
    assert [fact.kernel_id == bad.kernel_id for fact in world.facts if isinstance(fact, KernelValidated)] == [False]
    assert world.parked == 0


def tamper(world: World, kernel: KernelCompiled) -> None:
    name = next(name for name in world.store.shelf.names() if kernel.kernel_id in name)
    data = bytearray(world.store.shelf.get(name) or b"")
    data[len(data) // 2] ^= 1
    world.store.shelf.replace(name, bytes(data))


def test_a_kernel_with_a_changed_byte_is_put_aside_and_the_next_one_is_measured(world: World) -> None:
    bad = world.compiled()
    tamper(world, bad)
    good = world.compiled("good")
    world.work()
    [quarantined] = [fact for fact in world.facts if isinstance(fact, KernelQuarantined)]
    assert (quarantined.kernel_id, quarantined.reason) == (bad.kernel_id, "damaged")
    assert quarantined.found_by == "handler:urabrask"
    assert quarantined.evidence_digest is not None
    assert world.store.has(quarantined.evidence_digest)
    [validated] = [fact for fact in world.facts if isinstance(fact, KernelValidated)]
    assert validated.kernel_id == good.kernel_id
    assert world.parked == 0


def test_a_kernel_that_is_missing_or_for_another_site_or_of_another_blueprint_is_put_aside(world: World) -> None:
    missing = world.compiled("missing")
    world.store.delete(bytes.fromhex(missing.kernel_id))
    elsewhere = world.compiled("elsewhere", signature=msgspec.structs.replace(LINEAR, channels=32))
    nowhere = world.compiled("nowhere")
    stolen = world.compiled("stolen")
    thief = msgspec.structs.replace(stolen, blueprint_id=nowhere.blueprint_id)
    world.say(thief, b"thief of a kerne")
    world.work()
    found = [(fact.kernel_id, fact.reason) for fact in world.facts if isinstance(fact, KernelQuarantined)]
    assert sorted(found) == sorted(
        [(missing.kernel_id, "missing"), (elsewhere.kernel_id, "wrong_site"), (stolen.kernel_id, "not_a_kernel")]
    )
    assert world.parked == 0


def test_signatures_are_demanded_and_given(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("keys")
    own, stranger = (SigningKey.create(folder / f"{name}.pem") for name in ("own", "stranger"))
    world.shelf = KernelShelf(world.store, key=own, trusted=[])
    world.compiled("signed")
    unsigned = world.compiled("unsigned", shelf=KernelShelf(world.store))
    wrong = world.compiled("wrong")
    world.store.remove_signature(bytes.fromhex(wrong.kernel_id), own.public.key_id)
    world.store.add_signature(bytes.fromhex(wrong.kernel_id), own.public.key_id, bytes(64))
    world.compiled("strange", shelf=KernelShelf(world.store, key=stranger, trusted=[]))
    world.work()
    found = [(fact.kernel_id, fact.reason) for fact in world.facts if isinstance(fact, KernelQuarantined)]
    assert sorted(found) == sorted([(unsigned.kernel_id, "unsigned"), (wrong.kernel_id, "wrong_signature")])
    [validated] = [fact for fact in world.facts if isinstance(fact, KernelValidated)]
    verify_signed(world.store, validated.measurements_digest, [own.public])
    # That a signer is not trusted here is for a person to settle: the event waits for one.
    assert world.parked == 1


def test_an_event_that_comes_again_changes_nothing(world: World) -> None:
    world.compiled()
    world.work()
    written = world.names
    world.work(group="urabrask-again")
    assert world.names == written


def test_another_member_that_was_slower_ends_in_the_same_verdict(world: World) -> None:
    compiled = world.compiled()

    class Overtaken(Workbench):
        """Another member judges the kernel while we measure it."""

        def run(self, *args: object, **kwargs: object) -> object:
            done = world.bench.run(*args, **kwargs)
            world.work(group="urabrask-other")
            return done

    slow = Overtaken()
    urabrask = Urabrask(world.log, lambda _: world.shelf, bench=slow)
    world.work(urabrask)
    assert world.names[2:] == JUDGED
    assert world.facts[3].kernel_id == compiled.kernel_id
    slow.close()


def test_kernels_of_another_toolchain_are_asked_for_once_and_measured_again(world: World) -> None:
    world.toolchain = "torch 2.0.0"
    world.compiled()
    for fact in (
        KernelCharacterized(
            blueprint_id=blueprint_id(named("affine")),
            kernel_id=world.facts[1].kernel_id,
            checks={"shape": True},
            numbers={},
            measurements_digest=bytes(32),
            latency_p50_s=0.1,
            latency_p99_s=0.1,
            measured_seconds=0.1,
        ),
        KernelValidated(
            blueprint_id=blueprint_id(named("affine")),
            kernel_id=world.facts[1].kernel_id,
            measurements_digest=bytes(32),
        ),
    ):
        world.say(fact, type(fact).__name__[-16:].encode().rjust(16))
    assert [world.urabrask().request_outdated() for _ in range(2)] == [1, 0]
    world.work()
    assert world.names[4:] == ["MeasurementRequested", *JUDGED]
    request = world.facts[4]
    assert isinstance(request, MeasurementRequested)
    assert (request.reason, request.toolchain) == ("another toolchain", toolchain())
    assert world.urabrask().request_outdated() == 0


def test_a_measurement_that_somebody_asks_for_gives_a_new_verdict(world: World) -> None:
    compiled = world.compiled()
    world.work()
    wish = MeasurementRequested(
        blueprint_id=compiled.blueprint_id,
        kernel_id=compiled.kernel_id,
        reason="asked for",
        toolchain=toolchain(),
        requested_by="ada",
    )
    world.say(wish, b"a wish by ada   ")
    world.work()
    assert world.names[2:] == [*JUDGED, "MeasurementRequested", *JUDGED]
    written = world.names
    world.work(group="urabrask-again")
    assert world.names == written


def test_a_wish_for_what_was_never_compiled_waits_for_a_person(world: World) -> None:
    compiled = world.compiled()
    wish = MeasurementRequested(
        blueprint_id=compiled.blueprint_id,
        kernel_id="ab" * 32,
        reason="asked for",
        toolchain=toolchain(),
        requested_by="ada",
    )
    world.say(wish, b"a wish by ada   ")
    world.work()
    assert world.parked == 1


def test_who_lost_the_lease_stops_measuring_and_says_nothing(world: World) -> None:
    compiled = world.compiled("never_ends_in_measure")
    envelope = next(one for one in world.log.read() if one.type == "KernelCompiled")
    written = world.names
    owned = iter([True, True])

    with pytest.raises(LeaseLost):
        asyncio.run(world.urabrask().handle(envelope, context(world, envelope, lambda: next(owned, False))))
    assert world.names == written
    assert compiled.kernel_id not in {getattr(fact, "kernel_id", None) for fact in world.facts[2:]}


def test_who_lost_the_lease_when_the_measurement_was_done_says_nothing(world: World) -> None:
    world.compiled()
    envelope = next(one for one in world.log.read() if one.type == "KernelCompiled")
    owned = [True]

    class Losing(Workbench):
        def run(self, *args: object, **kwargs: object) -> object:
            done = world.bench.run(*args, **kwargs)
            owned.clear()
            return done

    urabrask = Urabrask(world.log, lambda _: world.shelf, bench=Losing())
    with pytest.raises(LeaseLost):
        asyncio.run(urabrask.handle(envelope, context(world, envelope, lambda: bool(owned))))
    assert world.names == ["BlueprintSubmitted", "KernelCompiled"]


def test_a_process_that_ends_stops_measuring_and_the_event_counts_as_untried(world: World) -> None:
    world.compiled("never_ends_in_measure")
    envelope = next(one for one in world.log.read() if one.type == "KernelCompiled")

    async def stopped() -> None:
        given = context(world, envelope, lambda: True)
        work = asyncio.create_task(world.urabrask().handle(envelope, given))
        await asyncio.sleep(0.05)
        given.stopping.set()
        await work

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(stopped())
    assert world.names == ["BlueprintSubmitted", "KernelCompiled"]


def context(world: World, envelope: Envelope, owned: object) -> Context:
    delivery = Delivery(envelope=envelope, fact=fact_of(envelope), attempt=1, token=1)
    return Context("urabrask", delivery, log=world.log, store=world.store, stopping=asyncio.Event(), owned=owned)


def test_its_own_child_ends_with_it(world: World) -> None:
    urabrask = Urabrask(world.log)
    urabrask.close()
    with pytest.raises(WorkFailed, match="closed"):
        urabrask._bench.run("measure", b"")
    kept = Urabrask(world.log, bench=world.bench)
    kept.close()
    assert world.bench.run("compile", b"").result == b""
