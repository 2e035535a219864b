"""Consumers on the log in Redis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from consumer_contract import ConsumerContract
from servers import RedisServer

from esper.oona.redis.log import RedisLog


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as TestConsumerOnRedis.server:
        yield TestConsumerOnRedis.server


class TestConsumerOnRedis(ConsumerContract):
    server: RedisServer

    def open_log(self) -> RedisLog:
        return RedisLog(f"{self.server.url}?namespace={self.folder.name}-{self.opened}")
