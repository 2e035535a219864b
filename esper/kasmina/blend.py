"""How strongly a seed's branch counts: the alpha ramp.

Belongs here: the ramp that moves alpha step by step. Does not belong here: the timetable a decision gives a seed
(``esper.events.decision.Schedule``), the device tensor that mirrors alpha (``esper.kasmina.seed``) or when a ramp may
start (``esper.kasmina.growth``).
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any

from esper.events.decision import Curve

#: Steepness of the sigmoid curve; the ends are rescaled so that they are met exactly.
_STEEPNESS = 12.0


class Mode(StrEnum):
    """What a ramp is doing."""

    HOLD = "hold"
    UP = "up"
    DOWN = "down"


def curve_at(curve: Curve, share: float) -> float:
    """Return how much of the way a curve has gone.

    Args:
        curve: Shape of the ramp.
        share: Share of the steps done, 0 to 1.

    Returns:
        0 at share 0, 1 at share 1, rising in between.
    """
    if curve == "linear":
        return share
    if curve == "cosine":
        return 0.5 * (1.0 - math.cos(math.pi * share))
    low = 1.0 / (1.0 + math.exp(_STEEPNESS / 2))
    here = 1.0 / (1.0 + math.exp(-_STEEPNESS * (share - 0.5)))
    return (here - low) / (1.0 - 2.0 * low)


class AlphaRamp:
    """Moves alpha from where it is to a target in a fixed number of steps, and lands on it exactly."""

    def __init__(self, curve: Curve = "linear", value: float = 0.0) -> None:
        self.curve: Curve = curve
        self.value = value
        self.start = value
        self.target = value
        self.steps = 0
        self.done = 0

    @property
    def mode(self) -> Mode:
        """Return whether alpha is held, going up or going down."""
        if self.value == self.target:
            return Mode.HOLD
        return Mode.UP if self.target > self.value else Mode.DOWN

    def aim(self, target: float, steps: int) -> None:
        """Start towards a target from the present value; 0 steps jump there at once.

        Args:
            target: Alpha to reach, 0 to 1.
            steps: Number of ``tick`` calls it takes.
        """
        self.start, self.target, self.steps, self.done = self.value, target, steps, 0
        if steps == 0:
            self.value = target

    def tick(self) -> float:
        """Move on by one step and return the new value."""
        if self.mode is Mode.HOLD:
            return self.value
        self.done += 1
        if self.done >= self.steps:
            self.value = self.target
        else:
            way = curve_at(self.curve, self.done / self.steps)
            self.value = self.start + (self.target - self.start) * way
        return self.value

    def state(self) -> dict[str, Any]:
        """Return the ramp as plain data."""
        return {
            "curve": self.curve,
            "value": self.value,
            "start": self.start,
            "target": self.target,
            "steps": self.steps,
            "done": self.done,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> AlphaRamp:
        """Return the ramp that ``state`` described."""
        ramp = cls(state["curve"], float(state["value"]))
        ramp.start, ramp.target = float(state["start"]), float(state["target"])
        ramp.steps, ramp.done = int(state["steps"]), int(state["done"])
        return ramp
