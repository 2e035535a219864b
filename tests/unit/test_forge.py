"""The forge: given blueprints and sites, these facts and these kernels."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from msgspec.structs import replace

from esper.artifacts.memory import MemoryStore
from esper.blueprints.build import example_input
from esper.blueprints.canonical import blueprint_id, canonical_json
from esper.blueprints.forge import Forge
from esper.blueprints.ir import SiteSignature
from esper.blueprints.library import load_library
from esper.errors import ArtifactMissing, BlueprintInvalid, KernelRefused, NotFound
from esper.events import Event, Fact, fact_of
from esper.events.blueprint import BlueprintRejected, BlueprintRetired, BlueprintSubmitted
from esper.events.kernel import KernelCharacterized, KernelCompiled, KernelRejected, KernelValidated
from esper.ids import derived_id
from esper.oona.memory import MemoryLog
from esper.oona.port import ANY

LIBRARY = load_library()
LINEAR = SiteSignature(kind="linear", rank="NC", channels=16, in_channels=8, positions=(), causal=False)
CONV = SiteSignature(kind="conv2d", rank="NCHW", channels=8, in_channels=3, positions=(6, 6), causal=False)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def forge(log: MemoryLog, store: MemoryStore) -> Forge:
    return Forge(log, store, sender_id="karn", trace_id="a" * 32)


def facts(log: MemoryLog) -> list[Fact]:
    return [fact_of(envelope) for envelope in log.read(0, 10_000)]


def names(log: MemoryLog) -> list[str]:
    return [envelope.type for envelope in log.read(0, 10_000)]


def test_a_submitted_blueprint_is_noted_once_with_its_canonical_document(forge: Forge, log: MemoryLog) -> None:
    blueprint = LIBRARY["res_mlp"]
    identity = forge.submit(canonical_json(blueprint).encode(), by="ada")
    assert forge.submit(json.dumps(json.loads(canonical_json(blueprint)), indent=4).encode(), by="bob") == identity
    assert facts(log) == [
        BlueprintSubmitted(
            blueprint_id=blueprint_id(blueprint),
            name="res_mlp",
            kind="residual",
            architecture_ir=canonical_json(blueprint),
            submitted_by="ada",
        )
    ]
    assert log.read()[0].event_id == derived_id("blueprint", identity, "submitted")
    assert log.read()[0].stream == f"blueprint/{identity}"


def test_a_broken_blueprint_is_refused_and_the_refusal_is_noted_with_its_reason(forge: Forge, log: MemoryLog) -> None:
    broken = canonical_json(LIBRARY["res_mlp"]).replace('"init":"zeros"', '"init":"kaiming"').encode()
    with pytest.raises(BlueprintInvalid) as caught:
        forge.submit(broken, by="ada")
    [refusal] = facts(log)
    assert isinstance(refusal, BlueprintRejected)
    assert refusal.name == "res_mlp"
    assert f"[{caught.value.rule}]" in refusal.reasons[0]
    with pytest.raises(BlueprintInvalid):
        forge.submit(b"\xff not json", by="ada")
    assert names(log) == ["BlueprintRejected"] * 2


def test_a_kernel_goes_from_submitted_to_validated_with_its_raw_numbers_stored(
    forge: Forge, log: MemoryLog, store: MemoryStore
) -> None:
    [ref] = forge.ensure([LINEAR], [LIBRARY["res_mlp"]])
    submitted, compiled, characterized, validated = facts(log)
    assert isinstance(submitted, BlueprintSubmitted)
    assert isinstance(compiled, KernelCompiled)
    assert isinstance(characterized, KernelCharacterized)
    assert isinstance(validated, KernelValidated)
    assert compiled.kernel_id == ref.kernel_id == characterized.kernel_id == validated.kernel_id
    assert compiled.size_bytes == store.size(bytes.fromhex(ref.kernel_id))
    assert (ref.parameters, ref.flops) == (compiled.parameters, compiled.flops) == (16 * 8 * 2 + 8 + 48, 4 * 128)
    raw = json.loads(store.get(validated.measurements_digest))
    assert raw["checks"] == characterized.checks
    assert all(characterized.checks.values())
    ids = [envelope.event_id for envelope in log.read()]
    assert ids[1:3] == [derived_id("kernel", ref.kernel_id, what) for what in ("compiled", "characterized")]
    assert [envelope.causation_id for envelope in log.read()] == [None, ids[0], ids[1], ids[1]]


def test_ensure_serves_each_site_with_what_fits_it_and_equal_sites_once(forge: Forge, log: MemoryLog) -> None:
    blueprints = [LIBRARY[name] for name in ("noop", "pw_bottleneck", "lora", "res_mlp")]
    refs = forge.ensure([CONV, LINEAR, CONV, replace(LINEAR)], [*blueprints, *blueprints])
    assert [(ref.signature.rank, ref.name) for ref in refs] == [
        ("NCHW", "noop"),
        ("NCHW", "pw_bottleneck"),
        ("NC", "noop"),
        ("NC", "lora"),
        ("NC", "res_mlp"),
    ]
    assert Counter(names(log)) == {
        "BlueprintSubmitted": 4,
        "KernelCompiled": 5,
        "KernelCharacterized": 5,
        "KernelValidated": 5,
    }


def test_a_blueprint_that_fits_no_site_is_not_submitted(forge: Forge, log: MemoryLog) -> None:
    assert forge.ensure([LINEAR], [LIBRARY["conv_bottleneck"]]) == []
    assert facts(log) == []


def test_ensure_again_reuses_what_the_log_holds_and_writes_nothing(
    forge: Forge, log: MemoryLog, store: MemoryStore
) -> None:
    blueprints = [LIBRARY["affine"], LIBRARY["res_mlp"]]
    first = forge.ensure([LINEAR], blueprints)
    written = log.head()
    other = Forge(log, store, sender_id="tezzeret", trace_id="b" * 32)
    assert other.ensure([LINEAR], blueprints) == first
    assert log.head() == written


def test_two_machines_compile_the_same_kernel_to_the_same_bytes() -> None:
    made = [
        Forge(MemoryLog(), MemoryStore(), sender_id=f"m{n}", trace_id="c" * 32).ensure([CONV], [LIBRARY["dw_sep"]])
        for n in range(2)
    ]
    assert made[0] == made[1]


def test_a_forge_that_stopped_between_compiling_and_measuring_goes_on_there(log: MemoryLog, store: MemoryStore) -> None:
    class Stopped(Exception):
        pass

    class StopsAtSecondKernelFact(MemoryStore):
        def put(self, data: bytes) -> bytes:
            if data[:1] == b"{":
                raise Stopped
            return store.put(data)

        def get(self, digest: bytes) -> bytes:
            return store.get(digest)

        def has(self, digest: bytes) -> bool:
            return store.has(digest)

    with pytest.raises(Stopped):
        Forge(log, StopsAtSecondKernelFact(), sender_id="a", trace_id="d" * 32).ensure([LINEAR], [LIBRARY["affine"]])
    assert names(log) == ["BlueprintSubmitted", "KernelCompiled"]
    [ref] = Forge(log, store, sender_id="b", trace_id="d" * 32).ensure([LINEAR], [LIBRARY["affine"]])
    assert names(log) == ["BlueprintSubmitted", "KernelCompiled", "KernelCharacterized", "KernelValidated"]
    assert ref.kernel_id == facts(log)[1].kernel_id


def test_the_verdict_that_came_first_wins_and_ours_is_dropped(forge: Forge, log: MemoryLog, store: MemoryStore) -> None:
    kernel = Forge(MemoryLog(), MemoryStore(), sender_id="x", trace_id="e" * 32).ensure([LINEAR], [LIBRARY["affine"]])[
        0
    ]
    identity = kernel.blueprint_id

    class Overtaken(MemoryStore):
        """Another worker's verdict enters the log while our measurements are being stored."""

        def put(self, data: bytes) -> bytes:
            if data[:1] == b"{":
                verdict = KernelRejected(
                    blueprint_id=identity,
                    kernel_id=kernel.kernel_id,
                    measurements_digest=bytes(32),
                    failed=["latency"],
                )
                event = Event(
                    fact=verdict,
                    event_id=derived_id("kernel", kernel.kernel_id, "verdict"),
                    sender_id="urabrask",
                    trace_id="f" * 32,
                )
                log.append([event], stream=verdict.stream, expected=ANY)
            return super().put(data)

    overtaken = Forge(log, Overtaken(), sender_id="y", trace_id="e" * 32)
    assert overtaken.ensure([LINEAR], [LIBRARY["affine"]]) == []
    assert names(log) == ["BlueprintSubmitted", "KernelCompiled", "KernelRejected"]


def test_a_kernel_that_fails_a_check_is_rejected_left_out_and_not_measured_again(forge: Forge, log: MemoryLog) -> None:
    wide = SiteSignature(kind="linear", rank="NC", channels=2048, in_channels=8, positions=(), causal=False)
    assert forge.ensure([wide], [LIBRARY["res_mlp"]]) == []
    rejected = facts(log)[-1]
    assert isinstance(rejected, KernelRejected)
    assert rejected.failed == ["jump_adam"]
    written = log.head()
    assert forge.ensure([wide], [LIBRARY["res_mlp"]]) == []
    assert log.head() == written


def test_a_compilation_that_fails_is_noted_and_not_tried_again(
    forge: Forge, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper.blueprints.kernel.MAX_BYTES", 100)
    assert forge.ensure([LINEAR], [LIBRARY["affine"]]) == []
    assert forge.ensure([LINEAR], [LIBRARY["affine"]]) == []
    assert names(log) == ["BlueprintSubmitted", "CompilationFailed"]


def test_a_retired_blueprint_is_offered_no_longer_but_its_kernels_still_load(forge: Forge, log: MemoryLog) -> None:
    [ref] = forge.ensure([LINEAR], [LIBRARY["affine"]])
    retired = BlueprintRetired(blueprint_id=ref.blueprint_id, reason="superseded", actor="ada")
    event = Event(fact=retired, event_id=bytes(16), sender_id="operator:ada", trace_id="a" * 32)
    log.append([event], stream=retired.stream, expected=ANY)
    assert forge.ensure([LINEAR], [LIBRARY["affine"]]) == []
    assert forge.load(ref.kernel_id)[1].kernel_id == ref.kernel_id


def test_a_kernel_that_the_store_lost_is_compiled_again_with_the_same_bytes(forge: Forge, log: MemoryLog) -> None:
    first = forge.ensure([LINEAR], [LIBRARY["res_mlp"]])
    written = log.head()
    empty = MemoryStore()
    assert Forge(log, empty, sender_id="z", trace_id="a" * 32).ensure([LINEAR], [LIBRARY["res_mlp"]]) == first
    assert empty.has(bytes.fromhex(first[0].kernel_id))
    assert log.head() == written


def test_a_loaded_kernel_is_a_fresh_module_that_adds_nothing_at_birth(forge: Forge) -> None:
    [ref] = forge.ensure([CONV], [LIBRARY["conv_bottleneck"]])
    module, kernel = forge.load(ref.kernel_id)
    again, _ = forge.load(ref.kernel_id)
    x = example_input(CONV, ref.kind, torch.Generator().manual_seed(1), samples=2)
    assert torch.equal(module(x), torch.zeros(2, 8, 6, 6))
    assert kernel.signature == CONV
    next(module.parameters()).data.add_(1.0)
    assert not torch.equal(next(module.parameters()), next(again.parameters()))


@pytest.mark.parametrize(
    ("kernel_id", "error"),
    [("zz", NotFound), ("ab" * 31, NotFound), ("", NotFound), ("ab" * 32, ArtifactMissing)],
)
def test_a_kernel_that_is_not_there_is_named(forge: Forge, kernel_id: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        forge.load(kernel_id)


def test_an_artifact_that_is_no_kernel_is_refused(forge: Forge, store: MemoryStore) -> None:
    with pytest.raises(KernelRefused):
        forge.load(store.put(b"anything").hex())


def test_forging_leaves_the_global_generator_and_the_thread_count(forge: Forge) -> None:
    state = torch.get_rng_state()
    forge.ensure([CONV], list(LIBRARY.values()))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 1


def test_the_whole_library_over_the_sites_of_a_host_takes_a_few_seconds(forge: Forge) -> None:
    sites = [CONV, replace(CONV, channels=16, positions=(3, 3)), LINEAR, replace(LINEAR, channels=32)]
    start = time.process_time()
    refs = forge.ensure(sites, list(LIBRARY.values()))
    assert len(refs) >= 16
    assert time.process_time() - start < 10
