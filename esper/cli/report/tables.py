"""The numbers behind the drawings as plain tables, for screen readers and for copying.

Belongs here: rows of text. Does not belong here: markup.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from esper.cli.report import wording as w
from esper.cli.report.charts import Z95
from esper.cli.report.model import Arm, Decision, Gain, Lane, Points, Site

#: Most rows of the table of epochs; more are thinned, the last one always kept.
EPOCH_ROWS = 60


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """Heads and rows of text."""

    heads: list[str]
    rows: list[list[str]]


def epochs(arms: Sequence[Arm]) -> Table:
    """Tell loss and accuracy of every run at the ends of its epochs."""
    heads = ["Step"]
    columns: list[dict[float, str]] = []
    for arm in arms:
        heads += [f"Train loss, {arm.label}", f"Validation loss, {arm.label}", f"Validation accuracy, {arm.label}"]
        ends = sorted({step for step, _ in (*arm.validation_loss, *arm.parameters_over_time)})
        columns.append({step: w.number(value) for step, value in _epoch_means(arm.train_loss, ends)})
        columns.append({step: w.number(value) for step, value in arm.validation_loss})
        columns.append({step: w.percent(value, 2) for step, value in arm.validation_accuracy})
    steps = sorted({step for column in columns for step in column})
    stride = max(1, math.ceil(len(steps) / EPOCH_ROWS))
    kept = steps[::-1][::stride][::-1]
    rows = [[w.integer(int(step)), *(column.get(step, w.NOTHING) for column in columns)] for step in kept]
    return Table(heads=heads, rows=rows)


def lives(lanes: Sequence[Lane]) -> Table:
    """Tell every stretch of every seed's life."""
    rows = [
        [
            w.short_id(lane.seed_id),
            lane.blueprint,
            lane.site,
            w.state(span.state),
            w.integer(span.first),
            w.integer(span.last),
            span.reason,
        ]
        for lane in lanes
        for span in lane.spans
    ]
    return Table(heads=["Seed", "Blueprint", "Site", "State", "From step", "To step", "Why"], rows=rows)


def gains(measured: Sequence[Gain]) -> Table:
    """Tell every leave-one-out measurement with its interval."""
    rows = [
        [
            w.short_id(gain.seed_id),
            gain.blueprint,
            gain.site,
            w.integer(gain.step),
            w.signed(gain.gain, 5),
            f"{w.signed(gain.gain - Z95 * gain.stderr, 5)} to {w.signed(gain.gain + Z95 * gain.stderr, 5)}",
            w.integer(gain.samples),
        ]
        for gain in measured
    ]
    heads = ["Seed", "Blueprint", "Site", "Step", "Gain in loss", "95 % interval", "Paired samples"]
    return Table(heads=heads, rows=rows)


def sites(found: Sequence[Site]) -> Table:
    """Tell the latest probe of every site."""
    quantities = sorted({name for site in found for name in site.latest})
    rows = [
        [site.site, site.kind, str(site.depth), w.integer(site.parameters)]
        + [w.number(site.latest.get(name), 3) for name in quantities]
        for site in found
    ]
    return Table(heads=["Site", "Kind", "Depth", "Parameters", *(w.state(name) for name in quantities)], rows=rows)


def waits(decisions: Sequence[Decision]) -> Table:
    """Tell the decisions that let things be."""
    rows = [
        [
            str(decision.number),
            w.integer(decision.step),
            *(w.percent(choice.probability) for choice in decision.choices if choice.chosen),
            str(decision.legal),
        ]
        for decision in decisions
    ]
    return Table(heads=["No.", "Step", "Probability of waiting", "Legal actions"], rows=rows)


def mapping(values: Mapping[str, Any]) -> Table:
    """Tell names and values; what is nested is written as JSON."""
    rows = [
        [name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)]
        for name, value in sorted(values.items())
    ]
    return Table(heads=["Name", "Value"], rows=rows)


def _epoch_means(points: Points, ends: Sequence[float]) -> Points:
    """Average step losses between the ends of epochs; an epoch with a loss that is not finite gives NaN."""
    means: Points = []
    place = 0
    for end in ends:
        values = []
        while place < len(points) and points[place][0] <= end:
            values.append(points[place][1])
            place += 1
        if values:
            means.append((end, math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan))
    return means
