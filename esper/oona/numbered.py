"""The core of a log that numbers its own records: one set of rules for every local adapter.

Belongs here: the version check, numbering, digests and the chain. Does not belong here: checks of a batch and retries
(``batch``), and how rows are kept, locked or made durable; adapters fill in those few methods.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar, NamedTuple, Self, TypeAlias

from msgspec.structs import astuple

from esper.clock import Clock
from esper.errors import EventIdReused
from esper.events.codec import record_bytes
from esper.events.envelope import Envelope, Event, Recorded
from esper.oona.batch import Draft, conflict, draft, receipt_of_retry
from esper.oona.cells import Cells
from esper.oona.chain import ChainWalk
from esper.oona.meter import AppendMeter
from esper.oona.port import ANY, Head, LogReport, Progress, Receipt

#: A record as stored: the thirteen fields of ``Envelope`` in declared order, then the chain value.
Row: TypeAlias = tuple[
    int, bytes, str, int, str, str, int, str, str, bytes | None, int, bytes, bytes, bytes
]  # fmt: skip


class Tail(NamedTuple):
    """The last record, as far as the next one depends on it."""

    position: int
    chain: bytes
    recorded_at: int


def number(drafts: Sequence[Draft], stream: str, version: int, tail: Tail, now_us: int) -> list[Row]:
    """Give drafts their places after a tail.

    Args:
        drafts: Facts to place, in order.
        stream: Their stream.
        version: Version the stream has now.
        tail: The log's last record.
        now_us: Time now, microseconds since the Unix epoch; records are never before the tail's.
    """
    position, chain, previous = tail
    recorded_at = max(previous, now_us)
    rows: list[Row] = []
    sha256 = hashlib.sha256
    for event, type_name, schema, topic, payload in drafts:
        position += 1
        version += 1
        fields = (
            position,
            event.event_id,
            type_name,
            schema,
            topic,
            stream,
            version,
            event.sender_id,
            event.trace_id,
            event.causation_id,
            recorded_at,
            payload,
        )
        record = record_bytes(fields)
        # As ``chain.link``, without the call.
        chain = sha256(chain + record).digest()
        rows.append((*fields, sha256(record).digest(), chain))
    return rows


def row_of(envelope: Envelope, chain: bytes) -> Row:
    """Return the row of an envelope and its chain value."""
    return (*astuple(envelope), chain)


def envelope_of(row: Row) -> Envelope:
    """Return the envelope of a row."""
    return Envelope(*row[:13])


class NumberedLog(ABC):
    """A log that numbers its records itself; the base of the memory and SQLite adapters."""

    #: Name of the log; ``main`` unless its URL gives another.
    namespace: str = "main"
    #: Whether an append is on stable storage when it returns.
    fsynced: bool = False
    #: Name of the adapter among the metrics.
    adapter: ClassVar[str]

    def __init__(self, clock: Clock) -> None:
        """Take time from a clock."""
        self._clock = clock
        self._meter = AppendMeter(self.adapter)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, batch: Sequence[Event], *, stream: str, expected: int) -> Receipt:
        """Append a batch of facts to one stream, all or none; see ``EventLog.append``."""
        with self._meter.measured():
            receipt = self._append(draft(batch, stream), stream, expected)
        self._meter.appended(len(batch), fsynced=receipt.fsynced)
        return receipt

    def _append(self, drafts: list[Draft], stream: str, expected: int) -> Receipt:
        with self._exclusive() as tail:
            current = self._version(stream)
            if expected in (ANY, current):
                rows = number(drafts, stream, current, tail, self._clock.now_us())
                if self._insert(rows):
                    return Receipt(tail.position + 1, rows[-1][0], rows[-1][6], self.fsynced, 0)
            found = self._find([item.event.event_id for item in drafts])
        earlier = receipt_of_retry(drafts, found, fsynced=self.fsynced)
        if earlier is None:
            raise conflict(stream, expected, current)
        return earlier

    def restore(self, records: Iterable[Envelope]) -> int:
        """Copy records of another log to the end of this one, numbers and times as they are.

        Args:
            records: Records whose first follows this log's last.

        Returns:
            How many records were copied.

        Raises:
            LogDamaged: A record does not follow from the one before it; none of the records were written.
        """
        with self._exclusive() as tail:
            walk = ChainWalk()
            walk.head = Head(tail.position, tail.chain)
            rows = []
            for envelope in records:
                walk.versions.setdefault(envelope.stream, self._version(envelope.stream))
                rows.append(row_of(envelope, walk.step(envelope)))
            if rows and not self._insert(rows):
                raise EventIdReused(
                    "a record to restore has the id of one already in the log",
                    event_id=rows[0][1].hex(),
                    position=rows[0][0],
                )
            return len(rows)

    @abstractmethod
    def _exclusive(self) -> AbstractContextManager[Tail]:
        """Shut other writers out, give the tail, and commit at the end; undo everything on an error."""

    @abstractmethod
    def _version(self, stream: str) -> int:
        """Return a stream's version; called inside ``_exclusive``."""

    @abstractmethod
    def _insert(self, rows: list[Row]) -> bool:
        """Write rows; write nothing and return False if an id is taken. Called inside ``_exclusive``."""

    @abstractmethod
    def _find(self, event_ids: Sequence[bytes]) -> dict[bytes, Envelope]:
        """Return the records that have these ids; called inside ``_exclusive``."""

    @abstractmethod
    def read(
        self,
        after: int = 0,
        limit: int = 1000,
        *,
        topics: Collection[str] | None = None,
        until: int | None = None,
    ) -> list[Envelope]:
        """Return up to ``limit`` records with position > ``after``; see ``EventLog.read``."""

    @abstractmethod
    def read_recorded(self, after: int, limit: int, *, until: int | None = None) -> list[Recorded]:
        """Return what projections need of up to ``limit`` records; see ``EventLog.read_recorded``."""

    @abstractmethod
    def read_stream(self, stream: str, after: int = 0, limit: int = 1000) -> list[Envelope]:
        """Return up to ``limit`` records of a stream with version > ``after``, in order."""

    @abstractmethod
    def stream_version(self, stream: str) -> int:
        """Return the version of a stream; 0 if it has no fact."""

    @abstractmethod
    def streams(self, prefix: str = "") -> list[str]:
        """Return the names of all streams that begin with a prefix, sorted."""

    @abstractmethod
    def head(self) -> Head:
        """Return position and chain value of the last record."""

    @abstractmethod
    def end(self) -> int:
        """Return the position of the last record."""

    @property
    @abstractmethod
    def cells(self) -> Cells:
        """Return the cells that handlers of this log coordinate with."""

    @abstractmethod
    def chain_at(self, position: int) -> bytes | None:
        """Return the chain value at a position (zeros at 0), or None past the end."""

    @abstractmethod
    def wait(self, after: int, timeout_s: float) -> bool:
        """Wait until the log has a record past ``after``; tell whether it has."""

    @abstractmethod
    def verify(self, progress: Progress | None = None) -> LogReport:
        """Walk the whole log and check it; see ``EventLog.verify``."""

    @abstractmethod
    def close(self) -> None:
        """Release the log; closing twice is fine."""
