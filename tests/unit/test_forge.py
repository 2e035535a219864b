"""The forge: given blueprints and sites, these facts and these kernels."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from msgspec.structs import replace

from esper.artifacts.memory import MemoryStore
from esper.artifacts.signatures import verify_signed
from esper.artifacts.signing import SigningKey
from esper.blueprints.bench.workbench import Limits, Workbench
from esper.blueprints.canonical import blueprint_id, canonical_json
from esper.blueprints.forging.forge import Forge
from esper.blueprints.forging.jobs import (
    characterized_event_id,
    compiled_event_id,
    failed_event_id,
    hardware,
    job_id,
    toolchain,
    verdict_event_id,
)
from esper.blueprints.ir import Blueprint, SiteSignature, parse
from esper.blueprints.kernels.build import build, example_input
from esper.blueprints.kernels.kernel import encode_kernel, kernel_seed
from esper.blueprints.kernels.shelf import KernelShelf
from esper.blueprints.library import load_library
from esper.errors import (
    ArtifactDamaged,
    ArtifactMissing,
    ArtifactStoreUnavailable,
    BlueprintInvalid,
    KernelRefused,
    NotFound,
    SignatureInvalid,
    WorkFailed,
)
from esper.events import Event, Fact, fact_of
from esper.events.blueprint import BlueprintRejected, BlueprintRetired, BlueprintSubmitted
from esper.events.kernel import (
    CompilationFailed,
    KernelCharacterized,
    KernelCompiled,
    KernelQuarantined,
    KernelRejected,
    KernelTagged,
    KernelValidated,
    MeasurementRequested,
)
from esper.ids import derived_id
from esper.oona.memory import MemoryLog
from esper.oona.port import ANY

LIBRARY = load_library()
LINEAR = SiteSignature(kind="linear", rank="NC", channels=16, in_channels=8, positions=(), causal=False)
FORGED = ["BlueprintSubmitted", "KernelCompiled", "KernelCharacterized", "KernelValidated", "KernelTagged"]
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
    submitted, compiled, characterized, validated, tagged = facts(log)
    assert isinstance(submitted, BlueprintSubmitted)
    assert isinstance(compiled, KernelCompiled)
    assert isinstance(characterized, KernelCharacterized)
    assert isinstance(validated, KernelValidated)
    assert isinstance(tagged, KernelTagged)
    assert compiled.kernel_id == ref.kernel_id == characterized.kernel_id == validated.kernel_id
    assert compiled.size_bytes == store.size(bytes.fromhex(ref.kernel_id))
    assert (ref.parameters, ref.flops) == (compiled.parameters, compiled.flops) == (16 * 8 * 2 + 8 + 48, 4 * 128)
    raw = json.loads(store.get(validated.measurements_digest))
    assert raw["checks"] == characterized.checks
    assert all(characterized.checks.values())
    ids = [envelope.event_id for envelope in log.read()]
    used = toolchain()
    assert ids[1:4] == [
        compiled_event_id(ref.kernel_id),
        characterized_event_id(ref.kernel_id, used),
        verdict_event_id(ref.kernel_id, used),
    ]
    assert [envelope.causation_id for envelope in log.read()] == [None, ids[0], ids[1], ids[1], ids[1]]
    assert (compiled.toolchain, characterized.toolchain, raw["toolchain"]) == (used, used, used)
    assert compiled.hardware == characterized.hardware == raw["hardware"] == hardware()
    assert tagged.measurements_digest == validated.measurements_digest
    assert "small" in tagged.thresholds


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
        "KernelTagged": 5,
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
    assert names(log) == FORGED
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
                    event_id=verdict_event_id(kernel.kernel_id, toolchain()),
                    sender_id="urabrask",
                    trace_id="f" * 32,
                )
                log.append([event], stream=verdict.stream, expected=ANY)
            return super().put(data)

    overtaken = Forge(log, Overtaken(), sender_id="y", trace_id="e" * 32)
    assert overtaken.ensure([LINEAR], [LIBRARY["affine"]]) == []
    assert names(log) == ["BlueprintSubmitted", "KernelCompiled", "KernelRejected"]


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


@pytest.fixture(scope="module")
def rough_bench() -> Iterator[Workbench]:
    """A bench at which blueprints misbehave as their names say; see ``tests.forge_tasks``."""
    made = Workbench(Limits(wall_s=2.0, memory_bytes=128 << 20), tasks="tests.forge_tasks")
    yield made
    made.close()


def named(name: str) -> Blueprint:
    """Return the blueprint ``affine`` under another name."""
    return parse(canonical_json(LIBRARY["affine"]).replace('"id":"affine"', f'"id":"{name}"'))


def precompiled(log: MemoryLog, store: MemoryStore, blueprint: Blueprint) -> Blueprint:
    """Compile a blueprint here, and say so as its compiler would."""
    identity = blueprint_id(blueprint)
    data = encode_kernel(blueprint, LINEAR, build(blueprint, LINEAR, seed=kernel_seed(blueprint, LINEAR)))
    kernel = store.put(data).hex()
    fact = KernelCompiled(
        blueprint_id=identity,
        kernel_id=kernel,
        signature=msgspec.to_builtins(LINEAR),
        symbols={"C": 16, "P": 1},
        parameters=32,
        flops=32,
        size_bytes=len(data),
        compile_seconds=0.1,
        toolchain=toolchain(),
    )
    Forge(log, store, sender_id="karn", trace_id="a" * 32).submit(canonical_json(blueprint).encode(), "karn")
    event = Event(fact=fact, event_id=compiled_event_id(kernel), sender_id="tezzeret", trace_id="b" * 32)
    log.append([event], stream=fact.stream, expected=ANY)
    return blueprint


@pytest.mark.parametrize(
    ("what", "check", "said"),
    [
        ("never_ends", "time_limit", "took more than 2 s"),
        ("takes_memory", "memory_limit", ""),
        ("forks", "forked", "processes"),
        ("dies", "died", "exit code 9"),
        ("raises", "error", "ArithmeticError: nobody expected this"),
    ],
)
def test_a_kernel_whose_measurement_breaks_a_limit_is_rejected_with_a_record_and_the_others_go_on(
    log: MemoryLog, store: MemoryStore, rough_bench: Workbench, what: str, check: str, said: str
) -> None:
    bad, good = (precompiled(log, store, named(name)) for name in (f"{what}_in_measure", "good"))
    forge = Forge(log, store, sender_id="karn", trace_id="a" * 32, bench=rough_bench)
    assert [ref.name for ref in forge.ensure([LINEAR], [bad, good])] == ["good"]
    rejected = next(fact for fact in facts(log) if isinstance(fact, KernelRejected))
    characterized = next(fact for fact in facts(log) if isinstance(fact, KernelCharacterized))
    assert (rejected.blueprint_id, rejected.failed) == (blueprint_id(bad), [check])
    assert (characterized.checks, characterized.latency_p50_s) == ({check: False}, None)
    raw = json.loads(store.get(rejected.measurements_digest))
    assert raw["checks"] == {check: False}
    assert said in raw["message"]
    assert (raw["limits"]["wall_s"], raw["toolchain"]) == (2.0, toolchain())
    # A process may have been killed by somebody else: only what kills it twice is to blame.
    assert raw["work"] == {"attempts": 2 if what == "dies" else 1}
    written = log.head()
    assert [ref.name for ref in forge.ensure([LINEAR], [bad, good])] == ["good"]
    assert log.head() == written


def test_a_kernel_that_fails_a_check_is_rejected_left_out_and_not_measured_again(
    log: MemoryLog, store: MemoryStore, rough_bench: Workbench
) -> None:
    bad = precompiled(log, store, named("yields_nan_in_measure"))
    forge = Forge(log, store, sender_id="karn", trace_id="a" * 32, bench=rough_bench)
    assert forge.ensure([LINEAR], [bad]) == []
    characterized, rejected = facts(log)[-2:]
    assert isinstance(characterized, KernelCharacterized)
    assert isinstance(rejected, KernelRejected)
    assert rejected.failed == ["finite_float32"]
    assert math.isnan(characterized.numbers["jump_adam"])
    written = log.head()
    assert forge.ensure([LINEAR], [bad]) == []
    assert log.head() == written


@pytest.mark.parametrize(
    ("what", "error", "reason"),
    [
        ("never_ends", "WorkFailed", "time_limit"),
        ("takes_memory", "WorkFailed", "memory_limit"),
        ("forks", "WorkFailed", "forked"),
        ("dies", "WorkFailed", "died"),
        ("raises", "WorkFailed", "error"),
        ("is_refused", "KernelRefused", None),
    ],
)
def test_a_compilation_that_fails_is_noted_with_its_reason_and_not_tried_again(
    log: MemoryLog, store: MemoryStore, rough_bench: Workbench, what: str, error: str, reason: str | None
) -> None:
    bad, good = named(f"{what}_in_compile"), precompiled(log, store, named("good"))
    forge = Forge(log, store, sender_id="karn", trace_id="a" * 32, bench=rough_bench)
    assert [ref.name for ref in forge.ensure([LINEAR], [bad, good])] == ["good"]
    [failed] = [envelope for envelope in log.read() if envelope.type == "CompilationFailed"]
    fact = fact_of(failed)
    assert isinstance(fact, CompilationFailed)
    assert (fact.error, fact.reason) == (error, reason)
    assert fact.job_id == job_id(blueprint_id(bad), LINEAR)
    assert failed.event_id == failed_event_id(fact.job_id)
    written = log.head()
    assert [ref.name for ref in forge.ensure([LINEAR], [bad, good])] == ["good"]
    assert log.head() == written


def of_another_toolchain(log: MemoryLog) -> MemoryLog:
    """Return a log as an Esper with another torch would have written it."""
    other = MemoryLog()
    for envelope in log.read():
        fact = fact_of(envelope)
        if isinstance(fact, KernelCharacterized | KernelCompiled):
            fact = replace(fact, toolchain="torch 2.0.0")
        event = Event(fact=fact, event_id=envelope.event_id[::-1], sender_id="old", trace_id="b" * 32)
        other.append([event], stream=fact.stream, expected=ANY)
    return other


def test_a_kernel_that_was_judged_with_another_toolchain_is_measured_again_and_once(
    forge: Forge, log: MemoryLog, store: MemoryStore
) -> None:
    first = forge.ensure([LINEAR], [LIBRARY["affine"]])
    old = of_another_toolchain(log)
    again = Forge(old, store, sender_id="new", trace_id="c" * 32)
    assert again.ensure([LINEAR], [LIBRARY["affine"]]) == first
    assert names(old)[5:] == ["KernelCharacterized", "KernelValidated", "KernelTagged"]
    assert facts(old)[5].toolchain == toolchain()
    written = old.head()
    assert again.ensure([LINEAR], [LIBRARY["affine"]]) == first
    assert old.head() == written


@pytest.mark.parametrize(("compiled_with", "measured_again"), [(None, False), ("torch 2.0.0", True)])
def test_measurements_that_do_not_say_their_toolchain_are_of_that_which_compiled(
    forge: Forge, log: MemoryLog, store: MemoryStore, compiled_with: str | None, measured_again: bool
) -> None:
    forge.ensure([LINEAR], [LIBRARY["affine"]])
    old = MemoryLog()
    for envelope in log.read():
        fact = fact_of(envelope)
        if isinstance(fact, KernelCompiled) and compiled_with is not None:
            fact = replace(fact, toolchain=compiled_with)
        if isinstance(fact, KernelCharacterized):
            fact = replace(fact, toolchain=None, hardware=None)
        event = Event(fact=fact, event_id=envelope.event_id[::-1], sender_id="old", trace_id="b" * 32)
        old.append([event], stream=fact.stream, expected=ANY)
    Forge(old, store, sender_id="new", trace_id="c" * 32).ensure([LINEAR], [LIBRARY["affine"]])
    assert ("KernelCharacterized" in names(old)[5:]) == measured_again


class Tampered(MemoryStore):
    """A store of which one artifact can be changed behind its back."""

    def tamper(self, kernel_id: str) -> None:
        name = next(name for name in self.shelf.names() if kernel_id in name)
        data = bytearray(self.shelf.get(name) or b"")
        data[len(data) // 2] ^= 1
        self.shelf.replace(name, bytes(data))


def test_a_kernel_with_a_changed_byte_is_put_aside_made_again_and_measured_again(log: MemoryLog) -> None:
    store = Tampered()
    forge = Forge(log, store, sender_id="karn", trace_id="a" * 32)
    [ref] = forge.ensure([LINEAR], [LIBRARY["affine"]])
    sound = store.get(bytes.fromhex(ref.kernel_id))
    store.tamper(ref.kernel_id)
    assert forge.ensure([LINEAR], [LIBRARY["affine"]]) == [ref]
    assert names(log) == [*FORGED, "KernelQuarantined", "KernelCharacterized", "KernelValidated", "KernelTagged"]
    quarantined = facts(log)[5]
    assert isinstance(quarantined, KernelQuarantined)
    assert (quarantined.reason, quarantined.found_by) == ("damaged", "karn")
    assert store.get(bytes.fromhex(ref.kernel_id)) == sound
    assert quarantined.evidence_digest is not None
    assert len(store.get(quarantined.evidence_digest)) == len(sound)
    written = log.head()
    assert forge.ensure([LINEAR], [LIBRARY["affine"]]) == [ref]
    assert log.head() == written
    store.tamper(ref.kernel_id)
    assert forge.ensure([LINEAR], [LIBRARY["affine"]]) == [ref]
    assert names(log)[9:] == ["KernelQuarantined", "KernelCharacterized", "KernelValidated", "KernelTagged"]


def test_two_who_find_the_same_fault_say_it_once(log: MemoryLog) -> None:
    store = Tampered()
    first = Forge(log, store, sender_id="a", trace_id="a" * 32)
    [ref] = first.ensure([LINEAR], [LIBRARY["affine"]])
    store.tamper(ref.kernel_id)
    for who in ("a", "b"):
        other = Forge(log, store, sender_id=who, trace_id="a" * 32)
        assert other.quarantine(ref.kernel_id, ArtifactDamaged("changed"))
    assert names(log) == [*FORGED, "KernelQuarantined"]
    assert not first.quarantine(ref.kernel_id, ArtifactStoreUnavailable("the store is away"))
    with pytest.raises(NotFound, match="no kernel"):
        first.quarantine("ab" * 32, ArtifactDamaged("changed"))


def test_a_kernel_that_is_put_aside_while_its_bytes_hold_is_measured_again_before_it_is_offered(
    forge: Forge, log: MemoryLog
) -> None:
    [ref] = forge.ensure([LINEAR], [LIBRARY["affine"]])
    assert forge.quarantine(ref.kernel_id, KernelRefused("its verdict is not what was measured"))
    assert forge.ensure([LINEAR], [LIBRARY["affine"]]) == [ref]
    assert names(log)[5:] == ["KernelQuarantined", "KernelCharacterized", "KernelValidated", "KernelTagged"]


def test_a_kernel_that_the_log_names_for_another_site_is_put_aside_and_the_true_one_made(
    forge: Forge, log: MemoryLog, store: MemoryStore
) -> None:
    [other] = forge.ensure([replace(LINEAR, channels=32)], [LIBRARY["affine"]])
    lie = next(fact for fact in facts(log) if isinstance(fact, KernelCompiled))
    forged = MemoryLog()
    for number, fact in enumerate([facts(log)[0], replace(lie, signature={**lie.signature, "channels": 16})]):
        event = Event(fact=fact, event_id=bytes([number]) * 16, sender_id="eve", trace_id="b" * 32)
        forged.append([event], stream=fact.stream, expected=ANY)
    deceived = Forge(forged, store, sender_id="karn", trace_id="a" * 32)
    [ref] = deceived.ensure([LINEAR], [LIBRARY["affine"]])
    assert ref.kernel_id != other.kernel_id
    assert deceived.load(ref.kernel_id)[1].signature == LINEAR
    quarantined = next(fact for fact in facts(forged) if isinstance(fact, KernelQuarantined))
    assert (quarantined.kernel_id, quarantined.reason) == (other.kernel_id, "wrong_site")
    written = forged.head()
    assert deceived.ensure([LINEAR], [LIBRARY["affine"]]) == [ref]
    assert forged.head() == written


def test_kernels_and_measurements_are_signed_and_a_wrong_signature_is_put_aside(
    log: MemoryLog, store: MemoryStore, tmp_path: Path
) -> None:
    key = SigningKey.create(tmp_path / "key.pem")
    shelf = KernelShelf(store, key=key, trusted=[])
    forge = Forge(log, store, sender_id="karn", trace_id="a" * 32, shelf=shelf)
    [ref] = forge.ensure([LINEAR], [LIBRARY["affine"]])
    digest = bytes.fromhex(ref.kernel_id)
    compiled = next(fact for fact in facts(log) if isinstance(fact, KernelCompiled))
    validated = next(fact for fact in facts(log) if isinstance(fact, KernelValidated))
    assert compiled.signed_by == key.public.key_id
    verify_signed(store, validated.measurements_digest, [key.public])
    good = store.signatures(digest)
    store.remove_signature(digest, key.public.key_id)
    store.add_signature(digest, key.public.key_id, bytes(64))
    assert forge.ensure([LINEAR], [LIBRARY["affine"]]) == [ref]
    quarantined = next(fact for fact in facts(log) if isinstance(fact, KernelQuarantined))
    assert quarantined.reason == "wrong_signature"
    assert store.signatures(digest) == good


def test_a_kernel_of_an_untrusted_signer_is_vouched_for_by_making_it_here(
    log: MemoryLog, store: MemoryStore, tmp_path: Path
) -> None:
    stranger, own = (SigningKey.create(tmp_path / f"{name}.pem") for name in ("stranger", "own"))
    [ref] = Forge(
        log, store, sender_id="s", trace_id="a" * 32, shelf=KernelShelf(store, key=stranger, trusted=[])
    ).ensure([LINEAR], [LIBRARY["affine"]])
    written = log.head()
    ours = KernelShelf(store, key=own, trusted=[])
    assert Forge(log, store, sender_id="o", trace_id="a" * 32, shelf=ours).ensure([LINEAR], [LIBRARY["affine"]]) == [
        ref
    ]
    assert log.head() == written
    assert set(store.signatures(bytes.fromhex(ref.kernel_id))) == {stranger.public.key_id, own.public.key_id}
    nobody = KernelShelf(store, trusted=[])
    with pytest.raises(SignatureInvalid):
        Forge(log, store, sender_id="n", trace_id="a" * 32, shelf=nobody).ensure([LINEAR], [LIBRARY["affine"]])


def test_measuring_on_request_notes_a_new_verdict_and_that_it_was_asked_for(forge: Forge, log: MemoryLog) -> None:
    [ref] = forge.ensure([LINEAR], [LIBRARY["affine"]])
    for _ in range(2):
        judged = forge.measure(ref.kernel_id)
        assert (judged.validated, judged.noted, judged.measurements.failed) == (True, True, [])
    again = ["MeasurementRequested", "KernelCharacterized", "KernelValidated", "KernelTagged"]
    assert names(log) == [*FORGED, *again, *again]
    assert next(fact.reason for fact in facts(log) if isinstance(fact, MeasurementRequested)) == "asked for"
    assert facts(log)[-2].measurements_digest == judged.measurements_digest
    with pytest.raises(NotFound, match="no kernel"):
        forge.measure("ab" * 32)


def test_a_mutant_is_submitted_with_its_parent(forge: Forge, log: MemoryLog) -> None:
    parent = forge.submit(canonical_json(LIBRARY["affine"]).encode(), by="ada")
    forge.submit(canonical_json(named("child")).encode(), by="karn", parent=parent, mutation="widen", novelty=0.25)
    child = facts(log)[1]
    assert isinstance(child, BlueprintSubmitted)
    assert (child.parent, child.mutation, child.novelty) == (parent, "widen", 0.25)


def test_a_retired_blueprint_that_was_submitted_again_is_offered_again(forge: Forge, log: MemoryLog) -> None:
    [ref] = forge.ensure([LINEAR], [LIBRARY["affine"]])
    retired = BlueprintRetired(blueprint_id=ref.blueprint_id, reason="superseded", actor="ada")
    event = Event(fact=retired, event_id=bytes(16), sender_id="operator:ada", trace_id="a" * 32)
    log.append([event], stream=retired.stream, expected=ANY)
    assert forge.ensure([LINEAR], [LIBRARY["affine"]]) == []
    forge.submit(canonical_json(LIBRARY["affine"]).encode(), by="ada")
    assert forge.ensure([LINEAR], [LIBRARY["affine"]]) == [ref]


def test_what_is_known_needs_no_child(log: MemoryLog, store: MemoryStore, forge: Forge) -> None:
    refs = forge.ensure([LINEAR], [LIBRARY["affine"]])
    closed = Workbench()
    closed.close()
    assert (
        Forge(log, store, sender_id="x", trace_id="b" * 32, bench=closed).ensure([LINEAR], [LIBRARY["affine"]]) == refs
    )


def test_work_that_was_stopped_is_no_verdict(log: MemoryLog, store: MemoryStore) -> None:
    closed = Workbench()
    closed.close()
    forge = Forge(log, store, sender_id="karn", trace_id="a" * 32, bench=closed)
    with pytest.raises(WorkFailed):
        forge.ensure([LINEAR], [LIBRARY["affine"]])
    assert names(log) == ["BlueprintSubmitted"]
    precompiled(log, store, named("good"))
    with pytest.raises(WorkFailed):
        forge.ensure([LINEAR], [named("good")])
    assert names(log)[1:] == ["BlueprintSubmitted", "KernelCompiled"]
