"""The client of the bus: the seed's ``OonaClient``, publishing to the log and consuming from it in async programs.

Belongs here: the calls, their errors, and what is open. Does not belong here: sharing appends (``publisher``), what is
out and when it counts as handled (``subscription``), or what a message can carry (``message``).
"""

from __future__ import annotations

import asyncio
import difflib
import random
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

from esper.errors import (
    BusConnectionError,
    BusError,
    ConsumptionError,
    EsperError,
    LogError,
    LogUnavailable,
    PublishError,
)
from esper.ids import new_trace_id
from esper.names import TopicNames
from esper.oona.bus.health import log_health
from esper.oona.bus.message import OonaMessage, event_of
from esper.oona.bus.publisher import Publisher
from esper.oona.bus.subscription import Subscription, agree_topics
from esper.oona.consuming.consumer import END, Consumer
from esper.oona.open import open_log
from esper.oona.port import EventLog, Receipt
from esper.redact import mask_text

_MOST_COUNT = 10_000


class OonaClient:
    """A client of the message bus, for the tasks of one event loop.

    Delivery is at least once: a message counts as handled when the next ``consume`` of that consumer is called or
    ``ack`` is called, whichever is first. What a consumer held when it died or was closed goes to the others of its
    group. All published messages of one topic stay in order, so one consumer of a group has them at a time.
    """

    def __init__(
        self,
        redis_url: str = "redis://localhost:6379",
        *,
        sender_id: str = "oona-client",
        lease_s: float = 10.0,
        idle_s: float = 300.0,
        retries: int = 3,
        retry_delay_s: float = 1.0,
    ) -> None:
        """Name the bus; nothing is opened before ``connect`` or the first other call.

        Args:
            redis_url: URL of any log: ``redis://``, ``rediss://``, ``sqlite:///`` or ``memory://``.
            sender_id: Who parks messages that cannot be read.
            lease_s: How long a dead consumer's messages stay its own, in a group that is new.
            idle_s: After how long without a call a living consumer's messages go to the others of its group.
            retries: How often connecting is tried.
            retry_delay_s: Longest pause after the first try; it doubles with each.
        """
        self.redis_url = redis_url
        self._sender_id = sender_id
        self._trace_id = new_trace_id()
        self._lease_s = lease_s
        self._idle_s = idle_s
        self._retries = retries
        self._retry_delay_s = retry_delay_s
        self._jitter = random.Random()  # noqa: S311 - spreads tries, keeps no secret
        self._opening = asyncio.Lock()
        self._log: EventLog | None = None
        self._publisher: Publisher | None = None
        self._subscriptions: dict[tuple[str, str], Subscription] = {}
        self._known_topics: set[str] = set()
        self._sweeping: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """Open the log, trying again while its server cannot be reached; nothing happens if it is open.

        Raises:
            ConnectionError: It cannot be reached, refuses this user, or does not keep what it acknowledges.
            ConfigError: The URL names no log.
        """
        await self._connected()

    async def publish(self, message: OonaMessage) -> Receipt:
        """Append a message to the log and return its receipt.

        Publishing the same message again, say after an error, changes nothing and returns the first receipt.

        Args:
            message: What to publish.

        Raises:
            ConnectionError: There is no connection, and none can be made.
            PublishError: The log refused it, or went away meanwhile; the cause is attached.
        """
        try:
            event, size_bytes = event_of(message)
        except EsperError as error:
            raise PublishError(
                f"message {message.event_id} cannot be published: {error.message}", hint=error.hint
            ) from error
        await self._connected()
        publisher = self._publisher
        if publisher is None:
            raise PublishError("the client is closed; nothing was published")
        return await publisher.publish(event, size_bytes)

    async def consume(
        self,
        streams: Sequence[str],
        consumer_group: str,
        consumer_name: str,
        count: int = 10,
        timeout: int = 1000,
        *,
        start: Literal["beginning", "end"] | int = "beginning",
    ) -> list[OonaMessage]:
        """Return the next messages of some topics, in the order of the log.

        The messages that this consumer was given before count as handled by this call. Facts that Esper's own parts
        wrote to these topics come as messages too.

        Args:
            streams: Topics; one that is neither in ``TopicNames`` nor was ever published to is an error.
            consumer_group: The group that shares the messages. All calls of a group name the same topics.
            consumer_name: This member of the group.
            count: At most so many messages.
            timeout: How long to wait for one, in milliseconds; 0 does not wait.
            start: Where a new group begins: at the ``beginning``, at the ``end``, or after a position of the log.

        Raises:
            ConnectionError: There is no connection, and none can be made.
            ConsumptionError: An argument cannot be used, or the log refused or went away; nothing is lost by it.
        """
        topics = _checked(streams, count, timeout, start)
        log = await self._connected()
        try:
            found = self._subscriptions.get((consumer_group, consumer_name))
            if found is None or found.topics != topics:
                await self._require_topics(log, topics)
                await asyncio.to_thread(agree_topics, log.cells, consumer_group, topics)
                found = self._subscribe(log, topics, consumer_group, consumer_name, start)
            return await found.consume(count, timeout / 1000)
        except BusError:
            raise
        except EsperError as error:
            raise ConsumptionError(
                f"{consumer_name} of {consumer_group} has no messages: {error.message}", hint=error.hint
            ) from error

    async def ack(self, messages: Iterable[OonaMessage]) -> list[OonaMessage]:
        """Count messages as handled.

        Args:
            messages: Messages from the last ``consume`` of any consumer of this client, the objects themselves.

        Returns:
            Those that do not count, because other consumers have them by now: they are handled again there.

        Raises:
            ConsumptionError: The log refused or went away; the messages may come again.
        """
        given = list(messages)
        missed: list[OonaMessage] = []
        try:
            for one in list(self._subscriptions.values()):
                if held := [message for message in given if one.holds(message)]:
                    missed += await one.ack(held)
        except EsperError as error:
            raise ConsumptionError(f"messages were not acknowledged: {error.message}", hint=error.hint) from error
        return missed

    async def failed(self, message: OonaMessage, error: BaseException) -> bool:
        """Say that a message could not be handled: it comes again later, and is parked after the fifth try.

        Args:
            message: A message from the last ``consume`` of any consumer of this client, the object itself.
            error: What went wrong; kept with a parked message.

        Returns:
            Whether it counts; not if the message is no longer this client's.

        Raises:
            ConsumptionError: The log refused or went away; the message comes again.
        """
        try:
            for one in list(self._subscriptions.values()):
                if one.holds(message):
                    return await one.failed(message, error)
        except EsperError as refused:
            raise ConsumptionError(f"a failure was not noted: {refused.message}", hint=refused.hint) from refused
        return False

    async def health_check(self) -> dict[str, Any]:
        """Return how the bus is; never raises.

        Always there: ``status`` (``healthy``, ``unhealthy``, ``disconnected`` or ``error``), ``connected``. Of an open
        log: ``latency_ms``, ``head_position``, ``fsynced``, ``groups`` and ``troubles``; of one on Redis also version,
        clients, memory and its bound, and the state of the append-only file.
        """
        log = self._log
        if log is None:
            return {"status": "disconnected", "connected": False, "error": "Not connected to Redis"}
        try:
            began = time.perf_counter()
            await asyncio.to_thread(log.end)
            latency_ms = 1000 * (time.perf_counter() - began)
            return {"connected": True, "latency_ms": round(latency_ms, 2), **(await asyncio.to_thread(log_health, log))}
        except Exception as error:  # whoever asks for health wants an answer, not an error
            return {"status": "error", "connected": False, "error": mask_text(f"{type(error).__name__}: {error}")}

    async def close(self) -> None:
        """Publish what is on its way, give back what is not handled, and close; closing twice is fine.

        Raises:
            ConnectionError: The log cannot be reached; what the consumers held goes to others when their leases end.
        """
        self._closed = True
        async with self._opening:
            if self._sweeping is not None:
                self._sweeping.cancel()
                await asyncio.wait([self._sweeping])
                self._sweeping = None
            publisher, self._publisher = self._publisher, None
            log, self._log = self._log, None
            subscriptions, self._subscriptions = list(self._subscriptions.values()), {}
            if log is None:
                return
            try:
                if publisher is not None:
                    await publisher.close()
                outcomes = await asyncio.gather(*(one.close() for one in subscriptions), return_exceptions=True)
            finally:
                await asyncio.to_thread(log.close)
        for outcome in outcomes:
            if isinstance(outcome, EsperError):
                raise BusConnectionError(f"a consumer could not leave its group: {outcome.message}") from outcome
            if isinstance(outcome, BaseException):
                raise outcome

    async def _connected(self) -> EventLog:
        async with self._opening:
            if self._closed:
                raise BusConnectionError("the client is closed", hint="make a new one")
            if self._log is None:
                self._log = await self._open()
                self._publisher = Publisher(self._log)
            return self._log

    async def _open(self) -> EventLog:
        for attempt in range(1, self._retries + 1):
            opening = asyncio.ensure_future(asyncio.to_thread(open_log, self.redis_url))
            try:
                return await asyncio.shield(opening)
            except asyncio.CancelledError:
                opening.add_done_callback(_close_unwanted)
                raise
            except LogError as error:
                if attempt == self._retries or not _may_pass(error):
                    raise BusConnectionError(
                        f"{mask_text(self.redis_url)} cannot be used: {error.message}", hint=error.hint
                    ) from error
            await asyncio.sleep(self._retry_delay_s * 2 ** (attempt - 1) * self._jitter.uniform(0.5, 1.0))
        raise BusConnectionError(f"{mask_text(self.redis_url)} was not tried", hint="set retries to 1 or more")

    def _subscribe(
        self, log: EventLog, topics: frozenset[str], group: str, name: str, start: Literal["beginning", "end"] | int
    ) -> Subscription:
        key = (group, name)
        found = self._subscriptions.get(key)
        if found is None:
            position = {"beginning": 0, "end": END}.get(start, start) if isinstance(start, str) else start
            found = self._subscriptions[key] = Subscription(
                topics,
                lambda: Consumer(
                    log,
                    group=group,
                    member=name,
                    topics=topics,
                    start=int(position),
                    ttl_s=self._lease_s,
                    sender_id=self._sender_id,
                    trace_id=self._trace_id,
                ),
            )
        if self._sweeping is None:
            self._sweeping = asyncio.create_task(self._sweep(), name="esper-bus-sweep")
        return found

    async def _require_topics(self, log: EventLog, topics: frozenset[str]) -> None:
        for topic in sorted(topics - self._known_topics - {str(name) for name in TopicNames}):
            if await asyncio.to_thread(log.stream_version, f"message/{topic}") == 0:
                near = difflib.get_close_matches(topic, [str(name) for name in TopicNames], n=1)
                raise ConsumptionError(
                    f"there is no topic {topic!r}, and nothing was ever published to it",
                    hint=f"did you mean {near[0]!r}?" if near else "publish to it first, or name one of TopicNames",
                    topic=topic,
                )
            self._known_topics.add(topic)

    async def _sweep(self) -> None:
        """Close consumers that nobody asks any more: what they were given belongs to their group."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._idle_s / 10)
            for key, one in list(self._subscriptions.items()):
                if not one.busy and loop.time() - one.used_at > self._idle_s:
                    del self._subscriptions[key]
                    try:
                        await one.close()
                    except LogUnavailable:
                        continue  # its leases end by themselves


def _checked(streams: Sequence[str], count: int, timeout: int, start: Any) -> frozenset[str]:
    if isinstance(streams, str) or not streams:
        raise ConsumptionError(f"streams is {streams!r}, not a list of topics", hint="pass streams=[topic, ...]")
    if not 1 <= count <= _MOST_COUNT:
        raise ConsumptionError(f"count is {count}", hint=f"give a number from 1 to {_MOST_COUNT}")
    if not isinstance(timeout, int | float) or not timeout >= 0:
        raise ConsumptionError(f"timeout is {timeout!r}", hint="give milliseconds; 0 does not wait")
    if start not in {"beginning", "end"} and not (isinstance(start, int) and start >= 0):
        raise ConsumptionError(f"start is {start!r}", hint='give "beginning", "end" or a position of the log')
    return frozenset(str(topic).removeprefix("esper:") for topic in streams)


def _may_pass(error: LogError) -> bool:
    """Tell whether connecting may go well a moment later."""
    cause = error.__cause__
    if not isinstance(error, LogUnavailable) or not isinstance(cause, Exception):
        return False
    from esper.oona.redis.errors import is_passing

    return isinstance(cause, OSError) or is_passing(cause)


def _close_unwanted(opening: asyncio.Future[EventLog]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
