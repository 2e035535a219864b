"""Numbering facts and handing them to the recorder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from esper.errors import ConcurrencyConflict, RecorderStopped
from esper.events import fact_of
from esper.events.decision import DecisionExecuted, FieldReportFiled
from esper.events.run import RunPaused
from esper.ids import derived_id
from esper.oona import open_log
from esper.oona.port import EventLog
from esper.oona.recording.recorder import Recorder
from esper.tolaria.sink import RecordingSink

RUN = "run-1"


@pytest.fixture
def log() -> EventLog:
    return open_log("memory://")


@pytest.fixture
def recorder(log: EventLog) -> Iterator[Recorder]:
    with Recorder(log, sender_id="test", trace_id="0" * 32) as recorder:
        yield recorder


def pause(sink: RecordingSink, step: int) -> None:
    sink.emit(RunPaused, step=step, reason="test")


def report(sink: RecordingSink, outcome: str) -> None:
    sink.emit(
        FieldReportFiled,
        seed_id="seed-1",
        site="0",
        blueprint_id="b",
        kernel_id="k",
        outcome=outcome,
        steps=5,
        gain=None,
        gain_stderr=None,
    )


def facts(log: EventLog, stream: str) -> list[Any]:
    return [fact_of(envelope) for envelope in log.read_stream(stream)]


def test_run_facts_are_numbered_within_their_attempt(log: EventLog, recorder: Recorder) -> None:
    sink = RecordingSink(recorder, RUN)
    pause(sink, 1)
    pause(sink, 2)
    sink.next_attempt()
    pause(sink, 2)
    sink.barrier()
    told = [(fact.attempt, fact.ordinal, fact.step) for fact in facts(log, f"run/{RUN}")]
    assert told == [(1, 1, 1), (1, 2, 2), (2, 1, 2)]


def test_ids_follow_from_run_attempt_and_ordinal(log: EventLog, recorder: Recorder) -> None:
    sink = RecordingSink(recorder, RUN)
    pause(sink, 1)
    sink.emit(DecisionExecuted, decision=4, step=1, executed=True, reason=None)
    sink.barrier()
    assert log.read_stream(f"run/{RUN}")[0].event_id == derived_id("run", RUN, 1, 1)
    decided = log.read_stream(f"decision/{RUN}")[0]
    assert decided.event_id == derived_id("decision", RUN, 1, "4", "DecisionExecuted")


def test_decision_facts_do_not_take_ordinals(log: EventLog, recorder: Recorder) -> None:
    sink = RecordingSink(recorder, RUN)
    sink.emit(DecisionExecuted, decision=1, step=1, executed=True, reason=None)
    pause(sink, 1)
    sink.barrier()
    assert facts(log, f"run/{RUN}")[0].ordinal == 1


def test_a_seed_can_be_reported_kept_and_later_faulted(log: EventLog, recorder: Recorder) -> None:
    sink = RecordingSink(recorder, RUN)
    report(sink, "fossilized")
    report(sink, "faulted")
    sink.barrier()
    assert [fact.outcome for fact in facts(log, f"decision/{RUN}")] == ["fossilized", "faulted"]


def test_a_barrier_means_that_the_facts_are_in_the_log(log: EventLog, recorder: Recorder) -> None:
    sink = RecordingSink(recorder, RUN)
    pause(sink, 1)
    receipt = sink.barrier()
    assert receipt is not None
    assert receipt.last == log.head().position == 1


def test_a_second_writer_of_the_run_shuts_the_first_out(log: EventLog) -> None:
    overtaken = Recorder(log, sender_id="test", trace_id="0" * 32)
    first = RecordingSink(overtaken, RUN)
    pause(first, 1)
    first.barrier()
    with Recorder(log, sender_id="other", trace_id="1" * 32) as other:
        second = RecordingSink(other, RUN, attempt=2, version=1)
        pause(second, 1)
        second.barrier()
    pause(first, 2)
    with pytest.raises(RecorderStopped) as caught:
        first.barrier()
    assert isinstance(caught.value.__cause__, ConcurrencyConflict)
    with pytest.raises(RecorderStopped):
        pause(first, 3)
    assert [fact.attempt for fact in facts(log, f"run/{RUN}")] == [1, 2]
