"""Curves: values of several runs over steps, the small multiples of sites, and gains with their intervals.

Belongs here: what each chart draws and where its labels go. Does not belong here: elements (``svg``), axes
(``scales``), colours (the template's style sheet) or the swim-lanes (``lanes``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from markupsafe import Markup

from esper.cli.report import wording
from esper.cli.report.model import Decision, Gain, Points, Site
from esper.cli.report.scales import Scale, fitting, linear
from esper.cli.report.svg import Frame, drawing, glyph, line, path, tag, text, titled, x_axis, y_axis

#: Most points a curve is drawn with; more steps are averaged in windows.
CURVE_POINTS = 400
#: Most dots with tooltips on a curve.
CURVE_DOTS = 60
#: Standard errors to each side of a 95 % interval.
Z95 = 1.96


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a chart."""

    label: str
    #: Role of the run, which decides the colour.
    role: str
    points: Points
    #: Thin and pale, without label and dots: the noisy companion of a main curve.
    faint: bool = False
    stepped: bool = False


def windows(points: Points, count: int) -> tuple[Points, int]:
    """Average a series over equal windows of consecutive values, so that at most ``count`` are left.

    Returns:
        The means, each at its window's last step, and the number of values in a window. A window that holds a value
        that is not finite is NaN: a mean would hide it.
    """
    width = max(1, math.ceil(len(points) / count))
    if width == 1:
        return points, 1
    means = []
    for start in range(0, len(points), width):
        part = points[start : start + width]
        mean = math.fsum(value for _, value in part) / len(part) if all(_finite(part)) else math.nan
        means.append((part[-1][0], mean))
    return means, width


def curves(
    lines: Sequence[Curve],
    frame: Frame,
    *,
    label: str,
    last_step: int,
    unit: str,
    share: bool = False,
    zero: bool = False,
    may_log: bool = False,
    decisions: Sequence[Decision] = (),
) -> Markup:
    """Draw curves over steps.

    Args:
        lines: Curves; later ones are drawn on top.
        frame: Size and margins. A right margin of 90 or more takes the labels of the curves.
        label: What the chart shows, for screen readers.
        last_step: End of the horizontal axis.
        unit: What tooltips write after a value.
        share: Values are shares, written as per cent.
        zero: Let the vertical axis begin at zero.
        may_log: Allow a logarithmic axis.
        decisions: Decisions to mark by a vertical rule; those that changed nothing are left out.
    """
    x = step_scale(frame, last_step)
    values = [value for curve in lines for _, value in curve.points]
    y = fitting(values, frame.y_end, frame.top, spacing=42, zero=zero, may_log=may_log)
    if share:
        y = msgspec.structs.replace(y, high=min(y.high, 1.0), ticks=tuple(t for t in y.ticks if t <= 1.0))
    parts = [*y_axis(frame, y, share=share), *x_axis(frame, x, "step"), *_rules(frame, x, decisions)]
    for curve in lines:
        parts.extend(_curve(curve, x, y, unit, frame.top, share=share))
    if frame.right >= 90:
        parts.extend(_end_labels([curve for curve in lines if not curve.faint], x, y, frame))
    return drawing(frame, label, parts)


def is_log(values: Sequence[float]) -> bool:
    """Tell whether ``curves`` draws these values on a logarithmic axis when it may."""
    return fitting(values, 100, 0, spacing=40, zero=True, may_log=True).log


def step_scale(frame: Frame, last_step: int) -> Scale:
    """Build the horizontal axis that all charts over steps share."""
    return linear(0, max(1, last_step), frame.left, frame.x_end, spacing=90, grow=False)


def site_chart(site: Site, y: Scale, frame: Frame, last_step: int) -> Markup:
    """Draw ``zr`` of one site; ``y`` is shared by all sites so that they can be compared."""
    x = linear(0, max(1, last_step), frame.left, frame.x_end, spacing=110, grow=False)
    x = msgspec.structs.replace(x, ticks=(0.0, float(max(1, last_step))))
    parts = [*y_axis(frame, y), line(frame.left, frame.y_end, frame.x_end, frame.y_end, "axis")]
    parts.append(text(frame.left, frame.y_end + 15, "0"))
    parts.append(text(frame.x_end, frame.y_end + 15, f"step {last_step:,}", anchor="end"))
    for step in site.germinated:
        parts.append(line(x(step), frame.top, x(step), frame.y_end, "rule g-germinate"))
        parts.append(glyph("germinate", x(step), frame.top - 4, f"a seed germinated here at step {step:,}"))
    parts.append(tag("path", d=path(site.zr, x, y), class_="curve l-grown"))
    parts.extend(
        titled(
            "circle",
            f"step {step:,.0f}: zr {wording.number(value)}",
            cx=x(step),
            cy=y(value),
            r=6,
            class_="hit",
        )
        for step, value in _thinned(site.zr)
    )
    return drawing(frame, f"zr of site {site.site} over steps", parts)


def gain_chart(gains: Sequence[Gain], width: float, *, narrow: bool) -> Markup:
    """Draw the latest gain of each seed with its 95 % interval, and earlier measurements as pale dots."""
    rows: dict[str, list[Gain]] = {}
    for gain in gains:
        rows.setdefault(gain.seed_id, []).append(gain)
    height = 46.0 if narrow else 36.0
    frame = Frame(
        width=width,
        height=len(rows) * height + 56,
        left=12 if narrow else 288,
        right=12 if narrow else 176,
        top=6,
        bottom=44,
    )
    x = _gain_scale(gains, frame)
    parts = [line(x(tick), frame.top, x(tick), frame.y_end, "grid") for tick in x.ticks]
    parts.append(line(x(0.0), frame.top, x(0.0), frame.y_end, "zero"))
    parts.extend(x_axis(frame, x, "change of the held-out loss if the seed were taken out"))
    for place, measured in enumerate(rows.values()):
        latest, y = measured[-1], frame.top + place * height
        value = f"{wording.signed(latest.gain, 4)} ± {Z95 * latest.stderr:.4f}"
        if narrow:
            parts.append(_row_head(frame.left, y + 14, latest))
            parts.append(text(frame.x_end, y + 14, value, "strong", "end"))
            parts.extend(_gain_row(measured, x, y + 29))
        else:
            parts.append(_row_head(12, y + 22, latest))
            parts.append(text(frame.x_end + 28, y + 22, value, "strong"))
            parts.extend(_gain_row(measured, x, y + 18))
    return drawing(frame, "What each seed contributes, with 95 % intervals", parts)


def _gain_scale(gains: Sequence[Gain], frame: Frame) -> Scale:
    ends = [gain.gain + side * Z95 * gain.stderr for gain in gains for side in (-1, 1)]
    finite = [end for end in ends if math.isfinite(end)] or [0.0]
    return linear(min(0.0, *finite), max(0.0, *finite), frame.left, frame.x_end, spacing=100)


def _gain_row(measured: Sequence[Gain], x: Scale, y: float) -> list[Markup]:
    parts = []
    for gain in measured:
        if not math.isfinite(gain.gain):
            continue
        latest = gain is measured[-1]
        title = (
            f"step {gain.step:,}: {wording.signed(gain.gain, 5)} ± {Z95 * gain.stderr:.5f} (95 %),"
            f" {gain.samples:,} paired samples"
        )
        if latest:
            low, high = x(gain.gain - Z95 * gain.stderr), x(gain.gain + Z95 * gain.stderr)
            parts.append(line(low, y, high, y, "whisker"))
        kind = "gain" if latest else "gain earlier"
        parts.append(titled("circle", title, cx=x(gain.gain), cy=y, r=5 if latest else 3, class_=kind))
    return parts


def _row_head(x: float, y: float, gain: Gain) -> Markup:
    name = tag("tspan", gain.blueprint, class_="strong")
    return tag("text", tag("title", f"seed {gain.seed_id}"), name, f"  at {gain.site}", x=x, y=y, class_="t")


def _rules(frame: Frame, x: Scale, decisions: Sequence[Decision]) -> list[Markup]:
    parts = []
    for decision in decisions:
        if decision.kind != "noop" and decision.executed is not False:
            across = x(decision.step)
            parts.append(line(across, frame.top, across, frame.y_end, f"rule g-{decision.kind}"))
            parts.append(glyph(decision.kind, across, frame.top - 8, f"step {decision.step:,}: {decision.label}"))
    return parts


def _curve(curve: Curve, x: Scale, y: Scale, unit: str, top: float, *, share: bool) -> list[Markup]:
    kind = f"curve l-{curve.role}{' faint' if curve.faint else ''}"
    parts = [tag("path", d=path(curve.points, x, y, stepped=curve.stepped), class_=kind)]
    broken = [step for step, value in curve.points if not math.isfinite(value)]
    parts.extend(
        glyph("cull", x(step), top + 6, f"{curve.label}: not finite at step {step:,.0f}")
        for step in broken[:CURVE_DOTS]
    )
    if not curve.faint:
        for step, value in _thinned(curve.points):
            written = wording.percent(value, 2) if share else f"{value:,.6g} {unit}".rstrip()
            title = f"{curve.label}, step {step:,.0f}: {written}"
            parts.append(titled("circle", title, cx=x(step), cy=y(value), r=6, class_="hit"))
    return parts


def _end_labels(lines: Sequence[Curve], x: Scale, y: Scale, frame: Frame) -> list[Markup]:
    """Write each curve's name beside its end, moved apart where ends are close."""
    ends = []
    for curve in lines:
        finite = [(step, value) for step, value in curve.points if math.isfinite(value)]
        if finite:
            ends.append((y(finite[-1][1]), x(finite[-1][0]), curve))
    ends.sort(key=lambda end: end[0])
    places = _apart([end[0] for end in ends], 15.0, frame.top + 4, frame.y_end - 2)
    parts = []
    for place, (up, across, curve) in zip(places, ends, strict=True):
        parts.append(tag("circle", cx=across, cy=up, r=3, class_=f"end l-{curve.role}"))
        parts.append(text(across + 10, place + 4, curve.label, f"strong f-{curve.role}"))
    return parts


def _apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move sorted places apart to at least ``gap``, keeping them between ``low`` and ``high`` where they fit."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, low, moved[-1] + gap) if moved else max(place, low))
    limit = high
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


def _thinned(points: Points) -> Points:
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    stride = max(1, math.ceil(len(finite) / CURVE_DOTS))
    return finite[::-1][::stride][::-1]


def _finite(points: Points) -> list[bool]:
    return [math.isfinite(value) for _, value in points]
