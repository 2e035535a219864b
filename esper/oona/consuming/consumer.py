"""The consumer: hands a group's events to its members, each stream in order, each event at least once.

One member owns a stream at a time, because it holds the lease of the stream's slot. Its cursor never passes an event
that is neither handled, skipped, parked nor waiting behind a parked one. A member that died leaves its slots to the
others, who do again what was not committed; effects must be idempotent. Belongs here: reading, handing out and taking
back. Does not belong here: slots (``holdings``), order in memory (``lanes``), parking (``setbacks``) or the process
around it (``esper.handlers.runtime``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import Self

import msgspec

from esper.artifacts.store import ArtifactStore
from esper.clock import Clock, SystemClock, steady_s
from esper.errors import ConfigError, HandlerError, LeaseLost
from esper.events.codec import fact_of
from esper.events.envelope import Envelope
from esper.metrics import HANDLER_EVENTS, HANDLER_LAG_EVENTS, HANDLER_LAG_SECONDS, HANDLER_PARKED
from esper.oona.consuming.holdings import Every, Holdings
from esper.oona.consuming.lanes import Delivery, Lane, SlotWork
from esper.oona.consuming.setbacks import Setbacks
from esper.oona.consuming.slots import Plan, agree, require_name
from esper.oona.port import EventLog

__all__ = ["END", "Consumer", "Delivery", "Lag"]

#: ``start`` value: a new group begins with what is appended after its first member came.
END = -1
#: A generator of its own: the global one may belong to a run that trains in the same process.
_OWN = random.Random()  # noqa: S311 - spreads tries, keeps no secret
#: Records per read.
_PAGE = 500
#: Bytes of payloads held in memory at which reading pauses.
_MOST_BYTES = 64 << 20
_REFRESH_S = 0.25
_GAUGES_S = 1.0


class Lag(msgspec.Struct, frozen=True):
    """How far a member is behind the end of the log, over the slots it holds."""

    #: Positions between what is dealt with and the end of the log.
    events: int
    #: Age of the oldest event of its topics that is not dealt with; by the wall clock, for people.
    seconds: float


class Consumer:
    """One member of a group of consumers. Its methods are called by one thread at a time, ``owns`` by any.

    Attributes:
        plan: What all members of the group agree on.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        group: str,
        member: str,
        topics: Collection[str],
        sender_id: str,
        trace_id: str,
        start: int = 0,
        ttl_s: float = 10.0,
        slots: int = 8,
        attempts: int = 5,
        first_delay_s: float = 0.2,
        most_delay_s: float = 30.0,
        most_held: int = 10_000,
        store: ArtifactStore | None = None,
        clock: Clock | None = None,
        monotonic: Callable[[], float] = steady_s,
        chance: Callable[[], float] = _OWN.random,
    ) -> None:
        """Prepare to join a group; the first ``poll`` joins it.

        Args:
            log: The log; it stays open when the consumer closes.
            group: Name of the group, which is the name of the handler.
            member: Name of this member, for people.
            topics: Topics whose events are handled.
            sender_id: Sender of the facts about parked events.
            trace_id: Their trace.
            start: Position a new group begins after, or ``END``; a group that exists goes on where it was.
            ttl_s: How long a new group's leases last without renewal. All members take that of the group.
            slots: How many members of a new group can work at once. All members take that of the group.
            attempts: How often an event is tried before it is parked.
            first_delay_s: Longest wait before the second try; it doubles with each try.
            most_delay_s: Longest wait before any try.
            most_held: Events in memory at which reading pauses.
            store: Where tracebacks of parked events are kept; None keeps none.
            clock: Tells the age of events, for people.
            monotonic: Gives seconds that never go back.
            chance: Gives numbers from 0 to 1 that waits are spread by.

        Raises:
            ConfigError: A name, a number or the topics cannot be used.
            HandlerError: What the group agreed on cannot be read.
            LogUnavailable: The log cannot be reached.
        """
        if not topics or slots < 1 or attempts < 1 or ttl_s <= 0:
            raise ConfigError(f"consumer {group} needs topics, and slots, attempts and ttl_s above 0")
        require_name("group", group)
        require_name("member", member)
        self._log = log
        self._group = group
        self._topics = frozenset(str(topic) for topic in topics)
        self._attempts = attempts
        self._delays_s = (first_delay_s, most_delay_s)
        self._most_held = most_held
        self._clock = clock or SystemClock()
        self._monotonic = monotonic
        self._chance = chance
        self._refresh = Every(_REFRESH_S, monotonic)
        self._gauges = Every(_GAUGES_S, monotonic)
        #: Where the log ended at the last read.
        self._end = 0
        self._turn = 0
        self._setbacks = Setbacks(
            log,
            group=group,
            member=member,
            topics=self._topics,
            store=store,
            sender_id=sender_id,
            trace_id=trace_id,
            work_of=self._work_of,
        )
        self.plan = agree(log.cells, group, lambda: Plan(slots, _begin(log, start), ttl_s))
        self._holdings = Holdings(
            log,
            group=group,
            member=member,
            plan=self.plan,
            monotonic=monotonic,
            unfinished=self._setbacks.unfinished,
            # After the leases were taken: all that their last owners parked is known from here on.
            before_new=self._setbacks.refresh,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def poll(self, limit: int = 100, timeout_s: float = 1.0) -> list[Delivery]:
        """Return events to handle, in the order of the log; each stream's next ones come after these came back.

        Args:
            limit: At most so many.
            timeout_s: How long to wait for one.

        Raises:
            LogRegressed: The log is not the one the group's cursors were written for.
            LogUnavailable: The log cannot be reached; poll again later.
            HandlerError: The consumer is closed.
        """
        deadline = self._monotonic() + timeout_s
        while True:
            self._tend()
            found = self._hand_out(limit)
            moved = not found and self._read()
            if moved:
                found = self._hand_out(limit)
            left_s = deadline - self._monotonic()
            if found or left_s <= 0:
                return found
            if not moved:
                self._rest(left_s)

    def owns(self, stream: str) -> bool:
        """Tell whether this member is the one that handles a stream, by its own clock; any thread may ask."""
        work = self._holdings.of(stream)
        return work is not None and work.lease.valid

    def holds(self, delivery: Delivery) -> bool:
        """Tell whether a delivery is still this member's to handle; ask before each, when handling takes long.

        It is not once the lease is over by our own clock, or an earlier event of the same stream failed.
        """
        work = self._holdings.of(delivery.envelope.stream)
        return work is not None and work.lease.valid and work.holds(delivery)

    def done(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Report deliveries as handled.

        Returns:
            Those that do not count, because they were not this member's any more: somebody handles them again.
        """
        missed = []
        for delivery in deliveries:
            work = self._holdings.under(delivery)
            if work is None:
                missed.append(delivery)
            else:
                work.done(delivery.envelope)
                self._count("handled")
        self._holdings.commit_when_due()
        return missed

    def failed(self, delivery: Delivery, error: BaseException) -> bool:
        """Report that handling failed: the event is tried again later, or parked after the last try.

        Deliveries of later events of the same stream are withdrawn; ``holds`` tells.

        Returns:
            Whether it counts; it does not if the delivery was not this member's any more.
        """
        work = self._holdings.under(delivery)
        if work is None:
            return False
        tries = work.fail(delivery.envelope, self._next_try)
        if tries < self._attempts:
            self._count("retried")
        else:
            self._park(work, delivery.envelope, error, tries)
        self._holdings.commit_when_due()
        return True

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """Give deliveries back untried, and with each the later ones of its stream."""
        for delivery in deliveries:
            work = self._holdings.under(delivery)
            if work is not None:
                work.take_back(delivery.envelope)

    def lag(self) -> Lag:
        """Return how far this member is behind the end of the log."""
        positions = [work.position for work in self._holdings.work.values()]
        if not positions:
            return Lag(0, 0.0)
        position = min(positions)
        oldest = self._log.read(position, 1, topics=self._topics)
        age_us = self._clock.now_us() - oldest[0].recorded_at if oldest else 0
        return Lag(max(0, self._log.end() - position), max(0, age_us) / 1e6)

    @property
    def parked(self) -> int:
        """Return how many events of the group are parked and wait for a person's decision."""
        return self._setbacks.parking.parked

    @property
    def slots(self) -> list[int]:
        """Return the slots this member holds now."""
        return sorted(number for number, work in self._holdings.work.items() if work.lease.valid)

    def close(self) -> None:
        """Commit what is done, give all slots up and leave; closing twice is fine.

        Raises:
            LogUnavailable: The log cannot be reached; the slots expire by themselves.
        """
        self._holdings.close()

    def _tend(self) -> None:
        """Do what is due between events."""
        if self._holdings.closed:
            raise HandlerError(f"consumer of {self._group} is closed")
        self._holdings.tend()
        if self._refresh.due():
            self._setbacks.refresh()
        for _ in range(self._setbacks.tend_backlogs(list(self._holdings.work.values()))):
            self._count("skipped")
        self._holdings.commit_when_due()
        if self._gauges.due():
            lag = self.lag()
            HANDLER_LAG_EVENTS.labels(self._group).set(lag.events)
            HANDLER_LAG_SECONDS.labels(self._group).set(lag.seconds)
            HANDLER_PARKED.labels(self._group).set(self.parked)

    def _read(self) -> bool:
        """Read the next page for the slots that are furthest behind; tell whether anything moved."""
        works = self._readers()
        if not works:
            return False
        self._end = self._log.end()
        furthest = max(work.read_to for work in works)
        if self._end < furthest:
            raise self._holdings.regressed(furthest, f"the log ends at {self._end}")
        after = min(work.read_to for work in works)
        if after >= self._end:
            return False
        page = self._log.read(after, _PAGE, topics=self._topics, until=self._end)
        through = page[-1].position if len(page) >= _PAGE else self._end
        for envelope in page:
            work = self._holdings.of(envelope.stream)
            if work is not None and not work.draining and envelope.position > work.read_to:
                self._accept(work, envelope)
        for work in works:
            work.read_to = max(work.read_to, through)
        return True

    def _work_of(self, stream: str) -> SlotWork | None:
        return self._holdings.of(stream)

    def _accept(self, work: SlotWork, envelope: Envelope) -> None:
        lane = work.lanes.get(envelope.stream)
        # The second reading of a stream comes to it by itself.
        if not self._setbacks.waits(envelope) and (lane is None or lane.backlog is None):
            work.add(envelope)

    def _readers(self) -> list[SlotWork]:
        """Return the slots that events are read for; none while too much is held in memory."""
        works = self._holdings.work.values()
        events, size_bytes = sum(work.events for work in works), sum(work.size_bytes for work in works)
        if events >= self._most_held or size_bytes >= _MOST_BYTES:
            return []
        return [work for work in works if not work.draining]

    def _hand_out(self, limit: int) -> list[Delivery]:
        found: list[Delivery] = []
        works = list(self._holdings.work.values())
        self._turn += 1
        for place in range(len(works)):
            work = works[(place + self._turn) % len(works)]
            if work.draining or not work.lease.valid:
                continue
            for lane in work.ready(self._monotonic()):
                # Parking, too, can find out that the lease is over.
                if len(found) >= limit or not work.lease.valid:
                    break
                for envelope in list(islice(lane.pending.values(), limit - len(found))):
                    delivery = self._delivery(work, lane, envelope)
                    if delivery is None:
                        break
                    work.hand_out(delivery)
                    found.append(delivery)
        found.sort(key=lambda one: one.envelope.position)
        return found

    def _delivery(self, work: SlotWork, lane: Lane, envelope: Envelope) -> Delivery | None:
        """Return an event as it is handed out; one that cannot be decoded is parked when its turn comes."""
        try:
            fact = fact_of(envelope)
        except Exception as error:  # whatever decoding an event comes to is the event's fault, never its handler's
            if not lane.out:
                self._park(work, envelope, error, 0)
            return None
        try:
            token = work.lease.token
        except LeaseLost:
            # The renewing thread found it out a moment ago.
            return None
        return Delivery(envelope, fact, work.tries.get(envelope.position, 0) + 1, token)

    def _park(self, work: SlotWork, envelope: Envelope, error: BaseException, tries: int) -> None:
        if self._setbacks.park(work, envelope, error, tries):
            self._count("parked")
        if not work.lease.valid:
            self._holdings.lose(work)

    def _next_try(self, tries: int) -> float:
        first_s, most_s = self._delays_s
        longest_s = min(most_s, first_s * 2.0 ** min(tries - 1, 64))
        return self._monotonic() + longest_s * (1 + self._chance()) / 2

    def _rest(self, left_s: float) -> None:
        """Wait for something to do."""
        now = self._monotonic()
        tries = [wait_s for work in self._holdings.work.values() if (wait_s := work.next_try_s(now)) is not None]
        wait_s = min(left_s, 1.0, self.plan.ttl_s / 10, *tries)
        if self._readers():
            self._log.wait(self._end, wait_s)
        else:
            self._holdings.rest(wait_s)

    def _count(self, outcome: str) -> None:
        HANDLER_EVENTS.labels(self._group, outcome).inc()


def _begin(log: EventLog, start: int) -> int:
    end = log.end()
    if start == END:
        return end
    if not 0 <= start <= end:
        raise ConfigError(f"a group cannot begin after position {start}: the log ends at {end}")
    return start
