"""A server that mends a torn file by itself is swept before the next write, so that its next start loses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import aof
from faults.notes import STREAM, append_batches, batch, fingerprint
from servers import RedisServer

from esper.errors import DurabilityTooLow
from esper.oona.open import open_log
from esper.oona.port import ANY

SIZE = 4


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis", {"aof-load-truncated": "yes"}) as server:
        yield server


def bases(server: RedisServer) -> list[str]:
    """Return the names of the files a rewrite made."""
    return sorted(path.name for path in (server.folder / "appendonlydir").glob("*.base.rdb"))


def test_what_is_acknowledged_after_a_torn_file_was_loaded_survives_the_next_start(
    server: RedisServer, tmp_path: Path
) -> None:
    with open_log(server.url) as log:
        append_batches(log, 5, SIZE)
    server.kill()
    kept = aof.keep(server.folder, tmp_path / "kept")
    start, end = aof.batches(server.aof)[-1]
    # Inside each command of the last batch, which is where Redis 7.0.15 cuts behind the command before it.
    inside = [command.end - 3 for command in aof.commands(server.aof) if start < command.end < end]
    for place in inside[1:]:
        aof.put_back(kept, server.folder)
        aof.cut(server.aof, place)
        server.start(mend=False)
        with open_log(server.url) as log:
            assert log.append(batch(7, SIZE), stream=STREAM, expected=4 * SIZE).first == 17
            acknowledged = fingerprint(log)
        server.kill()
        server.start(mend=False)
        with open_log(server.url) as log:
            assert fingerprint(log) == acknowledged, f"torn at {place}"
            assert log.verify().events == 20
        server.kill()


def test_a_client_that_lives_through_the_restart_sweeps_too(server: RedisServer, tmp_path: Path) -> None:
    with open_log(server.url) as log:
        append_batches(log, 5, SIZE)
        kept = aof.keep(server.folder, tmp_path / "kept")
        with open_log(server.url) as other:
            other.append(batch(5, SIZE), stream=STREAM, expected=ANY)
        server.kill()
        # The other's batch was torn: it never got its receipt, and the living client knows nothing of it.
        start, end = aof.batches(server.aof)[-1]
        inside = [command.end for command in aof.commands(server.aof) if start < command.end < end]
        torn = server.aof.read_bytes()[: inside[3] - 3]
        aof.put_back(kept, server.folder)
        server.aof.write_bytes(torn)
        server.start(mend=False)
        assert log.append(batch(7, SIZE), stream=STREAM, expected=ANY).first == 21
        acknowledged = fingerprint(log)
        server.kill()
        server.start(mend=False)
        assert fingerprint(log) == acknowledged
        assert log.verify().events == 24


def test_a_server_is_swept_once_in_its_life_and_not_for_readers(server: RedisServer) -> None:
    with open_log(server.url) as log:
        append_batches(log, 1, SIZE)
        swept = bases(server)
        append_batches(log, 2, SIZE)
    with open_log(server.url) as log:
        log.append(batch(2, SIZE), stream=STREAM, expected=ANY)
    assert bases(server) == swept
    server.kill()
    server.start()
    with open_log(server.url) as log:
        assert log.verify().events == 3 * SIZE
        assert bases(server) == swept
        log.append(batch(3, SIZE), stream=STREAM, expected=ANY)
    assert len(bases(server)) == 1
    assert bases(server) != swept


def test_a_server_that_refuses_torn_files_is_never_swept(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "strict", {"aof-load-truncated": "no"}) as server:
        before = bases(server)
        with open_log(server.url) as log:
            append_batches(log, 1, SIZE)
        assert bases(server) == before


def test_a_user_who_may_not_sweep_is_refused_and_nothing_is_written(server: RedisServer) -> None:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "writer", "on", ">secret", "~*", "&*", "+@all", "-bgrewriteaof")
    with open_log(server.url.replace("//", "//writer:secret@")) as log:
        with pytest.raises(DurabilityTooLow, match="BGREWRITEAOF") as caught:
            append_batches(log, 1, SIZE)
        assert "aof-load-truncated no" in caught.value.hint
        assert log.end() == 0
