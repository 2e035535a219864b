"""The core of a log that numbers its own records: one set of rules for every local adapter.

Belongs here: checks of a batch, the version check, retries, numbering, digests and the chain. Does not belong here:
how rows are kept, locked or made durable; adapters fill in those few methods.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Self, TypeAlias

from msgspec.structs import astuple

from esper.clock import Clock
from esper.errors import ConcurrencyConflict, EventIdReused, EventTooLarge, SchemaError
from esper.events.codec import decode_payload, encode_fact, record_bytes, same_fact
from esper.events.envelope import Envelope, Event, Recorded
from esper.oona.chain import ChainWalk
from esper.oona.port import ANY, MAX_PAYLOAD_BYTES, Head, LogReport, Progress, Receipt

#: A record as stored: the thirteen fields of ``Envelope`` in declared order, then the chain value.
Row: TypeAlias = tuple[
    int, bytes, str, int, str, str, int, str, str, bytes | None, int, bytes, bytes, bytes
]  # fmt: skip


class Tail(NamedTuple):
    """The last record, as far as the next one depends on it."""

    position: int
    chain: bytes
    recorded_at: int


class Draft(NamedTuple):
    """A fact that passed the checks and is encoded, but has no number yet."""

    event: Event
    type: str
    schema: int
    topic: str
    payload: bytes


def draft(batch: Sequence[Event], stream: str) -> list[Draft]:
    """Check and encode a batch.

    Raises:
        SchemaError: The batch is empty, an id is not 16 bytes, or a fact belongs to another stream.
        EventTooLarge: A payload is over the limit.
        EventIdReused: An id stands twice in the batch.
    """
    if not batch:
        raise SchemaError(f"an append to {stream} has no facts", hint="append one fact or more")
    drafts = []
    for event in batch:
        fact, cause = event.fact, event.causation_id
        info = fact.info
        payload = encode_fact(fact)
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise EventTooLarge(
                f"{info.name} for {stream} has {len(payload)} bytes; the log takes {MAX_PAYLOAD_BYTES}",
                hint="put the bytes in the artifact store and name their digest in the fact",
            )
        if fact.stream != stream:
            raise SchemaError(f"{info.name} belongs to stream {fact.stream}, not {stream}")
        if len(event.event_id) != 16:
            raise SchemaError(f"the event_id of {info.name} has {len(event.event_id)} bytes, not 16")
        if cause is not None and len(cause) != 16:
            raise SchemaError(f"the causation_id of {info.name} has {len(cause)} bytes, not 16")
        drafts.append(Draft(event, info.name, info.schema, info.topic.value, payload))
    _check_distinct(drafts)
    return drafts


def _check_distinct(drafts: list[Draft]) -> None:
    seen = {item.event.event_id for item in drafts}
    if len(seen) == len(drafts):
        return
    for item in drafts:
        if item.event.event_id not in seen:
            name = item.event.event_id.hex()
            raise EventIdReused(f"event id {name} stands twice in one batch", event_id=name, position=0)
        seen.discard(item.event.event_id)


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

    #: Whether an append is on stable storage when it returns.
    fsynced: bool = False

    def __init__(self, clock: Clock) -> None:
        """Take time from a clock."""
        self._clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, batch: Sequence[Event], *, stream: str, expected: int) -> Receipt:
        """Append a batch of facts to one stream, all or none; see ``EventLog.append``."""
        drafts = draft(batch, stream)
        with self._exclusive() as tail:
            current = self._version(stream)
            if expected in (ANY, current):
                rows = number(drafts, stream, current, tail, self._clock.now_us())
                if self._insert(rows):
                    return Receipt(tail.position + 1, rows[-1][0], rows[-1][6], self.fsynced, 0)
            earlier = self._receipt_of_retry(drafts)
        if earlier is None:
            raise ConcurrencyConflict(
                f"stream {stream} has version {current}, not {expected}",
                stream=stream,
                expected=expected,
                current=current,
            )
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

    def _receipt_of_retry(self, drafts: Sequence[Draft]) -> Receipt | None:
        """Return the first receipt of a batch that is in the log, or None if nothing of it is.

        Raises:
            EventIdReused: Some ids are in the log and others not, or one stands for a different fact.
        """
        found = self._find([item.event.event_id for item in drafts])
        if not found:
            return None
        for item in drafts:
            stored = found.get(item.event.event_id)
            if stored is None:
                there = min(found.values(), key=lambda envelope: envelope.position)
                raise EventIdReused(
                    f"{len(found)} of the {len(drafts)} ids of this batch are in the log already, "
                    f"the first at position {there.position}",
                    hint="retry a batch as it was; do not add facts to it",
                    event_id=there.event_id.hex(),
                    position=there.position,
                )
            if not _same(stored, item):
                raise EventIdReused(
                    f"event id {stored.event_id.hex()} stands at position {stored.position} "
                    f"for a different {stored.type}",
                    hint="derive ids from the cause, so that different facts have different ids",
                    event_id=stored.event_id.hex(),
                    position=stored.position,
                )
        last = max(found.values(), key=lambda envelope: envelope.position)
        first = min(envelope.position for envelope in found.values())
        return Receipt(first, last.position, last.version, self.fsynced, 0)

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


def _same(stored: Envelope, item: Draft) -> bool:
    if stored.type != item.type:
        return False
    if stored.payload == item.payload:
        return True
    return same_fact(decode_payload(stored.type, stored.schema, stored.payload), item.event.fact)
