"""The learning rate of every parameter group at every step, as a pure function.

Belongs here: warm-up, plateau, cool-down, and the warm-up of groups that growth adds. Does not belong here: setting it
on an optimiser (``optim``). Esper owns the schedule, so that the growth-free end of a run is its cool-down too.
"""

from __future__ import annotations

import math

import msgspec

from esper.errors import ConfigError


class ScheduleSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shape of the learning rate over a run."""

    #: Steps from near 0 up to the peak at the start of the run.
    warmup_steps: int = 0
    #: Share of the run, at its end, over which the rate falls linearly.
    cooldown_frac: float = 0.25
    #: Rate of the last step, as a share of the peak.
    floor_frac: float = 0.01
    #: Steps over which a new parameter group comes up to its rate.
    group_warmup_steps: int = 100
    #: Peak of a new group, as a multiple of the host's.
    group_lr_scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.warmup_steps < 0 or self.group_warmup_steps < 0:
            raise ConfigError("warmup_steps and group_warmup_steps cannot be below 0")
        if not (0.0 <= self.cooldown_frac <= 1.0 and 0.0 <= self.floor_frac <= 1.0):
            raise ConfigError(
                f"cooldown_frac {self.cooldown_frac} and floor_frac {self.floor_frac} must lie between 0 and 1"
            )
        if not 0.0 <= self.group_lr_scale < math.inf:
            raise ConfigError(f"group_lr_scale must be at least 0 and finite, not {self.group_lr_scale}")


def lr_at(
    step: int,
    base_lr: float,
    settings: ScheduleSettings,
    *,
    total_steps: int,
    group_started_at: int | None = None,
) -> float:
    """Return the learning rate to take a step with.

    Args:
        step: Number of the step about to be taken, from 1; past the end the rate stays at the floor.
        base_lr: Peak rate of the host.
        settings: Shape of the schedule.
        total_steps: Steps of the run.
        group_started_at: Steps that were done when the group joined, so that its first step is the next one; None
            for the host's own groups. Before its first step a group's rate is 0.

    Raises:
        ConfigError: Step or total_steps is below 1.
    """
    if step < 1 or total_steps < 1:
        raise ConfigError(f"step {step} and total_steps {total_steps} count from 1")
    rate = base_lr * _host_factor(step, settings, total_steps)
    if group_started_at is None:
        return rate
    return rate * settings.group_lr_scale * _ramp(step - group_started_at, settings.group_warmup_steps)


def _host_factor(step: int, settings: ScheduleSettings, total_steps: int) -> float:
    """Return the share of the peak: warm-up times cool-down, so that short runs may overlap the two."""
    cooldown_steps = math.floor(settings.cooldown_frac * total_steps)
    done = min(step, total_steps) - (total_steps - cooldown_steps)
    fallen = (1.0 - settings.floor_frac) * (done / cooldown_steps) if done > 0 else 0.0
    return _ramp(step, settings.warmup_steps) * (1.0 - fallen)


def _ramp(step: int, steps: int) -> float:
    """Return how far a linear warm-up has come at its step, from 1; 0 before it, 1 after it or without one."""
    if step <= 0:
        return 0.0
    return min(1.0, step / steps) if steps else 1.0
