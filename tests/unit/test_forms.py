"""Compiled forms: given kernels and pipelines, good and wrong, what is made, signed, refused, and loaded again."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from cli_support import Esper

from esper.artifacts import LocalStore
from esper.artifacts.memory import MemoryShelf, MemoryStore
from esper.artifacts.signatures import message_of
from esper.artifacts.signing import SigningKey
from esper.artifacts.store import ArtifactStore
from esper.blueprints.bench.wire import FormDocument, FormMade, FormRequest
from esper.blueprints.bench.workbench import Limits, Workbench
from esper.blueprints.canonical import blueprint_id, canonical_json
from esper.blueprints.forging.forming import FormMaker, fetch_form, forms_of
from esper.blueprints.forging.jobs import compiled_event_id, hardware, job_id, requested_event_id, toolchain
from esper.blueprints.forging.scribe import Scribe
from esper.blueprints.ir import SiteSignature
from esper.blueprints.kernels.build import build
from esper.blueprints.kernels.forms import load_form
from esper.blueprints.kernels.kernel import decode_kernel, encode_kernel, kernel_seed, load_module
from esper.blueprints.kernels.shelf import KernelShelf
from esper.blueprints.library import load_library
from esper.errors import ArtifactDamaged, ArtifactMissing, KernelRefused, SignatureInvalid
from esper.events import Event, Fact
from esper.events.blueprint import BlueprintSubmitted
from esper.events.kernel import CompilationRequested, KernelCompiled, KernelFormCompiled, KernelFormRefused
from esper.handlers.runtime.health import Health
from esper.handlers.runtime.life import Life
from esper.handlers.runtime.worker import Worker
from esper.handlers.tezzeret.benches import Benches
from esper.handlers.tezzeret.handler import Tezzeret
from esper.ids import sha256
from esper.oona import EventLog, open_log
from esper.oona.consuming.consumer import Consumer
from esper.oona.memory import MemoryLog
from esper.oona.port import ANY
from tests.form_tasks import WRONG

LINEAR = SiteSignature(kind="linear", rank="NC", channels=8, in_channels=8, positions=(), causal=False)
BLUEPRINT = load_library()["res_mlp"]
KERNEL = encode_kernel(BLUEPRINT, LINEAR, build(BLUEPRINT, LINEAR, seed=kernel_seed(BLUEPRINT, LINEAR)))
TRACE = "ab" * 16


@pytest.fixture(scope="module")
def benches() -> Iterator[Benches]:
    made = Benches(1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def bench(benches: Benches) -> Workbench:
    """Return the bench that Tezzeret is given too: one child for all."""
    return benches._all[0]


@pytest.fixture(scope="module")
def wrong_bench() -> Iterator[Workbench]:
    """Return a bench with pipelines that go wrong, and without a C++ compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", "/nowhere/c++")
        made = Workbench(tasks="tests.form_tasks")
        made.warm_up()
    yield made
    made.close()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[SigningKey]:
    folder = tmp_path_factory.mktemp("keys")
    return [SigningKey.create(folder / f"{name}.pem") for name in ("mine", "theirs")]


def say(log: EventLog, fact: Fact, event_id: bytes) -> None:
    event = Event(fact=fact, event_id=event_id, sender_id="test", trace_id=TRACE)
    log.append([event], stream=fact.stream, expected=ANY)


def forge(log: EventLog, shelf: KernelShelf) -> KernelCompiled:
    """Put the kernel on a shelf and say so."""
    identity = blueprint_id(BLUEPRINT)
    submitted = BlueprintSubmitted(
        blueprint_id=identity,
        name=BLUEPRINT.id,
        kind=BLUEPRINT.kind,
        architecture_ir=canonical_json(BLUEPRINT),
        submitted_by="ada",
    )
    say(log, submitted, identity[:16].encode())
    kernel = decode_kernel(KERNEL)
    fact = KernelCompiled(
        blueprint_id=identity,
        kernel_id=shelf.put(KERNEL),
        signature=msgspec.to_builtins(LINEAR),
        symbols=kernel.symbols,
        parameters=kernel.manifest.parameters,
        flops=kernel.manifest.flops,
        size_bytes=len(KERNEL),
        compile_seconds=0.1,
        toolchain=toolchain(),
    )
    say(log, fact, compiled_event_id(fact.kernel_id))
    return fact


class World:
    """A log, a store and a kernel."""

    def __init__(self, key: SigningKey | None, store: ArtifactStore | None = None) -> None:
        self.log = MemoryLog()
        self.store = store or MemoryStore()
        self.shelf = KernelShelf(self.store, key=key, trusted=[])
        self.compiled = forge(self.log, self.shelf)
        self.kernel = decode_kernel(KERNEL)

    def maker(self, bench: Workbench) -> FormMaker:
        scribe = Scribe(self.log, sender_id="test", trace_id=TRACE)
        return FormMaker(self.log, self.store, self.shelf, bench, scribe)

    @property
    def forms(self) -> list[KernelFormCompiled | KernelFormRefused]:
        return forms_of(self.log, self.compiled)


@pytest.fixture
def world(keys: list[SigningKey]) -> World:
    return World(keys[0])


def exported(bench: Workbench) -> bytes:
    """Return the bytes of a form."""
    request = FormRequest(kernel=KERNEL, pipeline="export", batch=4)
    made = msgspec.msgpack.decode(bench.run("form", msgspec.msgpack.encode(request)).result, type=FormMade)
    assert made.form is not None
    return made.form


@pytest.fixture(scope="module")
def form(bench: Workbench) -> bytes:
    return exported(bench)


def told(digest: bytes) -> KernelFormCompiled:
    return KernelFormCompiled(
        blueprint_id=blueprint_id(BLUEPRINT),
        kernel_id=sha256(KERNEL).hex(),
        pipeline="export",
        form_digest=digest,
        toolchain=toolchain(),
        hardware=hardware(),
        compile_seconds=1.0,
        size_bytes=1,
        peak_memory_bytes=None,
        value_difference=0.0,
        gradient_difference=0.0,
        tolerance=1e-5,
        eager_step_s=1e-3,
        form_step_s=1e-3,
        chosen=False,
        signed_by=None,
    )


def trained(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a module's weights after three steps."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    for _ in range(3):
        x, wanted = torch.randn((5, 8), generator=generator), torch.randn((5, 8), generator=generator)
        optimizer.zero_grad()
        (module(x) - wanted).square().mean().backward()
        optimizer.step()
    return {name: value.detach() for name, value in module.state_dict().items()}


def test_an_exported_form_is_signed_told_once_made_again_when_lost_and_trains_as_the_kernel_does(
    world: World, keys: list[SigningKey], bench: Workbench
) -> None:
    form = world.maker(bench).make(world.compiled, "export", batch=4)
    assert isinstance(form, KernelFormCompiled)
    assert (form.pipeline, form.toolchain, form.hardware) == ("export", toolchain(), hardware())
    assert 0.0 <= form.value_difference <= form.tolerance == 1e-5
    assert form.gradient_difference <= form.tolerance
    assert min(form.compile_seconds, form.eager_step_s, form.form_step_s) > 0
    assert form.chosen == (form.form_step_s <= 0.95 * form.eager_step_s)
    assert form.signed_by == keys[0].public.key_id
    data = fetch_form(world.store, form, [keys[0].public])
    assert form.size_bytes == len(data)
    after, of_kernel = trained(load_form(world.kernel, "export", data)), trained(load_module(world.kernel))
    assert list(after) == list(of_kernel)
    for name, weight in of_kernel.items():
        torch.testing.assert_close(after[name], weight)
        assert not torch.equal(weight, world.kernel.tensors[name])
    assert world.maker(bench).make(world.compiled, "export") == form
    assert world.forms == [form]
    assert isinstance(world.store, MemoryStore)
    world.store.delete(form.form_digest)
    world.maker(bench).make(world.compiled, "export")
    assert len(world.forms) == 2
    fetch_form(world.store, world.forms[-1], world.shelf.trusted)


@pytest.mark.parametrize("pipeline", sorted(WRONG))
def test_a_form_that_differs_is_refused_and_not_kept(world: World, wrong_bench: Workbench, pipeline: str) -> None:
    request = FormRequest(kernel=KERNEL, pipeline=pipeline, batch=4)
    made = msgspec.msgpack.decode(wrong_bench.run("form", msgspec.msgpack.encode(request)).result, type=FormMade)
    assert (made.refusal, made.form) == ("differs", None)
    values = {"constant": 1e-4, "gradient": 0.0}.get(pipeline)
    assert made.value_difference == (None if values is None else pytest.approx(values, rel=0.01))
    assert made.gradient_difference == (None if values is None else pytest.approx(1e-4, rel=0.01))


def test_a_refusal_is_told_with_its_numbers_and_kept_apart_from_a_later_success(
    world: World, wrong_bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper.blueprints.forging.forming.PIPELINES", ("export", "inductor", "constant"))
    refused = world.maker(wrong_bench).make(world.compiled, "constant")
    assert isinstance(refused, KernelFormRefused)
    assert (refused.reason, refused.tolerance) == ("differs", 1e-5)
    assert refused.value_difference == pytest.approx(1e-4, rel=0.01)
    assert world.maker(wrong_bench).make(world.compiled, "constant", again=False) == refused
    assert world.forms == [refused]


def test_inductor_without_a_compiler_a_pipeline_that_is_none_and_nobody_who_signs_are_unavailable(
    world: World, wrong_bench: Workbench
) -> None:
    found = [world.maker(wrong_bench).make(world.compiled, name) for name in ("inductor", "tvm")]
    unsigned = World(None)
    found.append(unsigned.maker(wrong_bench).make(unsigned.compiled, "export"))
    assert [getattr(form, "reason", None) for form in found] == ["unavailable"] * 3
    assert [words in form.message for form, words in zip(found, ("g++", "tvm", "signs"), strict=True)] == [True] * 3


def test_a_form_is_fetched_only_with_its_bytes_and_a_trusted_signature(form: bytes, keys: list[SigningKey]) -> None:
    mine, theirs = keys
    store = MemoryStore()
    digest = store.put(form)

    def reason() -> str:
        with pytest.raises(SignatureInvalid) as caught:
            fetch_form(store, told(digest), [mine.public])
        return caught.value.reason

    assert reason() == "unsigned"
    store.add_signature(digest, theirs.public.key_id, theirs.sign(message_of(digest)))
    assert reason() == "unknown_key"
    store.add_signature(digest, mine.public.key_id, mine.sign(b"something else"))
    assert reason() == "wrong_signature"
    store.remove_signature(digest, mine.public.key_id)
    store.add_signature(digest, mine.public.key_id, mine.sign(message_of(digest)))
    assert fetch_form(store, told(digest), [mine.public]) == form
    assert isinstance(store.shelf, MemoryShelf)
    place = f"{digest.hex()[:2]}/{digest.hex()}"
    store.shelf.kept[place] = form[:-9] + bytes([form[-9] ^ 1]) + form[-8:]
    with pytest.raises(ArtifactDamaged):
        fetch_form(store, told(digest), [mine.public])
    del store.shelf.kept[place]
    with pytest.raises(ArtifactMissing):
        fetch_form(store, told(digest), [mine.public])


def test_a_form_of_another_kernel_pipeline_or_toolchain_is_refused_before_it_is_read(form: bytes) -> None:
    kernel, document = decode_kernel(KERNEL), msgspec.msgpack.decode(form, type=FormDocument)
    for change in ({"kernel_id": "0" * 64}, {"pipeline": "inductor"}, {"toolchain": "torch 1.0"}, {"format": 2}):
        # The body would not survive being read.
        other = msgspec.structs.replace(document, body=b"no form", **change)
        with pytest.raises(KernelRefused, match="the form is format"):
            load_form(kernel, "export", msgspec.msgpack.encode(other))
    with pytest.raises(KernelRefused, match="no form of a kernel"):
        load_form(kernel, "export", b"\x93garbage")


def test_weights_that_were_put_into_a_form_do_not_replace_the_kernels(form: bytes) -> None:
    kernel, document = decode_kernel(KERNEL), msgspec.msgpack.decode(form, type=FormDocument)
    program = torch.export.load(io.BytesIO(document.body))
    with torch.no_grad():
        for weight in program.state_dict.values():
            weight.add_(1.0)
    written = io.BytesIO()
    torch.export.save(program, written)
    other = msgspec.structs.replace(document, body=written.getvalue())
    module = load_form(kernel, "export", msgspec.msgpack.encode(other))
    for name, weight in module.state_dict().items():
        assert torch.equal(weight, kernel.tensors[name])


def test_tezzeret_makes_the_forms_that_a_request_asks_for(world: World, benches: Benches) -> None:
    identity = blueprint_id(BLUEPRINT)
    job = job_id(identity, LINEAR)
    wish = CompilationRequested(
        job_id=job,
        blueprint_id=identity,
        signature=msgspec.to_builtins(LINEAR),
        pipelines=["eager", "export", "tvm"],
        requested_by="ada",
    )
    say(world.log, wish, requested_event_id(job))
    asyncio.run(work(Tezzeret(world.log, lambda _: world.shelf, benches=benches), world))
    assert [type(form).__name__ for form in world.forms] == ["KernelFormCompiled", "KernelFormRefused"]
    asyncio.run(work(Tezzeret(world.log, lambda _: world.shelf, benches=benches), world, group="again"))
    assert len(world.forms) == 2


def test_tezzeret_makes_the_forms_of_its_settings_though_a_request_names_none(world: World, benches: Benches) -> None:
    identity = blueprint_id(BLUEPRINT)
    job = job_id(identity, LINEAR)
    wish = CompilationRequested(
        job_id=job,
        blueprint_id=identity,
        signature=msgspec.to_builtins(LINEAR),
        pipelines=[],
        requested_by="ada",
    )
    say(world.log, wish, requested_event_id(job))
    asyncio.run(work(Tezzeret(world.log, lambda _: world.shelf, benches=benches, pipelines=["export"]), world))
    assert [(type(form).__name__, form.pipeline) for form in world.forms] == [("KernelFormCompiled", "export")]


async def work(tezzeret: Tezzeret, world: World, group: str = "tezzeret") -> None:
    consumer = Consumer(
        world.log,
        group=group,
        member="a",
        topics=tezzeret.topics,
        attempts=1,
        ttl_s=5.0,
        first_delay_s=0.01,
        sender_id="handler:tezzeret",
        trace_id=TRACE,
    )
    life = Life(Health("tezzeret", "a"), drain_s=10.0, until_idle=True)
    assert await Worker(consumer, tezzeret, log=world.log, store=world.store).run(life)


def test_the_command_makes_a_form_and_verify_names_one_that_was_tampered_with(esper: Esper, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with open_log(f"sqlite:///{home / 'log.db'}") as log:
        kernel = forge(log, KernelShelf(LocalStore(home / "artifacts"))).kernel_id
    assert esper("artifact", "key", "--create").code == 0
    assert esper("artifact", "sign", kernel).code == 0
    out = tmp_path / "form.bin"
    made = esper("kernel", "compile", kernel[:12], "--pipeline", "export", "--out", str(out), "--by", "ada", "--json")
    digest = made.json["form_digest"]
    assert sha256(out.read_bytes()).hex() == digest
    assert load_form(decode_kernel(KERNEL), "export", out.read_bytes())(torch.zeros(3, 8)).shape == (3, 8)
    (shown,) = esper("kernel", "show", kernel, "--json").json["forms"]
    assert (shown["status"], shown["form_digest"]) == ("compiled", digest)
    assert esper("kernel", "verify", "--json").json["verified"] is True
    (path,) = [path for path in (home / "artifacts").rglob("*") if "".join(path.parts).endswith(digest)]
    path.chmod(0o644)
    path.write_bytes(out.read_bytes()[:-1] + b"!")
    ran = esper("kernel", "verify", "--quarantine", "--by", "ada", "--json")
    assert ran.code == 3
    assert "forms of 1 of 1 kernels do not hold" in ran.err
    assert esper("kernel", "compile", kernel, "--pipeline", "tvm", "--by", "ada").code == 2


def test_a_form_that_takes_too_long_is_refused_and_the_bench_lives_on(world: World, bench: Workbench) -> None:
    form = world.maker(bench).make(world.compiled, "export", limits=Limits(wall_s=0.05))
    assert isinstance(form, KernelFormRefused)
    assert (form.reason, form.value_difference) == ("time_limit", None)
    assert world.forms == [form]
