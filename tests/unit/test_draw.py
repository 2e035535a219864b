"""Drawing one action, repeatably and exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.errors import ConfigError, PolicyInvalid
from esper.events.decision import RandomDraw
from esper.tamiyo.draw import draw, invert, redraw

WORD = st.integers(0, 2**64 - 1)
WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1e6)), min_size=1, max_size=60).filter(any)


def distribution(weights: list[float]) -> list[float]:
    total = math.fsum(weights)
    return [weight / total for weight in weights]


@given(WORD, WORD, st.integers(0, 2**64 - 2))
def test_uniform_is_numpys_philox_with_the_same_key_and_counter(seed, decision, counter):
    key = np.array([seed, decision], dtype=np.uint64)
    theirs = np.random.Generator(np.random.Philox(key=key, counter=counter)).random()
    assert redraw(RandomDraw(algorithm="philox4x64", key=[seed, decision], counter=counter)) == theirs


@given(WEIGHTS, WORD, WORD)
def test_zero_probability_action_is_never_drawn_and_redraw_repeats(weights, seed, decision):
    probabilities = distribution(weights)
    index, uniform, source = draw(probabilities, seed, decision)
    assert probabilities[index] > 0.0
    assert 0.0 <= uniform < 1.0
    assert redraw(source) == uniform
    assert invert(probabilities, redraw(source)) == index
    assert draw(probabilities, seed, decision) == (index, uniform, source)


@given(WEIGHTS, st.floats(0.0, 1.0, exclude_max=True))
def test_any_uniform_number_falls_on_a_possible_action(weights, uniform):
    probabilities = distribution(weights)
    assert probabilities[invert(probabilities, uniform)] > 0.0


def test_uniform_zero_skips_a_leading_zero():
    assert invert([0.0, 0.0, 1.0, 0.0], 0.0) == 2


def test_largest_uniform_number_stays_inside_a_sum_rounded_below_one():
    tenths = [0.1] * 10
    assert sum(tenths) < 1.0
    assert invert([*tenths, 0.0], 1.0 - 2.0**-53) == 9


def test_interval_borders_belong_to_the_later_action():
    assert [invert([0.25, 0.25, 0.5], u) for u in (0.0, 0.2499, 0.25, 0.4999, 0.5, 0.99)] == [0, 0, 1, 1, 2, 2]


def test_frequencies_match_the_probabilities():
    probabilities = [0.5, 0.0, 0.3, 0.15, 0.05]
    draws = 20_000
    counts = np.bincount([draw(probabilities, 7, decision)[0] for decision in range(draws)], minlength=5)
    expected = np.array(probabilities) * draws
    used = expected > 0
    chi_square = float(((counts[used] - expected[used]) ** 2 / expected[used]).sum())
    assert counts[1] == 0
    assert chi_square < 16.3  # 99.9 % quantile at 3 degrees of freedom


def test_draws_of_neighbouring_seeds_and_decisions_are_unrelated():
    square = np.array([[draw([1.0], seed, decision)[1] for decision in range(60)] for seed in range(60)])
    assert len(np.unique(square)) == 3600
    for a, b in ((square[:, :-1], square[:, 1:]), (square[:-1], square[1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / math.sqrt(a.size)


@pytest.mark.parametrize("wrong", [[], [0.5, 0.4], [1.5, -0.5], [math.nan, 1.0], [math.inf], [1.0, 1e-9]])
def test_what_is_no_distribution_is_refused(wrong):
    with pytest.raises(PolicyInvalid):
        draw(wrong, 0, 1)


@pytest.mark.parametrize(
    "source",
    [
        RandomDraw(algorithm="mt19937", key=[0, 0], counter=0),
        RandomDraw(algorithm="philox4x64", key=[0], counter=0),
        RandomDraw(algorithm="philox4x64", key=[2**64, 0], counter=0),
        RandomDraw(algorithm="philox4x64", key=[0, 0], counter=-1),
    ],
)
def test_unknown_or_damaged_source_is_refused(source):
    with pytest.raises(ConfigError):
        redraw(source)


def test_negative_run_seed_is_refused():
    with pytest.raises(ConfigError, match="64"):
        draw([1.0], -1, 0)


@pytest.mark.parametrize("uniform", [-0.1, 1.0, math.nan])
def test_uniform_number_outside_the_unit_interval_is_refused(uniform):
    with pytest.raises(ConfigError):
        invert([1.0], uniform)
