"""Trimming a log on Redis: only what is sealed goes, and nobody who reads can tell."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from builders import append, realistic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from log_contract import note
from sealing import contents, fill, reads
from servers import RedisServer

from esper.artifacts.signing import SigningKey
from esper.clock import ManualClock
from esper.errors import EventIdReused, HistoryUnsealed, ProofFailed
from esper.oona import ANY, MemoryLog, SqliteLog, iterate, iterate_stream
from esper.oona.redis.log import RedisLog
from esper.oona.sealing.archive import Archive
from esper.oona.sealing.sealed import ArchiveHistory
from esper.oona.sealing.sealer import seal, trim


def test_a_log_in_a_file_is_not_trimmed(tmp_path: Path, archive: Archive, key: SigningKey) -> None:
    with SqliteLog(tmp_path / "log.db", clock=ManualClock()) as log:
        fill(log, 20)
        seal(log, archive, key)
        with pytest.raises(HistoryUnsealed, match="keeps all of its records"):
            trim(log, archive)
        assert len(log.read()) == 20


@pytest.fixture
def trimmable(server: RedisServer, archive: Archive, places: ExitStack) -> RedisLog:
    """Return a log on Redis that reads what is trimmed in the archive."""
    with server.client() as client:
        client.flushall()
    sealed = ArchiveHistory(Archive(archive.objects, archive.trusted))
    return places.enter_context(RedisLog(f"{server.url}?namespace=main", clock=ManualClock(), sealed=sealed))


def test_a_trimmed_log_reads_as_before(trimmable: RedisLog, archive: Archive, key: SigningKey) -> None:
    log = trimmable
    fill(log, 300)
    streams, topics = contents(log)

    def everything() -> list[object]:
        found: list[object] = [log.read_recorded(after, 50, until=290) for after in (0, 60, 249, 250, 260)]
        found += [list(iterate(log, topics=[topic], batch=7)) for topic in topics]
        found += [list(iterate_stream(log, stream, batch=5)) for stream in streams]
        return [*found, *reads(log, log.end(), streams, topics), list(iterate(log, batch=33)), log.head(), log.verify()]

    before = everything()
    seal(log, archive, key, segment_events=64)
    fill(log, 50)
    with_more = everything()
    assert before != with_more
    assert trim(log, archive) == 300
    assert everything() == with_more
    assert trim(log, archive) == 0
    seal(log, archive, key, segment_events=64)
    assert trim(log, archive) == 50
    assert everything() == with_more


def test_a_trimmed_log_holds_less_on_the_server(
    trimmable: RedisLog, server: RedisServer, archive: Archive, key: SigningKey
) -> None:
    fill(trimmable, 300)
    seal(trimmable, archive, key)
    with server.client() as client:
        before = sum(client.xlen(name) for name in client.keys("esper:*") if client.type(name) == b"stream")
        trim(trimmable, archive)
        after = sum(client.xlen(name) for name in client.keys("esper:*") if client.type(name) == b"stream")
    assert (before, after) == (300, 0)


def test_a_retry_of_trimmed_facts_gets_the_first_receipt(
    trimmable: RedisLog, archive: Archive, key: SigningKey
) -> None:
    batch = [note(number) for number in range(5)]
    first = trimmable.append(batch, stream="operator/run-1", expected=ANY)
    seal(trimmable, archive, key)
    trim(trimmable, archive)
    again = trimmable.append(batch, stream="operator/run-1", expected=ANY)
    assert (again.first, again.last, again.version) == (first.first, first.last, first.version)
    with pytest.raises(EventIdReused):
        trimmable.append([note(3, "another")], stream="operator/run-1", expected=ANY)
    with pytest.raises(EventIdReused):
        trimmable.append([note(4), note(9)], stream="operator/run-1", expected=ANY)
    assert trimmable.append([note(9)], stream="operator/run-1", expected=5).first == 6
    trimmable.verify()


def test_a_trimmed_log_opened_without_its_archive_says_what_it_needs(
    trimmable: RedisLog, server: RedisServer, archive: Archive, key: SigningKey
) -> None:
    fill(trimmable, 30)
    seal(trimmable, archive, key)
    trim(trimmable, archive)
    with RedisLog(f"{server.url}?namespace=main") as log:
        assert log.end() == 30
        with pytest.raises(HistoryUnsealed, match="archive, which was not named"):
            log.read()


def test_a_trimmed_log_opened_with_an_archive_that_lacks_its_history_says_so(
    trimmable: RedisLog, server: RedisServer, archive: Archive, key: SigningKey
) -> None:
    fill(trimmable, 30)
    seal(trimmable, archive, key)
    trim(trimmable, archive)
    empty = ArchiveHistory(Archive("memory://", [key.public]))
    with (
        RedisLog(f"{server.url}?namespace=main", sealed=empty) as log,
        pytest.raises(HistoryUnsealed, match="reaches to 30, but its archive only to 0"),
    ):
        log.read()


def test_nothing_is_trimmed_that_another_log_sealed(
    trimmable: RedisLog, archive: Archive, key: SigningKey, places: ExitStack
) -> None:
    other = places.enter_context(MemoryLog(ManualClock()))
    append(other, reversed(realistic()[:100]))
    seal(other, archive, key)
    fill(trimmable, 100)
    with pytest.raises(ProofFailed):
        trim(trimmable, archive)
    with pytest.raises(HistoryUnsealed):
        trimmable.trim(100)
    assert len(trimmable.read()) == 100


_ACTS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 40)),
    st.tuples(st.just("seal"), st.integers(1, 20)),
    st.tuples(st.just("trim"), st.integers(0, 200)),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=st.lists(_ACTS, max_size=12))
def test_nothing_trims_an_unsealed_event(server: RedisServer, key: SigningKey, acts: list[tuple[str, int]]) -> None:
    """I10: whatever is appended, sealed and trimmed in whatever order, every event stays readable at its position."""
    with server.client() as client:
        client.flushall()
    archive = Archive("memory://", [key.public])
    with (
        archive,
        RedisLog(server.url, clock=ManualClock(), sealed=ArchiveHistory(archive)) as log,
        MemoryLog(ManualClock()) as model,
    ):
        sealed = trimmed = 0
        for act, number in acts:
            if act == "append":
                fill(log, number)
                fill(model, number)
            elif act == "seal":
                seal(log, archive, key, segment_events=number)
                sealed = log.end()
            elif number > sealed:
                with pytest.raises(HistoryUnsealed):
                    log.trim(number)
            else:
                assert log.trim(number) == max(0, number - trimmed)
                trimmed = max(trimmed, number)
            assert log.read(0, 1000) == model.read(0, 1000)
        with server.client() as client:
            kept = sum(client.xlen(name) for name in client.keys("esper:*") if client.type(name) == b"stream")
        assert kept == log.end() - trimmed
        assert log.verify().head == model.head()
