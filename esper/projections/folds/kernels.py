"""From the facts of kernels and jobs to compiled_kernels and compile_jobs.

Belongs here: what a kernel and the job that made it have been through. Does not belong here: the blueprint they are
of (``blueprints``), whose row is told what its kernels came to.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from esper.events.base import Fact
from esper.events.envelope import Recorded
from esper.events.kernel import (
    CompilationFailed,
    CompilationLeased,
    CompilationRequested,
    KernelCharacterized,
    KernelCompiled,
    KernelFormCompiled,
    KernelFormRefused,
    KernelQuarantined,
    KernelRejected,
    KernelTagged,
    KernelValidated,
    MeasurementRequested,
)
from esper.names import KernelStatus
from esper.projections.folds.blueprints import BlueprintFold
from esper.projections.folds.poison import contradiction
from esper.projections.staging import Staging
from esper.projections.values import canonical, real


class KernelFold:
    """Follows kernels, their compiled forms and the jobs that make them."""

    def __init__(self, staging: Staging, blueprints: BlueprintFold) -> None:
        """Write to a staging, and tell the blueprints what their kernels came to."""
        self._blueprints = blueprints
        self._kernels = staging.kernels
        self._jobs = staging.jobs

    def handlers(self) -> dict[type[Fact], Callable[[Recorded, Any], None]]:
        """Return the function for each fact type."""
        return {
            CompilationRequested: self.requested,
            CompilationLeased: self.leased,
            CompilationFailed: self.failed,
            KernelCompiled: self.compiled,
            KernelFormCompiled: self.formed,
            KernelFormRefused: self.form_refused,
            MeasurementRequested: self.measurement_wanted,
            KernelCharacterized: self.characterized,
            KernelValidated: self.validated,
            KernelRejected: self.refused,
            KernelTagged: self.tagged,
            KernelQuarantined: self.quarantined,
        }

    def requested(self, envelope: Recorded, fact: CompilationRequested) -> None:
        """Add a job."""
        self._blueprints.known(envelope, fact.blueprint_id)
        self._jobs.start(
            (fact.job_id,),
            envelope.position,
            {
                "blueprint_id": fact.blueprint_id,
                "status": "requested",
                "signature": canonical(fact.signature, envelope.payload),
                "pipelines": canonical(fact.pipelines, envelope.payload),
                "requested_by": fact.requested_by,
                "leases": 0,
            },
        )

    def leased(self, envelope: Recorded, fact: CompilationLeased) -> None:
        """Show who is at a job."""
        job = self._jobs.current((fact.job_id,))
        if job is None:
            raise contradiction(envelope, f"job {fact.job_id} was never requested")
        taken = {"worker": fact.worker, "token": fact.token, "attempt": fact.attempt, "leases": job["leases"] + 1}
        self._jobs.change((fact.job_id,), envelope.position, {"status": "leased", **taken})
        self._blueprints.compiling(envelope, fact.blueprint_id)

    def compiled(self, envelope: Recorded, fact: KernelCompiled) -> None:
        """Add a kernel, not yet measured, and end its job."""
        new = self._kernels.current((fact.kernel_id,)) is None
        self._blueprints.compiled(envelope, fact.blueprint_id, new=new)
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
                "job_id": fact.job_id,
                "worker": fact.worker,
                "compile_memory_bytes": fact.peak_memory_bytes,
                "hardware": fact.hardware,
                "signed_by": fact.signed_by,
                "forms": "[]",
            },
        )
        self._end_job(envelope, fact.job_id, {"status": "compiled", "kernel_id": fact.kernel_id})

    def failed(self, envelope: Recorded, fact: CompilationFailed) -> None:
        """Show that a blueprint could not be built for a site, and end its job."""
        error = f"{fact.error}: {fact.message}"
        self._blueprints.failed(envelope, fact.blueprint_id, error)
        self._end_job(envelope, fact.job_id, {"status": "failed", "reason": fact.reason, "last_error": error})

    def formed(self, envelope: Recorded, fact: KernelFormCompiled) -> None:
        """Add a compiled form to its kernel."""
        self._form(envelope, fact, "compiled")

    def form_refused(self, envelope: Recorded, fact: KernelFormRefused) -> None:
        """Note that a kernel has no such form."""
        self._form(envelope, fact, "refused")

    def measurement_wanted(self, envelope: Recorded, fact: MeasurementRequested) -> None:
        """Show why a kernel is to be measured again."""
        self._kernel(envelope, fact.kernel_id, {"measurement_wanted": fact.reason})

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
                "measured_toolchain": fact.toolchain,
                "measured_hardware": fact.hardware,
                "peak_memory_bytes": fact.peak_memory_bytes,
                "measurement_wanted": None,
            },
        )

    def validated(self, envelope: Recorded, fact: KernelValidated) -> None:
        """Show that a kernel passed."""
        self._judged(envelope, fact, KernelStatus.VALIDATED, None)

    def refused(self, envelope: Recorded, fact: KernelRejected) -> None:
        """Show that a kernel failed, and at what."""
        self._judged(envelope, fact, KernelStatus.REJECTED, canonical(fact.failed, envelope.payload))

    def tagged(self, envelope: Recorded, fact: KernelTagged) -> None:
        """Show how a kernel stands beside the others."""
        self._kernel(
            envelope,
            fact.kernel_id,
            {
                "tags": canonical(fact.tags, envelope.payload),
                "tag_thresholds": canonical(fact.thresholds, envelope.payload),
                "compared_with": fact.compared_with,
                "risk": real(fact.risk),
                "confidence": real(fact.confidence),
            },
        )

    def quarantined(self, envelope: Recorded, fact: KernelQuarantined) -> None:
        """Take a kernel back to where it waits for a measurement."""
        why = {"reason": fact.reason, "message": fact.message, "found_by": fact.found_by}
        evidence = {"evidence_digest": None if fact.evidence_digest is None else fact.evidence_digest.hex()}
        values = {
            "status": KernelStatus.PENDING_BENCHMARKING.value,
            "quarantined": canonical({**why, **evidence}, envelope.payload),
        }
        self._kernel(envelope, fact.kernel_id, values)

    def _judged(
        self, envelope: Recorded, fact: KernelValidated | KernelRejected, status: KernelStatus, failed: str | None
    ) -> None:
        values = {"status": status.value, "measurements_digest": fact.measurements_digest, "failed": failed}
        self._kernel(envelope, fact.kernel_id, {**values, "quarantined": None})

    def _form(self, envelope: Recorded, fact: KernelFormCompiled | KernelFormRefused, status: str) -> None:
        forms = json.loads(self._known(envelope, fact.kernel_id)["forms"])
        skipped = {"blueprint_id", "kernel_id"}
        plain = {name: getattr(fact, name) for name in fact.__struct_fields__ if name not in skipped}
        told = {name: value.hex() if isinstance(value, bytes) else value for name, value in plain.items()}
        same = ("pipeline", "toolchain", "hardware")
        others = [form for form in forms if any(form[name] != told[name] for name in same)]
        changed = canonical([*others, {"status": status, **told}], envelope.payload)
        self._kernel(envelope, fact.kernel_id, {"forms": changed})

    def _end_job(self, envelope: Recorded, job_id: str | None, values: dict[str, Any]) -> None:
        if job_id is not None and self._jobs.current((job_id,)) is not None:
            self._jobs.change((job_id,), envelope.position, values)

    def _kernel(self, envelope: Recorded, kernel_id: str, values: dict[str, Any]) -> None:
        self._known(envelope, kernel_id)
        self._kernels.change((kernel_id,), envelope.position, values)

    def _known(self, envelope: Recorded, kernel_id: str) -> dict[str, Any]:
        found = self._kernels.current((kernel_id,))
        if found is None:
            raise contradiction(envelope, f"kernel {kernel_id} was never compiled")
        return found
