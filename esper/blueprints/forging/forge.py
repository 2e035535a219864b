"""The forge: from a submitted document to validated kernels, every step a fact.

Belongs here: the order submit, compile, measure, judge, tag, and the reuse of what the log already holds. Does not
belong here: how any of the steps works, or the child process that does the work (``workbench``). A run forges for
itself; Tezzeret and Urabrask do the same steps apart, with the same ids, so that nothing is said twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
from torch import fx

from esper.artifacts.store import ArtifactStore
from esper.blueprints.bench.wire import Compiled, CompileRequest
from esper.blueprints.bench.workbench import Workbench, shared_bench
from esper.blueprints.canonical import blueprint_id, canonical_json
from esper.blueprints.forging.examiner import Examiner, Judged
from esper.blueprints.forging.history import BlueprintHistory, KernelHistory, history_of
from esper.blueprints.forging.jobs import (
    compiled_event_id,
    failed_event_id,
    hardware,
    job_id,
    submitted_event_id,
    toolchain,
)
from esper.blueprints.forging.scribe import Scribe
from esper.blueprints.forging.submission import Author, Origin, submit, submit_sound
from esper.blueprints.ir import Blueprint, SiteSignature
from esper.blueprints.kernels.kernel import Kernel, load_module
from esper.blueprints.kernels.shelf import KernelShelf, quarantine_reason
from esper.blueprints.verify import fits, verify
from esper.errors import BlueprintInvalid, EsperError, KernelRefused, NotFound, SignatureInvalid, WorkFailed
from esper.events.kernel import CompilationFailed, KernelCompiled
from esper.oona.port import EventLog


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


class Forge:
    """Turns blueprints into validated kernels and says so in the log."""

    def __init__(
        self,
        log: EventLog,
        store: ArtifactStore,
        *,
        sender_id: str,
        trace_id: str,
        shelf: KernelShelf | None = None,
        bench: Workbench | None = None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Work on a log and a store.

        Args:
            log: Where facts go; read for what is there already.
            store: Where kernels and raw measurements go.
            sender_id: Who the facts are from.
            trace_id: 32 hexadecimal digits.
            shelf: The store as one for kernels, with the keys that sign and are trusted; without keys when left out.
            bench: Where the work is done; the one that this process shares when left out.
            timer: Seconds from any origin; for how long a measurement was tried that never ended.
        """
        self._log = log
        self._sender_id = sender_id
        self._trace_id = trace_id
        self._shelf = shelf or KernelShelf(store)
        self._bench = bench or shared_bench()
        self._scribe = Scribe(log, sender_id=sender_id, trace_id=trace_id)
        self._examiner = Examiner(log, store, self._shelf, self._bench, self._scribe, timer=timer)

    def submit(
        self,
        ir_bytes: bytes,
        by: str,
        *,
        parent: str | None = None,
        mutation: str | None = None,
        novelty: float | None = None,
    ) -> str:
        """Verify a document and note the outcome; submitting a known blueprint again changes nothing.

        Args:
            ir_bytes: The document as it came.
            by: Who submits it.
            parent: Id of the blueprint it was made from; None where somebody wrote it.
            mutation: What was changed of the parent.
            novelty: How new it is; see ``novelty``.

        Returns:
            The blueprint's id.

        Raises:
            BlueprintInvalid: A rule is broken; the refusal was noted.
        """
        origin = None if parent is None else Origin(parent, mutation or "", novelty)
        return submit(self._log, ir_bytes, self._author(by), origin=origin).blueprint_id

    def ensure(self, signatures: Sequence[SiteSignature], blueprints: Sequence[Blueprint]) -> list[KernelRef]:
        """Return a validated kernel for every blueprint at every signature it fits.

        What the log holds is reused; what is missing is submitted, compiled and measured now. A kernel that was
        rejected with this toolchain stays rejected and is left out, and so is a retired blueprint. A kernel that was
        judged with another toolchain is measured again. One that the store lost is compiled again, with the same
        bytes; one whose bytes or signature do not hold goes into quarantine, is compiled again and measured again.
        Work that breaks a limit of the bench ends in a rejection or a failed compilation, and the others go on.

        Args:
            signatures: Sites to serve; equal ones are served once.
            blueprints: Blueprints to consider; equal ones are considered once.

        Returns:
            References ordered by signature as given, then by blueprint as given.

        Raises:
            BlueprintInvalid: A blueprint breaks a static rule.
            DependencyUnavailable: No child for the work can be started.
        """
        unique_sites = list(dict.fromkeys(signatures))
        unique = {blueprint_id(blueprint): blueprint for blueprint in blueprints}
        found: dict[tuple[int, str], KernelRef] = {}
        untagged = False
        for identity, blueprint in unique.items():
            verify(blueprint)
            places = [at for at, site in enumerate(unique_sites) if fits(blueprint, site) is None]
            history = history_of(self._log, identity)
            if history.retired:
                continue
            if places and history.submitted is None:
                submit_sound(self._log, blueprint, self._author(self._sender_id))
                history.submitted = submitted_event_id(identity)
            for at in places:
                kernel, new = self._kernel(blueprint, unique_sites[at], history)
                untagged = untagged or new
                if kernel is not None:
                    found[at, identity] = _reference(kernel.compiled, blueprint, unique_sites[at])
        if untagged:
            self._examiner.tag()
        return [
            found[key] for key in ((at, name) for at in range(len(unique_sites)) for name in unique) if key in found
        ]

    def load(self, kernel_id: str) -> tuple[fx.GraphModule, Kernel]:
        """Return a fresh module of a kernel, and the kernel; raises as ``KernelShelf.get`` does."""
        kernel = self._shelf.get(kernel_id)
        return load_module(kernel), kernel

    def measure(self, kernel_id: str, *, stop: Callable[[], bool] | None = None) -> Judged:
        """Measure a kernel now, and note the outcome as its new verdict.

        Args:
            kernel_id: The kernel.
            stop: Asked all the while whether to end early.

        Raises:
            NotFound: The log knows no such kernel.
            ArtifactError: It cannot be taken from the store; if it is to blame itself, it is in quarantine now.
            KernelRefused: Its bytes are no kernel or another's; it is in quarantine now.
            WorkFailed: It was stopped.
        """
        judged = self._examiner.measure(self._compiled(kernel_id), asked="asked for", stop=stop)
        self._examiner.tag()
        return judged

    def quarantine(self, kernel_id: str, error: EsperError) -> bool:
        """Put a kernel aside whose bytes, signature or site do not hold; ``ensure`` makes it again.

        Args:
            kernel_id: The kernel.
            error: What was raised where it was taken; see ``shelf.quarantine_reason``.

        Returns:
            Whether the kernel is to blame and is in quarantine; if not, nothing was done.

        Raises:
            NotFound: The log knows no such kernel.
        """
        return self._examiner.quarantine(self._compiled(kernel_id), error)

    def _author(self, name: str) -> Author:
        return Author(name, self._sender_id, self._trace_id)

    def _compiled(self, kernel_id: str) -> KernelCompiled:
        compiled = self._examiner.compiled(kernel_id)
        if compiled is None:
            raise NotFound(
                f"no kernel {kernel_id[:80]!r} was compiled on this log", hint="`esper kernel list` shows the kernels"
            )
        return compiled

    def _kernel(
        self, blueprint: Blueprint, signature: SiteSignature, history: BlueprintHistory
    ) -> tuple[KernelHistory | None, bool]:
        """Return a validated kernel, or None, and whether there is something new to tag."""
        kernel = history.kernel_at(signature)
        if kernel is None and history.has_failed(signature):
            return None, False
        verdict = None if kernel is None else kernel.current(toolchain())
        if verdict is not None and not verdict.validated:
            return None, False
        if kernel is None or kernel.in_quarantine or not self._holds(kernel, signature):
            kernel = self._compile(blueprint, signature, history)
            if kernel is None:
                return None, False
        verdict = kernel.current(toolchain())
        if verdict is not None:
            # One that was never tagged is: whoever judged it died before that, or did not know of tags.
            return (kernel, kernel.tagged is None) if verdict.validated else (None, False)
        try:
            judged = self._examiner.measure(kernel.compiled)
        except EsperError as error:
            if quarantine_reason(error) is None:
                raise
            return None, False  # it was made a moment ago and is bad already: it is in quarantine, the others go on
        return (kernel if judged.validated else None), True

    def _holds(self, kernel: KernelHistory, signature: SiteSignature) -> bool:
        """Tell whether a kernel can be taken from the shelf; one that is bad goes into quarantine."""
        kernel_id = kernel.compiled.kernel_id
        if not self._shelf.has(kernel_id):
            return False
        try:
            self._shelf.get(kernel_id, signature=signature)
        except EsperError as error:
            if quarantine_reason(error) is not None:
                self._examiner.quarantine(kernel.compiled, error)
            elif not (isinstance(error, SignatureInvalid) and self._shelf.signed_by is not None):
                raise  # nobody could make it better: the store is away, or no key of ours can vouch for it
            return False
        return True

    def _compile(
        self, blueprint: Blueprint, signature: SiteSignature, history: BlueprintHistory
    ) -> KernelHistory | None:
        """Compile at the bench, keep the kernel, and return what the log says of it; None where it cannot be done."""
        identity, site = history.blueprint_id, msgspec.to_builtins(signature)
        job = job_id(identity, signature)
        request = CompileRequest(ir=canonical_json(blueprint), signature=signature)
        try:
            done = self._bench.run("compile", msgspec.msgpack.encode(request))
            made = msgspec.msgpack.decode(done.result, type=Compiled)
            kernel_id = self._shelf.put(made.kernel)
        except (KernelRefused, BlueprintInvalid, WorkFailed) as error:
            reason = error.reason if isinstance(error, WorkFailed) else None
            if reason == "stopped":
                raise
            failure = CompilationFailed(
                blueprint_id=identity,
                signature=site,
                error=type(error).__name__,
                message=error.message,
                job_id=job,
                reason=reason,
            )
            self._scribe.append([(failure, failed_event_id(job))], history.submitted)
            return None
        fact = KernelCompiled(
            blueprint_id=identity,
            kernel_id=kernel_id,
            signature=site,
            symbols=made.symbols,
            parameters=made.parameters,
            flops=made.flops,
            size_bytes=len(made.kernel),
            compile_seconds=done.wall_s,
            toolchain=toolchain(),
            peak_memory_bytes=done.peak_memory_bytes,
            hardware=hardware(),
            signed_by=self._shelf.signed_by,
        )
        self._scribe.append([(fact, compiled_event_id(kernel_id))], history.submitted)
        return history_of(self._log, identity).kernels[kernel_id]


def _reference(compiled: KernelCompiled, blueprint: Blueprint, signature: SiteSignature) -> KernelRef:
    return KernelRef(
        kernel_id=compiled.kernel_id,
        blueprint_id=compiled.blueprint_id,
        name=blueprint.id,
        kind=blueprint.kind,
        signature=signature,
        parameters=compiled.parameters,
        flops=compiled.flops,
    )
