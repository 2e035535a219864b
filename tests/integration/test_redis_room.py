"""A Redis log without room, in memory or on disk: refused by name, nothing half written, and on again with room."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import small_file_system
from faults.checks import examine
from faults.crew import Crew
from faults.notes import STREAM, append_batches, batch, fingerprint, note
from sealing import archive_at, make_key
from servers import RedisServer

from esper.errors import LogFull, LogUnavailable
from esper.oona.open import open_log
from esper.oona.port import ANY, EventLog
from esper.oona.sealing.sealer import seal, trim


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


def limit_memory(server: RedisServer, spare_bytes: int | None) -> None:
    """Let the server use so many bytes more than now, or as much as it likes."""
    with server.client() as client:
        used = int(client.info("memory")["used_memory"])
        client.config_set("maxmemory", 0 if spare_bytes is None else used + spare_bytes)


def fill(log: EventLog) -> int:
    """Append facts of 10 KB until the log refuses; return the number of the one refused."""
    for number in range(1000, 2000):
        try:
            log.append([note(number, "x" * 10_000)], stream=STREAM, expected=ANY)
        except LogFull:
            return number
    raise AssertionError("the log took ten megabytes")


# --- case 14: out of memory


def test_a_server_out_of_memory_refuses_whole_batches_and_goes_on_once_it_may_use_more(server: RedisServer) -> None:
    with open_log(server.url) as log:
        append_batches(log, 5, 4)
        limit_memory(server, 300_000)
        refused = fill(log)
        before = fingerprint(log)
        for _ in range(3):
            with pytest.raises(LogFull) as caught:
                log.append(batch(500, 20), stream=STREAM, expected=ANY)
        assert "maxmemory" in caught.value.message + caught.value.hint
        # Reading, verifying and retries of what is there go on as ever.
        assert fingerprint(log) == before
        assert log.verify().events == len(before)
        limit_memory(server, None)
        assert log.append([note(refused, "x" * 10_000)], stream=STREAM, expected=ANY).first == len(before) + 1
        assert log.append(batch(500, 20), stream=STREAM, expected=ANY).last == len(before) + 21
        log.verify()


def test_a_server_out_of_memory_still_answers_a_retry_of_what_it_has(server: RedisServer) -> None:
    with open_log(server.url) as log:
        receipt = append_batches(log, 1, 4)[0]
        limit_memory(server, 1)
        fill(log)
        # Either answer is honest; another entry, or another receipt, would not be.
        with contextlib.suppress(LogFull):
            assert log.append(batch(0, 4), stream=STREAM, expected=ANY) == receipt
        limit_memory(server, None)
        assert log.append(batch(0, 4), stream=STREAM, expected=ANY) == receipt


def test_a_server_out_of_memory_is_sealed_and_trimmed_and_then_takes_more(server: RedisServer, tmp_path: Path) -> None:
    key = make_key(tmp_path / "keys")
    place = f"file:///{tmp_path}/archive"
    with (
        archive_at(tmp_path / "archive", key) as archive,
        open_log(server.url, archive=place, trusted=[key.public]) as log,
    ):
        append_batches(log, 5, 4)
        limit_memory(server, 400_000)
        refused = fill(log)
        before = fingerprint(log)
        end = len(before)
        assert seal(log, archive, key).events == end
        assert trim(log, archive) == end
        assert log.append([note(refused, "x" * 10_000)], stream=STREAM, expected=ANY).first == end + 1
        assert fingerprint(log)[:end] == before


def test_writers_wait_out_a_server_without_memory_and_lose_nothing(server: RedisServer, tmp_path: Path) -> None:
    with Crew(server.url, tmp_path / "acks", ["ada", "bob"]) as crew:
        crew.wait_for(3)
        limit_memory(server, 1)
        # What was on its way when the memory ran out still comes in; then nothing does.
        deadline, stuck = time.monotonic() + 20.0, -1
        while stuck != (now := len(crew.receipts)):
            assert time.monotonic() < deadline
            stuck = now
            time.sleep(0.5)
        limit_memory(server, None)
        crew.wait_for(3)
        crew.stop()
        with open_log(server.url) as log:
            assert examine(log, crew.receipts).sound
            log.verify()


# --- case 14: disk full


def test_every_receipt_outlives_a_full_disk_and_writing_goes_on_once_there_is_room(tmp_path: Path) -> None:
    with small_file_system(tmp_path / "disk", "8m") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(6_000_000))
        with (
            RedisServer(disk / "redis") as server,
            Crew(server.url, tmp_path / "acks", ["ada", "bob"], "large") as crew,
        ):
            assert server.process is not None
            # With `appendfsync always` the server ends rather than answer for what it cannot write down.
            server.process.wait(60)
            assert "AOF" in (server.folder / "server.log").read_text()
            receipts = crew.receipts
            assert receipts
            with pytest.raises(LogUnavailable), open_log(server.url) as log:
                log.end()
            crew.pause()
            ballast.unlink()
            server.start()
            with open_log(server.url) as log:
                assert examine(log, receipts).sound
                log.verify()
            # The writers ask again with the batches that had no answer, until they fill the disk once more.
            crew.resume()
            crew.wait_for(1)
            crew.kill()
            with open_log(server.url) as log:
                assert examine(log, crew.receipts).sound
                log.verify()
