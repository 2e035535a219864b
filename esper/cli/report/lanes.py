"""Swim-lanes: the life of every seed over steps, with the decisions that shaped it above.

Belongs here: the one drawing of lives. Does not belong here: curves (``charts``).
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from esper.cli.report import wording
from esper.cli.report.charts import step_scale
from esper.cli.report.model import Decision, Lane, Moment, Points, Span
from esper.cli.report.scales import Scale
from esper.cli.report.svg import Frame, drawing, glyph, line, tag, text, titled, x_axis

_ROW = 52.0
_BAR = 22.0
_SIGNS = 40.0


def swim_lanes(
    lanes: Sequence[Lane],
    decisions: Sequence[Decision],
    moments: Sequence[Moment],
    frame: Frame,
    last_step: int,
) -> Markup:
    """Draw one lane per seed under a row of decisions and one of interruptions, where there are any.

    Args:
        lanes: Seeds in order of germination.
        decisions: All decisions; those that let things be are drawn as dots.
        moments: Rollbacks, resumptions, faults and trips of the governor.
        frame: Width and side margins; the height follows from the rows.
        last_step: End of the axis.
    """
    narrow = frame.right < 90
    below = frame.top + _SIGNS * bool(decisions)
    head = below + _SIGNS * bool(moments)
    bottom = head + _ROW * len(lanes)
    sized = Frame(
        width=frame.width,
        height=bottom + frame.bottom,
        left=frame.left,
        right=frame.right,
        top=frame.top,
        bottom=frame.bottom,
    )
    x = step_scale(sized, last_step)
    tops = {lane.seed_id: head + place * _ROW for place, lane in enumerate(lanes)}
    parts = [line(x(tick), frame.top, x(tick), bottom, "grid") for tick in x.ticks]
    parts.extend(x_axis(sized, x, "step"))
    if decisions:
        parts.append(text(sized.left, frame.top + 10, "Decisions", "strong"))
        parts.extend(_decision(each, x, frame.top + 24, tops) for each in decisions)
    if moments:
        parts.append(text(sized.left, below + 10, "Interruptions", "strong"))
        parts.extend(
            glyph("interruption", x(each.step), below + 24, f"step {each.step:,}: {each.text}") for each in moments
        )
    for lane in lanes:
        parts.extend(_lane(lane, x, tops[lane.seed_id], sized, narrow=narrow))
    return drawing(sized, f"Lives of {len(lanes)} seeds over {last_step:,} steps", parts)


def alpha_at(alpha: Points, step: float) -> float:
    """Return alpha between its known points, linearly; 0 before the first, the last one after it."""
    before: tuple[float, float] | None = None
    for at, value in alpha:
        if at >= step:
            if before is None:
                return value if at == step else 0.0
            return before[1] + (value - before[1]) * ((step - before[0]) / (at - before[0]) if at > before[0] else 1.0)
        before = (at, value)
    return before[1] if before else 0.0


def _decision(decision: Decision, x: Scale, y: float, tops: dict[str, float]) -> Markup:
    across = x(decision.step)
    chosen = next((choice.probability for choice in decision.choices if choice.chosen), None)
    title = (
        f"decision {decision.number}, step {decision.step:,}: {decision.label}"
        f" (probability {wording.percent(chosen)}; {decision.outcome})"
    )
    sign = glyph(decision.kind, across, y, title, hollow=decision.executed is False)
    lane_top = tops.get(decision.seed_id or "")
    if decision.kind == "noop" or lane_top is None:
        return sign
    thread = line(across, y + 8, across, lane_top + 20, f"rule g-{decision.kind}")
    return Markup("").join((thread, sign))


def _lane(lane: Lane, x: Scale, top: float, frame: Frame, *, narrow: bool) -> list[Markup]:
    bar = top + 20
    parts = [
        tag(
            "text",
            tag("title", f"seed {lane.seed_id}, blueprint {lane.blueprint_id}"),
            tag("tspan", lane.blueprint, class_="strong"),
            f"  at {lane.site} · {lane.parameters:,} parameters",
            x=frame.left,
            y=top + 13,
            class_="t",
        ),
        line(frame.left, bar + _BAR, frame.x_end, bar + _BAR, "grid"),
    ]
    for span in lane.spans:
        parts.extend(_span(span, lane, x, bar))
    if not narrow:
        parts.append(text(frame.x_end + 10, bar + 15, wording.state(lane.outcome), "strong"))
    return parts


def _span(span: Span, lane: Lane, x: Scale, bar: float) -> list[Markup]:
    start, end = x(span.first), x(span.last)
    width = end - start
    if width < 0.5:
        return []
    inner = [point for point in lane.alpha if span.first < point[0] < span.last]
    steps = [(span.first, alpha_at(lane.alpha, span.first)), *inner, (span.last, alpha_at(lane.alpha, span.last))]
    ridge = "".join(f"L{x(step):.1f} {bar + _BAR * (1 - alpha):.1f}" for step, alpha in steps)
    area = f"M{start:.1f} {bar + _BAR:.1f}{ridge}L{end:.1f} {bar + _BAR:.1f}z"
    name = wording.state(span.state)
    title = f"{name}: steps {span.first:,} to {span.last:,}" + (f"; {span.reason}" if span.reason else "")
    parts = [
        titled("rect", title, x=start, y=bar, width=width, height=_BAR, class_=f"span s-{span.state}"),
        tag("path", d=area, class_=f"alpha s-{span.state}"),
    ]
    if width > 7 * len(name) + 12:
        parts.append(text(start + 7, bar + 15, name, "inside"))
    return parts
