"""Facts of decisions: what the controller saw, what it could do, what it chose, what came of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from esper.errors import ConfigError
from esper.events.base import Fact, fact
from esper.events.lifecycle import EMBARGO_STEPS
from esper.names import TopicNames

_DECISIONS = TopicNames.CONTROL_DECISIONS


Curve = Literal["linear", "cosine", "sigmoid"]
Learning = Literal["joint", "probation"]


class Schedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A seed's timetable, a setting of the decision that germinates it. All lengths are optimiser steps."""

    #: joint: host and seed train together from the start; probation: the host stands still first.
    learning: Learning = "joint"
    #: Shape of the way from alpha 0 to alpha 1.
    curve: Curve = "linear"
    #: Steps from alpha 0 to alpha 1.
    ramp_steps: int = 300
    #: Steps with the host frozen (learning = probation).
    probation_steps: int = 200
    #: Steps at full alpha before the seed is evaluated.
    settle_steps: int = 100
    #: Steps in which alpha goes down to 0 after a cull.
    fade_steps: int = 50
    #: Steps the site stays closed after the seed is gone.
    embargo_steps: int = EMBARGO_STEPS
    #: Feed the branch a detached copy, so that it sends no gradient to the host upstream.
    isolate: bool = False

    def __post_init__(self) -> None:
        """Refuse lengths that are no lengths.

        Raises:
            ConfigError: A number of steps is negative.
        """
        for name in ("ramp_steps", "probation_steps", "settle_steps", "fade_steps", "embargo_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"schedule.{name} is {getattr(self, name)}", hint="it is a number of optimiser steps, 0 or more"
                )


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One thing the controller may do."""

    #: noop, germinate, advance, cull or fossilize.
    kind: str
    site: str | None = None
    seed_id: str | None = None
    blueprint_id: str | None = None
    kernel_id: str | None = None
    schedule: Schedule | None = None


class MaskedAction(msgspec.Struct, frozen=True, kw_only=True):
    """Something the controller could not do, and why."""

    kind: str
    site: str | None
    seed_id: str | None
    reason: str


class SeedObservation(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one living seed at a decision."""

    seed_id: str
    site: str
    blueprint_id: str
    kernel_id: str
    state: str
    alpha: float
    #: Steps since the present state was entered.
    steps_in_state: int
    parameters: int
    gain: float | None
    gain_stderr: float | None


class SiteObservation(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one site at a decision; None where not measured."""

    site: str
    kind: str
    depth: int
    #: depth over the largest depth, 0 for the first site.
    depth_frac: float
    parameters: int
    flops: int
    gradient_norm: float | None
    zr: float | None
    zr_over_wgrad: float | None
    effective_rank: float | None
    dormant_frac: float | None
    signal_to_noise: float | None
    activation_variance: float | None
    dead_frac: float | None
    mean_correlation: float | None
    seeds_present: int
    alpha: float


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """All that a policy sees."""

    step: int
    total_steps: int
    epoch: int
    train_loss: float
    validation_loss: float | None
    #: Train losses of the latest epochs, oldest first.
    recent_train_losses: list[float]
    recent_validation_losses: list[float]
    parameters: int
    initial_parameters: int
    #: Seeds that were ever germinated in the run.
    germinated: int
    sites: list[SiteObservation]
    seeds: list[SeedObservation]


class RandomDraw(msgspec.Struct, frozen=True, kw_only=True):
    """Where a decision's uniform number came from, so that it can be drawn again."""

    algorithm: str
    key: list[int]
    counter: int


@fact(_DECISIONS, stream="decision", key="run_id")
class DecisionRequested(Fact, frozen=True, kw_only=True):
    """Training reached a decision point."""

    run_id: str
    #: Attempt of the run that asked; a resumed run asks again for what it does again.
    attempt: int
    #: Number of the decision in the attempt's effective history, gapless from 1.
    decision: int
    step: int
    epoch: int
    feature_schema: str
    observation: Observation
    #: SHA-256 of the observation's msgpack.
    observation_digest: bytes


@fact(_DECISIONS, stream="decision", key="run_id")
class DecisionMade(Fact, frozen=True, kw_only=True):
    """A policy chose, with everything needed to judge the choice later."""

    run_id: str
    attempt: int
    decision: int
    policy_id: str
    #: SHA-256 of the policy's settings or weights.
    policy_digest: bytes
    #: How the policy served: live (later also shadow or fallback).
    mode: str
    observation_digest: bytes
    feature_schema: str
    #: Legal actions in canonical order.
    legal: list[Action]
    masked: list[MaskedAction]
    #: Probability of each legal action after all mixing, float64.
    probabilities: list[float]
    #: Index of the chosen action in ``legal``.
    chosen: int
    #: Uniform number the choice was drawn with.
    uniform: float
    random: RandomDraw


@fact(TopicNames.CONTROL_KASMINA_COMMANDS, stream="decision", key="run_id")
class AdaptationCommanded(Fact, frozen=True, kw_only=True):
    """The controller told Kasmina to do something."""

    run_id: str
    attempt: int
    decision: int
    action: Action


@fact(_DECISIONS, stream="decision", key="run_id")
class DecisionExecuted(Fact, frozen=True, kw_only=True):
    """What became of a command."""

    run_id: str
    attempt: int
    decision: int
    step: int
    executed: bool
    #: Why it was not executed: refused, late or vetoed, with the cause; None when executed.
    reason: str | None


@fact(TopicNames.INNOVATION_FIELD_REPORTS, stream="decision", key="run_id")
class FieldReportFiled(Fact, frozen=True, kw_only=True):
    """How a blueprint did in a run, filed when its seed came to an end."""

    run_id: str
    attempt: int
    seed_id: str
    site: str
    blueprint_id: str
    kernel_id: str
    #: fossilized, culled or faulted.
    outcome: str
    #: Steps from germination to the outcome.
    steps: int
    gain: float | None
    gain_stderr: float | None
