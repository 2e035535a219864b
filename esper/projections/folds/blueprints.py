"""From blueprint and kernel facts to blueprints and compiled_kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from esper.events.base import Fact
from esper.events.blueprint import BlueprintRejected, BlueprintRetired, BlueprintSubmitted
from esper.events.envelope import Recorded
from esper.events.kernel import (
    CompilationFailed,
    KernelCharacterized,
    KernelCompiled,
    KernelRejected,
    KernelValidated,
)
from esper.names import BlueprintStatus, KernelStatus
from esper.projections.folds.poison import contradiction
from esper.projections.staging import Staging
from esper.projections.values import canonical, real


class BlueprintFold:
    """Follows blueprints and the kernels compiled from them."""

    def __init__(self, staging: Staging) -> None:
        """Write to a staging."""
        self._blueprints = staging.blueprints
        self._kernels = staging.kernels

    def handlers(self) -> dict[type[Fact], Callable[[Recorded, Any], None]]:
        """Return the function for each fact type."""
        return {
            BlueprintSubmitted: self.submitted,
            BlueprintRejected: self.rejected,
            BlueprintRetired: self.retired,
            KernelCompiled: self.compiled,
            CompilationFailed: self.failed,
            KernelCharacterized: self.characterized,
            KernelValidated: self.validated,
            KernelRejected: self.refused,
        }

    def submitted(self, envelope: Recorded, fact: BlueprintSubmitted) -> None:
        """Add a blueprint to the library; one that was retired comes back with its kernels."""
        before = self._blueprints.current((fact.blueprint_id,))
        kernels = 0 if before is None else before["kernels"]
        status = BlueprintStatus.COMPILED if kernels else BlueprintStatus.SUBMITTED
        self._blueprints.start(
            (fact.blueprint_id,),
            envelope.position,
            {
                "name": fact.name,
                "kind": fact.kind,
                "status": status.value,
                "submitted_by": fact.submitted_by,
                "architecture_ir": fact.architecture_ir,
                "reasons": "[]",
                "kernels": kernels,
            },
        )

    def rejected(self, envelope: Recorded, fact: BlueprintRejected) -> None:
        """Keep what was unsound, with the rules it broke."""
        self._blueprints.start(
            (fact.blueprint_id,),
            envelope.position,
            {
                "name": fact.name,
                "status": BlueprintStatus.FAILED.value,
                "submitted_by": fact.submitted_by,
                "reasons": canonical(fact.reasons, envelope.payload),
                "kernels": 0,
            },
        )

    def retired(self, envelope: Recorded, fact: BlueprintRetired) -> None:
        """Take a blueprint out of the offer."""
        self._blueprint(envelope, fact.blueprint_id)
        self._blueprints.change(
            (fact.blueprint_id,),
            envelope.position,
            {
                "status": BlueprintStatus.RETIRED.value,
                "retired_by": fact.actor,
                "retired_reason": fact.reason,
            },
        )

    def compiled(self, envelope: Recorded, fact: KernelCompiled) -> None:
        """Add a kernel, not yet measured."""
        blueprint = self._blueprint(envelope, fact.blueprint_id)
        new = self._kernels.current((fact.kernel_id,)) is None
        retired = blueprint["status"] == BlueprintStatus.RETIRED.value
        status = BlueprintStatus.RETIRED if retired else BlueprintStatus.COMPILED
        self._blueprints.change(
            (fact.blueprint_id,),
            envelope.position,
            {"status": status.value, "kernels": blueprint["kernels"] + new},
        )
        self._kernels.start(
            (fact.kernel_id,),
            envelope.position,
            {
                "blueprint_id": fact.blueprint_id,
                "status": KernelStatus.PENDING_BENCHMARKING.value,
                "signature": canonical(fact.signature, envelope.payload),
                "symbols": canonical(fact.symbols, envelope.payload),
                "parameters": fact.parameters,
                "flops": fact.flops,
                "size_bytes": fact.size_bytes,
                "compile_seconds": real(fact.compile_seconds),
                "toolchain": fact.toolchain,
            },
        )

    def failed(self, envelope: Recorded, fact: CompilationFailed) -> None:
        """Show that a blueprint could not be built for a site; others may have worked."""
        blueprint = self._blueprint(envelope, fact.blueprint_id)
        values = {"last_error": f"{fact.error}: {fact.message}"}
        if not blueprint["kernels"] and blueprint["status"] != BlueprintStatus.RETIRED.value:
            values["status"] = BlueprintStatus.FAILED.value
        self._blueprints.change((fact.blueprint_id,), envelope.position, values)

    def characterized(self, envelope: Recorded, fact: KernelCharacterized) -> None:
        """Show what the crucible measured."""
        self._kernel(
            envelope,
            fact.kernel_id,
            {
                "checks": canonical(fact.checks, envelope.payload),
                "numbers": canonical(fact.numbers, envelope.payload),
                "measurements_digest": fact.measurements_digest,
                "latency_p50_s": real(fact.latency_p50_s),
                "latency_p99_s": real(fact.latency_p99_s),
                "measured_seconds": real(fact.measured_seconds),
            },
        )

    def validated(self, envelope: Recorded, fact: KernelValidated) -> None:
        """Show that a kernel passed."""
        digest = fact.measurements_digest
        status = KernelStatus.VALIDATED.value
        self._kernel(envelope, fact.kernel_id, {"status": status, "measurements_digest": digest, "failed": None})

    def refused(self, envelope: Recorded, fact: KernelRejected) -> None:
        """Show that a kernel failed, and at what."""
        self._kernel(
            envelope,
            fact.kernel_id,
            {
                "status": KernelStatus.REJECTED.value,
                "measurements_digest": fact.measurements_digest,
                "failed": canonical(fact.failed, envelope.payload),
            },
        )

    def _blueprint(self, envelope: Recorded, blueprint_id: str) -> dict[str, Any]:
        found = self._blueprints.current((blueprint_id,))
        if found is None:
            raise contradiction(envelope, f"blueprint {blueprint_id} was never submitted")
        return found

    def _kernel(self, envelope: Recorded, kernel_id: str, values: dict[str, Any]) -> None:
        if self._kernels.current((kernel_id,)) is None:
            raise contradiction(envelope, f"kernel {kernel_id} was never compiled")
        self._kernels.change((kernel_id,), envelope.position, values)
