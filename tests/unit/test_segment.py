"""The bytes of a segment: what was put in comes out, and nothing hostile gets further than an error."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc
from collections.abc import Callable, Sequence

import msgspec
import pytest
import zstandard
from builders import append, realistic
from hypothesis import given
from hypothesis import strategies as st

from esper.clock import ManualClock
from esper.errors import LogDamaged, ProofFailed
from esper.events.codec import record_of
from esper.events.envelope import Envelope
from esper.oona import MemoryLog
from esper.oona.sealing.merkle import Frontier, leaf_hash
from esper.oona.sealing.segment import MAX_RAW_BYTES, Block, Segment, build, read_header
from esper.oona.sealing.segment_index import SegmentIndex

FIRST, LAST = 101, 400
FIXED = struct.Struct("<8sHHIQQQqq32s32s32sQQ32sQQ32s")
FIELDS = (
    *("magic", "form", "name_bytes", "header_bytes", "first", "last", "count", "first_at", "last_at"),
    *("chain_before", "chain_after", "previous", "index_packed", "index_raw", "index_digest"),
    *("records_packed", "records_raw", "records_digest"),
)


@pytest.fixture(scope="module")
def log() -> MemoryLog:
    log = MemoryLog(ManualClock())
    append(log, realistic(), batch=7)
    return log


@pytest.fixture(scope="module")
def tree(log: MemoryLog) -> Frontier:
    """The tree of all records before the segment."""
    tree = Frontier()
    for one in log.read(0, FIRST - 1):
        tree.append(0, leaf_hash(record_of(one)))
    return tree


@pytest.fixture(scope="module")
def data(log: MemoryLog, tree: Frontier) -> bytes:
    return made(log, tree, log.read(FIRST - 1, LAST - FIRST + 1))


def made(log: MemoryLog, tree: Frontier, envelopes: Sequence[Envelope]) -> bytes:
    chain = log.chain_at(FIRST - 1)
    assert chain is not None
    return build(envelopes, namespace="main", chain_before=chain, before=tree.hashes, previous=b"p" * 32)


def test_records_come_out_as_they_went_in(log: MemoryLog, data: bytes) -> None:
    segment = Segment(data, "x")
    expected = log.read(FIRST - 1, LAST - FIRST + 1)
    assert segment.check() == expected
    assert [segment.envelope(one.position) for one in expected] == expected
    assert segment.records() == [record_of(one) for one in expected]
    header = segment.header
    assert (header.first, header.last, header.count, header.namespace) == (FIRST, LAST, 300, "main")
    assert (header.first_at, header.last_at) == (expected[0].recorded_at, expected[-1].recorded_at)
    assert header.chain_after == log.chain_at(LAST)
    assert [segment.chain_at(at) for at in (FIRST, 250, LAST)] == [log.chain_at(at) for at in (FIRST, 250, LAST)]
    assert header.digest == hashlib.sha256(data[: header.header_bytes]).digest()
    assert header.size_bytes == len(data)


def test_the_header_holds_the_tree_up_to_its_end(log: MemoryLog, data: bytes) -> None:
    whole = Frontier()
    for one in log.read(0, LAST):
        whole.append(0, leaf_hash(record_of(one)))
    header = read_header(data, "x")
    grown = Frontier(header.first - 1, header.before)
    grown.extend(header.subtrees, header.count)
    assert (grown.size, grown.root(), grown.hashes) == (LAST, whole.root(), whole.hashes)


def test_the_index_leads_to_streams_topics_and_ids(log: MemoryLog, data: bytes) -> None:
    segment = Segment(data, "x")
    part = log.read(FIRST - 1, LAST - FIRST + 1)
    for topic in {one.topic for one in part}:
        for after in (FIRST, 200, LAST):
            wanted = [one.position for one in part if one.topic == topic and one.position >= after]
            assert [FIRST + place for place in segment.index.of_topics([topic], after - FIRST)] == wanted
    for stream in {one.stream for one in part}:
        of_stream = [one for one in part if one.stream == stream]
        for after in (0, of_stream[0].version, of_stream[-1].version - 1, of_stream[-1].version):
            wanted = [one.position for one in of_stream if one.version > after]
            assert [FIRST + place for place in segment.index.of_stream(stream, after)] == wanted
    assert segment.index.of_topics(["none"], 0) == segment.index.of_stream("none", 0) == []
    assert segment.position_of(part[77].event_id) == part[77].position
    assert segment.position_of(b"0" * 16) is None


def test_two_builds_of_the_same_records_are_the_same_bytes(log: MemoryLog, tree: Frontier, data: bytes) -> None:
    assert made(log, tree, log.read(FIRST - 1, 300)) == data


@pytest.mark.parametrize(
    "harm",
    [
        lambda part: part[:50] + part[51:],
        lambda part: [*part[:50], part[51], part[50], *part[52:]],
        lambda part: [*part[:50], msgspec.structs.replace(part[50], payload=b"\x80"), *part[51:]],
        lambda part: [*part[:50], rewritten(part[50], version=part[50].version + 1), *part[51:]],
    ],
    ids=["gap", "swapped", "payload", "version"],
)
def test_records_that_do_not_follow_are_not_sealed(
    log: MemoryLog, tree: Frontier, harm: Callable[[list[Envelope]], list[Envelope]]
) -> None:
    with pytest.raises(LogDamaged):
        made(log, tree, harm(log.read(FIRST - 1, 300)))


def rewritten(envelope: Envelope, **fields: object) -> Envelope:
    changed = msgspec.structs.replace(envelope, **fields)
    return msgspec.structs.replace(changed, digest=hashlib.sha256(record_of(changed)).digest())


# --- hostile bytes


def test_every_flipped_bit_is_noticed(data: bytes) -> None:
    """Whatever bit is flipped: an error, or a header that is not the one its digest names."""
    digest = read_header(data, "x").digest
    for place in [*range(700), *range(700, len(data), 97)]:
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        try:
            segment = Segment(bytes(damaged), "x")
        except ProofFailed:
            continue
        assert segment.header.digest != digest, f"byte {place}"
        if place < FIXED.size and not 120 <= place < 152:  # the digest of the segment before is not computed from it
            with pytest.raises(ProofFailed):
                segment.check()


@given(st.data())
def test_any_bytes_are_refused_or_read(data: bytes, draw: st.DataObject) -> None:
    start = draw.draw(st.integers(0, len(data)))
    part = data[:start] + draw.draw(st.binary(max_size=300)) + data[start + draw.draw(st.integers(0, 300)) :]
    if part == data:
        return
    try:
        changed = Segment(part, "x")
        changed.check()
    except ProofFailed:
        return
    assert changed.header.digest != read_header(data, "x").digest


@pytest.mark.parametrize("length", [0, 7, 100, FIXED.size - 1, FIXED.size, 1000, -1])
def test_a_truncated_segment_is_refused(data: bytes, length: int) -> None:
    with pytest.raises(ProofFailed):
        Segment(data[:length], "x")
    with pytest.raises(ProofFailed):
        Segment(data + b"\0", "x")


def forged(data: bytes, **changes: object) -> bytes:
    """Return a segment whose header says something else and whose blocks still have their digests."""
    fields = list(FIXED.unpack_from(data))
    for name, value in changes.items():
        fields[FIELDS.index(name)] = value
    return FIXED.pack(*fields) + data[FIXED.size :]


@pytest.mark.parametrize(
    "changes",
    [
        {"magic": b"ESPRHEAD"},
        {"form": 2},
        {"name_bytes": 5},
        {"name_bytes": 0},
        {"header_bytes": 0},
        {"header_bytes": 0xFFFFFFFF},
        {"first": 0},
        {"first": LAST + 1},
        {"first": FIRST + 1},
        {"last": (1 << 64) - 1, "count": (1 << 64) - 1 - FIRST + 1},
        {"count": 299},
        {"index_raw": 0},
        {"index_raw": MAX_RAW_BYTES + 1},
        {"records_raw": MAX_RAW_BYTES + 1},
        {"records_raw": MAX_RAW_BYTES},
        {"records_packed": (1 << 63)},
        {"index_digest": bytes(32)},
    ],
    ids=str,
)
def test_a_header_that_says_something_impossible_is_refused(data: bytes, changes: dict[str, object]) -> None:
    with pytest.raises(ProofFailed):
        Segment(forged(data, **changes), "x")


@pytest.mark.parametrize(
    "changes",
    [{"first_at": 1}, {"last_at": 1}, {"chain_before": bytes(32)}, {"chain_after": bytes(32)}],
    ids=str,
)
def test_what_a_header_says_of_its_records_is_computed_again(data: bytes, changes: dict[str, object]) -> None:
    with pytest.raises(ProofFailed):
        Segment(forged(data, **changes), "x").check()


def with_block(data: bytes, what: str, raw: bytes, *, claimed_bytes: int | None = None) -> bytes:
    """Return a segment with another index or other records, and a header that stands for them."""
    header = read_header(data, "x")
    packed = zstandard.ZstdCompressor().compress(raw)
    start = header.header_bytes + header.index.packed_bytes
    blocks = {"index": data[header.header_bytes : start], "records": data[start:], what: packed}
    block = Block(len(packed), len(raw) if claimed_bytes is None else claimed_bytes, hashlib.sha256(packed).digest())
    names = dict(zip((f"{what}_packed", f"{what}_raw", f"{what}_digest"), block, strict=True))
    return forged(data[: header.header_bytes], **names) + blocks["index"] + blocks["records"]


def test_a_bomb_is_refused_before_it_is_decompressed(data: bytes) -> None:
    """A block that would decompress to more than its header says, or than is ever read, allocates nothing."""
    bomb = bytes(512 << 20)
    for claimed_bytes in (1000, MAX_RAW_BYTES, len(bomb)):
        hostile = with_block(data, "records", bomb, claimed_bytes=claimed_bytes)
        tracemalloc.start()
        try:
            with pytest.raises(ProofFailed):
                Segment(hostile, "x")
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()


def test_a_frame_that_hides_its_size_is_refused(data: bytes) -> None:
    raw = b"x" * 100_000
    header = read_header(data, "x")
    packed = zstandard.ZstdCompressor(write_content_size=False).compress(raw)
    index = data[header.header_bytes :][: header.index.packed_bytes]
    names = {"records_packed": len(packed), "records_raw": len(raw), "records_digest": hashlib.sha256(packed).digest()}
    with pytest.raises(ProofFailed, match="does not decompress to"):
        Segment(forged(data[: header.header_bytes], **names) + index + packed, "x")


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xff\xff\xff" + b"x" * 50,
        b"\x01\x00\x00",
        b"\x00\x00\x00\x00" * 299,
        b"\x00\x00\x00\x00" * 301,
        b"\x00\x00\x00\x00" * 300,
        b"\x01\x00\x00\x00\xc1" * 300,
    ],
)
def test_records_that_are_none_are_refused(data: bytes, raw: bytes) -> None:
    with pytest.raises(ProofFailed):
        Segment(with_block(data, "records", raw), "x").check()


def test_an_index_that_hides_a_record_is_found(log: MemoryLog, data: bytes) -> None:
    part = log.read(FIRST - 1, 300)
    index = SegmentIndex.of(part)
    moved = SegmentIndex(index.streams, {**index.topics, "aaa": [0]})
    name = part[0].topic
    moved.topics[name] = moved.topics[name][1:]
    for topics in (moved.topics, {**index.topics, "aaa": [0]}, {**index.topics, name: index.topics[name][1:]}):
        with pytest.raises(ProofFailed):
            Segment(with_block(data, "index", SegmentIndex(index.streams, topics).pack()), "x").check()


@pytest.mark.parametrize(
    "value",
    [
        b"\xc1",
        msgspec.msgpack.encode(1),
        msgspec.msgpack.encode([[], []]),
        msgspec.msgpack.encode([[["a", 1, [0, 1]]], [["b", [0]], ["a", [1]]]]),
        msgspec.msgpack.encode([[["a", 1, [0, 1]]], [["a", [0]], ["a", [1]]]]),
        msgspec.msgpack.encode([[["a", 0, [0, 1]]], [["a", [0, 1]]]]),
        msgspec.msgpack.encode([[["a", 1, [0, 1]]], [["a", [0, 0]]]]),
        msgspec.msgpack.encode([[["a", 1, [0, 1]]], [["a", [0, 2]]]]),
        msgspec.msgpack.encode([[["a", 1, [0, 1]]], [["a", [1, -1]]]]),
        msgspec.msgpack.encode([[["a", 1, [0, 1]]], [["a", [0]], ["b", [0]]]]),
        msgspec.msgpack.encode([[["a", 1, [0, 1]], ["b", 1, []]], [["a", [0, 1]]]]),
    ],
)
def test_an_index_that_is_none_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"index|stands twice|stream"):
        SegmentIndex.unpack(value, 2)


def test_an_index_comes_back_as_it_was_packed() -> None:
    packed = msgspec.msgpack.encode([[["a", 1, [0, 1]]], [["a", [0, 1]]]])
    assert SegmentIndex.unpack(packed, 2).pack() == packed
