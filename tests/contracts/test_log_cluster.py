"""The Redis adapter on a Cluster of three masters: one log in one slot, many logs over all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import redis
from log_contract import STREAM, LogContract, note
from redis.crc import key_slot
from servers import RedisCluster, RedisServer

from esper.clock import Clock
from esper.errors import DurabilityTooLow, LogDamaged, LogUnavailable
from esper.oona import ANY, EventLog, Head
from esper.oona.follow import follow
from esper.oona.redis.library import log_library
from esper.oona.redis.log import RedisLog
from esper.oona.redis.promote import Known, promote


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def empty(cluster: RedisCluster) -> RedisCluster:
    for master in cluster.masters:
        with master.client() as client:
            client.flushall()
    return cluster


class TestClusterLog(LogContract):
    @pytest.fixture(autouse=True)
    def _cluster(self, empty: RedisCluster) -> None:
        self.cluster = empty
        self.opened = 0

    def open_log(self, clock: Clock) -> RedisLog:
        self.opened += 1
        return RedisLog(f"{self.cluster.url}?namespace=log{self.opened}", clock=clock)


def names_on_each_master(cluster: RedisCluster) -> list[str]:
    """Return a namespace for each master, in the masters' order."""
    found: dict[int, str] = {}
    for number in range(1000):
        name = f"log{number}"
        with RedisLog(f"{cluster.url}?namespace={name}") as log:
            found.setdefault(log.link.node[1], name)
        if len(found) == len(cluster.masters):
            return [found[master.port] for master in cluster.masters]
    raise AssertionError("a thousand names on fewer than three masters")


def test_a_log_is_whole_on_the_master_of_its_slot(empty: RedisCluster) -> None:
    names = names_on_each_master(empty)
    for name in names:
        with RedisLog(f"{empty.url}?namespace={name}") as log:
            log.append([note(1), note(2)], stream=STREAM, expected=0)
            log.verify()
    for name, master in zip(names, empty.masters, strict=True):
        with master.client() as client:
            keys = set(client.scan_iter(f"esper:{{{name}}}:*"))
            assert f"esper:{{{name}}}:operator.actions".encode() in keys
            assert len({key_slot(key) for key in keys}) == 1
            assert not [key for key in client.scan_iter() if client.type(key) == b"stream" and key not in keys]


def test_the_main_log_has_a_hash_tag_on_a_cluster(empty: RedisCluster) -> None:
    with RedisLog(empty.url) as log:
        log.append([note(1)], stream=STREAM, expected=ANY)
        assert log.link.keys.meta == "esper:{main}:@meta"
        assert log.namespace == "main"


def test_functions_are_on_every_master(empty: RedisCluster) -> None:
    for master in empty.masters:
        with master.client() as client:
            client.function_flush()
    with RedisLog(empty.url):
        for master in empty.masters:
            with master.client() as client:
                assert client.function_list(library=log_library().name)


def test_two_logs_on_two_masters_are_written_at_once_and_one_reader_follows_both(empty: RedisCluster) -> None:
    names = names_on_each_master(empty)[:2]
    count, errors = 40, list[BaseException]()

    def write(name: str) -> None:
        try:
            with RedisLog(f"{empty.url}?namespace={name}") as log:
                for number in range(count):
                    log.append([note(3 * number + part) for part in range(3)], stream=STREAM, expected=3 * number)
        except BaseException as error:
            errors.append(error)

    logs: dict[str, EventLog] = {name: RedisLog(f"{empty.url}?namespace={name}") for name in names}
    assert len({log.link.node for log in logs.values() if isinstance(log, RedisLog)}) == 2
    writers = [threading.Thread(target=write, args=(name,)) for name in names]
    for writer in writers:
        writer.start()
    seen: dict[str, list[int]] = {name: [] for name in names}
    for name, envelope in follow(logs, {}):
        seen[name].append(envelope.position)
        if all(len(positions) == 3 * count for positions in seen.values()):
            break
    for writer in writers:
        writer.join()
    assert errors == []
    assert seen == {name: list(range(1, 3 * count + 1)) for name in names}
    for log in logs.values():
        assert log.verify().events == 3 * count
        log.close()


def test_a_slot_that_moves_to_another_master_is_followed(empty: RedisCluster) -> None:
    with RedisLog(f"{empty.url}?namespace=mover") as log:
        log.append([note(1)], stream=STREAM, expected=ANY)
        source = next(one for one in empty.masters if one.port == log.link.node[1])
        target = next(one for one in empty.masters if one is not source)
        slot = key_slot(log.link.keys.meta.encode())
        move_slot(empty, slot, source.port, target.port)
        try:
            assert log.append([note(2)], stream=STREAM, expected=1).last == 2
            assert log.link.node[1] == target.port
            assert log.append([note(1)], stream=STREAM, expected=ANY).last == 1
            log.verify()
        finally:
            move_slot(empty, slot, target.port, source.port)
        assert [one.position for one in log.read()] == [1, 2]


def move_slot(cluster: RedisCluster, slot: int, source: int, target: int) -> None:
    """Move a slot and its keys, as redis-cli does."""
    ids = {}
    clients = {master.port: master.client() for master in cluster.masters}
    for port, client in clients.items():
        ids[port] = client.execute_command("CLUSTER MYID").decode()
    clients[target].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
    clients[source].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
    keys = clients[source].execute_command("CLUSTER GETKEYSINSLOT", slot, 1000)
    clients[source].execute_command("MIGRATE", "127.0.0.1", target, "", 0, 5000, "KEYS", *keys)
    for port in (target, source, *(set(clients) - {source, target})):
        clients[port].execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target])
    for client in clients.values():
        client.close()


def test_a_cluster_that_may_fail_over_by_itself_is_refused(empty: RedisCluster) -> None:
    with RedisLog(empty.url) as log:
        port = log.link.node[1]
    with redis.Redis(port=port, protocol=2) as client:
        client.config_set("cluster-replica-no-failover", "no")
        try:
            with pytest.raises(DurabilityTooLow) as caught:
                RedisLog(empty.url)
        finally:
            client.config_set("cluster-replica-no-failover", "yes")
    assert "cluster-replica-no-failover is no" in caught.value.message
    assert f"redis-cli -p {port} CONFIG SET cluster-replica-no-failover yes" in caught.value.hint


def test_any_node_of_the_cluster_leads_to_the_log(empty: RedisCluster) -> None:
    with RedisLog(empty.url) as log:
        log.append([note(1)], stream=STREAM, expected=ANY)
    for master in empty.masters:
        with RedisLog(master.url, create=False) as log:
            assert log.end() == 1


def test_a_master_that_is_gone_is_named_and_found_again(empty: RedisCluster) -> None:
    with RedisLog(f"{empty.url}?namespace=a") as log:
        log.append([note(1)], stream=STREAM, expected=ANY)
        master = next(one for one in empty.masters if one.port == log.link.node[1])
        master.kill()
        with pytest.raises(LogUnavailable):
            log.append([note(2)], stream=STREAM, expected=ANY)
        master.start()
        while True:
            try:
                receipt = log.append([note(2)], stream=STREAM, expected=ANY)
                break
            except LogUnavailable:
                continue
        assert receipt.last == 2
        log.verify()


def test_a_replica_in_a_cluster_becomes_the_master_of_its_slot(empty: RedisCluster, tmp_path: Path) -> None:
    options = {**empty.masters[0].options, "cluster-config-file": "nodes.conf"}
    with RedisLog(empty.url) as log, RedisServer(tmp_path / "replica", options) as replica:
        master = next(one for one in empty.masters if one.port == log.link.node[1])
        with master.client() as client:
            own = client.execute_command("CLUSTER MYID").decode()
        with replica.client() as client:
            client.execute_command("CLUSTER MEET", "127.0.0.1", master.port)
            patiently(lambda: client.execute_command("CLUSTER REPLICATE", own))
        with master.client() as client:
            patiently(lambda: client.info("replication").get("slave0", {}).get("state") == "online" or fail())
        with RedisLog(f"{empty.url}?replicas=1") as writer:
            assert writer.append([note(1)], stream=STREAM, expected=ANY).replicas == 1
        chain = log.head().chain
        with pytest.raises(LogUnavailable, match="still answers"):
            promote(replica.url, [Known("a test", 1, chain)])
        master.kill()
        with replica.client() as client:
            patiently(lambda: client.info("replication")["master_link_status"] == "down" or fail())
        with pytest.raises(LogDamaged, match="ends at 1, but a test knows position 2"):
            promote(replica.url, [Known("a test", 2, None)])
        assert promote(replica.url, [Known("a test", 1, chain)]) == Head(1, chain)
        other = next(one for one in empty.masters if one is not master)
        with RedisLog(other.url, create=False) as again:
            assert again.link.node[1] == replica.port
            assert again.append([note(2)], stream=STREAM, expected=1).last == 2
            again.verify()
        # The writer that was there all along finds the new master by itself.
        assert patiently(lambda: log.append([note(3)], stream=STREAM, expected=2)).last == 3
        give_back(empty, master, replica)


def fail() -> None:
    raise LogUnavailable("not yet")


T = TypeVar("T")


def patiently(act: Callable[[], T]) -> T:
    """Do something again until the cluster is ready for it."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return act()
        except (LogUnavailable, redis.exceptions.RedisError):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def give_back(cluster: RedisCluster, master: RedisServer, replica: RedisServer) -> None:
    """Make the old master the master again."""
    master.start()
    with master.client() as client, replica.client() as other:
        patiently(lambda: client.info("replication").get("master_link_status") == "up" or fail())
        client.execute_command("CLUSTER FAILOVER")
        patiently(lambda: client.info("replication")["role"] == "master" or fail())
        patiently(lambda: other.info("replication")["role"] == "slave" or fail())
        for one in cluster.masters:
            with one.client() as node:
                patiently(lambda node=node: node.execute_command("CLUSTER INFO")["cluster_state"] == "ok" or fail())
        own = other.execute_command("CLUSTER MYID")
        other.execute_command("CLUSTER RESET", "HARD")
        for one in cluster.masters:
            with one.client() as node:
                node.execute_command("CLUSTER FORGET", own)
