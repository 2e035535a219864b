"""The examiner: a kernel is taken from the shelf, measured, judged and tagged, or put in quarantine.

Belongs here: what follows from the state of a compiled kernel, as facts. Does not belong here: making kernels
(``forge``), when it is done (``forge`` for a run, ``esper.handlers.urabrask`` for everybody), or the formulas
(``crucible``, ``tags``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from esper.artifacts.store import ArtifactStore
from esper.blueprints.bench.workbench import Workbench
from esper.blueprints.forging.history import KernelHistory, histories, history_of
from esper.blueprints.forging.jobs import (
    characterized_event_id,
    compiled_event_id,
    hardware,
    measurement_event_id,
    quarantined_event_id,
    tagged_event_id,
    toolchain,
    verdict_event_id,
)
from esper.blueprints.forging.measuring import RawMeasurements, measure_at, read_measurements
from esper.blueprints.forging.population import Measured, Population
from esper.blueprints.forging.scribe import Scribe
from esper.blueprints.forging.tags import LEAST_COMPARED, judge
from esper.blueprints.kernels.shelf import KernelShelf, quarantine_reason
from esper.errors import EsperError, KernelRefused
from esper.events import Fact
from esper.events.kernel import (
    KernelCharacterized,
    KernelCompiled,
    KernelQuarantined,
    KernelRejected,
    KernelTagged,
    KernelValidated,
    MeasurementRequested,
)
from esper.oona.port import EventLog


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What came of measuring a kernel."""

    kernel_id: str
    blueprint_id: str
    #: What the log says now; that is an earlier verdict where there was one with this toolchain.
    validated: bool
    #: Digest of the raw measurements that were made now, 32 bytes.
    measurements_digest: bytes
    #: They themselves.
    measurements: RawMeasurements
    #: Whether the verdict in the log is from these measurements.
    noted: bool
    measured_seconds: float


class Examiner:
    """Measures and judges kernels in one name."""

    def __init__(
        self,
        log: EventLog,
        store: ArtifactStore,
        shelf: KernelShelf,
        bench: Workbench,
        scribe: Scribe,
        *,
        population: Population | None = None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Work on a log and a store.

        Args:
            log: Read for what is there already.
            store: Where kernels and raw measurements are.
            shelf: The store as one for kernels.
            bench: Where kernels are measured.
            scribe: Writes the facts.
            population: Of the same log and store; kept by whoever examines again and again, to read less.
            timer: Seconds from any origin; for durations only.
        """
        self._log = log
        self._store = store
        self._shelf = shelf
        self._bench = bench
        self._scribe = scribe
        self._population = population or Population(log, store)
        self._timer = timer

    def compiled(self, kernel_id: str) -> KernelCompiled | None:
        """Return the fact that a kernel was compiled, wherever in the log it stands."""
        found = (history.kernels.get(kernel_id) for history in histories(self._log))
        return next((kernel.compiled for kernel in found if kernel is not None), None)

    def known(self, blueprint_id: str, kernel_id: str) -> KernelCompiled | None:
        """Return the fact that a kernel of a blueprint was compiled."""
        kernel = history_of(self._log, blueprint_id).kernels.get(kernel_id)
        return None if kernel is None else kernel.compiled

    def state(self, compiled: KernelCompiled) -> KernelHistory:
        """Return what the log says of a kernel now."""
        return history_of(self._log, compiled.blueprint_id).kernels.get(
            compiled.kernel_id, KernelHistory(compiled=compiled)
        )

    def measure(
        self, compiled: KernelCompiled, *, asked: str | None = None, stop: Callable[[], bool] | None = None
    ) -> Judged:
        """Measure a kernel from its stored bytes and judge it; the first verdict of a toolchain stands.

        Args:
            compiled: The kernel.
            asked: Why there is to be a new verdict where one stands; None leaves that as it is.
            stop: Asked all the while whether to end early.

        Raises:
            ArtifactError: It cannot be taken from the store; if it is to blame itself, it is in quarantine now.
            KernelRefused: Its bytes are no kernel or another's; it is in quarantine now.
            WorkFailed: It was stopped.
            DependencyUnavailable: No child for the work can be started.
        """
        start = self._timer()
        data = self._bytes(compiled)
        state = self.state(compiled)
        raw = measure_at(self._bench, data, stop=stop)
        measured = read_measurements(raw)
        digest = self._shelf.keep(raw)
        # Waiting for a child to start is no part of measuring; where it never ended, all of it is.
        spent_s = measured.work.get("wall_s", self._timer() - start)
        kernel_id, used = compiled.kernel_id, toolchain()
        characterized, verdict = _facts(compiled, measured, digest, spent_s)
        batch: list[tuple[Fact, bytes]] = []
        rounds = state.rounds
        if asked is not None and state.current(used) is not None and not state.wanted:
            batch.append((_request(compiled, asked, self._scribe), measurement_event_id(kernel_id, used, rounds)))
            rounds += 1
        batch.append((characterized, characterized_event_id(kernel_id, used, rounds)))
        batch.append((verdict, verdict_event_id(kernel_id, used, rounds)))
        noted = self._scribe.append(batch, compiled_event_id(kernel_id))
        standing = self.state(compiled).current(used)
        return Judged(
            kernel_id=kernel_id,
            blueprint_id=compiled.blueprint_id,
            validated=standing is not None and standing.validated,
            measurements_digest=digest,
            measurements=measured,
            noted=noted and standing is not None and standing.measurements_digest == digest,
            measured_seconds=spent_s,
        )

    def quarantine(self, compiled: KernelCompiled, error: EsperError) -> bool:
        """Put a kernel aside that could not be taken, if it is the kernel that is to blame; tell whether it is."""
        reason = quarantine_reason(error)
        if reason is None:
            return False
        kernel_id, state = compiled.kernel_id, self.state(compiled)
        evidence = self._shelf.quarantine(kernel_id)
        if state.in_quarantine:
            return True
        fact = KernelQuarantined(
            blueprint_id=compiled.blueprint_id,
            kernel_id=kernel_id,
            reason=reason,
            message=error.message,
            evidence_digest=evidence,
            found_by=self._scribe.sender_id,
        )
        event_id = quarantined_event_id(kernel_id, state.quarantines)
        self._scribe.append([(fact, event_id)], compiled_event_id(kernel_id))
        return True

    def tag(self) -> int:
        """Tag every validated kernel whose measurements have no tags, or only those of the beginning.

        Returns:
            How many were tagged.
        """
        population = self._population.read()
        sizes: dict[str, int] = {}
        for one in population:
            sizes[one.site] = sizes.get(one.site, 0) + 1
        return sum(self._tag(one, population) for one in population if _is_due(one, sizes[one.site]))

    def _tag(self, kernel: Measured, population: list[Measured]) -> bool:
        found = judge(kernel, population)
        verdict = kernel.history.verdict
        if verdict is None:
            return False
        fact = KernelTagged(
            blueprint_id=kernel.blueprint_id,
            kernel_id=kernel.kernel_id,
            tags=found.tags,
            thresholds=found.thresholds,
            compared_with=found.compared_with,
            risk=found.risk,
            confidence=found.confidence,
            measurements_digest=verdict.measurements_digest,
        )
        early = found.compared_with < LEAST_COMPARED
        event_id = tagged_event_id(kernel.kernel_id, verdict.measurements_digest, early=early)
        return self._scribe.append([(fact, event_id)], compiled_event_id(kernel.kernel_id))

    def _bytes(self, compiled: KernelCompiled) -> bytes:
        """Return a kernel's bytes, checked; one that is bad goes into quarantine."""
        try:
            signature = KernelHistory(compiled=compiled).signature()
            kernel = self._shelf.get(compiled.kernel_id, signature=signature)
            if kernel.manifest.blueprint_id != compiled.blueprint_id:
                raise KernelRefused(
                    f"kernel {compiled.kernel_id} is one of blueprint {kernel.manifest.blueprint_id[:12]}, "
                    f"not of {compiled.blueprint_id[:12]} as the log says",
                )
            return self._store.get(bytes.fromhex(compiled.kernel_id))
        except EsperError as error:
            self.quarantine(compiled, error)
            raise


def request_measurement(kernel: KernelHistory, reason: str, scribe: Scribe) -> bool:
    """Ask whoever measures kernels to measure one, unless it was asked for; tell whether the wish is new.

    Args:
        kernel: The kernel, as the log has it now.
        reason: Why.
        scribe: Writes the wish.
    """
    if kernel.wanted:
        return False
    kernel_id = kernel.compiled.kernel_id
    event_id = measurement_event_id(kernel_id, toolchain(), kernel.rounds)
    return scribe.append([(_request(kernel.compiled, reason, scribe), event_id)], compiled_event_id(kernel_id))


def _request(compiled: KernelCompiled, reason: str, scribe: Scribe) -> MeasurementRequested:
    return MeasurementRequested(
        blueprint_id=compiled.blueprint_id,
        kernel_id=compiled.kernel_id,
        reason=reason,
        toolchain=toolchain(),
        requested_by=scribe.sender_id,
    )


def _is_due(kernel: Measured, compared_with: int) -> bool:
    tagged, verdict = kernel.history.tagged, kernel.history.verdict
    if tagged is None or verdict is None or tagged.measurements_digest != verdict.measurements_digest:
        return True
    return tagged.compared_with < LEAST_COMPARED <= compared_with


def _facts(
    compiled: KernelCompiled, measured: RawMeasurements, digest: bytes, spent_s: float
) -> tuple[KernelCharacterized, Fact]:
    """Return what was measured, and the verdict that follows from it."""
    names: dict[str, Any] = {"blueprint_id": compiled.blueprint_id, "kernel_id": compiled.kernel_id}
    characterized = KernelCharacterized(
        **names,
        checks=measured.checks,
        numbers=measured.values(),
        measurements_digest=digest,
        latency_p50_s=measured.latency_p50_s,
        latency_p99_s=measured.latency_p99_s,
        measured_seconds=spent_s,
        toolchain=toolchain(),
        hardware=hardware(),
        peak_memory_bytes=measured.peak_memory_bytes,
    )
    if measured.failed:
        return characterized, KernelRejected(**names, measurements_digest=digest, failed=measured.failed)
    return characterized, KernelValidated(**names, measurements_digest=digest)
