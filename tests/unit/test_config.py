"""The configuration of a run: closed, versioned, and set field by field."""

from __future__ import annotations

from typing import Any

import pytest

from esper.errors import ConfigError, ConfigVersionMismatch, UnknownSetting
from esper.events.decision import Schedule
from esper.tolaria.config import CONFIG_VERSION, Birth, RunConfig, check, from_plain, set_field, to_plain


def plain(**changes: Any) -> dict[str, Any]:
    return {**to_plain(RunConfig()), **changes}


def test_a_configuration_survives_being_plain() -> None:
    config = RunConfig(
        policy="random",
        graft=Schedule(ramp_steps=7),
        born=[Birth(site="a", blueprint_id="b", kernel_id="c")],
        learning_rate=0.1,
    )
    assert from_plain(to_plain(config)) == config


def test_what_is_left_out_keeps_its_default() -> None:
    assert from_plain({"seed": 3}) == RunConfig(seed=3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"polcy": "off"}, "polcy"), ({"graft": {"ramp": 1}}, "ramp"), ({"governor": {"windw": 1}}, "windw")],
)
def test_an_unknown_key_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnknownSetting, match=named):
        from_plain(plain(**changes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"total_steps": "many"}, "total_steps"),
        ({"seed": 0.5}, "seed"),
        ({"graft": {"ramp_steps": "slow"}}, "graft.ramp_steps"),
        ({"blueprints": "conv_bottleneck"}, "blueprints"),
        ({"policy_settings": [1]}, "policy_settings"),
    ],
)
def test_a_wrong_type_is_named_with_its_place(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")) as caught:
        from_plain(plain(**changes))
    assert not isinstance(caught.value, UnknownSetting)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"total_steps": 0}, "total_steps must be at least 1"),
        ({"steps_per_epoch": -1}, "steps_per_epoch must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"probe_every": 0}, "probe_every must be at least 1"),
        ({"optimizer": "adamw"}, "optimizer must be one of adam, sgd"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"seed": -1}, "seed must lie between"),
        ({"seed": 2**53}, "seed must lie between"),
        ({"governor": {"window": 0}}, "window"),
        ({"schedule": {"cooldown_frac": 2.0}}, "cooldown_frac"),
    ],
)
def test_a_value_out_of_range_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        from_plain(plain(**changes))


def test_check_gives_back_what_can_be_run() -> None:
    config = RunConfig(total_steps=1)
    assert check(config) is config


def test_another_version_is_refused_whatever_it_holds() -> None:
    with pytest.raises(ConfigVersionMismatch, match=str(CONFIG_VERSION + 1)):
        from_plain(plain(), CONFIG_VERSION + 1)


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("seed=3", ("seed",), 3),
        ("learning_rate=0.5", ("learning_rate",), 0.5),
        ("policy=off", ("policy",), "off"),
        ("graft.ramp_steps=200", ("graft", "ramp_steps"), 200),
        (" graft.curve =cosine", ("graft", "curve"), "cosine"),
        ("governor.max_rollbacks=0", ("governor", "max_rollbacks"), 0),
        ('blueprints=["a", "b"]', ("blueprints",), ["a", "b"]),
        ("blueprints=null", ("blueprints",), None),
        ("policy_settings.first_step=30", ("policy_settings", "first_step"), 30),
        ("policy_settings.blueprint=a=b", ("policy_settings", "blueprint"), "a=b"),
    ],
)
def test_set_field_reads_json_and_text(setting: str, path: tuple[str, ...], value: object) -> None:
    config = plain()
    set_field(config, setting)
    found: Any = config
    for part in path:
        found = found[part]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("sed=3", "did you mean 'seed'"),
        ("graft.ramp_step=3", "did you mean 'ramp_steps'"),
        ("graf.ramp_steps=3", "did you mean 'graft'"),
        ("zzzz=1", "known here: arm, batch_size"),
        ("graft.zzzz=1", "known here: curve"),
        ("seed.deeper=1", "'seed' is one value"),
        ("policy_settings.a.b=1", "known here: nothing"),
        ("=1", "known here"),
    ],
)
def test_set_field_refuses_what_does_not_exist_and_helps(setting: str, hint: str) -> None:
    config = plain()
    with pytest.raises(UnknownSetting) as caught:
        set_field(config, setting)
    assert hint in caught.value.hint
    assert repr(setting.partition("=")[0].strip()) in caught.value.message
    assert config == plain(), "nothing was set"


def test_set_field_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no value"):
        set_field(plain(), "seed")
