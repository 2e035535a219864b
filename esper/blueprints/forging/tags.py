"""What a kernel's stored numbers say beside those of the others: tags, risk and confidence.

Belongs here: the formulas, as pure functions of numbers. Does not belong here: where the numbers come from
(``population``) or the fact that tells the outcome (``forge``).

A tag is given where a number stands out among the validated kernels of the same kind of site: strictly below their 25th
percentile, or strictly above their 75th. While fewer than ``LEAST_COMPARED`` kernels have that number, it is held
against a stated threshold instead. Numbers that grow with the site are taken per channel or per value of its output,
so that sites of different sizes compare.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

#: Fewer kernels than this have no percentiles worth the name.
LEAST_COMPARED = 8
#: Forward passes that a full measurement takes.
FULL_RUNS = 30


class Rule(NamedTuple):
    """How a tag is given."""

    #: Name of the number, as in ``Numbers.values``.
    number: str
    #: Whether little of it earns the tag, or much.
    little: bool
    #: Threshold while too few kernels are known.
    bootstrap: float


#: The bootstrap thresholds are rounded quartiles of the shipped library at six sites: 47 kernels, on one machine.
TAGS: dict[str, Rule] = {
    #: Median latency over that of a module of the site's own kind.
    "fast": Rule("latency_ratio", True, 0.8),
    #: Weights per channel of the site.
    "small": Rule("parameters_per_channel", True, 6.0),
    #: Forward FLOPs per value of the site's output.
    "cheap": Rule("flops_per_value", True, 2.0),
    #: Bytes held in a forward and backward pass, per value of the site's output.
    "lean": Rule("memory_per_value", True, 8.0),
    #: What the first step of an optimiser adds, relative to the site's output; the larger of Adam and plain gradient.
    "gentle": Rule("jump", True, 0.003),
    #: Norm of the gradient that reaches the tail at birth: how fast the loss falls at first.
    "quick_to_learn": Rule("tail_gradient", False, 0.16),
}


class Numbers(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one kernel, in the form in which kernels compare."""

    kernel_id: str
    #: Kind and rank of its site, e.g. ``conv2d NCHW``.
    site: str
    #: Number -> value; what does not apply to a kernel is left out.
    values: dict[str, float]
    #: What has a limit -> the share of it that was used; from 1 on it is broken.
    used: dict[str, float]
    #: Forward passes that were timed.
    runs: int


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """What the numbers say."""

    tags: list[str]
    #: Threshold of each tag whose number was measured.
    thresholds: dict[str, float]
    compared_with: int
    risk: float
    confidence: float


def judge(kernel: Numbers, others: Sequence[Numbers]) -> Judgement:
    """Return tags, risk and confidence of a kernel.

    Args:
        kernel: The kernel.
        others: Validated kernels; those of other kinds of sites and the kernel itself are left out.
    """
    peers = {one.kernel_id: one for one in others if one.site == kernel.site} | {kernel.kernel_id: kernel}
    limits = thresholds(list(peers.values()))
    limits = {tag: limit for tag, limit in limits.items() if TAGS[tag].number in kernel.values}
    return Judgement(
        tags=sorted(tag for tag, limit in limits.items() if _stands_out(tag, kernel.values, limit)),
        thresholds=limits,
        compared_with=len(peers),
        risk=risk(kernel.used),
        confidence=confidence(measured=len(limits), runs=kernel.runs, compared_with=len(peers)),
    )


def thresholds(kernels: Sequence[Numbers]) -> dict[str, float]:
    """Return the threshold of each tag: a quartile of the kernels, or the stated one while they are too few."""
    found = {}
    for tag, rule in TAGS.items():
        values = [kernel.values[rule.number] for kernel in kernels if rule.number in kernel.values]
        if len(values) < LEAST_COMPARED:
            found[tag] = rule.bootstrap
        else:
            quartiles = statistics.quantiles(values, n=4, method="inclusive")
            found[tag] = quartiles[0] if rule.little else quartiles[2]
    return found


def risk(used: Mapping[str, float]) -> float:
    """Return the largest share of a limit that a kernel used, 0 to 1; 0 where it has none."""
    return min(1.0, max(0.0, *used.values())) if used else 0.0


def confidence(*, measured: int, runs: int, compared_with: int) -> float:
    """Return how far the judgement can be relied on: m/M * min(1, r/R) * n/(n + N), 0 to 1.

    Args:
        measured: m, numbers of M tags that were measured.
        runs: r, forward passes that were timed, of R a full measurement takes.
        compared_with: n, kernels it was compared with, itself included; as many as N of them make one half.
    """
    share = measured / len(TAGS)
    timed = min(1.0, runs / FULL_RUNS)
    among = compared_with / (compared_with + LEAST_COMPARED)
    return share * timed * among


def _stands_out(tag: str, values: Mapping[str, float], limit: float) -> bool:
    rule = TAGS[tag]
    return values[rule.number] < limit if rule.little else values[rule.number] > limit
