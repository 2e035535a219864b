"""What one member does about events that cannot be handled: parking them, and the backlog of those that are released.

Facts of the handler's stream are the only state: a member appends one only if it knows all that stand there, and reads
a released event's stream again from there, so that a crash at any moment repeats work and loses none. Belongs here:
parking and backlogs of a running member. Does not belong here: the fold of those facts (``parking``) or retries in
memory (``lanes``).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

from esper.artifacts.store import ArtifactStore
from esper.errors import ArtifactError, ConcurrencyConflict, EsperError, EventIdReused, LeaseLost
from esper.events.base import Fact
from esper.events.envelope import Envelope
from esper.events.handler import BacklogHandled, EventParked
from esper.oona.consuming.lanes import Lane, SlotWork
from esper.oona.consuming.parking import ParkedEvent, ParkedState, Parking
from esper.oona.port import EventLog
from esper.redact import mask_text

#: Records per read of a backlog.
_PAGE = 500
_MESSAGE_LETTERS = 2000
_TRACEBACK_BYTES = 256 << 10


class Setbacks:
    """Parks events for one member, and brings released ones to their end.

    Attributes:
        parking: The parked events of the group, as far as they are known.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        group: str,
        member: str,
        topics: frozenset[str],
        store: ArtifactStore | None,
        sender_id: str,
        trace_id: str,
        work_of: Callable[[str], SlotWork | None],
    ) -> None:
        """Work for one member.

        Args:
            log: The log.
            group: Name of the group.
            member: Name of this member.
            topics: Topics whose events are handled.
            store: Where tracebacks are kept; None keeps none.
            sender_id: Sender of the facts.
            trace_id: Their trace.
            work_of: Gives the work of a stream's slot if this member holds it.
        """
        self.parking = Parking(log, group)
        self._log = log
        self._group = group
        self._member = member
        self._topics = topics
        self._store = store
        self._sender_id = sender_id
        self._trace_id = trace_id
        self._work_of = work_of

    def waits(self, envelope: Envelope) -> bool:
        """Tell whether an event that was just read is not to be handed out: it waits, or is never handled."""
        parked = self.parking.blocked.get(envelope.stream)
        if parked is not None and envelope.version >= parked.version:
            return True
        return envelope.position in self.parking.skipped

    def unfinished(self, work: SlotWork) -> bool:
        """Tell whether a release is under way in a slot, so that its next owner must begin where we did."""
        return bool(work.backlogs) or any(self._work_of(stream) is work for stream in self.parking.released)

    def refresh(self) -> None:
        """Learn what was parked, retried and skipped, and bring the events in memory in line with it."""
        changes = self.parking.refresh()
        for released, through in changes.ended:
            work = self._work_of(released.stream)
            if work is None or released.stream in self.parking.blocked or work.read_to <= through:
                continue
            lane = work.lanes.get(released.stream)
            if lane is None or lane.backlog is None:
                # A member that had lost this slot ended the backlog late; what came after it waited here, for us.
                work.open_backlog(released, through)
        for stream in changes.blocked:
            work, parked = self._work_of(stream), self.parking.blocked.get(stream)
            if work is not None and parked is not None:
                work.hold_back(parked)

    def park(self, work: SlotWork, envelope: Envelope, error: BaseException, tries: int) -> bool:
        """Note that an event is given up; it and what is behind it wait from now on.

        Args:
            work: The slot it belongs to.
            envelope: The event.
            error: Why.
            tries: How often it was tried.

        Returns:
            Whether it is parked by us; not if the slot is not ours any more or somebody else parked it.
        """
        message, traceback_digest = self._describe(error)
        parked_by_us = False
        while work.lease.valid and not self._waits_already(envelope):
            fact = EventParked(
                handler=self._group,
                position=envelope.position,
                event_id=envelope.event_id,
                event_type=envelope.type,
                event_stream=envelope.stream,
                event_version=envelope.version,
                parking=self.parking.parkings(envelope.position) + 1,
                attempts=tries,
                member=self._member,
                cause=_cause(error),
                message=message,
                traceback_digest=traceback_digest,
            )
            # In one append with the end of the backlog it stood in, if it did.
            parked_by_us = self._append(work, [*self._end_before(work, envelope), fact], envelope.event_id)
        return parked_by_us

    def tend_backlogs(self, works: Sequence[SlotWork]) -> int:
        """Read the streams of released events again, up to where their slots were read.

        Args:
            works: The slots this member holds.

        Returns:
            How many skipped events were brought to their end.
        """
        for stream in self.parking.released:
            released, work = self.parking.blocked[stream], self._work_of(stream)
            if work is None or work.draining:
                continue
            # Earlier events of the stream go first, if the slot was taken over from before them.
            if work.read_to >= released.position and stream not in work.lanes:
                work.open_backlog(released)
        return sum(self._fill(work, stream, work.lanes[stream]) for work in works for stream in work.backlogs)

    def _waits_already(self, envelope: Envelope) -> bool:
        parked = self.parking.blocked.get(envelope.stream)
        return parked is not None and parked.state is ParkedState.PARKED and parked.version <= envelope.version

    def _describe(self, error: BaseException) -> tuple[str, bytes | None]:
        message = mask_text(str(error))[:_MESSAGE_LETTERS]
        if self._store is None:
            return message, None
        text = mask_text("".join(traceback.format_exception(error))).encode("utf-8", "replace")
        try:
            return message, self._store.put(text[-_TRACEBACK_BYTES:])
        except ArtifactError as refused:
            # Other streams must go on although the store is down; that the traceback is missing is told.
            return f"{message} (its traceback could not be kept: {mask_text(str(refused))})", None

    def _end_before(self, work: SlotWork, envelope: Envelope) -> list[Fact]:
        """Return the end of a backlog in which another event than the released one fails."""
        lane = work.lanes.get(envelope.stream)
        released = self.parking.blocked.get(envelope.stream)
        if lane is None or lane.backlog is None or released is None or released.position == envelope.position:
            return []
        return [self._handled(released, lane.backlog.through)]

    def _handled(self, released: ParkedEvent, through: int) -> BacklogHandled:
        return BacklogHandled(
            handler=self._group, position=released.position, parking=released.parking, through=through
        )

    def _append(self, work: SlotWork, facts: Sequence[Fact], causation_id: bytes) -> bool:
        """Append facts if all that stands before them is known; tell whether they are in the log by us.

        The lease is renewed first: whoever takes the slot over from here on then reads what we knew, however long we
        are paused before the append and whatever our clock says.
        """
        try:
            work.lease.renew()
            self.parking.append(facts, sender_id=self._sender_id, trace_id=self._trace_id, causation_id=causation_id)
        except LeaseLost:
            return False
        except (ConcurrencyConflict, EventIdReused):
            self.refresh()
            return False
        self.refresh()
        return True

    def _fill(self, work: SlotWork, stream: str, lane: Lane) -> bool:
        """Put the next events of a backlog into its lane, or end it; tell whether a skipped event ended so."""
        backlog = lane.backlog
        while backlog is not None and not lane.pending:
            page = self._log.read_stream(stream, backlog.after, _PAGE)
            due = [envelope for envelope in page if envelope.position <= work.read_to]
            for envelope in due:
                backlog.after = envelope.version
                wanted = envelope.position > backlog.floor and envelope.topic in self._topics
                if wanted and envelope.position not in self.parking.skipped:
                    work.add(envelope)
            if len(due) < _PAGE and not lane.pending:
                return self._end(work, stream, backlog.parked)
        return False

    def _end(self, work: SlotWork, stream: str, released: ParkedEvent) -> bool:
        known = self.parking.blocked.get(stream)
        if known is None or (known.position, known.parking) != (released.position, released.parking):
            # Its end is a fact already.
            work.close_lane(stream)
            return False
        if not work.lease.valid or not self._append(work, [self._handled(known, work.read_to)], known.event_id):
            return False
        if stream in work.lanes:
            work.close_lane(stream)
        return known.state is ParkedState.SKIPPED


def _cause(error: BaseException) -> str:
    name = type(error).__name__
    return f"{error.code} {name}" if isinstance(error, EsperError) else name
