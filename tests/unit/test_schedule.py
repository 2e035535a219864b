"""The learning rate at every step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.errors import ConfigError
from esper.tolaria.schedule import ScheduleSettings, lr_at


def test_rate_is_constant_until_the_cooldown_begins():
    settings = ScheduleSettings()
    assert {lr_at(step, 0.003, settings, total_steps=1000) for step in range(1, 751)} == {0.003}
    assert lr_at(751, 0.003, settings, total_steps=1000) < 0.003


def test_rate_falls_linearly_to_the_floor_at_the_last_step():
    settings = ScheduleSettings(cooldown_frac=0.5, floor_frac=0.1)
    rates = [lr_at(step, 1.0, settings, total_steps=100) for step in range(51, 101)]
    falls = [a - b for a, b in zip([1.0, *rates], rates, strict=False)]
    assert rates[-1] == pytest.approx(0.1, abs=1e-12)
    assert falls == pytest.approx([0.9 / 50] * 50, abs=1e-12)


def test_rate_stays_at_the_floor_past_the_end():
    settings = ScheduleSettings(floor_frac=0.2)
    assert lr_at(130, 1.0, settings, total_steps=100) == lr_at(100, 1.0, settings, total_steps=100)


def test_warm_up_rises_linearly_to_the_peak():
    settings = ScheduleSettings(warmup_steps=4)
    assert [lr_at(step, 1.0, settings, total_steps=100) for step in range(1, 6)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_new_group_warms_up_from_its_own_start():
    settings = ScheduleSettings(group_warmup_steps=4, group_lr_scale=2.0)
    rates = [lr_at(step, 1.0, settings, total_steps=100, group_started_at=10) for step in range(10, 16)]
    assert rates == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]


def test_new_group_without_warm_up_has_the_hosts_rate_from_its_first_step():
    settings = ScheduleSettings(group_warmup_steps=0)
    assert lr_at(11, 0.5, settings, total_steps=100, group_started_at=10) == 0.5


def test_new_group_cools_down_with_the_host():
    settings = ScheduleSettings()
    assert lr_at(90, 1.0, settings, total_steps=100, group_started_at=0) < lr_at(80, 1.0, settings, total_steps=100)
    late = ScheduleSettings(group_warmup_steps=10)
    assert lr_at(90, 1.0, late, total_steps=100, group_started_at=5) == lr_at(90, 1.0, late, total_steps=100)


@pytest.mark.parametrize("cooldown_frac", [0.0, 1.0])
def test_cooldown_over_nothing_or_everything_is_allowed(cooldown_frac):
    settings = ScheduleSettings(cooldown_frac=cooldown_frac, floor_frac=0.0)
    rates = [lr_at(step, 1.0, settings, total_steps=10) for step in range(1, 11)]
    assert rates == pytest.approx([1.0] * 10 if cooldown_frac == 0.0 else [1 - s / 10 for s in range(1, 11)])


@given(
    st.integers(1, 5000),
    st.integers(1, 3000),
    st.integers(0, 500),
    st.floats(0, 1),
    st.floats(0, 1),
    st.one_of(st.none(), st.integers(0, 3000)),
)
def test_rate_lies_between_zero_and_the_peak_and_repeats(step, total, warmup, cooldown, floor, started):
    settings = ScheduleSettings(warmup_steps=warmup, cooldown_frac=cooldown, floor_frac=floor)
    rate = lr_at(step, 0.01, settings, total_steps=total, group_started_at=started)
    assert math.isfinite(rate)
    assert 0.0 <= rate <= 0.01
    assert rate == lr_at(step, 0.01, settings, total_steps=total, group_started_at=started)


@pytest.mark.parametrize(
    "wrong",
    [{"warmup_steps": -1}, {"cooldown_frac": 1.5}, {"floor_frac": -0.1}, {"group_lr_scale": math.inf}],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        ScheduleSettings(**wrong)


def test_step_zero_is_refused():
    with pytest.raises(ConfigError, match="count from 1"):
        lr_at(0, 1.0, ScheduleSettings(), total_steps=10)
