"""An outage of the log: facts go to a spool file, and a thread delivers them once the log is back.

Belongs here: the one spool file of a recorder during one outage, its bound, and when delivery is tried. Does not belong
here: the bytes of the file (``spool``), what a delivery checks (``delivery``), or the queue before it (``recorder``).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from esper.errors import EsperError, LogFull, LogUnavailable
from esper.events.envelope import Event
from esper.logs import get_logger
from esper.metrics import SPOOL_BYTES, SPOOL_STALLS
from esper.oona.batch import draft
from esper.oona.port import EventLog, Receipt
from esper.oona.recording.delivery import Delivery, Spool
from esper.oona.recording.spool import SpooledBatch, SpooledFact, frame_of

#: A generator of its own: the global one belongs to the run that trains beside this thread, and is in its checkpoints.
_OWN = random.Random()  # noqa: S311 - spreads tries, keeps no secret
#: Seconds between tries: the first delay, doubled up to the longest, each drawn between half and whole.
FIRST_DELAY_S = 0.1
MOST_DELAY_S = 5.0


class Spooled(msgspec.Struct, frozen=True):
    """Facts are on stable storage of this machine and not yet in the log; they have no positions."""

    #: Facts that wait.
    facts: int
    path: Path


class Outage:
    """Takes a recorder's facts in place of the log, in order, until all of them are delivered.

    The recorder's thread writes; a thread of this class delivers. Between the two stands one lock, so that the outage
    ends exactly when nothing is left in the file.

    Attributes:
        full: Whether the file is at its bound and the writer waits.
        error: What ended delivery for good; None while it goes on.
    """

    def __init__(
        self,
        spool: Spool,
        name: str,
        log: EventLog,
        *,
        cause: EsperError,
        on_change: Callable[[], None],
        first_delay_s: float = FIRST_DELAY_S,
        most_delay_s: float = MOST_DELAY_S,
        chance: Callable[[], float] = _OWN.random,
    ) -> None:
        """Make the file; nothing is delivered before the first ``write``.

        Args:
            spool: Where the file goes.
            name: Name of the file.
            log: The log that cannot be reached.
            cause: What it said.
            on_change: Called when the file has become full and when ``error`` is set.
            first_delay_s: Seconds before the first try, doubled at each one that fails.
            most_delay_s: Most seconds between two tries.
            chance: Gives numbers in [0, 1) that spread the tries of many processes.
        """
        self._file = spool.create(name)
        self._limit_bytes = spool.limit_bytes
        self._delivery = Delivery(self._file, log)
        self._cause = cause
        self._on_change = on_change
        self._delays = (first_delay_s, most_delay_s)
        self._chance = chance
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._written = 0
        self._stalled = False
        self._closing = False
        self._over = False
        self.full = False
        self.error: BaseException | None = None
        self._messages = get_logger("oona")
        self._messages.warning(
            "the log cannot be reached; facts are spooled and delivered later",
            spool=str(self._file.path),
            cause=cause.message,
        )
        self._thread = threading.Thread(target=self._run, name="esper-spool", daemon=True)

    @property
    def over(self) -> bool:
        """Tell whether everything is in the log again."""
        return self._over

    @property
    def receipt(self) -> Receipt | None:
        """Return the receipt of the batch delivered last."""
        return self._delivery.receipt

    @property
    def waiting(self) -> Spooled:
        """Return what waits on local disk."""
        return Spooled(self._written - self._delivery.facts, self._file.path)

    def write(self, events: Sequence[Event], *, stream: str, expected: int) -> bool:
        """Write a batch and force it to disk, waiting while the file is full.

        Returns:
            False if the outage is over and the batch was not taken: it goes to the log.

        Raises:
            EsperError: The batch is one that no log takes, the device refuses, or delivery ended with an error.
        """
        batch = SpooledBatch(
            stream,
            expected,
            events[0].sender_id,
            events[0].trace_id,
            [
                SpooledFact(one.event.event_id, one.type, one.schema, one.event.causation_id, one.payload)
                for one in draft(events, stream)
            ],
        )
        frame = frame_of(batch)
        with self._changed:
            while not self._over and self.error is None:
                if self._fits(frame) and self._file.add(frame):
                    self._written += len(events)
                    SPOOL_BYTES.set(self._file.forced - self._file.delivered)
                    break
                if self._file.empty:
                    raise LogFull(f"the disk has no room for spool file {self._file.path}")
                if not self.full:
                    self.full = True
                    self._on_change()
                self._changed.wait()
            self.full = False
            if self.error is not None:
                raise self.error
            if self._over:
                return False
        if not self._thread.is_alive():
            self._thread.start()
        return True

    def count_stall(self) -> None:
        """Count a producer that waits because the file is full; the first one is told."""
        SPOOL_STALLS.inc()
        if not self._stalled:
            self._stalled = True
            self._messages.warning(
                "the spool is full; training waits until the log is back",
                spool=str(self._file.path),
                limit_bytes=self._limit_bytes,
            )

    def close_soon(self) -> None:
        """Lift the bound for what is still queued: no more facts will come."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Wait until everything is delivered or delivery ended with an error; tell whether all is delivered."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self.error is not None, timeout_s)
            return self._over

    def leave(self) -> LogUnavailable:
        """Stop delivering, keep the file, and return the error that says how to deliver it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(1.0)
        waiting = self.waiting
        if not self._thread.is_alive():  # else an append of it hangs, and the lock goes with the process
            self._file.close()
        error = LogUnavailable(
            f"the log cannot be reached; {waiting.facts} facts wait in {waiting.path}",
            hint="`esper log deliver` delivers them once the log is back; so does the next `esper train` on this home",
            facts=waiting.facts,
            path=waiting.path,
        )
        error.__cause__ = self._cause
        return error

    def tell(self, left: EsperError) -> None:
        """Say in the messages of the process that facts stay behind."""
        self._messages.error("not every fact is in the log", cause=left.message, hint=left.hint)

    def _fits(self, frame: bytes) -> bool:
        return self._closing or self._file.empty or self._file.forced + len(frame) <= self._limit_bytes

    def _run(self) -> None:
        try:
            self._deliver()
        except BaseException as error:  # a thread that dies of anything must be heard of at the next put
            with self._changed:
                self.error = error
                self._changed.notify_all()
            self._on_change()

    def _deliver(self) -> None:
        first_s, most_s = self._delays
        delay_s = first_s
        while not self._stop.wait(delay_s * (0.5 + 0.5 * self._chance())):
            before = self._delivery.facts
            try:
                while not self._stop.is_set():
                    if not self._delivery.step() and self._end():
                        return
                    SPOOL_BYTES.set(self._file.forced - self._file.delivered)
            except (LogUnavailable, LogFull) as error:
                self._cause = error
                delay_s = first_s if self._delivery.facts > before else min(2 * delay_s, most_s)

    def _end(self) -> bool:
        """End the outage if the writer added nothing meanwhile."""
        with self._changed:
            if self._file.delivered < self._file.forced:
                return False
            self._file.remove()
            self._over = True
            self._changed.notify_all()
        SPOOL_BYTES.set(0)
        self._messages.info("the log is back and has every spooled fact", facts=self._delivery.facts)
        return True
