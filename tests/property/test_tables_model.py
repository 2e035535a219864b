"""I6, I8: whatever runs did, the tables equal an independent model, and digests do not depend on how they came."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from builders import append, history, library, realistic
from hypothesis import given, settings
from hypothesis import strategies as st
from independent_model import check_tables
from sqlalchemy import Engine

from esper.clock import ManualClock
from esper.oona.memory import MemoryLog
from esper.oona.open import open_log
from esper.projections import queries
from esper.projections.digest import digests
from esper.projections.open import open_tables
from esper.projections.runner import Projector


@contextmanager
def tables_of(log: Any, *, until: int | None = None, batch: int = 5000) -> Iterator[Engine]:
    engine = open_tables("sqlite://")
    Projector(log, engine, batch=batch).catch_up(until=until)
    yield engine
    engine.dispose()


def write_log(path: Path, facts: list[Any]) -> None:
    log = open_log(f"sqlite:///{path}", clock=ManualClock())
    append(log, facts)
    log.close()


def follow(folder: Path, *, batch: int = 5000) -> None:
    log = open_log(f"sqlite:///{folder}/log.db")
    engine = open_tables(f"sqlite:///{folder}/tables.db")
    Projector(log, engine, batch=batch).catch_up()
    engine.dispose()
    log.close()


def test_tables_equal_the_independent_model_on_a_realistic_log(tmp_path: Path) -> None:
    write_log(tmp_path / "log.db", realistic())
    follow(tmp_path, batch=97)
    compared = check_tables(tmp_path / "log.db", tmp_path / "tables.db")
    assert min(compared.values()) > 0


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE steps SET superseded_at = NULL WHERE superseded_at IS NOT NULL",
        "UPDATE runs SET steps_done = steps_done + 1 WHERE rowid = (SELECT max(rowid) FROM runs)",
        "UPDATE seeds SET valid_to = NULL WHERE rowid = 1",
        "DELETE FROM adaptations WHERE decision = 2",
        "UPDATE decisions SET probabilities = '[1.0]' WHERE decision = 1",
    ],
)
def test_the_independent_model_notices_a_wrong_row(tmp_path: Path, edit: str) -> None:
    write_log(tmp_path / "log.db", realistic())
    follow(tmp_path)
    connection = sqlite3.connect(tmp_path / "tables.db")
    assert connection.execute(edit).rowcount > 0
    connection.commit()
    connection.close()
    with pytest.raises(AssertionError):
        check_tables(tmp_path / "log.db", tmp_path / "tables.db")


runs = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "steps": st.integers(1, 60),
        "per_epoch": st.sampled_from([5, 7, 10]),
        "sites": st.integers(1, 3),
        "kills": st.lists(st.integers(2, 150), max_size=3, unique=True),
        "rollbacks": st.lists(st.integers(1, 60), max_size=2, unique=True),
        "fault_at": st.none() | st.integers(10, 60),
        "pause_at": st.none() | st.integers(5, 60),
        "end": st.sampled_from(["finished", "failed", "running"]),
    }
)


@settings(max_examples=25, deadline=None)
@given(st.lists(runs, min_size=1, max_size=3), st.integers(1, 400))
def test_tables_equal_the_independent_model_whatever_runs_did(plans: list[dict[str, Any]], batch: int) -> None:
    facts = library(3)
    for number, plan in enumerate(plans):
        facts += history(f"run-{number}", **plan)
    with tempfile.TemporaryDirectory() as name:
        write_log(Path(name) / "log.db", facts)
        follow(Path(name), batch=batch)
        check_tables(Path(name) / "log.db", Path(name) / "tables.db")


@settings(max_examples=15, deadline=None)
@given(runs, st.data())
def test_tables_built_in_any_pieces_have_the_digests_of_tables_built_at_once(plan: dict[str, Any], data: Any) -> None:
    log = MemoryLog()
    append(log, [*library(3), *history("run-0", **plan)])
    head = log.head().position
    stops = sorted(data.draw(st.lists(st.integers(1, head), max_size=5)))
    pieces = open_tables("sqlite://")
    for stop in stops:
        Projector(log, pieces, batch=data.draw(st.integers(1, 200))).catch_up(until=stop)
    Projector(log, pieces).catch_up()
    with tables_of(log) as whole, pieces.connect() as one, whole.connect() as other:
        assert digests(one) == digests(other)


@settings(max_examples=15, deadline=None)
@given(runs, st.data())
def test_a_query_at_a_position_answers_as_the_tables_did_when_they_stood_there(plan: dict[str, Any], data: Any) -> None:
    log = MemoryLog(ManualClock())
    append(log, [*library(3), *history("run-0", **plan)])
    first = next(envelope.position for envelope in log.read(0, 10_000) if envelope.type == "RunStarted")
    at = data.draw(st.integers(first, log.head().position))
    with tables_of(log) as now, tables_of(log, until=at) as then, now.connect() as late, then.connect() as early:
        assert _answers(late, at) == _answers(early, None)
        assert _answers(early, at) == _answers(early, None)


def _answers(connection: Any, at: int | None) -> str:
    """Ask everything; as text, because two not-a-numbers must count as the same."""
    answers: list[Any] = [
        queries.run_steps(connection, "run-0", at=at, attempts=True),
        queries.run_epochs(connection, "run-0", at=at, attempts=True),
        queries.run_checkpoints(connection, "run-0", at=at, attempts=True),
        queries.run_events(connection, "run-0", at=at),
        queries.run_sites(connection, "run-0", at=at),
        queries.run_decisions(connection, "run-0", at=at, attempts=True, full=True),
        queries.run_adaptations(connection, "run-0", at=at, attempts=True),
        queries.seed_transitions(connection, "run-0", at=at, attempts=True),
        queries.field_reports(connection, at=at, attempts=True),
        queries.operator_actions(connection, at=at),
        queries.run_decisions(connection, "run-0", at=at),
        queries.run_steps(connection, "run-0", at=at),
    ]
    versioned = [
        queries.get_run(connection, "run-0", at=at),
        *queries.list_runs(connection, at=at),
        *queries.list_seeds(connection, at=at),
        *queries.list_blueprints(connection, at=at),
        *queries.list_kernels(connection, at=at),
    ]
    # When a version ends is known only later.
    answers += [{name: value for name, value in row.items() if name != "valid_to"} for row in versioned]
    return repr(answers)
