"""Reading what is sealed.

Belongs here: the port ``SealedHistory``, which a log asks for records it no longer holds, and its one implementation
over the archive. Does not belong here: the bytes (``segment``) or checking all of them (``sealcheck``).
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Generic, Protocol, TypeVar

from esper.errors import ProofFailed
from esper.events.envelope import Envelope
from esper.oona.chain import GENESIS
from esper.oona.sealing.archive import Archive
from esper.oona.sealing.checkpoint import Checkpoint
from esper.oona.sealing.merkle import node_hash, subtrees
from esper.oona.sealing.segment import Segment, SegmentHeader
from esper.oona.sealing.segment_index import SegmentIndex

T = TypeVar("T")

#: Decoded segments are kept while all of them take less than this.
KEPT_BYTES = 256 << 20


class SealedHistory(Protocol):
    """The sealed records of a log, in its order."""

    @property
    def through(self) -> int:
        """Last position that is sealed; 0 if none is."""
        ...

    def refresh(self) -> int:
        """Look for a newer checkpoint, and return ``through``.

        Raises:
            ProofFailed: It does not go on from the one known before.
            SignatureInvalid: It is not signed by a trusted key.
        """
        ...

    def read(
        self, after: int, limit: int, *, topics: Collection[str] | None = None, until: int | None = None
    ) -> list[Envelope]:
        """Return up to ``limit`` sealed records with position > ``after``; see ``EventLog.read``."""
        ...

    def read_stream(self, stream: str, after: int, limit: int) -> list[Envelope]:
        """Return up to ``limit`` sealed records of a stream with version > ``after``, in order."""
        ...

    def at(self, positions: Sequence[int]) -> list[Envelope]:
        """Return the records at these positions, all of which are sealed, in the order asked for."""
        ...

    def chain_at(self, position: int) -> bytes | None:
        """Return the chain value at a position (zeros at 0), or None past what is sealed."""
        ...

    def close(self) -> None:
        """Give up connections; a log closes what it was given."""
        ...


class ArchiveHistory:
    """Sealed history in an archive; any number of threads may read it."""

    def __init__(self, archive: Archive, *, kept_bytes: int = KEPT_BYTES) -> None:
        """Read an archive, from its newest checkpoint back.

        Args:
            archive: The archive; nothing is read of it yet.
            kept_bytes: How much of it is kept in memory; at least one segment always is.
        """
        self.archive = archive
        self._lock = threading.RLock()
        self._checkpoint: Checkpoint | None = None
        self._headers: list[SegmentHeader] = []
        self._ends: list[int] = []
        self._segments: _Kept[Segment] = _Kept(kept_bytes)
        self._indexes: _Kept[SegmentIndex] = _Kept(kept_bytes // 8)

    def close(self) -> None:
        """Give up connections."""
        self.archive.close()

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint that is known; None if nothing is sealed."""
        with self._lock:
            if self._checkpoint is None:
                self.refresh()
            return self._checkpoint

    @property
    def through(self) -> int:
        """Last position that is known to be sealed; 0 if none is."""
        checkpoint = self.checkpoint
        return 0 if checkpoint is None else checkpoint.size

    def refresh(self) -> int:
        """Look for a newer checkpoint, and return ``through``; see ``SealedHistory.refresh``."""
        with self._lock:
            known, newest = self._checkpoint, self.archive.newest()
            if newest is None or (known is not None and newest.size <= known.size):
                return 0 if known is None else known.size
            added = []
            for header in self.archive.walk(newest):
                if known is not None and (header.last, header.digest) == (known.size, known.segment):
                    break
                added.append(header)
            else:
                # Another sealer cut the same history elsewhere, or this is the first look.
                self._headers = []
            self._headers = [*self._headers, *reversed(added)]
            self._ends = [header.last for header in self._headers]
            self._checkpoint = newest
            if known is not None and self.chain_at(known.size) != known.chain:
                raise ProofFailed(
                    f"the checkpoint of size {newest.size} does not go on from the one of size {known.size}",
                    hint="history was sealed twice, differently: `esper log verify` tells more",
                    position=known.size,
                )
            return newest.size

    def headers(self) -> list[SegmentHeader]:
        """Return the header of every segment, oldest first."""
        _ = self.through
        with self._lock:
            return list(self._headers)

    def read(
        self, after: int, limit: int, *, topics: Collection[str] | None = None, until: int | None = None
    ) -> list[Envelope]:
        """Return up to ``limit`` sealed records with position > ``after``; see ``EventLog.read``."""
        after = max(after, 0)
        last = self._reaching(after + 1 if until is None else until)
        if until is not None:
            last = min(last, until)
        found: list[Envelope] = []
        while len(found) < limit and after < last:
            header = self._of(after + 1)
            end, left = min(header.last, last), limit - len(found)
            positions: Sequence[int]
            if topics is None:
                positions = range(after + 1, min(end, after + left) + 1)
            else:
                places = self._index(header).of_topics(topics, after + 1 - header.first)
                positions = [header.first + place for place in places[:left] if header.first + place <= end]
            if positions:
                found += map(self._segment(header).envelope, positions)
            after = end
        return found

    def read_stream(self, stream: str, after: int, limit: int) -> list[Envelope]:
        """Return up to ``limit`` sealed records of a stream with version > ``after``, in order."""
        found: list[Envelope] = []
        for header in self.headers():
            if len(found) >= limit:
                break
            places = self._index(header).of_stream(stream, after)[: limit - len(found)]
            if places:
                segment = self._segment(header)
                found += [segment.envelope(header.first + place) for place in places]
        return found

    def at(self, positions: Sequence[int]) -> list[Envelope]:
        """Return the records at these positions, all of which are sealed; see ``SealedHistory.at``."""
        return [self._segment(self._of(position)).envelope(position) for position in positions]

    def chain_at(self, position: int) -> bytes | None:
        """Return the chain value at a position (zeros at 0), or None past what is sealed."""
        if position == 0:
            return GENESIS
        if not 0 < position <= self._reaching(position):
            return None
        header = self._of(position)
        return header.chain_after if position == header.last else self._segment(header).chain_at(position)

    def find(self, event_id: bytes) -> int | None:
        """Return the position of the sealed record with an id, newest segments first, or None if there is none."""
        for header in reversed(self.headers()):
            position = self._segment(header).position_of(event_id)
            if position is not None:
                return position
        return None

    def node(self, level: int, index: int) -> bytes:
        """Return the hash of a complete subtree of the Merkle tree; it must lie in what is sealed.

        Where the subtree is one of a segment's own, or made of several of them, headers are enough.
        """
        first, end = index << level, (index + 1) << level
        header = self._of(first + 1)
        if end > header.last:
            return node_hash(self.node(level - 1, 2 * index), self.node(level - 1, 2 * index + 1))
        for part, value in zip(subtrees(header.first - 1, header.last), header.subtrees, strict=True):
            if part == (level, index):
                return value
        return self._segment(header).node(level, index)

    def record(self, position: int) -> bytes:
        """Return the bytes of a sealed record."""
        return self._segment(self._of(position)).record(position)

    def _reaching(self, position: int) -> int:
        """Return ``through``, looked up again where a position is past it: others may have sealed more."""
        through = self.through
        return through if position <= through else self.refresh()

    def _of(self, position: int) -> SegmentHeader:
        through = self._reaching(position)
        with self._lock:
            if not 0 < position <= through:
                raise ProofFailed(
                    f"position {position} is not sealed; history is sealed through {through}",
                    hint="`esper log seal` seals what the log holds",
                    position=position,
                )
            return self._headers[bisect_left(self._ends, position)]

    def _segment(self, header: SegmentHeader) -> Segment:
        segment = self._segments.get(header.digest)
        if segment is None:
            segment = self.archive.segment(header)
            self._segments.keep(header.digest, segment, segment.held_bytes)
        return segment

    def _index(self, header: SegmentHeader) -> SegmentIndex:
        index = self._indexes.get(header.digest)
        if index is None:
            segment = self._segments.get(header.digest)
            index = self.archive.index(header) if segment is None else segment.index
            # A place takes a few bytes packed and a number in a list once it is read.
            self._indexes.keep(header.digest, index, 8 * header.index.raw_bytes)
        return index


class _Kept(Generic[T]):
    """The most recently used things, within a number of bytes; the last one always."""

    def __init__(self, most_bytes: int) -> None:
        """Start empty."""
        self._most_bytes = most_bytes
        self._held_bytes = 0
        self._things: OrderedDict[bytes, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> T | None:
        """Return a thing that is kept, or None."""
        with self._lock:
            if key not in self._things:
                return None
            self._things.move_to_end(key)
            return self._things[key][0]

    def keep(self, key: bytes, thing: T, held_bytes: int) -> None:
        """Keep a thing, and forget those that were used least recently."""
        with self._lock:
            if key in self._things:
                return
            self._things[key] = (thing, held_bytes)
            self._held_bytes += held_bytes
            while self._held_bytes > self._most_bytes and len(self._things) > 1:
                self._held_bytes -= self._things.popitem(last=False)[1][1]
