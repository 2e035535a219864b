"""The forge: from a submitted document to validated kernels, every step a fact.

Belongs here: the order submit, compile, characterise, judge, and the reuse of what the log already holds. Does not
belong here: how any of the steps works. For now it all runs in the caller's process; the facts are the ones that
separate workers will write.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch
from torch import fx

from esper.artifacts.store import ArtifactStore
from esper.blueprints.build import build
from esper.blueprints.canonical import blueprint_id, canonical_json
from esper.blueprints.crucible import characterize
from esper.blueprints.ir import Blueprint, SiteSignature, parse
from esper.blueprints.kernel import Kernel, decode_kernel, encode_kernel, kernel_id, kernel_seed, load_module
from esper.blueprints.library import load_library
from esper.blueprints.verify import fits, verify
from esper.errors import BlueprintInvalid, EventIdReused, KernelRefused, NotFound
from esper.events import Event, Fact, fact_of
from esper.events.blueprint import BlueprintRejected, BlueprintRetired, BlueprintSubmitted
from esper.events.kernel import (
    CompilationFailed,
    KernelCharacterized,
    KernelCompiled,
    KernelRejected,
    KernelValidated,
)
from esper.ids import derived_id, sha256
from esper.oona.port import ANY, EventLog, iterate_stream


class KernelRef(msgspec.Struct, frozen=True, kw_only=True):
    """A validated kernel, as those who graft it see it."""

    #: SHA-256 of the kernel artifact, 64 hexadecimal digits.
    kernel_id: str
    blueprint_id: str
    #: The blueprint's own name.
    name: str
    kind: str
    signature: SiteSignature
    parameters: int
    #: Forward FLOPs of one sample.
    flops: int


class _History(msgspec.Struct):
    """What a blueprint's stream says of its kernels."""

    submitted: bytes | None = None
    retired: bool = False
    #: Kernel id -> compiled fact, in the order of the log.
    compiled: dict[str, KernelCompiled] = {}
    validated: set[str] = set()
    rejected: set[str] = set()
    #: Signatures at which compilation failed, encoded.
    failed: set[bytes] = set()

    def kernel_at(self, signature: SiteSignature) -> KernelCompiled | None:
        """Return the last kernel compiled at a signature."""
        plain = msgspec.to_builtins(signature)
        return next((fact for fact in reversed(self.compiled.values()) if _same(fact, plain)), None)


class Forge:
    """Turns blueprints into validated kernels and says so in the log."""

    def __init__(
        self,
        log: EventLog,
        store: ArtifactStore,
        *,
        sender_id: str,
        trace_id: str,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Work on a log and a store.

        Args:
            log: Where facts go; read for what is there already.
            store: Where kernels and raw measurements go.
            sender_id: Who the facts are from.
            trace_id: 32 hexadecimal digits.
            timer: Seconds from any origin; for durations only.
        """
        self._log = log
        self._store = store
        self._sender_id = sender_id
        self._trace_id = trace_id
        self._timer = timer

    def submit(self, ir_bytes: bytes, by: str) -> str:
        """Verify a document and note the outcome; submitting a known blueprint again changes nothing.

        Args:
            ir_bytes: The document as it came.
            by: Who submits it.

        Returns:
            The blueprint's id.

        Raises:
            BlueprintInvalid: A rule is broken; the refusal was noted.
        """
        name: str | None = None
        try:
            blueprint = parse(ir_bytes)
            name = blueprint.id
            verify(blueprint)
            _require_own_name(blueprint)
        except BlueprintInvalid as error:
            digest = sha256(ir_bytes).hex()
            refusal = BlueprintRejected(
                blueprint_id=digest,
                name=name,
                reasons=[f"{error.message}; {error.hint}"],
                submitted_by=by,
            )
            self._append([(refusal, derived_id("blueprint", digest, "rejected"))], None)
            raise
        return self._submit(blueprint, by)

    def ensure(self, signatures: Sequence[SiteSignature], blueprints: Sequence[Blueprint]) -> list[KernelRef]:
        """Return a validated kernel for every blueprint at every signature it fits.

        What the log holds is reused; what is missing is submitted, compiled and measured now. A kernel that was
        rejected stays rejected and is left out, and so is a retired blueprint. A kernel that the store lost is compiled
        again: it has the same bytes.

        Args:
            signatures: Sites to serve; equal ones are served once.
            blueprints: Blueprints to consider; equal ones are considered once.

        Returns:
            References ordered by signature as given, then by blueprint as given.

        Raises:
            BlueprintInvalid: A blueprint breaks a static rule.
        """
        unique_sites = list(dict.fromkeys(signatures))
        unique = {blueprint_id(blueprint): blueprint for blueprint in blueprints}
        found: dict[tuple[int, str], KernelRef] = {}
        for identity, blueprint in unique.items():
            verify(blueprint)
            places = [at for at, site in enumerate(unique_sites) if fits(blueprint, site) is None]
            history = self._history(identity)
            if history.retired:
                continue
            if places and history.submitted is None:
                self._submit(blueprint, self._sender_id)
                history = self._history(identity)
            for at in places:
                kernel = self._kernel(blueprint, identity, unique_sites[at], history)
                if kernel is not None:
                    found[at, identity] = kernel
        return [
            found[key] for key in ((at, name) for at in range(len(unique_sites)) for name in unique) if key in found
        ]

    def load(self, kernel_id: str) -> tuple[fx.GraphModule, Kernel]:
        """Return a fresh module of a kernel, and the kernel.

        Raises:
            NotFound: The id is not one of a kernel.
            ArtifactMissing: The store does not have the kernel.
            KernelRefused: The stored bytes are no kernel.
        """
        try:
            digest = bytes.fromhex(kernel_id)
        except ValueError:
            digest = b""
        if len(digest) != 32:
            raise NotFound(f"{kernel_id[:80]!r} is no kernel id", hint="a kernel id is 64 hexadecimal digits")
        kernel = decode_kernel(self._store.get(digest))
        return load_module(kernel), kernel

    def _submit(self, blueprint: Blueprint, by: str) -> str:
        identity = blueprint_id(blueprint)
        fact = BlueprintSubmitted(
            blueprint_id=identity,
            name=blueprint.id,
            kind=blueprint.kind,
            architecture_ir=canonical_json(blueprint),
            submitted_by=by,
        )
        self._append([(fact, derived_id("blueprint", identity, "submitted"))], None)
        return identity

    def _kernel(
        self, blueprint: Blueprint, identity: str, signature: SiteSignature, history: _History
    ) -> KernelRef | None:
        compiled = history.kernel_at(signature)
        if compiled is None or not self._store.has(bytes.fromhex(compiled.kernel_id)):
            if msgspec.msgpack.encode(msgspec.to_builtins(signature)) in history.failed:
                return None
            compiled = self._compile(blueprint, identity, signature, history)
        if compiled is None or compiled.kernel_id in history.rejected:
            return None
        if compiled.kernel_id not in history.validated and not self._characterize(compiled):
            return None
        return KernelRef(
            kernel_id=compiled.kernel_id,
            blueprint_id=identity,
            name=blueprint.id,
            kind=blueprint.kind,
            signature=signature,
            parameters=compiled.parameters,
            flops=compiled.flops,
        )

    def _compile(
        self, blueprint: Blueprint, identity: str, signature: SiteSignature, history: _History
    ) -> KernelCompiled | None:
        start = self._timer()
        plain: dict[str, Any] = msgspec.to_builtins(signature)
        found = verify(blueprint, signature)
        try:
            module = build(blueprint, signature, seed=kernel_seed(blueprint, signature))
            data = encode_kernel(blueprint, signature, module)
        except KernelRefused as error:
            failure = CompilationFailed(
                blueprint_id=identity, signature=plain, error=type(error).__name__, message=error.message
            )
            cause = msgspec.msgpack.encode(plain).hex()
            event_id = derived_id("blueprint", identity, "compilation-failed", cause)
            self._append([(failure, event_id)], history.submitted)
            return None
        self._store.put(data)
        fact = KernelCompiled(
            blueprint_id=identity,
            kernel_id=kernel_id(data),
            signature=plain,
            symbols=found.symbols,
            parameters=found.parameters or 0,
            flops=found.flops or 0,
            size_bytes=len(data),
            compile_seconds=self._timer() - start,
            toolchain=f"torch {torch.__version__}",
        )
        self._append([(fact, derived_id("kernel", fact.kernel_id, "compiled"))], history.submitted)
        return fact

    def _characterize(self, compiled: KernelCompiled) -> bool:
        """Measure a kernel from its stored bytes and judge it; tell whether it was validated."""
        start = self._timer()
        module, kernel = self.load(compiled.kernel_id)
        measured = characterize(module, kernel.blueprint, kernel.signature, timer=self._timer)
        digest = self._store.put(measured.raw())
        names = {"blueprint_id": compiled.blueprint_id, "kernel_id": compiled.kernel_id}
        characterized = KernelCharacterized(
            **names,
            checks=measured.checks,
            numbers=measured.numbers,
            measurements_digest=digest,
            latency_p50_s=measured.latency_p50_s,
            latency_p99_s=measured.latency_p99_s,
            measured_seconds=self._timer() - start,
        )
        verdict: Fact
        if measured.failed:
            verdict = KernelRejected(**names, measurements_digest=digest, failed=measured.failed)
        else:
            verdict = KernelValidated(**names, measurements_digest=digest)
        cause = derived_id("kernel", compiled.kernel_id, "compiled")
        written = self._append(
            [
                (characterized, derived_id("kernel", compiled.kernel_id, "characterized")),
                (verdict, derived_id("kernel", compiled.kernel_id, "verdict")),
            ],
            cause,
        )
        return not measured.failed if written else compiled.kernel_id in self._history(compiled.blueprint_id).validated

    def _append(self, facts: list[tuple[Fact, bytes]], cause: bytes | None) -> bool:
        """Append facts whose ids derive from their cause; tell whether ours are in the log.

        Another forge may have said the same before with other numbers: the first fact wins and ours are dropped.
        """
        batch = [
            Event(
                fact=fact,
                event_id=event_id,
                sender_id=self._sender_id,
                trace_id=self._trace_id,
                causation_id=cause,
            )
            for fact, event_id in facts
        ]
        try:
            self._log.append(batch, stream=batch[0].fact.stream, expected=ANY)
        except EventIdReused:
            return False
        return True

    def _history(self, identity: str) -> _History:
        history = _History()
        for envelope in iterate_stream(self._log, f"blueprint/{identity}"):
            match fact_of(envelope):
                case BlueprintSubmitted():
                    history.submitted = envelope.event_id
                case KernelCompiled() as fact:
                    history.compiled[fact.kernel_id] = fact
                case KernelValidated() as fact:
                    history.validated.add(fact.kernel_id)
                case KernelRejected() as fact:
                    history.rejected.add(fact.kernel_id)
                case CompilationFailed() as fact:
                    history.failed.add(msgspec.msgpack.encode(fact.signature))
                case BlueprintRetired():
                    history.retired = True
                case _:
                    pass  # characterisations and refusals of documents say nothing about what can be reused
        return history


def _same(fact: KernelCompiled, signature: dict[str, Any]) -> bool:
    return msgspec.msgpack.encode(fact.signature) == msgspec.msgpack.encode(signature)


def _require_own_name(blueprint: Blueprint) -> None:
    """Refuse another blueprint under a shipped name: runs and reports tell blueprints by name."""
    shipped = load_library().get(blueprint.id)
    if shipped is not None and blueprint_id(shipped) != blueprint_id(blueprint):
        raise BlueprintInvalid(
            f"id: {blueprint.id!r} is the name of a shipped blueprint that computes something else",
            hint="give yours another id",
            path="id",
            rule="name_taken",
        )
