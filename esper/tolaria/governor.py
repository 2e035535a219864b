"""The governor: tells from the step losses alone when training has gone wrong.

Belongs here: three tests on the sequence of losses and their state. Does not belong here: restoring a checkpoint or
culling a graft (``session``). Everything is plain float arithmetic, so a replay trips at the same step.

* ``not_finite``: NaN or infinity, at once.
* ``divergence``: ``patience`` losses in a row lie far above the recent ones: above the median of the last ``window``
  losses by more than ``divergence_k`` robust standard deviations, by more than ``divergence_multiple - 1`` times the
  median, and by more than ``divergence_frac`` of the progress made so far. The last bound keeps the noise of a run
  that is nearly done from counting, whatever the scale of its losses.
* ``drift``: a one-sided CUSUM (Page, 1954) over medians of ``block_steps`` losses, standardised by a reference of
  earlier blocks that stands still while the sum is positive, so that a slow climb cannot drag it along. It trips only
  where the climb also matters: more than ``drift_frac`` of the progress and ``drift_min_rise`` of the level. It needs
  ten blocks before it says anything.

A change that moves the loss on purpose (a cull, a fault, a rollback) is announced by ``note_change``: the drift test
then forgets its reference, pauses for ``grace_steps``, and for as long the divergence bounds are ``grace_factor`` times
as wide. A zero-tail graft does not move the loss and need not be announced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from esper.errors import CheckpointDamaged, ConfigError

#: Turns a median absolute deviation into the standard deviation of a normal distribution.
_MAD_TO_SIGMA = 1.4826

#: Standard error of a median over that of a mean, for normal noise: sqrt(pi / 2).
_MEDIAN_ERROR = math.sqrt(math.pi / 2)

#: Blocks whose median and spread are the reference of the drift test.
_REFERENCE_BLOCKS = 32

#: Blocks needed before the drift test says anything.
_LEAST_BLOCKS = 10


class GovernorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How sensitive the governor is."""

    #: Rollbacks in a run before it is given up.
    max_rollbacks: int = 3
    #: Recent losses that divergence is measured against.
    window: int = 64
    #: Losses needed before divergence is judged.
    least_losses: int = 20
    #: Losses in a row that must lie beyond the bound.
    patience: int = 5
    divergence_k: float = 6.0
    divergence_multiple: float = 2.0
    divergence_frac: float = 0.15
    #: Steps whose median is one block of the drift test.
    block_steps: int = 20
    #: Standard deviations a block may lie above the reference for nothing.
    drift_slack: float = 1.0
    #: Sum of the excesses, in standard deviations, that trips.
    drift_threshold: float = 10.0
    drift_frac: float = 0.2
    drift_min_rise: float = 0.2
    #: Steps after a change in which drift is not judged.
    grace_steps: int = 100
    grace_factor: float = 3.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        counts = (self.window, self.least_losses, self.patience, self.block_steps)
        if min(counts) < 1 or self.least_losses > self.window or self.max_rollbacks < 0 or self.grace_steps < 0:
            raise ConfigError(
                "window, least_losses, patience and block_steps are at least 1, least_losses at most window, "
                "max_rollbacks and grace_steps at least 0"
            )
        bounds = (
            self.divergence_k, self.divergence_frac, self.drift_slack, self.drift_threshold,
            self.drift_frac, self.drift_min_rise,
        )  # fmt: skip
        if not all(0.0 <= value < math.inf for value in bounds):
            raise ConfigError(f"the governor's bounds must be finite and at least 0, not {bounds}")
        if not (1.0 <= self.divergence_multiple < math.inf and 1.0 <= self.grace_factor < math.inf):
            raise ConfigError("divergence_multiple and grace_factor must be finite and at least 1")


class Trip(msgspec.Struct, frozen=True, kw_only=True):
    """Training was found out of order."""

    #: ``not_finite``, ``divergence`` or ``drift``.
    kind: str
    #: The numbers behind it, all finite.
    evidence: dict[str, float]


class _State(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Everything the governor remembers."""

    step: int = 0
    #: Latest losses that are the measure of divergence.
    recent: list[float] = []
    #: Losses in a row beyond the bound; not yet part of ``recent``.
    beyond: list[float] = []
    #: Median of the first losses, or None before they are there.
    initial: float | None = None
    #: Lowest block median so far.
    best: float | None = None
    block: list[float] = []
    #: Median and robust standard deviation of each block of the reference.
    reference: list[tuple[float, float]] = []
    #: Blocks seen while the sum is positive; not yet part of ``reference``.
    held: list[tuple[float, float]] = []
    cusum: float = 0.0
    #: Steps of announced changes that later losses have not reached yet.
    changes: list[int] = []
    grace_until: int = 0


class Governor:
    """Watches the losses of one run, in order."""

    def __init__(self, settings: GovernorSettings | None = None) -> None:
        """Start with nothing seen."""
        self.settings = settings or GovernorSettings()
        self._s = _State()

    def check(self, step: int, loss: float) -> Trip | None:
        """Take in the loss of a step.

        After a trip the caller restores an earlier state or stops; the evidence counted so far is dropped.

        Args:
            step: Number of the step, larger than the one before.
            loss: Its mean training loss.

        Returns:
            What went wrong, or None.

        Raises:
            ConfigError: The step does not follow the one before.
        """
        s = self._s
        if step <= s.step:
            raise ConfigError(
                f"the governor saw step {s.step} and is now given step {step}",
                hint="give it each step's loss once, in order; restore an earlier state to go back",
            )
        s.step = step
        self._reach_changes(step)
        if not math.isfinite(loss):
            return Trip(kind="not_finite", evidence=self._not_finite(loss))
        return self._diverged(loss) or self._drifted(loss)

    def note_change(self, step: int) -> None:
        """Announce a change that moves the loss on purpose from the step after this one.

        Args:
            step: Steps done when it was made; losses up to it may still be given afterwards.
        """
        self._s.changes.append(step)

    def state(self) -> dict[str, Any]:
        """Return everything remembered, as plain data that msgpack keeps exactly."""
        plain: dict[str, Any] = msgspec.to_builtins(self._s)
        return plain

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what ``state`` returned.

        Raises:
            CheckpointDamaged: It is not what ``state`` returns.
        """
        try:
            self._s = msgspec.convert(state, _State)
        except msgspec.ValidationError as error:
            raise CheckpointDamaged(f"the governor's state cannot be read: {error}") from error

    def _reach_changes(self, step: int) -> None:
        s = self._s
        reached = [change for change in s.changes if change < step]
        if not reached:
            return
        s.changes = [change for change in s.changes if change >= step]
        s.grace_until = max(s.grace_until, max(reached) + self.settings.grace_steps)
        s.block, s.reference, s.held, s.cusum = [], [], [], 0.0

    def _not_finite(self, loss: float) -> dict[str, float]:
        seen = [*self._s.recent, *self._s.beyond]
        evidence = {"is_nan": float(math.isnan(loss))}
        return {**evidence, "last_finite": seen[-1]} if seen else evidence

    def _progress(self) -> float:
        """Return how far the loss has come down."""
        s = self._s
        return max(0.0, s.initial - s.best) if s.initial is not None and s.best is not None else 0.0

    def _diverged(self, loss: float) -> Trip | None:
        s, settings = self._s, self.settings
        if len(s.recent) < settings.least_losses:
            s.recent.append(loss)
            if len(s.recent) == settings.least_losses and s.initial is None:
                s.initial = _median(s.recent)
            return None
        median = _median(s.recent)
        width = settings.grace_factor if s.step <= s.grace_until else 1.0
        sigma = 0.0
        excess = width * max(
            (settings.divergence_multiple - 1.0) * abs(median), settings.divergence_frac * self._progress()
        )
        if loss - median > excess:
            # The spread costs a second sort, so it is looked at only where the cheap bounds do not settle it.
            sigma = _centre(s.recent)[1]
            excess = max(excess, width * settings.divergence_k * sigma)
        if loss - median <= excess:
            s.recent = [*s.recent, *s.beyond, loss][-settings.window :]
            s.beyond = []
            return None
        s.beyond.append(loss)
        if len(s.beyond) < settings.patience:
            return None
        evidence = {"loss": loss, "median": median, "sigma": sigma, "bound": median + excess}
        evidence["in_a_row"] = float(len(s.beyond))
        s.beyond = []
        return Trip(kind="divergence", evidence=evidence)

    def _drifted(self, loss: float) -> Trip | None:
        s, settings = self._s, self.settings
        if s.step <= s.grace_until:
            return None
        s.block.append(loss)
        if len(s.block) < settings.block_steps:
            return None
        block = level, within = _centre(s.block)
        s.block = []
        progress = self._progress()
        s.best = level if s.best is None else min(s.best, level)
        if len(s.reference) < _LEAST_BLOCKS:
            s.reference.append(block)
            return None
        reference, sigma = _centre([level for level, _ in s.reference])
        within = max(within, _median([within for _, within in s.reference]))
        # Where losses hardly vary every rise would look large, so a quarter of what matters is the least spread.
        matters = max(settings.drift_frac * progress, settings.drift_min_rise * abs(reference))
        block_error = _MEDIAN_ERROR * within / math.sqrt(settings.block_steps)
        spread = max(sigma, block_error, 0.25 * matters, math.ulp(reference))
        z = (level - reference) / spread
        s.cusum = min(max(0.0, s.cusum + z - settings.drift_slack), 2.0 * settings.drift_threshold)
        if s.cusum == 0.0:
            s.reference = [*s.reference, *s.held, block][-_REFERENCE_BLOCKS:]
            s.held = []
            return None
        s.held = [*s.held, block][-_REFERENCE_BLOCKS:]
        if s.cusum <= settings.drift_threshold or level - reference <= matters:
            return None
        evidence = {"level": level, "reference": reference, "sigma": spread, "z": z, "cusum": s.cusum}
        s.held, s.cusum = [], 0.0
        return Trip(kind="drift", evidence=evidence)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _centre(values: Sequence[float]) -> tuple[float, float]:
    """Return median and robust standard deviation."""
    median = _median(values)
    return median, _MAD_TO_SIGMA * _median([abs(value - median) for value in values])
