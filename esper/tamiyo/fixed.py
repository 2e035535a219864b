"""The rungs that grow at fixed times: site by site in turn, or always at the earliest free site.

Belongs here: policies whose times are settings. Does not belong here: anything that reads telemetry. These are the
baselines to beat: equal numbers of grafts at fixed times beat plateau triggers in the literature, and the earliest
site beat every telemetry signal in our pilot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from esper.errors import ConfigError
from esper.events.decision import Action, Observation
from esper.tamiyo.kernel_choice import DEFAULT_PREFERENCE, KernelChoice
from esper.tamiyo.legal import ActionKind
from esper.tamiyo.policy import certain, rule_digest

#: Picks a site among the free ones, given all sites in depth order.
PickSite = Callable[[Observation, Sequence[str], Sequence[str]], str]


class FixedSettings(msgspec.Struct, frozen=True, kw_only=True):
    """When to germinate, and what."""

    #: Shares of the run's steps at which one more seed is due, rising.
    at: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4)
    #: Blueprint name patterns, best first.
    blueprint: tuple[str, ...] = DEFAULT_PREFERENCE

    def __post_init__(self) -> None:
        """Check the ranges."""
        if any(not 0.0 <= share <= 1.0 for share in self.at) or list(self.at) != sorted(self.at):
            raise ConfigError(f"at must be rising shares of the run between 0 and 1, not {list(self.at)}")
        if not self.blueprint:
            raise ConfigError("blueprint must name at least one pattern", hint="use ['*'] for the smallest of all")


class FixedTimes:
    """Fossilises a seed as soon as it can be, germinates when one is due, culls none.

    A seed is due while fewer were germinated than times have passed, so a germination that was impossible at its time
    is made up for at the next decision.
    """

    def __init__(self, name: str, settings: FixedSettings, choice: KernelChoice, pick: PickSite) -> None:
        """Make the policy.

        Args:
            name: Name of the policy.
            settings: When and what.
            choice: The run's kernels in order of preference.
            pick: Picks the site.
        """
        self.policy_id = name
        self.digest = rule_digest(name, 1, settings)
        self._at = settings.at
        self._choice = choice
        self._pick = pick

    def decide(self, observation: Observation, legal: Sequence[Action]) -> list[float]:
        """Return one action for certain."""
        return certain(self._index(observation, legal), len(legal))

    def likely(self) -> list[str]:
        """Return the kernels in the order of preference."""
        return self._choice.likely()

    def _index(self, observation: Observation, legal: Sequence[Action]) -> int:
        for index, action in enumerate(legal):
            if action.kind == ActionKind.FOSSILIZE:
                return index
        due = sum(observation.step >= share * observation.total_steps for share in self._at)
        free = self._choice.by_site(legal)
        if observation.germinated >= due or not free:
            return 0
        sites = [site.site for site in sorted(observation.sites, key=lambda site: (site.depth, site.site))]
        return free[self._pick(observation, sites, list(free))][0]


def in_turn(observation: Observation, sites: Sequence[str], free: Sequence[str]) -> str:
    """Return the site whose turn it is: the n-th seed goes to the n-th site, or the next free one after it."""
    start = observation.germinated % len(sites)
    return next(site for site in (*sites[start:], *sites[:start]) if site in free)


def earliest(observation: Observation, sites: Sequence[str], free: Sequence[str]) -> str:  # noqa: ARG001, as in_turn
    """Return the free site nearest the input."""
    return next(site for site in sites if site in free)
