"""Case 15 on Redis: history that somebody edited, dropped, moved or wrote anew behind the log's back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import redis
from faults.notes import STREAM, append_batches, batch, fingerprint, note
from faults.tamper import Entries, entries, flipped, rechain, rewrite
from sealing import archive_at, make_key
from servers import RedisServer

from esper.errors import EventIdReused, LogDamaged, LogRegressed, ProofFailed
from esper.events import Envelope, encode_fact
from esper.oona.open import open_log
from esper.oona.port import ANY
from esper.oona.sealing.sealcheck import check_agreement
from esper.oona.sealing.sealed import ArchiveHistory
from esper.oona.sealing.sealer import seal, trim
from esper.projections.open import open_tables
from esper.projections.runner import Projector

#: The position that is altered.
PLACE = 7
KEY = "esper:operator.actions"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        with open_log(server.url) as log:
            append_batches(log, 5, 4)
        yield server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


def edit(found: Entries) -> None:
    name, body = found[PLACE]
    found[PLACE] = (name, flipped(body))


def edit_time(found: Entries) -> None:
    name, body = found[PLACE]
    found[PLACE] = (name, flipped(body, 18))


def drop(found: Entries) -> None:
    del found[PLACE]


def drop_the_last(found: Entries) -> None:
    del found[20]


def swap(found: Entries) -> None:
    found[PLACE], found[PLACE + 1] = found[PLACE + 1], found[PLACE]


def repeat(found: Entries) -> None:
    found[PLACE] = found[PLACE - 1]


def close_up(found: Entries) -> None:
    """Drop one and let every later one move down."""
    for position in range(PLACE, 20):
        found[position] = found[position + 1]
    del found[20]


def add(found: Entries) -> None:
    found[21] = found[20]


@pytest.mark.parametrize(
    ("alter", "position"),
    [
        (edit, PLACE),
        (edit_time, PLACE),
        (drop, PLACE),
        (drop_the_last, 20),
        (swap, PLACE),
        (repeat, PLACE),
        (close_up, PLACE),
        # Nothing says how far back one cannot trust it: the whole log is named.
        (add, 0),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_verify_names_where_history_was_altered(
    server: RedisServer, client: redis.Redis, alter: Callable[[Entries], None], position: int
) -> None:
    found = entries(client)
    alter(found)
    rewrite(client, found)
    with open_log(server.url) as log:
        with pytest.raises(LogDamaged) as caught:
            log.verify()
        assert caught.value.position == position
        if alter is not add:
            # A reader that comes by is stopped there too, and is never handed what follows.
            with pytest.raises(LogDamaged):
                fingerprint(log)
        else:
            with pytest.raises(LogDamaged):
                log.append(batch(5, 4), stream=STREAM, expected=ANY)


def forget_an_id(client: redis.Redis) -> None:
    client.hdel("esper:@ids", note(PLACE - 1).event_id)


def point_an_id_elsewhere(client: redis.Redis) -> None:
    client.hset("esper:@ids", note(PLACE - 1).event_id, "3")


def invent_an_id(client: redis.Redis) -> None:
    client.hset("esper:@ids", note(999).event_id, "3")


def lower_the_end(client: redis.Redis) -> None:
    client.hset("esper:@meta", "position", "19")


def raise_the_end(client: redis.Redis) -> None:
    client.hset("esper:@meta", "position", "28")


def lower_a_version(client: redis.Redis) -> None:
    client.hset("esper:@versions", STREAM, "19")


def lose_a_streams_index(client: redis.Redis) -> None:
    client.delete(f"esper:@stream:{STREAM}")


def turn_a_streams_index(client: redis.Redis) -> None:
    client.lset(f"esper:@stream:{STREAM}", 3, client.lindex(f"esper:@stream:{STREAM}", 4))


def invent_a_stream(client: redis.Redis) -> None:
    client.hset("esper:@versions", "operator/nobody", "3")


@pytest.mark.parametrize(
    "alter",
    [
        forget_an_id,
        point_an_id_elsewhere,
        invent_an_id,
        lower_the_end,
        raise_the_end,
        lower_a_version,
        lose_a_streams_index,
        turn_a_streams_index,
        invent_a_stream,
    ],
    ids=lambda value: value.__name__,
)
def test_verify_names_an_index_that_does_not_fit_the_records(
    server: RedisServer, client: redis.Redis, alter: Callable[[redis.Redis], None]
) -> None:
    alter(client)
    with open_log(server.url) as log, pytest.raises(LogDamaged):
        log.verify()


def test_an_id_that_points_elsewhere_is_not_taken_for_a_retry(server: RedisServer, client: redis.Redis) -> None:
    point_an_id_elsewhere(client)
    with open_log(server.url) as log, pytest.raises((EventIdReused, LogDamaged)):
        log.append([note(PLACE - 1)], stream=STREAM, expected=ANY)


def altered(records: Sequence[Envelope]) -> list[Envelope]:
    other = msgspec.structs.replace(records[PLACE - 1], payload=encode_fact(note(6, "never seen").fact))
    return [*records[: PLACE - 1], other, *records[PLACE:]]


def shortened(records: Sequence[Envelope]) -> list[Envelope]:
    return [*records[: PLACE - 1], *records[PLACE:]]


def reordered(records: Sequence[Envelope]) -> list[Envelope]:
    return [*records[: PLACE - 1], records[PLACE], records[PLACE - 1], *records[PLACE + 1 :]]


@pytest.mark.parametrize("change", [altered, shortened, reordered], ids=lambda value: value.__name__)
def test_a_history_written_anew_in_every_index_is_found_by_tables_that_knew_the_old_one(
    server: RedisServer,
    client: redis.Redis,
    change: Callable[[Sequence[Envelope]], list[Envelope]],
    tmp_path: Path,
) -> None:
    engine = open_tables(f"sqlite:///{tmp_path}/tables.db")
    with open_log(server.url) as log:
        Projector(log, engine).catch_up()
    rechain(client, server.url, change)
    with open_log(server.url) as log:
        # It is consistent in itself: the log alone cannot tell.
        log.verify()
        append_batches(log, 2, 4, first=50)
        with pytest.raises(LogRegressed):
            Projector(log, engine).catch_up()
    engine.dispose()


@pytest.mark.parametrize("change", [altered, shortened, reordered], ids=lambda value: value.__name__)
def test_a_history_written_anew_in_every_index_is_found_against_an_earlier_signed_checkpoint(
    server: RedisServer,
    client: redis.Redis,
    change: Callable[[Sequence[Envelope]], list[Envelope]],
    tmp_path: Path,
) -> None:
    key = make_key(tmp_path / "keys")
    with archive_at(tmp_path / "archive", key) as archive:
        with open_log(server.url) as log:
            seal(log, archive, key)
        rechain(client, server.url, change)
        with open_log(server.url) as log:
            append_batches(log, 2, 4, first=50)
            log.verify()
            with pytest.raises(ProofFailed) as caught:
                check_agreement(log, ArchiveHistory(archive))
            assert caught.value.attributes["position"] == PLACE
            # Nothing is sealed on top of it, and nothing that is sealed is trimmed away.
            with pytest.raises(ProofFailed, match="rewritten"):
                seal(log, archive, key)
            with pytest.raises(ProofFailed, match="rewritten"):
                trim(log, archive)
            assert len(fingerprint(log)) == log.end()


def test_a_client_that_had_seen_another_log_under_this_name_stops(server: RedisServer, client: redis.Redis) -> None:
    """Somebody flushes the server and makes a new log under the same URL while a client has the old one open."""
    with open_log(server.url) as log:
        assert log.end() == 20
        client.delete(*client.scan_iter("esper:*"))
        with open_log(server.url) as other:
            append_batches(other, 6, 4, first=50)
        for use in (log.head, lambda: log.read(20), lambda: log.append(batch(5, 4), stream=STREAM, expected=ANY)):
            with pytest.raises(LogDamaged):
                use()
