"""The ladder of policies by name, from doing nothing to judging.

Belongs here: making a policy from a name and plain settings. Does not belong here: the rules themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from esper.errors import ConfigError, UnknownSetting
from esper.tamiyo.baselines import Off, OffSettings, RandomLegal, RandomSettings
from esper.tamiyo.fixed import FixedSettings, FixedTimes, earliest, in_turn
from esper.tamiyo.heuristic import Heuristic, HeuristicSettings
from esper.tamiyo.kernel_choice import KernelChoice
from esper.tamiyo.legal import KernelOption
from esper.tamiyo.policy import Policy

Kernels = Mapping[str, Sequence[KernelOption]]


def _schedule(settings: FixedSettings, kernels: Kernels) -> Policy:
    return FixedTimes("schedule", settings, KernelChoice(kernels, settings.blueprint), in_turn)


def _earliest_site(settings: FixedSettings, kernels: Kernels) -> Policy:
    return FixedTimes("earliest-site", settings, KernelChoice(kernels, settings.blueprint), earliest)


def _heuristic(settings: HeuristicSettings, kernels: Kernels) -> Policy:
    return Heuristic(settings, KernelChoice(kernels, settings.blueprint))


#: Name -> type of its settings and how it is made, lowest rung first.
_RUNGS: dict[str, tuple[type[msgspec.Struct], Callable[[Any, Kernels], Policy]]] = {
    "off": (OffSettings, lambda settings, _: Off(settings)),
    "random": (RandomSettings, lambda settings, _: RandomLegal(settings)),
    "schedule": (FixedSettings, _schedule),
    "earliest-site": (FixedSettings, _earliest_site),
    "heuristic": (HeuristicSettings, _heuristic),
}

#: Names of the policies, lowest rung first.
POLICY_NAMES: tuple[str, ...] = tuple(_RUNGS)


def settings_type(name: str) -> type[msgspec.Struct]:
    """Return the struct of a policy's settings, whose fields are what can be set.

    Raises:
        ConfigError: No policy has that name.
    """
    if name not in _RUNGS:
        raise ConfigError(f"there is no policy {name!r}", hint=f"policies are: {', '.join(POLICY_NAMES)}")
    return _RUNGS[name][0]


def make_policy(name: str, settings: Mapping[str, Any] | None = None, *, kernels: Kernels | None = None) -> Policy:
    """Make a policy of the ladder.

    Args:
        name: ``off``, ``random``, ``schedule``, ``earliest-site`` or ``heuristic``.
        settings: Settings by name; what is left out keeps its default.
        kernels: Kernels of the run by site, as ``legal_actions`` takes them; ``off`` and ``random`` need none.

    Raises:
        ConfigError: No policy has that name, or a setting has a wrong type or is out of range.
        UnknownSetting: The policy has no such setting.
    """
    kind = settings_type(name)
    given = dict(settings or {})
    unknown = sorted(set(given) - set(kind.__struct_fields__))
    if unknown:
        raise UnknownSetting(
            f"policy {name!r} has no setting {', '.join(map(repr, unknown))}",
            hint=f"it has: {', '.join(kind.__struct_fields__) or 'none'}",
        )
    try:
        made = msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"settings of policy {name!r}: {error}") from error
    return _RUNGS[name][1](made, kernels or {})
