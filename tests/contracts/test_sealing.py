"""Sealing: on every log and every store, what is sealed is what the log holds, and reading crosses the seam unseen."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from builders import append, realistic
from sealing import contents, fill, reads
from servers import S3Server

from esper.artifacts import open_objects
from esper.artifacts.signing import SigningKey
from esper.clock import ManualClock
from esper.errors import NotFound, ProofFailed
from esper.oona import EventLog, MemoryLog, iterate
from esper.oona.sealing.archive import Archive
from esper.oona.sealing.prove import check_proof, dump_proof, load_proof, prove_consistency, prove_inclusion
from esper.oona.sealing.restore import restore
from esper.oona.sealing.sealcheck import check_agreement, check_sealed
from esper.oona.sealing.sealed import ArchiveHistory
from esper.oona.sealing.sealer import seal

OpenLog = Callable[[str], EventLog]


# --- on every kind of log


def test_what_is_sealed_is_what_the_log_holds(log: EventLog, archive: Archive, key: SigningKey) -> None:
    fill(log, 700)
    seen: list[tuple[int, int]] = []
    report = seal(log, archive, key, segment_events=128, progress=lambda done, total: seen.append((done, total)))
    assert (report.events, report.sealed_before, report.segments, report.unsealed) == (700, 0, 6, 0)
    assert seen == [(128 * number, 700) for number in range(1, 6)] + [(700, 700)]
    checkpoint = archive.newest()
    assert checkpoint == report.checkpoint
    assert checkpoint is not None
    assert (checkpoint.size, checkpoint.chain, checkpoint.generation) == (700, log.head().chain, 1)
    sealed: list[object] = []
    checked = check_sealed(archive, visit=sealed.extend)
    assert sealed == list(iterate(log))
    assert (checked.through, checked.checkpoints, checked.segments, checked.leftovers) == (700, 1, 6, 0)
    check_agreement(log, ArchiveHistory(archive))


def test_sealing_again_seals_what_is_new(log: EventLog, archive: Archive, key: SigningKey) -> None:
    empty = seal(log, archive, key)
    assert (empty.events, empty.checkpoint) == (0, None)
    for size, segments in ((100, 1), (300, 3), (301, 1), (384, 1), (385, 1)):
        fill(log, size - log.end())
        report = seal(log, archive, key, segment_events=128)
        assert (report.sealed_before + report.events, report.segments) == (size, segments)
        again = seal(log, archive, key, segment_events=128)
        assert (again.events, again.segments, again.checkpoint) == (0, 0, report.checkpoint)
    assert archive.sizes() == [100, 300, 301, 384, 385]
    assert check_sealed(archive).checkpoints == 5
    history = ArchiveHistory(archive)
    for old in archive.sizes():
        for new in archive.sizes():
            if old <= new:
                proof = load_proof(dump_proof(prove_consistency(history, old, new)), "x")
                proven = check_proof(proof, [key.public])
                assert proven.old is not None
                assert (proven.old.size, proven.checkpoint.size) == (old, new)


def test_every_sealed_record_is_proven(log: EventLog, archive: Archive, key: SigningKey) -> None:
    fill(log, 200)
    seal(log, archive, key, segment_events=64)
    fill(log, 13)
    seal(log, archive, key, segment_events=64)
    fill(log, 5)
    history = ArchiveHistory(archive)
    for envelope in log.read(0, 213):
        proof = load_proof(dump_proof(prove_inclusion(history, envelope.position)), "x")
        assert check_proof(proof, [key.public]).record == envelope
        assert history.find(envelope.event_id) == envelope.position
    with pytest.raises(ProofFailed, match="position 214 is not sealed; history is sealed through 213"):
        prove_inclusion(history, 214)
    with pytest.raises(NotFound, match="no checkpoint of size 150"):
        prove_consistency(history, 150, 213)


def test_the_log_must_be_the_one_that_was_sealed(
    open_log: OpenLog, log: EventLog, archive: Archive, key: SigningKey
) -> None:
    fill(log, 100)
    seal(log, archive, key)
    names = archive.objects.names()
    other = open_log("other")
    with pytest.raises(ProofFailed, match="the log ends at 0, but 100 records are sealed"):
        seal(other, archive, key)
    append(other, reversed(realistic()[:150]))
    with pytest.raises(ProofFailed, match="history was rewritten"):
        seal(other, archive, key)
    assert archive.objects.names() == names
    with pytest.raises(ProofFailed, match="at position 1 another record is sealed") as caught:
        check_agreement(other, ArchiveHistory(archive))
    assert caught.value.attributes["position"] == 1


def seal_at_once(log: EventLog, archive: Archive, key: SigningKey, *sizes: int) -> list[BaseException]:
    """Seal in as many threads as there are sizes of segments, and return what went wrong."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(sizes))

    def work(segment_events: int) -> None:
        start.wait()
        try:
            seal(log, archive, key, segment_events=segment_events)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(size,)) for size in sizes]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return errors


def test_sealers_at_once_leave_one_history(log: EventLog, archive: Archive, key: SigningKey) -> None:
    for _ in range(4):
        fill(log, 150)
        assert seal_at_once(log, archive, key, 32, 48, 48) == []
        assert check_sealed(archive).through == log.end()
    check_agreement(log, ArchiveHistory(archive))


# --- reading what is sealed


def test_sealed_history_reads_as_the_log_does(log: EventLog, archive: Archive, key: SigningKey) -> None:
    fill(log, 300)
    seal(log, archive, key, segment_events=64)
    streams, topics = contents(log)
    # One segment fits: all others are read from the archive again and again.
    for kept_bytes in (1, 1 << 30):
        history = ArchiveHistory(archive, kept_bytes=kept_bytes)
        assert reads(history, 300, streams, topics) == reads(log, 300, streams, topics)
        positions = [300, 1, 64, 65, 64]
        assert [one.position for one in history.at(positions)] == positions
        assert history.chain_at(301) is None
        assert history.read(300, 10) == []


def test_sealed_history_sees_what_others_seal(log: EventLog, archive: Archive, key: SigningKey) -> None:
    fill(log, 100)
    history = ArchiveHistory(archive)
    assert (history.through, history.read(0, 10), history.read_stream("run/run-0001", 0, 10)) == (0, [], [])
    for size in (100, 150, 200):
        fill(log, size - log.end())
        seal(log, archive, key, segment_events=64)
        assert history.refresh() == size
        assert history.read(0, 1000) == log.read(0, 1000)
    fill(log, 50)
    seal(log, archive, key, segment_events=32)
    assert history.chain_at(250) == log.head().chain
    assert history.at([250]) == log.read(249)


def test_readers_in_many_threads_see_the_same(log: EventLog, archive: Archive, key: SigningKey) -> None:
    fill(log, 500)
    seal(log, archive, key, segment_events=64)
    history = ArchiveHistory(archive, kept_bytes=100_000)
    expected = log.read(0, 500)
    wrong: list[int] = []

    def work(start: int) -> None:
        for number in range(60):
            after = (start * 131 + number * 37) % 490
            if history.read(after, 10) != expected[after : after + 10]:
                wrong.append(after)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


# --- on every kind of store


@pytest.mark.parametrize("kind", ["memory", "file", "s3"])
def test_every_store_keeps_sealed_history(
    kind: str, tmp_path: Path, s3: S3Server, key: SigningKey, places: ExitStack
) -> None:
    url = {"memory": "memory://", "file": f"file:///{tmp_path / 'a'}", "s3": s3.url(s3.new_bucket(), "esper")}[kind]
    archive = places.enter_context(Archive(open_objects(url), [key.public]))
    log = places.enter_context(MemoryLog(ManualClock()))
    fill(log, 200)
    seal(log, archive, key, segment_events=64)
    fill(log, 30)
    seal(log, archive, key, segment_events=64)
    assert check_sealed(archive).through == 230
    history = ArchiveHistory(archive)
    assert history.read(0, 1000) == log.read(0, 1000)
    assert check_proof(prove_inclusion(history, 7), [key.public]).record == log.read(6, 1)[0]
    copy = places.enter_context(MemoryLog(ManualClock()))
    assert restore(archive, copy, actor="ada", reason="a test", trace_id="0" * 32).head == log.head()


def test_an_old_header_is_read_without_its_records(s3: S3Server, key: SigningKey, places: ExitStack) -> None:
    """Opening a long history moves the headers, not the records; what is wanted is read whole."""
    archive = places.enter_context(Archive(s3.url(s3.new_bucket()), [key.public]))
    log = places.enter_context(MemoryLog(ManualClock()))
    fill(log, 500)
    seal(log, archive, key, segment_events=100)
    s3.requests()
    history = ArchiveHistory(archive)
    assert history.chain_at(300) == log.chain_at(300)
    headers = [one for one in s3.requests() if ".seg" in one]
    assert len(headers) == 5
    assert history.read(350, 1) == log.read(350, 1)
    assert len([one for one in s3.requests() if ".seg" in one]) == 1


def test_looking_for_sealed_history_makes_nothing(tmp_path: Path, key: SigningKey) -> None:
    with Archive(f"file:///{tmp_path / 'none'}", [key.public]) as archive:
        assert archive.newest() is None
        assert check_sealed(archive).through == 0
        assert ArchiveHistory(archive).through == 0
    assert not (tmp_path / "none").exists()
