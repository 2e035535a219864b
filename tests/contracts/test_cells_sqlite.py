"""The cells in SQLite keep the contract of cells, across processes and beside the log they belong to."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cells_contract import NAME, CellsContract, held

from esper.errors import LeaseLost, LogDamaged, LogUnavailable
from esper.oona import SqliteLog
from esper.oona.sqlite.cells import SqliteCells


class TestSqliteCells(CellsContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> Iterator[None]:
        self.folder = tmp_path
        self.opened: list[SqliteCells] = []
        yield
        for cells in self.opened:
            cells.close()

    def open_cells(self) -> SqliteCells:
        self.opened.append(SqliteCells(self.folder / f"{len(self.opened)}.cells"))
        return self.opened[-1]


TAKER = """
import sys
from pathlib import Path
from esper.oona.sqlite.cells import SqliteCells
cells = SqliteCells(Path(sys.argv[1]))
won = 0
print("ready", flush=True)
sys.stdin.readline()
for _ in range(300):
    won += cells.take("n", sys.argv[2], seen=cells.look("n")) is not None
print(won)
"""


def test_processes_share_cells_and_each_token_is_given_once(tmp_path: Path) -> None:
    path = tmp_path / "log.db.cells"
    with closing(SqliteCells(path)) as cells:
        takers = [
            subprocess.Popen(
                [sys.executable, "-c", TAKER, str(path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for name in ("a", "b", "c")
        ]
        for taker in takers:
            assert taker.stdout is not None
            assert taker.stdout.readline() == "ready\n"
        for taker in takers:
            assert taker.stdin is not None
            taker.stdin.write("go\n")
            taker.stdin.flush()
        won = sum(int(taker.communicate(timeout=60)[0]) for taker in takers)
        cell = cells.look("n")
        assert cell is not None
        assert cell.token == won


def test_the_cells_of_a_log_stand_beside_it_and_stay(tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "log.db") as log:
        cell = log.cells.write(held(log.cells), b"value")
    assert (tmp_path / "log.db.cells").exists()
    with SqliteLog(tmp_path / "log.db") as log:
        assert log.cells.look(NAME) == cell


def test_a_log_that_never_coordinates_has_no_file_of_cells(tmp_path: Path) -> None:
    SqliteLog(tmp_path / "log.db").close()
    assert not (tmp_path / "log.db.cells").exists()


def test_the_cells_close_with_their_log(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db")
    cells = log.cells
    log.close()
    with pytest.raises(LogUnavailable, match="closed"):
        cells.look(NAME)
    with pytest.raises(LogUnavailable):
        _ = log.cells


def test_two_logs_objects_of_one_file_share_their_cells(tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "log.db") as first, SqliteLog(tmp_path / "log.db") as second:
        cell = held(first.cells)
        held(second.cells, owner="bob")
        with pytest.raises(LeaseLost):
            first.cells.write(cell, b"late")


@pytest.mark.parametrize("content", [b"no database at all, but something else that is long enough", "another"])
def test_another_file_in_its_place_is_refused_and_says_what_to_do(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "log.db.cells"
    if isinstance(content, bytes):
        path.write_bytes(content * 20)
    else:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE t (x)")
    with pytest.raises(LogDamaged) as caught:
        SqliteCells(path)
    assert f"delete {path}" in caught.value.hint


def test_cells_locked_for_too_long_are_unavailable_and_then_usable_again(tmp_path: Path) -> None:
    path = tmp_path / "cells"
    with closing(SqliteCells(path, busy_timeout_s=0.05)) as cells, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LogUnavailable, match="locked"):
            held(cells)
        other.rollback()
        assert held(cells).token == 1
