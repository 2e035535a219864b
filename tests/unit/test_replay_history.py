"""The path through a run's facts that counts, whatever was killed, resumed or rolled back."""

from __future__ import annotations

from typing import Any

import pytest

from esper.errors import NotFound, ReplayError
from esper.events import Event, Fact
from esper.events.run import CheckpointSaved, RolledBack, RunFinished, RunPaused, RunResumed, RunStarted
from esper.events.run import TrainingStepCompleted as Step
from esper.ids import derived_id
from esper.oona import open_log
from esper.oona.port import ANY, EventLog
from replay.history import load_history, overlap_disagreement
from replay.state import state_at

RUN = "run-1"


class Writer:
    """Appends facts of one run with ordinals."""

    def __init__(self) -> None:
        self.log: EventLog = open_log("memory://")
        self.attempt = 1
        self.ordinal = 0

    def add(self, cls: type[Fact], **fields: Any) -> Writer:
        self.ordinal += 1
        fact = cls(run_id=RUN, attempt=self.attempt, ordinal=self.ordinal, **fields)
        event = Event(
            fact=fact,
            event_id=derived_id("run", RUN, self.attempt, self.ordinal),
            sender_id="test",
            trace_id="0" * 32,
        )
        self.log.append([event], stream=fact.stream, expected=ANY)
        return self

    def next_attempt(self) -> Writer:
        self.attempt += 1
        self.ordinal = 0
        return self

    def started(self) -> Writer:
        return self.add(
            RunStarted,
            task="t",
            entry_point=None,
            host="h",
            policy="off",
            config={},
            config_version=1,
            seeds={},
            total_steps=9,
            steps_per_epoch=3,
            git_commit=None,
            git_dirty_digest=None,
            packages={},
            environment={},
            environment_digest=b"",
            dataset_digest=None,
        )

    def step(self, number: int, loss: float = 1.0) -> Writer:
        return self.add(
            Step, epoch=0, step=number, loss=loss, learning_rate=0.1, samples_digest=None, duration_s=0.5 * self.attempt
        )

    def saved(self, step: int, digest: bytes) -> Writer:
        return self.add(CheckpointSaved, step=step, digest=digest, size_bytes=1)

    def resumed(self, digest: bytes, step: int) -> Writer:
        return self.next_attempt().add(
            RunResumed,
            from_step=step,
            checkpoint_digest=digest,
            redone_steps=0,
            writer="w",
            reason="test",
            environment_digest=b"",
        )


def steps(writer: Writer) -> list[tuple[int, int]]:
    history = load_history(writer.log, RUN)
    return [(one.fact.attempt, one.fact.step) for one in history.path if isinstance(one.fact, Step)]


def test_an_undisturbed_run_counts_whole() -> None:
    writer = Writer().started().step(1).step(2)
    assert steps(writer) == [(1, 1), (1, 2)]
    assert load_history(writer.log, RUN).overlaps == []


def test_a_resumed_run_leaves_out_what_was_done_again() -> None:
    writer = Writer().started().saved(0, b"a").step(1).saved(1, b"b").step(2).step(3)
    writer.resumed(b"b", 1).step(2).step(3).step(4)
    assert steps(writer) == [(1, 1), (2, 2), (2, 3), (2, 4)]


def test_overlapping_attempts_that_agree_are_counted_and_that_differ_are_named() -> None:
    agree = Writer().started().saved(0, b"a").step(1).step(2).resumed(b"a", 0).step(1).step(2)
    history = load_history(agree.log, RUN)
    assert len(history.overlaps) == 2
    assert overlap_disagreement(history) is None
    differ = Writer().started().saved(0, b"a").step(1).step(2).resumed(b"a", 0).step(1).step(2, loss=1.5)
    found = overlap_disagreement(load_history(differ.log, RUN))
    assert found is not None
    assert found[1] == "loss"
    assert found[0].superseded.fact.step == 2  # type: ignore[attr-defined]


def test_a_run_killed_twice_over_the_same_stretch_counts_the_last() -> None:
    writer = Writer().started().saved(0, b"a").step(1).step(2).resumed(b"a", 0).step(1).resumed(b"a", 0).step(1).step(2)
    assert steps(writer) == [(3, 1), (3, 2)]


def test_a_pause_is_no_part_of_what_is_repeated() -> None:
    writer = Writer().started().saved(0, b"a").step(1).saved(1, b"b").add(RunPaused, step=1, reason="x")
    writer.resumed(b"b", 1).step(2)
    assert [type(one.fact).__name__ for one in load_history(writer.log, RUN).path] == [
        "CheckpointSaved",
        "TrainingStepCompleted",
        "CheckpointSaved",
        "TrainingStepCompleted",
    ]


def test_a_rollback_stays_on_the_path() -> None:
    writer = Writer().started().saved(0, b"a").step(1).next_attempt()
    writer.add(RolledBack, from_step=1, to_step=0, checkpoint_digest=b"a", culled_seed_id=None).step(1)
    assert steps(writer) == [(1, 1), (2, 1)]
    assert state_at(writer.log, RUN)["rollbacks"] == 1


def test_a_resumption_from_an_unknown_checkpoint_is_an_error() -> None:
    with pytest.raises(ReplayError, match="none of its facts names"):
        load_history(Writer().started().step(1).resumed(b"zz", 1).log, RUN)


def test_an_unknown_run_is_not_found() -> None:
    with pytest.raises(NotFound, match="run-none"):
        load_history(open_log("memory://"), "run-none")


def test_state_at_a_position_knows_nothing_of_later_facts() -> None:
    writer = Writer().started().step(1, loss=3.0).step(2, loss=2.0)
    writer.add(
        RunFinished,
        step=2,
        test_loss=0.5,
        test_accuracy=0.9,
        parameters=10,
        folded_parameters=9,
        training_flops=100,
        inference_flops=5,
        parameter_digest=b"d",
        duration_s=1.0,
    )
    before = state_at(writer.log, RUN, position=2)
    assert (before["step"], before["loss"], before["status"], before["result"]) == (1, 3.0, "running", None)
    after = state_at(writer.log, RUN)
    assert (after["step"], after["status"], after["result"]["test_accuracy"]) == (2, "finished", 0.9)
