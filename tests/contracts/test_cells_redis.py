"""The cells on Redis keep the contract of cells, on one server and on a Cluster, and while memory is full."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cells_contract import NAME, CellsContract, held
from servers import RedisCluster, RedisServer

from esper.errors import LogFull
from esper.oona.redis.cells import RedisCells
from esper.oona.redis.link import RedisLink
from esper.oona.redis.url import parse_url


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


class OnAServer(CellsContract):
    """Each test has a namespace of its own."""

    url: str

    @pytest.fixture(autouse=True)
    def _links(self) -> Iterator[None]:
        self.links: list[RedisLink] = []
        yield
        for link in self.links:
            link.close()

    def open_cells(self) -> RedisCells:
        OnAServer.opened = getattr(OnAServer, "opened", 0) + 1
        self.links.append(RedisLink(parse_url(f"{self.url}?namespace=n{OnAServer.opened}")))
        return RedisCells(self.links[-1])


class TestRedisCells(OnAServer):
    @pytest.fixture(autouse=True)
    def _server(self, server: RedisServer) -> None:
        self.url = server.url


class TestRedisClusterCells(OnAServer):
    @pytest.fixture(autouse=True)
    def _server(self, cluster: RedisCluster) -> None:
        self.url = cluster.url


def test_cells_outlive_kill_9_of_their_server(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        link = RedisLink(parse_url(server.url))
        cell = RedisCells(link).write(held(RedisCells(link)), b"value")
        server.kill()
        server.start()
        assert RedisCells(link).look(NAME) == cell
        link.close()


def test_leases_are_renewed_while_memory_is_full(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        link = RedisLink(parse_url(server.url))
        cells = RedisCells(link)
        cell = held(cells)
        link.run([["CONFIG", "SET", "maxmemory", "1mb"]])
        with pytest.raises(LogFull):
            link.run([["SET", "more", "x" * 100]])
        assert cells.write(cell, b"value").beat == 1
        link.close()
