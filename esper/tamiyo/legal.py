"""What may be done at a decision, and why the rest may not.

Belongs here: the canonical list of legal actions, the reason codes of the masked ones, and the limits on growth. Does
not belong here: what is wise (the policies) or whether the host really takes an action (``esper.kasmina``). Moves of
seeds are judged by the lifecycle table alone, so an action the table forbids is never in the list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

from esper.errors import ConfigError
from esper.events.decision import Action, MaskedAction, Observation, Schedule, SeedObservation, SiteObservation
from esper.events.lifecycle import ATTACHED, LIVING, SeedState, Trigger, targets


class ActionKind(StrEnum):
    """What the controller can do, in canonical order."""

    NOOP = "noop"
    GERMINATE = "germinate"
    ADVANCE = "advance"
    CULL = "cull"
    FOSSILIZE = "fossilize"


class Reason(StrEnum):
    """Why an action is masked. Sites closed by Kasmina carry Kasmina's own reason instead."""

    #: The growth-free end of the run has begun.
    GROWTH_OVER = "growth_over"
    #: Too few steps are left for a new seed to be ramped up, settled and judged.
    TOO_LATE = "too_late"
    #: As many seeds as allowed were germinated.
    SEEDS_SPENT = "seeds_spent"
    #: The last germination is too near.
    TOO_SOON = "too_soon"
    #: A seed lives at the site.
    OCCUPIED = "occupied"
    #: A seed came to its end at the site and the site is not yet free.
    EMBARGOED = "embargoed"
    #: No validated kernel fits the site.
    NO_KERNEL = "no_kernel"
    #: Every kernel of the site would go over the parameter budget.
    BUDGET_SPENT = "budget_spent"
    #: Only an evaluated seed can be advanced or fossilised.
    NOT_EVALUATING = "not_evaluating"
    #: The counterfactual has not been measured.
    NOT_MEASURED = "not_measured"
    #: The seed is on its way out already.
    ENDING = "ending"


class KernelOption(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel that fits a site."""

    kernel_id: str
    blueprint_id: str
    #: Name of the blueprint, e.g. ``conv_bottleneck_r8``.
    name: str
    parameters: int
    #: Forward FLOPs of one sample.
    flops: int


class GrowthLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much may grow, and until when."""

    #: Seeds that may be germinated in a run, culled ones included.
    max_seeds: int = 6
    #: Parameters that growth may add, as a multiple of the host's own.
    max_growth_frac: float = 4.0
    #: Share of the run's steps after which nothing new is germinated.
    growth_end_frac: float = 0.75
    #: Least steps between two germinations.
    min_gap_steps: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.max_seeds < 0 or self.min_gap_steps < 0:
            raise ConfigError(f"max_seeds {self.max_seeds} and min_gap_steps {self.min_gap_steps} cannot be below 0")
        if not (0.0 <= self.max_growth_frac < math.inf and 0.0 <= self.growth_end_frac <= 1.0):
            raise ConfigError(
                f"max_growth_frac {self.max_growth_frac} or growth_end_frac {self.growth_end_frac} is out of range",
                hint="max_growth_frac is at least 0 and finite, growth_end_frac lies between 0 and 1",
            )


#: States a command can bring a seed to, by kind of action.
_TARGETS: dict[ActionKind, frozenset[SeedState]] = {
    ActionKind.ADVANCE: frozenset({SeedState.FINE_TUNING}),
    ActionKind.CULL: frozenset({SeedState.CULLED, SeedState.CANCELLED}),
    ActionKind.FOSSILIZE: frozenset({SeedState.FOSSILIZED}),
}

_EMBARGOED = frozenset({SeedState.CULLED, SeedState.CANCELLED, SeedState.EMBARGOED, SeedState.ROLLED_BACK})

#: States in which a seed's parameters are not yet part of the host's count.
_TO_COME = LIVING - ATTACHED - _EMBARGOED


def target_of(kind: str, state: str) -> SeedState | None:
    """Return the state that a command brings a seed to, or None where the lifecycle has no such edge.

    Args:
        kind: ``advance``, ``cull`` or ``fossilize``.
        state: State the seed is in.
    """
    wanted = _TARGETS[ActionKind(kind)]
    reachable = [state for state in targets(SeedState(state), Trigger.COMMANDED) if state in wanted]
    return reachable[0] if reachable else None


def legal_actions(
    observation: Observation,
    kernels: Mapping[str, Sequence[KernelOption]],
    closed: Mapping[str, str],
    limits: GrowthLimits,
    schedule: Schedule,
    *,
    last_germination_step: int | None = None,
) -> tuple[list[Action], list[MaskedAction]]:
    """List what may be done and what may not.

    The legal list begins with NOOP, then come germinations by depth, site and kernel name, then ADVANCE, CULL and
    FOSSILIZE, each by seed id. Of a site or seed, a kind is in the masked list exactly when the legal list has none.

    Args:
        observation: What is known at this decision.
        kernels: Validated kernels that fit, by site path.
        closed: Sites Kasmina does not open now, with its reason.
        limits: How much may grow, and until when.
        schedule: How a germinated seed joins the host; goes into each GERMINATE.
        last_germination_step: Step of the latest germination; needed where ``min_gap_steps`` is set.

    Returns:
        The legal actions and the masked ones, both in canonical order.

    Raises:
        ConfigError: ``min_gap_steps`` is set, seeds were germinated, and no last step was given.
    """
    legal = [Action(kind=ActionKind.NOOP.value)]
    masked: list[MaskedAction] = []
    general = _germination_barred(observation, limits, schedule, last_germination_step)
    allowance = _allowance(observation, limits)
    taken = _taken(observation.seeds)
    for site in sorted(observation.sites, key=_by_depth):
        fitting = sorted(kernels.get(site.site, ()), key=lambda option: (option.name, option.kernel_id))
        affordable = [option for option in fitting if option.parameters <= allowance]
        reason = general or closed.get(site.site) or taken.get(site.site)
        if reason is None and not affordable:
            reason = Reason.BUDGET_SPENT.value if fitting else Reason.NO_KERNEL.value
        if reason is not None:
            masked.append(MaskedAction(kind=ActionKind.GERMINATE.value, site=site.site, seed_id=None, reason=reason))
            continue
        legal.extend(
            Action(
                kind=ActionKind.GERMINATE.value,
                site=site.site,
                blueprint_id=option.blueprint_id,
                kernel_id=option.kernel_id,
                schedule=schedule,
            )
            for option in affordable
        )
    living = sorted((seed for seed in observation.seeds if SeedState(seed.state) in LIVING), key=lambda s: s.seed_id)
    for kind in (ActionKind.ADVANCE, ActionKind.CULL, ActionKind.FOSSILIZE):
        for seed in living:
            barred = _move_barred(kind, seed)
            if barred is None:
                legal.append(Action(kind=kind.value, site=seed.site, seed_id=seed.seed_id))
            else:
                masked.append(MaskedAction(kind=kind.value, site=seed.site, seed_id=seed.seed_id, reason=barred))
    return legal, masked


def is_measured(seed: SeedObservation) -> bool:
    """Tell whether a seed's counterfactual gain and its standard error are there and finite."""
    return (
        seed.gain is not None
        and seed.gain_stderr is not None
        and math.isfinite(seed.gain)
        and math.isfinite(seed.gain_stderr)
    )


def _by_depth(site: SiteObservation) -> tuple[int, str]:
    return site.depth, site.site


def _germination_barred(
    observation: Observation, limits: GrowthLimits, schedule: Schedule, last_step: int | None
) -> str | None:
    """Return why nothing can be germinated anywhere, or None."""
    if observation.step >= limits.growth_end_frac * observation.total_steps:
        return Reason.GROWTH_OVER.value
    if observation.step + _steps_to_judge(observation, schedule) > observation.total_steps:
        return Reason.TOO_LATE.value
    if observation.germinated >= limits.max_seeds:
        return Reason.SEEDS_SPENT.value
    if limits.min_gap_steps and observation.germinated:
        if last_step is None:
            raise ConfigError(
                f"min_gap_steps is {limits.min_gap_steps}, but the step of the last germination was not given",
                hint="pass last_germination_step to legal_actions",
            )
        if observation.step - last_step < limits.min_gap_steps:
            return Reason.TOO_SOON.value
    return None


def _steps_to_judge(observation: Observation, schedule: Schedule) -> int:
    """Return the steps from a germination to the second decision that can judge the seed."""
    frozen = schedule.probation_steps if schedule.learning == "probation" else 0
    between_decisions = observation.step // (observation.epoch + 1)
    return frozen + schedule.ramp_steps + schedule.settle_steps + 2 * between_decisions


def _allowance(observation: Observation, limits: GrowthLimits) -> float:
    """Return the parameters that growth may still add; those of seeds not yet attached are spoken for."""
    to_come = sum(seed.parameters for seed in observation.seeds if SeedState(seed.state) in _TO_COME)
    grown = observation.parameters - observation.initial_parameters + to_come
    return limits.max_growth_frac * observation.initial_parameters - grown


def _taken(seeds: Sequence[SeedObservation]) -> dict[str, str]:
    """Return the sites a seed keeps from being germinated, with the reason."""
    reasons: dict[str, str] = {}
    for seed in seeds:
        state = SeedState(seed.state)
        if state in LIVING:
            reason = Reason.EMBARGOED if state in _EMBARGOED else Reason.OCCUPIED
            if reasons.get(seed.site) != Reason.OCCUPIED:
                reasons[seed.site] = reason.value
    return reasons


def _move_barred(kind: ActionKind, seed: SeedObservation) -> str | None:
    """Return why a seed cannot be moved so, or None."""
    if target_of(kind, seed.state) is None:
        return Reason.ENDING.value if SeedState(seed.state) in _EMBARGOED else Reason.NOT_EVALUATING.value
    if kind is ActionKind.FOSSILIZE and not is_measured(seed):
        return Reason.NOT_MEASURED.value
    return None
