"""The index of a segment: which stream and which topic each of its records belongs to.

It lets a reader pass over segments that hold nothing of what it wants, and find what it wants in the others without
decoding their records. Everything in it follows from the records. Belongs here: making, packing and reading it. Does
not belong here: the records (``segment``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from heapq import merge
from itertools import accumulate, pairwise
from typing import TypeAlias

import msgspec

from esper.events.envelope import Envelope

#: A name and, as differences, the places (from 0) of its records in the segment.
_Topic: TypeAlias = tuple[str, list[int]]
#: As ``_Topic``, with the version of the first of its records between.
_Stream: TypeAlias = tuple[str, int, list[int]]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[list[_Stream], list[_Topic]]).decode


class SegmentIndex:
    """Where the records of each stream and topic stand in a segment, as places counted from 0."""

    def __init__(self, streams: dict[str, tuple[int, list[int]]], topics: dict[str, list[int]]) -> None:
        """Keep places by name.

        Args:
            streams: Stream -> version of its first record here, and the places of its records.
            topics: Topic -> the places of its records.
        """
        self.streams = streams
        self.topics = topics

    @classmethod
    def of(cls, envelopes: Iterable[Envelope]) -> SegmentIndex:
        """Make the index of a segment's records, which are in order.

        Raises:
            ValueError: The versions of a stream are not consecutive; the message says where.
        """
        streams: dict[str, tuple[int, list[int]]] = {}
        topics: dict[str, list[int]] = {}
        for place, one in enumerate(envelopes):
            first, places = streams.setdefault(one.stream, (one.version, []))
            if one.version != first + len(places):
                last = first + len(places) - 1
                raise ValueError(f"position {one.position}: stream {one.stream} goes from {last} to {one.version}")
            places.append(place)
            topics.setdefault(one.topic, []).append(place)
        return cls(streams, topics)

    def pack(self) -> bytes:
        """Return the index as msgpack, before it is compressed; names are sorted."""
        streams = [(name, *self.streams[name]) for name in sorted(self.streams)]
        return _encode(
            (
                [(name, first, _differences(places)) for name, first, places in streams],
                [(name, _differences(self.topics[name])) for name in sorted(self.topics)],
            )
        )

    @classmethod
    def unpack(cls, data: bytes, count: int) -> SegmentIndex:
        """Read a packed index.

        Args:
            data: What ``pack`` gave.
            count: Records of the segment.

        Raises:
            ValueError: It is not an index of so many records.
        """
        try:
            streams, topics = _decode(data)
        except msgspec.MsgspecError as error:
            raise ValueError(f"the index cannot be read: {error}") from error
        for names in ([one[0] for one in streams], [one[0] for one in topics]):
            if any(first >= second for first, second in pairwise(names)):
                raise ValueError("the names of the index are not sorted, or one stands twice")
        index = cls(
            {name: (first, list(accumulate(steps))) for name, first, steps in streams},
            {name: list(accumulate(steps)) for name, steps in topics},
        )
        _check_whole([places for _, places in index.streams.values()], [one[2] for one in streams], count)
        _check_whole(list(index.topics.values()), [one[1] for one in topics], count)
        if any(first < 1 for first, _ in index.streams.values()):
            raise ValueError("a stream of the index begins before version 1")
        return index

    def of_topics(self, topics: Collection[str], after: int) -> list[int]:
        """Return the places of the records of some topics from a place on, in order."""
        found = [self.topics[name] for name in {str(one) for one in topics} if name in self.topics]
        return list(merge(*(places[bisect_right(places, after - 1) :] for places in found)))

    def of_stream(self, stream: str, after: int) -> list[int]:
        """Return the places of a stream's records past a version, in order."""
        first, places = self.streams.get(stream, (1, []))
        return places[max(0, after + 1 - first) :]


def _differences(places: Sequence[int]) -> list[int]:
    """Return the first place and then how far each is past the one before it."""
    return [places[0], *(second - first for first, second in pairwise(places))]


def _check_whole(runs: Sequence[Sequence[int]], steps: Sequence[Sequence[int]], count: int) -> None:
    """Check that the places of all names together are those of the segment, each in order."""
    if sum(map(len, runs)) != count or any(
        not run or run[0] < 0 or run[-1] >= count or min(step[1:], default=1) < 1
        for run, step in zip(runs, steps, strict=True)
    ):
        raise ValueError("the places of the index are not those of the segment's records")
    if len({place for run in runs for place in run}) != count:
        raise ValueError("a place stands twice in the index")
