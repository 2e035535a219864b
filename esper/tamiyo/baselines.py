"""The rungs below any judgement: never grow, and grow at random.

Belongs here: policies that look at nothing but the legal list. Does not belong here: fixed times (``fixed``) or
telemetry (``heuristic``).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from esper.errors import ConfigError
from esper.events.decision import Action, Observation
from esper.tamiyo.legal import ActionKind
from esper.tamiyo.policy import certain, mixture, rule_digest


class OffSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing to set."""


class Off:
    """Never does anything: the control arm."""

    policy_id = "off"

    def __init__(self, settings: OffSettings) -> None:
        """Make the policy."""
        self.digest = rule_digest(self.policy_id, 1, settings)

    def decide(self, observation: Observation, legal: Sequence[Action]) -> list[float]:  # noqa: ARG002, the port
        """Return NOOP for certain."""
        return certain(0, len(legal))

    def likely(self) -> list[str]:
        """Return nothing: no kernel is ever chosen."""
        return []


class RandomSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How often to do nothing."""

    #: Probability of NOOP where anything else is legal.
    noop_frac: float = 0.5

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0.0 <= self.noop_frac <= 1.0:
            raise ConfigError(f"noop_frac must lie between 0 and 1, not {self.noop_frac}")


class RandomLegal:
    """Takes any legal action, all but NOOP equally often: the source of unconfounded data."""

    policy_id = "random"

    def __init__(self, settings: RandomSettings) -> None:
        """Make the policy."""
        self._noop_frac = settings.noop_frac
        self.digest = rule_digest(self.policy_id, 1, settings)

    def decide(self, observation: Observation, legal: Sequence[Action]) -> list[float]:  # noqa: ARG002, the port
        """Return NOOP with its share and the rest spread evenly."""
        others = [index for index, action in enumerate(legal) if action.kind != ActionKind.NOOP]
        if not others or self._noop_frac == 1.0:
            return certain(0, len(legal))
        weights = {index: (1.0 - self._noop_frac) / len(others) for index in others}
        if self._noop_frac > 0.0:
            weights[0] = self._noop_frac
        return mixture(weights, len(legal))
