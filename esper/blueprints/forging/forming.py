"""Compiled forms of kernels: made at the workbench, signed and kept, told as facts, and taken again only if all holds.

Belongs here: the way from a kernel to a fact about a form of it, and from that fact to checked bytes. Does not belong
here: compiling, comparing and loading (``forms``, where torch is), or whether a run uses a form: runs compute with the
kernel itself, because bit-exact replay is of that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from esper.artifacts.signatures import verify_signed
from esper.artifacts.signing import VerifyKey
from esper.artifacts.store import ArtifactStore
from esper.blueprints.bench.wire import FormDocument, FormMade, FormRequest
from esper.blueprints.bench.workbench import Done, Limits, Workbench
from esper.blueprints.forging.jobs import compiled_event_id, form_event_id, hardware, toolchain
from esper.blueprints.forging.scribe import Scribe
from esper.blueprints.kernels.shelf import KernelShelf
from esper.errors import ArtifactDamaged, ArtifactMissing, SignatureInvalid, WorkFailed
from esper.events import fact_of
from esper.events.kernel import KernelCompiled, KernelFormCompiled, KernelFormRefused
from esper.oona.port import EventLog, iterate_stream

#: Pipelines that make a form; eager is the kernel itself.
PIPELINES = ("export", "inductor")
#: Samples a form is made for where nobody says.
BATCH = 16
#: Compiling two passes takes a C++ compiler longer than any measurement takes.
LIMITS = Limits(wall_s=300.0)
#: A form is chosen that takes at most so much of the eager time.
_CHOSEN_FRAC = 0.95

#: What became of a form.
Formed = KernelFormCompiled | KernelFormRefused


class FormMaker:
    """Makes forms of kernels in one name."""

    def __init__(
        self,
        log: EventLog,
        store: ArtifactStore,
        shelf: KernelShelf,
        bench: Workbench,
        scribe: Scribe,
    ) -> None:
        """Work on a log and a store.

        Args:
            log: Read for the forms that there are.
            store: Where kernels and forms are.
            shelf: The store as one for kernels; it signs forms too, and without a key there are none.
            bench: Where forms are made.
            scribe: Writes the facts.
        """
        self._log = log
        self._store = store
        self._shelf = shelf
        self._bench = bench
        self._scribe = scribe

    def make(
        self,
        compiled: KernelCompiled,
        pipeline: str,
        *,
        batch: int | None = None,
        again: bool = True,
        limits: Limits | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Formed:
        """Return the form that there is for this toolchain and hardware, or make it and note the outcome.

        Args:
            compiled: The kernel.
            pipeline: export or inductor.
            batch: Samples it is made for and timed with; ``BATCH``, or what there is, when left out.
            again: Whether to try once more what was refused here before.
            limits: Of the work; ``LIMITS`` when left out.
            stop: Asked all the while whether to end early.

        Raises:
            ArtifactError: The kernel cannot be taken from the store.
            KernelRefused: Its bytes are no kernel.
            WorkFailed: It was stopped.
            DependencyUnavailable: No child for the work can be started.
        """
        before = [form for form in forms_of(self._log, compiled) if form.pipeline == pipeline and made_here(form)]
        earlier = [form for form in before if isinstance(form, KernelFormCompiled)]
        if earlier and self._serves(earlier[-1], batch):
            return earlier[-1]
        if before and not again and isinstance(before[-1], KernelFormRefused):
            return before[-1]
        missing = self._missing(pipeline)
        if missing is not None:
            made = FormMade(refusal="unavailable", message=missing)
            return self._note(_refused(compiled, pipeline, made), len(earlier))
        self._shelf.get(compiled.kernel_id)  # what is compiled is what was checked
        kernel = self._store.get(bytes.fromhex(compiled.kernel_id))
        request = msgspec.msgpack.encode(FormRequest(kernel=kernel, pipeline=pipeline, batch=batch or BATCH))
        try:
            done = self._bench.run("form", request, limits=limits or LIMITS, stop=stop)
        except WorkFailed as error:
            # Whoever ends a service may end its children too: that one died says nothing then.
            if error.reason == "stopped" or (error.reason == "died" and stop is not None and stop()):
                raise
            reason = "error" if error.reason == "forked" else error.reason
            made = FormMade(refusal=reason, message=error.message)
            return self._note(_refused(compiled, pipeline, made), len(earlier))
        made = msgspec.msgpack.decode(done.result, type=FormMade)
        if made.form is None:
            return self._note(_refused(compiled, pipeline, made), len(earlier))
        digest = self._shelf.keep(made.form)
        fact = _compiled(compiled, pipeline, made, digest, done, self._shelf.signed_by)
        return self._note(fact, len(earlier))

    def _note(self, fact: Formed, earlier: int) -> Formed:
        """Note an outcome, and return the one that stands: somebody else's, where they were first."""
        outcome = "compiled" if isinstance(fact, KernelFormCompiled) else fact.reason
        event_id = form_event_id(fact.kernel_id, fact.pipeline, outcome, earlier)
        if self._scribe.append([(fact, event_id)], compiled_event_id(fact.kernel_id)):
            return fact
        told = iterate_stream(self._log, fact.stream)
        first = next((fact_of(envelope) for envelope in told if envelope.event_id == event_id), None)
        return first if isinstance(first, KernelFormCompiled | KernelFormRefused) else fact

    def _missing(self, pipeline: str) -> str | None:
        if pipeline not in PIPELINES:
            return f"there is no pipeline {pipeline[:40]!r}, but {' and '.join(PIPELINES)}"
        return None if self._shelf.signed_by else "nothing signs here, and what is not signed is never loaded"

    def _serves(self, form: KernelFormCompiled, batch: int | None) -> bool:
        """Tell whether a form can be had, for so many samples."""
        try:
            document = msgspec.msgpack.decode(fetch_form(self._store, form, self._shelf.trusted), type=FormDocument)
        except (ArtifactMissing, ArtifactDamaged, SignatureInvalid, msgspec.DecodeError):
            return False
        return batch is None or document.batch == batch


def forms_of(log: EventLog, compiled: KernelCompiled) -> list[Formed]:
    """Return what the log tells of a kernel's forms, in its order."""
    facts = (fact_of(envelope) for envelope in iterate_stream(log, compiled.stream))
    formed = (fact for fact in facts if isinstance(fact, KernelFormCompiled | KernelFormRefused))
    return [fact for fact in formed if fact.kernel_id == compiled.kernel_id]


def made_here(form: Formed) -> bool:
    """Tell whether a form was tried with the toolchain and hardware of here."""
    return (form.toolchain, form.hardware) == (toolchain(), hardware())


def fetch_form(store: ArtifactStore, form: KernelFormCompiled, trusted: Sequence[VerifyKey]) -> bytes:
    """Return the bytes of a form, which may be loaded: digest and signature hold.

    There is no way around the signature, unlike with kernels: loading a form may run what stands in it.

    Args:
        store: Where it is.
        form: What the log says of it.
        trusted: Keys one of which must have signed it.

    Raises:
        SignatureInvalid: Nobody signed it, no trusted key did, or a trusted key's signature does not fit.
        ArtifactMissing: The store does not have it.
        ArtifactDamaged: The stored bytes are others.
    """
    return verify_signed(store, form.form_digest, trusted)


def _compiled(
    compiled: KernelCompiled, pipeline: str, made: FormMade, digest: bytes, done: Done, signed_by: str | None
) -> KernelFormCompiled:
    return KernelFormCompiled(
        blueprint_id=compiled.blueprint_id,
        kernel_id=compiled.kernel_id,
        pipeline=pipeline,
        form_digest=digest,
        toolchain=toolchain(),
        hardware=hardware(),
        compile_seconds=made.compile_s,
        size_bytes=len(made.form or b""),
        peak_memory_bytes=done.peak_memory_bytes,
        value_difference=made.value_difference or 0.0,
        gradient_difference=made.gradient_difference or 0.0,
        tolerance=made.tolerance or 0.0,
        eager_step_s=made.eager_step_s,
        form_step_s=made.form_step_s,
        chosen=made.form_step_s <= _CHOSEN_FRAC * made.eager_step_s,
        signed_by=signed_by,
    )


def _refused(compiled: KernelCompiled, pipeline: str, made: FormMade) -> KernelFormRefused:
    return KernelFormRefused(
        blueprint_id=compiled.blueprint_id,
        kernel_id=compiled.kernel_id,
        pipeline=pipeline,
        toolchain=toolchain(),
        hardware=hardware(),
        reason=made.refusal or "error",
        message=made.message,
        value_difference=made.value_difference,
        gradient_difference=made.gradient_difference,
        tolerance=made.tolerance,
    )
