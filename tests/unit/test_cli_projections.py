"""``esper projections``: lag, rebuilding, and tables that were tampered with."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from cli_support import Esper
from small_log import NEWER

pytestmark = pytest.mark.usefixtures("small_home")


def test_rebuild_folds_every_event_and_status_has_no_lag(esper: Esper) -> None:
    built = esper("projections", "rebuild", "--json").json
    assert built["events"] == built["checkpoint"]["position"] == 26
    assert built["rows"]["steps"] == 6
    status = {row["table"]: row for row in esper("projections", "status", "--json").json}
    assert status["steps"] == {"table": "steps", "rows": 6, "position": 26, "head": 26, "lag": 0}


def test_status_tells_the_lag_and_the_next_read_catches_up(esper: Esper) -> None:
    esper("projections", "rebuild")
    esper("run", "note", NEWER, "one more", "--actor", "ada")
    assert {row["lag"] for row in esper("projections", "status", "--json").json} == {1}
    assert esper("run", "list").code == 0
    assert {row["lag"] for row in esper("projections", "status", "--json").json} == {0}


def test_verify_agrees_after_a_rebuild_and_tables_come_back_with_the_same_digest(
    esper: Esper, small_home: Path
) -> None:
    esper("projections", "rebuild")
    before = esper("projections", "verify", "--json").json
    assert before["verified"] is True
    for part in small_home.glob("tables.db*"):
        part.unlink()
    esper("projections", "rebuild")
    assert esper("projections", "verify", "--json").json == before


def test_verify_names_the_table_that_was_changed_and_exits_3(esper: Esper, small_home: Path) -> None:
    esper("projections", "rebuild")
    connection = sqlite3.connect(small_home / "tables.db")
    connection.execute("UPDATE epochs SET validation_accuracy = 0.99 WHERE step = 4")
    connection.commit()
    connection.close()
    ran = esper("projections", "verify")
    assert ran.code == 3
    assert "error[E-PRJ-003]" in ran.err
    assert "epochs" in ran.err
    assert "esper projections rebuild" in ran.err
    assert esper("projections", "rebuild").code == 0
    assert esper("projections", "verify").code == 0


def test_tables_of_another_log_are_refused_by_every_read(esper: Esper, small_home: Path) -> None:
    esper("projections", "rebuild")
    for part in small_home.glob("log.db*"):
        part.unlink()
    esper("blueprint", "submit", "res_mlp", "--by", "ada")
    ran = esper("run", "list")
    assert ran.code == 3
    assert "error[E-PRJ-002]" in ran.err


def test_without_tables_status_says_how_to_get_them(esper: Esper) -> None:
    ran = esper("projections", "status")
    assert ran.code == 4
    assert "esper projections rebuild" in ran.err
