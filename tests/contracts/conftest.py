"""What tests of sealing share: a key, an archive in a folder, and an empty log of each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
from sealing import make_key
from servers import RedisServer

from esper.artifacts.signing import SigningKey
from esper.clock import ManualClock
from esper.oona import EventLog, MemoryLog, SqliteLog
from esper.oona.redis.log import RedisLog
from esper.oona.sealing.archive import Archive


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return make_key(tmp_path)


@pytest.fixture
def places() -> Iterator[ExitStack]:
    with ExitStack() as places:
        yield places


@pytest.fixture
def archive(tmp_path: Path, key: SigningKey, places: ExitStack) -> Archive:
    return places.enter_context(Archive(f"file:///{tmp_path / 'archive'}", [key.public]))


@pytest.fixture(params=["memory", "sqlite", "redis"])
def open_log(request: pytest.FixtureRequest, tmp_path: Path, places: ExitStack) -> Callable[[str], EventLog]:
    """Return what opens a new, empty log of each kind by a name."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("server")
        with server.client() as client:
            client.flushall()

    opened_before = count()

    def opened(name: str) -> EventLog:
        if request.param == "memory":
            return places.enter_context(MemoryLog(ManualClock()))
        if request.param == "sqlite":
            return places.enter_context(SqliteLog(tmp_path / f"{name}.db", clock=ManualClock()))
        url = f"redis://127.0.0.1:{server.port}/{next(opened_before)}"
        return places.enter_context(RedisLog(url, clock=ManualClock()))

    return opened


@pytest.fixture
def log(open_log: Callable[[str], EventLog]) -> EventLog:
    return open_log("main")
