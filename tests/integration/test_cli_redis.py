"""Commands on logs that are on Redis: several logs at once, and a replica made the master."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from cli_support import Esper
from faults.notes import STREAM, note
from servers import RedisServer, free_port

from esper.errors import LogUnavailable
from esper.oona import ANY, open_log
from esper.oona.redis.log import RedisLog


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "master", {"repl-diskless-sync-delay": "0"}) as server:
        yield server


@pytest.fixture
def replica(tmp_path: Path, server: RedisServer) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "replica", {"replicaof": f"127.0.0.1 {server.port}"}) as replica:
        until(server, lambda roles: roles.get("slave0", {}).get("state") == "online")
        yield replica


def until(server: RedisServer, holds: object) -> None:
    """Wait until what a server says of its replication is so."""
    assert callable(holds)
    deadline = time.monotonic() + 30
    with server.client() as client:
        while not holds(client.info("replication")):
            assert time.monotonic() < deadline
            time.sleep(0.02)


# --- several logs


def test_tail_prints_several_logs_with_the_name_of_each(
    esper: Esper, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [f"{server.url}?namespace={name}" for name in ("first", "second")]
    for url, count in zip(urls, (2, 3), strict=True):
        with open_log(url) as log:
            log.append([note(number) for number in range(count)], stream=STREAM, expected=ANY)
    monkeypatch.setenv("ESPER_LOG", urls[0])
    found = esper("log", "tail", "--also", urls[1], "--json").json_lines
    assert [(one["namespace"], one["position"]) for one in found] == [
        ("first", 1), ("first", 2), ("second", 1), ("second", 2), ("second", 3)
    ]  # fmt: skip
    assert "second:3  " in esper("log", "tail", "--also", urls[1], "-n", "1").out
    assert "namespace" not in esper("log", "tail", "--json").json_lines[0]
    twice = esper("log", "tail", "--also", urls[0])
    assert twice.code == 2
    assert "two logs are called first" in twice.err


def test_follow_prints_what_is_appended_to_either_log(server: RedisServer, tmp_path: Path) -> None:
    urls = [f"{server.url}?namespace={name}" for name in ("first", "second")]
    with open_log(urls[0]) as first, open_log(urls[1]) as second:
        first.append([note(1)], stream=STREAM, expected=ANY)
        follower = subprocess.Popen(
            [sys.executable, "-m", "esper.cli.main", "log", "tail", "-n", "1", "--follow", "--also", urls[1]],
            env={**os.environ, "ESPER_HOME": str(tmp_path / "home"), "ESPER_LOG": urls[0]},
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here yet
        )
        try:
            assert follower.stdout is not None
            assert "first:1  " in follower.stdout.readline()
            for log, number in ((second, 1), (first, 2), (second, 2)):
                log.append([note(number)], stream=STREAM, expected=ANY)
                assert f"{log.namespace}:{number}  " in follower.stdout.readline()
        finally:
            follower.send_signal(signal.SIGINT)
            follower.wait(20)
            assert follower.stdout is not None
            follower.stdout.close()


# --- promoting a replica


@pytest.fixture
def at_home(esper: Esper, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Esper:
    """Commands on the master's log, with a key to seal with."""
    monkeypatch.setenv("ESPER_LOG", server.url)
    return esper


def test_a_replica_that_has_what_was_sealed_becomes_the_master(
    at_home: Esper, server: RedisServer, replica: RedisServer
) -> None:
    with RedisLog(f"{server.url}?replicas=1") as log:
        log.append([note(number) for number in range(1200)], stream=STREAM, expected=ANY)
        assert at_home("log", "seal").code == 0
        assert log.append([note(5000)], stream=STREAM, expected=ANY).replicas == 1
        head = log.head()
    answers = at_home("log", "promote", replica.url)
    assert answers.code != 0
    assert "still answers" in answers.err
    server.kill()
    until(replica, lambda roles: roles["master_link_status"] == "down")
    with pytest.raises(LogUnavailable):
        RedisLog(replica.url)
    done = at_home("log", "promote", replica.url, "--json").json
    assert (done["head_position"], done["head"]) == (1201, head.chain.hex())
    assert done["compared"] == ["the newest checkpoint: 1200"]
    with RedisLog(replica.url, create=False) as log:
        assert log.head() == head
        assert log.append([note(5001)], stream=STREAM, expected=1201).last == 1202
        log.verify()
    again = at_home("log", "promote", replica.url)
    assert "a master already" in again.err


def test_a_replica_that_lacks_what_was_acknowledged_is_not_promoted(
    at_home: Esper, server: RedisServer, replica: RedisServer
) -> None:
    with RedisLog(f"{server.url}?replicas=1") as log:
        assert log.append([note(1)], stream=STREAM, expected=ANY).replicas == 1
        with replica.client() as client:
            # As if the network between them were cut.
            client.execute_command("REPLICAOF", "127.0.0.1", free_port())
        log.append([note(2)], stream=STREAM, expected=ANY)
        assert at_home("log", "seal").code == 0
    server.kill()
    until(replica, lambda roles: roles["master_link_status"] == "down")
    refused = at_home("log", "promote", replica.url)
    assert refused.code != 0
    assert "the replica ends at 1, but the newest checkpoint knows position 2" in refused.err
    with replica.client() as client:
        assert client.info("replication")["role"] == "slave"
    server.start()
    with RedisLog(server.url, create=False) as log:
        assert log.end() == 2


def test_a_replica_with_another_history_is_not_promoted(
    at_home: Esper, server: RedisServer, replica: RedisServer
) -> None:
    with RedisLog(f"{server.url}?replicas=1") as log:
        assert log.append([note(1), note(2)], stream=STREAM, expected=ANY).replicas == 1
        assert at_home("log", "seal").code == 0
        server.kill()
    until(replica, lambda roles: roles["master_link_status"] == "down")
    with replica.client() as client:
        client.execute_command("REPLICAOF", "NO", "ONE")
        client.flushall()
    with RedisLog(replica.url) as other:
        other.append([note(7), note(8)], stream=STREAM, expected=ANY)
    with replica.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", server.port)
    refused = at_home("log", "promote", replica.url)
    assert "another history there than the newest checkpoint" in refused.err


def test_a_replica_is_compared_with_the_tables_and_with_what_a_person_knows(
    at_home: Esper, server: RedisServer, replica: RedisServer
) -> None:
    with RedisLog(f"{server.url}?replicas=1") as log:
        assert log.append([note(1)], stream=STREAM, expected=ANY).replicas == 1
    server.kill()
    until(replica, lambda roles: roles["master_link_status"] == "down")
    unknown = at_home("log", "promote", replica.url)
    assert unknown.code == 2
    assert "--at-least" in unknown.err
    assert "ends at 1, but --at-least knows position 2" in at_home("log", "promote", replica.url, "--at-least", "2").err
    server.start()
    assert at_home("projections", "rebuild").code == 0
    server.kill()
    until(replica, lambda roles: roles["master_link_status"] == "down")
    done = at_home("log", "promote", replica.url, "--at-least", "1", "--json").json
    assert done["compared"] == ["the tables: 1", "--at-least: 1"]


def test_a_replica_whose_settings_would_lose_facts_is_not_promoted(
    at_home: Esper, server: RedisServer, replica: RedisServer
) -> None:
    with RedisLog(f"{server.url}?replicas=1") as log:
        assert log.append([note(1)], stream=STREAM, expected=ANY).replicas == 1
    server.kill()
    until(replica, lambda roles: roles["master_link_status"] == "down")
    with redis.Redis(port=replica.port, protocol=2) as client:
        client.config_set("appendfsync", "everysec")
    refused = at_home("log", "promote", replica.url, "--at-least", "1")
    assert "appendfsync is everysec" in refused.err
