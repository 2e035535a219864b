"""Tezzeret: given blueprints, sites and wishes, these kernels and facts; each job once, whatever goes wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from esper.artifacts.memory import MemoryStore
from esper.artifacts.signatures import verify_signed
from esper.artifacts.signing import SigningKey
from esper.blueprints.bench.wire import Compiled
from esper.blueprints.bench.workbench import Done, Limits
from esper.blueprints.canonical import blueprint_id, canonical_json
from esper.blueprints.forging.forge import Forge
from esper.blueprints.forging.history import history_of
from esper.blueprints.forging.jobs import (
    MOST_REMADE,
    compiled_event_id,
    failed_event_id,
    hardware,
    job_id,
    requested_event_id,
    toolchain,
)
from esper.blueprints.forging.submission import Author, retire, submit_sound
from esper.blueprints.ir import Blueprint, SiteSignature, parse
from esper.blueprints.kernels.shelf import KernelShelf
from esper.blueprints.library import load_library
from esper.blueprints.verify import fits
from esper.errors import ArtifactStoreUnavailable, KernelRefused, LeaseLost
from esper.events import Envelope, Event, Fact, fact_of
from esper.events.blueprint import BlueprintSubmitted
from esper.events.kernel import (
    CompilationFailed,
    CompilationLeased,
    CompilationRequested,
    KernelCompiled,
    KernelQuarantined,
    MeasurementRequested,
)
from esper.events.seed import SiteRegistered
from esper.handlers.runtime.handler import Context
from esper.handlers.runtime.health import Health
from esper.handlers.runtime.life import Life
from esper.handlers.runtime.worker import Worker
from esper.handlers.tezzeret.benches import Benches
from esper.handlers.tezzeret.handler import Tezzeret
from esper.handlers.tezzeret.wanted import REFERENCE_SITES
from esper.ids import derived_id
from esper.oona.consuming.consumer import Consumer
from esper.oona.consuming.lanes import Delivery
from esper.oona.consuming.parking import parked_events
from esper.oona.memory import MemoryLog
from esper.oona.port import ANY, Receipt

LIBRARY = load_library()
LINEAR = SiteSignature(kind="linear", rank="NC", channels=16, in_channels=8, positions=(), causal=False)
WIDER = msgspec.structs.replace(LINEAR, channels=24)
CONV = SiteSignature(kind="conv2d", rank="NCHW", channels=8, in_channels=3, positions=(6, 6), causal=False)
ADA = Author("ada", "operator:ada", "b" * 32)


class CountedBenches(Benches):
    """Benches that count the jobs that are begun."""

    begun = 0

    async def run(self, task: str, payload: bytes, **how: Any) -> Done:
        self.begun += 1
        return await super().run(task, payload, **how)


@pytest.fixture(scope="module")
def real() -> Iterator[CountedBenches]:
    made = CountedBenches(1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def hostile() -> Iterator[CountedBenches]:
    """A bench at which some blueprints misbehave, as their names say; see ``tests.forge_tasks``."""
    made = CountedBenches(1, Limits(wall_s=1.0, memory_bytes=128 << 20), tasks="tests.forge_tasks")
    yield made
    made.close()


class World:
    """A log and a store, and what happens in them."""

    def __init__(self, benches: CountedBenches) -> None:
        self.log = MemoryLog()
        self.store = MemoryStore()
        self.shelf = KernelShelf(self.store)
        self.benches = benches
        benches.begun = 0

    def say(self, fact: Fact, *name: str | int) -> None:
        event = Event(fact=fact, event_id=derived_id("test", *name), sender_id="ada", trace_id="b" * 32)
        self.log.append([event], stream=fact.stream, expected=ANY)

    def submit(self, blueprint: Blueprint | str) -> str:
        known = LIBRARY[blueprint] if isinstance(blueprint, str) else blueprint
        return submit_sound(self.log, known, ADA).blueprint_id

    def register(self, run: str, *sites: SiteSignature) -> None:
        for depth, site in enumerate(sites):
            fact = SiteRegistered(
                run_id=run,
                attempt=1,
                ordinal=depth + 1,
                site=f"body.{depth}",
                kind=site.kind,
                depth=depth,
                signature=msgspec.to_builtins(site),
                parameters=1,
                flops=1,
            )
            self.say(fact, run, depth)

    def request(self, identity: str, site: SiteSignature, **changes: object) -> None:
        fact = CompilationRequested(
            job_id=job_id(identity, site),
            blueprint_id=identity,
            signature=msgspec.to_builtins(site),
            pipelines=[],
            requested_by="ada",
        )
        fact = msgspec.structs.replace(fact, **changes)
        event = Event(fact=fact, event_id=requested_event_id(fact.job_id), sender_id="ada", trace_id="b" * 32)
        self.log.append([event], stream=fact.stream, expected=ANY)

    def tezzeret(self, member: str = "a") -> Tezzeret:
        return Tezzeret(self.log, lambda _: self.shelf, member=member, benches=self.benches)

    def work(self, *, group: str = "tezzeret", log: MemoryLog | None = None, member: str = "a") -> None:
        """Let a worker work until nothing is left to do."""
        asyncio.run(self._work(group, log or self.log, member))

    async def _work(self, group: str, log: MemoryLog, member: str) -> None:
        handler = Tezzeret(log, lambda _: self.shelf, member=member, benches=self.benches)
        consumer = Consumer(
            log,
            group=group,
            member=member,
            topics=handler.topics,
            attempts=2,
            ttl_s=2.0,
            first_delay_s=0.01,
            sender_id="handler:tezzeret",
            trace_id="ab" * 16,
        )
        life = Life(Health("tezzeret", member), drain_s=10.0, until_idle=True)
        assert await Worker(consumer, handler, log=log, store=self.store, concurrency=2).run(life)

    def envelopes(self) -> list[Envelope]:
        return [one for one in self.log.read(0, 10_000) if one.stream.startswith("blueprint/")]

    def of(self, cls: type[Fact]) -> list[Any]:
        return [fact for fact in map(fact_of, self.envelopes()) if isinstance(fact, cls)]

    def names(self) -> list[str]:
        return [one.type for one in self.envelopes()]

    @property
    def parked(self) -> int:
        return len(list(parked_events(self.log, "tezzeret")))


@pytest.fixture
def world(real: CountedBenches) -> World:
    return World(real)


def named(name: str) -> Blueprint:
    return parse(canonical_json(LIBRARY["affine"]).replace('"id":"affine"', f'"id":"{name}"'))


# --- what is made


def test_a_submitted_blueprint_gets_a_kernel_signed_and_told_with_what_it_took(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    key = SigningKey.create(tmp_path_factory.mktemp("keys") / "signing.pem")
    world.shelf = KernelShelf(world.store, key=key, trusted=[])
    world.register("run-1", LINEAR)
    identity = world.submit("lora")
    world.work(member="smith")
    assert world.names() == ["BlueprintSubmitted", "CompilationRequested", "CompilationLeased", "KernelCompiled"]
    [requested], [leased], [compiled] = (
        world.of(CompilationRequested),
        world.of(CompilationLeased),
        world.of(KernelCompiled),
    )
    job = job_id(identity, LINEAR)
    assert (requested.job_id, requested.pipelines, requested.requested_by) == (job, [], "handler:tezzeret")
    assert (leased.job_id, leased.worker, leased.attempt) == (job, "smith", 1)
    assert leased.token >= 1
    assert (compiled.job_id, compiled.worker, compiled.signed_by) == (job, "smith", key.public.key_id)
    assert (compiled.toolchain, compiled.hardware) == (toolchain(), hardware())
    assert compiled.compile_seconds > 0
    assert compiled.peak_memory_bytes is not None
    verify_signed(world.store, bytes.fromhex(compiled.kernel_id), [key.public])
    kernel = world.shelf.get(compiled.kernel_id, signature=LINEAR)
    assert kernel.manifest.blueprint_id == identity
    ids = [one.event_id for one in world.envelopes()]
    assert (ids[1], ids[3]) == (requested_event_id(job), compiled_event_id(compiled.kernel_id))
    assert {one.trace_id for one in world.envelopes()} == {"b" * 32}


def test_the_kernel_is_the_one_a_run_makes_for_itself(world: World) -> None:
    world.register("run-1", LINEAR)
    world.submit("res_mlp")
    world.work()
    other = MemoryLog()
    [reference] = Forge(other, MemoryStore(), sender_id="tolaria", trace_id="c" * 32).ensure(
        [LINEAR], [LIBRARY["res_mlp"]]
    )
    [compiled] = world.of(KernelCompiled)
    assert compiled.kernel_id == reference.kernel_id
    assert (compiled.parameters, compiled.flops) == (reference.parameters, reference.flops)


def test_kernels_are_made_for_every_site_of_any_run_that_the_blueprint_fits_and_each_once(world: World) -> None:
    world.register("run-1", LINEAR, CONV, LINEAR)
    world.register("run-2", WIDER, LINEAR)
    identity = world.submit("res_mlp")
    world.work()
    made = [msgspec.convert(fact.signature, SiteSignature) for fact in world.of(KernelCompiled)]
    assert made == [LINEAR, WIDER]
    assert {one.job_id for one in world.of(CompilationRequested)} == {job_id(identity, LINEAR), job_id(identity, WIDER)}


def test_where_no_run_has_a_fitting_site_the_kernels_are_for_the_reference_sites(world: World) -> None:
    world.register("run-1", CONV)
    world.submit("lora")
    world.work()
    wanted = [site for site in REFERENCE_SITES if fits(LIBRARY["lora"], site) is None]
    assert [msgspec.convert(fact.signature, SiteSignature) for fact in world.of(KernelCompiled)] == wanted
    assert wanted


def test_every_blueprint_of_the_library_fits_a_reference_site() -> None:
    without = [name for name, one in LIBRARY.items() if all(fits(one, site) is not None for site in REFERENCE_SITES)]
    assert without == []


def test_sites_that_come_later_are_known_to_blueprints_that_come_later(world: World) -> None:
    world.register("run-1", LINEAR)
    world.submit("lora")
    world.work()
    world.register("run-2", WIDER)
    world.submit("res_mlp")
    world.work()
    assert len(world.of(KernelCompiled)) == 3


# --- what is not made


def test_what_was_made_already_is_not_made_again(world: World) -> None:
    world.register("run-1", LINEAR)
    Forge(world.log, world.store, sender_id="tolaria", trace_id="c" * 32, shelf=world.shelf).ensure(
        [LINEAR], [LIBRARY["lora"]]
    )
    world.request(blueprint_id(LIBRARY["lora"]), LINEAR)
    before = len(world.of(KernelCompiled))
    world.work()
    assert world.of(CompilationLeased) == []
    assert (len(world.of(KernelCompiled)), world.benches.begun) == (before, 0)


def test_events_that_come_again_change_nothing(world: World) -> None:
    world.register("run-1", LINEAR)
    world.submit("lora")
    world.work()
    written = world.names()
    world.work(group="tezzeret-again")
    assert world.names() == written
    assert world.benches.begun == 1


def test_an_unsound_submission_is_left_to_the_verifier(world: World) -> None:
    unsound = BlueprintSubmitted(
        blueprint_id="ab" * 32, name="bad", kind="residual", architecture_ir='{"ir": 1}', submitted_by="ada"
    )
    claims = msgspec.structs.replace(unsound, architecture_ir=canonical_json(LIBRARY["lora"]))
    world.say(unsound, "unsound")
    world.say(msgspec.structs.replace(claims, blueprint_id="cd" * 32), "claims to be another")
    world.work()
    assert world.names() == ["BlueprintSubmitted"] * 2
    assert world.parked == 0


def test_a_retired_blueprint_is_not_compiled_until_it_is_back(world: World) -> None:
    world.register("run-1", LINEAR)
    identity = world.submit("lora")
    world.request(identity, LINEAR)
    retire(world.log, identity, "worse than none", ADA)
    world.work()
    assert world.of(CompilationLeased) == world.of(KernelCompiled) == []
    world.submit("lora")
    world.work()
    assert [one.job_id for one in world.of(KernelCompiled)] == [job_id(identity, LINEAR)]


# --- wishes that make no sense


def test_a_wish_for_what_does_not_fit_was_never_submitted_or_names_another_job_fails_with_the_reason(
    world: World,
) -> None:
    lora, unknown = world.submit("lora"), "ef" * 32
    world.request(lora, CONV)
    world.request(unknown, LINEAR)
    world.request(lora, LINEAR, job_id="0" * 32)
    world.request(lora, WIDER, signature={"kind": "linear"}, job_id="1" * 32)
    world.work()
    failed = {fact.job_id: (fact.reason, fact.message) for fact in world.of(CompilationFailed)}
    assert {reason for reason, _ in failed.values()} == {"error"}
    assert "NCHW" in failed[job_id(lora, CONV)][1]
    assert "never submitted" in failed[job_id(unknown, LINEAR)][1]
    assert job_id(lora, LINEAR) in failed["0" * 32][1]
    assert "none of a site" in failed["1" * 32][1]
    assert world.parked == 0


# --- blueprints that misbehave


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("never_ends", "time_limit"),
        ("takes_memory", "memory_limit"),
        ("forks", "forked"),
        ("dies", "died"),
        ("raises", "error"),
        ("is_refused", "error"),
    ],
)
def test_a_blueprint_that_misbehaves_fails_once_and_the_worker_lives_on(
    hostile: CountedBenches, real: CountedBenches, what: str, reason: str
) -> None:
    world = World(hostile)
    world.register("run-1", LINEAR)
    identity = world.submit(named(f"{what}_in_compile"))
    world.work()
    [failed] = world.of(CompilationFailed)
    assert (failed.job_id, failed.reason) == (job_id(identity, LINEAR), reason)
    ids = {one.type: one.event_id for one in world.envelopes()}
    assert ids["CompilationFailed"] == failed_event_id(failed.job_id)
    world.work(group="again")
    assert (hostile.begun, world.parked) == (1, 0)
    world.benches = real
    world.submit("lora")
    world.work()
    assert len(world.of(KernelCompiled)) == 1


def test_the_loop_turns_while_a_blueprint_is_compiled(hostile: CountedBenches) -> None:
    world = World(hostile)
    world.register("run-1", LINEAR)
    world.submit(named("never_ends_in_compile"))
    longest_s = 0.0

    async def watched() -> None:
        nonlocal longest_s
        work = asyncio.create_task(world._work("tezzeret", world.log, "a"))
        while not work.done():
            began_s = time.perf_counter()
            await asyncio.sleep(0.005)
            longest_s = max(longest_s, time.perf_counter() - began_s)
        await work

    asyncio.run(watched())
    assert world.of(CompilationFailed)[0].reason == "time_limit"
    assert longest_s < 0.5


# --- servers that are away


class AwayStore(MemoryStore):
    """A store that takes nothing for a while."""

    refusals = 0

    def put(self, data: bytes) -> bytes:
        if self.refusals:
            self.refusals -= 1
            raise ArtifactStoreUnavailable("no answer")
        return super().put(data)


def test_a_store_that_is_away_is_waited_for_and_nothing_is_compiled_twice(world: World) -> None:
    store = AwayStore()
    store.refusals = 4  # more than an event has tries
    world.store, world.shelf = store, KernelShelf(store)
    world.register("run-1", LINEAR)
    world.submit("lora")
    world.work()
    [compiled] = world.of(KernelCompiled)
    assert world.store.has(bytes.fromhex(compiled.kernel_id))
    assert (len(world.of(CompilationLeased)), world.benches.begun, world.parked) == (1, 1, 0)
    assert store.refusals == 0


# --- leases


class Interrupted(MemoryLog):
    """A log in which something else happens between reading a stream and appending the verdict of a job."""

    def __init__(self, meanwhile: Sequence[Fact]) -> None:
        super().__init__()
        self.meanwhile = list(meanwhile)

    def append(self, batch: Sequence[Event], *, stream: str, expected: int) -> Receipt:
        if self.meanwhile and isinstance(batch[0].fact, KernelCompiled):
            fact = self.meanwhile.pop(0)
            first = Event(
                fact=fact, event_id=derived_id("meanwhile", type(fact).__name__), sender_id="other", trace_id="d" * 32
            )
            super().append([first], stream=fact.stream, expected=ANY)
        return super().append(batch, stream=stream, expected=expected)


def failure_of(job: str, identity: str) -> CompilationFailed:
    return CompilationFailed(
        blueprint_id=identity,
        signature=msgspec.to_builtins(LINEAR),
        error="WorkFailed",
        message="it took too long",
        job_id=job,
        reason="time_limit",
    )


def test_a_job_that_came_to_something_elsewhere_gets_no_second_verdict(world: World) -> None:
    identity = blueprint_id(LIBRARY["lora"])
    world.log = Interrupted([failure_of(job_id(identity, LINEAR), identity)])
    world.register("run-1", LINEAR)
    world.submit("lora")
    world.work()
    assert world.of(KernelCompiled) == []
    assert len(world.of(CompilationFailed)) == 1


def test_other_facts_of_the_stream_do_not_keep_a_verdict_out(world: World) -> None:
    identity = blueprint_id(LIBRARY["lora"])
    about_another = CompilationRequested(
        job_id=job_id(identity, WIDER),
        blueprint_id=identity,
        signature=msgspec.to_builtins(WIDER),
        pipelines=[],
        requested_by="ada",
    )
    world.log = Interrupted([about_another])
    world.register("run-1", LINEAR)
    world.submit("lora")
    world.work()
    assert {one.job_id for one in world.of(KernelCompiled)} == {job_id(identity, LINEAR), job_id(identity, WIDER)}


def attempt(world: World, token: int, member: str, *, owned: list[bool]) -> None:
    """Handle the one request of a world's log, as a member whose lease lasts as the answers say."""
    [request] = [one for one in world.envelopes() if one.type == "CompilationRequested"]

    def still() -> bool:
        return owned.pop(0) if len(owned) > 1 else owned[0]

    async def handle() -> None:
        context = Context(
            "tezzeret",
            Delivery(request, fact_of(request), 1, token),
            log=world.log,
            store=world.store,
            stopping=asyncio.Event(),
            owned=still,
        )
        await world.tezzeret(member).handle(request, context)

    asyncio.run(handle())


def test_a_worker_that_lost_its_lease_says_nothing_and_the_next_one_does_the_job_again(world: World) -> None:
    identity = world.submit("lora")
    world.request(identity, LINEAR)
    with pytest.raises(LeaseLost):
        attempt(world, 1, "sleepy", owned=[True, False])
    assert world.of(KernelCompiled) == world.of(CompilationFailed) == []
    attempt(world, 2, "awake", owned=[True])
    attempt(world, 1, "sleepy", owned=[False])
    leases = [(one.worker, one.token, one.attempt) for one in world.of(CompilationLeased)]
    assert leases == [("sleepy", 1, 1), ("awake", 2, 2)]
    assert [one.worker for one in world.of(KernelCompiled)] == ["awake"]


def test_a_lease_that_ends_after_the_work_keeps_its_result_out_of_the_log(world: World) -> None:
    identity = world.submit("lora")
    world.request(identity, LINEAR)
    owned = [True]

    class Slow(CountedBenches):
        async def run(self, task: str, payload: bytes, **how: Any) -> Done:
            done = await real.run(task, payload, **how)
            owned[0] = False
            return done

    real, slow = world.benches, Slow(1)
    world.benches = slow
    with pytest.raises(LeaseLost):
        attempt(world, 1, "sleepy", owned=owned)
    slow.close()
    assert world.of(KernelCompiled) == world.of(CompilationFailed) == []


def test_a_second_try_under_the_same_lease_is_no_second_lease(world: World) -> None:
    identity = world.submit("lora")
    world.request(identity, LINEAR)
    refusing = AwayStore()
    refusing.refusals = 1
    world.store, world.shelf = refusing, KernelShelf(refusing)
    with pytest.raises(ArtifactStoreUnavailable):
        attempt(world, 5, "a", owned=[True])
    attempt(world, 5, "a", owned=[True])
    assert [(one.token, one.attempt) for one in world.of(CompilationLeased)] == [(5, 1)]
    assert len(world.of(KernelCompiled)) == 1


# --- kernels that are found bad


def quarantine(world: World, compiled: KernelCompiled, number: int) -> None:
    world.shelf.quarantine(compiled.kernel_id)
    world.say(
        KernelQuarantined(
            blueprint_id=compiled.blueprint_id,
            kernel_id=compiled.kernel_id,
            reason="damaged",
            message="a bit was changed",
            evidence_digest=None,
            found_by="ada",
        ),
        "quarantine",
        number,
    )


def tamper(world: World, kernel_id: str) -> None:
    name = next(name for name in world.store.shelf.names() if kernel_id in name)
    data = bytearray(world.store.shelf.get(name) or b"")
    data[len(data) // 2] ^= 1
    world.store.shelf.replace(name, bytes(data))


def test_a_kernel_in_quarantine_is_made_again_with_the_same_bytes_and_is_to_be_measured(world: World) -> None:
    world.register("run-1", LINEAR)
    world.submit("lora")
    world.work()
    [compiled] = world.of(KernelCompiled)
    tamper(world, compiled.kernel_id)
    quarantine(world, compiled, 0)
    world.work()
    assert world.shelf.get(compiled.kernel_id, signature=LINEAR).kernel_id == compiled.kernel_id
    [wish] = world.of(MeasurementRequested)
    assert (wish.kernel_id, wish.reason, wish.toolchain) == (compiled.kernel_id, "made again", toolchain())
    assert len(world.of(KernelCompiled)) == len(world.of(CompilationLeased)) == 1
    assert history_of(world.log, compiled.blueprint_id).kernels[compiled.kernel_id].wanted


def test_a_kernel_that_is_found_bad_again_and_again_stays_in_quarantine(world: World) -> None:
    world.register("run-1", LINEAR)
    world.submit("lora")
    world.work()
    [compiled] = world.of(KernelCompiled)
    for number in range(MOST_REMADE + 2):
        quarantine(world, compiled, number)
        # Somebody measured it and found it bad: the wish is answered.
        world.work()
    assert len(world.of(MeasurementRequested)) <= MOST_REMADE
    assert world.benches.begun <= 1 + MOST_REMADE


def test_a_kernel_that_the_store_lost_is_made_again_where_it_is_asked_for(world: World) -> None:
    world.register("run-1", LINEAR)
    Forge(world.log, world.store, sender_id="tolaria", trace_id="c" * 32, shelf=world.shelf).ensure(
        [LINEAR], [LIBRARY["lora"]]
    )
    [compiled] = world.of(KernelCompiled)
    world.store.delete(bytes.fromhex(compiled.kernel_id))
    world.request(compiled.blueprint_id, LINEAR)
    world.work()
    assert world.shelf.has(compiled.kernel_id)
    assert len(world.of(KernelCompiled)) == 1


def test_what_a_bench_gives_back_is_checked_before_it_is_kept(world: World) -> None:
    """Only bytes that are a kernel are put on the shelf; a bench whose answer is none has failed."""

    class Garbled(CountedBenches):
        async def run(self, task: str, payload: bytes, **how: Any) -> Done:
            done = await world_benches.run(task, payload, **how)
            made = msgspec.msgpack.decode(done.result, type=Compiled)
            return msgspec.structs.replace(
                done, result=msgspec.msgpack.encode(msgspec.structs.replace(made, kernel=made.kernel[:-9]))
            )

    world_benches, garbled = world.benches, Garbled(1)
    world.benches = garbled
    world.register("run-1", LINEAR)
    world.submit("lora")
    world.work()
    garbled.close()
    [failed] = world.of(CompilationFailed)
    assert failed.error == KernelRefused.__name__
