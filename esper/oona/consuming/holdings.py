"""What one member of a group holds: its slots, the work in each, and their cursors.

Belongs here: beginning a slot that was won, giving up one that others should have, dropping one that was lost, and
committing. Does not belong here: who should hold which slot (``slots``), or what is done with events (``consumer``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from esper.errors import LeaseLost, LogFull, LogRegressed, LogUnavailable
from esper.oona.consuming.cursors import Cursors
from esper.oona.consuming.lanes import Delivery, SlotWork
from esper.oona.consuming.slots import Plan, Slots, slot_of
from esper.oona.port import EventLog

_COMMIT_S = 0.5


class Every:
    """Tells when something is due again."""

    def __init__(self, period_s: float, monotonic: Callable[[], float]) -> None:
        """Be due at once, and then every so many seconds."""
        self._period_s = period_s
        self._monotonic = monotonic
        self._next = monotonic()

    def due(self) -> bool:
        """Tell whether it is due, and if so begin the next period."""
        now = self._monotonic()
        if now < self._next:
            return False
        self._next = now + self._period_s
        return True


class Holdings:
    """The slots of one member, with the work in them.

    Attributes:
        work: What is to be done for each slot that was begun, by number.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        group: str,
        member: str,
        plan: Plan,
        monotonic: Callable[[], float],
        unfinished: Callable[[SlotWork], bool],
        before_new: Callable[[], object],
    ) -> None:
        """Prepare to join a group, and begin to renew what will be held, from a thread of its own.

        Args:
            log: The log.
            group: Name of the group.
            member: Name of this member, for people.
            plan: What all members of the group agree on.
            monotonic: Gives seconds that never go back.
            unfinished: Tells whether the cursor of a slot must stay where it is for now.
            before_new: Called between winning slots and beginning them.
        """
        self.work: dict[int, SlotWork] = {}
        self._plan = plan
        self._unfinished = unfinished
        self._before_new = before_new
        self._slots = Slots(
            log.cells, group=group, member=member, slots=plan.slots, ttl_s=plan.ttl_s, monotonic=monotonic
        )
        self._cursors = Cursors(log, group)
        self._balance = Every(min(1.0, plan.ttl_s / 10), monotonic)
        self._commit_done = Every(_COMMIT_S, monotonic)
        self._commit_all = Every(plan.ttl_s / 3, monotonic)
        self._closed = threading.Event()
        self._failure: BaseException | None = None
        # A long effect must not cost the lease: it is renewed beside it.
        self._thread = threading.Thread(target=self._beat, name=f"esper-lease-{group}", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Tell whether everything was given up."""
        return self._closed.is_set()

    def rest(self, wait_s: float) -> None:
        """Wait, until closed at most."""
        self._closed.wait(wait_s)

    def of(self, stream: str) -> SlotWork | None:
        """Return the work of a stream's slot, or None if this member does not have it."""
        return self.work.get(slot_of(stream, self._plan.slots))

    def under(self, delivery: Delivery) -> SlotWork | None:
        """Return the work that a delivery is out of, or None if it is not this member's any more."""
        work = self.of(delivery.envelope.stream)
        if work is None or not work.holds(delivery):
            return None
        if not work.lease.valid:
            self.lose(work)
            return None
        return work

    def lose(self, work: SlotWork) -> None:
        """Drop a slot that is not ours any more, with everything that is out of it."""
        if self.work.get(work.number) is work:
            del self.work[work.number]
            self._slots.forget(work.number)

    def tend(self) -> None:
        """Renew, share and follow: drop what is lost, leave what others should have, begin what is new.

        Raises:
            LogRegressed: The log is not the one a cursor was written for.
            LogUnavailable: The log cannot be reached.
        """
        if self._failure is not None:
            raise self._failure
        self._slots.beat()
        for number in self._slots.prune():
            self.work.pop(number, None)
        if self._balance.due():
            self._choose(self._slots.balance())
        self._leave([work for work in self.work.values() if work.draining and not work.busy])
        self._begin([number for number in self._slots.held if number not in self.work])

    def commit_when_due(self) -> None:
        """Commit the cursors of slots where something was done, and now and then those of the others."""
        done, every = self._commit_done.due(), self._commit_all.due()
        self._commit(work for work in list(self.work.values()) if every or (done and work.dirty))

    def regressed(self, position: int, reason: str) -> LogRegressed:
        """Return the error for a log that is not the one a cursor was written for."""
        return self._cursors.regressed(position, reason)

    def close(self) -> None:
        """Commit what is done, give everything up and leave the group; closing twice is fine.

        Raises:
            LogUnavailable: The log cannot be reached; the slots expire by themselves.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join()
        try:
            self._commit(list(self.work.values()))
        finally:
            self.work.clear()
            self._slots.close()

    def _beat(self) -> None:
        while not self._closed.wait(self._plan.ttl_s / 6):
            try:
                self._slots.beat()
            except (LogUnavailable, LogFull):
                # Leases that are not renewed in time end by our own clock, and poll meets the same error.
                continue
            except BaseException as error:  # a thread that dies of anything must be heard of at the next poll
                self._failure = error
                return

    def _choose(self, excess: int) -> None:
        """Choose which slots to give up; what is out of them is finished first."""
        order = sorted(self.work.values(), key=lambda work: (not work.draining, work.busy, work.events))
        for place, work in enumerate(order):
            work.draining = place < excess

    def _leave(self, works: Iterable[SlotWork]) -> None:
        for work in works:
            self._commit([work])
            if self.work.pop(work.number, None) is not None:
                self._slots.leave(work.number)

    def _begin(self, numbers: list[int]) -> None:
        if numbers:
            self._before_new()
        for number in numbers:
            try:
                self.work[number] = self._cursors.open(number, self._slots.held[number], self._plan.start)
            except LogRegressed:
                self._slots.leave(number)
                raise
            except LeaseLost:
                self._slots.forget(number)

    def _commit(self, works: Iterable[SlotWork]) -> None:
        for work in works:
            if self._unfinished(work):
                continue
            try:
                self._cursors.commit(work)
            except LeaseLost:
                self.lose(work)
