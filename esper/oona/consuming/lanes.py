"""The events that a member has in memory for one slot: a lane for each stream, order kept in each.

Belongs here: which event may be handed out next, which are out, which wait for another try, and how far the slot is
dealt with. Does not belong here: reading events, leases and facts (``consumer``).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

import msgspec

from esper.events.base import Fact
from esper.events.envelope import Envelope
from esper.oona.consuming.lease import Lease
from esper.oona.consuming.parking import ParkedEvent


class Delivery(msgspec.Struct, frozen=True, eq=False):
    """An event that was handed out to be handled; the same event handed out twice is two deliveries."""

    envelope: Envelope
    #: What the envelope holds, decoded.
    fact: Fact
    #: Which try this is, from 1.
    attempt: int
    #: Fencing token of the lease it was handed out under; it grows with every change of the stream's owner.
    token: int


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """How far a slot is dealt with, as its cell keeps it."""

    #: Every event of the slot's streams up to here is handled, parked, skipped or waits behind a parked one.
    position: int
    #: Digest of the record there, so that another log is noticed; empty at 0.
    digest: bytes = b""
    #: Failed tries of events past the position.
    tries: dict[int, int] = msgspec.field(default_factory=dict)


class Backlog:
    """Where the second reading of a stream stands, from an event that was released on."""

    def __init__(self, parked: ParkedEvent, floor: int) -> None:
        """Begin at the released event; events up to the floor are dealt with already."""
        self.parked = parked
        self.floor = floor
        #: Version up to which the stream was read again.
        self.after = parked.version - 1
        #: Position up to which the stream's events are dealt with.
        self.through = parked.position


class Lane:
    """The events of one stream that are not dealt with, in order."""

    def __init__(self, backlog: Backlog | None = None) -> None:
        """Start empty."""
        self.pending: dict[int, Envelope] = {}
        #: Those of them that are handed out.
        self.out: dict[int, Delivery] = {}
        #: Nothing is handed out before this time of the monotonic clock.
        self.not_before = 0.0
        self.backlog = backlog


class SlotWork:
    """What a member has to do for one slot.

    Attributes:
        number: Number of the slot.
        lease: The lease it is done under.
        read_to: Position up to which the log was read for it.
        lanes: Streams with events in memory, or with a backlog.
        tries: Failed tries of events in memory, by position.
        committed: The cursor as the slot's cell has it.
        draining: Whether nothing is begun any more, because the slot is to be given up.
        dirty: Whether events were dealt with since the last commit.
        events: Events in memory.
        size_bytes: Bytes of their payloads.
    """

    def __init__(self, number: int, lease: Lease, committed: Cursor) -> None:
        """Go on from a committed cursor."""
        self.number = number
        self.lease = lease
        self.read_to = committed.position
        self.lanes: dict[str, Lane] = {}
        self.tries = dict(committed.tries)
        self.committed = committed
        self.draining = False
        self.dirty = False
        self.events = 0
        self.size_bytes = 0
        #: Streams from which something can be handed out, the one that waited longest first.
        self._ready: dict[str, None] = {}
        self._delayed: list[tuple[float, str]] = []

    @property
    def position(self) -> int:
        """Return the position up to which the slot is dealt with; events of a backlog are kept by facts instead."""
        first = [next(iter(lane.pending)) for lane in self.lanes.values() if lane.pending and lane.backlog is None]
        return min(first) - 1 if first else self.read_to

    @property
    def busy(self) -> bool:
        """Tell whether a delivery of this slot is out."""
        return any(lane.out for lane in self.lanes.values())

    @property
    def backlogs(self) -> list[str]:
        """Return the streams that are read a second time."""
        return [stream for stream, lane in self.lanes.items() if lane.backlog is not None]

    def next_try_s(self, now: float) -> float | None:
        """Return in how many seconds an event may be tried again; None if none waits for that."""
        return max(0.0, self._delayed[0][0] - now) if self._delayed else None

    def open_backlog(self, parked: ParkedEvent, floor: int = 0) -> None:
        """Begin to read a stream a second time, from a released event or what is in memory of the stream on.

        Args:
            parked: The released event.
            floor: Events up to this position are dealt with already.
        """
        backlog = Backlog(parked, floor)
        lane = self.lanes.get(parked.stream)
        if lane is not None and lane.pending:
            first = next(iter(lane.pending.values()))
            backlog.after, backlog.floor = first.version - 1, first.position - 1
            self.close_lane(parked.stream)
        self.lanes[parked.stream] = Lane(backlog)

    def add(self, envelope: Envelope) -> None:
        """Put an event at the end of its stream's lane."""
        lane = self.lanes.get(envelope.stream)
        if lane is None:
            lane = self.lanes[envelope.stream] = Lane()
        lane.pending[envelope.position] = envelope
        self.events += 1
        self.size_bytes += len(envelope.payload)
        if not lane.out and not lane.not_before:
            self._ready[envelope.stream] = None

    def ready(self, now: float) -> Iterator[Lane]:
        """Yield the lanes from which events can be handed out now, the one that waited longest first."""
        while self._delayed and self._delayed[0][0] <= now:
            at, stream = heapq.heappop(self._delayed)
            lane = self.lanes.get(stream)
            if lane is not None and lane.not_before == at:
                lane.not_before = 0.0
                self._settle(stream, lane)
        for stream in list(self._ready):
            lane = self.lanes.get(stream)
            if lane is not None:
                yield lane

    def hand_out(self, delivery: Delivery) -> None:
        """Note that an event of a lane is out; the lane gives no more until all that are out came back."""
        envelope = delivery.envelope
        self.lanes[envelope.stream].out[envelope.position] = delivery
        self._ready.pop(envelope.stream, None)

    def holds(self, delivery: Delivery) -> bool:
        """Tell whether a delivery is out and was not withdrawn."""
        lane = self.lanes.get(delivery.envelope.stream)
        return lane is not None and lane.out.get(delivery.envelope.position) is delivery

    def done(self, envelope: Envelope) -> None:
        """Forget an event that is dealt with."""
        lane = self.lanes[envelope.stream]
        lane.out.pop(envelope.position, None)
        self._forget(lane, envelope)
        if lane.backlog is not None:
            lane.backlog.through = max(lane.backlog.through, envelope.position)
        self.dirty = True
        self._settle(envelope.stream, lane)

    def fail(self, envelope: Envelope, until: Callable[[int], float]) -> int:
        """Take a failed event back, and withdraw later ones of its stream.

        Args:
            envelope: The event.
            until: Gives the time of the next try from the number of failed ones.

        Returns:
            How often the event has failed.
        """
        tries = self.tries[envelope.position] = self.tries.get(envelope.position, 0) + 1
        self.dirty = True
        lane = self.lanes[envelope.stream]
        lane.not_before = until(tries)
        heapq.heappush(self._delayed, (lane.not_before, envelope.stream))
        self.take_back(envelope)
        return tries

    def take_back(self, envelope: Envelope) -> None:
        """Take an event that is out back, and with it later ones of its stream."""
        lane = self.lanes[envelope.stream]
        for position in [position for position in lane.out if position >= envelope.position]:
            del lane.out[position]
        self._settle(envelope.stream, lane)

    def hold_back(self, parked: ParkedEvent) -> None:
        """Drop the events that wait at or behind an event that was just parked; a release reads them again."""
        lane = self.lanes.get(parked.stream)
        if lane is None:
            return
        if lane.backlog is not None:
            self.close_lane(parked.stream)
            return
        for envelope in [one for one in lane.pending.values() if one.version >= parked.version]:
            lane.out.pop(envelope.position, None)
            self._forget(lane, envelope)
            self.dirty = True
        self._settle(parked.stream, lane)

    def close_lane(self, stream: str) -> None:
        """Forget a stream with all its events in memory."""
        lane = self.lanes[stream]
        for envelope in list(lane.pending.values()):
            self._forget(lane, envelope)
        lane.out.clear()
        lane.backlog = None
        self._settle(stream, lane)

    def _forget(self, lane: Lane, envelope: Envelope) -> None:
        if lane.pending.pop(envelope.position, None) is not None:
            self.events -= 1
            self.size_bytes -= len(envelope.payload)
        self.tries.pop(envelope.position, None)

    def _settle(self, stream: str, lane: Lane) -> None:
        """Put a lane where it belongs after a change."""
        self._ready.pop(stream, None)
        if not lane.pending and lane.backlog is None:
            self.lanes.pop(stream, None)
        elif lane.pending and not lane.out and not lane.not_before:
            self._ready[stream] = None
