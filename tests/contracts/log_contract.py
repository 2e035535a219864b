"""What every log adapter must do. A new adapter passes by subclassing ``LogContract`` with its own ``open_log``."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator

import pytest
from msgspec.structs import astuple

from esper.clock import Clock, ManualClock
from esper.errors import ConcurrencyConflict, EventIdReused, EventTooLarge, LogUnavailable, SchemaError
from esper.events import Event, Fact, fact_of
from esper.events.envelope import Recorded
from esper.events.operator import NoteAdded
from esper.events.run import TrainingStepCompleted
from esper.ids import derived_id
from esper.names import TopicNames
from esper.oona import ANY, MAX_PAYLOAD_BYTES, NO_STREAM, AsyncLog, EventLog, Head, iterate

STREAM = "operator/run-1"


def note(number: int | str, text: str = "seen", *, run_id: str = "run-1", causation_id: bytes | None = None) -> Event:
    """Return a note whose id is derived from its number."""
    fact = NoteAdded(run_id=run_id, actor="ada", text=text)
    return event(fact, derived_id("note", run_id, number), causation_id)


def step(number: int, loss: float = 0.5, duration_s: float = 0.01, *, run_id: str = "run-1") -> Event:
    """Return a step fact whose id is derived from its number."""
    fact = TrainingStepCompleted(
        run_id=run_id,
        attempt=1,
        ordinal=number,
        epoch=0,
        step=number,
        loss=loss,
        learning_rate=0.001,
        samples_digest=b"s" * 16,
        duration_s=duration_s,
    )
    return event(fact, derived_id("run", run_id, 1, number))


def event(fact: Fact, event_id: bytes, causation_id: bytes | None = None) -> Event:
    """Return an event of a fact."""
    return Event(fact=fact, event_id=event_id, sender_id="test", trace_id="0" * 32, causation_id=causation_id)


def append_threes(log: EventLog, run_id: str) -> None:
    """Append forty batches of three notes."""
    for number in range(40):
        batch = [note(3 * number + part, run_id=run_id) for part in range(3)]
        log.append(batch, stream=f"operator/{run_id}", expected=ANY)


def follow(log: EventLog, done: threading.Event, faults: list[str]) -> None:
    """Read along until done, and note every hole and every batch that is seen in part."""
    position = 0
    while not done.is_set() or position < log.head().position:
        for one in log.read(position, 7):
            if one.position != position + 1:
                faults.append(f"{one.position} after {position}")
            position = one.position
        if (head := log.head().position) % 3:
            faults.append(f"half a batch at {head}")


class LogContract(ABC):
    """The behaviour of ``EventLog``, one sentence a test."""

    @abstractmethod
    def open_log(self, clock: Clock) -> EventLog:
        """Return a new, empty log."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def log(self, clock: ManualClock) -> Iterator[EventLog]:
        log = self.open_log(clock)
        yield log
        log.close()

    # --- appending

    def test_an_empty_log_has_head_zero_and_a_chain_of_zeros(self, log: EventLog) -> None:
        assert log.head() == Head(0, bytes(32))
        assert log.chain_at(0) == bytes(32)
        assert log.chain_at(1) is None
        assert log.read() == []
        assert log.verify().events == 0

    def test_append_numbers_positions_and_versions_from_one(self, log: EventLog) -> None:
        receipt = log.append([note(1), note(2)], stream=STREAM, expected=NO_STREAM)
        assert (receipt.first, receipt.last, receipt.version) == (1, 2, 2)
        assert receipt.fsynced is log.fsynced
        assert receipt.replicas == 0
        other = log.append([note(1, run_id="run-2")], stream="operator/run-2", expected=NO_STREAM)
        assert (other.first, other.last, other.version) == (3, 3, 1)
        assert [(one.position, one.version) for one in log.read()] == [(1, 1), (2, 2), (3, 1)]

    def test_a_record_comes_back_as_it_was_appended(self, log: EventLog, clock: ManualClock) -> None:
        appended = note(1, "ein Gruß 🌱", causation_id=b"c" * 16)
        log.append([appended], stream=STREAM, expected=ANY)
        (found,) = log.read()
        assert fact_of(found) == appended.fact
        assert found.event_id == appended.event_id
        assert (found.type, found.schema, found.topic) == ("NoteAdded", 1, "operator.actions")
        assert (found.stream, found.sender_id, found.trace_id) == (STREAM, "test", "0" * 32)
        assert found.causation_id == b"c" * 16
        assert found.recorded_at == clock.now_us()

    @pytest.mark.parametrize("loss", [0.1, -0.0, math.inf, math.nan, 5e-324])
    def test_floats_keep_their_bits(self, log: EventLog, loss: float) -> None:
        log.append([step(1, loss)], stream="run/run-1", expected=ANY)
        fact = fact_of(log.read()[0])
        assert isinstance(fact, TrainingStepCompleted)
        assert fact.loss.hex() == loss.hex()

    def test_append_with_the_exact_version_is_taken(self, log: EventLog) -> None:
        log.append([note(1)], stream=STREAM, expected=NO_STREAM)
        assert log.append([note(2)], stream=STREAM, expected=1).version == 2

    @pytest.mark.parametrize("expected", [NO_STREAM, 1, 3])
    def test_append_with_stale_version_raises_conflict_and_writes_nothing(self, log: EventLog, expected: int) -> None:
        log.append([note(1), note(2)], stream=STREAM, expected=ANY)
        before = log.read(), log.head()
        with pytest.raises(ConcurrencyConflict) as caught:
            log.append([note(3), note(4)], stream=STREAM, expected=expected)
        assert (caught.value.stream, caught.value.expected, caught.value.current) == (STREAM, expected, 2)
        assert (log.read(), log.head()) == before

    def test_a_version_on_an_empty_stream_raises_conflict(self, log: EventLog) -> None:
        with pytest.raises(ConcurrencyConflict):
            log.append([note(1)], stream=STREAM, expected=1)

    @pytest.mark.parametrize(
        ("batch", "error"),
        [
            ([], SchemaError),
            ([note(1), note(2, run_id="run-2")], SchemaError),
            ([event(note(1).fact, b"short")], SchemaError),
            ([note(1), note(2, causation_id=b"short")], SchemaError),
            ([note(1), note(2, "x" * MAX_PAYLOAD_BYTES)], EventTooLarge),
            ([note(1), note(2), note(1)], EventIdReused),
        ],
        ids=["empty", "two streams", "short id", "short causation id", "too large", "id twice"],
    )
    def test_a_bad_batch_is_refused_whole(self, log: EventLog, batch: list[Event], error: type[Exception]) -> None:
        with pytest.raises(error):
            log.append(batch, stream=STREAM, expected=ANY)
        assert log.head().position == 0

    # --- retries

    @pytest.mark.parametrize("expected", [ANY, NO_STREAM, 7])
    def test_a_retried_batch_returns_the_first_receipt_and_writes_nothing(self, log: EventLog, expected: int) -> None:
        batch = [note(1), note(2)]
        first = log.append(batch, stream=STREAM, expected=NO_STREAM)
        log.append([note(3)], stream=STREAM, expected=2)
        assert log.append(batch, stream=STREAM, expected=expected) == first
        assert log.head().position == 3

    def test_a_retry_may_differ_in_volatile_fields(self, log: EventLog) -> None:
        first = log.append([step(1, math.nan, 0.01)], stream="run/run-1", expected=ANY)
        assert log.append([step(1, math.nan, 0.99)], stream="run/run-1", expected=ANY) == first

    @pytest.mark.parametrize("other", [note(1, "another"), note(1, run_id="run-1", text="seeN")])
    def test_an_id_reused_for_another_fact_raises_and_writes_nothing(self, log: EventLog, other: Event) -> None:
        log.append([note(0), note(1)], stream=STREAM, expected=ANY)
        with pytest.raises(EventIdReused) as caught:
            log.append([other], stream=STREAM, expected=ANY)
        assert caught.value.position == 2
        assert caught.value.event_id == other.event_id.hex()
        assert log.head().position == 2

    def test_an_id_reused_in_another_stream_raises(self, log: EventLog) -> None:
        log.append([note(1)], stream=STREAM, expected=ANY)
        stolen = event(NoteAdded(run_id="run-2", actor="ada", text="seen"), note(1).event_id)
        with pytest.raises(EventIdReused):
            log.append([stolen], stream="operator/run-2", expected=ANY)

    @pytest.mark.parametrize("expected", [ANY, 1, 9])
    def test_a_batch_that_overlaps_in_part_raises_and_writes_nothing(self, log: EventLog, expected: int) -> None:
        log.append([note(1)], stream=STREAM, expected=ANY)
        with pytest.raises(EventIdReused) as caught:
            log.append([note(2), note(1), note(3)], stream=STREAM, expected=expected)
        assert caught.value.position == 1
        assert log.head().position == 1
        assert log.append([note(2), note(3)], stream=STREAM, expected=1).last == 3

    # --- reading

    def test_read_pages_in_order_between_bounds(self, log: EventLog) -> None:
        log.append([note(number) for number in range(10)], stream=STREAM, expected=ANY)
        assert [one.position for one in log.read(3, 4)] == [4, 5, 6, 7]
        assert [one.position for one in log.read(3, 4, until=5)] == [4, 5]
        assert log.read(10) == []
        assert log.read(0, 0) == []
        assert log.read(0, -1) == []
        assert log.read(5, until=3) == []

    def test_what_projections_read_is_what_read_gives(self, log: EventLog) -> None:
        log.append([note(number) for number in range(10)], stream=STREAM, expected=ANY)
        for after, limit, until in ((0, 100, None), (3, 4, None), (3, 4, 5), (10, 1, None), (5, 5, 3), (0, -1, None)):
            found, envelopes = log.read_recorded(after, limit, until=until), log.read(after, limit, until=until)
            names = Recorded.__struct_fields__
            assert [astuple(one) for one in found] == [tuple(getattr(one, name) for name in names) for one in envelopes]

    def test_read_by_topics_skips_no_record_of_them(self, log: EventLog) -> None:
        for number in range(1, 31):
            if number % 3:
                log.append([step(number)], stream="run/run-1", expected=ANY)
            else:
                log.append([note(number)], stream=STREAM, expected=ANY)
        notes = [number for number in range(1, 31) if number % 3 == 0]
        wanted = {TopicNames.OPERATOR_ACTIONS}
        assert [one.position for one in log.read(topics=wanted)] == notes
        assert [one.position for one in log.read(6, 3, topics=wanted)] == [9, 12, 15]
        assert [one.position for one in log.read(0, 5, topics=wanted, until=9)] == [3, 6, 9]
        both = [TopicNames.OPERATOR_ACTIONS, "training.steps", "training.steps"]
        assert [one.position for one in log.read(4, 5, topics=both)] == [5, 6, 7, 8, 9]
        assert log.read(topics=[]) == []
        assert log.read(topics=["no.such.topic"]) == []
        paged = [one.position for one in iterate(log, topics=wanted, batch=2)]
        assert paged == notes

    def test_iterate_ends_at_the_head_of_its_start(self, log: EventLog) -> None:
        log.append([note(number) for number in range(5)], stream=STREAM, expected=ANY)
        walk = iterate(log, batch=2)
        seen = [next(walk).position]
        log.append([note(99)], stream=STREAM, expected=ANY)
        seen += [one.position for one in walk]
        assert seen == [1, 2, 3, 4, 5]
        assert [one.position for one in iterate(log, 2, until=4, batch=1)] == [3, 4]

    def test_streams_are_read_by_version(self, log: EventLog) -> None:
        for number in range(6):
            run_id = f"run-{number % 2}"
            log.append([note(number, run_id=run_id)], stream=f"operator/{run_id}", expected=ANY)
        found = log.read_stream("operator/run-1", 1, 5)
        assert [(one.position, one.version) for one in found] == [(4, 2), (6, 3)]
        assert len(log.read_stream("operator/run-1", 0, 1)) == 1
        assert log.read_stream("operator/none") == []
        assert log.stream_version("operator/run-0") == 3
        assert log.stream_version("operator/none") == 0

    def test_streams_are_listed_sorted_by_prefix(self, log: EventLog) -> None:
        for run_id in ["b", "a", "ab", "ä", "a"]:
            log.append([note(log.head().position, run_id=run_id)], stream=f"operator/{run_id}", expected=ANY)
        log.append([step(1)], stream="run/run-1", expected=ANY)
        assert log.streams() == ["operator/a", "operator/ab", "operator/b", "operator/ä", "run/run-1"]
        assert log.streams("operator/a") == ["operator/a", "operator/ab"]
        assert log.streams("x") == []

    # --- time

    def test_recorded_at_never_goes_back_when_the_clock_does(self, log: EventLog, clock: ManualClock) -> None:
        start = clock.now_us()
        for number, jump in enumerate([0, 5, -3_600_000_000, 1, 7_200_000_000]):
            clock.advance(jump)
            log.append([note(number)], stream=STREAM, expected=ANY)
        times = [one.recorded_at - start for one in log.read()]
        assert times == [0, 5, 5, 5, 3_600_000_006]

    # --- the chain

    def test_the_chain_depends_on_every_record(self, clock: ManualClock) -> None:
        heads = []
        for texts in (["a", "b"], ["a", "b"], ["A", "b"], ["a", "B"]):
            log = self.open_log(clock)
            log.append([note(1, texts[0])], stream=STREAM, expected=ANY)
            log.append([note(2, texts[1])], stream=STREAM, expected=ANY)
            heads.append(log.head().chain)
            assert log.chain_at(2) == log.head().chain
            log.close()
        assert heads[0] == heads[1]
        assert len(set(heads)) == 3

    def test_batching_does_not_change_the_chain(self, clock: ManualClock) -> None:
        chains = []
        for size in (1, 5, 20):
            log = self.open_log(clock)
            notes = [note(number) for number in range(20)]
            for start in range(0, 20, size):
                log.append(notes[start : start + size], stream=STREAM, expected=start)
            chains.append([log.chain_at(position) for position in range(21)])
            log.close()
        assert chains[0] == chains[1] == chains[2]

    def test_verify_reports_what_it_walked(self, log: EventLog) -> None:
        log.append([note(number) for number in range(2500)], stream=STREAM, expected=ANY)
        log.append([step(1)], stream="run/run-1", expected=ANY)
        seen: list[tuple[int, int]] = []
        report = log.verify(lambda done, total: seen.append((done, total)))
        assert (report.events, report.streams, report.head) == (2501, 2, log.head())
        assert seen == [(2000, 2501), (2501, 2501)]

    def test_restore_copies_a_log_with_the_same_chain(self, log: EventLog, clock: ManualClock) -> None:
        log.append([note(number) for number in range(5)], stream=STREAM, expected=ANY)
        log.append([step(1)], stream="run/run-1", expected=ANY)
        copy = self.open_log(clock)
        clock.advance(1_000_000)
        assert copy.restore(log.read(0, 4)) == 4
        assert copy.restore(log.read(4)) == 2
        assert copy.restore([]) == 0
        assert copy.head() == log.head()
        assert copy.read() == log.read()
        assert copy.append([note(9)], stream=STREAM, expected=5).first == 7
        copy.verify()
        copy.close()

    # --- waiting and closing

    def test_wait_ends_when_another_thread_appends(self, log: EventLog) -> None:
        assert log.wait(0, 0.0) is False
        started = time.monotonic()
        assert log.wait(0, 0.05) is False
        assert time.monotonic() - started >= 0.05
        writer = threading.Timer(0.1, lambda: log.append([note(1)], stream=STREAM, expected=ANY))
        writer.start()
        assert log.wait(0, 20.0) is True
        writer.join()
        assert log.wait(1, 0.01) is False

    def test_a_closed_log_takes_no_more(self, log: EventLog) -> None:
        log.close()
        log.close()
        with pytest.raises(LogUnavailable):
            log.append([note(1)], stream=STREAM, expected=ANY)

    # --- concurrency

    def test_writers_of_one_stream_never_lose_or_double_a_version(self, log: EventLog) -> None:
        lost: list[int] = []

        def write(worker: int) -> None:
            version = 0
            for number in range(25):
                while True:
                    try:
                        entry = note(f"{worker}-{number}")
                        version = log.append([entry], stream=STREAM, expected=version).version
                        break
                    except ConcurrencyConflict as conflict:
                        lost.append(worker)
                        version = conflict.current

        workers = [threading.Thread(target=write, args=(worker,)) for worker in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [one.version for one in log.read_stream(STREAM)] == list(range(1, 76))
        assert log.verify().events == 75

    def test_no_reader_sees_a_position_before_the_one_below_it(self, log: EventLog) -> None:
        """I9: whatever a reader sees has no hole, and a batch is seen whole."""
        done = threading.Event()
        faults: list[str] = []
        threads = [threading.Thread(target=follow, args=(log, done, faults)) for _ in range(2)]
        writers = [threading.Thread(target=append_threes, args=(log, name)) for name in ("run-1", "run-2")]
        for thread in threads + writers:
            thread.start()
        for writer in writers:
            writer.join()
        done.set()
        for thread in threads:
            thread.join()
        assert faults == []
        assert log.head().position == 240

    # --- the async face

    def test_the_async_face_gives_the_same_answers(self, log: EventLog) -> None:
        async def use() -> None:
            face = AsyncLog(log)
            appends = [
                face.append([note(number, run_id=f"run-{number}")], stream=f"operator/run-{number}", expected=ANY)
                for number in range(10)
            ]
            receipts = await asyncio.gather(*appends)
            assert sorted(receipt.first for receipt in receipts) == list(range(1, 11))
            assert await face.read(2, 3) == log.read(2, 3)
            assert await face.read_recorded(2, 3) == log.read_recorded(2, 3)
            assert await face.read_stream("operator/run-3") == log.read_stream("operator/run-3")
            assert await face.stream_version("operator/run-3") == 1
            assert await face.streams("operator/") == log.streams()
            assert await face.head() == log.head()
            assert await face.chain_at(4) == log.chain_at(4)
            assert await face.wait(9, 1.0) is True
            assert (await face.verify()).events == 10
            with pytest.raises(ConcurrencyConflict):
                await face.append([note(77)], stream=STREAM, expected=9)
            await face.close()
            with pytest.raises(LogUnavailable):
                await face.append([note(1)], stream=STREAM, expected=ANY)

        asyncio.run(use())
