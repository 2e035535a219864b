"""Garbage collection: given these facts and these artifacts, this goes and that stays."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import append
from sealing import archive_at, make_key

from esper.artifacts.content import ContentStore
from esper.artifacts.local import LocalStore
from esper.artifacts.memory import MemoryShelf
from esper.artifacts.users import StoreUser, forget_user, note_user, users_of
from esper.errors import ArtifactStoreUnavailable, ConfigError, LogDamaged, NotFound, ProofFailed
from esper.events import fact_of
from esper.events.kernel import KernelValidated
from esper.events.operator import ArtifactsCollected, NoteAdded
from esper.events.run import CheckpointSaved
from esper.oona import SqliteLog
from esper.oona.collecting.collect import LEAST_AGE_S, Collected, NamingLog, Plan, collect, log_id, plan
from esper.oona.memory import MemoryLog
from esper.oona.sealing.sealer import seal

DAY_S = 86_400.0


class World:
    """A store, a log, and a clock that is a day ahead, so that everything is old."""

    def __init__(self) -> None:
        self.shelf = MemoryShelf()
        self.store = ContentStore(self.shelf)
        self.log = MemoryLog()
        self.now = time.time() + DAY_S

    def named(self, data: bytes) -> bytes:
        """Store bytes that a fact names."""
        digest = self.store.put(data)
        self.say(digest)
        return digest

    def say(self, digest: bytes) -> None:
        number = self.log.end() + 1
        append(self.log, [CheckpointSaved(run_id="r", attempt=1, ordinal=number, step=1, digest=digest, size_bytes=1)])

    def plan(self, *others: MemoryLog, **more: Any) -> Plan:
        logs = [NamingLog(log, "memory://", None) for log in (self.log, *others)]
        more = {"now": self.now, "older_than_s": LEAST_AGE_S, **more}
        return plan(self.store, logs, **more)

    def collect(self, found: Plan, store: ContentStore | None = None) -> Collected:
        return collect(
            store or self.store,
            self.log,
            found,
            now=self.now,
            older_than_s=LEAST_AGE_S,
            actor="ada",
            trace_id="a" * 32,
        )


@pytest.fixture
def world() -> World:
    return World()


def test_what_no_fact_names_goes_and_a_fact_says_so(world: World) -> None:
    kept = world.named(b"checkpoint")
    garbage = world.store.put(b"garbage")
    world.store.add_signature(garbage, "0123456789abcdef", b"signature")
    through = world.log.end()
    done = world.collect(world.plan())
    assert (done.artifacts, done.size_bytes, done.spared, done.position) == (1, 7, 0, through + 1)
    assert set(world.store.digests()) == {kept, done.list_digest}
    assert world.store.signatures(garbage) == {}
    assert done.list_digest is not None
    assert json.loads(world.store.get(done.list_digest)) == {"collected": [[garbage.hex(), 7]], "store": "memory"}
    assert fact_of(world.log.read(through, 1)[0]) == ArtifactsCollected(
        store="memory",
        actor="ada",
        artifacts=1,
        size_bytes=7,
        through=through,
        older_than_s=LEAST_AGE_S,
        list_digest=done.list_digest,
    )


def test_where_nothing_is_garbage_nothing_is_said(world: World) -> None:
    world.named(b"checkpoint")
    before = world.log.head()
    assert world.collect(world.plan()) == (0, 0, 0, 0, None, None)
    assert world.log.head() == before


def test_what_is_young_stays(world: World) -> None:
    world.named(b"checkpoint")
    young = world.store.put(b"waits for its fact")
    found = world.plan(now=time.time())
    assert (found.garbage, found.young) == ([], 1)
    assert world.plan().garbage[0].digest == young


def test_an_age_that_a_put_does_not_keep_to_is_refused(world: World) -> None:
    world.named(b"checkpoint")
    with pytest.raises(ConfigError, match="older than 2 h"):
        world.plan(older_than_s=LEAST_AGE_S - 1)


@pytest.mark.parametrize("spell", [lambda digest: digest.hex(), lambda digest: f"see {digest.hex().upper()}."])
def test_names_in_texts_count(world: World, spell: Callable[[bytes], str]) -> None:
    world.named(b"checkpoint")
    digest = world.store.put(b"named in a note")
    append(world.log, [NoteAdded(run_id="r", actor="ada", text=spell(digest))])
    assert world.plan().garbage == []


def test_the_name_of_a_stream_names(world: World) -> None:
    digest = world.store.put(b"a blueprint")
    fact = KernelValidated(blueprint_id=digest.hex(), kernel_id="k", measurements_digest=bytes(32))
    append(world.log, [fact])
    assert world.plan().garbage == []


def test_what_a_named_artifact_names_stays_and_so_on(world: World) -> None:
    last = world.store.put(b"last")
    middle = world.store.put(json.dumps({"next": last.hex()}).encode())
    world.named(json.dumps({"next": middle.hex()}).encode())
    garbage = world.store.put(b"garbage")
    assert [one.digest for one in world.plan().garbage] == [garbage]


def test_what_garbage_alone_names_is_garbage(world: World) -> None:
    world.named(b"checkpoint")
    inner = world.store.put(b"inner")
    outer = world.store.put(json.dumps({"next": inner.hex()}).encode())
    assert {one.digest for one in world.plan().garbage} == {inner, outer}


def test_a_list_of_garbage_does_not_name_it(world: World) -> None:
    world.named(b"checkpoint")
    world.store.put(b"garbage")
    world.collect(world.plan())
    again = world.store.put(b"garbage")
    assert [one.digest for one in world.plan().garbage] == [again]


def test_damaged_artifacts_that_are_named_are_searched_as_they_are(world: World) -> None:
    inner = world.store.put(b"inner")
    outer = world.named(json.dumps({"next": inner.hex()}).encode())
    name = f"{outer.hex()[:2]}/{outer.hex()}"
    world.shelf.kept[name] += b" "
    assert world.plan().garbage == []


# --- others at the same time


def test_what_is_put_again_meanwhile_is_spared(world: World) -> None:
    world.named(b"checkpoint")
    digest = world.store.put(b"wanted again")
    world.shelf.times = dict.fromkeys(world.shelf.times, world.now - 10 * DAY_S)
    found = world.plan()
    assert [one.digest for one in found.garbage] == [digest]
    world.store.put(b"wanted again")  # it is there, so nothing is written, but it is young now
    world.shelf.times[f"{digest.hex()[:2]}/{digest.hex()}"] += DAY_S  # as old as the clock here says
    done = world.collect(found)
    assert (done.artifacts, done.spared) == (0, 1)
    assert world.store.get(digest) == b"wanted again"


def test_what_a_fact_names_while_the_log_is_read_is_spared(world: World) -> None:
    world.named(b"checkpoint")
    digest = world.store.put(b"named late")

    class Overtaken(MemoryLog):
        """Another writer appends while the first look is under way."""

        def read(self, after: int = 0, limit: int = 1000, **more: Any) -> Any:
            page = super().read(after, limit, **more)
            if not page and self.end() == 1:
                world.log = self
                world.say(digest)
            return page

    log = Overtaken()
    append(log, [fact_of(one) for one in world.log.read()])
    world.log = log
    assert world.plan().garbage == []


def test_a_collection_that_breaks_off_says_what_it_removed(world: World) -> None:
    world.named(b"checkpoint")
    for number in range(5):
        world.store.put(b"garbage %d" % number)

    class Away(ContentStore):
        deleted = 0

        def delete(self, digest: bytes, *, before: float | None = None) -> bool:
            if self.deleted == 3:
                raise ArtifactStoreUnavailable("away")
            self.deleted += 1
            return super().delete(digest, before=before)

    found = world.plan()
    with pytest.raises(ArtifactStoreUnavailable):
        world.collect(found, Away(world.shelf))
    fact = fact_of(world.log.read(world.log.end() - 1, 1)[0])
    assert isinstance(fact, ArtifactsCollected)
    assert fact.artifacts == 3
    assert world.collect(world.plan()).artifacts == 2


def test_what_a_killed_delete_left_is_swept_up(world: World) -> None:
    world.named(b"checkpoint")
    orphan = bytes(range(32))
    world.store.add_signature(orphan, "0123456789abcdef", b"signature")
    found = world.plan()
    assert found.orphans == [orphan]
    world.collect(found)
    assert world.store.signatures(orphan) == {}


def test_what_killed_writers_left_on_a_disk_is_swept_up(world: World, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "artifacts")
    world.say(store.put(b"checkpoint"))
    (store.path / "tmp" / "half").write_bytes(b"half")
    logs = [NamingLog(world.log, "memory://", None)]
    assert plan(store, logs, now=time.time(), older_than_s=LEAST_AGE_S).unfinished == []
    found = plan(store, logs, now=world.now, older_than_s=LEAST_AGE_S)
    assert [one.name for one in found.unfinished] == ["half"]
    assert world.collect(found, store).unfinished == 1
    assert list((store.path / "tmp").iterdir()) == []


# --- which logs are asked


def test_a_log_that_is_not_asked_but_uses_the_store_stops_it(world: World) -> None:
    world.named(b"checkpoint")
    theirs, log = world.store.put(b"theirs"), MemoryLog()
    world.log, mine = log, world.log
    world.say(theirs)
    world.log = mine
    found = log_id(log)
    assert found is not None
    note_user(world.shelf, StoreUser(found, "redis://user:secret@host:6379/0", "main"))
    with pytest.raises(ConfigError, match=rf"used by log {found} \(main, first seen at redis://") as caught:
        world.plan()
    assert "secret" not in caught.value.message
    assert "--also-log" in caught.value.hint
    assert world.plan(log).garbage == []
    assert [one.digest for one in world.plan(forgotten=[found]).garbage] == [theirs]
    forget_user(world.shelf, found)
    assert users_of(world.shelf) == []
    for wrong in (found, "../../etc", ""):
        with pytest.raises(NotFound):
            forget_user(world.shelf, wrong)


def test_a_log_that_notes_itself_again_changes_nothing(world: World) -> None:
    world.named(b"checkpoint")
    user = StoreUser(log_id(world.log) or "", "sqlite:////a/log.db", "main")
    assert [note_user(world.shelf, user), note_user(world.shelf, user._replace(url="elsewhere"))] == [True, False]
    assert users_of(world.shelf) == [user]
    assert world.plan().garbage == []


def test_an_empty_log_takes_nothing_away(world: World) -> None:
    world.store.put(b"somebody's")
    with pytest.raises(ConfigError, match="is empty"):
        world.plan()


def test_a_log_that_names_nothing_in_the_store_takes_nothing_away(world: World) -> None:
    world.store.put(b"somebody's")
    world.say(bytes(32))
    with pytest.raises(ConfigError, match="names none of the 1 artifacts"):
        world.plan()


# --- logs that do not hold


@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[tuple[SqliteLog, Any]]:
    """A log on a disk whose first two facts are sealed."""
    key = make_key(tmp_path / "keys")
    with SqliteLog(tmp_path / "log.db") as log, archive_at(tmp_path / "archive", key) as archive:
        for number in range(1, 3):
            digest = bytes([number]) * 32
            append(log, [CheckpointSaved(run_id="r", attempt=1, ordinal=number, step=1, digest=digest, size_bytes=1)])
        seal(log, archive, key)
        yield log, archive


def test_a_log_behind_its_seal_takes_nothing_away(world: World, sealed: tuple[SqliteLog, Any]) -> None:
    log, archive = sealed
    behind = MemoryLog()
    behind.restore(log.read(0, 1))
    world.store.put(b"garbage")
    world.shelf.put_new(f"01/{'01' * 32}", b"")
    with pytest.raises(ProofFailed, match="sealed through 2"):
        plan(world.store, [NamingLog(behind, "memory://", archive)], now=world.now, older_than_s=LEAST_AGE_S)


def test_sealed_history_names_too(world: World, sealed: tuple[SqliteLog, Any]) -> None:
    log, archive = sealed
    for number in range(1, 4):
        world.shelf.put_new(f"{number:02x}/{bytes([number] * 32).hex()}", b"")
    found = plan(world.store, [NamingLog(log, "", archive)], now=world.now, older_than_s=LEAST_AGE_S)
    assert [one.digest for one in found.garbage] == [bytes([3]) * 32]


def test_a_damaged_log_takes_nothing_away(world: World) -> None:
    class Damaged(MemoryLog):
        def verify(self, progress: Any = None) -> Any:
            raise LogDamaged("position 1", position=1, reason="changed")

    log = Damaged()
    world.log = log
    world.named(b"checkpoint")
    world.store.put(b"garbage")
    with pytest.raises(LogDamaged):
        world.plan()
