"""Restoring: sealed history alone gives the log back, and every table that was folded from it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from builders import append, realistic
from sealing import fill

from esper.artifacts.signing import SigningKey
from esper.clock import ManualClock
from esper.errors import ConfigError, ProofFailed
from esper.events import fact_of
from esper.events.operator import LogRestored
from esper.oona import EventLog, MemoryLog, SqliteLog
from esper.oona.sealing.archive import Archive
from esper.oona.sealing.restore import restore
from esper.oona.sealing.sealcheck import check_agreement, check_sealed
from esper.oona.sealing.sealed import ArchiveHistory
from esper.oona.sealing.sealer import seal
from esper.projections.digest import digests
from esper.projections.open import open_tables
from esper.projections.runner import Projector

OpenLog = Callable[[str], EventLog]


def test_a_restored_log_is_the_log_and_says_that_it_was_restored(
    open_log: OpenLog, log: EventLog, archive: Archive, key: SigningKey
) -> None:
    fill(log, 400)
    seal(log, archive, key, segment_events=128)
    copy = open_log("copy")
    report = restore(archive, copy, actor="ada", reason="the disk died", trace_id="0" * 32)
    assert (report.head, report.position, report.generation, report.left_out) == (log.head(), 401, 2, 0)
    assert copy.read(0, 400) == log.read(0, 400)
    (last,) = copy.read(400)
    fact = fact_of(last)
    assert isinstance(fact, LogRestored)
    assert (fact.through, fact.chain, fact.actor, fact.reason) == (400, log.head().chain, "ada", "the disk died")
    assert (last.stream, last.sender_id) == (f"log/{copy.namespace}", "operator:ada")
    copy.verify()
    with pytest.raises(ConfigError, match="already holds 401 records"):
        restore(archive, copy, actor="ada", reason="again", trace_id="0" * 32)


def test_a_restored_log_goes_on_in_its_archive_and_the_old_one_does_not(
    open_log: OpenLog, log: EventLog, archive: Archive, key: SigningKey
) -> None:
    """The old log may come back with records that were never sealed; it cannot pass for the new generation."""
    fill(log, 200)
    seal(log, archive, key, segment_events=64)
    fill(log, 50)
    copy = open_log("copy")
    restore(archive, copy, actor="ada", reason="the server is gone", trace_id="0" * 32)
    fill(copy, 60)
    report = seal(copy, archive, key, segment_events=64)
    assert report.checkpoint is not None
    assert (report.checkpoint.size, report.checkpoint.generation) == (261, 2)
    with pytest.raises(ProofFailed, match="the log ends at 250, but 261 records are sealed"):
        seal(log, archive, key, segment_events=64)
    fill(log, 50)
    with pytest.raises(ProofFailed, match="history was rewritten"):
        seal(log, archive, key, segment_events=64)
    with pytest.raises(ProofFailed, match="at position 201 another record is sealed"):
        check_agreement(log, ArchiveHistory(archive))
    assert check_sealed(archive).checkpoints == 2
    again = open_log("again")
    assert restore(archive, again, actor="ada", reason="once more", trace_id="0" * 32).generation == 3


def test_a_log_can_be_restored_to_an_earlier_position(
    open_log: OpenLog, log: EventLog, archive: Archive, key: SigningKey
) -> None:
    fill(log, 200)
    seal(log, archive, key, segment_events=64)
    copy = open_log("copy")
    report = restore(archive, copy, actor="ada", reason="before the mistake", trace_id="0" * 32, through=150)
    assert (report.head.position, report.position, report.left_out) == (150, 151, 50)
    assert copy.read(0, 150) == log.read(0, 150)
    with pytest.raises(ProofFailed, match="the log ends at 151, but 200 records are sealed"):
        seal(copy, archive, key)
    with pytest.raises(ProofFailed, match="position 201 is not sealed"):
        restore(archive, open_log("far"), actor="ada", reason="x", trace_id="0" * 32, through=201)


def test_a_log_restored_from_segments_alone_gives_identical_tables(
    tmp_path: Path, archive: Archive, key: SigningKey, places: ExitStack
) -> None:
    log = places.enter_context(SqliteLog(tmp_path / "log.db", clock=ManualClock()))
    append(log, realistic())
    seal(log, archive, key, segment_events=256)
    copy = places.enter_context(SqliteLog(tmp_path / "copy.db", clock=ManualClock()))
    with log:
        before = table_digests(log, tmp_path / "tables.db", places)
    (tmp_path / "log.db").unlink()
    restore(archive, copy, actor="ada", reason="a test", trace_id="0" * 32)
    after = table_digests(copy, tmp_path / "copied.db", places)
    # The restoration is an act of a person, and the one row that is new.
    del before["operator_actions"], after["operator_actions"]
    assert len(before) > 8
    assert after == before


def test_records_alone_give_every_table(tmp_path: Path, archive: Archive, key: SigningKey, places: ExitStack) -> None:
    log = places.enter_context(MemoryLog(ManualClock()))
    append(log, realistic())
    seal(log, archive, key, segment_events=256)
    copy = places.enter_context(MemoryLog(ManualClock()))
    check_sealed(archive, visit=lambda records: copy.restore(records) and None)
    assert table_digests(copy, tmp_path / "a.db", places) == table_digests(log, tmp_path / "b.db", places)


def table_digests(log: EventLog, path: Path, places: ExitStack) -> dict[str, str]:
    """Fold a log into new tables and return the digest of each."""
    engine = open_tables(f"sqlite:///{path}")
    places.callback(engine.dispose)
    Projector(log, engine).catch_up(None)
    with engine.connect() as connection:
        return digests(connection)
