"""Growth as the page shows it: lives of seeds, decisions, gains and the telemetry of sites.

Belongs here: one function per kind of thing that grew or decided about growth. Does not belong here: the run itself
and those it is compared with (``data``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from esper.cli.report import wording
from esper.cli.report.history import Decided, History, sites_of
from esper.cli.report.model import Choice, Decision, Gain, Lane, Points, Site, Span
from esper.events.decision import Action
from esper.events.lifecycle import SeedState
from esper.events.seed import AlphaMoved, CounterfactualMeasured, SeedHealthMeasured, SeedTransitioned

#: Alternatives shown of each decision.
CHOICES = 3
_QUANTITIES = (
    "zr",
    "zr_over_wgrad",
    "gradient_norm",
    "effective_rank",
    "dormant_frac",
    "signal_to_noise",
    "activation_variance",
    "dead_frac",
    "mean_correlation",
)
#: States on whose entry alpha begins to change.
_ALPHA_BEGINS = (SeedState.GRAFTING, SeedState.CULLED)
#: States that are entered as soon as alpha has reached its target.
_ALPHA_REACHED = (SeedState.STABILIZATION, SeedState.EMBARGOED)


def lanes_of(history: History, names: Mapping[str, str]) -> list[Lane]:
    """Return the life of every seed, in order of germination."""
    lives: dict[str, list[SeedTransitioned]] = {}
    for fact in history.of(SeedTransitioned):
        lives.setdefault(fact.seed_id, []).append(fact)
    lanes = []
    for seed_id, moves in lives.items():
        blueprint_id = next((move.blueprint_id for move in moves if move.blueprint_id), "")
        lanes.append(
            Lane(
                seed_id=seed_id,
                site=moves[0].site,
                blueprint=_name(blueprint_id, names),
                blueprint_id=blueprint_id,
                parameters=max(move.parameters for move in moves),
                spans=_spans(moves, history.steps),
                alpha=_alpha(history, seed_id, moves),
            )
        )
    return lanes


def _spans(moves: Sequence[SeedTransitioned], last_step: int) -> list[Span]:
    ends = [move.step for move in moves[1:]] + [last_step]
    return [
        Span(state=move.target, first=move.step, last=max(end, move.step), reason=move.reason)
        for move, end in zip(moves, ends, strict=True)
        if move.target != SeedState.DORMANT
    ]


def _alpha(history: History, seed_id: str, moves: Sequence[SeedTransitioned]) -> Points:
    """Return a seed's alpha over steps.

    Alpha is noted at the end of each epoch in which it moved, so it stood still from one note until an epoch before
    the next. Within that epoch the seed's moves tell when it began to change and when it had reached its target.
    """
    points: Points = []
    still = 0.0
    for fact in history.of(AlphaMoved):
        if fact.seed_id == seed_id:
            epoch = range(fact.step - history.started.steps_per_epoch, fact.step)
            inside = [move for move in moves if move.step in epoch]
            began = max((move.step for move in inside if move.target in _ALPHA_BEGINS), default=epoch.start)
            if began > (points[-1][0] if points else -1.0):
                points.append((float(began), still))
            reached = [move.step for move in inside if move.target in _ALPHA_REACHED and move.step >= began]
            if reached and fact.alpha == fact.target:
                points.append((float(reached[0]), fact.alpha))
            points.append((float(fact.step), fact.alpha))
            still = fact.alpha
    return points


def decision_of(each: Decided, history: History, names: Mapping[str, str]) -> Decision:
    """Return a decision with its likeliest actions; the chosen one is always among them."""
    made, requested, executed = each.made, each.requested, each.executed
    plain = [_label(action, names) for action in made.legal]
    often = Counter(plain)
    labels = [
        f"{label} ({_schedule(action)})" if often[label] > 1 and action.schedule else label
        for label, action in zip(plain, made.legal, strict=True)
    ]
    ranked = sorted(range(len(labels)), key=lambda place: (-made.probabilities[place], place))
    shown = ranked[:CHOICES]
    if made.chosen not in shown:
        shown[-1] = made.chosen
    action = made.legal[made.chosen]
    return Decision(
        number=made.decision,
        step=each.step,
        epoch=requested.epoch if requested else 0,
        kind=action.kind,
        label=labels[made.chosen],
        seed_id=action.seed_id or _seed_of(made.decision, history),
        choices=[
            Choice(label=labels[place], probability=made.probabilities[place], chosen=place == made.chosen)
            for place in shown
        ],
        legal=len(made.legal),
        masked=len(made.masked),
        executed=executed.executed if executed else None,
        outcome=_outcome(action, each),
    )


def _outcome(action: Action, each: Decided) -> str:
    if each.executed is None:
        return "waited" if action.kind == "noop" else "no outcome recorded"
    if not each.executed.executed:
        return each.executed.reason or "not executed"
    return "waited" if action.kind == "noop" else f"executed at step {each.executed.step:,}"


def _seed_of(decision: int, history: History) -> str | None:
    return next((fact.seed_id for fact in history.of(SeedTransitioned) if fact.decision == decision), None)


def _label(action: Action, names: Mapping[str, str]) -> str:
    blueprint = _name(action.blueprint_id, names) if action.blueprint_id else None
    seed_id = wording.short_id(action.seed_id, 16) if action.seed_id else None
    return wording.action(action.kind, action.site, blueprint, seed_id)


def _schedule(action: Action) -> str:
    schedule = action.schedule
    return f"{schedule.learning}, {schedule.ramp_steps:,} steps, {schedule.curve}" if schedule else ""


def _name(blueprint_id: str, names: Mapping[str, str]) -> str:
    return names.get(blueprint_id) or wording.short_id(blueprint_id) or "unknown blueprint"


def gains_of(history: History, names: Mapping[str, str]) -> list[Gain]:
    """Return every leave-one-out measurement, in order."""
    blueprints = {fact.seed_id: fact.blueprint_id for fact in history.of(SeedTransitioned) if fact.blueprint_id}
    return [
        Gain(
            seed_id=fact.seed_id,
            site=fact.site,
            blueprint=_name(blueprints.get(fact.seed_id, ""), names),
            step=fact.step,
            samples=fact.samples,
            gain=fact.gain,
            stderr=fact.gain_stderr,
        )
        for fact in history.of(CounterfactualMeasured)
    ]


def sites_shown(history: History) -> list[Site]:
    """Return every site with its telemetry, by depth."""
    probes: dict[str, list[SeedHealthMeasured]] = {}
    for fact in history.of(SeedHealthMeasured):
        probes.setdefault(fact.site, []).append(fact)
    germinated: dict[str, list[int]] = {}
    for move in history.of(SeedTransitioned):
        if move.target == SeedState.GERMINATED:
            germinated.setdefault(move.site, []).append(move.step)
    return [
        Site(
            site=site.site,
            kind=site.kind,
            depth=site.depth,
            parameters=site.parameters,
            zr=[(float(probe.step), probe.zr) for probe in probes.get(site.site, []) if probe.zr is not None],
            germinated=germinated.get(site.site, []),
            latest={name: getattr(probes[site.site][-1], name) for name in _QUANTITIES} if site.site in probes else {},
        )
        for site in sites_of(history)
    ]
