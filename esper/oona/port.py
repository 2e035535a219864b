"""The port of the log: what every adapter does, and what it hands out.

Belongs here: the ``EventLog`` protocol, its small answer structs and helpers that need nothing but the protocol.
Does not belong here: how a log numbers and chains (``numbered``, ``chain``) or stores (``memory``, ``sqlite.log``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Protocol, Self

import msgspec

from esper.events.envelope import Envelope, Event, Recorded
from esper.oona.cells import Cells

#: ``expected`` value: append whatever version the stream has.
ANY = -1
#: ``expected`` value: append only if the stream has no fact yet.
NO_STREAM = 0
#: Largest payload the log takes, in bytes; larger things belong in the artifact store.
MAX_PAYLOAD_BYTES = 1 << 20

#: Called with (facts done, facts in all) while something long goes on.
Progress = Callable[[int, int], None]


class Receipt(msgspec.Struct, frozen=True):
    """What an append came to. ``fsynced`` and ``replicas`` are two facts; neither implies the other."""

    #: Position of the first fact of the batch.
    first: int
    #: Position of the last fact of the batch.
    last: int
    #: Version of the stream after the batch.
    version: int
    #: Whether the batch was on stable storage before this receipt was given.
    fsynced: bool
    #: How many other servers confirmed the batch.
    replicas: int


class Head(msgspec.Struct, frozen=True):
    """The end of the log."""

    #: Position of the last record; 0 for an empty log.
    position: int
    #: Chain value (32 bytes) of the last record; zeros for an empty log.
    chain: bytes


class LogReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a verification walked over and found sound."""

    #: Records walked.
    events: int
    streams: int
    head: Head
    #: Position up to which an acknowledgement was kept apart from the log itself; None where none was kept.
    acknowledged: int | None


class EventLog(Protocol):
    """An append-only log in one order.

    Positions are gapless from 1; versions are gapless from 1 in each stream. Order comes from them alone.
    """

    #: Name of the log; ``main`` unless its URL gives another.
    namespace: str
    #: Whether an append is on stable storage when it returns.
    fsynced: bool

    @property
    def cells(self) -> Cells:
        """Return the cells that handlers of this log coordinate with."""
        ...

    def append(self, batch: Sequence[Event], *, stream: str, expected: int) -> Receipt:
        """Append a batch of facts to one stream, all or none.

        A batch whose ids are all in the log already, with equal deterministic fields, is a retry: nothing is
        written and the receipt of the first time is returned.

        Args:
            batch: One fact or more, all of this stream.
            stream: Name of the stream, e.g. ``run/run-0192``.
            expected: ``ANY``, ``NO_STREAM`` or the exact version the stream has.

        Raises:
            ConcurrencyConflict: The stream has another version.
            EventIdReused: An id was used before for a different fact, or only some ids of the batch were.
            EventTooLarge: A payload is larger than ``MAX_PAYLOAD_BYTES``.
            SchemaError: The batch is empty, an id is not 16 bytes, or a fact belongs to another stream.
            LogFull: There is no room; nothing was written and the log is still usable.
            LogUnavailable: The log cannot be reached or is locked for longer than the busy timeout.
            LogDamaged: The log's bytes are not what was written.
        """
        ...

    def read(
        self,
        after: int = 0,
        limit: int = 1000,
        *,
        topics: Collection[str] | None = None,
        until: int | None = None,
    ) -> list[Envelope]:
        """Return up to ``limit`` records with position > ``after``, in order.

        Args:
            after: Position to go on from; 0 for the start.
            limit: At most so many records.
            topics: Only these topics; None for all.
            until: Last position to return; None for no bound.
        """
        ...

    def read_recorded(self, after: int, limit: int, *, until: int | None = None) -> list[Recorded]:
        """Return what projections need of up to ``limit`` records with position > ``after``, in order.

        Half of the columns, and half of the time of ``read``; arguments as there.
        """
        ...

    def read_stream(self, stream: str, after: int = 0, limit: int = 1000) -> list[Envelope]:
        """Return up to ``limit`` records of a stream with version > ``after``, in order."""
        ...

    def stream_version(self, stream: str) -> int:
        """Return the version of a stream; 0 if it has no fact."""
        ...

    def streams(self, prefix: str = "") -> list[str]:
        """Return the names of all streams that begin with a prefix, sorted."""
        ...

    def head(self) -> Head:
        """Return position and chain value of the last record."""
        ...

    def end(self) -> int:
        """Return the position of the last record; cheaper than ``head`` where the chain must be computed."""
        ...

    def chain_at(self, position: int) -> bytes | None:
        """Return the chain value at a position (zeros at 0), or None past the end."""
        ...

    def wait(self, after: int, timeout_s: float) -> bool:
        """Wait until the log has a record past ``after``; tell whether it has."""
        ...

    def verify(self, progress: Progress | None = None) -> LogReport:
        """Walk the whole log and check positions, versions, ids, digests and the chain.

        Raises:
            LogDamaged: Names the first position that cannot be trusted and what was found there.
        """
        ...

    def restore(self, records: Iterable[Envelope]) -> int:
        """Copy records of another log to the end of this one, numbers and times as they are.

        Args:
            records: Records whose first follows this log's last.

        Returns:
            How many records were copied.

        Raises:
            LogDamaged: A record does not follow from the one before it; none of the records were written.
        """
        ...

    def close(self) -> None:
        """Release the log; closing twice is fine."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def iterate(
    log: EventLog,
    after: int = 0,
    *,
    topics: Collection[str] | None = None,
    until: int | None = None,
    batch: int = 2000,
) -> Iterator[Envelope]:
    """Yield records in order, page by page, up to where the log ends now.

    Args:
        log: Log to read.
        after: Position to go on from; 0 for the start.
        topics: Only these topics; None for all.
        until: Last position to yield; the head at the start of the iteration when left out.
        batch: Records per page.
    """
    end = log.end() if until is None else until
    while page := log.read(after, batch, topics=topics, until=end):
        yield from page
        after = page[-1].position


def iterate_stream(log: EventLog, stream: str, after: int = 0, *, batch: int = 2000) -> Iterator[Envelope]:
    """Yield a stream's records in order, page by page.

    Args:
        log: Log to read.
        stream: Name of the stream; one that does not exist yields nothing.
        after: Version to go on from; 0 for the start.
        batch: Records per page.
    """
    while page := log.read_stream(stream, after, batch):
        yield from page
        after = page[-1].version


def last_by(log: EventLog, time_us: int) -> int:
    """Return the last position recorded at or before a time, 0 if there is none.

    Recorded times never go back, so halving finds it.

    Args:
        log: Log to look in.
        time_us: Microseconds since the Unix epoch.
    """
    low, high = 0, log.end()
    while low < high:
        middle = (low + high + 1) // 2
        (envelope,) = log.read(middle - 1, 1)
        if envelope.recorded_at <= time_us:
            low = middle
        else:
            high = middle - 1
    return low
