"""A damaged log names its damage, and salvage keeps all that stands before it."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from log_contract import note, step
from tampering import flip_byte_of_loss, flip_loss_and_rechain, note_head

from esper.clock import ManualClock
from esper.errors import ConfigError, EsperError, LogDamaged, NotFound
from esper.events.envelope import Envelope
from esper.oona import ANY, Head, MemoryLog, SqliteLog, iterate, open_log, salvage
from esper.oona.sqlite.file import SCHEMA

STEPS = 120


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed log of 121 records in two streams, on some twenty pages."""
    path = tmp_path_factory.mktemp("sound") / "log.db"
    with SqliteLog(path, clock=ManualClock()) as log:
        log.append([note(1, "begin")], stream="operator/run-1", expected=ANY)
        for start in range(1, STEPS + 1, 40):
            batch = [step(number, 1.0 / number) for number in range(start, start + 40)]
            log.append(batch, stream="run/run-1", expected=start - 1)
    return path


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    """A copy of the sound log, to be damaged."""
    for file in sound.parent.iterdir():
        shutil.copy(file, tmp_path / file.name)
    return tmp_path / "log.db"


def records(path: Path) -> list[Envelope]:
    with SqliteLog(path, create=False) as log:
        return log.read(limit=10_000)


def verify(path: Path) -> None:
    with SqliteLog(path, create=False) as log:
        log.verify()


def execute(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


# --- altered records


def test_a_flipped_bit_of_a_loss_is_named_with_its_position(path: Path) -> None:
    position = flip_byte_of_loss(path, "run-1", 57)
    assert position == 58
    with pytest.raises(LogDamaged, match=r"position 58.*digest") as caught:
        verify(path)
    assert caught.value.position == 58


def test_a_rechained_edit_is_consistent_and_verifies(path: Path, sound: Path) -> None:
    assert flip_loss_and_rechain(path, "run-1", 57) == 58
    verify(path)
    assert [one.position for one, other in zip(records(path), records(sound), strict=True) if one != other] == [58]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("event_id", b"0" * 16),
        ("type", "EpochCompleted"),
        ("schema", 2),
        ("topic", "training.runs"),
        ("stream", "run/run-2"),
        ("version", 1000),
        ("sender_id", "tolariA"),
        ("trace_id", "1" * 32),
        ("causation_id", b"0" * 16),
        ("recorded_at", 1),
        ("payload", b"\x80"),
        ("payload", "text"),
        ("digest", bytes(32)),
        ("chain", bytes(32)),
        ("chain", "text"),
    ],
)
def test_an_altered_column_is_named_with_its_position(path: Path, column: str, value: object) -> None:
    execute(path, f"UPDATE events SET {column} = ? WHERE position = 70", value)
    with pytest.raises(LogDamaged) as caught:
        verify(path)
    assert caught.value.position == 70


def test_a_removed_record_is_named(path: Path) -> None:
    execute(path, "DELETE FROM events WHERE position = 33")
    with pytest.raises(LogDamaged, match="the next record has position 34") as caught:
        verify(path)
    assert caught.value.position == 33


def test_swapped_records_are_named(path: Path) -> None:
    for old, new in ((40, -1), (41, 40), (-1, 41)):
        execute(path, "UPDATE events SET position = ? WHERE position = ?", new, old)
    with pytest.raises(LogDamaged) as caught:
        verify(path)
    assert caught.value.position == 40


def test_a_record_before_the_first_is_named(path: Path) -> None:
    execute(
        path,
        "INSERT INTO events SELECT 0, x'00', type, schema, topic, 'x', version, sender_id, trace_id, causation_id, "
        "recorded_at, payload, digest, chain FROM events WHERE position = 1",
    )
    with pytest.raises(LogDamaged):
        verify(path)


def test_text_that_is_no_text_is_named_with_its_position(path: Path) -> None:
    execute(path, "UPDATE events SET sender_id = CAST(x'ff' AS TEXT) WHERE position = 90")
    with pytest.raises(LogDamaged, match="UTF-8") as caught:
        verify(path)
    assert caught.value.position == 90


# --- tails that were cut


def test_a_cut_tail_is_noticed_when_the_log_is_opened(path: Path) -> None:
    execute(path, "DELETE FROM events WHERE position > 100")
    message = "the log ends at 100 but position 121 was acknowledged"
    with pytest.raises(LogDamaged, match=message) as caught:
        SqliteLog(path)
    assert caught.value.position == 101


def test_a_tail_cut_while_the_log_is_open_is_noticed_by_verify(path: Path) -> None:
    with SqliteLog(path) as log:
        execute(path, "DELETE FROM events WHERE position > 100")
        with pytest.raises(LogDamaged, match="ends at 100 but position 121 was acknowledged"):
            log.verify()


def test_a_log_put_back_from_an_older_copy_is_noticed(path: Path, tmp_path: Path) -> None:
    older = tmp_path / "older.db"
    shutil.copy(path, older)
    with SqliteLog(path) as log:
        log.append([note(2)], stream="operator/run-1", expected=1)
    shutil.copy(older, path)
    with pytest.raises(LogDamaged, match="ends at 121 but position 122 was acknowledged"):
        SqliteLog(path)


def test_a_lost_write_ahead_log_is_noticed(path: Path, tmp_path: Path) -> None:
    with SqliteLog(path) as log:
        log.append([note(2)], stream="operator/run-1", expected=1)
        away = tmp_path / "away"
        away.mkdir()
        for name in ("log.db", "log.db.head"):
            shutil.copy(path.with_name(name), away / name)
    with pytest.raises(LogDamaged, match="ends at 121 but position 122 was acknowledged"):
        SqliteLog(away / "log.db")


def test_an_emptied_log_is_noticed(path: Path) -> None:
    path.write_bytes(b"")
    with pytest.raises(LogDamaged, match="ends at 0 but position 121 was acknowledged"):
        SqliteLog(path)


def test_a_replaced_log_of_the_same_length_is_noticed(path: Path) -> None:
    note_head(path, Head(121, b"h" * 32))
    with pytest.raises(LogDamaged, match="rewritten or replaced"):
        SqliteLog(path)


def test_a_database_ahead_of_its_head_file_is_fine(path: Path) -> None:
    with SqliteLog(path) as log:
        chain = log.chain_at(50)
    assert chain is not None
    note_head(path, Head(50, chain))
    with SqliteLog(path) as log:
        assert log.verify().acknowledged == 50
        log.append([note(2)], stream="operator/run-1", expected=1)
        assert log.verify().acknowledged == 122


def test_a_copy_without_head_file_opens(path: Path) -> None:
    path.with_name("log.db.head").unlink()
    with SqliteLog(path) as log:
        assert log.verify().events == 121


def test_one_torn_slot_of_the_head_file_leaves_the_other(path: Path) -> None:
    with SqliteLog(path) as log:
        log.append([note(2)], stream="operator/run-1", expected=1)
    place = path.with_name("log.db.head")
    data = bytearray(place.read_bytes())
    for slot in (0, 64):
        torn = data.copy()
        torn[slot + 20] ^= 1
        place.write_bytes(torn)
        verify(path)


def test_a_head_file_that_is_no_head_file_is_named(path: Path) -> None:
    path.with_name("log.db.head").write_bytes(b"x" * 128)
    with pytest.raises(LogDamaged, match="neither slot can be read"):
        SqliteLog(path)


# --- SQLite's own structure


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.write_bytes(b"This is a text file, not a log.\n" * 400)
    with pytest.raises(LogDamaged, match="not a database"):
        SqliteLog(path)


def test_another_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    execute(path, "CREATE TABLE things (name TEXT)")
    with pytest.raises(LogDamaged, match="not an Esper log"):
        SqliteLog(path)
    with closing(sqlite3.connect(path)) as connection:
        assert [row[0] for row in connection.execute("SELECT name FROM sqlite_master")] == ["things"]


def test_a_dropped_index_is_named(path: Path) -> None:
    execute(path, "DROP INDEX events_by_stream")
    with pytest.raises(LogDamaged, match="events_by_stream"):
        SqliteLog(path)


def test_an_index_that_lacks_a_record_is_found(path: Path) -> None:
    execute(path, "PRAGMA writable_schema=ON")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA writable_schema=ON")
        sql = "CREATE INDEX events_by_topic ON events (topic) WHERE topic <> 'training.steps' AND position <> 1"
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'events_by_topic'", (sql,))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("REINDEX events_by_topic")
        connection.execute("PRAGMA writable_schema=ON")
        sql = SCHEMA["events_by_topic"]
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'events_by_topic'", (sql,))
    with pytest.raises(LogDamaged, match=r"every record is sound.*missing from index") as caught:
        verify(path)
    assert caught.value.position == 122


def test_a_table_definition_that_is_no_text_is_named(path: Path) -> None:
    data = path.read_bytes()
    assert data.count(b"indexevents_by_id") == 1
    path.write_bytes(data.replace(b"indexevents_by_id", b"index\xcevents_by_id"))
    with pytest.raises(LogDamaged, match="not text"):
        SqliteLog(path)


@pytest.mark.parametrize("part", range(4))
def test_a_flipped_byte_anywhere_is_named_or_harmless(sound: Path, tmp_path: Path, part: int) -> None:
    """Whatever byte is flipped, the log either verifies with every record as it was, or raises LogDamaged."""
    data = sound.read_bytes()
    expected = records(sound)
    draw = random.Random(part)
    # Every page's header, where structure lives, and a draw of all other bytes.
    places = [page + byte for page in range(0, len(data), 4096) for byte in draw.sample(range(12), 2)]
    places += draw.sample(range(len(data)), 40)
    if part == 0:
        places += range(100)
    named = 0
    for place in places:
        path = tmp_path / "log.db"
        for file in tmp_path.iterdir():
            file.unlink()
        damaged = bytearray(data)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        shutil.copy(sound.with_name("log.db.head"), path.with_name("log.db.head"))
        try:
            verify(path)
            assert records(path) == expected, f"byte {place} changed a record and nobody noticed"
        except LogDamaged as error:
            named += bool(error.reason)
    assert named > len(places) // 4


@pytest.mark.parametrize("size", [0, 1, 50, 100, 4096, 20_000, 40_960, -4096, -1])
def test_a_truncated_file_is_named(path: Path, size: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:size])
    with pytest.raises(LogDamaged):
        verify(path)


# --- salvage


def test_salvage_copies_all_before_the_damage(path: Path, tmp_path: Path) -> None:
    intact = records(path)
    flip_byte_of_loss(path, "run-1", 57)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    seen: list[tuple[int, int]] = []
    target = tmp_path / "new" / "log.db"
    report = salvage(path, f"sqlite:///{target}", lambda done, total: seen.append((done, total)))
    assert (report.head.position, report.damaged_at, report.acknowledged) == (57, 58, 121)
    assert report.reason is not None
    assert "digest" in report.reason
    assert seen == [(57, 121)]
    after = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    assert after == before
    with SqliteLog(target, create=False) as log:
        assert log.verify().head == report.head
        assert log.read(limit=1000) == intact[:57]
        log.append([step(57)], stream="run/run-1", expected=56)


def test_salvage_of_a_sound_log_copies_everything(path: Path, tmp_path: Path) -> None:
    report = salvage(path, f"sqlite:///{tmp_path / 'new.db'}")
    assert (report.head.position, report.damaged_at, report.reason) == (121, None, None)
    assert records(tmp_path / "new.db") == records(path)


def test_salvage_reports_a_cut_tail(path: Path, tmp_path: Path) -> None:
    execute(path, "DELETE FROM events WHERE position > 100")
    report = salvage(path, f"sqlite:///{tmp_path / 'new.db'}")
    assert (report.head.position, report.damaged_at, report.acknowledged) == (100, 101, 121)


def test_salvage_reads_the_write_ahead_log_of_a_killed_writer(path: Path, tmp_path: Path) -> None:
    with SqliteLog(path) as log:
        log.append([note(2)], stream="operator/run-1", expected=1)
        away = tmp_path / "away"
        away.mkdir()
        for name in ("log.db", "log.db-wal", "log.db.head"):
            shutil.copy(path.with_name(name), away / name)
    assert salvage(away / "log.db", f"sqlite:///{tmp_path / 'new.db'}").head.position == 122


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_salvage_of_a_truncated_file_gives_a_verified_prefix(path: Path, tmp_path: Path, share: float) -> None:
    intact = records(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    target = tmp_path / "new.db"
    report = salvage(path, f"sqlite:///{target}")
    assert report.damaged_at == report.head.position + 1
    kept = records(target)
    assert kept == intact[: len(kept)]
    assert len(kept) == report.head.position
    if share >= 0.6:
        assert kept


@pytest.mark.parametrize(
    "harm",
    [lambda data: data, lambda data: b"no database" * 1000, lambda data: data[:100]],
    ids=["sound", "no database", "header only"],
)
def test_salvage_never_raises_for_damage(path: Path, tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    path.write_bytes(harm(path.read_bytes()))
    path.with_name("log.db.head").write_bytes(b"x" * 128)
    report = salvage(path, f"sqlite:///{tmp_path / 'new.db'}")
    assert report.acknowledged is None
    assert (report.damaged_at is None) == (report.head.position == 121)


def test_salvage_refuses_a_target_with_records_and_a_source_that_is_not_there(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="already holds 121 records"):
        salvage(path, f"sqlite:///{path}")
    with pytest.raises(NotFound):
        salvage(tmp_path / "none.db", "memory://")


# --- memory


def test_restore_refuses_records_that_do_not_follow(path: Path) -> None:
    with SqliteLog(path) as log:
        stored = list(iterate(log))
    copy = MemoryLog()
    copy.restore(stored[:10])
    for wrong in (stored[:1], stored[11:], stored[10:12] + stored[13:]):
        with pytest.raises(LogDamaged):
            copy.restore(wrong)
    assert copy.head().position == 10
    assert issubclass(LogDamaged, EsperError)
    assert open_log("memory://").head().position == 0
