"""Salvage: copies what can still be trusted of a damaged log into a new one.

The longest verified prefix is copied record by record with its positions, ids and times, so the copy has the same
chain. The source is never opened by SQLite, only read: the work is done on a copy, because SQLite writes to a file
(write-ahead log, shared memory) even when it only reads.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from esper.errors import ConfigError, LogDamaged, NotFound
from esper.events.envelope import Envelope
from esper.oona.chain import ChainWalk
from esper.oona.open import open_log
from esper.oona.port import EventLog, Head, Progress
from esper.oona.sqlite.file import connect, named_errors, require_log
from esper.oona.sqlite.headfile import HeadFile
from esper.oona.sqlite.walk import check_structure, walk_records

_AT_ONCE = 2000


class SalvageReport(msgspec.Struct, frozen=True, kw_only=True):
    """What salvage found and copied."""

    #: Head of the new log: the last record that was found sound.
    head: Head
    #: First position that could not be trusted; None if no damage was found.
    damaged_at: int | None
    #: What was found there; None if no damage was found.
    reason: str | None
    #: Position the damaged log had acknowledged, by its head file; None if there is no readable head file.
    acknowledged: int | None


def salvage(source_path: str | Path, target_url: str, progress: Progress | None = None) -> SalvageReport:
    """Copy the longest verified prefix of a log file to a new log.

    Do not call it on a log that this same process has open: reading a SQLite file beside its own connection drops
    that connection's locks.

    Args:
        source_path: The damaged log's database file; it is not changed.
        target_url: Where the new log goes; it must be empty or not exist.
        progress: Called with (records copied, records acknowledged or copied).

    Raises:
        NotFound: The source is not there.
        ConfigError: The target already holds records.
        LogError: As the target raises.
    """
    source = Path(source_path)
    if not source.is_file():
        raise NotFound(f"there is no log at {source}", hint="name the log's database file")
    target = open_log(target_url)
    try:
        if target.head().position:
            raise ConfigError(
                f"{target_url} already holds {target.head().position} records",
                hint="name a target that does not exist yet",
            )
        with tempfile.TemporaryDirectory(prefix="esper-salvage-") as folder:
            copy = _copy(source, Path(folder))
            noted = _noted(copy)
            damage = _copy_records(copy, target, noted or 0, progress)
        return _report(target.head(), damage, noted)
    finally:
        target.close()


def _copy_records(copy: Path, target: EventLog, noted: int, progress: Progress | None) -> LogDamaged | None:
    """Copy sound records until there are no more; return the damage that ended it, if any did."""
    try:
        for page in _pages(_records(copy)):
            target.restore(page)
            done = page[-1].position
            if progress is not None:
                progress(done, max(done, noted))
    except LogDamaged as error:
        return error
    return None


def _pages(records: Iterator[Envelope]) -> Iterator[list[Envelope]]:
    """Yield records in pages; damage is raised after the page that stands before it."""
    page: list[Envelope] = []
    try:
        for record in records:
            page.append(record)
            if len(page) == _AT_ONCE:
                yield page
                page = []
    except LogDamaged:
        if page:
            yield page
        raise
    if page:
        yield page


def _report(head: Head, damage: LogDamaged | None, noted: int | None) -> SalvageReport:
    if damage is not None:
        place = damage.position or head.position + 1
        return SalvageReport(head=head, damaged_at=place, reason=damage.reason, acknowledged=noted)
    if noted is not None and noted > head.position:
        reason = f"the log ends at {head.position} but position {noted} was acknowledged"
        return SalvageReport(head=head, damaged_at=head.position + 1, reason=reason, acknowledged=noted)
    return SalvageReport(head=head, damaged_at=None, reason=None, acknowledged=noted)


def _copy(source: Path, folder: Path) -> Path:
    """Copy the database with its write-ahead log and head file; return the copy's path."""
    copy = folder / "log.db"
    shutil.copyfile(source, copy)
    for suffix in ("-wal", ".head"):
        part = source.with_name(source.name + suffix)
        if part.is_file():
            shutil.copyfile(part, copy.with_name(copy.name + suffix))
    return copy


def _noted(copy: Path) -> int | None:
    head_file = HeadFile(copy.with_name(copy.name + ".head"))
    try:
        noted = head_file.read()
    except LogDamaged:
        return None
    finally:
        head_file.close()
    return None if noted is None else noted.position


def _records(copy: Path) -> Iterator[Envelope]:
    """Yield the sound records of the copy, then raise what was found wrong with it, if anything."""
    walk = ChainWalk()
    with named_errors(copy):
        connection = connect(copy, create=False, busy_timeout_s=0.0)
        try:
            # Without this SQLite reads nothing at all of a file that is shorter than its header says.
            connection.execute("PRAGMA writable_schema=ON")
            yield from walk_records(connection, copy, walk)
            require_log(connection, copy)
            check_structure(connection, copy, walk.head.position)
        finally:
            connection.close()
