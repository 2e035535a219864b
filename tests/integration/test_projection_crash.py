"""I7, I8: a projector killed at any moment leaves rows and checkpoint that belong together, and goes on from there."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import append, history, library
from independent_model import check_tables

from esper.oona.open import open_log
from esper.oona.sqlite.log import SqliteLog
from esper.projections.digest import digests
from esper.projections.open import open_tables
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
log, engine = open_log(f"sqlite:///{sys.argv[1]}"), open_tables(f"sqlite:///{sys.argv[2]}")
Projector(log, engine, batch=int(sys.argv[3])).catch_up(lambda done, total: print(done, flush=True))
"""
REBUILD = """
import sys
from esper.oona.open import open_log
from esper.projections.open import open_tables
from esper.projections.rebuild import rebuild
log, engine = open_log(f"sqlite:///{sys.argv[1]}"), open_tables(f"sqlite:///{sys.argv[2]}", check=False)
rebuild(log, engine, lambda done, total: print(done, flush=True), batch=int(sys.argv[3]))
"""


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    log = open_log(f"sqlite:///{tmp_path}/log.db")
    facts = library()
    for number in range(6):
        facts += history(f"run-{number}", steps=200, seed=number, kills=(150,), rollbacks=(55,), fault_at=35)
    append(log, facts)
    assert isinstance(log, SqliteLog)
    yield log
    log.close()


def run(script: str, folder: Path, batch: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", script, str(folder / "log.db"), str(folder / "tables.db"), str(batch)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})


def kill_after_first_word(process: subprocess.Popen[bytes], delay_s: float) -> bool:
    """Kill a process a while after its first line; tell whether that was before it ended by itself."""
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    return process.wait() == -signal.SIGKILL


def position_of(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("SELECT position FROM projection_checkpoints").fetchone()[0])
    finally:
        connection.close()


def test_a_projector_killed_again_and_again_ends_with_the_digests_of_a_fresh_rebuild(
    log: SqliteLog, tmp_path: Path
) -> None:
    chance = random.Random(8)
    killed, reached = 0, 0
    while killed < 4:
        # Two or three facts a transaction: the kill falls into one or between two.
        assert kill_after_first_word(run(FOLLOW, tmp_path, chance.choice([2, 3])), chance.uniform(0, 0.3))
        killed += 1
        position = position_of(tmp_path / "tables.db")
        assert reached < position < log.head().position
        reached = position
        # Whatever stands there is exactly what the log gives up to the checkpoint beside it.
        check_tables(tmp_path / "log.db", tmp_path / "tables.db")
    finished = run(FOLLOW, tmp_path, 500)
    finished.communicate()
    assert finished.returncode == 0
    engine = open_tables(f"sqlite:///{tmp_path}/tables.db")
    verify(log, engine)
    fresh = open_tables(f"sqlite:///{tmp_path}/fresh.db")
    rebuild(log, fresh)
    with engine.connect() as one, fresh.connect() as other:
        assert digests(one) == digests(other)


def test_a_rebuild_that_is_killed_leaves_the_live_tables_and_the_next_one_succeeds(
    log: SqliteLog, tmp_path: Path
) -> None:
    engine = open_tables(f"sqlite:///{tmp_path}/tables.db")
    Projector(log, engine).catch_up()
    with engine.connect() as connection:
        before = digests(connection)
    chance = random.Random(9)
    for _ in range(3):
        assert kill_after_first_word(run(REBUILD, tmp_path, 3), chance.uniform(0, 0.2))
        assert (tmp_path / "tables.db.rebuild").exists()
        with engine.connect() as connection:
            assert digests(connection) == before
    rebuild(log, engine)
    assert not (tmp_path / "tables.db.rebuild").exists()
    with engine.connect() as connection:
        assert digests(connection) == before


def test_two_projector_processes_at_once_never_apply_a_fact_twice(log: SqliteLog, tmp_path: Path) -> None:
    pair = [run(FOLLOW, tmp_path, 20) for _ in range(2)]
    told = [process.communicate()[0].split() for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert any(told)
    check_tables(tmp_path / "log.db", tmp_path / "tables.db")
    verify(log, open_tables(f"sqlite:///{tmp_path}/tables.db"))
