"""The Redis adapter keeps the log's contract, and refuses servers that could not."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import redis
from log_contract import STREAM, LogContract, note, step
from prometheus_client import REGISTRY
from servers import RedisServer

from esper.artifacts.signing import SigningKey
from esper.clock import Clock, ManualClock
from esper.errors import (
    ConfigError,
    DurabilityTooLow,
    EsperError,
    EventIdReused,
    LogDamaged,
    LogUnavailable,
    NotFound,
    SchemaError,
)
from esper.events import Envelope, Event
from esper.events.message import MessagePublished
from esper.ids import derived_id
from esper.oona import ANY, MemoryLog, iterate, open_log
from esper.oona.redis.checks import check_version
from esper.oona.redis.library import log_library
from esper.oona.redis.log import RedisLog
from esper.oona.redis.url import parse_url
from esper.oona.sealing.archive import Archive
from esper.oona.sealing.sealed import ArchiveHistory
from esper.oona.sealing.sealer import seal


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    """An empty server, as a person with redis-cli has it."""
    with server.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def log(server: RedisServer, client: redis.Redis) -> Iterator[RedisLog]:
    with RedisLog(server.url, clock=ManualClock()) as log:
        yield log


class TestRedisLog(LogContract):
    @pytest.fixture(autouse=True)
    def _server(self, server: RedisServer, client: redis.Redis) -> None:
        self.server = server
        self.opened = 0

    def open_log(self, clock: Clock) -> RedisLog:
        self.opened += 1
        return RedisLog(f"{self.server.url}?namespace=log{self.opened}", clock=clock)


def message(topic: str, number: int, text: str = "") -> Event:
    """Return a published message."""
    fact = MessagePublished(topic=topic, message_id=str(number), trace="", published_at=number, payload={"text": text})
    return Event(fact=fact, event_id=derived_id(topic, number), sender_id="test", trace_id="0" * 32)


# --- where a log is


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://host/first",
        "redis://host:port/0",
        "redis://host/0?namespace=",
        "redis://host/0?namespace=a b",
        "redis://host/0?namespace={a}",
        "redis://host/0?durability=never",
        "redis://host/0?replicas=-1",
        "redis://host/0?replicas=some",
        "redis://host/0?timeout=3",
        "redis://host/0?namespace=a&namespace=b",
        "redis://host/0?namespace",
        "redis://host/0#main",
        "http://host/0",
    ],
)
def test_a_url_that_says_something_else_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    assert "redis://[user:password@]host:port/db" in caught.value.hint


def test_a_url_gives_every_part_and_its_text_masks_the_password() -> None:
    address = parse_url("rediss://ada:p%40ss@[::1]:7000/3?namespace=lab-1&durability=everysec&replicas=2")
    assert (address.host, address.port, address.db, address.tls) == ("::1", 7000, 3, True)
    assert (address.username, address.password) == ("ada", "p@ss")
    assert (address.namespace, address.durability, address.replicas) == ("lab-1", "everysec", 2)
    assert address.text == "rediss://ada:***@[::1]:7000/3?namespace=lab-1"
    assert "p@ss" not in repr(address)
    plain = parse_url("redis://host")
    assert (plain.port, plain.db, plain.namespace, plain.durability) == (6379, 0, "main", "always")


def test_a_log_is_made_only_if_it_may_be(server: RedisServer, client: redis.Redis) -> None:
    with pytest.raises(NotFound):
        open_log(server.url, create=False)
    assert client.keys() == []
    with open_log(server.url) as log:
        log.append([note(1)], stream=STREAM, expected=ANY)
    with open_log(server.url, create=False) as log:
        assert log.end() == 1


def test_logs_of_one_server_do_not_mix(server: RedisServer, client: redis.Redis) -> None:
    names = ["main", "a", "b"]
    logs = [RedisLog(f"{server.url}?namespace={name}") for name in names]
    for number, one in enumerate(logs):
        one.append([note(1), *[note(2 + extra) for extra in range(number)]], stream=STREAM, expected=0)
    assert [one.end() for one in logs] == [1, 2, 3]
    assert [one.namespace for one in logs] == names
    for one in logs:
        one.verify()
        one.close()
    own = ["@ids", "@meta", "@stream:operator/run-1", "@topics", "@versions", "operator.actions"]
    assert sorted(client.keys("esper:{a}:*")) == [f"esper:{{a}}:{name}".encode() for name in own]


# --- servers that are refused


@pytest.mark.parametrize(
    ("name", "value", "restored"),
    [
        ("appendonly", "no", "yes"),
        ("appendfsync", "everysec", "always"),
        ("appendfsync", "no", "always"),
        ("no-appendfsync-on-rewrite", "yes", "no"),
        ("maxmemory-policy", "allkeys-lru", "noeviction"),
        ("maxmemory-policy", "volatile-ttl", "noeviction"),
    ],
)
def test_a_server_that_does_not_keep_what_it_acknowledges_is_refused(
    server: RedisServer, client: redis.Redis, name: str, value: str, restored: str
) -> None:
    client.config_set(name, value)
    try:
        with pytest.raises(DurabilityTooLow) as caught:
            RedisLog(server.url)
    finally:
        client.config_set(name, restored)
        # Switching the file on again makes the server write a new one, beside whatever comes next.
        wait_for_rewrite(client)
    assert f"{name} is {value}" in caught.value.message
    assert f"CONFIG SET {name} {restored}" in caught.value.hint


def wait_for_rewrite(client: redis.Redis) -> None:
    deadline = time.monotonic() + 30.0
    while any(client.info("persistence")[f"aof_rewrite_{state}"] for state in ("in_progress", "scheduled")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lower_durability_is_taken_by_name_and_told_in_each_receipt(server: RedisServer, client: redis.Redis) -> None:
    client.config_set("appendfsync", "everysec")
    try:
        with RedisLog(f"{server.url}?durability=everysec") as log:
            assert log.fsynced is False
            assert log.append([note(1)], stream=STREAM, expected=ANY).fsynced is False
            client.config_set("appendfsync", "no")
            with pytest.raises(DurabilityTooLow):
                RedisLog(f"{server.url}?durability=everysec")
    finally:
        client.config_set("appendfsync", "always")


def test_a_receipt_tells_the_truth_when_somebody_changes_the_setting(log: RedisLog, client: redis.Redis) -> None:
    assert log.append([note(1)], stream=STREAM, expected=ANY).fsynced is True
    client.config_set("appendfsync", "everysec")
    try:
        assert log.append([note(2)], stream=STREAM, expected=ANY).fsynced is False
        assert log.append([note(1)], stream=STREAM, expected=ANY).fsynced is False
    finally:
        client.config_set("appendfsync", "always")
    # Setting it back forces nothing to disk by itself: the retry must, before it says so.
    written = client.info("persistence")["aof_current_size"]
    assert log.append([note(2)], stream=STREAM, expected=ANY).fsynced is True
    assert client.info("persistence")["aof_current_size"] > written


def test_an_old_server_is_refused() -> None:
    check_version("7.0.0", "log x")
    with pytest.raises(LogUnavailable) as caught:
        check_version("6.2.14", "log x")
    assert "Redis 6.2.14" in caught.value.message


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    gone = RedisServer(tmp_path)
    with pytest.raises(LogUnavailable) as caught:
        RedisLog(f"redis://ada:hidden@127.0.0.1:{gone.port}/0")
    assert f"redis://ada:***@127.0.0.1:{gone.port}/0" in caught.value.message


def test_a_server_that_loads_its_data_is_waited_for(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    with server:
        with RedisLog(server.url) as log:
            log.append([note(number) for number in range(3000)], stream=STREAM, expected=ANY)
        server.stop()
        server.options["key-load-delay"] = "500"  # microseconds a command
        server.start(wait=False)
        assert first_words(server.port).startswith(b"-LOADING")
        with RedisLog(server.url) as log:
            assert log.end() == 3000


def first_words(port: int) -> bytes:
    """Return what a server answers as soon as it answers at all."""
    deadline = time.monotonic() + 20
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(100)
        except OSError:
            assert time.monotonic() < deadline


# --- who may


def test_a_wrong_password_is_named_without_it(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        with server.client() as client:
            client.config_set("requirepass", "right")
        address = f"127.0.0.1:{server.port}/0"
        for url in (f"redis://:wrong-word@{address}", f"redis://{address}", f"redis://nobody:wrong-word@{address}"):
            started = time.monotonic()
            with pytest.raises(LogUnavailable) as caught:
                RedisLog(url)
            assert time.monotonic() - started < 1.0, "a password does not get right by waiting"
            assert "wrong-word" not in caught.value.message + caught.value.hint
            assert "password" in caught.value.message
        with RedisLog(f"redis://:right@{address}") as log:
            log.append([note(1)], stream=STREAM, expected=ANY)
            server.kill()
            server.options["requirepass"] = "new"
            server.start(wait=False)
            deadline = time.monotonic() + 20
            while "password" not in refusal(lambda: log.append([note(1)], stream=STREAM, expected=ANY)):
                assert time.monotonic() < deadline
            started = time.monotonic()
            assert "right" not in refusal(lambda: log.append([note(1)], stream=STREAM, expected=ANY))
            assert time.monotonic() - started < 0.3


def refusal(act: Callable[[], object]) -> str:
    """Return the message of a log that cannot be reached."""
    with pytest.raises(LogUnavailable) as caught:
        act()
    return caught.value.message


def users() -> dict[str, list[str]]:
    """Return the rules of each user of the manual."""
    text = (Path(__file__).parents[2] / "docs/how-to/run-on-redis.md").read_text("utf-8")
    found = re.findall(r"^ACL SETUSER esper-(\w+) on >CHANGE-ME (.*)$", text, re.MULTILINE)
    return {name: rules.split() for name, rules in found}


def test_the_users_of_the_manual_can_do_their_work_and_no_harm(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    names = list(users())
    assert names == ["writer", "reader", "sealer"]
    for name, rules in users().items():
        client.execute_command("ACL", "SETUSER", name, "on", f">{name}-word", *rules)
    where = f"127.0.0.1:{server.port}/0"
    try:
        with RedisLog(f"redis://writer:writer-word@{where}") as log:
            log.append([note(number) for number in range(1500)], stream=STREAM, expected=ANY)
            assert log.append([note(3)], stream=STREAM, expected=ANY).first == 4
            assert log.wait(0, 1.0)
            assert log.head().position == log.verify().events == 1500
            cell = log.cells.take("cell", "ada", seen=None)
            assert cell is not None
            assert log.cells.names() == ["cell"]
            log.cells.drop(log.cells.write(cell, b"value"))
        with RedisLog(f"redis://reader:reader-word@{where}", create=False) as log:
            assert len(log.read(0, 2000)) == 1500
            assert len(log.read_stream(STREAM, 1490)) == 10
            assert log.streams() == [STREAM]
            assert log.head().position == log.verify().events == 1500
            with pytest.raises(LogUnavailable, match="may not"):
                log.append([note(9999)], stream=STREAM, expected=ANY)
        key = SigningKey.create(tmp_path / "key.pem")
        archive = Archive(f"file:///{tmp_path}/archive", [key.public])
        with RedisLog(f"redis://sealer:sealer-word@{where}", sealed=ArchiveHistory(archive)) as log:
            seal(log, archive, key)
            assert log.trim(1000) == 1000
            assert log.append([note(5000)], stream=STREAM, expected=1500).last == 1501
        harm = [
            ["FLUSHALL"],
            ["DEL", "esper:@meta"],
            ["XDEL", "esper:operator.actions", "1-0"],
            ["RENAME", "esper:@meta", "esper:x"],
            ["CONFIG", "SET", "appendfsync", "no"],
            ["FUNCTION", "FLUSH"],
            ["SET", "other", "1"],
        ]
        for name in names:
            with redis.Redis(port=server.port, protocol=2, username=name, password=f"{name}-word") as user:
                for command in harm:
                    with pytest.raises(redis.exceptions.NoPermissionError):
                        user.execute_command(*command)
    finally:
        client.execute_command("ACL", "DELUSER", *names)


# --- what is not of this log


@pytest.mark.parametrize("entry", ["*", "1700000000000-0", "4-0", "3-1"])
def test_an_entry_somebody_added_is_named_by_the_next_append_which_writes_nothing(
    log: RedisLog, client: redis.Redis, entry: str
) -> None:
    log.append([note(number) for number in range(3)], stream=STREAM, expected=ANY)
    made = client.xadd("esper:operator.actions", {"event": "mine"}, id=entry)
    before = dumped(client)
    with pytest.raises(LogDamaged) as caught:
        log.append([note(8), note(9)], stream=STREAM, expected=ANY)
    assert dumped(client) == before
    assert made.decode() in caught.value.message
    assert "esper:operator.actions" in caught.value.message
    # Other topics go on.
    log.append([step(1)], stream="run/run-1", expected=ANY)
    with pytest.raises(LogDamaged):
        log.verify()
    assert log.stream_version(STREAM) == 3


def dumped(client: redis.Redis) -> dict[bytes, bytes | None]:
    """Return everything the server has."""
    return {key: client.dump(key) for key in client.scan_iter()}


def test_the_manual_says_how_to_get_rid_of_an_added_entry(log: RedisLog, client: redis.Redis) -> None:
    log.append([note(1), note(2)], stream=STREAM, expected=ANY)
    key = "esper:operator.actions"
    made = client.xadd(key, {"event": "mine"})
    client.xdel(key, made)
    with pytest.raises(LogDamaged):
        log.append([note(3)], stream=STREAM, expected=ANY)
    client.execute_command("XSETID", key, "2-0", "ENTRIESADDED", 2, "MAXDELETEDID", "0-0")
    assert log.append([note(3)], stream=STREAM, expected=ANY).last == 3
    log.verify()


def test_an_entry_between_records_is_named_by_readers(log: RedisLog, client: redis.Redis) -> None:
    log.append([note(1)], stream=STREAM, expected=ANY)
    log.append([step(1)], stream="run/run-1", expected=ANY)
    client.xadd("esper:operator.actions", {"r": "mine"}, id="2-0")
    log.append([step(2)], stream="run/run-1", expected=ANY)
    for read in (log.read, lambda: log.read_recorded(0, 9), lambda: log.read(topics=["operator.actions"]), log.verify):
        with pytest.raises(LogDamaged) as caught:
            read()
        assert caught.value.position == 2


@pytest.mark.parametrize(
    "key", ["esper:operator.actions", "esper:@ids", "esper:@versions", "esper:@topics", f"esper:@stream:{STREAM}"]
)
def test_a_key_of_another_kind_stops_the_append_before_it_writes(log: RedisLog, client: redis.Redis, key: str) -> None:
    client.set(key, "mine")
    with pytest.raises(LogDamaged):
        log.append([note(1), note(2)], stream=STREAM, expected=ANY)
    assert set(client.keys()) == {b"esper:@meta", key.encode()}
    client.delete(key)
    assert log.append([note(1), note(2)], stream=STREAM, expected=ANY).last == 2


@pytest.mark.parametrize("topic", ["", "@meta", "@ids", "{main}:operator.actions", "x" * 201])
def test_a_topic_that_names_another_key_is_refused(log: RedisLog, topic: str) -> None:
    for one in (log, MemoryLog()):
        with pytest.raises(SchemaError):
            one.append([message(topic, 1)], stream=f"message/{topic}", expected=ANY)
        assert one.end() == 0


def test_an_index_that_lost_an_element_stops_the_stream(log: RedisLog, client: redis.Redis) -> None:
    log.append([note(1), note(2)], stream=STREAM, expected=ANY)
    client.rpop(f"esper:@stream:{STREAM}")
    with pytest.raises(LogDamaged):
        log.append([note(3)], stream=STREAM, expected=ANY)
    assert log.end() == 2


def test_an_index_with_an_element_too_many_is_named(log: RedisLog, client: redis.Redis) -> None:
    log.append([note(1), note(2)], stream=STREAM, expected=ANY)
    client.rpush(f"esper:@stream:{STREAM}", 65536)
    with pytest.raises(LogDamaged):
        log.append([note(3)], stream=STREAM, expected=ANY)
    with pytest.raises(LogDamaged, match="more elements"):
        log.verify()


def test_an_id_that_leads_to_another_record_is_damage_and_no_retry(log: RedisLog, client: redis.Redis) -> None:
    log.append([note(1), note(2)], stream=STREAM, expected=ANY)
    client.hset("esper:@ids", mapping={note(1).event_id: 2})
    with pytest.raises(LogDamaged) as caught:
        log.append([note(1)], stream=STREAM, expected=ANY)
    assert caught.value.position == 2


def test_a_server_that_lost_what_was_acknowledged_is_named(server: RedisServer, client: redis.Redis) -> None:
    with RedisLog(server.url) as log:
        log.append([note(number) for number in range(5)], stream=STREAM, expected=ANY)
        client.hset("esper:@meta", "position", 3)
        for act in (log.end, log.read, log.head, lambda: log.append([note(9)], stream=STREAM, expected=ANY)):
            with pytest.raises(LogDamaged, match="ends at 3 but position 5 was acknowledged"):
                act()
        client.flushall()
        for act in (log.end, log.read, log.head, lambda: log.append([note(9)], stream=STREAM, expected=ANY)):
            with pytest.raises(LogDamaged, match="no longer the log that was opened"):
                act()
        assert client.keys() == []


def test_a_log_of_another_format_is_refused(log: RedisLog, server: RedisServer, client: redis.Redis) -> None:
    client.hset("esper:@meta", "format", 2)
    with pytest.raises(LogDamaged, match="format"):
        RedisLog(server.url)


def test_functions_that_were_flushed_or_changed_are_loaded_again(
    log: RedisLog, server: RedisServer, client: redis.Redis
) -> None:
    client.function_flush()
    assert log.append([note(1)], stream=STREAM, expected=ANY).last == 1
    client.function_flush()
    assert log.end() == 1
    library = log_library()
    client.function_load(library.code.replace("'conflict'", "'ok'"), replace=True)
    with RedisLog(server.url) as again:
        assert again.end() == 1
    listed = client.function_list(library=library.name, withcode=True)
    assert library.code in str(listed).replace("\\n", "\n").replace("\\'", "'")


# --- the bytes of a record


def rewrite(client: redis.Redis, key: str, values: list[bytes]) -> None:
    """Put a topic's entries in anew, ids from 1 on."""
    with client.pipeline() as pipeline:
        pipeline.delete(key)
        for number, value in enumerate(values, 1):
            pipeline.xadd(key, {"r": value}, id=f"{number}-0")
        pipeline.execute()


def test_a_record_has_the_bytes_that_the_reference_says(log: RedisLog, client: redis.Redis) -> None:
    log.append([note(1)], stream=STREAM, expected=ANY)
    log.append([step(1)], stream="run/run-1", expected=ANY)
    log.append([note(2, causation_id=b"c" * 16)], stream=STREAM, expected=ANY)
    ((identity, fields),) = client.xrange("esper:operator.actions", "3", "3")
    assert (identity, list(fields)) == (b"3-0", [b"r"])
    raw = fields[b"r"]
    assert raw[:1] == b"\x9d"
    numbers = [struct.unpack(">BQ", raw[place : place + 9]) for place in (1, 10, 19)]
    (one,) = log.read(2)
    assert numbers == [(0xCF, 2), (0xCF, one.recorded_at), (0xCF, 3 + 2 + one.recorded_at)]
    assert raw[28:62] == b"\xc4\x20" + hashlib.sha256(raw[62:]).digest()
    assert msgspec.msgpack.decode(raw)[4:] == [
        *(one.event_id, "NoteAdded", 1, "operator.actions", STREAM, "test", "0" * 32, b"c" * 16, one.payload)
    ]
    assert client.hgetall("esper:@topics") == {b"operator.actions": b"0", b"training.steps": b"1"}
    assert client.lrange(f"esper:@stream:{STREAM}", 0, -1) == [b"65536", b"196608"]
    assert client.lrange("esper:@stream:run/run-1", 0, -1) == [b"131073"]
    assert client.hget("esper:@ids", one.event_id) == b"3"
    meta = client.hgetall("esper:@meta")
    assert (meta[b"format"], meta[b"position"], meta[b"trimmed"]) == (b"1", b"3", b"0")
    assert meta[b"recorded_at"] == str(one.recorded_at).encode()
    log.append([note(number) for number in range(10, 1031)], stream=STREAM, expected=ANY)
    chain = log.head().chain
    assert client.hgetall("esper:@chain") == {b"1024": chain + hashlib.sha256(b"1024 " + chain).digest()[:8]}


def test_whatever_byte_of_a_record_is_changed_every_reader_names_it(log: RedisLog, client: redis.Redis) -> None:
    log.append([note(1), note(2, causation_id=b"c" * 16), note(3)], stream=STREAM, expected=ANY)
    key = "esper:operator.actions"
    values = [fields[b"r"] for _, fields in client.xrange(key)]
    readers = [log.read, lambda: log.read_recorded(0, 9), lambda: log.read_stream(STREAM)]
    for place in range(len(values[1])):
        changed = bytearray(values[1])
        changed[place] ^= 1 << (place % 8)
        rewrite(client, key, [values[0], bytes(changed), values[2]])
        for read in readers:
            with pytest.raises(LogDamaged) as caught:
                read()
            assert caught.value.position == 2, place
    for changed_length in (values[1][:-1], values[1] + b"\0", b"", b"\x90", values[1] * 2):
        rewrite(client, key, [values[0], changed_length, values[2]])
        with pytest.raises(LogDamaged) as caught:
            log.read()
        assert caught.value.position == 2
    rewrite(client, key, values)
    assert log.verify().events == 3
    client.delete(key)
    for number, value in enumerate(values, 1):
        client.xadd(key, {"r" if number != 2 else "q": value}, id=f"{number}-0")
    with pytest.raises(LogDamaged) as caught:
        log.read()
    assert caught.value.position == 2


def test_records_that_changed_places_are_named(log: RedisLog, client: redis.Redis) -> None:
    log.append([note(1), note(2), note(3)], stream=STREAM, expected=ANY)
    values = [fields[b"r"] for _, fields in client.xrange("esper:operator.actions")]
    rewrite(client, "esper:operator.actions", [values[0], values[2], values[1]])
    with pytest.raises(LogDamaged) as caught:
        log.read()
    assert caught.value.position == 2


# --- the chain


def test_notes_spare_a_new_reader_the_walk_and_a_changed_one_is_named(
    server: RedisServer, client: redis.Redis, log: RedisLog
) -> None:
    log.append([note(number) for number in range(2100)], stream=STREAM, expected=ANY)
    head = log.head()
    copy = MemoryLog()
    copy.restore(log.read(0, 2100))
    assert head == copy.head()
    assert sorted(client.hkeys("esper:@chain")) == [b"1024", b"2048"]
    with RedisLog(server.url) as other:
        sent = read_entries(client)
        assert other.head() == head
        assert read_entries(client) - sent < 200, "only what comes after the last note is read"
        assert [other.chain_at(place) for place in (1, 1023, 1024, 1025, 2100)] == [
            copy.chain_at(place) for place in (1, 1023, 1024, 1025, 2100)
        ]
    whole = client.hget("esper:@chain", "2048")
    assert whole is not None
    for value in (whole[:-1], bytes(40), bytes([whole[0] ^ 1]) + whole[1:]):
        client.hset("esper:@chain", "2048", value)
        with RedisLog(server.url) as other, pytest.raises(LogDamaged) as caught:
            other.head()
        assert caught.value.position == 2048
        with pytest.raises(LogDamaged):
            log.verify()


def read_entries(client: redis.Redis) -> int:
    """Return how many times entries were read by range."""
    calls = client.info("commandstats").get("cmdstat_xrange", {})
    return int(calls.get("calls", 0))


def test_a_chain_that_was_computed_before_the_server_took_another_history_is_not_gone_on_with(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server:
        with RedisLog(server.url) as early:
            early.append([note(1)], stream=STREAM, expected=ANY)
        server.stop()
        shutil.copytree(server.folder, tmp_path / "copy")
        server.start()
        with RedisLog(server.url) as writer:
            writer.append([note(2), note(3)], stream=STREAM, expected=ANY)
        with RedisLog(server.url) as log:
            log.head()
            server.stop()
            shutil.rmtree(server.folder)
            shutil.copytree(tmp_path / "copy", server.folder)
            server.start()
            with RedisLog(server.url) as other:
                # The record the client saw last stands where it stood; the one before it is another.
                other.append([note(4), note(3), note(5)], stream=STREAM, expected=ANY)
            with pytest.raises(LogDamaged, match="history was rewritten") as caught:
                log.head()
            assert caught.value.position == 3


def test_a_note_of_another_history_is_named(server: RedisServer, client: redis.Redis, log: RedisLog) -> None:
    log.append([note(number) for number in range(1100)], stream=STREAM, expected=ANY)
    with RedisLog(f"{server.url}?namespace=other") as other:
        other.append([note(number, "else") for number in range(1100)], stream=STREAM, expected=ANY)
        other.head()
    client.hset("esper:@chain", "1024", client.hget("esper:{other}:@chain", "1024"))
    with pytest.raises(LogDamaged) as caught:
        log.verify()
    assert caught.value.position == 1024
    with RedisLog(server.url) as walker:
        # One that walked the whole way itself finds the other value when it notes its own.
        walker.chain_at(1000)
        with pytest.raises(LogDamaged) as caught:
            walker.chain_at(1030)
    assert caught.value.position == 1024


# --- pages, waiting, restoring


def test_large_records_come_in_pages_of_bounded_size(log: RedisLog, client: redis.Redis) -> None:
    big = "x" * 900_000
    for number in range(24):
        log.append([note(number, big)], stream=STREAM, expected=ANY)
    log.read(0, 1)
    readers: list[Callable[[], list[Envelope]]] = [
        lambda: log.read(0, 1000),
        lambda: log.read(0, 1000, topics=["operator.actions"]),
        lambda: log.read_stream(STREAM),
    ]
    for read in readers:
        client.config_resetstat()
        assert [one.position for one in read()] == list(range(1, 25))
        assert client.info("commandstats")["cmdstat_fcall_ro"]["calls"] >= 2


def test_a_batch_too_large_for_one_call_is_refused_with_a_hint(log: RedisLog) -> None:
    batch = [note(number, "x" * 1_000_000) for number in range(68)]
    with pytest.raises(SchemaError, match="at once"):
        log.append(batch, stream=STREAM, expected=ANY)
    assert log.append(batch[:20], stream=STREAM, expected=ANY).last == 20


def test_a_batch_of_many_thousands_is_one_append(log: RedisLog) -> None:
    receipt = log.append([note(number) for number in range(9000)], stream=STREAM, expected=0)
    assert (receipt.first, receipt.last) == (1, 9000)
    assert log.append([note(number) for number in range(9000)], stream=STREAM, expected=0) == receipt
    assert log.verify().events == 9000


def test_a_reader_learns_topics_that_others_add(server: RedisServer, log: RedisLog) -> None:
    with RedisLog(server.url) as reader:
        for number in range(1, 6):
            topic = f"topic.{number}"
            log.append([message(topic, number)], stream=f"message/{topic}", expected=ANY)
            assert [one.topic for one in reader.read(number - 1)] == [topic]
            assert [one.position for one in reader.read(topics=[topic])] == [number]
            assert reader.read_stream(f"message/{topic}")[0].version == 1
        writer = threading.Timer(0.1, lambda: log.append([message("new", 9)], stream="message/new", expected=ANY))
        writer.start()
        assert reader.wait(5, 20.0) is True
        writer.join()
        reader.verify()


def test_closing_ends_what_other_threads_are_at_by_name(server: RedisServer, client: redis.Redis) -> None:
    told: list[BaseException] = []

    def wait(log: RedisLog) -> None:
        try:
            log.wait(0, 20.0)
        except BaseException as error:
            told.append(error)

    for _ in range(10):
        log = RedisLog(server.url)
        waiting = threading.Thread(target=wait, args=(log,))
        waiting.start()
        deadline = time.monotonic() + 10
        while not client.info("clients")["blocked_clients"]:
            assert time.monotonic() < deadline
        log.close()
        waiting.join()
    assert [type(error) for error in told] == [LogUnavailable] * 10


def test_waiting_does_not_spin_on_an_entry_somebody_added(log: RedisLog, client: redis.Redis) -> None:
    log.append([note(1)], stream=STREAM, expected=ANY)
    client.xadd("esper:operator.actions", {"event": "mine"})
    client.config_resetstat()
    assert log.wait(1, 0.5) is False
    assert client.info("commandstats")["cmdstat_fcall_ro"]["calls"] < 60


def test_restore_takes_many_pages_and_refuses_what_does_not_follow(
    server: RedisServer, log: RedisLog, clock: ManualClock
) -> None:
    source = MemoryLog(clock)
    for number in range(1250):
        source.append(
            [note(number), step(2 * number)][: 1 + number % 2][-1:],
            stream=[STREAM, "run/run-1"][number % 2],
            expected=ANY,
        )
        clock.advance(number)
    assert log.restore(iterate(source)) == 1250
    assert log.head() == source.head()
    assert log.read(0, 2000) == source.read(0, 2000)
    log.verify()
    records = source.read(0, 2000)
    with RedisLog(f"{server.url}?namespace=copy") as copy:
        for wrong in (records[1:], [*records[:1200], records[1201]], [*records[:1100], records[5]]):
            with pytest.raises(LogDamaged):
                copy.restore(wrong)
            assert copy.end() == 0
        assert copy.restore(records[:3]) == 3
        changed = [source.read(3, 1)[0]]
        assert copy.restore(changed) == 1
        with pytest.raises(LogDamaged):
            copy.restore(changed)


def test_restore_stops_when_somebody_else_appends_meanwhile(server: RedisServer, log: RedisLog) -> None:
    source = MemoryLog()
    source.append([note(1)], stream=STREAM, expected=ANY)

    def records() -> Iterator[Envelope]:
        with RedisLog(server.url) as other:
            other.append([step(1)], stream="run/run-1", expected=ANY)
        yield from source.read()

    with pytest.raises(LogUnavailable, match="moved on to 1"):
        log.restore(records())
    assert log.verify().events == 1


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_restore_refuses_an_id_that_is_there(server: RedisServer, log: RedisLog) -> None:
    source = MemoryLog()
    source.append([note(1)], stream=STREAM, expected=ANY)
    source.append([note(2)], stream=STREAM, expected=ANY)
    other = MemoryLog()
    other.append([note(2)], stream=STREAM, expected=ANY)
    log.restore(other.read())
    with pytest.raises(EventIdReused):
        log.restore(source.read(1))
    assert log.end() == 1


# --- replicas


def test_a_receipt_says_how_many_replicas_have_the_batch(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "master", {"repl-diskless-sync-delay": "0"}) as master:
        with pytest.raises(DurabilityTooLow, match="0 of the 1 replicas"):
            RedisLog(f"{master.url}?replicas=1")
        with RedisServer(tmp_path / "replica", {"replicaof": f"127.0.0.1 {master.port}"}) as replica:
            with master.client() as client:
                deadline = time.monotonic() + 30
                while not any("online" in str(value) for value in client.info("replication").values()):
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            with pytest.raises(LogUnavailable, match="replica of"):
                RedisLog(replica.url)
            with RedisLog(f"{master.url}?replicas=1") as log:
                batch = [note(1)]
                first = log.append(batch, stream=STREAM, expected=ANY)
                assert (first.fsynced, first.replicas) == (True, 1)
                assert log.append(batch, stream=STREAM, expected=ANY) == first
                assert replica.process is not None
                replica.process.send_signal(signal.SIGSTOP)
                try:
                    assert log.append([note(2)], stream=STREAM, expected=ANY).replicas == 0
                    # One that comes back with a connection that has written nothing yet.
                    with RedisLog(f"{master.url}?replicas=1") as again:
                        assert again.append([note(2)], stream=STREAM, expected=ANY).replicas == 0
                finally:
                    replica.process.send_signal(signal.SIGCONT)


# --- metrics


def test_appends_are_counted_and_timed(server: RedisServer, log: RedisLog) -> None:
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, {"adapter": "redis", **labels}) or 0.0

    names = ["esper_log_append_seconds_count", "esper_log_append_events_sum", "esper_log_append_fsynced_total"]
    before = [value(name) for name in names]
    refused = value("esper_log_append_failed_total", code="E-LOG-002")
    log.append([note(1), note(2)], stream=STREAM, expected=0)
    with pytest.raises(EsperError):
        log.append([note(3)], stream=STREAM, expected=0)
    assert [after - earlier for after, earlier in zip(map(value, names), before, strict=True)] == [1, 2, 1]
    assert value("esper_log_append_failed_total", code="E-LOG-002") == refused + 1
    assert value("esper_log_memory_bytes") > 0
    assert value("esper_log_memory_limit_bytes") == 0
