"""redis-server killed, slowed and cut off from power under concurrent writers: every Receipt survives, none doubled."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.checks import Outcome, Told, examine, told
from faults.crew import Crew, kill_rounds
from faults.notes import STREAM, append_batches, batch
from faults.power import Disk, Operation, cuts, read_journal
from faults.shims import build_shim
from servers import RedisServer

from esper.errors import LogUnavailable
from esper.oona.open import open_log
from esper.oona.port import Receipt
from esper.oona.redis.log import RedisLog


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim("power_journal", tmp_path_factory.mktemp("shim"))


# --- case 2: kill -9 of the server


def test_every_receipt_outlives_kill_9_of_redis_server_under_load(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server:
        rounds = list(kill_rounds(server, tmp_path, 3, seed=2))
    assert [one for one in rounds if not one.sound] == []
    acknowledged = [one.outcome.acknowledged for one in rounds]
    assert acknowledged == sorted(set(acknowledged)), "each round acknowledged more"


def test_the_kill_test_finds_a_server_that_keeps_nothing_in_files(tmp_path: Path) -> None:
    with (
        RedisServer(tmp_path / "redis") as server,
        Crew(server.url, tmp_path / "acks", ["ada", "bob"]) as crew,
    ):
        crew.wait_for(5)
        with server.client() as client:
            client.config_set("appendonly", "no")
        crew.wait_for(5)
        server.kill()
        receipts = crew.receipts
        server.start()
        with open_log(server.url) as log:
            assert examine(log, receipts).lost > 0


# --- case 4: races between processes


def test_processes_that_race_one_stream_win_each_version_once(tmp_path: Path) -> None:
    # They are to race: on a busy machine one may have the stream to itself for long, and then they try again.
    for attempt in range(5):
        turns = race_one_stream(tmp_path / str(attempt))
        if turns >= 10:
            return
    raise AssertionError(f"the writers took turns {turns} times only")


def race_one_stream(folder: Path) -> int:
    """Let three processes append to one stream, check what came of it, and return how often the writer changed."""
    with RedisServer(folder / "redis") as server:
        with Crew(server.url, folder / "acks", ["ada", "bob", "eve"], "shared", "together", batches=25) as crew:
            crew.finish()
            receipts = crew.receipts
        with open_log(server.url) as log:
            outcome = examine(log, receipts)
            assert outcome.sound
            assert outcome.acknowledged == outcome.head == log.stream_version("operator/shared")
            # Each won the version it asked for, and nobody else did.
            assert all(one.version == one.expected + one.size for one in receipts)
            assert len({one.version for one in receipts}) == len(receipts) == 75
            log.verify()
    order = [one.writer for one in sorted(receipts, key=lambda one: one.first)]
    return sum(one != other for one, other in itertools.pairwise(order))


def test_processes_that_race_one_log_leave_no_gap(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server:
        with Crew(server.url, tmp_path / "acks", ["ada", "bob", "eve"], "together", batches=25) as crew:
            crew.finish()
            receipts = crew.receipts
        with open_log(server.url) as log:
            outcome = examine(log, receipts)
            assert outcome.sound
            assert outcome.acknowledged == outcome.head
            taken = sorted(position for one in receipts for position in range(one.first, one.last + 1))
            assert taken == list(range(1, outcome.head + 1))
            log.verify()


# --- power loss


class Recording:
    """What a server and a writer did to their files until they ended, in one order."""

    def __init__(self, folder: Path, library: Path, durability: str) -> None:
        self.watched = folder / "watched"
        (self.watched / "redis").mkdir(parents=True)
        environment = {
            "LD_PRELOAD": str(library),
            "POWER_WATCH": str(self.watched),
            "POWER_JOURNAL": str(folder / "journal"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        options = {"appendfsync": durability}
        with RedisServer(self.watched / "redis", options, environment=environment) as server:
            url = f"{server.url}?durability={durability}"
            with Crew(url, self.watched, ["ada"], batches=30, environment=environment) as crew:
                crew.finish()
        self.operations = read_journal(folder / "journal")

    def images(self, folder: Path, count: int, seed: int) -> Iterator[tuple[str, Path, list[Told]]]:
        """Fail the power at many moments; yield what the disk then holds and the receipts noted by then."""
        draw = random.Random(seed)
        disk, done = Disk(self.watched), 0
        for number, moment in enumerate(cuts(self.operations, count, draw)):
            for operation in self.operations[done:moment]:
                disk.do(operation)
            done = moment
            notes = b"".join(one.data for one in self.operations[:moment] if _is_ack(one)).decode()
            receipts = [told("ada", line) for line in notes.split("\n")[:-1]]
            for name, coin in (("cut", None), ("drawn", draw)):
                place = folder / f"{number}-{name}"
                place.mkdir()
                disk.fail(place, coin)
                yield f"{moment} {name}", place, receipts


def _is_ack(operation: Operation) -> bool:
    return operation.kind == "w" and operation.path.endswith(".acks")


def after_power_came_back(place: Path, receipts: list[Told]) -> Outcome:
    """Start a server on what a disk held, as an operator does, and hold its log against receipts."""
    server = RedisServer(place / "redis")
    try:
        try:
            server.start()
        except RuntimeError:
            # Sectors past the last force came in part and out of order: the server refuses until the tail is cut.
            server.mend()
            server.start()
        with open_log(server.url) as log:
            log.verify()
            return examine(log, receipts)
    finally:
        server.stop()


def test_every_receipt_outlives_power_loss(tmp_path: Path, library: Path) -> None:
    recording = Recording(tmp_path, library, "always")
    kinds = {(one.kind, Path(one.path).suffix) for one in recording.operations}
    assert {("w", ".aof"), ("s", ".aof"), ("w", ".acks")} <= kinds
    outcomes = {
        name: after_power_came_back(place, receipts) for name, place, receipts in recording.images(tmp_path, 14, seed=1)
    }
    assert {name: outcome for name, outcome in outcomes.items() if not outcome.sound} == {}
    assert max(outcome.acknowledged for outcome in outcomes.values()) > 100


def test_the_power_loss_test_finds_a_server_that_forces_once_a_second(tmp_path: Path, library: Path) -> None:
    recording = Recording(tmp_path, library, "everysec")
    assert any(
        name.endswith("cut") and after_power_came_back(place, receipts).lost
        for name, place, receipts in recording.images(tmp_path, 8, seed=1)
    )


# --- case 14: a disk that takes seconds


def test_a_disk_that_takes_seconds_to_force_loses_and_doubles_nothing(tmp_path: Path, library: Path) -> None:
    slow = tmp_path / "slow"
    environment = {"LD_PRELOAD": str(library), "POWER_SLOW": str(slow)}
    with (
        RedisServer(tmp_path / "redis", environment=environment) as server,
        Crew(server.url, tmp_path / "acks", ["ada", "bob"]) as crew,
    ):
        crew.wait_for(3)
        slow.write_text("2000")
        crew.wait_for(1)
        slow.unlink()
        crew.wait_for(3)
        crew.stop()
        with open_log(server.url) as log:
            assert examine(log, crew.receipts).sound
            log.verify()


def test_a_force_that_takes_longer_than_a_client_waits_is_named_and_the_batch_is_there_once(
    tmp_path: Path, library: Path
) -> None:
    slow = tmp_path / "slow"
    environment = {"LD_PRELOAD": str(library), "POWER_SLOW": str(slow)}
    with (
        RedisServer(tmp_path / "redis", environment=environment) as server,
        RedisLog(server.url, timeout_s=0.4) as log,
    ):
        append_batches(log, 1, 4)
        slow.write_text("1200")
        with pytest.raises(LogUnavailable):
            log.append(batch(1, 4), stream=STREAM, expected=4)
        slow.unlink()
        receipt = patiently(lambda: log.append(batch(1, 4), stream=STREAM, expected=4))
        assert (receipt.first, receipt.last, receipt.version) == (5, 8, 8)
        assert log.verify().events == 8


def patiently(append: Callable[[], Receipt]) -> Receipt:
    """Append as a producer does: again until there is an answer."""
    for _ in range(20):
        with contextlib.suppress(LogUnavailable):
            return append()
    raise AssertionError("no answer in twenty attempts")
