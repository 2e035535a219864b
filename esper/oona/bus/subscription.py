"""A subscription: one consumer of one group, for the tasks of an event loop.

Its ``Consumer`` works in a thread of its own. Belongs here: which messages are out, when they count as handled, and
that a cancelled call loses none. Does not belong here: the client around it (``client``), or how groups share streams
(``consuming.consumer``).
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from esper.errors import ConsumptionError, EsperError, LeaseLost
from esper.oona.bus.message import OonaMessage, message_of
from esper.oona.cells import Cells
from esper.oona.consuming.consumer import Consumer
from esper.oona.consuming.lanes import Delivery

#: Longest time a thread waits for messages at once; a call that is cancelled ends after it.
_SLICE_S = 0.25
T = TypeVar("T")
_Out = tuple[OonaMessage, Delivery]


class Subscription:
    """One named consumer of one group.

    Attributes:
        topics: The topics it consumes.
        used_at: Time of the event loop when it was last asked for something.
    """

    def __init__(self, topics: Collection[str], make: Callable[[], Consumer]) -> None:
        """Prepare; the group is joined by the first ``consume``.

        Args:
            topics: The topics it consumes.
            make: Makes the consumer; called in its thread.
        """
        self.topics = frozenset(topics)
        self.used_at = asyncio.get_running_loop().time()
        self._make = make
        self._consumer: Consumer | None = None
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="esper-consume")
        self._closing = False
        #: A poll that runs in the thread, or that a cancelled call left there.
        self._polling: asyncio.Future[list[_Out]] | None = None
        #: Came from the log after the call that asked for them was cancelled.
        self._kept: list[_Out] = []
        #: The caller has these, by the identity of the message object.
        self._out: dict[int, _Out] = {}

    @property
    def busy(self) -> bool:
        """Tell whether a call is under way."""
        return self._turn.locked()

    async def consume(self, count: int, timeout_s: float) -> list[OonaMessage]:
        """Count the messages that are out as handled, and return the next ones; raises as ``Consumer.poll``."""
        async with self._turn:
            loop = asyncio.get_running_loop()
            self.used_at = loop.time()
            consumer = await self._joined()
            handled, self._out = self._out, {}
            if handled:
                await self._call(consumer.done, [delivery for _, delivery in handled.values()])
            deadline = loop.time() + timeout_s
            found = await self._next(consumer, count, max(0.0, timeout_s))
            while not found and not self._closing and (left_s := deadline - loop.time()) > 0:
                found = await self._next(consumer, count, left_s)
            self._out = {id(message): (message, delivery) for message, delivery in found}
            self.used_at = loop.time()
            return [message for message, _ in found]

    async def ack(self, messages: Iterable[OonaMessage]) -> list[OonaMessage]:
        """Count messages as handled; return those that do not count, because others have them by now."""
        async with self._turn:
            self.used_at = asyncio.get_running_loop().time()
            taken = self._taken(messages)
            if not taken or self._consumer is None:
                return []
            missed = await self._call(self._consumer.done, [delivery for _, delivery in taken])
            return [message for message, delivery in taken if delivery in missed]

    async def failed(self, message: OonaMessage, error: BaseException) -> bool:
        """Report that a message could not be handled; False if it is not this consumer's any more."""
        async with self._turn:
            self.used_at = asyncio.get_running_loop().time()
            taken = self._taken([message])
            if not taken or self._consumer is None:
                return False
            return await self._call(self._consumer.failed, taken[0][1], error)

    def holds(self, message: OonaMessage) -> bool:
        """Tell whether a message is out from here."""
        return id(message) in self._out

    async def close(self) -> None:
        """Give everything back that is not handled, and leave the group; raises as ``Consumer.close``."""
        self._closing = True
        async with self._turn:
            await self._call(_nothing)  # joining may still be under way for a call that was cancelled
            consumer, self._consumer = self._consumer, None
            if consumer is not None:
                with contextlib.suppress(EsperError):  # what a poll nobody waits for came to; leaving tells it again
                    self._kept += await self._settled()
                back = [delivery for _, delivery in (*self._out.values(), *self._kept)]
                self._out, self._kept = {}, []
                await self._call(_leave, consumer, back)
            self._thread.shutdown(wait=False)

    async def _joined(self) -> Consumer:
        if self._closing:
            raise ConsumptionError("the consumer is closed", hint="use a new client, or do not close this one")
        if self._consumer is not None:
            return self._consumer
        return await self._call(self._join)

    def _join(self) -> Consumer:
        """Make the consumer, in the thread: one that a cancelled call asked for must be closed by somebody."""
        if self._consumer is None:
            self._consumer = self._make()
        return self._consumer

    async def _next(self, consumer: Consumer, count: int, left_s: float) -> list[_Out]:
        """Return what a cancelled call left, or what the log has."""
        self._kept += await self._settled()
        if self._kept:
            kept = [one for one in self._kept if consumer.holds(one[1])]
            found, self._kept = kept[:count], kept[count:]
            return found
        loop = asyncio.get_running_loop()
        self._polling = loop.run_in_executor(self._thread, _poll, consumer, count, min(left_s, _SLICE_S))
        return await self._settled()

    async def _settled(self) -> list[_Out]:
        """Return what the poll in the thread comes to; a caller that is cancelled meanwhile leaves it to the next."""
        if self._polling is None:
            return []
        try:
            found = await asyncio.shield(self._polling)
        except EsperError:
            self._polling = None
            raise
        self._polling = None
        return found

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call in the thread, to its end even if the caller is cancelled."""
        loop = asyncio.get_running_loop()
        return await asyncio.shield(loop.run_in_executor(self._thread, function, *arguments))

    def _taken(self, messages: Iterable[OonaMessage]) -> list[_Out]:
        return [self._out.pop(id(message)) for message in messages if id(message) in self._out]


def _nothing() -> None:
    """Do nothing, after what the thread does now."""


def _poll(consumer: Consumer, count: int, timeout_s: float) -> list[_Out]:
    """Return the next deliveries as messages; one that is no message fails as if its handler had."""
    found: list[_Out] = []
    for delivery in consumer.poll(count, timeout_s):
        try:
            message = message_of(delivery.envelope, delivery.fact)
        except ValueError as error:
            consumer.failed(delivery, error)
        else:
            found.append((message, delivery))
    return [one for one in found if consumer.holds(one[1])]


def _leave(consumer: Consumer, back: Sequence[Delivery]) -> None:
    try:
        consumer.release(back)
    finally:
        consumer.close()


def agree_topics(cells: Cells, group: str, topics: Collection[str]) -> None:
    """See that all consumers of a group name the same topics: its cursors have passed what the others hold.

    Raises:
        ConsumptionError: The group consumes other topics.
    """
    name = f"bus/{group}"
    wanted = sorted(topics)
    while True:
        cell = cells.look(name)
        if cell is not None and cell.value:
            there = msgspec.msgpack.decode(cell.value, type=list[str])
            if there == wanted:
                return
            raise ConsumptionError(
                f"group {group} consumes {', '.join(there)}, not {', '.join(wanted)}",
                hint="name all topics of the group in each call, or use another consumer_group",
            )
        # A cell without a value was left by a client that ended between taking and writing it.
        taken = cells.take(name, f"topics-{uuid.uuid4().hex}", seen=cell)
        if taken is None:
            continue
        try:
            cells.free(cells.write(taken, msgspec.msgpack.encode(wanted)))
        except LeaseLost:
            continue
