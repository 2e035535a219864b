"""Delivery: getting what spool files hold into the log they were meant for, in order and once.

Belongs here: appending a file's batches, refusing a file that the log has moved past, and the files that earlier
processes left. Does not belong here: the bytes of a file (``spool``) or when facts are spooled (``outage``).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from esper.errors import ConcurrencyConflict, EsperError, EventIdReused, LogFull, LogUnavailable, SpoolRefused
from esper.events.codec import decode_payload
from esper.events.envelope import Event
from esper.oona.port import ANY, EventLog, Receipt
from esper.oona.recording.spool import FORMAT, SUFFIX, SpooledBatch, SpoolFile, SpoolHeader
from esper.oona.redis.url import parse_url
from esper.redact import mask_text

#: Most bytes a spool file takes unless another bound is set.
LIMIT_BYTES = 256 << 20
#: Seconds a producer that ends waits for the log.
PATIENCE_S = 60.0


class Delivered(NamedTuple):
    """What became of one spool file."""

    path: Path
    #: ``delivered``, ``in use`` by another process, or for ``another log``.
    outcome: str
    #: Facts that went into the log, or were there already.
    facts: int
    #: Bytes the file had.
    bytes: int
    #: Which log the file is for; empty where another process has it.
    target: str


class Spool:
    """The folder where facts wait for one log.

    Attributes:
        folder: The folder; made when it is first needed.
        target: Which log: address and namespace, no credentials.
        limit_bytes: Most bytes one file takes before producers wait.
        patience_s: How long a producer that ends waits for the log before it leaves its file.
    """

    def __init__(
        self, folder: Path, target: str, *, limit_bytes: int = LIMIT_BYTES, patience_s: float = PATIENCE_S
    ) -> None:
        """Name the folder and the log.

        Args:
            folder: Where spool files are.
            target: Which log they are for; see ``target_of``.
            limit_bytes: Most bytes one file takes before producers wait.
            patience_s: How long a producer that ends waits for the log before it leaves its file.
        """
        self.folder = folder
        self.target = target
        self.limit_bytes = limit_bytes
        self.patience_s = patience_s

    def waiting(self) -> list[Path]:
        """Return the files that wait for delivery; those that a log refused do not."""
        return sorted(self.folder.glob(f"*{SUFFIX}"))

    def create(self, name: str) -> SpoolFile:
        """Make a new spool file for this log."""
        header = SpoolHeader(format=FORMAT, target=self.target, created_at=time.time_ns() // 1000)
        return SpoolFile.create(self.folder, name, header)

    def deliver(self, log: EventLog, *, any_log: bool = False) -> list[Delivered]:
        """Deliver what earlier processes left, oldest file first.

        Args:
            log: The log.
            any_log: Also what was spooled for a log at another address: the same log may have moved.

        Returns:
            What became of each file; a file another process works on is left to it.

        Raises:
            SpoolDamaged: A file is not what was written; what stands before the damage was delivered.
            SpoolRefused: The log does not take a file's facts; the file is kept aside.
            LogUnavailable: The log cannot be reached; the files are kept.
        """
        done: list[Delivered] = []
        files: list[SpoolFile] = []
        try:
            for path in self.waiting():
                file = SpoolFile.open(path)
                if file is None:
                    done.append(Delivered(path, "in use", 0, 0, ""))
                else:
                    files.append(file)
            for file in sorted(files, key=lambda one: (one.header.created_at, one.path)):
                target = file.header.target
                if target != self.target and not any_log:
                    done.append(Delivered(file.path, "another log", 0, file.forced, target))
                    continue
                facts = Delivery(file, log).run()
                done.append(Delivered(file.path, "delivered", facts, file.forced, target))
        finally:
            for file in files:
                file.close()
        return done


class Delivery:
    """Appends the batches of one file to a log.

    Attributes:
        facts: Facts delivered so far.
        receipt: Receipt of the last batch; None before the first.
    """

    def __init__(self, file: SpoolFile, log: EventLog) -> None:
        """Begin where an earlier delivery of the file ended."""
        self._file = file
        self._log = log
        self._checked = False
        self.facts = 0
        self.receipt: Receipt | None = None

    def run(self) -> int:
        """Deliver the whole file, remove it and return how many facts it held; raises as ``step``."""
        while self.step():
            pass
        self._file.remove()
        return self.facts

    def step(self) -> bool:
        """Deliver the next batch; False at the end of the file.

        Raises:
            SpoolDamaged: The batch cannot be read.
            SpoolRefused: The log has moved past the batch, and the file is kept aside; or it refuses it otherwise.
            LogUnavailable: The log cannot be reached; the same step can be tried again.
            LogFull: The log has no room; the same step can be tried again.
        """
        found = self._file.at(self._file.delivered)
        if found is None:
            return False
        batch, after = found
        try:
            if not self._checked:
                refuse_overtaken(self._file, self._log)
                self._checked = True
            self.receipt = self._log.append(_events(batch), stream=batch.stream, expected=batch.expected)
        except (LogUnavailable, LogFull):
            raise
        except (ConcurrencyConflict, EventIdReused) as error:
            aside = self._file.keep_aside()
            raise SpoolRefused(
                f"the log has moved past what was spooled for {batch.stream}: {error.message}; "
                f"the file is kept as {aside}",
                hint="another process went on with it, or the log was put back to an older state; "
                "the spooled facts that are not in the log stay in that file",
                path=aside,
            ) from error
        except EsperError as error:
            raise SpoolRefused(
                f"the log refuses what {self._file.path} holds: {error.message}", hint=error.hint, path=self._file.path
            ) from error
        self._file.note_delivered(after)
        self.facts += len(batch.facts)
        return True


def refuse_overtaken(file: SpoolFile, log: EventLog) -> None:
    """Check before the first append that the log stands where the file's owned streams go on.

    Facts for streams with many writers would go in before the first conflict of an owned stream is met.

    Raises:
        ConcurrencyConflict: A stream is shorter than when the facts were spooled, or another writer went on with it.
    """
    begins: dict[str, int] = {}
    for batch in file.batches():
        if batch.expected != ANY:
            begins.setdefault(batch.stream, batch.expected)
    versions = {stream: log.stream_version(stream) for stream in begins}
    # What the log has past a beginning must be what this file holds: a batch whose reply was lost, or an earlier try.
    ours = {
        batch.stream: batch.facts[version - batch.expected - 1].event_id
        for batch in file.batches()
        if batch.expected != ANY
        and batch.expected < (version := versions[batch.stream]) <= batch.expected + len(batch.facts)
    }
    for stream, version in versions.items():
        if version == begins[stream]:
            continue
        there = log.read_stream(stream, version - 1, 1) if version > begins[stream] else []
        if not there or there[0].event_id != ours.get(stream):
            raise ConcurrencyConflict(
                f"stream {stream} has version {version}, not {begins[stream]}",
                stream=stream,
                expected=begins[stream],
                current=version,
            )


def spool_for(url: str, folder: Path, limit_bytes: int) -> Spool | None:
    """Return the spool of a log, or None for one on this machine's disk, which would share the spool's fate."""
    return Spool(folder, target_of(url), limit_bytes=limit_bytes) if is_remote(url) else None


def is_remote(url: str) -> bool:
    """Tell whether a log is kept by a server."""
    return urlsplit(url).scheme in ("redis", "rediss")


def target_of(url: str) -> str:
    """Return which log a URL names, without credentials and options: ``host:port/db namespace``."""
    if not is_remote(url):
        return mask_text(url)
    address = parse_url(url)
    return f"{address.host}:{address.port}/{address.db} {address.namespace}"


def _events(batch: SpooledBatch) -> list[Event]:
    return [
        Event(
            fact=decode_payload(fact.type, fact.schema, fact.payload),
            event_id=fact.event_id,
            sender_id=batch.sender_id,
            trace_id=batch.trace_id,
            causation_id=fact.causation_id,
        )
        for fact in batch.facts
    ]
