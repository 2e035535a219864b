"""The numbers of all validated kernels, from the log and the raw measurements it points to.

Belongs here: gathering numbers in the form in which kernels compare. Does not belong here: comparing them (``tags``).
"""

from __future__ import annotations

import math

from esper.artifacts.store import ArtifactStore
from esper.blueprints.forging.history import BlueprintHistory, KernelHistory, histories
from esper.blueprints.forging.measuring import RawMeasurements, read_measurements
from esper.blueprints.forging.tags import Numbers
from esper.blueprints.ir import SiteSignature
from esper.errors import ArtifactDamaged, ArtifactMissing, KernelRefused
from esper.oona.port import EventLog

#: Most kernels that are compared: the newest of each kind of site.
MOST_COMPARED = 512


class Measured(Numbers, frozen=True, kw_only=True):
    """The numbers of a validated kernel, and whose they are."""

    blueprint_id: str
    history: KernelHistory


class Population:
    """Validated kernels and their numbers; raw measurements are read once."""

    def __init__(self, log: EventLog, store: ArtifactStore) -> None:
        """Read from a log and a store."""
        self._log = log
        self._store = store
        self._raw: dict[bytes, RawMeasurements | None] = {}

    def read(self) -> list[Measured]:
        """Return the numbers of every validated kernel whose measurements are in the store, by kind of site."""
        found: dict[str, list[Measured]] = {}
        for history in histories(self._log):
            for kernel in history.kernels.values():
                measured = self._measured(history, kernel)
                if measured is not None:
                    found.setdefault(measured.site, []).append(measured)
        return [one for kernels in found.values() for one in kernels[-MOST_COMPARED:]]

    def _measured(self, history: BlueprintHistory, kernel: KernelHistory) -> Measured | None:
        if kernel.verdict is None or not kernel.verdict.validated:
            return None
        raw = self._measurements(kernel.verdict.measurements_digest)
        try:
            site = kernel.signature()
        except KernelRefused:
            return None  # a fact of another program's making; measuring it is what finds that out
        if raw is None:
            return None
        return Measured(
            kernel_id=kernel.compiled.kernel_id,
            blueprint_id=history.blueprint_id,
            history=kernel,
            site=f"{site.kind} {site.rank}",
            values=values_of(raw, site, parameters=kernel.compiled.parameters, flops=kernel.compiled.flops),
            used=used_of(raw),
            runs=len(raw.latencies_s),
        )

    def _measurements(self, digest: bytes) -> RawMeasurements | None:
        """Return raw measurements; None where the store lost them, so that nothing can be said from them."""
        if digest not in self._raw:
            try:
                self._raw[digest] = read_measurements(self._store.get(digest))
            except (ArtifactMissing, ArtifactDamaged):
                self._raw[digest] = None
        return self._raw[digest]


def values_of(raw: RawMeasurements, site: SiteSignature, *, parameters: int, flops: int) -> dict[str, float]:
    """Return the numbers that tags are judged by; see ``tags.TAGS``."""
    numbers = raw.values()
    samples = float(raw.environment.get("samples", 1))
    outputs = site.channels * math.prod(site.positions)
    jumps = [numbers[name] for name in ("jump_adam", "jump_sgd") if name in numbers]
    found = {
        "latency_ratio": raw.latency_ratio,
        "parameters_per_channel": parameters / site.channels,
        "flops_per_value": flops / outputs,
        "memory_per_value": None if raw.peak_memory_bytes is None else raw.peak_memory_bytes / (samples * outputs),
        "jump": max(jumps, default=None),
        "tail_gradient": numbers.get("tail_gradient"),
    }
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


def used_of(raw: RawMeasurements) -> dict[str, float]:
    """Return the share of each limit that a kernel used.

    The latency limit is one on both numbers, a ratio to the baseline and seconds on top, and so is the share.
    """
    numbers, limits = raw.values(), raw.limits
    used = {name: numbers[name] / limit for name, limit in limits.items() if name in numbers and limit > 0}
    ratio, overhead_s = limits.get("latency_ratio", 0.0), limits.get("latency_overhead_s", 0.0)
    if raw.latency_p50_s is not None and raw.baseline_p50_s is not None:
        allowed_s = ratio * raw.baseline_p50_s + overhead_s
        if allowed_s > 0:
            used["latency"] = raw.latency_p50_s / allowed_s
    return {name: math.inf if math.isnan(share) else share for name, share in used.items()}
