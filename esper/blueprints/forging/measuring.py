"""Measuring a kernel at the workbench: raw measurements in the form in which they are kept, and read again.

Belongs here: what is recorded of a measurement, also of one that never ended. Does not belong here: what is measured
(``crucible``), the child that does it (``workbench``), or which facts are written (``forge``). Torch is not imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec

from esper.blueprints.bench.workbench import Limits, Workbench
from esper.blueprints.forging.jobs import hardware, toolchain
from esper.errors import ArtifactDamaged, WorkFailed

#: How often a measurement is tried whose process died: the system may have killed it for reasons of its own.
_TRIES = 2


class RawMeasurements(msgspec.Struct, frozen=True, kw_only=True):
    """Raw measurements as they are kept; what older records lack is empty or None."""

    checks: dict[str, bool]
    numbers: dict[str, float | str] = {}
    limits: dict[str, float] = {}
    latencies_s: list[float] = []
    latency_p50_s: float | None = None
    latency_p99_s: float | None = None
    baseline_p50_s: float | None = None
    latency_ratio: float | None = None
    peak_memory_bytes: int | None = None
    toolchain: str | None = None
    hardware: str | None = None
    environment: dict[str, str | int] = {}
    #: What measuring took: wall_s, cpu_s and peak_memory_bytes; only attempts where it did not end.
    work: dict[str, float] = {}

    @property
    def failed(self) -> list[str]:
        """Return the names of the checks that failed, sorted."""
        return sorted(name for name, passed in self.checks.items() if not passed)

    def values(self) -> dict[str, float]:
        """Return the numbers; those that are not finite are kept as text."""
        return {name: float(value) for name, value in self.numbers.items()}


def read_measurements(data: bytes) -> RawMeasurements:
    """Return stored raw measurements.

    Raises:
        ArtifactDamaged: The bytes are none.
    """
    try:
        found = msgspec.json.decode(data, type=RawMeasurements)
        found.values()
    except (msgspec.DecodeError, ValueError) as error:
        raise ArtifactDamaged(
            f"stored measurements cannot be read: {error}", hint="measure the kernel again"
        ) from error
    return found


def measure_at(
    bench: Workbench, kernel: bytes, *, limits: Limits | None = None, stop: Callable[[], bool] | None = None
) -> bytes:
    """Measure a kernel in the workbench's child and return the raw measurements, as they are kept.

    A measurement that breaks a limit is one too: its only check, named after the limit, failed.

    Args:
        bench: Where it is done.
        kernel: The kernel's bytes.
        limits: Of the measurement; those of the bench when left out.
        stop: Asked all the while whether to end early.

    Raises:
        WorkFailed: It was stopped.
        KernelRefused: The bytes are no kernel.
        BlueprintInvalid: The blueprint inside breaks a rule.
        DependencyUnavailable: No child can be started.
    """
    limits = limits or bench.limits
    for attempt in range(1, _TRIES + 1):
        try:
            done = bench.run("measure", kernel, limits=limits, stop=stop)
        except WorkFailed as error:
            if error.reason == "stopped":
                raise
            if error.reason == "died" and attempt < _TRIES:
                continue
            broken: dict[str, Any] = {
                "checks": {error.reason: False},
                "message": error.message,
                "limits": {"wall_s": limits.wall_s, "memory_bytes": limits.memory_bytes},
            }
            return _kept(broken, {"attempts": attempt})
        work = {"wall_s": done.wall_s, "cpu_s": done.cpu_s, "peak_memory_bytes": done.peak_memory_bytes}
        return _kept(json.loads(done.result), work)
    raise WorkFailed("no attempt was made", reason="error")


def _kept(found: dict[str, Any], work: dict[str, Any]) -> bytes:
    """Return measurements with what they were made with, and what making them took."""
    found |= {"toolchain": toolchain(), "hardware": hardware(), "work": work}
    return json.dumps(found, sort_keys=True, allow_nan=False, indent=1).encode()
