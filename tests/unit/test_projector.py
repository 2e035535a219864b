"""The projector: batches, checkpoints, poison, a log that went backwards, rebuild and verify."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from builders import append, digest, history, library, realistic, started
from msgspec.structs import replace
from sqlalchemy import Engine, text

from esper.clock import ManualClock
from esper.errors import ConfigError, LogRegressed, NotFound, PoisonEvent, ProjectionDiverged, ProjectionError
from esper.events import Fact
from esper.events.envelope import Recorded
from esper.oona.memory import MemoryLog
from esper.projections import queries
from esper.projections.digest import digests
from esper.projections.open import open_tables
from esper.projections.positions import resolve_at
from esper.projections.rebuild import building, rebuild
from esper.projections.runner import Projector
from esper.projections.verify import verify


def log_of(facts: list[Fact]) -> MemoryLog:
    log = MemoryLog()
    append(log, facts)
    return log


def digests_of(engine: Engine) -> dict[str, str]:
    with engine.connect() as connection:
        return digests(connection)


@pytest.fixture
def log() -> MemoryLog:
    return log_of(realistic())


@pytest.fixture
def tables(tmp_path: Path) -> Engine:
    return open_tables(f"sqlite:///{tmp_path}/tables.db")


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_tables_are_the_same_however_the_log_is_cut_into_batches(log: MemoryLog, batch: int) -> None:
    small, whole = open_tables("sqlite://"), open_tables("sqlite://")
    Projector(log, small, batch=batch).catch_up()
    Projector(log, whole).catch_up()
    assert digests_of(small) == digests_of(whole)


def test_catch_up_goes_on_where_the_last_one_stopped(log: MemoryLog, tables: Engine) -> None:
    first = Projector(log, tables, batch=50).catch_up(until=301)
    assert (first.events, first.checkpoint.position) == (301, 301)
    told: list[tuple[int, int]] = []
    second = Projector(log, tables, batch=500).catch_up(lambda done, total: told.append((done, total)))
    head = log.head()
    assert (second.events, second.checkpoint.position, second.checkpoint.chain) == (
        head.position - 301,
        head.position,
        head.chain,
    )
    assert told[-1] == (head.position - 301, head.position - 301)
    assert Projector(log, tables).catch_up().events == 0
    assert verify(log, tables).checkpoint.position == head.position


def test_a_projector_folds_what_is_appended_later(tables: Engine) -> None:
    log = log_of(library())
    projector = Projector(log, tables)
    projector.catch_up()
    append(log, history("run-1", steps=20))
    projector.catch_up()
    verify(log, tables)
    with tables.connect() as connection:
        assert queries.get_run(connection, "run-1")["steps_done"] == 20


def test_two_projectors_in_turn_never_apply_a_fact_twice(log: MemoryLog, tables: Engine) -> None:
    one, other = Projector(log, tables, batch=40), Projector(log, tables, batch=40)
    one.catch_up(until=200)
    other.catch_up(until=400)
    one.catch_up(until=600)
    other.catch_up()
    verify(log, tables)


def test_projectors_that_race_on_one_file_never_apply_a_fact_twice(log: MemoryLog, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tables.db"
    open_tables(url)
    folded: list[int] = []
    together = threading.Barrier(3)

    def follow() -> None:
        engine = open_tables(url)
        projector = Projector(log, engine, batch=20)
        together.wait()
        folded.append(projector.catch_up().events)
        engine.dispose()

    threads = [threading.Thread(target=follow) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(folded) == log.head().position
    verify(log, open_tables(url))


def test_rows_and_checkpoint_are_written_together_or_not_at_all(tables: Engine) -> None:
    log = log_of([*library(), *history("run-1", steps=20)])
    Projector(log, tables).catch_up(until=30)
    before = digests_of(tables)
    with tables.begin() as connection:
        connection.execute(
            text("CREATE TRIGGER full BEFORE INSERT ON epochs BEGIN SELECT RAISE(ABORT, 'no room'); END")
        )
    with pytest.raises(PoisonEvent, match="no room"):
        Projector(log, tables).catch_up()
    with tables.begin() as connection:
        connection.execute(text("DROP TRIGGER full"))
    # Everything before the refused row is there, with its checkpoint; nothing after it.
    position = Projector(log, tables).checkpoint().position
    assert log.read(after=position, limit=1)[0].type == "EpochCompleted"
    assert digests_of(tables) != before
    verify(log, tables)


class _Changed:
    """A log whose record at one position was written by someone else."""

    def __init__(self, log: MemoryLog, position: int, **fields: object) -> None:
        self._log, self._position, self._fields = log, position, fields

    def read_recorded(self, after: int, limit: int, *, until: int | None = None) -> list[Recorded]:
        found = self._log.read_recorded(after, limit, until=until)
        return [replace(one, **self._fields) if one.position == self._position else one for one in found]

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"payload": b"\xc1"}, "cannot be read"),
        ({"payload": b"\x80"}, "missing required field"),
        ({"type": "HostTranscended"}, "not registered"),
        ({"schema": 99}, "newer than this Esper"),
    ],
)
def test_a_poison_fact_stops_the_projector_at_the_fact_before_it(
    log: MemoryLog, tables: Engine, fields: dict[str, object], cause: str
) -> None:
    poisoned = _Changed(log, 333, **fields)
    with pytest.raises(PoisonEvent, match=cause) as caught:
        Projector(poisoned, tables, batch=100).catch_up()  # type: ignore[arg-type]
    assert caught.value.attributes["position"] == 333
    assert Projector(log, tables).checkpoint().position == 332
    with pytest.raises(PoisonEvent):
        Projector(poisoned, tables).catch_up()  # type: ignore[arg-type]
    verify(log, tables)
    # The same log read soundly goes on from there, nothing lost.
    Projector(log, tables).catch_up()
    verify(log, tables)


def test_a_log_with_another_history_is_refused_and_nothing_is_written(tables: Engine) -> None:
    Projector(log_of(realistic()), tables).catch_up(until=400)
    before = digests_of(tables)
    other = log_of([started("run-other"), *realistic()])
    for ask in (Projector(other, tables).catch_up, Projector(other, tables).status, lambda: verify(other, tables)):
        with pytest.raises(LogRegressed, match="another history"):
            ask()
    assert digests_of(tables) == before


def test_a_log_that_ends_before_the_checkpoint_is_refused(tables: Engine) -> None:
    facts = realistic()
    Projector(log_of(facts), tables).catch_up()
    with pytest.raises(LogRegressed, match=r"but the log ends at 100"):
        Projector(log_of(facts[:100]), tables).catch_up()


def test_verify_names_the_table_that_was_edited(log: MemoryLog, tables: Engine) -> None:
    Projector(log, tables).catch_up()
    with tables.begin() as connection:
        connection.execute(text("UPDATE steps SET loss = loss + 1e-15 WHERE run_id = 'run-0001' AND step = 7"))
    with pytest.raises(ProjectionDiverged, match=r"1 of \d+ tables .* main:\d+: steps$") as caught:
        verify(log, tables)
    assert caught.value.attributes["tables"] == ["steps"]


def test_rebuild_after_the_file_was_deleted_gives_every_digest_back(log: MemoryLog, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tables.db"
    engine = open_tables(url)
    Projector(log, engine, batch=64).catch_up()
    before = digests_of(engine)
    engine.dispose()
    for path in tmp_path.glob("tables.db*"):
        path.unlink()
    engine = open_tables(url, check=False)
    told: list[tuple[int, int]] = []
    rebuilt = rebuild(log, engine, lambda done, total: told.append((done, total)), batch=100)
    assert digests_of(engine) == before
    assert (rebuilt.events, rebuilt.checkpoint.position) == (log.head().position, log.head().position)
    assert told[-1] == (rebuilt.events, rebuilt.events)
    assert sorted(path.name for path in tmp_path.glob("*rebuild*")) == ["tables.db.rebuild.lock"]


def test_rebuild_mends_tables_that_were_edited_and_those_who_read_see_it(log: MemoryLog, tables: Engine) -> None:
    Projector(log, tables).catch_up()
    follower = Projector(log, tables)
    with tables.begin() as connection:
        connection.execute(text("DELETE FROM epochs"))
    with tables.connect() as reader:
        old = reader.execute(text("SELECT count(*) FROM epochs")).scalar_one()
        rebuild(log, open_tables(str(tables.url), check=False))
        # A reader keeps the moment it began with until it ends its transaction.
        assert reader.execute(text("SELECT count(*) FROM epochs")).scalar_one() == old == 0
        reader.rollback()
        assert reader.execute(text("SELECT count(*) FROM epochs")).scalar_one() > 0
    append(log, history("run-later", steps=20))
    follower.catch_up()
    verify(log, tables)


def test_rebuild_of_a_poisoned_log_leaves_the_live_tables(log: MemoryLog, tables: Engine) -> None:
    Projector(log, tables).catch_up()
    before = digests_of(tables)
    with pytest.raises(PoisonEvent):
        rebuild(_Changed(log, 500, payload=b""), tables)  # type: ignore[arg-type]
    assert digests_of(tables) == before
    verify(log, tables)


def test_rebuild_works_on_tables_in_memory(log: MemoryLog) -> None:
    engine = open_tables("sqlite://")
    rebuild(log, engine)
    verify(log, engine)


def test_a_second_rebuild_at_the_same_time_is_refused(log: MemoryLog, tables: Engine) -> None:
    with building(tables), pytest.raises(ProjectionError, match="another rebuild"):
        rebuild(log, tables)
    rebuild(log, tables)


def test_tables_of_another_version_are_refused_until_they_are_rebuilt(log: MemoryLog, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tables.db"
    with open_tables(url).begin() as connection:
        connection.execute(text("UPDATE projection_checkpoints SET format = '0-old'"))
        connection.execute(text("ALTER TABLE epochs ADD COLUMN odd TEXT"))
    with pytest.raises(ProjectionError, match="have the form 0-old") as caught:
        open_tables(url)
    assert "rebuild" in caught.value.hint
    rebuild(log, open_tables(url, check=False))
    verify(log, open_tables(url))


def test_status_tells_rows_and_lag_of_each_table(log: MemoryLog, tables: Engine) -> None:
    projector = Projector(log, tables)
    projector.catch_up(until=100)
    status = {one.table: one for one in projector.status()}
    assert len(status) == 19
    assert status["blueprints"].rows > 0
    head = log.head().position
    assert {(one.position, one.head, one.lag) for one in status.values()} == {(100, head, head - 100)}


def test_opening_tables_that_are_not_there_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no tables at"):
        open_tables(f"sqlite:///{tmp_path}/none.db", create=False)
    (tmp_path / "empty.db").touch()
    with pytest.raises(NotFound, match="no tables in"):
        open_tables(f"sqlite:///{tmp_path}/empty.db", create=False)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "tables.db").write_bytes(b"not a database, however long it is" * 100)
    with pytest.raises(ProjectionError, match="cannot be read"):
        open_tables(f"sqlite:///{tmp_path}/tables.db")


@pytest.mark.parametrize("url", ["redis://here", "tables.db", "postgresql://here/db"])
def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        open_tables(url)


def test_a_damaged_tables_file_is_an_error_that_says_what_to_do(log: MemoryLog, tmp_path: Path) -> None:
    path = tmp_path / "tables.db"
    engine = open_tables(f"sqlite:///{path}")
    Projector(log, engine).catch_up(until=500)
    engine.dispose()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("PRAGMA writable_schema=ON")
    connection.execute("DROP TABLE epochs")
    connection.commit()
    connection.close()
    with pytest.raises(ProjectionError, match="cannot be written past main:500") as caught:
        Projector(log, open_tables(f"sqlite:///{path}")).catch_up()
    assert "rebuild" in caught.value.hint


def test_a_moment_of_the_log_is_a_position_or_a_time() -> None:
    clock = ManualClock(1_700_000_000_000_000)
    log = MemoryLog(clock)
    for number in range(3):
        append(log, [started(f"run-{number}")])
        clock.advance(60_000_000)
    assert resolve_at("2", log) == 2
    assert resolve_at("main:3", log) == 3
    assert resolve_at("2023-11-14T22:13:19Z", log) == 0
    assert resolve_at("2023-11-14T22:13:20", log) == 1
    assert resolve_at("2023-11-14T22:14:30+00:00", log) == 2
    assert resolve_at("2023-11-15T00:14:30+02:00", log) == 2
    assert resolve_at("2033-01-01", log) == 3
    with pytest.raises(NotFound, match=r"ends at main:3"):
        resolve_at("4", log)
    with pytest.raises(ConfigError, match="neither a position nor a time"):
        resolve_at("yesterday", log)


def test_digests_depend_on_rows_alone(tables: Engine) -> None:
    log = log_of([*library(), *history("run-1", steps=20)])
    Projector(log, tables).catch_up()
    before = digests_of(tables)
    with tables.begin() as connection:
        connection.execute(text("CREATE TEMP TABLE kept AS SELECT * FROM steps"))
        connection.execute(text("DELETE FROM steps"))
        connection.execute(text("INSERT INTO steps SELECT * FROM kept ORDER BY step DESC"))
    assert digests_of(tables) == before
    assert len(set(before.values())) == len(before)
    assert digest("a") != digest("b")
