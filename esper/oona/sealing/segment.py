"""A segment: the bytes of a run of records that is sealed, docs/reference/segment-format.md byte by byte.

A header, a compressed index and the compressed records. The header holds the digests of both blocks, so the SHA-256 of
the header, which is the segment's digest, stands for all of it. Belongs here: making these bytes and reading them,
trusting nothing in them. Does not belong here: where they are kept (``archive``) and what signs them (``checkpoint``).
"""

from __future__ import annotations

import hashlib
import re
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, NoReturn

import msgspec
import zstandard

from esper.errors import ProofFailed
from esper.events.codec import RecordFields, record_of
from esper.events.envelope import Envelope
from esper.oona.chain import damaged
from esper.oona.sealing.merkle import complete, leaf_hashes, subtree_hashes, subtrees
from esper.oona.sealing.segment_index import SegmentIndex

MAGIC = b"ESPRSEGM"
#: Number of this format.
FORMAT = 1
#: No block of a segment is larger than this when it is decompressed; nothing larger is ever allocated for one.
MAX_RAW_BYTES = 256 << 20
#: Longest header that is read.
MAX_HEADER_BYTES = 64 << 10
#: What names a log: it stands in headers, checkpoints and names of keys.
NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")

_FIXED = struct.Struct("<8sHHIQQQqq32s32s32sQQ32sQQ32s")
_LENGTH = struct.Struct("<I")
_LEVEL = 6
_decode_record: Callable[[bytes], RecordFields] = msgspec.msgpack.Decoder(RecordFields).decode


class Block(NamedTuple):
    """A compressed part of a segment."""

    packed_bytes: int
    raw_bytes: int
    #: SHA-256 of the compressed bytes.
    digest: bytes


class SegmentHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a segment says of itself."""

    namespace: str
    #: Positions of its first and last record.
    first: int
    last: int
    #: When those were recorded, microseconds since the Unix epoch.
    first_at: int
    last_at: int
    #: Chain values before its first and after its last record.
    chain_before: bytes
    chain_after: bytes
    #: Digest of the segment before it; zeros for the first.
    previous: bytes
    index: Block
    records: Block
    #: Hashes of the largest complete subtrees that the records before it fall into, from left to right.
    before: tuple[bytes, ...]
    #: Hashes of the largest complete subtrees its own records fall into, from left to right.
    subtrees: tuple[bytes, ...]
    #: Length of the header.
    header_bytes: int
    #: SHA-256 of the header, which names the segment.
    digest: bytes

    @property
    def count(self) -> int:
        """Records in it."""
        return self.last - self.first + 1

    @property
    def size_bytes(self) -> int:
        """Length of the whole segment."""
        return self.header_bytes + self.index.packed_bytes + self.records.packed_bytes


def build(
    envelopes: Sequence[Envelope], *, namespace: str, chain_before: bytes, before: Sequence[bytes], previous: bytes
) -> bytes:
    """Return the bytes of a segment.

    Args:
        envelopes: Its records, one or more, in order.
        namespace: Name of the log.
        chain_before: Chain value before the first.
        before: Hashes of the complete subtrees that all earlier records fall into.
        previous: Digest of the segment before; zeros for the first.

    Raises:
        LogDamaged: The records do not follow one another, or do not have their digests.
        ProofFailed: They are larger than a segment can be.
    """
    first, last = envelopes[0], envelopes[-1]
    records, chain = [], chain_before
    for position, envelope in enumerate(envelopes, first.position):
        if envelope.position != position:
            raise damaged(position, f"the next record has position {envelope.position}")
        record = record_of(envelope)
        if hashlib.sha256(record).digest() != envelope.digest:
            raise damaged(position, "the record's bytes do not have the digest stored with it")
        # As ``chain.link``, without the call.
        chain = hashlib.sha256(chain + record).digest()
        records.append(record)
    try:
        index = SegmentIndex.of(envelopes)
    except ValueError as error:
        raise damaged(first.position, str(error)) from error
    index_block, index_packed = _pack(index.pack())
    record_block, records_packed = _pack(b"".join(part for one in records for part in (_LENGTH.pack(len(one)), one)))
    hashes = [*before, *subtree_hashes(first.position - 1, leaf_hashes(records))]
    name = namespace.encode()
    fixed = _FIXED.pack(
        MAGIC,
        FORMAT,
        len(name),
        _FIXED.size + len(name) + 32 * len(hashes),
        first.position,
        last.position,
        len(envelopes),
        first.recorded_at,
        last.recorded_at,
        chain_before,
        chain,
        previous,
        *index_block,
        *record_block,
    )
    return b"".join((fixed, name, *hashes, index_packed, records_packed))


def _pack(raw: bytes) -> tuple[Block, bytes]:
    if len(raw) > MAX_RAW_BYTES:
        raise ProofFailed(
            f"a part of a segment has {len(raw)} bytes; at most {MAX_RAW_BYTES} fit",
            hint="seal fewer events per segment: `esper log seal --segment-events N`",
        )
    packed = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(raw)
    return Block(len(packed), len(raw), hashlib.sha256(packed).digest()), packed


def read_header(data: bytes, where: str) -> SegmentHeader:
    """Read and check the header that bytes begin with.

    Args:
        data: A segment, or its beginning.
        where: Which segment, for messages.

    Raises:
        ProofFailed: It is not the header of a segment.
    """
    if len(data) < _FIXED.size:
        _refuse(where, f"it has {len(data)} bytes, less than a header")
    magic, form, name_bytes, header_bytes, first, last, count, first_at, last_at, *rest = _FIXED.unpack_from(data)
    if magic != MAGIC:
        _refuse(where, "it does not begin as a segment does")
    if form != FORMAT:
        _refuse(where, f"it has format {form}, this Esper reads {FORMAT}")
    if not 0 < first <= last or count != last - first + 1:
        _refuse(where, f"positions {first} to {last} are not {count} records")
    earlier, own = (sum(1 for _ in subtrees(*leaves)) for leaves in ((0, first - 1), (first - 1, last)))
    expected_bytes = _FIXED.size + name_bytes + 32 * (earlier + own)
    if header_bytes != expected_bytes or header_bytes > min(len(data), MAX_HEADER_BYTES):
        _refuse(where, f"its header cannot have {header_bytes} bytes")
    namespace = data[_FIXED.size : _FIXED.size + name_bytes].decode("ascii", "replace")
    if NAMESPACE.fullmatch(namespace) is None:
        _refuse(where, "its namespace is not one")
    index, records = Block(*rest[3:6]), Block(*rest[6:9])
    for block in (index, records):
        if not 0 < block.raw_bytes <= MAX_RAW_BYTES or not 0 < block.packed_bytes <= 2 * MAX_RAW_BYTES:
            _refuse(where, f"a block of {block.packed_bytes} bytes for {block.raw_bytes} is outside of what is read")
    start = _FIXED.size + name_bytes
    hashes = tuple(data[place : place + 32] for place in range(start, header_bytes, 32))
    return SegmentHeader(
        namespace=namespace,
        first=first,
        last=last,
        first_at=first_at,
        last_at=last_at,
        chain_before=rest[0],
        chain_after=rest[1],
        previous=rest[2],
        index=index,
        records=records,
        before=hashes[:earlier],
        subtrees=hashes[earlier:],
        header_bytes=header_bytes,
        digest=hashlib.sha256(data[:header_bytes]).digest(),
    )


def read_index(header: SegmentHeader, data: bytes, where: str) -> SegmentIndex:
    """Read the index of a segment.

    Args:
        header: Its header.
        data: The segment, or its beginning up to the end of the index.
        where: Which segment, for messages.

    Raises:
        ProofFailed: The bytes are not those the header stands for.
    """
    raw = _unpack(header.index, data, header.header_bytes, where, "index")
    try:
        return SegmentIndex.unpack(raw, header.count)
    except ValueError as error:
        _refuse(where, str(error))


def _unpack(block: Block, data: bytes, start: int, where: str, what: str) -> bytes:
    """Return a block decompressed; what it says of its size is checked before anything is allocated for it."""
    packed = data[start : start + block.packed_bytes]
    if hashlib.sha256(packed).digest() != block.digest:
        _refuse(where, f"its {what} is not what its header stands for")
    try:
        if zstandard.frame_content_size(packed) != block.raw_bytes:
            _refuse(where, f"its {what} does not decompress to {block.raw_bytes} bytes")
        return zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ProofFailed(f"segment {where} cannot be trusted: its {what} cannot be decompressed: {error}") from error


class Segment:
    """A segment whose blocks are what its header stands for; records are decoded when they are asked for."""

    def __init__(self, data: bytes, where: str) -> None:
        """Read a segment.

        Args:
            data: All of its bytes.
            where: Which segment, for messages.

        Raises:
            ProofFailed: They are not a segment, or a part is not what the header stands for.
        """
        self.where = where
        self.header = header = read_header(data, where)
        if len(data) != header.size_bytes:
            _refuse(where, f"it has {len(data)} bytes, not {header.size_bytes}")
        self.index = read_index(header, data, where)
        start = header.header_bytes + header.index.packed_bytes
        self._raw = _unpack(header.records, data, start, where, "block of records")
        self._ends = self._cut()

    def _cut(self) -> array[int]:
        """Return where each record ends."""
        ends, place, total = array("Q"), 0, len(self._raw)
        while place < total:
            if place + _LENGTH.size <= total:
                place += _LENGTH.size + _LENGTH.unpack_from(self._raw, place)[0]
            else:
                place = total + 1
            ends.append(place)
        if place != total or len(ends) != self.header.count:
            _refuse(self.where, f"its block of records does not hold {self.header.count} of them")
        return ends

    @property
    def held_bytes(self) -> int:
        """About how much memory the segment takes."""
        return len(self._raw) + self.header.count * (8 + 32 + 32)

    def record(self, position: int) -> bytes:
        """Return the bytes of the record at a position of the segment."""
        place = position - self.header.first
        start = self._ends[place - 1] if place else 0
        return self._raw[start + _LENGTH.size : self._ends[place]]

    def records(self) -> list[bytes]:
        """Return the bytes of all records, in order."""
        raw, before = self._raw, _LENGTH.size
        return [raw[start + before : end] for start, end in pairwise([0, *self._ends])]

    def envelope(self, position: int) -> Envelope:
        """Return the record at a position of the segment.

        Raises:
            ProofFailed: Its bytes are no record of that position.
        """
        return self._envelope(position, self.record(position))

    def _envelope(self, position: int, record: bytes) -> Envelope:
        try:
            envelope = envelope_of_record(record)
        except ValueError as error:
            raise ProofFailed(
                f"segment {self.where} cannot be trusted: the record at {position} cannot be read: {error}",
                position=position,
            ) from error
        if envelope.position != position:
            _refuse(self.where, f"the record at {position} says that it stands at {envelope.position}")
        return envelope

    def position_of(self, event_id: bytes) -> int | None:
        """Return the position of the record with an id, or None where it is in no record of the segment."""
        found = self._raw.find(event_id)
        while found >= 0:
            position = self.header.first + bisect_right(self._ends, found)
            if self.envelope(position).event_id == event_id:
                return position
            found = self._raw.find(event_id, found + 1)
        return None

    def chain_at(self, position: int) -> bytes:
        """Return the chain value after the record at a position of the segment."""
        place = 32 * (position - self.header.first)
        return self._chain[place : place + 32]

    @cached_property
    def _chain(self) -> bytes:
        values, value = [], self.header.chain_before
        for record in self.records():
            # As ``chain.link``, without the call.
            value = hashlib.sha256(value + record).digest()
            values.append(value)
        return b"".join(values)

    @cached_property
    def leaves(self) -> list[bytes]:
        """Merkle leaf hashes of the records, in order."""
        return leaf_hashes(self.records())

    def node(self, level: int, index: int) -> bytes:
        """Return the hash of a complete subtree that lies in the segment."""
        start = (index << level) - (self.header.first - 1)
        return complete(self.leaves[start : start + (1 << level)])

    def check(self) -> list[Envelope]:
        """Compute everything in the header and the index again from the records, and return them.

        Raises:
            ProofFailed: Something does not follow from the records.
        """
        header = self.header
        envelopes = []
        for position, record in enumerate(self.records(), header.first):
            envelope = self._envelope(position, record)
            if record_of(envelope) != record:
                _refuse(self.where, f"the record at {position} is not written as records are")
            envelopes.append(envelope)
        if (envelopes[0].recorded_at, envelopes[-1].recorded_at) != (header.first_at, header.last_at):
            _refuse(self.where, "its times are not those of its records")
        if self.chain_at(header.last) != header.chain_after:
            _refuse(self.where, "its chain value does not follow from its records")
        if tuple(subtree_hashes(header.first - 1, self.leaves)) != header.subtrees:
            _refuse(self.where, "its subtrees do not follow from its records")
        try:
            index = SegmentIndex.of(envelopes)
        except ValueError as error:
            _refuse(self.where, str(error))
        if (index.streams, index.topics) != (self.index.streams, self.index.topics):
            _refuse(self.where, "its index does not follow from its records")
        return envelopes


def envelope_of_record(record: bytes) -> Envelope:
    """Return the envelope whose record has these bytes.

    Raises:
        ValueError: They are no record.
    """
    try:
        return Envelope(*(*_decode_record(record), hashlib.sha256(record).digest()))
    except msgspec.MsgspecError as error:
        raise ValueError(f"these bytes are no record: {error}") from error


def _refuse(where: str, reason: str) -> NoReturn:
    raise ProofFailed(f"segment {where} cannot be trusted: {reason}", segment=where, reason=reason)
