"""Comparison by bits and within a tolerance."""

from __future__ import annotations

import math

import pytest

from esper.events.run import CheckpointSaved, EpochCompleted
from esper.events.run import TrainingStepCompleted as Step
from replay.compare import Comparison


def step(loss: float, duration_s: float = 0.1, attempt: int = 1) -> Step:
    return Step(
        run_id="r",
        attempt=attempt,
        ordinal=attempt,
        epoch=0,
        step=3,
        loss=loss,
        learning_rate=0.1,
        samples_digest=b"s",
        duration_s=duration_s,
    )


def test_equal_bits_agree_and_durations_do_not_matter() -> None:
    assert Comparison().difference(step(0.1), step(0.1, duration_s=9.0, attempt=2)) is None


def test_nan_equals_nan_but_zero_differs_from_negative_zero() -> None:
    assert Comparison().difference(step(math.nan), step(math.nan)) is None
    assert Comparison().difference(step(0.0), step(-0.0)) is not None


def test_the_smallest_difference_is_found_and_shown_with_its_bits() -> None:
    other = math.nextafter(0.1, 1.0)
    found = Comparison().difference(step(0.1), step(other))
    assert found is not None
    assert found.quantity == "TrainingStepCompleted.loss"
    assert (0.1).hex() in found.expected
    assert other.hex() in found.got


@pytest.mark.parametrize(("got", "agrees"), [(1.0005, True), (1.01, False), (math.nan, False)])
def test_tolerance_takes_what_is_near_and_keeps_the_largest_deviation(got: float, agrees: bool) -> None:
    comparison = Comparison(1e-3)
    assert (comparison.difference(step(1.0), step(got)) is None) is agrees
    if agrees:
        assert comparison.largest_deviation == pytest.approx(5e-4)


def test_tolerance_leaves_out_digests_of_state_but_not_names_or_counts() -> None:
    saved = CheckpointSaved(run_id="r", attempt=1, ordinal=1, step=3, digest=b"a", size_bytes=10)
    other = CheckpointSaved(run_id="r", attempt=1, ordinal=1, step=3, digest=b"b", size_bytes=11)
    late = CheckpointSaved(run_id="r", attempt=1, ordinal=1, step=4, digest=b"a", size_bytes=10)
    assert Comparison(1e-3).difference(saved, other) is None
    assert Comparison(1e-3).difference(saved, late) is not None
    assert Comparison().difference(saved, other) is not None


def test_facts_of_different_types_differ() -> None:
    epoch = EpochCompleted(
        run_id="r",
        attempt=1,
        ordinal=1,
        epoch=0,
        step=3,
        train_loss=1.0,
        validation_loss=None,
        validation_accuracy=None,
        parameters=1,
        training_flops=1,
        parameter_digest=b"",
        data_digest=b"",
        duration_s=0.0,
    )
    found = Comparison(0.5).difference(step(1.0), epoch)
    assert found is not None
    assert found.quantity == "fact type"
