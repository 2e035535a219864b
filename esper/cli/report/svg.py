"""The few SVG elements the charts are made of. All text and attributes are escaped here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
from markupsafe import Markup, escape

from esper.cli.report.model import Points
from esper.cli.report.scales import Scale, tick_text

#: Letters of an axis name that fit left of the first tick.
_SHORT = 5


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """The size of a drawing and the margins around its plot, in pixels."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float

    @property
    def x_end(self) -> float:
        """Return the right edge of the plot."""
        return self.width - self.right

    @property
    def y_end(self) -> float:
        """Return the lower edge of the plot."""
        return self.height - self.bottom


def tag(name: str, *content: str, **attributes: str | float) -> Markup:
    """Build an element; ``class_`` gives ``class``, other underscores become dashes.

    Args:
        name: Element name.
        content: Text (escaped) or Markup (kept).
        attributes: Attributes; numbers are written with one decimal at most.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"' for key, value in attributes.items()
    )
    inner = "".join(escape(part) for part in content)
    return Markup(f"<{name}{written}>{inner}</{name}>" if inner else f"<{name}{written}/>")  # noqa: S704


def drawing(frame: Frame, label: str, parts: Iterable[Markup]) -> Markup:
    """Build the outer element, which screen readers announce by its label."""
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {_text(frame.width)} {_text(frame.height)}",
        width=frame.width,
        height=frame.height,
        role="img",
        aria_label=label,
    )


def text(x: float, y: float, content: str, class_: str = "", anchor: str = "start") -> Markup:
    """Build a line of text."""
    return tag("text", content, x=x, y=y, class_=f"t {class_}".strip(), text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Build a straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def titled(element: str, title: str, **attributes: str | float) -> Markup:
    """Build a shape with a tooltip."""
    return tag(element, tag("title", title), **attributes)


def path(points: Points, x: Scale, y: Scale, *, stepped: bool = False) -> str:
    """Return the path data of a curve; a value that is not finite leaves a gap.

    A stepped curve takes each value from the point before it, since an epoch's end tells what held during the epoch.
    """
    commands: list[str] = []
    before: float | None = None
    for step, value in points:
        if not math.isfinite(value):
            before = None
            continue
        across, up = _text(x(step)), _text(y(value))
        if before is None:
            commands.append(f"M{across} {up}")
        elif stepped:
            commands.append(f"V{up}H{across}")
        else:
            commands.append(f"L{across} {up}")
        before = value
    return "".join(commands)


def x_axis(frame: Frame, x: Scale, name: str) -> list[Markup]:
    """Draw a horizontal axis with ticks; a short name stands before them, a long one below."""
    base = frame.y_end
    parts = [line(frame.left, base, frame.x_end, base, "axis")]
    for tick in x.ticks:
        parts.append(line(x(tick), base, x(tick), base + 4, "axis"))
        parts.append(text(x(tick), base + 17, tick_text(x, tick), anchor="middle"))
    if len(name) <= _SHORT:
        parts.append(text(frame.left - 10, base + 17, name, anchor="end"))
    else:
        parts.append(text(frame.x_end, base + 34, name, anchor="end"))
    return parts


def y_axis(frame: Frame, y: Scale, *, share: bool = False) -> list[Markup]:
    """Draw horizontal grid lines with their values left of the plot; shares are written as per cent."""
    parts = []
    for tick in y.ticks:
        label = f"{tick * 100:.6g} %" if share else tick_text(y, tick)
        parts.append(line(frame.left, y(tick), frame.x_end, y(tick), "grid"))
        parts.append(text(frame.left - 8, y(tick) + 4, label, anchor="end"))
    return parts


def glyph(kind: str, x: float, y: float, title: str, *, hollow: bool = False) -> Markup:
    """Draw the sign of an action or interruption, with a tooltip on an area large enough to point at."""
    shape = _GLYPHS.get(kind, _DOT)
    return tag(
        "g",
        tag("title", title),
        tag("rect", x=-7, y=-9, width=14, height=18, class_="hit"),
        tag("path", d=shape),
        class_=f"g-{kind}{' hollow' if hollow else ''}",
        transform=f"translate({_text(x)} {_text(y)})",
    )


_DOT = "M-1.6 0a1.6 1.6 0 1 0 3.2 0a1.6 1.6 0 1 0 -3.2 0z"
_GLYPHS = {
    "germinate": "M0 -5.5L5 4L-5 4z",
    "advance": "M-4 -5L5 0L-4 5z",
    "fossilize": "M0 -6L5.5 0L0 6L-5.5 0z",
    "cull": "M-4.5 -4.5L4.5 4.5M-4.5 4.5L4.5 -4.5",
    "interruption": "M-5 -5H5V5H-5z",
}


def _text(value: str | float) -> str:
    if isinstance(value, str):
        return value
    written = f"{value:.1f}".rstrip("0").rstrip(".")
    return "0" if written == "-0" else written
