"""What follows a Redis log, killed and rebuilt under load, and clocks that jump: no fact is lost or applied twice."""

from __future__ import annotations

import datetime as dt
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import append, history, library
from faults.crew import Crew
from faults.notes import STREAM, note
from faults.shims import ClockShift
from independent_model import check_tables
from servers import RedisServer

from esper.clock import ManualClock
from esper.oona.open import open_log
from esper.oona.port import EventLog, iterate, last_by
from esper.oona.sqlite.log import SqliteLog
from esper.projections.digest import digests
from esper.projections.open import open_tables
from esper.projections.positions import resolve_at
from esper.projections.rebuild import rebuild
from esper.projections.runner import Projector
from esper.projections.verify import verify

ROOT = Path(__file__).parents[2]
#: Follows the log in small transactions and tells after each one how far it is.
FOLLOW = """
import sys
from esper.oona.open import open_log
from esper.projections.open import open_tables
from esper.projections.runner import Projector
log, engine = open_log(sys.argv[1]), open_tables(f"sqlite:///{sys.argv[2]}")
Projector(log, engine, batch=int(sys.argv[3])).catch_up(lambda done, total: print(done, flush=True))
"""
REBUILD = """
import sys
from esper.oona.open import open_log
from esper.projections.open import open_tables
from esper.projections.rebuild import rebuild
log, engine = open_log(sys.argv[1]), open_tables(f"sqlite:///{sys.argv[2]}", check=False)
rebuild(log, engine, lambda done, total: print(done, flush=True), batch=int(sys.argv[3]))
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def log(server: RedisServer) -> Iterator[EventLog]:
    with open_log(server.url) as log:
        facts = library()
        for number in range(2):
            facts += history(f"run-{number}", steps=200, seed=number, kills=(150,), rollbacks=(55,), fault_at=35)
        append(log, facts)
        yield log


def start(script: str, url: str, tables: Path, batch: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", script, url, str(tables), str(batch)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})


def kill_after_first_word(process: subprocess.Popen[bytes], delay_s: float) -> None:
    """Kill a process a while after its first line, and see that it had not ended by itself."""
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL


def check(log: EventLog, folder: Path) -> None:
    """Hold tables against the independent model, which reads a copy of the log."""
    copy = folder / "copy.db"
    if not copy.exists():
        with SqliteLog(copy) as target:
            target.restore(iterate(log))
    check_tables(copy, folder / "tables.db")


# --- case 5: a projection killed between rows and commit


def test_a_projector_on_redis_killed_again_and_again_ends_with_the_digests_of_a_rebuild(
    server: RedisServer, log: EventLog, tmp_path: Path
) -> None:
    tables = tmp_path / "tables.db"
    chance = random.Random(8)
    engine = open_tables(f"sqlite:///{tables}")
    reached = 0
    for _ in range(3):
        kill_after_first_word(start(FOLLOW, server.url, tables, chance.choice([2, 3])), chance.uniform(0, 0.3))
        position = Projector(log, engine).checkpoint().position
        assert reached < position < log.end()
        reached = position
        # Whatever stands there is exactly what the log gives up to the checkpoint beside it.
        check(log, tmp_path)
    finished = start(FOLLOW, server.url, tables, 500)
    finished.communicate()
    assert finished.returncode == 0
    verify(log, engine)
    fresh = open_tables(f"sqlite:///{tmp_path}/fresh.db")
    rebuild(log, fresh)
    with engine.connect() as one, fresh.connect() as other:
        assert digests(one) == digests(other)
    engine.dispose()
    fresh.dispose()


def test_two_projectors_at_once_on_redis_never_apply_a_fact_twice(
    server: RedisServer, log: EventLog, tmp_path: Path
) -> None:
    pair = [start(FOLLOW, server.url, tmp_path / "tables.db", 20) for _ in range(2)]
    told = [process.communicate()[0].split() for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert any(told)
    check(log, tmp_path)


# --- case 8: a rebuild during heavy writes


def test_a_rebuild_under_live_writes_that_is_killed_and_done_again_misses_and_doubles_nothing(
    server: RedisServer, log: EventLog, tmp_path: Path
) -> None:
    tables = tmp_path / "tables.db"
    engine = open_tables(f"sqlite:///{tables}")
    projector = Projector(log, engine)
    projector.catch_up()
    with Crew(server.url, tmp_path / "acks", ["ada", "bob"], "steady") as crew:
        crew.wait_for(2)
        kill_after_first_word(start(REBUILD, server.url, tables, 3), 0.1)
        # The live tables are served and go on meanwhile.
        before = projector.checkpoint().position
        assert projector.catch_up().checkpoint.position > before
        end = log.end()
        second = start(REBUILD, server.url, tables, 200)
        crew.wait_for(5)
        projector.catch_up()
        second.communicate()
        assert second.returncode == 0
        assert log.end() > end
        crew.wait_for(2)
        projector.catch_up()
        crew.stop()
    projector.catch_up()
    verify(log, engine)
    check(log, tmp_path)
    fresh = open_tables(f"sqlite:///{tmp_path}/fresh.db")
    rebuild(log, fresh)
    with engine.connect() as one, fresh.connect() as other:
        assert digests(one) == digests(other)
    engine.dispose()
    fresh.dispose()


# --- case 12: clocks that jump


def test_producers_whose_clocks_jump_by_hours_change_neither_order_nor_what_a_time_means(tmp_path: Path) -> None:
    clocks = [ManualClock() for _ in range(3)]
    draw = random.Random(12)
    shift = ClockShift(tmp_path)
    with RedisServer(tmp_path / "redis", environment=shift.environment) as server:
        logs = [open_log(server.url, clock=clock) for clock in clocks]
        for number in range(60):
            for clock in clocks:
                clock.advance(draw.choice([1_000_000, -3, 7_200_000_000, -7_200_000_000, 10]))
            # The server's clock jumps too: nothing may come from it.
            shift.jump_to(draw.choice([0, 5, -5]))
            receipt = draw.choice(logs).append([note(number)], stream=STREAM, expected=number)
            assert receipt.first == number + 1
        records = logs[0].read()
        assert [one.position for one in records] == [one.version for one in records] == list(range(1, 61))
        times = [one.recorded_at for one in records]
        assert times == sorted(times)
        assert len(set(times)) > 5
        for one in records:
            last = max(other.position for other in records if other.recorded_at <= one.recorded_at)
            assert last_by(logs[0], one.recorded_at) == last
            moment = one.recorded_datetime.astimezone(dt.timezone(dt.timedelta(hours=9))).isoformat()
            assert resolve_at(moment, logs[0]) == last
        assert last_by(logs[0], times[0] - 1) == 0
        logs[0].verify()
        for log in logs:
            log.close()


def test_a_client_whose_own_clocks_jump_is_timed_out_and_woken_as_ever(tmp_path: Path) -> None:
    """Waiting and time limits go by the monotonic clock: a wall clock that jumps by hours moves neither."""
    script = """
import sys, threading, time
from pathlib import Path
from esper.oona.open import open_log
place = Path(sys.argv[2])

def jump(hours):
    with place.open("r+b") as file:
        file.write((hours * 3600).to_bytes(8, "little", signed=True))

with open_log(sys.argv[1]) as log:
    for hours in (-5, 5, -7, 0):
        jumping = threading.Timer(0.1, jump, [hours])
        jumping.start()
        began = time.monotonic()
        assert log.wait(0, 0.3) is False
        assert 0.25 < time.monotonic() - began < 5, hours
        jumping.join()
        log.head()
"""
    shift = ClockShift(tmp_path)
    with RedisServer(tmp_path / "redis") as server:
        command = [sys.executable, "-c", script, server.url, shift.environment["CLOCK_SHIFT"]]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **shift.environment}
        subprocess.run(command, env=environment, check=True, timeout=60)
