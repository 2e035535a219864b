"""The publisher: concurrent publishers share appends, and with them what forcing to disk costs.

Belongs here: gathering events, appending them a topic at a time, and giving each its receipt. Does not belong here:
messages (``message``) or the client's connection (``client``).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from esper.errors import EsperError, EventIdReused, PublishError
from esper.events.envelope import Event
from esper.oona.port import ANY, EventLog, Receipt

#: How long an event may wait for company when there are others, and the most events of one append.
LINGER_S = 0.002
BATCH = 256
#: Bytes of payloads after which no more events join an append.
BATCH_BYTES = 8 << 20
#: Messages on their way; those who publish more wait.
IN_FLIGHT = 4096


class _Item(NamedTuple):
    event: Event
    size_bytes: int
    receipt: asyncio.Future[Receipt]


class Publisher:
    """Appends events for the tasks of one event loop."""

    def __init__(
        self, log: EventLog, *, linger_s: float = LINGER_S, batch: int = BATCH, in_flight: int = IN_FLIGHT
    ) -> None:
        """Publish to a log.

        Args:
            log: The log; it stays open when the publisher closes.
            linger_s: How long an event may wait for company when others are on their way.
            batch: Most events of one append.
            in_flight: Most events on their way before ``publish`` waits.
        """
        self._log = log
        self._linger_s = linger_s
        self._batch = batch
        self._room = asyncio.Semaphore(in_flight)
        self._queue: deque[_Item] = deque()
        self._full = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._closed = False
        self._versions: dict[str, int] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="esper-publish")
        #: Appends made so far.
        self.appends = 0

    async def publish(self, event: Event, size_bytes: int) -> Receipt:
        """Append an event and return its receipt, once it is as durable as the log makes it.

        A cancelled call is taken back if its append has not begun; else it is done and nobody hears of it.

        Args:
            event: The event.
            size_bytes: Bytes of its payload.

        Raises:
            PublishError: The log refused; its error is the cause. After a lost connection the same event can be
                published again.
        """
        async with self._room:
            if self._closed:
                raise PublishError("the client is closed; nothing was published")
            item = _Item(event, size_bytes, asyncio.get_running_loop().create_future())
            self._queue.append(item)
            if len(self._queue) >= self._batch:
                self._full.set()
            if self._running is None:
                self._running = asyncio.create_task(self._run(), name="esper-publisher")
            return await item.receipt

    async def close(self) -> None:
        """Publish what is on its way, then take no more; closing twice is fine."""
        self._closed = True
        if self._running is not None:
            await asyncio.shield(self._running)
        self._thread.shutdown(wait=False)

    async def _run(self) -> None:
        try:
            # Tasks that are ready too get to publish first; a lone publisher then goes at once.
            await asyncio.sleep(0)
            while self._queue:
                if 1 < len(self._queue) < self._batch:
                    await self._linger()
                await self._append_some()
        finally:
            self._running = None
            for item in self._queue:  # only where the event loop is being torn down
                item.receipt.cancel()

    async def _linger(self) -> None:
        self._full.clear()
        try:
            async with asyncio.timeout(self._linger_s):
                await self._full.wait()
        except TimeoutError:
            return

    async def _append_some(self) -> None:
        by_stream: dict[str, list[_Item]] = {}
        count = size_bytes = 0
        while self._queue and count < self._batch and size_bytes < BATCH_BYTES:
            item = self._queue.popleft()
            count, size_bytes = count + 1, size_bytes + item.size_bytes
            if not item.receipt.done():  # else it was cancelled
                by_stream.setdefault(item.event.fact.stream, []).append(item)
        loop = asyncio.get_running_loop()
        for stream, items in by_stream.items():
            events = [item.event for item in items]
            outcomes = await loop.run_in_executor(self._thread, self._append, stream, events)
            for item, outcome in zip(items, outcomes, strict=True):
                if item.receipt.done():
                    continue
                if isinstance(outcome, Receipt):
                    item.receipt.set_result(outcome)
                else:
                    item.receipt.set_exception(outcome)

    def _append(self, stream: str, events: list[Event]) -> list[Receipt | Exception]:
        """Append events of one stream; returns for each its receipt or what went wrong. Runs in the thread."""
        try:
            if stream not in self._versions:
                self._versions[stream] = self._log.stream_version(stream)
            known = self._versions[stream]
            receipt = self._log.append(events, stream=stream, expected=ANY)
        except EsperError as error:
            if isinstance(error, EventIdReused) and len(events) > 1:
                return [outcome for event in events for outcome in self._append(stream, [event])]
            return [_refused(event, error) for event in events]
        except Exception as error:  # a task must not wait for ever on a fault of ours
            return [error for _ in events]
        self.appends += 1
        self._versions[stream] = max(known, receipt.version)
        if len(events) > 1 and (receipt.version <= known or receipt.last - receipt.first + 1 != len(events)):
            # All of them were there before, each at a place of its own.
            return [outcome for event in events for outcome in self._append(stream, [event])]
        return list(_spread(receipt, len(events)))


def _spread(receipt: Receipt, count: int) -> Iterator[Receipt]:
    """Yield the receipt of each event of a batch."""
    for place in range(count):
        position = receipt.first + place
        yield Receipt(position, position, receipt.version - count + 1 + place, receipt.fsynced, receipt.replicas)


def _refused(event: Event, error: EsperError) -> PublishError:
    refused = PublishError(
        f"message {getattr(event.fact, 'message_id', '')} was not published: {error.message}", hint=error.hint or None
    )
    refused.__cause__ = error
    return refused
