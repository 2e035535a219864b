"""The configuration of a run: plain data, closed, versioned, and part of the run's first fact."""

from __future__ import annotations

import difflib
from typing import Any

import msgspec

from esper.errors import ConfigError, ConfigVersionMismatch, UnknownSetting
from esper.events.decision import Schedule
from esper.tamiyo.legal import GrowthLimits
from esper.tolaria.governor import GovernorSettings
from esper.tolaria.schedule import ScheduleSettings

#: Schema number of the configuration; another number is refused, never guessed at.
CONFIG_VERSION = 1


class Birth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A seed that is part of the architecture from the first step (the from-scratch arm)."""

    site: str
    blueprint_id: str
    kernel_id: str


def timetable(total_steps: int) -> Schedule:
    """Return the timetable of seeds that suits a run of some length.

    A seed takes about a fifth of the run, and never more than the default timetable, so that seeds of a short run
    can still be judged before it ends.
    """
    whole = Schedule()
    return Schedule(
        ramp_steps=min(whole.ramp_steps, max(10, total_steps * 15 // 100)),
        settle_steps=min(whole.settle_steps, max(5, total_steps * 5 // 100)),
        probation_steps=min(whole.probation_steps, max(10, total_steps // 10)),
        fade_steps=min(whole.fade_steps, max(5, total_steps * 3 // 100)),
        embargo_steps=min(whole.embargo_steps, total_steps // 4),
    )


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides how a run goes, apart from the task itself."""

    policy: str = "heuristic"
    policy_settings: dict[str, Any] = {}
    seed: int = 0
    total_steps: int = 2000
    steps_per_epoch: int = 100
    batch_size: int = 64
    #: Peak learning rate of the host.
    learning_rate: float = 3e-3
    #: adam or sgd (momentum 0.9).
    optimizer: str = "adam"
    #: Threads torch computes with; part of the environment fingerprint.
    threads: int = 1
    #: Steps between telemetry probes.
    probe_every: int = 100
    #: Timetable of new seeds.
    graft: Schedule = Schedule()
    schedule: ScheduleSettings = ScheduleSettings()
    limits: GrowthLimits = GrowthLimits()
    governor: GovernorSettings = GovernorSettings()
    #: Names of the library blueprints to offer; None offers all that fit.
    blueprints: list[str] | None = None
    #: Sites to offer, by path; None offers all that are found.
    sites: list[str] | None = None
    #: Role in a comparison: ``no-growth`` or ``from-scratch``; None for an ordinary run.
    arm: str | None = None
    #: Run this arm is compared with.
    compare_to: str | None = None
    #: Seeds present from the first step.
    born: list[Birth] = []


_POSITIVE = ("total_steps", "steps_per_epoch", "batch_size", "threads", "probe_every")
#: Seeds are whole numbers that JSON readers keep exactly.
_SEEDS = 2**53
_CHOICES = {"optimizer": ("adam", "sgd")}


def check(config: RunConfig) -> RunConfig:
    """Return a configuration that can be run.

    Raises:
        ConfigError: A value is out of range.
    """
    for name in _POSITIVE:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, not {getattr(config, name)}")
    for name, choices in _CHOICES.items():
        if getattr(config, name) not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {getattr(config, name)!r}")
    if not 0 <= config.seed < _SEEDS:
        raise ConfigError(f"seed must lie between 0 and {_SEEDS - 1}, not {config.seed}")
    if not 0 < config.learning_rate < float("inf"):
        raise ConfigError(f"learning_rate must be positive and finite, not {config.learning_rate}")
    return config


def to_plain(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as plain data for ``RunStarted.config``."""
    plain: dict[str, Any] = msgspec.to_builtins(config)
    return plain


def from_plain(plain: dict[str, Any], version: int = CONFIG_VERSION) -> RunConfig:
    """Return the configuration that plain data describes.

    Raises:
        ConfigVersionMismatch: It was written for another version.
        UnknownSetting: It has a key that does not exist.
        ConfigError: A value has the wrong type or is out of range.
    """
    if version != CONFIG_VERSION:
        raise ConfigVersionMismatch(
            f"this configuration has version {version}, this Esper reads version {CONFIG_VERSION}",
            hint="use the Esper version that recorded the run (see RunStarted.packages)",
        )
    try:
        return check(msgspec.convert(plain, RunConfig))
    except msgspec.ValidationError as error:
        if "unknown field" in str(error):
            raise UnknownSetting(f"run configuration: {error}") from error
        raise ConfigError(f"run configuration: {error}") from error


def set_field(plain: dict[str, Any], setting: str) -> None:
    """Set one field of a plain configuration from ``path=value``, e.g. ``graft.ramp_steps=200``.

    The value is read as JSON where it is JSON and as text otherwise.

    Raises:
        UnknownSetting: There is no such field.
        ConfigError: The text has no ``=``.
    """
    path, equals, text = setting.partition("=")
    if not equals:
        raise ConfigError(f"--set {setting!r} has no value", hint="write KEY=VALUE, e.g. graft.ramp_steps=200")
    *groups, name = path.strip().split(".")
    place: Any = plain
    for group in groups:
        if not isinstance(place.get(group), dict):
            raise _no_field(path, group, place)
        place = place[group]
    if name not in place and groups != ["policy_settings"]:
        raise _no_field(path, name, place)
    try:
        place[name] = msgspec.json.decode(text.encode())
    except msgspec.DecodeError:
        place[name] = text


def _no_field(path: str, part: str, place: dict[str, Any]) -> UnknownSetting:
    """Return the error that says which part of a path does not exist, and what does."""
    near = difflib.get_close_matches(part, place, n=1)
    if part in place:
        hint = f"{part!r} is one value and has no fields"
    else:
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(place)) or 'nothing'}"
    return UnknownSetting(f"the run's configuration has no field {path.strip()!r}", hint=hint)
