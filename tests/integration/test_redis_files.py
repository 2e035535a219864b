"""A Redis log whose append-only file was torn, padded, flipped or put back to an older state: never half a batch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import aof
from faults.notes import STREAM, append_batches, batch, fingerprint
from sealing import archive_at, make_key
from servers import RedisServer
from sqlalchemy import text

from esper.errors import LogDamaged, LogError, LogRegressed, ProofFailed
from esper.oona.open import open_log
from esper.oona.port import ANY
from esper.oona.sealing.sealcheck import check_agreement
from esper.oona.sealing.sealed import ArchiveHistory
from esper.oona.sealing.sealer import seal
from esper.projections.digest import digests
from esper.projections.open import open_tables
from esper.projections.runner import Projector

#: Facts of one batch.
SIZE = 4


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def written(server: RedisServer) -> list[tuple[object, ...]]:
    """Write five batches of four, kill the server, and return what the log held."""
    with open_log(server.url) as log:
        append_batches(log, 5, SIZE)
        before = fingerprint(log)
    server.kill()
    return before


# --- case 3: a damaged tail


def test_a_tail_torn_inside_a_batch_takes_the_whole_batch_and_nothing_else(
    server: RedisServer, written: list[tuple[object, ...]], tmp_path: Path
) -> None:
    kept = aof.keep(server.folder, tmp_path / "kept")
    start, end = aof.batches(server.aof)[-1]
    inside = [command.end for command in aof.commands(server.aof) if start < command.end < end]
    places = {start + 1, start + 40, (start + end) // 2, end - 1, inside[0], inside[SIZE], inside[SIZE] - 9, inside[-1]}
    for place in sorted(places):
        aof.put_back(kept, server.folder)
        aof.cut(server.aof, place)
        with pytest.raises(RuntimeError, match="Unexpected end of file"):
            server.start(mend=False)
        server.start()
        with open_log(server.url) as log:
            assert fingerprint(log) == written[:-SIZE], f"torn at {place}"
            log.verify()
            # Its writer, who has no receipt, asks again and gets the same places.
            receipt = log.append(batch(4, SIZE), stream=STREAM, expected=4 * SIZE)
            assert (receipt.first, receipt.last, receipt.version) == (17, 20, 20)
        server.kill()
        # Nothing of the torn batch comes back when the file is read once more.
        server.start()
        with open_log(server.url) as log:
            assert log.verify().events == 20
        server.kill()


@pytest.mark.parametrize("zeros", ["behind it", "in its place", "in its second half"])
def test_a_tail_of_zeros_keeps_the_server_down_until_it_is_cut_off_with_whole_batches(
    server: RedisServer, written: list[tuple[object, ...]], zeros: str
) -> None:
    start, end = aof.batches(server.aof)[-1]
    keep = {"behind it": end, "in its place": start, "in its second half": (start + end) // 2}[zeros]
    aof.pad(server.aof, keep, max(end - keep, 512))
    with pytest.raises(RuntimeError, match="redis-check-aof --fix"):
        server.start()
    server.mend()
    server.start()
    with open_log(server.url) as log:
        assert fingerprint(log) == written[: None if keep == end else -SIZE]
        log.verify()


def test_a_flipped_bit_in_the_tail_is_refused_or_named_or_takes_a_whole_batch(
    server: RedisServer, written: list[tuple[object, ...]], tmp_path: Path
) -> None:
    kept = aof.keep(server.folder, tmp_path / "kept")
    start, end = aof.batches(server.aof)[-1]
    draw = random.Random(3)
    met = {"refused": 0, "named": 0, "gone": 0, "harmless": 0}
    for place in draw.sample(range(start, end), 100):
        aof.put_back(kept, server.folder)
        aof.flip(server.aof, place, draw.randrange(8))
        met[what_a_server_makes_of(server, written)] += 1
    assert met["refused"] > 3
    assert met["named"] > 3


def what_a_server_makes_of(server: RedisServer, written: list[tuple[object, ...]]) -> str:
    """Start on damaged files and append; tell what came of it, and fail on half a batch or a fact that is not whole."""
    try:
        server.start()
    except RuntimeError:
        return "refused"
    try:
        with open_log(server.url) as log:
            log.verify()
            found = fingerprint(log)
            assert found in (written, written[:-SIZE])
            log.append(batch(5, SIZE), stream=STREAM, expected=ANY)
            assert log.verify().events == len(found) + SIZE
            return "harmless" if found == written else "gone"
    except LogError:
        return "named"
    finally:
        server.kill()


# --- acknowledged facts that a cut took away, and case 6: an older state


def test_a_cut_that_took_acknowledged_facts_is_noticed_by_a_client_that_had_seen_them(server: RedisServer) -> None:
    with open_log(server.url) as writer, open_log(server.url) as reader:
        append_batches(writer, 5, SIZE)
        assert reader.end() == 20
        server.kill()
        aof.cut(server.aof, aof.batches(server.aof)[-1][0])
        server.start()
        with pytest.raises(LogDamaged) as caught:
            writer.append(batch(5, SIZE), stream=STREAM, expected=ANY)
        assert "20" in caught.value.message
        for use in (reader.head, reader.end, lambda: reader.read(16), lambda: reader.wait(20, 0.1), reader.verify):
            with pytest.raises(LogDamaged):
                use()
    with open_log(server.url) as log:
        assert log.end() == 16


def test_a_cut_that_took_sealed_facts_is_noticed_against_the_signed_checkpoint(
    server: RedisServer, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "keys")
    with archive_at(tmp_path / "archive", key) as archive:
        with open_log(server.url) as log:
            append_batches(log, 5, SIZE)
            seal(log, archive, key)
        server.kill()
        aof.cut(server.aof, aof.batches(server.aof)[-1][0])
        server.start()
        with open_log(server.url) as log:
            assert log.verify().events == 16
            with pytest.raises(ProofFailed, match="ends at 16, but history is sealed through 20"):
                check_agreement(log, ArchiveHistory(archive))
            with pytest.raises(ProofFailed, match="older"):
                seal(log, archive, key)


def test_tables_notice_a_log_that_was_put_back_to_an_older_state(server: RedisServer, tmp_path: Path) -> None:
    engine = open_tables(f"sqlite:///{tmp_path}/tables.db")
    with open_log(server.url) as log:
        append_batches(log, 3, SIZE)
        kept = aof.keep(server.folder, tmp_path / "kept")
        append_batches(log, 2, SIZE, first=3)
        Projector(log, engine).catch_up()
    with engine.connect() as connection:
        before = digests(connection)
    server.kill()
    aof.put_back(kept, server.folder)
    server.start()
    with open_log(server.url) as log:
        with pytest.raises(LogRegressed, match="ends at 12"):
            Projector(log, engine).catch_up()
        # Other facts take the positions that the tables have passed, and more: still noticed, never skipped.
        append_batches(log, 4, SIZE, first=100)
        assert log.end() == 28
        with pytest.raises(LogRegressed, match="another history"):
            Projector(log, engine).catch_up()
    with engine.connect() as connection:
        assert digests(connection) == before
        assert connection.execute(text("SELECT count(*) FROM operator_actions")).scalar_one() == 20
    engine.dispose()


def test_a_live_projection_stops_when_an_older_state_is_put_under_it(server: RedisServer, tmp_path: Path) -> None:
    """Log and projector stay open throughout, as in a daemon; others append past the old position before it looks."""
    engine = open_tables(f"sqlite:///{tmp_path}/tables.db")
    with open_log(server.url) as log:
        projector = Projector(log, engine)
        append_batches(log, 3, SIZE)
        kept = aof.keep(server.folder, tmp_path / "kept")
        append_batches(log, 2, SIZE, first=3)
        projector.catch_up()
        with engine.connect() as connection:
            before = digests(connection)
        server.kill()
        aof.put_back(kept, server.folder)
        server.start()
        with open_log(server.url) as other:
            append_batches(other, 4, SIZE, first=100)
        with pytest.raises((LogRegressed, LogDamaged)):
            projector.catch_up()
        with engine.connect() as connection:
            assert digests(connection) == before
    with open_log(server.url) as log, pytest.raises(LogRegressed):
        Projector(log, engine).catch_up()
    engine.dispose()


def test_a_live_writer_and_reader_stop_when_an_older_state_has_overtaken_them(
    server: RedisServer, tmp_path: Path
) -> None:
    with open_log(server.url) as writer, open_log(server.url) as reader:
        append_batches(writer, 3, SIZE)
        kept = aof.keep(server.folder, tmp_path / "kept")
        append_batches(writer, 2, SIZE, first=3)
        position = reader.read(0, 100)[-1].position
        server.kill()
        aof.put_back(kept, server.folder)
        server.start()
        with open_log(server.url) as other:
            append_batches(other, 4, SIZE, first=100)
            there = fingerprint(other)
        with pytest.raises(LogDamaged):
            reader.read(position)
        with pytest.raises(LogDamaged):
            writer.append(batch(5, SIZE), stream=STREAM, expected=ANY)
        with open_log(server.url) as other:
            assert fingerprint(other) == there
