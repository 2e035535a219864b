"""Archives and keys for tests of what seals."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from builders import append, realistic

from esper.artifacts.signing import SigningKey
from esper.clock import ManualClock
from esper.events import Fact
from esper.oona import EventLog, SqliteLog, iterate
from esper.oona.sealing.archive import Archive
from esper.oona.sealing.sealed import ArchiveHistory
from esper.oona.sealing.sealer import seal


def make_key(folder: Path) -> SigningKey:
    """Make a signing key in a folder."""
    return SigningKey.create(folder / "signing.pem")


def archive_at(folder: Path, key: SigningKey) -> Archive:
    """Return the archive in a folder, which trusts a key."""
    return Archive(f"file:///{folder}", [key.public])


def fill(log: EventLog, count: int) -> None:
    """Append so many of the facts that real runs leave, after those that are there."""
    facts = _facts()[log.end() : log.end() + count]
    assert len(facts) == count, "there are no more such facts"
    append(log, facts, batch=50)


@cache
def _facts() -> list[Fact]:
    return realistic()


def sealed_log(
    folder: Path, key: SigningKey, *, sizes: tuple[int, ...] = (300, 700), segment_events: int = 128
) -> Path:
    """Write a log file that was sealed at these sizes to the folder ``archive`` beside it, and return its path."""
    path = folder / "log.db"
    with SqliteLog(path, clock=ManualClock()) as log, archive_at(folder / "archive", key) as archive:
        for size in sizes:
            fill(log, size - log.end())
            seal(log, archive, key, segment_events=segment_events)
    return path


def reads(log: EventLog | ArchiveHistory, end: int, streams: dict[str, int], topics: list[str]) -> list[object]:
    """Return what every way of reading gives of the first so many records."""
    found: list[object] = []
    for after in (0, 1, 63, 64, 65, end // 2, end - 1, end):
        for limit in (0, 1, 64, 10_000):
            found.append(log.read(after, limit, until=end))
            found += [log.read(after, limit, topics=[topic], until=end) for topic in topics]
            found.append(log.read(after, limit, topics=topics[:2], until=after + 7))
    found.append(log.read(0, 10, topics=[], until=end))
    for stream, version in streams.items():
        for after in (0, 1, version // 2, version):
            found += [log.read_stream(stream, after, limit) for limit in (0, 3, version - after)]
    found += [log.chain_at(position) for position in (0, 1, 63, 64, 65, end)]
    return found


def contents(log: EventLog) -> tuple[dict[str, int], list[str]]:
    """Return a log's streams with their versions, and its topics and one that it has not."""
    streams = {name: log.stream_version(name) for name in log.streams()}
    return streams, sorted({one.topic for one in iterate(log)} | {"no.such.topic"})
