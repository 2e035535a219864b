"""The governor: quiet on noise, loud on trouble."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from esper.errors import CheckpointDamaged, ConfigError
from esper.tolaria.governor import Governor, GovernorSettings, Trip

STEPS = 3000


def feed(governor: Governor, losses, start: int = 0) -> tuple[int, Trip] | None:
    """Give losses in order and return the first trip with its step."""
    for step, loss in enumerate(losses, start + 1):
        trip = governor.check(step, float(loss))
        if trip is not None:
            return step, trip
    return None


def noise(rng: np.random.Generator, steps: int, kind: str, size: float) -> np.ndarray:
    """Return multiplicative noise of mean 1."""
    if kind == "gamma":
        return rng.gamma(1 / size**2, size**2, steps)
    if kind == "normal":
        return 1 + size / 2 * rng.normal(size=steps)
    return np.exp(size * rng.normal(size=steps) - size * size / 2)


def healthy_run(seed: int) -> np.ndarray:
    """Return losses of a run in which nothing is wrong: decay or plateau, heavy noise, slow wander, lone spikes."""
    rng = np.random.default_rng(seed)
    first = rng.choice([0.05, 0.7, 2.3, 4.6, 8.0, 30.0])
    last = first * rng.choice([0.001, 0.02, 0.1, 0.4, 0.8, 1.0])
    t = np.arange(STEPS)
    time_scale = rng.choice([30, 150, 600, 1500])
    shape = np.exp(-t / time_scale) if rng.random() < 0.7 else 1 / (1 + t / time_scale)
    level = last + (first - last) * shape
    memory, wander = rng.choice([0.9, 0.98, 0.995]), rng.choice([0.0, 0.02, 0.04])
    shocks = rng.normal(size=STEPS) * math.sqrt(1 - memory**2)
    walk = np.zeros(STEPS)
    for i in range(1, STEPS):
        walk[i] = memory * walk[i - 1] + shocks[i]
    losses = level * np.exp(wander * walk)
    losses = losses * noise(rng, STEPS, rng.choice(["gamma", "normal", "lognormal"]), rng.choice([0.02, 0.1, 0.3, 1.0]))
    for at in 50 + 400 * np.arange(6) + rng.integers(0, 300, 6):
        losses[at : at + 3] += first * rng.uniform(0.2, 3) * np.array([1, 0.6, 0.3])
    return losses


def plateau_then(rng: np.random.Generator, then: np.ndarray, size: float = 0.2) -> np.ndarray:
    """Return 1000 losses that fall from 2.3 to 0.5, and then 0.5 plus what is given, all with noise."""
    t = np.arange(1000)
    level = np.concatenate([0.5 + 1.8 * np.exp(-t / 150), 0.5 + then])
    return level * noise(rng, len(level), "lognormal", size)


def test_two_hundred_healthy_noisy_runs_never_trip():
    tripped = {seed: found for seed in range(200) if (found := feed(Governor(), healthy_run(seed)))}
    assert tripped == {}


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_loss_that_is_not_finite_trips_at_once(loss):
    governor = Governor()
    assert feed(governor, [2.3, 2.2]) is None
    trip = governor.check(3, loss)
    assert trip is not None
    assert trip.kind == "not_finite"
    assert trip.evidence["last_finite"] == 2.2
    assert all(map(math.isfinite, trip.evidence.values()))


def test_very_first_loss_that_is_not_finite_trips():
    trip = Governor().check(1, math.nan)
    assert trip == Trip(kind="not_finite", evidence={"is_nan": 1.0})


@pytest.mark.parametrize("seed", range(10))
def test_jump_trips_as_divergence_within_five_steps(seed):
    losses = plateau_then(np.random.default_rng(seed), np.full(100, 2.5))
    found = feed(Governor(), losses)
    assert found is not None
    assert found[1].kind == "divergence"
    assert 1001 <= found[0] <= 1005
    assert found[1].evidence["loss"] > found[1].evidence["bound"] > found[1].evidence["median"]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_thresholds_follow_the_runs_own_scale(scale):
    losses = plateau_then(np.random.default_rng(1), np.full(100, 2.5)) * scale
    found = feed(Governor(), losses)
    assert found is not None
    assert 1001 <= found[0] <= 1005


@pytest.mark.parametrize(("slope", "latest"), [(4e-3, 200), (2e-3, 300), (1e-3, 500), (5e-4, 1000)])
def test_steady_climb_trips_as_drift_within_the_stated_steps(slope, latest):
    for seed in range(10):
        found = feed(Governor(), plateau_then(np.random.default_rng(seed), slope * np.arange(1500)))
        assert found is not None
        assert found[1].kind == "drift"
        assert 1000 < found[0] <= 1000 + latest


def test_explosion_is_caught_before_it_overflows():
    growth = 0.5 * (np.exp(np.arange(700) / 40) - 1)
    found = feed(Governor(), plateau_then(np.random.default_rng(0), growth))
    assert found is not None
    assert found[0] <= 1150


def test_losses_below_zero_are_judged_too():
    rng = np.random.default_rng(3)
    losses = np.concatenate([-3 + 2 * np.exp(-np.arange(1000) / 100), np.full(50, 4.0)]) + 0.1 * rng.normal(size=1050)
    found = feed(Governor(), losses)
    assert found is not None
    assert found[1].kind == "divergence"
    assert 1001 <= found[0] <= 1005


def test_constant_loss_never_trips_and_a_rise_from_it_does():
    governor = Governor()
    assert feed(governor, [0.7] * 1000) is None
    found = feed(governor, [0.95] * 200, start=1000)
    assert found is not None
    assert found[1].kind == "drift"


def test_four_bad_losses_are_forgiven_and_five_are_not():
    quiet = [1.0 + 0.01 * (i % 7) for i in range(100)]
    assert feed(Governor(), [*quiet, 9.0, 9.0, 9.0, 9.0, *quiet]) is None
    assert feed(Governor(), [*quiet, 9.0, 9.0, 9.0, 9.0, 9.0]) is not None


def test_announced_rise_does_not_trip_and_the_same_rise_unannounced_does():
    losses = plateau_then(np.random.default_rng(5), np.full(1500, 0.5), size=0.1)
    assert feed(Governor(), losses) is not None
    governor = Governor()
    assert feed(governor, losses[:1000]) is None
    governor.note_change(1000)
    assert feed(governor, losses[1000:], start=1000) is None


def test_change_applies_from_its_own_step_even_when_announced_early():
    losses = plateau_then(np.random.default_rng(5), np.full(1500, 0.5), size=0.1)
    early, punctual = Governor(), Governor()
    early.note_change(1000)
    feed(early, losses)
    feed(punctual, losses[:1000])
    punctual.note_change(1000)
    feed(punctual, losses[1000:], start=1000)
    assert early.state() == punctual.state()


def test_grace_still_catches_what_does_not_come_back():
    losses = plateau_then(np.random.default_rng(6), np.full(50, 40.0))
    governor = Governor()
    governor.note_change(1000)
    found = feed(governor, losses)
    assert found is not None
    assert found[0] <= 1005


@pytest.mark.parametrize("cut", [3, 19, 777, 1290])
def test_state_through_msgpack_restores_exactly(cut):
    losses = plateau_then(np.random.default_rng(8), 1e-3 * np.arange(1500))
    whole, first = Governor(), Governor()
    expected = feed(whole, losses)
    assert expected is not None
    assert feed(first, losses[:cut]) is None
    first.note_change(2_000_000)
    stored = msgspec.msgpack.encode(first.state())
    second = Governor()
    second.restore(msgspec.msgpack.decode(stored))
    assert msgspec.msgpack.encode(second.state()) == stored
    assert feed(second, losses[cut:], start=cut) == expected


def test_restored_state_is_not_shared_with_the_one_it_came_from():
    first, second = Governor(), Governor()
    feed(first, [1.0] * 50)
    kept = first.state()
    second.restore(kept)
    feed(first, [2.0] * 10, start=50)
    assert second.state() == kept


def test_rollback_to_an_earlier_state_sees_the_same_steps_again():
    losses = plateau_then(np.random.default_rng(9), np.full(100, 2.5))
    governor = Governor()
    feed(governor, losses[:900])
    kept = governor.state()
    first = feed(governor, losses[900:], start=900)
    governor.restore(kept)
    assert feed(governor, losses[900:], start=900) == first


@pytest.mark.parametrize("damaged", [{"step": "x"}, {"surplus": 1}, {"recent": 3}])
def test_damaged_state_is_refused(damaged):
    with pytest.raises(CheckpointDamaged):
        Governor().restore({**Governor().state(), **damaged})


def test_step_out_of_order_is_refused():
    governor = Governor()
    governor.check(5, 1.0)
    with pytest.raises(ConfigError, match="step 5"):
        governor.check(5, 1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 0},
        {"least_losses": 100},
        {"divergence_multiple": 0.5},
        {"drift_frac": math.nan},
        {"max_rollbacks": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        GovernorSettings(**wrong)
