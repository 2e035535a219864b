"""While the log is away facts wait on local disk, in order, and are in the log once when it is back."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from esper.errors import ConcurrencyConflict, LogFull, LogUnavailable, RecorderStopped, SpoolDamaged, SpoolRefused
from esper.events import Event, Fact, fact_of
from esper.events.operator import NoteAdded
from esper.ids import derived_id
from esper.oona import MemoryLog, Receipt, Recorder, iterate
from esper.oona.recording.delivery import Spool, spool_for, target_of
from esper.oona.recording.outage import Spooled
from esper.oona.recording.spool import SpooledBatch, SpoolFile
from tests.disks import small_file_system

TARGET = "10.0.0.7:6379/0 main"


class AwayLog(MemoryLog):
    """A log that can be away, or away for all but some appends, or lose the reply of its next append."""

    def __init__(self) -> None:
        super().__init__()
        self.away = threading.Event()
        self.error: type[LogUnavailable | LogFull] = LogUnavailable
        self.patience: int | None = None
        self.loses_reply = False
        self.tries = 0

    def append(self, batch: Sequence[Event], *, stream: str, expected: int) -> Receipt:
        self.tries += 1
        if self.patience is not None:
            self.patience -= 1
            if self.patience < 0:
                self.away.set()
                self.patience = None
        if self.away.is_set():
            raise self.error("nobody answers at 10.0.0.7:6379")
        receipt = super().append(batch, stream=stream, expected=expected)
        if self.loses_reply:
            self.loses_reply = False
            self.away.set()
            raise LogUnavailable("no reply from 10.0.0.7:6379")
        return receipt


@pytest.fixture
def log() -> Iterator[AwayLog]:
    log = AwayLog()
    yield log
    log.away.clear()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", TARGET)


def note(number: int, run_id: str = "run-1") -> NoteAdded:
    return NoteAdded(run_id=run_id, actor="ada", text=str(number))


def recorder(log: MemoryLog, spool: Spool, **options: float) -> Recorder:
    return Recorder(log, sender_id="tolaria", trace_id="f" * 32, spool=spool, **options)  # type: ignore[arg-type]


def put_many(target: Recorder, numbers: Sequence[int], streams: int = 1) -> None:
    for number in numbers:
        run_id = f"run-{number // 3 % streams + 1}"
        target.put(note(number, run_id), ("note", number))


def numbers_in(log: MemoryLog) -> list[int]:
    def number_of(fact: Fact) -> int:
        assert isinstance(fact, NoteAdded)
        return int(fact.text)

    return [number_of(fact_of(envelope)) for envelope in iterate(log)]


def left_behind(log: AwayLog, spool: Spool, numbers: Sequence[int], *, batch: int = 4) -> Path:
    """Leave a spool file as a process does that ended in an outage."""
    log.away.set()
    target = recorder(log, spool, batch=batch)
    put_many(target, numbers)
    target.flush()
    with pytest.raises(LogUnavailable) as left:
        target.close(outage_s=0.0)
    path: Path = left.value.attributes["path"]
    return path


def frames(path: Path) -> list[int]:
    """Return where each batch of a file begins, and where the last one ends."""
    file = SpoolFile.open(path)
    assert file is not None
    ends = [file.delivered]
    while (found := file.at(ends[-1])) is not None:
        ends.append(found[1])
    file.close()
    return ends


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def flush_on(target: Recorder) -> None:
    """Flush until the recorder has heard of it."""
    wait_until(lambda: target.flush() is None)


def metric(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


@pytest.mark.parametrize("error", [LogUnavailable, LogFull])
def test_facts_of_an_outage_are_in_the_log_once_and_in_order_when_it_is_back(
    log: AwayLog, spool: Spool, error: type[LogUnavailable | LogFull]
) -> None:
    log.error = error
    with recorder(log, spool, batch=8) as target:
        put_many(target, range(50), streams=3)
        assert isinstance(target.flush(), Receipt)
        log.away.set()
        put_many(target, range(50, 200), streams=3)
        assert isinstance(target.flush(), Spooled)
        assert target.spooling
        assert len(log.read()) == 50
        log.away.clear()
        put_many(target, range(200, 400), streams=3)
    assert numbers_in(log) == list(range(400))
    assert spool.waiting() == []
    log.verify()


def test_a_flush_in_an_outage_says_what_waits_and_where(log: AwayLog, spool: Spool) -> None:
    log.away.set()
    target = recorder(log, spool)
    put_many(target, range(5))
    spooled = target.flush()
    assert isinstance(spooled, Spooled)
    assert (spooled.facts, [spooled.path]) == (5, spool.waiting())
    log.away.clear()
    assert log.wait(4, 20.0)
    put_many(target, [5])
    target.close()
    assert numbers_in(log) == list(range(6))


def test_after_the_outage_a_flush_has_the_receipt_of_the_last_delivered_batch(log: AwayLog, spool: Spool) -> None:
    log.away.set()
    with recorder(log, spool) as target:
        put_many(target, range(5))
        target.flush()
        log.away.clear()
        wait_until(lambda: not target.spooling)
        assert target.flush() == Receipt(1, 5, 5, False, 0)


def test_a_batch_whose_reply_was_lost_is_not_doubled(log: AwayLog, spool: Spool) -> None:
    with recorder(log, spool, batch=4) as target:
        target.own("operator/run-1", 0)
        put_many(target, range(6))
        target.flush()
        log.loses_reply = True
        put_many(target, range(6, 30))
        assert isinstance(target.flush(), Spooled)
        log.away.clear()
    assert numbers_in(log) == list(range(30))


def test_a_log_that_goes_away_again_in_the_middle_of_delivery_gets_the_rest_later(log: AwayLog, spool: Spool) -> None:
    log.away.set()
    with recorder(log, spool, batch=2) as target:
        target.own("operator/run-1", 0)
        put_many(target, range(20))
        target.flush()
        log.patience = 3
        log.away.clear()
        wait_until(lambda: log.patience is None)
        put_many(target, range(20, 30))
        assert isinstance(target.flush(), Spooled)
        log.away.clear()
    assert numbers_in(log) == list(range(30))


def test_another_writer_of_an_owned_stream_stops_the_recorder_and_the_file_is_kept_aside(
    log: AwayLog, spool: Spool
) -> None:
    target = recorder(log, spool)
    target.own("operator/run-1", 0)
    put_many(target, range(3))
    target.flush()
    log.away.set()
    target.put(note(100, "run-2"), ("note", 100))
    put_many(target, range(3, 6))
    target.flush()
    other = Event(fact=note(99), event_id=derived_id("other"), sender_id="other", trace_id="0" * 32)
    MemoryLog.append(log, [other], stream="operator/run-1", expected=3)
    log.away.clear()
    wait_until(lambda: any(spool.folder.glob("*.refused")))
    with pytest.raises(RecorderStopped) as stopped:
        flush_on(target)
    refused = stopped.value.__cause__
    assert isinstance(refused, SpoolRefused)
    assert isinstance(refused.__cause__, ConcurrencyConflict)
    assert refused.path.suffix == ".refused"
    assert str(refused.path) in str(stopped.value)
    assert refused.path.exists()
    assert spool.waiting() == []
    assert numbers_in(log) == [0, 1, 2, 99], "nothing of the overtaken file went in, not even for other streams"
    for again in (lambda: put_many(target, [7]), target.close):
        with pytest.raises(RecorderStopped):
            again()


def test_a_log_put_back_to_an_older_state_does_not_take_the_file(log: AwayLog, spool: Spool) -> None:
    target = recorder(log, spool)
    target.own("operator/run-1", 7)
    log.away.set()
    put_many(target, range(3))
    target.flush()
    log.away.clear()
    wait_until(lambda: any(spool.folder.glob("*.refused")))
    with pytest.raises(RecorderStopped, match="version 0, not 7"):
        flush_on(target)
    assert numbers_in(log) == []


def test_at_the_bound_put_waits_and_nothing_is_dropped(log: AwayLog, tmp_path: Path) -> None:
    spool = Spool(tmp_path, TARGET, limit_bytes=20_000)
    stalls = metric("esper_spool_stalls_total")
    log.away.set()
    target = recorder(log, spool, capacity=100, batch=20)
    writer = threading.Thread(target=put_many, args=(target, range(2000)))
    writer.start()
    wait_until(lambda: metric("esper_spool_stalls_total") > stalls)
    (path,) = spool.waiting()
    assert 15_000 < path.stat().st_size <= 20_000
    assert metric("esper_spool_bytes") > 15_000
    writer.join(0.3)
    assert writer.is_alive()
    assert path.stat().st_size <= 20_000
    log.away.clear()
    writer.join(20.0)
    assert not writer.is_alive()
    target.close()
    assert numbers_in(log) == list(range(2000))
    assert metric("esper_spool_bytes") == 0


def test_a_flush_waits_longer_than_its_timeout_while_the_spool_is_full(log: AwayLog, tmp_path: Path) -> None:
    spool = Spool(tmp_path, TARGET, limit_bytes=2_000)
    log.away.set()
    target = recorder(log, spool, capacity=20, batch=5)
    put_many(target, range(5))
    target.flush()
    stalls = metric("esper_spool_stalls_total")
    filler = threading.Thread(target=put_many, args=(target, range(5, 100)))
    filler.start()
    wait_until(lambda: metric("esper_spool_stalls_total") > stalls)
    flushed: list[object] = []
    waiter = threading.Thread(target=lambda: flushed.append(target.flush(1.0)))
    waiter.start()
    waiter.join(1.5)
    assert waiter.is_alive()
    log.away.clear()
    waiter.join(20.0)
    filler.join(20.0)
    assert len(flushed) == 1
    target.close()
    assert numbers_in(log) == list(range(100))


def test_a_put_waits_for_a_full_spool_though_the_queue_has_room(log: AwayLog, tmp_path: Path) -> None:
    log.away.set()
    target = recorder(log, Spool(tmp_path, TARGET, limit_bytes=1_000), batch=5)
    put_many(target, range(40))
    stalls = metric("esper_spool_stalls_total")
    flushing = threading.Thread(target=target.flush, args=(5.0,))
    flushing.start()
    wait_until(lambda: metric("esper_spool_stalls_total") > stalls)
    writer = threading.Thread(target=put_many, args=(target, [40]))
    writer.start()
    writer.join(0.2)
    assert writer.is_alive()
    log.away.clear()
    writer.join(20.0)
    flushing.join(20.0)
    target.close()
    assert numbers_in(log) == list(range(41))


def test_a_close_with_a_full_spool_keeps_what_is_queued(log: AwayLog, tmp_path: Path) -> None:
    spool = Spool(tmp_path, TARGET, limit_bytes=2_000)
    log.away.set()
    target = recorder(log, spool, capacity=20, batch=5, linger_s=0.0)
    target.put(note(0), ("note", 0))
    target.flush()
    taken = [0]

    def write() -> None:
        with contextlib.suppress(RecorderStopped):
            for number in range(1, 60):
                target.put(note(number), ("note", number))
                taken.append(number)

    writer = threading.Thread(target=write)
    stalls = metric("esper_spool_stalls_total")
    writer.start()
    wait_until(lambda: metric("esper_spool_stalls_total") > stalls)
    with pytest.raises(LogUnavailable) as left:
        target.close(outage_s=0.0)
    writer.join(20.0)
    log.away.clear()
    (done,) = spool.deliver(log)
    assert done.facts == left.value.attributes["facts"]
    assert numbers_in(log) == taken


def test_a_device_without_room_makes_producers_wait_too(log: AwayLog, tmp_path: Path) -> None:
    with small_file_system(tmp_path / "small", "64k") as folder:
        spool = Spool(folder, TARGET)
        stalls = metric("esper_spool_stalls_total")
        log.away.set()
        target = recorder(log, spool, capacity=100, batch=20)
        writer = threading.Thread(target=put_many, args=(target, range(2000)))
        writer.start()
        wait_until(lambda: metric("esper_spool_stalls_total") > stalls)
        log.away.clear()
        writer.join(20.0)
        target.close()
    assert numbers_in(log) == list(range(2000))


def test_a_close_leaves_what_the_log_does_not_take_and_says_how_to_deliver_it(log: AwayLog, spool: Spool) -> None:
    target = recorder(log, spool)
    log.away.set()
    put_many(target, range(7))
    with pytest.raises(LogUnavailable, match=r"7 facts wait in .*\.spool") as left:
        target.close(outage_s=0.05)
    assert "esper log deliver" in left.value.hint
    assert "nobody answers" in str(left.value.__cause__)
    target.close()
    log.away.clear()
    (done,) = spool.deliver(log)
    assert (done.outcome, done.facts) == ("delivered", 7)
    assert numbers_in(log) == list(range(7))
    assert spool.deliver(log) == []


def test_an_error_in_the_block_is_raised_with_a_note_of_what_waits(log: AwayLog, spool: Spool) -> None:
    def fail() -> None:
        with recorder(log, spool) as target:
            put_many(target, range(3))
            raise ZeroDivisionError

    log.away.set()
    with pytest.raises(ZeroDivisionError) as caught:
        fail()
    assert "3 facts wait in" in "".join(caught.value.__notes__)


def test_files_of_several_processes_are_delivered_oldest_first(log: AwayLog, spool: Spool) -> None:
    first = left_behind(log, spool, range(10))
    second = left_behind(log, spool, range(10, 20))
    assert first != second
    log.away.clear()
    assert [one.path for one in spool.deliver(log)] == [first, second]
    assert numbers_in(log) == list(range(20))


def test_a_file_that_another_holds_is_left_to_it(log: AwayLog, spool: Spool) -> None:
    path = left_behind(log, spool, range(10))
    held = SpoolFile.open(path)
    assert held is not None
    log.away.clear()
    assert [one.outcome for one in spool.deliver(log)] == ["in use"]
    assert numbers_in(log) == []
    held.close()
    assert [one.outcome for one in spool.deliver(log)] == ["delivered"]
    assert numbers_in(log) == list(range(10))


def test_a_file_is_left_alone_by_one_who_waited_while_it_was_delivered(log: AwayLog, spool: Spool) -> None:
    path = left_behind(log, spool, range(10))
    second = path.with_name("second")
    path.rename(second)
    second.with_suffix(".spool").hardlink_to(second)
    log.away.clear()
    assert [one.outcome for one in spool.deliver(log)] == ["delivered"]
    assert SpoolFile.open(path) is None


def test_a_file_of_another_log_stays_unless_asked_for(log: AwayLog, spool: Spool, tmp_path: Path) -> None:
    left_behind(log, spool, range(10))
    log.away.clear()
    elsewhere = Spool(spool.folder, "10.0.0.8:6379/0 main")
    (stays,) = elsewhere.deliver(log)
    assert (stays.outcome, stays.target) == ("another log", TARGET)
    assert numbers_in(log) == []
    (done,) = elsewhere.deliver(log, any_log=True)
    assert (done.outcome, done.facts) == ("delivered", 10)


def test_a_delivery_that_was_cut_short_goes_on_where_it_ended(log: AwayLog, spool: Spool) -> None:
    left_behind(log, spool, range(20))
    log.away.clear()
    log.patience = 3
    with pytest.raises(LogUnavailable):
        spool.deliver(log)
    log.away.clear()
    before = log.tries
    (done,) = spool.deliver(log)
    assert done.facts < 20
    assert log.tries - before == 2
    assert numbers_in(log) == list(range(20))


def test_a_file_delivered_twice_adds_nothing(log: AwayLog, spool: Spool) -> None:
    path = left_behind(log, spool, range(20))
    copy = shutil.copy(path, path.with_name("copy.spool"))
    log.away.clear()
    done = spool.deliver(log)
    assert [one.path for one in done] == [Path(copy), path]
    assert numbers_in(log) == list(range(20))


def test_a_torn_last_frame_that_was_never_forced_is_dropped(log: AwayLog, spool: Spool) -> None:
    path = left_behind(log, spool, range(20))
    with path.open("ab") as file:
        file.write(b"\x90\x01\x00\x00torn")
    log.away.clear()
    assert [one.facts for one in spool.deliver(log)] == [20]


def test_a_whole_frame_that_was_written_and_not_noted_is_delivered(log: AwayLog, spool: Spool) -> None:
    path = left_behind(log, spool, range(20))
    ends = frames(path)
    with path.open("r+b") as file:
        file.seek(ends[-2])
        last = file.read()
        file.truncate(ends[-2])
        # As a crash leaves it between forcing a frame and noting that: the newer slot never reached the disk.
        newer = 0 if file.seek(8) == 8 and file.read(8) > _at(file, 72) else 64
        file.seek(newer)
        file.write(bytes(64))
        file.seek(ends[-2])
        file.write(last)
    log.away.clear()
    assert [one.facts for one in spool.deliver(log)] == [20]


def _at(file: object, offset: int) -> bytes:
    file.seek(offset)  # type: ignore[attr-defined]
    found: bytes = file.read(8)  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("which", [0, 2, -2])
def test_a_damaged_frame_that_was_forced_is_named_and_what_stands_before_it_is_delivered(
    log: AwayLog, spool: Spool, which: int
) -> None:
    path = left_behind(log, spool, range(20))
    ends = frames(path)
    flip(path, ends[which] + 12)
    log.away.clear()
    with pytest.raises(SpoolDamaged) as damaged:
        spool.deliver(log)
    assert (damaged.value.path, damaged.value.offset) == (path, ends[which])
    assert f"{path} is damaged at byte {ends[which]}" in str(damaged.value)
    assert numbers_in(log) == list(range(4 * ends.index(ends[which])))
    assert spool.waiting() == [path]


def test_a_file_cut_before_what_was_forced_is_damaged(log: AwayLog, spool: Spool) -> None:
    path = left_behind(log, spool, range(20))
    ends = frames(path)
    with path.open("r+b") as file:
        file.truncate(ends[-2])
    log.away.clear()
    with pytest.raises(SpoolDamaged) as damaged:
        spool.deliver(log)
    assert damaged.value.offset == ends[-2]


def test_a_damaged_slot_costs_nothing_and_two_are_damage(log: AwayLog, spool: Spool) -> None:
    path = left_behind(log, spool, range(20))
    flip(path, 10)
    assert len(frames(path)) == 6
    flip(path, 74)
    with pytest.raises(SpoolDamaged, match="neither slot"):
        SpoolFile.open(path)


def test_a_fact_no_log_can_take_stops_the_recorder_in_an_outage_as_well(log: AwayLog, spool: Spool) -> None:
    log.away.set()
    target = recorder(log, spool)
    put_many(target, range(3))
    target.flush()
    target.put("not a fact", ("note", 1))  # type: ignore[arg-type]
    with pytest.raises(RecorderStopped) as caught:
        target.flush()
    assert isinstance(caught.value.__cause__, AttributeError)
    log.away.clear()
    assert [one.facts for one in spool.deliver(log)] == [3]


def test_a_batch_is_kept_with_everything_the_log_needs(log: AwayLog, spool: Spool) -> None:
    log.away.set()
    target = recorder(log, spool)
    target.own("operator/run-1", 4)
    target.put(note(1), ("run", "run-1", 1, 7), b"c" * 16)
    target.flush()
    with pytest.raises(LogUnavailable):
        target.close(outage_s=0.0)
    (path,) = spool.waiting()
    file = SpoolFile.open(path)
    assert file is not None
    (batch,) = file.batches()
    file.close()
    assert isinstance(batch, SpooledBatch)
    assert (batch.stream, batch.expected, batch.sender_id, batch.trace_id) == ("operator/run-1", 4, "tolaria", "f" * 32)
    assert [(one.event_id, one.causation_id) for one in batch.facts] == [(derived_id("run", "run-1", 1, 7), b"c" * 16)]
    assert path.stat().st_mode & 0o077 == 0


def test_a_log_on_this_disk_has_no_spool_and_a_target_has_no_password(tmp_path: Path) -> None:
    assert spool_for("sqlite:///log.db", tmp_path, 1 << 20) is None
    assert spool_for("memory://", tmp_path, 1 << 20) is None
    found = spool_for("rediss://esper:hush@Log.Example:7000/2?namespace=lab&replicas=1", tmp_path, 1 << 20)
    assert found is not None
    assert found.target == "log.example:7000/2 lab"
    assert target_of("redis://localhost") == "localhost:6379/0 main"


def test_events_are_appended_as_any_writer_would(log: AwayLog, spool: Spool) -> None:
    left_behind(log, spool, range(3))
    log.away.clear()
    spool.deliver(log)
    assert {(one.sender_id, one.trace_id) for one in log.read()} == {("tolaria", "f" * 32)}
