"""What a blueprint's stream says of it and its kernels: what is compiled, judged, in quarantine, tagged.

Belongs here: reading the stream into one value that decisions are made from. Does not belong here: making them
(``forge``), or tables for people (``esper.projections``). Torch is not imported.
"""

from __future__ import annotations

from typing import Any

import msgspec

from esper.blueprints.ir import SiteSignature
from esper.errors import KernelRefused
from esper.events import fact_of
from esper.events.base import Fact
from esper.events.blueprint import BlueprintRetired, BlueprintSubmitted
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
from esper.oona.port import EventLog, iterate_stream

_OfKernel = (
    KernelCharacterized | KernelTagged | KernelValidated | KernelRejected | KernelQuarantined | MeasurementRequested
)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a kernel's measurements came to."""

    validated: bool
    #: What it was measured with; None where the log does not say.
    toolchain: str | None
    measurements_digest: bytes
    #: Checks that failed.
    failed: list[str] = []


class KernelHistory(msgspec.Struct, kw_only=True):
    """What a kernel has been through."""

    compiled: KernelCompiled
    #: The last verdict since the last quarantine.
    verdict: Verdict | None = None
    characterized: KernelCharacterized | None = None
    tagged: KernelTagged | None = None
    quarantines: int = 0
    #: How often a new verdict was called for: by a quarantine, or by somebody who asked.
    rounds: int = 0
    #: Whether a measurement was asked for and none was noted since.
    wanted: bool = False

    @property
    def in_quarantine(self) -> bool:
        """Tell whether it was found bad and not judged since."""
        return self.quarantines > 0 and self.verdict is None

    def current(self, toolchain: str) -> Verdict | None:
        """Return the verdict if it is one with a toolchain."""
        return self.verdict if self.verdict is not None and self.verdict.toolchain == toolchain else None

    def signature(self) -> SiteSignature:
        """Return the site it was compiled for, as the log says.

        Raises:
            KernelRefused: What the log says is no site.
        """
        try:
            return msgspec.convert(self.compiled.signature, SiteSignature)
        except msgspec.ValidationError as error:
            raise KernelRefused(
                f"the log says kernel {self.compiled.kernel_id} is for a site that is none: {error}",
                reason="wrong_site",
            ) from error


class BlueprintHistory(msgspec.Struct, kw_only=True):
    """What a blueprint has been through."""

    blueprint_id: str
    #: Event id of the submission; None where there is none.
    submitted: bytes | None = None
    retired: bool = False
    #: By kernel id, in the order of the log.
    kernels: dict[str, KernelHistory] = {}
    #: Signatures at which compilation failed, encoded.
    failed: set[bytes] = set()
    #: Version of the stream that was read.
    version: int = 0

    def kernel_at(self, signature: SiteSignature) -> KernelHistory | None:
        """Return the last kernel compiled at a signature; one that is in quarantine only where there is no other."""
        plain = encoded(msgspec.to_builtins(signature))
        found = [kernel for kernel in self.kernels.values() if encoded(kernel.compiled.signature) == plain]
        return next((kernel for kernel in reversed(found) if not kernel.in_quarantine), found[-1] if found else None)

    def has_failed(self, signature: SiteSignature) -> bool:
        """Tell whether compilation at a signature failed."""
        return encoded(msgspec.to_builtins(signature)) in self.failed

    def note(self, fact: Fact, event_id: bytes) -> None:
        """Take the next fact of the stream in."""
        match fact:
            case BlueprintSubmitted():
                self.submitted, self.retired = event_id, False
            case BlueprintRetired():
                self.retired = True
            case KernelCompiled():
                if fact.kernel_id not in self.kernels:
                    self.kernels[fact.kernel_id] = KernelHistory(compiled=fact)
            case CompilationFailed():
                self.failed.add(encoded(fact.signature))
            case (
                KernelCharacterized()
                | KernelTagged()
                | KernelValidated()
                | KernelRejected()
                | KernelQuarantined()
                | MeasurementRequested()
            ):
                if (kernel := self.kernels.get(fact.kernel_id)) is not None:
                    _note(kernel, fact)
            case _:
                pass  # jobs, forms and refusals of documents say nothing about what can be reused


def history_of(log: EventLog, blueprint_id: str) -> BlueprintHistory:
    """Read a blueprint's stream."""
    history = BlueprintHistory(blueprint_id=blueprint_id)
    for envelope in iterate_stream(log, f"blueprint/{blueprint_id}"):
        history.version = envelope.version
        history.note(fact_of(envelope), envelope.event_id)
    return history


def histories(log: EventLog) -> list[BlueprintHistory]:
    """Read the streams of all blueprints."""
    prefix = "blueprint/"
    return [history_of(log, stream.removeprefix(prefix)) for stream in log.streams(prefix)]


def encoded(signature: dict[str, Any]) -> bytes:
    """Return a site signature as plain data in a form that compares."""
    return msgspec.msgpack.encode(signature)


def _note(kernel: KernelHistory, fact: _OfKernel) -> None:
    match fact:
        case KernelCharacterized():
            kernel.characterized = fact
        case KernelTagged():
            kernel.tagged = fact
        case MeasurementRequested():
            kernel.rounds += 1
            kernel.wanted = True
        case KernelQuarantined():
            kernel.quarantines += 1
            kernel.rounds += 1
            kernel.verdict = kernel.characterized = kernel.tagged = None
        case _:
            kernel.wanted = False
            kernel.verdict = Verdict(
                validated=isinstance(fact, KernelValidated),
                toolchain=_toolchain(kernel, fact.measurements_digest),
                measurements_digest=fact.measurements_digest,
                failed=fact.failed if isinstance(fact, KernelRejected) else [],
            )


def _toolchain(kernel: KernelHistory, measurements_digest: bytes) -> str | None:
    """Return what a verdict's measurements were made with.

    Logs of before do not say it of measurements; they were made by the process that compiled the kernel.
    """
    characterized = kernel.characterized
    if characterized is None or characterized.measurements_digest != measurements_digest:
        return None
    return characterized.toolchain or kernel.compiled.toolchain
