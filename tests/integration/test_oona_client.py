"""The client of the bus, on real logs: nothing published is missed, doubled, lost in a crash or stuck."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import enum
import math
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from faults.proxy import Proxy
from pydantic import ValidationError

from esper.errors import EventIdReused, EventTooLarge, LogUnavailable, SchemaError
from esper.events import Event
from esper.events.message import MessagePublished
from esper.events.operator import NoteAdded
from esper.ids import derived_id
from esper.oona import (
    ANY,
    ConnectionError,  # noqa: A004
    ConsumptionError,
    OonaClient,
    OonaMessage,
    PublishError,
    Receipt,
    TopicNames,
    open_log,
)
from esper.oona.consuming.parking import parked_events
from tests.servers import RedisServer, free_port

TOPIC = TopicNames.TELEMETRY_SEED_HEALTH
#: A lease that ends soon, where a test waits for its end.
LEASE_S = 0.6
T = TypeVar("T")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("bus")) as server:
        yield server


@pytest.fixture(params=["redis", "sqlite"])
def url(request: pytest.FixtureRequest, server: RedisServer, tmp_path: Path) -> str:
    """Return the URL of a new log."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/log.db"
    return f"{server.url}?namespace=n{uuid.uuid4().hex[:12]}"


@pytest.fixture
def redis_url(server: RedisServer) -> str:
    return f"{server.url}?namespace=n{uuid.uuid4().hex[:12]}"


def on_bus(url: str, work: Callable[[OonaClient], Awaitable[T]], **options: Any) -> T:
    """Do some work with a connected client."""

    async def main() -> T:
        async with OonaClient(url, **options) as client:
            return await work(client)

    return asyncio.run(main())


def message(number: int, topic: str = TOPIC, **more: Any) -> OonaMessage:
    return OonaMessage(sender_id="test", trace_id="trace-1", topic=topic, payload={"number": number}, **more)


def numbers(messages: list[OonaMessage]) -> list[int]:
    return [one.payload["number"] for one in messages]


async def take(client: OonaClient, name: str = "one", count: int = 10, timeout: int = 5000, **more: Any) -> list[int]:
    return numbers(await client.consume([TOPIC], "group", name, count, timeout, **more))


@asynccontextmanager
async def two_clients(url: str, **options: Any) -> AsyncIterator[tuple[OonaClient, OonaClient]]:
    async with OonaClient(url, **options) as first, OonaClient(url, **options) as second:
        yield first, second


# --- what is published


def test_a_group_begins_at_the_beginning_with_what_was_published_before_it_was_there(url: str) -> None:
    async def work(client: OonaClient) -> None:
        sent = [message(number) for number in range(5)]
        for one in sent:
            await client.publish(one)
        assert await client.consume([TOPIC], "group", "one", timeout=5000) == sent
        assert await client.consume([TOPIC], "group", "one", timeout=0) == []

    on_bus(url, work)


def test_a_group_can_begin_at_the_end_or_after_a_position(url: str) -> None:
    async def work(client: OonaClient) -> None:
        receipts = [await client.publish(message(number)) for number in range(4)]
        assert await client.consume([TOPIC], "late", "one", timeout=0, start="end") == []
        there = await client.consume([TOPIC], "middle", "one", timeout=5000, start=receipts[1].last)
        assert numbers(there) == [2, 3]
        await client.publish(message(4))
        assert numbers(await client.consume([TOPIC], "late", "one", timeout=5000)) == [4]

    on_bus(url, work)


def test_publish_returns_the_receipt_and_the_fact_is_in_the_log(url: str) -> None:
    sent = message(1)

    async def work(client: OonaClient) -> Receipt:
        await client.publish(message(0))
        return await client.publish(sent)

    receipt = on_bus(url, work)
    assert (receipt.first, receipt.last, receipt.version, receipt.fsynced) == (2, 2, 2, True)
    with open_log(url) as log:
        (found,) = log.read(1)
    assert (found.type, found.topic, found.stream) == ("MessagePublished", TOPIC, f"message/{TOPIC}")
    assert (found.sender_id, found.event_id) == ("test", derived_id("message", sent.event_id))
    assert len(found.trace_id) == 32


def test_publishing_the_same_message_again_changes_nothing(url: str) -> None:
    async def work(client: OonaClient) -> None:
        one, two = message(1), message(2)
        first = await client.publish(one)
        assert await client.publish(two) != first
        assert await client.publish(one) == first
        again = await asyncio.gather(*(client.publish(sent) for sent in (two, one, message(3), one)))
        assert [receipt.last for receipt in again] == [2, 1, 3, 1]
        whole = await asyncio.gather(*(client.publish(sent) for sent in (two, one)))
        assert [receipt.last for receipt in whole] == [2, 1]
        assert await take(client) == [1, 2, 3]

    on_bus(url, work)


def test_another_message_under_the_same_id_is_an_error_and_hurts_no_other(url: str) -> None:
    async def work(client: OonaClient) -> None:
        await client.publish(message(1, event_id="mine"))
        outcomes = await asyncio.gather(
            client.publish(message(2)),
            client.publish(message(3, event_id="mine")),
            client.publish(message(4)),
            return_exceptions=True,
        )
        assert isinstance(outcomes[1], PublishError)
        assert isinstance(outcomes[1].__cause__, EventIdReused)
        assert await take(client) == [1, 2, 4]

    on_bus(url, work)


def test_many_concurrent_publishers_share_appends_and_each_gets_its_own_receipt(url: str) -> None:
    async def work(client: OonaClient) -> None:
        topics = [TOPIC, TopicNames.SYSTEM_EVENTS_EPOCH]
        sent = [message(number, topics[number % 2]) for number in range(600)]
        receipts = await asyncio.gather(*(client.publish(one) for one in sent))
        assert sorted(receipt.last for receipt in receipts) == list(range(1, 601))
        assert client._publisher is not None
        assert client._publisher.appends <= 8
        with open_log(url) as log:
            by_position = {one.position: one for one in log.read()}
        for one, receipt in zip(sent, receipts, strict=True):
            found = by_position[receipt.first]
            assert found.event_id == derived_id("message", one.event_id)
            assert (found.position, found.version) == (receipt.last, receipt.version)
        for topic in topics:
            of_topic = [receipt.last for one, receipt in zip(sent, receipts, strict=True) if one.topic == topic]
            assert of_topic == sorted(of_topic)

    on_bus(url, work)


def test_messages_on_their_way_have_a_bound(redis_url: str) -> None:
    async def work(client: OonaClient) -> None:
        publisher = client._publisher
        assert publisher is not None
        publisher._room = asyncio.Semaphore(10)
        sending = [asyncio.create_task(client.publish(message(number))) for number in range(50)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(publisher._queue) <= 10
        await asyncio.gather(*sending)

    on_bus(redis_url, work)


def test_a_cancelled_publish_leaves_the_others_alone(url: str) -> None:
    async def work(client: OonaClient) -> None:
        sending = [asyncio.create_task(client.publish(message(number))) for number in range(20)]
        await asyncio.sleep(0)
        sending[3].cancel()
        outcomes = await asyncio.gather(*sending, return_exceptions=True)
        assert isinstance(outcomes[3], asyncio.CancelledError)
        assert [number for number, one in enumerate(outcomes) if not isinstance(one, Receipt)] == [3]
        assert await take(client, count=100) == [number for number in range(20) if number != 3]

    on_bus(url, work)


def test_close_publishes_what_is_on_its_way(url: str) -> None:
    async def main() -> list[Receipt]:
        client = OonaClient(url)
        await client.connect()
        sending = [asyncio.create_task(client.publish(message(number))) for number in range(100)]
        await asyncio.sleep(0)
        await client.close()
        await client.close()
        return list(await asyncio.gather(*sending))

    assert sorted(receipt.last for receipt in asyncio.run(main())) == list(range(1, 101))


# --- what a message can carry


class Colour(enum.Enum):
    RED = "red"


def test_payloads_arrive_as_they_were_sent(url: str) -> None:
    moment = dt.datetime(2026, 7, 1, 12, 30, 1, 250_001, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    payload = {
        "nothing": None,
        "loss": [math.inf, -math.inf, 1e-300, 0.1],
        "bytes": b"\x00\xff",
        "at": moment,
        "big": (1 << 64) - 1,
        "small": -(1 << 63),
        "deep": {"täxt": [True, {"x": []}]},
    }
    sent = OonaMessage(sender_id="test", topic=TOPIC, payload=payload, timestamp=moment)

    async def work(client: OonaClient) -> None:
        await client.publish(sent)
        await client.publish(message(1, event_id="nan").model_copy(update={"payload": {"loss": math.nan}}))
        first, second = await client.consume([TOPIC], "group", "one", timeout=5000)
        assert first == sent
        assert (first.timestamp, first.payload["at"]) == (moment, moment)
        assert first.payload["at"].utcoffset() == dt.timedelta(0)
        assert math.isnan(second.payload["loss"])

    on_bus(url, work)


def test_uuids_tuples_sets_and_enumerations_arrive_as_plain_data(redis_url: str) -> None:
    which = uuid.uuid4()

    async def work(client: OonaClient) -> None:
        plain = {"id": which, "pair": (1, 2), "set": frozenset([3]), "topic": TOPIC, "colour": Colour.RED}
        await client.publish(message(0).model_copy(update={"payload": plain}))
        (found,) = await client.consume([TOPIC], "group", "one", timeout=5000)
        assert found.payload == {"id": str(which), "pair": [1, 2], "set": [3], "topic": TOPIC.value, "colour": "red"}
        assert type(found.payload["topic"]) is str

    on_bus(redis_url, work)


@pytest.mark.parametrize(
    ("payload", "where"),
    [
        ({"a": [1, {"b": object()}]}, r"payload\.a\[1\]\.b is a object"),
        ({"a": {1: 2}}, r"a key of payload\.a is 1"),
        ({"a": 1 << 64}, r"payload\.a is an integer of 65 bits"),
        ({"a": dt.datetime(2026, 1, 1)}, r"payload\.a is a time without a zone"),  # noqa: DTZ001
        ({"a": 1j}, r"payload\.a is a complex"),
        ({"a": "\ud800"}, r"payload\.a is no text"),
        ({"a": Path()}, r"payload\.a is a PosixPath"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name_and_nothing_is_published(
    redis_url: str, payload: dict[str, Any], where: str
) -> None:
    async def work(client: OonaClient) -> None:
        with pytest.raises(PublishError, match=where) as refused:
            await client.publish(message(0).model_copy(update={"payload": payload}))
        assert isinstance(refused.value.__cause__, SchemaError)
        assert (await client.health_check())["head_position"] == 0

    on_bus(redis_url, work)


def test_a_payload_that_holds_itself_or_is_too_large_is_refused(redis_url: str) -> None:
    endless: dict[str, Any] = {}
    endless["self"] = endless

    async def work(client: OonaClient) -> None:
        with pytest.raises(PublishError, match="nested more than 64 deep"):
            await client.publish(message(0).model_copy(update={"payload": endless}))
        with pytest.raises(PublishError, match="the log takes 1048576") as refused:
            await client.publish(message(0).model_copy(update={"payload": {"a": bytes(1 << 20)}}))
        assert isinstance(refused.value.__cause__, EventTooLarge)

    on_bus(redis_url, work)


def test_large_messages_do_not_make_one_append_too_large(redis_url: str) -> None:
    async def work(client: OonaClient) -> None:
        large = [message(number).model_copy(update={"payload": {"a": bytes(1_000_000)}}) for number in range(80)]
        receipts = await asyncio.gather(*(client.publish(one) for one in large))
        assert [receipt.last for receipt in receipts] == list(range(1, 81))

    on_bus(redis_url, work)


def test_a_message_needs_a_sender_and_a_time_with_a_zone() -> None:
    with pytest.raises(ValidationError, match="sender_id"):
        OonaMessage(topic=TOPIC)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="timestamp"):
        message(1, timestamp=dt.datetime(2026, 1, 1))  # noqa: DTZ001
    made = message(1)
    assert uuid.UUID(made.event_id)
    assert made.timestamp.utcoffset() == dt.timedelta(0)
    assert message(1, topic="telemetry.seed.health").topic is TopicNames.TELEMETRY_SEED_HEALTH


def test_a_topic_nobody_listed_is_data_and_a_mistyped_one_is_an_error(url: str) -> None:
    async def work(client: OonaClient) -> None:
        with pytest.raises(ConsumptionError, match=r"there is no topic 'telemetry\.sed\.health'") as refused:
            await client.consume(["telemetry.sed.health"], "group", "one")
        assert refused.value.hint == "did you mean 'telemetry.seed.health'?"
        await client.publish(message(1, "lab.bench-7"))
        (found,) = await client.consume(["lab.bench-7"], "group", "one", timeout=5000)
        assert (found.topic, found.payload) == ("lab.bench-7", {"number": 1})
        for bad in ("", "@meta", "a/b", "a b", "x" * 201):
            with pytest.raises(PublishError, match="no name of a topic"):
                await client.publish(message(1, bad))

    on_bus(url, work)


def test_facts_of_a_topic_come_as_messages_too_in_the_order_of_the_log(url: str) -> None:
    note = NoteAdded(run_id="run-1", actor="ada", text="well done")

    async def work(client: OonaClient) -> None:
        topic = note.topic_name
        await client.publish(message(1, topic))
        with open_log(url) as log:
            event = Event(fact=note, event_id=b"n" * 16, sender_id="operator:ada", trace_id="ab" * 16)
            log.append([event], stream=note.stream, expected=ANY)
        await client.publish(message(2, topic))
        first, second, third = await client.consume([topic], "group", "one", timeout=5000)
        assert (first.payload, third.payload) == ({"number": 1}, {"number": 2})
        assert (second.type, second.sender_id, second.trace_id) == ("NoteAdded", "operator:ada", "ab" * 16)
        assert second.payload == {"run_id": "run-1", "actor": "ada", "text": "well done"}
        assert uuid.UUID(second.event_id).bytes == b"n" * 16
        with pytest.raises(PublishError, match="is a NoteAdded of the log"):
            await client.publish(second)

    on_bus(url, work)


# --- when a message counts as handled


def test_messages_count_as_handled_by_the_next_consume_and_not_before(url: str) -> None:
    async def work(client: OonaClient) -> None:
        for number in range(6):
            await client.publish(message(number))
        assert await take(client, count=2) == [0, 1]
        assert await take(client, count=2) == [2, 3]
        await client.close()
        async with OonaClient(url, lease_s=LEASE_S) as later:
            assert await take(later) == [2, 3, 4, 5]

    on_bus(url, work, lease_s=LEASE_S)


def test_acknowledged_messages_do_not_come_again(url: str) -> None:
    async def work(client: OonaClient) -> None:
        for number in range(6):
            await client.publish(message(number))
        found = await client.consume([TOPIC], "group", "one", 4, 5000)
        assert await client.ack(found[:3]) == []
        assert await client.ack(found[:3]) == []
        await client.close()
        async with OonaClient(url, lease_s=LEASE_S) as later:
            assert await take(later) == [3, 4, 5]

    on_bus(url, work, lease_s=LEASE_S)


def test_a_failed_message_comes_again_before_the_later_ones(url: str) -> None:
    async def work(client: OonaClient) -> None:
        for number in range(4):
            await client.publish(message(number))
        found = await client.consume([TOPIC], "group", "one", 3, 5000)
        await client.ack(found[:1])
        assert await client.failed(found[1], RuntimeError("not now"))
        assert not await client.failed(found[1], RuntimeError("not now"))
        assert await take(client) == [1, 2, 3]

    on_bus(url, work)


def test_a_message_that_fails_every_time_is_parked_with_its_cause(redis_url: str) -> None:
    async def work(client: OonaClient) -> None:
        await client.publish(message(0))
        await client.publish(message(1, "lab.other"))
        for _ in range(5):
            (found,) = await client.consume([TOPIC], "group", "one", timeout=20_000)
            await client.failed(found, RuntimeError("this one never works"))
        assert await take(client, timeout=0) == []
        health = await client.health_check()
        assert health["groups"]["group"]["parked"] == 1

    on_bus(redis_url, work)
    with open_log(redis_url) as log:
        (parked,) = parked_events(log, "group")
    assert (parked.position, parked.attempts, parked.message) == (1, 5, "this one never works")


def test_an_entry_that_cannot_be_read_is_parked_and_the_topic_goes_on_when_it_is_skipped(redis_url: str) -> None:
    bad = MessagePublished(topic=TOPIC, message_id="x", trace="x", published_at=1 << 62, payload={})

    async def work(client: OonaClient) -> None:
        await client.publish(message(0))
        with open_log(redis_url) as log:
            event = Event(fact=bad, event_id=b"b" * 16, sender_id="elsewhere", trace_id="0" * 32)
            log.append([event], stream=bad.stream, expected=ANY)
        await client.publish(message(2))
        assert await take(client) == [0]
        deadline = asyncio.get_running_loop().time() + 30
        while not (await client.health_check())["groups"]["group"]["parked"]:
            assert await take(client, timeout=200) == []
            assert asyncio.get_running_loop().time() < deadline
        with open_log(redis_url) as log:
            from esper.oona.consuming.parking import skip

            skip(log, "group", 2, actor="ada", reason="no time is so late", trace_id="0" * 32)
        assert await take(client) == [2]

    on_bus(redis_url, work)


def test_a_cancelled_consume_loses_nothing_and_handles_nothing(url: str) -> None:
    async def work(client: OonaClient) -> None:
        waiting = asyncio.create_task(client.consume([TOPIC], "group", "one", 10, 60_000))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        for number in range(3):
            await client.publish(message(number))
        found: list[int] = []
        for turn in range(40):
            waiting = asyncio.create_task(client.consume([TOPIC], "group", "one", 1, 5000))
            for _ in range(turn % 7):
                await asyncio.sleep(0.001 * (turn % 3))
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                found += numbers(await waiting)
        while len(found) < 3:
            found += await take(client)
        assert found == [0, 1, 2]

    on_bus(url, work)


def test_a_consumer_whose_first_call_is_cancelled_is_closed_with_the_client(url: str) -> None:
    async def work(client: OonaClient) -> None:
        for pauses in range(12):
            joining = asyncio.create_task(client.consume([TOPIC], "group", f"member-{pauses}", 10, 60_000))
            await asyncio.sleep(0.002 * pauses)
            joining.cancel()
            with pytest.raises(asyncio.CancelledError):
                await joining

    on_bus(url, work)
    assert [one.name for one in threading.enumerate() if one.name.startswith("esper-lease")] == []


def test_a_wait_ends_when_a_message_comes_and_at_its_timeout(url: str) -> None:
    async def work(client: OonaClient) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await take(client, timeout=300) == []
        assert 0.3 <= loop.time() - began < 3
        waiting = asyncio.create_task(take(client, timeout=60_000))
        await asyncio.sleep(0.1)
        await client.publish(message(7))
        assert await waiting == [7]
        began = loop.time()
        assert await take(client, timeout=0) == []
        assert loop.time() - began < 2

    on_bus(url, work)


def test_a_wait_longer_than_the_time_a_reply_may_take_ends_without_an_error(redis_url: str) -> None:
    async def work(client: OonaClient) -> None:
        link: Any = client._log
        link.link._timeout_s = link._timeout_s = 1.0
        assert await take(client, timeout=3000) == []

    on_bus(redis_url, work)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"streams": []}, "not a list of topics"),
        ({"streams": "telemetry.seed.health"}, "not a list of topics"),
        ({"count": 0}, "count is 0"),
        ({"timeout": -1}, "timeout is -1"),
        ({"timeout": None}, "timeout is None"),
        ({"start": "somewhere"}, "start is 'somewhere'"),
        ({"consumer_group": "a/b"}, "no name of a group"),
        ({"consumer_name": ""}, "no name of a member"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(redis_url: str, arguments: dict[str, Any], told: str) -> None:
    async def work(client: OonaClient) -> None:
        with pytest.raises(ConsumptionError, match=told):
            await client.consume(**{"streams": [TOPIC], "consumer_group": "g", "consumer_name": "c", **arguments})

    on_bus(redis_url, work)


def test_a_group_keeps_its_topics(url: str) -> None:
    async def work(client: OonaClient) -> None:
        await take(client, timeout=0)
        with pytest.raises(ConsumptionError, match=r"group group consumes telemetry\.seed\.health, not"):
            await client.consume([TOPIC, TopicNames.TRAINING_RUNS], "group", "two")
        both = [TopicNames.TRAINING_RUNS, TOPIC]
        assert await client.consume(both, "both", "one", timeout=0) == []
        assert await client.consume(both[::-1], "both", "two", timeout=0) == []

    on_bus(url, work)


# --- several consumers


def test_groups_each_get_everything_and_members_of_one_share_it(redis_url: str) -> None:
    async def main() -> None:
        async with two_clients(redis_url, lease_s=LEASE_S) as (first, second):
            topics = [f"lab.{number}" for number in range(12)]
            sent = [message(number, topic) for number, topic in enumerate(topics * 5)]
            await asyncio.gather(*(first.publish(one) for one in sent))
            got: dict[str, list[int]] = {"one": [], "two": []}

            async def member(client: OonaClient, name: str) -> None:
                while len({*got["one"], *got["two"]}) < len(sent):
                    got[name] += numbers(await client.consume(topics, "shared", name, 5, 300))

            async with asyncio.timeout(60):
                await asyncio.gather(member(first, "one"), member(second, "two"))
            assert sorted({*got["one"], *got["two"]}) == list(range(60))
            assert sorted(numbers(await first.consume(topics, "alone", "one", 100, 5000))) == list(range(60))

    asyncio.run(main())


CONSUMER = """
import asyncio, sys
from esper.oona import OonaClient

async def main():
    client = OonaClient(sys.argv[1], lease_s=float(sys.argv[2]))
    found = await client.consume(["telemetry.seed.health"], "group", "doomed", 3, 10_000)
    print([one.payload["number"] for one in found], flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_what_a_killed_consumer_held_goes_to_another(url: str) -> None:
    async def send(client: OonaClient) -> None:
        for number in range(5):
            await client.publish(message(number))

    on_bus(url, send)
    command = [sys.executable, "-c", CONSUMER, url, str(LEASE_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "[0, 1, 2]\n"
        process.send_signal(signal.SIGKILL)

    async def work(client: OonaClient) -> None:
        found: list[int] = []
        while len(found) < 5:
            found += await take(client, "heir")
        assert found == [0, 1, 2, 3, 4]

    on_bus(url, work)


def test_a_consumer_nobody_asks_any_more_gives_its_messages_up(redis_url: str) -> None:
    async def main() -> None:
        async with (
            OonaClient(redis_url, lease_s=LEASE_S, idle_s=0.5) as forgetful,
            OonaClient(redis_url, lease_s=LEASE_S) as heir,
        ):
            for number in range(3):
                await forgetful.publish(message(number))
            held = await forgetful.consume([TOPIC], "group", "forgetful", 10, 5000)
            found: list[int] = []
            async with asyncio.timeout(30):
                while not found:
                    found += await take(heir, "heir", timeout=500)
            assert found == [0, 1, 2]
            assert not await forgetful.failed(held[0], RuntimeError("too late"))

    asyncio.run(main())


# --- when the server is away


def test_connecting_to_nobody_fails_after_some_tries_without_the_password_in_the_error() -> None:
    url = f"redis://esper:hush@127.0.0.1:{free_port()}/0"

    async def main() -> None:
        client = OonaClient(url, retry_delay_s=0.05)
        assert (await client.health_check())["status"] == "disconnected"
        with pytest.raises(ConnectionError) as refused:
            await client.connect()
        assert "hush" not in str(refused.value)
        assert isinstance(refused.value.__cause__, LogUnavailable)
        with pytest.raises(ConnectionError):
            await client.publish(message(0))
        await client.close()
        with pytest.raises(ConnectionError, match="closed"):
            await client.connect()

    asyncio.run(main())


def test_a_wrong_password_is_told_at_once(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server:
        with server.client() as redis:
            redis.config_set("requirepass", "right")
        url = server.url.replace("redis://", "redis://:wrong@")

        async def main() -> float:
            began = asyncio.get_running_loop().time()
            with pytest.raises(ConnectionError, match="password"):
                await OonaClient(url, retry_delay_s=30.0).connect()
            return asyncio.get_running_loop().time() - began

        assert asyncio.run(main()) < 10


def test_a_server_that_is_not_durable_is_refused_with_what_to_change(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", {"appendonly": "no"}) as server:

        async def main() -> None:
            with pytest.raises(ConnectionError, match="appendonly is no") as refused:
                await OonaClient(server.url).connect()
            assert "CONFIG SET appendonly yes" in refused.value.hint

        asyncio.run(main())


def test_publish_consume_and_health_tell_an_outage_and_go_on_after_it(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server:

        async def work(client: OonaClient) -> None:
            await client.publish(message(0))
            held = await client.consume([TOPIC], "group", "one", 1, 5000)
            server.kill()
            lost = message(1)
            with pytest.raises(PublishError) as refused:
                await client.publish(lost)
            assert isinstance(refused.value.__cause__, LogUnavailable)
            with pytest.raises(ConsumptionError) as missed:
                await client.consume([TOPIC], "group", "one", 1, 5000)
            assert isinstance(missed.value.__cause__, LogUnavailable)
            assert (await client.health_check())["status"] == "error"
            server.start()
            await client.publish(lost)
            assert numbers(held) == [0]
            found: list[int] = []
            while 1 not in found:
                found += await take(client)
            assert (await client.health_check())["status"] == "healthy"

        on_bus(server.url, work, lease_s=LEASE_S)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_reply_that_is_lost_doubles_nothing(server: RedisServer, nth: int) -> None:
    with Proxy(server.port) as proxy:

        async def work(client: OonaClient) -> None:
            receipt = await client.publish(message(0))
            proxy.eat_reply("FCALL", nth)
            sent = [message(number) for number in range(1, 40)]
            receipts = [receipt, *await asyncio.gather(*(client.publish(one) for one in sent))]
            receipts += [await client.publish(message(number)) for number in range(40, 43)]
            assert proxy.eaten == 1
            assert [one.first for one in receipts] == list(range(1, 44))
            assert await take(client, count=100) == list(range(43))

        on_bus(f"redis://127.0.0.1:{proxy.port}/0?namespace=n{uuid.uuid4().hex[:12]}", work)


def test_a_reply_that_is_lost_for_good_is_an_error_and_publishing_again_doubles_nothing(server: RedisServer) -> None:
    with Proxy(server.port) as proxy:

        async def work(client: OonaClient) -> None:
            await client.publish(message(0))
            proxy.eat_reply("FCALL")
            proxy.part_after_eating()
            sent = [message(number) for number in range(1, 30)]
            outcomes = await asyncio.gather(*(client.publish(one) for one in sent), return_exceptions=True)
            assert {type(one) for one in outcomes} == {PublishError}
            proxy.join()
            again = await asyncio.gather(*(client.publish(one) for one in [*sent[10:], message(30), *sent[:10]]))
            assert sorted(one.first for one in again) == list(range(2, 32))
            assert await take(client, count=100) == list(range(31))

        on_bus(f"redis://127.0.0.1:{proxy.port}/0?namespace=n{uuid.uuid4().hex[:12]}", work)


def test_health_says_what_the_server_says_of_itself(redis_url: str) -> None:
    async def work(client: OonaClient) -> None:
        for number in range(3):
            await client.publish(message(number))
        await take(client, count=2)
        health = await client.health_check()
        assert (health["status"], health["connected"], health["troubles"]) == ("healthy", True, [])
        assert health["redis_version"].split(".")[0].isdecimal()
        assert health["latency_ms"] >= 0
        assert isinstance(health["connected_clients"], int)
        assert health["used_memory"].endswith("M")
        assert health["memory_limit_bytes"] == 0
        assert health["persistence"]["append_only"]
        assert health["persistence"]["last_write"] == "ok"
        assert health["head_position"] == 3
        assert health["fsynced"]
        assert health["groups"]["group"]["parked"] == 0

    on_bus(redis_url, work)


def test_health_of_a_log_in_a_file_has_what_applies(tmp_path: Path) -> None:
    async def work(client: OonaClient) -> None:
        await client.publish(message(0))
        await take(client)
        await client.ack([])
        health = await client.health_check()
        assert (health["status"], health["head_position"]) == ("healthy", 1)
        assert "redis_version" not in health

    on_bus(f"sqlite:///{tmp_path}/log.db", work)


def test_health_tells_trouble(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server:

        async def work(client: OonaClient) -> None:
            with server.client() as redis:
                redis.config_set("maxmemory", 1)
            health = await client.health_check()
            assert health["status"] == "unhealthy"
            assert "bytes of memory are in use" in health["troubles"][0]

        on_bus(server.url, work)


def test_the_bus_in_memory_works_alone() -> None:
    async def work(client: OonaClient) -> None:
        await client.publish(message(1))
        assert await take(client) == [1]

    on_bus("memory://", work)
