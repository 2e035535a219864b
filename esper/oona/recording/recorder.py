"""The recorder: takes facts from a training thread in microseconds and appends them in the background.

One thread, one queue, one order: facts reach the log in the order of ``put``, whatever their streams. Facts of one
stream that follow each other share an append. A full queue makes ``put`` wait; nothing is ever dropped. ``flush`` is
the durable barrier.

With a spool, facts of a log that cannot be reached go to a file on local disk, forced there, and from there to the log
once it is back (``outage``). Order, ids and expected versions stay what they are. Without one the recorder stops.
"""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

from esper.errors import EsperError, LogFull, LogUnavailable, RecorderStopped
from esper.events.base import Fact
from esper.events.envelope import Event
from esper.ids import derived_id
from esper.oona.port import ANY, EventLog, Receipt

if TYPE_CHECKING:
    from esper.oona.recording.delivery import Spool
    from esper.oona.recording.outage import Outage, Spooled


class _Barrier:
    """Stands in the queue where someone waits for everything before it."""

    def __init__(self, *, last: bool) -> None:
        self.last = last
        self.reached = threading.Event()
        self.receipt: Receipt | Spooled | None = None


_Item: TypeAlias = tuple[Fact, tuple[str | int, ...], bytes | None]


class Recorder:
    """Appends facts to a log from a background thread.

    Attributes:
        written: Facts in the log, or forced to the spool, so far.
        batches: Appends made or spooled so far.
        stalls: How often ``put`` had to wait for room.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        sender_id: str,
        trace_id: str,
        capacity: int = 8192,
        batch: int = 512,
        linger_s: float = 0.05,
        spool: Spool | None = None,
    ) -> None:
        """Start recording.

        Args:
            log: Where facts go; it stays open when the recorder closes.
            sender_id: Sender of every fact.
            trace_id: Trace of every fact.
            capacity: Facts the queue holds before ``put`` waits.
            batch: Most facts of one append.
            linger_s: How long a fact may wait for company while nobody waits in ``flush``.
            spool: Where facts wait while the log cannot be reached; None stops the recorder then.
        """
        self._log = log
        self._sender_id = sender_id
        self._trace_id = trace_id
        self._capacity = capacity
        self._batch = batch
        self._linger_s = linger_s
        self._queue: deque[_Item | _Barrier] = deque()
        self._versions: dict[str, int] = {}
        self._wake = threading.Event()
        self._resting = False
        self._room = threading.Condition()
        self._receipt: Receipt | Spooled | None = None
        self._spool = spool
        self._outage: Outage | None = None
        self._stopped = False
        self._closing = False
        self._cause: BaseException | None = None
        self.written = 0
        self.batches = 0
        self.stalls = 0
        self._thread = threading.Thread(target=self._run, name="esper-recorder", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Return how many facts wait in the queue."""
        return len(self._queue)

    @property
    def spooling(self) -> bool:
        """Tell whether facts go to the spool now."""
        return self._outage is not None and not self._outage.over

    def own(self, stream: str, version: int) -> None:
        """Append to a stream with its exact version from now on, so that a second writer is shut out.

        Args:
            stream: Stream this recorder alone writes.
            version: Version it has now.
        """
        self._versions[stream] = version

    def put(self, fact: Fact, cause: tuple[str | int, ...], causation_id: bytes | None = None) -> None:
        """Hand over a fact; returns in microseconds unless the queue or the spool is full.

        Args:
            fact: The fact; its stream is the fact's own.
            cause: What the event id is derived from, e.g. ``("run", run_id, attempt, ordinal)``.
            causation_id: Id of the event that led to this one.

        Raises:
            RecorderStopped: The recorder is closed or its thread died; the cause is attached.
        """
        queue = self._queue
        if self._stopped or self._closing:
            raise self._stop_error()
        if len(queue) >= self._capacity or (self._outage is not None and self._outage.full):
            self._wait_for_room()
        queue.append((fact, cause, causation_id))
        if self._resting or len(queue) == self._batch:
            self._wake.set()

    def flush(self, timeout_s: float = 60.0) -> Receipt | Spooled | None:
        """Wait until everything put before is durable: in the log or, while that cannot be reached, in the spool.

        Args:
            timeout_s: How long to wait. Time in which the spool is full does not count.

        Returns:
            The receipt of the last append; Spooled where the facts wait on local disk and have no positions yet; None
            if nothing was ever put.

        Raises:
            RecorderStopped: The recorder is closed or its thread died; the cause is attached.
            LogUnavailable: The log did not take the facts in time; they are still queued.
        """
        if self._stopped or self._closing:
            raise self._stop_error()
        return self._barrier(timeout_s, last=False)

    def close(self, timeout_s: float = 60.0, *, outage_s: float | None = None) -> None:
        """Flush and stop; closing twice is fine.

        Args:
            timeout_s: How long to wait for the queue to empty.
            outage_s: How long to wait for the log to take what is in the spool, before the spool is left as it is; the
                spool's own patience when left out.

        Raises:
            RecorderStopped: The thread died before everything was durable.
            LogUnavailable: The log did not take the facts in time, or they wait in the spool, which the error names.
        """
        if self._closing and self._cause is None:
            return
        self._closing = True
        if self._stopped:
            raise self._stop_error()
        if self._outage is not None:
            self._outage.close_soon()
        self._look_again()
        self._barrier(timeout_s, last=True)
        self._thread.join(timeout_s)
        outage = self._outage
        if outage is None or self._spool is None:
            return
        if outage.wait(self._spool.patience_s if outage_s is None else outage_s):
            return
        if outage.error is not None:
            self._cause = outage.error
            raise self._stop_error()
        raise outage.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif not self._stopped:
            try:
                self.close(outage_s=0.0)
            except EsperError as left:
                if self._outage is None:
                    raise
                # What went wrong in the block is raised, and that facts wait on disk is told beside it.
                self._outage.tell(left)
                error.add_note(f"{left.message}; {left.hint}")

    def _barrier(self, timeout_s: float, *, last: bool) -> Receipt | Spooled | None:
        barrier = _Barrier(last=last)
        self._queue.append(barrier)
        self._wake.set()
        if self._stopped:  # the thread ended before it could see the barrier
            barrier.reached.set()
        reached = barrier.reached.wait(timeout_s)
        while not reached and not last and self._outage is not None and self._outage.full:
            self._outage.count_stall()
            reached = barrier.reached.wait(timeout_s)
        if barrier.receipt is None and self._cause is not None:
            raise self._stop_error()
        if not reached:
            raise LogUnavailable(
                f"the log did not take {len(self._queue)} queued facts within {timeout_s:g} s",
                hint="see whether another process holds the log, or whether its disk is slow",
            )
        return barrier.receipt

    def _wait_for_room(self) -> None:
        self.stalls += 1
        counted = False

        def ended() -> bool:
            return self._stopped or self._closing

        def has_room() -> bool:
            nonlocal counted
            outage = self._outage
            if outage is None or not outage.full:
                return ended() or len(self._queue) < self._capacity
            if not counted:
                outage.count_stall()
                counted = True
            return ended()

        with self._room:
            self._room.wait_for(has_room)
        if ended():
            raise self._stop_error()

    def _stop_error(self) -> RecorderStopped:
        if self._cause is None:
            return RecorderStopped("the recorder is closed; no fact was accepted")
        error = RecorderStopped(
            f"the recorder stopped after {self.written} facts: {self._cause}",
            hint=getattr(self._cause, "hint", None),
        )
        error.__cause__ = self._cause
        return error

    def _run(self) -> None:
        try:
            self._record()
        except BaseException as error:  # a thread that dies of anything must be heard of at the next put
            self._cause = error
            if self._outage is not None:
                self._outage.tell(self._outage.leave())
        finally:
            self._stopped = True
            with self._room:
                self._room.notify_all()
            for item in list(self._queue):
                if isinstance(item, _Barrier):
                    item.reached.set()

    def _record(self) -> None:
        """Append until the last barrier is reached."""
        while True:
            self._rest()
            while self._queue:
                item = self._queue[0]
                if not isinstance(item, _Barrier):
                    self._append(self._next_group())
                    continue
                self._queue.popleft()
                self._end_outage()
                item.receipt = self._receipt
                item.reached.set()
                if item.last:
                    return

    def _rest(self) -> None:
        """Sleep until there is a fact, then linger for company unless someone waits."""
        self._wake.clear()
        # Resting is announced before the queue is looked at: a put either is seen here or sees it and wakes us.
        self._resting = True
        while not self._queue:
            self._wake.wait()
            self._end_outage()
            self._wake.clear()
        self._resting = False
        self._wake.clear()
        if len(self._queue) < self._batch and not isinstance(self._queue[-1], _Barrier):
            self._wake.wait(self._linger_s)

    def _next_group(self) -> list[_Item]:
        """Take the facts of one stream that stand first in the queue, at most one batch."""
        queue = self._queue
        group: list[_Item] = []
        stream = ""
        while queue and len(group) < self._batch:
            item = queue[0]
            if isinstance(item, _Barrier):
                break
            if not group:
                stream = item[0].stream
            elif item[0].stream != stream:
                break
            group.append(item)
            queue.popleft()
        if len(queue) < self._capacity:
            with self._room:
                self._room.notify_all()
        return group

    def _append(self, group: list[_Item]) -> None:
        stream = group[0][0].stream
        events = [
            Event(
                fact=fact,
                event_id=derived_id(*cause),
                sender_id=self._sender_id,
                trace_id=self._trace_id,
                causation_id=causation_id,
            )
            for fact, cause, causation_id in group
        ]
        expected = self._versions.get(stream, ANY)
        self._keep(events, stream, expected)
        if expected != ANY:
            self._versions[stream] = expected + len(events)
        self.written += len(group)
        self.batches += 1

    def _keep(self, events: list[Event], stream: str, expected: int) -> None:
        """Append a batch, or spool it while the log cannot be reached."""
        self._end_outage()
        if self._outage is None:
            try:
                self._receipt = self._log.append(events, stream=stream, expected=expected)
            except (LogUnavailable, LogFull) as error:
                if self._spool is None:
                    raise
                self._outage = self._begin_outage(self._spool, error)
            else:
                return
        taken = self._outage.write(events, stream=stream, expected=expected)
        with self._room:  # a full spool has room again
            self._room.notify_all()
        if taken:
            self._receipt = self._outage.waiting
        else:
            self._keep(events, stream, expected)

    def _begin_outage(self, spool: Spool, cause: EsperError) -> Outage:
        from esper.oona.recording.outage import Outage

        name = f"{self._sender_id}-{self._trace_id}"
        outage = Outage(spool, name, self._log, cause=cause, on_change=self._look_again)
        if self._closing:
            outage.close_soon()
        return outage

    def _look_again(self) -> None:
        """Wake the thread and those who wait for room."""
        self._wake.set()
        with self._room:
            self._room.notify_all()

    def _end_outage(self) -> None:
        """Go back to the log if the outage is over; raise what ended delivery for good."""
        outage = self._outage
        if outage is None:
            return
        if outage.error is not None:
            raise outage.error
        if outage.over:
            self._receipt = outage.receipt
            self._outage = None
