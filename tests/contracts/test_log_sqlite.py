"""The SQLite adapter keeps the log's contract."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from disks import small_file_system
from log_contract import LogContract, note

from esper.clock import Clock
from esper.errors import ConcurrencyConflict, ConfigError, DurabilityTooLow, LogFull, LogUnavailable, NotFound
from esper.events import Event
from esper.oona import ANY, NO_STREAM, SqliteLog, open_log
from esper.oona.sqlite.file import require_durable


class TestSqliteLog(LogContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.opened = 0

    def open_log(self, clock: Clock) -> SqliteLog:
        self.opened += 1
        return SqliteLog(self.folder / f"log{self.opened}.db", clock=clock)


APPENDER = """
import sys
from log_contract import note
from esper.oona import ANY, SqliteLog
path, worker, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with SqliteLog(path) as log:
    for number in range(count):
        log.append([note(f"{worker}-{number}-{part}") for part in range(3)], stream="operator/run-1", expected=ANY)
"""


def appender(path: Path, worker: str, count: int) -> subprocess.Popen[bytes]:
    """Start a process that appends batches of three."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{Path(__file__).parent}"}
    return subprocess.Popen([sys.executable, "-c", APPENDER, str(path), worker, str(count)], env=environment)


# --- several processes


def test_processes_share_one_order_and_a_reader_sees_no_hole(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with SqliteLog(path) as log:
        workers = [appender(path, name, 30) for name in ("a", "b")]
        position = 0
        while position < 180:
            assert log.wait(position, 60.0)
            for one in log.read(position, 7):
                assert one.position == position + 1
                position = one.position
            assert log.head().position % 3 == 0
        assert [worker.wait() for worker in workers] == [0, 0]
        report = log.verify()
        assert (report.events, report.acknowledged) == (180, 180)
        assert [one.version for one in log.read_stream("operator/run-1")] == list(range(1, 181))


def test_a_second_writer_of_a_stream_is_shut_out_by_its_version(tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "log.db") as first, SqliteLog(tmp_path / "log.db") as second:
        version = first.append([note(1)], stream="operator/run-1", expected=NO_STREAM).version
        second.append([note(2)], stream="operator/run-1", expected=version)
        with pytest.raises(ConcurrencyConflict) as caught:
            first.append([note(3)], stream="operator/run-1", expected=version)
        assert caught.value.current == 2


def test_a_log_locked_for_too_long_is_unavailable_and_then_usable_again(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with SqliteLog(path, busy_timeout_s=0.05) as log, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LogUnavailable, match="locked"):
            log.append([note(1)], stream="operator/run-1", expected=ANY)
        other.rollback()
        assert log.append([note(1)], stream="operator/run-1", expected=ANY).first == 1


# --- opening


def test_opening_what_is_not_there_without_create_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        SqliteLog(tmp_path / "log.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(LogUnavailable, match="directory"):
        SqliteLog(tmp_path)


def test_a_log_under_a_file_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogUnavailable):
        SqliteLog(tmp_path / "file" / "deeper" / "log.db")


def test_facts_are_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "log #1?.db"
    with SqliteLog(path) as log:
        log.append([note(1), note(2)], stream="operator/run-1", expected=ANY)
        head, stored = log.head(), log.read()
    with open_log(f"sqlite:///{path}", create=False) as log:
        assert (log.head(), log.read()) == (head, stored)
        assert log.append([note(1), note(2)], stream="operator/run-1", expected=NO_STREAM).last == 2


def test_a_file_that_cannot_be_kept_durable_is_refused(tmp_path: Path) -> None:
    with (
        closing(sqlite3.connect(":memory:")) as connection,
        pytest.raises(DurabilityTooLow, match="journal_mode is memory"),
    ):
        require_durable(connection, tmp_path)


@pytest.mark.parametrize("url", ["log.db", "sqlite:log.db", "sqlite:///", "postgresql://localhost", "memory://x"])
def test_an_unknown_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        open_log(url)


# --- a full disk


def test_a_full_log_says_so_keeps_all_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "log.db") as log:
        log.append([note(0)], stream="operator/run-1", expected=ANY)
        log._writer.execute("PRAGMA max_page_count=20")
        fill(log)
        log._writer.execute("PRAGMA max_page_count=100000")
        assert log.append([note("after")], stream="operator/run-1", expected=ANY).last == log.head().position


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    with small_file_system(tmp_path / "disk", "1m") as place:
        yield place


def test_a_full_disk_says_so_and_the_log_goes_on_when_there_is_room(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    with SqliteLog(small_disk / "log.db") as log:
        log.append([note(0)], stream="operator/run-1", expected=ANY)
        ballast.write_bytes(b"x" * 500_000)
        fill(log)
        ballast.unlink()
        assert log.append([note("after")], stream="operator/run-1", expected=ANY).last == log.head().position
        head = log.head()
    with SqliteLog(small_disk / "log.db") as log:
        assert log.verify().head == head


def fill(log: SqliteLog) -> None:
    """Append until the log is full, and see that nothing of the last batch was written."""
    batches = ([note(f"{number}-{part}", "x" * 3000) for part in range(10)] for number in range(1000))
    acknowledged = log.head()
    for batch in batches:
        if not takes(log, batch):
            break
        acknowledged = log.head()
    assert log.head() == acknowledged
    assert log.verify().events == acknowledged.position
    with pytest.raises(LogFull):
        log.append(batch, stream="operator/run-1", expected=ANY)
    assert log.head() == acknowledged


def takes(log: SqliteLog, batch: list[Event]) -> bool:
    """Append a batch; tell whether there was room."""
    try:
        log.append(batch, stream="operator/run-1", expected=ANY)
    except LogFull:
        return False
    return True
