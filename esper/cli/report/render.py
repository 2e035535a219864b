"""The page: what the template needs, put together from a report.

Belongs here: which drawings there are and how large. Does not belong here: text (``sentences``) or reading the log
(``data``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup

from esper.cli.report import sentences, tables
from esper.cli.report import wording as w
from esper.cli.report.charts import CURVE_POINTS, Curve, curves, gain_chart, is_log, site_chart, windows
from esper.cli.report.lanes import swim_lanes
from esper.cli.report.model import Decision, Report
from esper.cli.report.scales import fitting
from esper.cli.report.svg import Frame, drawing, glyph
from esper.events.lifecycle import SeedState

WIDE = 1072.0
HALF = 520.0
NARROW = 368.0
#: Most sites drawn; the rest are in the table only.
SITE_CHARTS = 24


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One chart drawn twice, for wide and for narrow screens, so that its text stays readable on both."""

    wide: Markup
    narrow: Markup


def render(report: Report) -> str:
    """Return the page: one HTML document that loads nothing."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("esper.cli", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = resources.files("esper.cli.report").joinpath("style.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        report=report,
        w=w,
        # The style sheet is this package's own file, never data of a run.
        style=Markup(style),  # noqa: S704
        summary=sentences.summary(report),
        tiles=sentences.tiles(report),
        comparison=[sentences.comparison(arm, report.grown) for arm in report.arms],
        **_training(report),
        **_seeds(report),
        **_cost(report),
        **_sites(report),
        **_decisions(report),
        provenance=sentences.provenance(report),
        packages=tables.mapping(report.packages),
        environment=tables.mapping(report.environment),
        config=tables.mapping(report.config),
        commands=sentences.commands(report),
    )


def _training(report: Report) -> dict[str, Any]:
    behind = report.arms[::-1]
    smoothed = [(arm, *windows(arm.train_loss, CURVE_POINTS)) for arm in behind]
    width = max((width for _, _, width in smoothed), default=1)
    loss = [Curve(label=f"train, {arm.label}", role=arm.role, points=means, faint=True) for arm, means, _ in smoothed]
    loss += [Curve(label=arm.label, role=arm.role, points=arm.validation_loss) for arm in behind]
    accuracy = [Curve(label=arm.label, role=arm.role, points=arm.validation_accuracy) for arm in behind]
    marks = " Dotted rules mark the decisions that changed the network." if _acts(report.decisions) else ""
    mean = f", averaged over windows of {width} steps" if width > 1 else ""
    last = _last_step(report)
    return {
        "loss_caption": f"Strong lines: validation. Pale lines: training loss of each step{mean}.{marks}",
        "loss_log": is_log([value for curve in loss for _, value in curve.points]),
        "loss": _both(
            lambda frame: curves(
                loss,
                frame,
                label="Loss over steps",
                last_step=last,
                unit="",
                zero=True,
                may_log=True,
                decisions=report.decisions,
            ),
            height=320,
        ),
        "accuracy": _both(
            lambda frame: curves(
                accuracy,
                frame,
                label="Validation accuracy over steps",
                last_step=last,
                unit="",
                share=True,
                decisions=report.decisions,
            ),
            height=280,
        )
        if any(curve.points for curve in accuracy)
        else None,
        "epochs": tables.epochs(report.arms),
    }


def _seeds(report: Report) -> dict[str, Any]:
    present = {span.state for lane in report.lanes for span in lane.spans if span.last > span.first}
    kinds = {decision.kind for decision in report.decisions}
    signs = [
        {"name": name, "svg": _sign(kind)}
        for kind, name in (
            ("germinate", "germinate"),
            ("advance", "advance"),
            ("fossilize", "fossilize"),
            ("cull", "cull"),
            ("noop", "wait"),
        )
        if kind in kinds
    ]
    if any(decision.executed is False for decision in report.decisions):
        signs.append({"name": "hollow: not executed", "svg": _sign("germinate", hollow=True)})
    if report.moments:
        signs.append({"name": "interruption", "svg": _sign("interruption")})
    shown = report.lanes or report.decisions or report.moments
    return {
        "states": [state.value for state in SeedState if state in present],
        "signs": signs,
        "lanes": _both(
            lambda frame: swim_lanes(report.lanes, report.decisions, report.moments, frame, _last_step(report)),
            height=0,
        )
        if shown
        else None,
        "lives": tables.lives(report.lanes),
        "gains": Figure(
            wide=gain_chart(report.gains, WIDE, narrow=False), narrow=gain_chart(report.gains, NARROW, narrow=True)
        )
        if report.gains
        else None,
        "gain_table": tables.gains(report.gains),
    }


def _cost(report: Report) -> dict[str, Any]:
    def draw(name: str, label: str, unit: str) -> Figure:
        lines = [
            Curve(label=arm.label, role=arm.role, points=getattr(arm, name), stepped=name == "parameters_over_time")
            for arm in report.arms[::-1]
        ]

        def at(width: float) -> Markup:
            frame = Frame(width=width, height=230, left=52, right=14, top=18, bottom=40)
            return curves(lines, frame, label=label, last_step=_last_step(report), unit=unit, zero=True)

        return Figure(wide=at(HALF), narrow=at(NARROW))

    return {
        "parameters": draw("parameters_over_time", "Parameters over steps", "parameters"),
        "flops": draw("flops_over_time", "Training FLOPs over steps", "FLOP"),
    }


def _sites(report: Report) -> dict[str, Any]:
    measured = [site for site in report.sites if any(site.zr)]
    shown = measured
    caption = "All sites share one vertical axis; triangles mark where a seed germinated."
    if len(measured) > SITE_CHARTS:
        largest = sorted(measured, key=lambda site: -max(value for _, value in site.zr))[:SITE_CHARTS]
        shown = [site for site in measured if site in largest]
        caption += f" The {SITE_CHARTS} of {len(measured)} sites with the largest zr are drawn."
    frame = Frame(width=256, height=132, left=46, right=8, top=16, bottom=24)
    values = [value for site in shown for _, value in site.zr]
    y = fitting(values, frame.y_end, frame.top, spacing=36, zero=True, may_log=True)
    return {
        "sites": [{"site": site, "svg": site_chart(site, y, frame, _last_step(report))} for site in shown],
        "site_caption": caption + (" The axis is logarithmic." if y.log else ""),
        "site_table": tables.sites(report.sites),
    }


def _decisions(report: Report) -> dict[str, Any]:
    acts = _acts(report.decisions)
    waits = [decision for decision in report.decisions if decision.kind == "noop"]
    count = len(report.decisions)
    return {
        "acts": acts,
        "waits": tables.waits(waits),
        "decision_caption": (
            f"The policy was asked {count:,} time{'s' if count != 1 else ''}: it acted {len(acts):,} and waited"
            f" {len(waits):,}. Each line shows the probabilities the choice was drawn from."
        ),
    }


def _acts(decisions: Sequence[Decision]) -> list[Decision]:
    return [decision for decision in decisions if decision.kind != "noop"]


def _last_step(report: Report) -> int:
    """Return where the shared axis ends: the planned steps, or what any run in the comparison did beyond them."""
    return max(report.total_steps, *(arm.steps for arm in report.arms))


def _both(draw: Callable[[Frame], Markup], *, height: float) -> Figure:
    wide = Frame(width=WIDE, height=height, left=52, right=204, top=22, bottom=40)
    narrow = Frame(width=NARROW, height=min(height, 260.0), left=44, right=10, top=22, bottom=40)
    return Figure(wide=draw(wide), narrow=draw(narrow))


def _sign(kind: str, *, hollow: bool = False) -> Markup:
    frame = Frame(width=18, height=18, left=0, right=0, top=0, bottom=0)
    return drawing(frame, kind, [glyph(kind, 9, 9, kind, hollow=hollow)])
