"""The recorder keeps order, drops nothing, and says so when it cannot go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from esper.errors import ConcurrencyConflict, LogFull, LogUnavailable, RecorderStopped
from esper.events import Event, Fact, fact_of
from esper.events.operator import NoteAdded
from esper.ids import derived_id
from esper.oona import ANY, MemoryLog, Receipt, Recorder, iterate


def note(number: int, run_id: str = "run-1") -> NoteAdded:
    return NoteAdded(run_id=run_id, actor="ada", text=str(number))


def number_of(fact: Fact) -> int:
    assert isinstance(fact, NoteAdded)
    return int(fact.text)


class GatedLog(MemoryLog):
    """A log whose disk can be made to stall or to fill up; also notes the size of each append."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.full = False
        self.appends: list[tuple[str, int]] = []

    def append(self, batch: Sequence[Event], *, stream: str, expected: int) -> Receipt:
        self.gate.wait()
        if self.full:
            raise LogFull("the disk is full")
        self.appends.append((stream, len(batch)))
        return super().append(batch, stream=stream, expected=expected)


@pytest.fixture
def log() -> Iterator[GatedLog]:
    log = GatedLog()
    yield log
    log.gate.set()


def recorder(log: MemoryLog, **options: float) -> Recorder:
    return Recorder(log, sender_id="tolaria", trace_id="f" * 32, **options)  # type: ignore[arg-type]


def put_many(target: Recorder, numbers: Sequence[int], run_id: str = "run-1") -> None:
    for number in numbers:
        target.put(note(number, run_id), ("note", run_id, number))


def test_facts_of_several_streams_reach_the_log_in_the_order_they_were_put(log: GatedLog) -> None:
    with recorder(log, batch=8) as target:
        for number in range(500):
            run_id = f"run-{number // 3 % 4}"
            target.put(note(number, run_id), ("note", number))
    assert [number_of(fact_of(one)) for one in iterate(log)] == list(range(500))
    assert (target.written, target.queued) == (500, 0)


def test_an_event_carries_the_derived_id_the_sender_the_trace_and_the_cause(log: GatedLog) -> None:
    with recorder(log) as target:
        target.put(note(1), ("run", "run-1", 1, 7), b"c" * 16)
    (found,) = log.read()
    assert found.event_id == derived_id("run", "run-1", 1, 7)
    assert (found.sender_id, found.trace_id, found.causation_id) == ("tolaria", "f" * 32, b"c" * 16)


def test_flush_is_a_barrier_with_the_receipt_of_the_last_fact(log: GatedLog) -> None:
    with recorder(log, linger_s=60.0) as target:
        assert target.flush() is None
        put_many(target, range(10))
        assert target.flush() == Receipt(1, 10, 10, False, 0)
        assert log.head().position == 10
        assert target.flush() == Receipt(1, 10, 10, False, 0)
        put_many(target, [10])
        receipt = target.flush()
        assert receipt is not None
        assert receipt.last == 11


def test_consecutive_facts_of_a_stream_share_an_append_up_to_the_batch_size(log: GatedLog) -> None:
    log.gate.clear()
    with recorder(log, batch=10, linger_s=0.0) as target:
        put_many(target, [0])
        wait_until(lambda: target.queued == 0)
        put_many(target, range(1, 26))
        put_many(target, range(3), "run-2")
        put_many(target, range(26, 28))
        log.gate.set()
    assert log.appends == [
        ("operator/run-1", 1),
        ("operator/run-1", 10),
        ("operator/run-1", 10),
        ("operator/run-1", 5),
        ("operator/run-2", 3),
        ("operator/run-1", 2),
    ]
    assert target.batches == 6


def test_a_lone_fact_lingers_for_company_but_not_for_ever(log: GatedLog) -> None:
    with recorder(log, linger_s=0.2) as target:
        put_many(target, [0])
        time.sleep(0.05)
        assert log.head().position == 0
        put_many(target, [1, 2])
        assert log.wait(2, 10.0)
        assert log.appends == [("operator/run-1", 3)]


def test_a_full_batch_does_not_linger(log: GatedLog) -> None:
    with recorder(log, batch=16, linger_s=60.0) as target:
        put_many(target, range(16))
        assert log.wait(15, 10.0)


def test_a_full_queue_makes_put_wait_and_loses_nothing(log: GatedLog) -> None:
    log.gate.clear()
    target = recorder(log, capacity=20, batch=5, linger_s=0.0)
    writer = threading.Thread(target=put_many, args=(target, range(200)))
    writer.start()
    wait_until(lambda: target.stalls > 0)
    time.sleep(0.05)
    assert writer.is_alive()
    assert target.queued <= 20
    log.gate.set()
    writer.join(20.0)
    assert not writer.is_alive()
    target.close()
    assert [number_of(fact_of(one)) for one in iterate(log)] == list(range(200))


def test_puts_from_several_threads_keep_each_threads_order(log: GatedLog) -> None:
    with recorder(log, capacity=50) as target:
        writers = [threading.Thread(target=put_many, args=(target, range(300), f"run-{name}")) for name in range(3)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
    for name in range(3):
        found = log.read_stream(f"operator/run-{name}")
        assert [number_of(fact_of(one)) for one in found] == list(range(300))


def test_an_owned_stream_is_appended_with_its_exact_version(log: GatedLog) -> None:
    log.append([event(0)], stream="operator/run-1", expected=ANY)
    with recorder(log) as target:
        target.own("operator/run-1", 1)
        put_many(target, [1, 2])
        target.flush()
        put_many(target, [3])
    assert log.stream_version("operator/run-1") == 4


def test_a_second_writer_of_an_owned_stream_stops_the_recorder(log: GatedLog) -> None:
    target = recorder(log)
    target.own("operator/run-1", 0)
    put_many(target, [0])
    target.flush()
    log.append([event(99)], stream="operator/run-1", expected=ANY)
    put_many(target, [1])
    with pytest.raises(RecorderStopped) as caught:
        target.flush()
    assert isinstance(caught.value.__cause__, ConcurrencyConflict)
    assert log.head().position == 2


def test_a_recorder_that_died_says_why_at_the_next_put_flush_and_close(log: GatedLog) -> None:
    target = recorder(log, linger_s=0.0)
    put_many(target, [0])
    target.flush()
    log.full = True
    put_many(target, [1])
    with pytest.raises(RecorderStopped, match="after 1 facts: the disk is full") as caught:
        target.flush()
    assert isinstance(caught.value.__cause__, LogFull)
    assert caught.value.hint == LogFull.hint
    for again in (lambda: put_many(target, [2]), target.flush, target.close):
        with pytest.raises(RecorderStopped):
            again()
    assert log.head().position == 1


def test_a_put_that_waits_for_room_is_woken_when_the_recorder_dies(log: GatedLog) -> None:
    log.gate.clear()
    target = recorder(log, capacity=4, batch=2, linger_s=0.0)
    caught: list[RecorderStopped] = []

    def write() -> None:
        try:
            put_many(target, range(50))
        except RecorderStopped as error:
            caught.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    wait_until(lambda: target.stalls > 0)
    log.full = True
    log.gate.set()
    writer.join(20.0)
    assert len(caught) == 1


def test_a_fact_no_log_can_take_stops_the_recorder_too(log: GatedLog) -> None:
    target = recorder(log, linger_s=0.0)
    target.put("not a fact", ("note", 1))  # type: ignore[arg-type]
    with pytest.raises(RecorderStopped) as caught:
        target.flush()
    assert isinstance(caught.value.__cause__, AttributeError)


def test_flush_gives_up_after_its_timeout_and_the_facts_stay_queued(log: GatedLog) -> None:
    log.gate.clear()
    target = recorder(log)
    put_many(target, range(5))
    with pytest.raises(LogUnavailable, match=r"within 0\.05 s"):
        target.flush(0.05)
    log.gate.set()
    receipt = target.flush()
    assert receipt is not None
    assert receipt.last == 5
    target.close()


def test_a_closed_recorder_takes_no_more_and_closing_twice_is_fine(log: GatedLog) -> None:
    target = recorder(log)
    put_many(target, range(3))
    target.close()
    target.close()
    assert log.head().position == 3
    with pytest.raises(RecorderStopped, match="closed"):
        put_many(target, [3])
    with pytest.raises(RecorderStopped, match="closed"):
        target.flush()


def test_an_error_in_the_block_is_not_hidden_by_the_recorders(log: GatedLog) -> None:
    def fail(target: Recorder) -> None:
        with target:
            put_many(target, [0])
            wait_until(lambda: target.queued == 0)
            raise ZeroDivisionError

    log.full = True
    with pytest.raises(ZeroDivisionError):
        fail(recorder(log, linger_s=0.0))
    log.full = False
    with pytest.raises(ZeroDivisionError):
        fail(recorder(log, linger_s=0.0))
    assert log.head().position == 1


def event(number: int) -> Event:
    return Event(fact=note(number), event_id=derived_id("other", number), sender_id="test", trace_id="0" * 32)


def wait_until(true: object) -> None:
    deadline = time.monotonic() + 20.0
    assert callable(true)
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)
