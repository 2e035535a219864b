"""The loop of a handler: events in, concurrently across streams and never within one, outcomes committed.

Belongs here: handing events over and settling what became of them. Does not belong here: which events come
(``esper.oona.consuming.consumer``), or signals and pages (``life``, ``daemon``).
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import Any, TypeVar

from esper.artifacts.store import ArtifactStore
from esper.errors import ArtifactError, DependencyUnavailable, LeaseLost, LogFull, LogUnavailable
from esper.events import Envelope
from esper.handlers.runtime.groups import group_position
from esper.handlers.runtime.handler import Context, Handler
from esper.handlers.runtime.life import Life, passes
from esper.logs import bound, get_logger
from esper.metrics import HANDLER_SECONDS
from esper.oona.consuming.consumer import Consumer, Lag
from esper.oona.consuming.lanes import Delivery
from esper.oona.consuming.parking import ParkedState, parked_events
from esper.oona.port import EventLog

#: Events taken at most before the first of them are settled.
_IN_HAND = 256
#: How long one wait for events lasts while nothing is in hand, and while something is.
_IDLE_S, _BUSY_S = 0.5, 0.05
#: How long a coroutine may take to end once it was cancelled.
_CANCEL_S = 1.0

T = TypeVar("T")


class Worker:
    """Drives one handler."""

    def __init__(
        self,
        consumer: Consumer,
        handler: Handler,
        *,
        log: EventLog,
        store: ArtifactStore,
        concurrency: int = 1,
        idle_s: float = _IDLE_S,
    ) -> None:
        """Join what gives events and what reacts to them.

        Args:
            consumer: Gives the events; this worker alone speaks to it, and closes it.
            handler: Reacts to them.
            log: Where results go.
            store: Where bulk bytes go.
            concurrency: Streams whose events are handled at the same time.
            idle_s: How long one wait for events lasts at most; half a second is the longest, so that a stop is heard.
        """
        self.name = handler.name
        self._idle_s = min(idle_s, _IDLE_S)
        self._consumer = consumer
        self._handler = handler
        self._log = log
        self._store = store
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix=handler.name)
        self._calls: set[Future[Any]] = set()
        self._running = asyncio.Semaphore(concurrency)
        self._speaking = asyncio.Lock()
        self._lanes: dict[str, deque[Delivery]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._something_ended = asyncio.Event()
        self._done: list[Delivery] = []
        self._failed: list[tuple[Delivery, BaseException]] = []
        self._untried: list[Delivery] = []
        #: What the log or the store refused a result with.
        self._lost: Exception | None = None
        #: Whether that happened and nothing was handled since: that the log can be read proves nothing then.
        self._doubted = False

    async def run(self, life: Life) -> bool:
        """Handle events until the process is to stop, then finish what is in hand.

        Returns:
            Whether everything ended; if not, a thread still runs and what it does is not committed.
        """
        try:
            return await self._live(life)
        finally:
            close = getattr(self._handler, "close", None)
            if callable(close):
                await asyncio.to_thread(close)

    async def lag(self) -> Lag:
        """Return how far this member is behind the log."""
        return await self._ask(self._consumer.lag)

    async def parked(self) -> int:
        """Return how many events of the group are parked now."""
        return await self._ask(lambda: self._consumer.parked)

    async def _live(self, life: Life) -> bool:
        try:
            while not life.stopping.is_set():
                try:
                    await self._turn(life)
                    if not self._doubted:
                        life.well()
                    if life.until_idle and not self._lanes and await self._ask(self._idle):
                        life.stop("idle")
                except Exception as error:
                    if not passes(error):
                        raise
                    await life.ride_out(error)
        except BaseException as error:
            life.stop(type(error).__name__)
            # What went wrong first is what is told; events that are in hand are done again by others anyway.
            with suppress(Exception):
                await self._drain(life)
            raise
        return await self._drain(life)

    async def _turn(self, life: Life) -> None:
        """Settle what ended, and take what comes."""
        await self._settle()
        if self._lost is not None:
            error, self._lost, self._doubted = self._lost, None, True
            raise error
        room = _IN_HAND - sum(map(len, self._lanes.values()))
        wait_s = 0.0 if self._lanes else _BUSY_S if life.until_idle else self._idle_s
        found = await self._ask(self._consumer.poll, room, wait_s) if room > 0 else []
        for delivery in found:
            self._take(delivery, life)
        if self._lanes and not found:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._something_ended.wait(), _BUSY_S)

    def _idle(self) -> bool:
        """Tell whether the whole group has nothing left to do, retried and skipped events included."""
        if self._consumer.lag().events:
            return False
        if any(one.state is not ParkedState.PARKED for one in parked_events(self._log, self.name)):
            return False
        # Slots of members that died are nobody's for a while, and nobody's lag.
        elsewhere = group_position(self._log.cells, self.name, besides=self._consumer.slots)
        return elsewhere is None or elsewhere >= self._log.end()

    def _take(self, delivery: Delivery, life: Life) -> None:
        stream = delivery.envelope.stream
        if stream in self._lanes:
            self._lanes[stream].append(delivery)
            return
        self._lanes[stream] = deque([delivery])
        task = asyncio.create_task(self._follow(stream, life))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, stream: str, life: Life) -> None:
        """Handle a stream's events one after another, up to one that fails."""
        lane = self._lanes[stream]
        try:
            while lane:
                async with self._running:
                    if life.stopping.is_set() or not await self._handle(lane[0], life):
                        return
                    self._done.append(lane.popleft())
                    self._something_ended.set()
                # Between two events others have their turn.
                await asyncio.sleep(0)
        finally:
            # What was not tried goes back; behind a failed event it must wait for it.
            self._untried += lane
            del self._lanes[stream]
            self._something_ended.set()

    async def _handle(self, delivery: Delivery, life: Life) -> bool:
        """Hand one event over; tell whether it is handled."""
        envelope = delivery.envelope
        if not self._consumer.holds(delivery):
            return False
        context = Context(
            self.name,
            delivery,
            log=self._log,
            store=self._store,
            stopping=life.stopping,
            owned=lambda: self._consumer.holds(delivery),
        )
        began_s = time.perf_counter()
        with bound(position=envelope.position, trace_id=envelope.trace_id):
            try:
                await self._call(envelope, context)
            except (LogUnavailable, LogFull) as error:
                # Not the event's fault: it goes back untried, and all work waits for the log.
                self._lost = error
                return False
            except LeaseLost as error:
                get_logger("runtime").warning("another member owns this stream now", cause=error.message)
                return False
            except (Exception, SystemExit, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and life.stopping.is_set():
                    raise
                if isinstance(error, ArtifactError | DependencyUnavailable) and passes(error):
                    # Nor is it where the store or something else that is needed cannot be reached or is full.
                    self._lost = error
                    return False
                # Whatever a handler raises is the event's fate and not the process's: it is tried again, then parked.
                get_logger("runtime").warning("failed", attempt=delivery.attempt, exc_info=error)
                self._failed.append((delivery, error))
                return False
            finally:
                HANDLER_SECONDS.labels(self.name).observe(time.perf_counter() - began_s)
        return True

    async def _call(self, envelope: Envelope, context: Context) -> None:
        call: Callable[[Envelope, Context], Any] = self._handler.handle
        if inspect.iscoroutinefunction(call):
            await call(envelope, context)
            return

        def called() -> Any:
            try:
                return call(envelope, context)
            except StopIteration as error:
                # A future cannot carry it, and would never end.
                raise RuntimeError("the handler raised StopIteration") from error

        future = self._threads.submit(copy_context().run, called)
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        result = await asyncio.wrap_future(future)
        if inspect.isawaitable(result):
            # A coroutine behind a plain wrapper, e.g. a decorator.
            await result

    async def _settle(self) -> None:
        """Tell the consumer what became of events; what it cannot take now is told again the next time."""
        self._something_ended.clear()
        if self._done:
            count = len(self._done)
            await self._ask(self._consumer.done, self._done[:count])
            del self._done[:count]
            self._doubted = False
        while self._failed:
            await self._ask(self._consumer.failed, *self._failed[0])
            del self._failed[0]
        if self._untried:
            count = len(self._untried)
            await self._ask(self._consumer.release, self._untried[:count])
            del self._untried[:count]

    async def _drain(self, life: Life) -> bool:
        """Finish what is in hand within the time there is for it, commit it, and give the streams up."""
        until_s = time.monotonic() + life.drain_s
        while self._tasks and (left_s := until_s - time.monotonic()) > 0:
            await asyncio.wait(self._tasks, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            await self._settle_by(until_s)
        late = set(self._tasks)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=_CANCEL_S)
        await self._settle_by(until_s)
        if self._calls or self._tasks:
            # Its streams are not given up: they become free when this process has been silent for long enough.
            get_logger("runtime").warning("work was abandoned; it is not committed and will be done again")
            return False
        await self._ask(self._consumer.close)
        self._threads.shutdown()
        return True

    async def _settle_by(self, until_s: float) -> None:
        """Settle, trying again for as long as there is time while the log is away."""
        while True:
            try:
                return await self._settle()
            except Exception as error:
                if not passes(error) or time.monotonic() > until_s:
                    raise
                await asyncio.sleep(_BUSY_S)

    async def _ask(self, call: Callable[..., T], *arguments: Any) -> T:
        """Call the consumer in a thread, one call at a time."""
        async with self._speaking:
            return await asyncio.to_thread(call, *arguments)
