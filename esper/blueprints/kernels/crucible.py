"""The crucible: measure a kernel before anyone may graft it.

Belongs here: the order of the measurements and all findings as one record. Does not belong here: the measurements
themselves (``structure``, ``trials``, ``timing``) or what becomes of a kernel (``forge``).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import msgspec
import torch
from torch import fx

from esper.blueprints.ir import Blueprint, SiteSignature
from esper.blueprints.kernels.build import example_input
from esper.blueprints.kernels.kernel import kernel_seed
from esper.blueprints.kernels.structure import check_structure
from esper.blueprints.kernels.timing import SLOW_OVERHEAD_S, SLOW_RATIO, p99, peak_memory_bytes, time_kernel
from esper.blueprints.kernels.trials import DEAD_LIMIT, JUMP_LIMIT, check_trials
from esper.blueprints.moments import SAMPLES

#: What a number is held against.
LIMITS = {
    "jump_adam": JUMP_LIMIT,
    "jump_sgd": JUMP_LIMIT,
    "dead_units": DEAD_LIMIT,
    "latency_ratio": SLOW_RATIO,
    "latency_overhead_s": SLOW_OVERHEAD_S,
}


class Measurements(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured of one kernel."""

    #: Check -> passed. Only what was checked stands here.
    checks: dict[str, bool]
    #: The numbers behind the checks; the same whenever the same kernel is measured in the same environment.
    numbers: dict[str, float]
    #: Check -> why it does not apply to this kernel.
    not_applicable: dict[str, str]
    #: Name of a number -> the limit it is held against.
    limits: dict[str, float]
    #: Seconds of each forward pass of ``SAMPLES`` samples.
    latencies_s: list[float]
    latency_p50_s: float
    latency_p99_s: float
    #: The module the kernel was timed in turn with, and its seconds.
    baseline: str
    baseline_latencies_s: list[float]
    baseline_p50_s: float
    baseline_p99_s: float
    #: Medians, kernel over baseline.
    latency_ratio: float
    #: Most bytes held in tensors during a forward and backward pass, beside weights and input.
    peak_memory_bytes: int
    environment: dict[str, str | int]

    @property
    def failed(self) -> list[str]:
        """Return the names of the checks that failed, sorted."""
        return sorted(name for name, passed in self.checks.items() if not passed)

    def raw(self) -> bytes:
        """Return everything as JSON, keys sorted; a number that is not finite is written as a string."""
        plain = msgspec.to_builtins(self)
        plain["numbers"] = {
            name: value if abs(value) < float("inf") else repr(value) for name, value in self.numbers.items()
        }
        return json.dumps(plain, sort_keys=True, allow_nan=False, indent=1).encode()


def characterize(
    module: fx.GraphModule,
    blueprint: Blueprint,
    signature: SiteSignature,
    *,
    timer: Callable[[], float] = time.perf_counter,
) -> Measurements:
    """Measure a kernel's module at birth; module and global generator are left as they are.

    Args:
        module: As ``build.build`` or ``kernel.load_module`` gives it.
        blueprint: What it was built from.
        signature: Where it was resolved.
        timer: Seconds from any origin.
    """
    seed = kernel_seed(blueprint, signature) ^ 1
    found = check_structure(module, blueprint, signature, seed=seed)
    check_trials(found, module, blueprint, signature, seed=seed)
    x = example_input(signature, blueprint.kind, torch.Generator().manual_seed(seed), samples=SAMPLES)
    timing = time_kernel(module, signature, x, timer)
    found.checks["latency"] = not timing.slow
    latency_p50_s, baseline_p50_s = statistics.median(timing.latencies_s), statistics.median(timing.baseline_s)
    return Measurements(
        checks=found.checks,
        numbers=found.numbers,
        not_applicable=found.not_applicable,
        limits=LIMITS,
        latencies_s=timing.latencies_s,
        latency_p50_s=latency_p50_s,
        latency_p99_s=p99(timing.latencies_s),
        baseline=timing.baseline,
        baseline_latencies_s=timing.baseline_s,
        baseline_p50_s=baseline_p50_s,
        baseline_p99_s=p99(timing.baseline_s),
        latency_ratio=latency_p50_s / max(baseline_p50_s, 1e-9),
        peak_memory_bytes=peak_memory_bytes(module, x),
        environment={
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "device": "cpu",
            "samples": SAMPLES,
        },
    )
