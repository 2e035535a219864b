"""SEAL: sealing a log and verifying what is sealed, against reading the log and against plain zstd and SHA-256.

Sealing reads the log, writes segments, reads them back, computes all of it anew and signs. The first line tells what
share of the log's own read rate that leaves. The second compares with the least that any archive does: compress the
same bytes at the same level and hash them, forced to disk.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from pathlib import Path

import zstandard

from benchmarks.measure import interleave, report, scratch
from benchmarks.p2_append import BATCH, STREAM, events
from esper.artifacts.signing import SigningKey
from esper.events.codec import record_of
from esper.oona import SqliteLog, iterate
from esper.oona.sealing.archive import Archive
from esper.oona.sealing.sealcheck import check_sealed
from esper.oona.sealing.sealer import seal

BATCHES = 66
EVENTS = BATCH * BATCHES
_LEVEL = 6


class Sealing:
    """Seals, verifies and reads one log."""

    def __init__(self, folder: Path) -> None:
        """Write the log."""
        self.folder = folder
        self.key = SigningKey.create(folder / "signing.pem")
        self.log = SqliteLog(folder / "log.db")
        version = 0
        for _ in range(BATCHES):
            version = self.log.append(events(version + 1), stream=STREAM, expected=version).version
        self.records = b"".join(record_of(one) for one in iterate(self.log))
        self.numbers = itertools.count()
        self.bytes_per_event = self.plain_bytes_per_event = 0.0
        self.newest = Archive("memory://", [])

    def seal(self) -> float:
        """Return events sealed per second, into a new archive."""
        self.newest = Archive(f"file:///{self.folder / str(next(self.numbers))}", [self.key.public])
        start = time.perf_counter()
        done = seal(self.log, self.newest, self.key)
        taken = time.perf_counter() - start
        self.bytes_per_event = done.segment_bytes / done.events
        return EVENTS / taken

    def verify(self) -> float:
        """Return sealed events verified per second, in the newest archive."""
        start = time.perf_counter()
        found = check_sealed(self.newest)
        assert found.through == EVENTS
        return EVENTS / (time.perf_counter() - start)

    def read(self) -> float:
        """Return events read from the log per second."""
        start = time.perf_counter()
        count = sum(1 for _ in iterate(self.log))
        assert count == EVENTS
        return EVENTS / (time.perf_counter() - start)

    def plain(self) -> float:
        """Return events per second of compressing and hashing the same bytes and forcing them to disk."""
        start = time.perf_counter()
        packed = zstandard.ZstdCompressor(level=_LEVEL).compress(self.records)
        hashlib.sha256(packed).digest()
        with (self.folder / "plain").open("wb") as file:
            file.write(packed)
            file.flush()
            os.fsync(file.fileno())
        taken = time.perf_counter() - start
        self.plain_bytes_per_event = len(packed) / EVENTS
        return EVENTS / taken


def main() -> None:
    """Measure and print."""
    with scratch() as folder:
        side = Sealing(folder)
        sealed, verified, read, plain = interleave([side.seal, side.verify, side.read, side.plain])
        side.log.close()
        details = {
            "bytes_per_event": round(side.bytes_per_event, 2),
            "plain_bytes_per_event": round(side.plain_bytes_per_event, 2),
            "record_bytes_per_event": round(len(side.records) / EVENTS, 1),
        }
    what = f"{EVENTS} events of a SQLite log"
    unit = "events/s"
    report("SEAL", f"sealing {what}", sealed, read, unit=unit, peer="reading the same log", **details)
    report("SEAL-verify", f"verifying sealed {what}", verified, read, unit=unit, peer="reading the same log")
    report("SEAL-plain", f"sealing {what}", sealed, plain, unit=unit, peer="zstd and SHA-256 of the same bytes")


if __name__ == "__main__":
    main()
