"""Kernels on their way into a run: ahead of time, late, bad, away, and again after everything local is gone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from servers import S3Server

from esper.artifacts import ArtifactStore, open_store
from esper.artifacts.signing import SigningKey
from esper.blueprints.kernels.shelf import KernelShelf
from esper.errors import ArtifactStoreUnavailable
from esper.events import Event, Fact, fact_of
from esper.events.decision import DecisionExecuted, DecisionMade
from esper.events.kernel import KernelCompiled, KernelQuarantined
from esper.events.run import RunFailed, RunFinished, RunResumed
from esper.events.seed import KernelLoaded, KernelsOffered, SeedTransitioned
from esper.oona import open_log
from esper.oona.port import ANY, iterate
from esper.tolaria.config import check
from esper.tolaria.launch import Trained, resume, start
from replay.session import verify
from tests.tiny_tasks import TINY
from tests.training import Place, place

#: Steps between two decisions, and the step at which the first seed is grafted.
EPOCH, FIRST = TINY.steps_per_epoch, 20


class Stubborn:
    """A store that does something before it is asked for bytes, and before it keeps some."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self.before_get: Callable[[bytes], None] = lambda digest: None
        self.before_put: Callable[[bytes], None] = lambda data: None

    def get(self, digest: bytes) -> bytes:
        self.before_get(digest)
        return self._store.get(digest)

    def put(self, data: bytes) -> bytes:
        self.before_put(data)
        return self._store.put(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def grow(where: Place, run_id: str, **more: Any) -> Trained:
    """Record a tiny run; what is no argument of ``start`` is a field of the configuration."""
    given = {name: more.pop(name) for name in ("shelf", "kernel_cache_bytes", "on_epoch") if name in more}
    times = {"at": [FIRST / TINY.total_steps, (FIRST + EPOCH) / TINY.total_steps]}
    config = check(msgspec.structs.replace(TINY, **{"policy_settings": times, **more}))
    return start("tests.tiny_tasks:Tiny", config, log=where.log, store=where.store, run_id=run_id, **given)


def of(where: Place, run_id: str, cls: type[Fact]) -> list[Any]:
    return [fact for fact in where.of(cls) if fact.run_id == run_id]  # type: ignore[attr-defined]


def digest_of(where: Place, run_id: str) -> bytes:
    (finished,) = of(where, run_id, RunFinished)
    digest: bytes = finished.parameter_digest
    return digest


def kernels_of(where: Place, run_id: str) -> list[str]:
    """Return the ids of the kernels on offer to a run."""
    return [offer.kernel_id for fact in of(where, run_id, KernelsOffered) for offer in fact.offers]


def at(step: int, act: Callable[[], None]) -> Callable[[Any], None]:
    def on_epoch(session: Any) -> None:
        if session.step_count == step:
            act()

    return on_epoch


def brought(session: Any) -> None:
    """Wait until every kernel that is brought ahead is there."""
    deadline = time.monotonic() + 30
    while not session._supply.cache.idle():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with compiled kernels, an undisturbed run ``whole`` and one that grows nothing, ``plain``."""
    home = tmp_path_factory.mktemp("forged")
    where = place(home)
    grow(where, "whole", on_epoch=brought)
    grow(where, "plain", policy="off", policy_settings={})
    where.log.close()
    return home


@pytest.fixture
def where(forged: Path, tmp_path: Path) -> Iterator[Place]:
    """A copy of it, behind a store that can be told to misbehave."""
    opened = place(Path(shutil.copytree(forged, tmp_path / "home")))
    yield opened._replace(store=Stubborn(opened.store))  # type: ignore[arg-type]
    opened.log.close()


def file_of(tmp_path: Path, kernel_id: str) -> Path:
    return tmp_path / "home" / "artifacts" / kernel_id[:2] / kernel_id


# --- ahead, and late


def test_each_graft_tells_where_its_kernel_came_from_before_the_seed_moves(where: Place) -> None:
    loaded = of(where, "whole", KernelLoaded)
    germinated = [one for one in of(where, "whole", SeedTransitioned) if one.target == "germinated"]
    assert [(one.seed_id, one.site, one.kernel_id, one.step) for one in loaded] == [
        (one.seed_id, one.site, one.kernel_id, one.step) for one in germinated
    ]
    assert len(loaded) >= 2
    assert {one.source for one in loaded} == {"cache"}
    assert all(0 < one.stall_s < 1 for one in loaded)
    order = [type(fact) for fact in where.facts() if isinstance(fact, KernelLoaded | SeedTransitioned)]
    assert order[0] is KernelLoaded


def test_training_waits_for_a_late_kernel_and_comes_to_the_same_bits(where: Place) -> None:
    offered = {bytes.fromhex(one) for one in kernels_of(where, "whole")}
    store: Any = where.store
    grow(
        where,
        "late",
        kernel_cache_bytes=0,
        on_epoch=at(EPOCH, lambda: setattr(store, "before_get", lambda digest: time.sleep(0.1 * (digest in offered)))),
    )
    loaded = of(where, "late", KernelLoaded)
    assert {one.source for one in loaded} == {"store"}
    assert all(0.1 <= one.stall_s < 30 for one in loaded)
    assert digest_of(where, "late") == digest_of(where, "whole")
    assert verify(where.log, where.store, "late").finished


def test_kernels_in_memory_outlast_a_store_that_cannot_be_read(where: Place) -> None:
    offered = {bytes.fromhex(one) for one in kernels_of(where, "whole")}
    store: Any = where.store

    def away(digest: bytes) -> None:
        if digest in offered:
            raise ArtifactStoreUnavailable("the store is away")

    def on_epoch(session: Any) -> None:
        if session.step_count == EPOCH:
            brought(session)
            store.before_get = away

    grow(where, "outlasting", on_epoch=on_epoch)
    assert digest_of(where, "outlasting") == digest_of(where, "whole")


def test_a_store_that_is_away_when_a_kernel_is_wanted_stops_the_run_and_it_goes_on_later(where: Place) -> None:
    offered = {bytes.fromhex(one) for one in kernels_of(where, "whole")}
    store: Any = where.store

    def away(digest: bytes) -> None:
        if digest in offered:
            raise ArtifactStoreUnavailable("the store is away")

    with pytest.raises(ArtifactStoreUnavailable):
        grow(where, "cut", kernel_cache_bytes=0, on_epoch=at(EPOCH, lambda: setattr(store, "before_get", away)))
    (failed,) = of(where, "cut", RunFailed)
    assert (failed.error, failed.step) == ("ArtifactStoreUnavailable", FIRST)
    assert all(fact.executed for fact in of(where, "cut", DecisionExecuted))
    assert where.of(KernelQuarantined) == []
    store.before_get = lambda digest: None
    resume("cut", log=where.log, store=where.store)
    assert digest_of(where, "cut") == digest_of(where, "whole")
    assert verify(where.log, where.store, "cut").finished


def test_a_run_that_was_recorded_before_loading_was_told_still_verifies(where: Place) -> None:
    with open_log("memory://") as older:
        for envelope in iterate(where.log):
            fact = fact_of(envelope)
            if not isinstance(fact, KernelLoaded):
                event = Event(fact=fact, event_id=envelope.event_id, sender_id="t", trace_id="0" * 32)
                older.append([event], stream=envelope.stream, expected=ANY)
        assert verify(older, where.store, "whole").finished


# --- bad ones


def spoil(how: str, tmp_path: Path, wanted: list[str]) -> Callable[[], None]:
    def act() -> None:
        for kernel_id in wanted:
            file = file_of(tmp_path, kernel_id)
            if how == "missing":
                file.unlink()
            elif how == "damaged":
                kept = file.read_bytes()
                file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
            else:
                for beside in tmp_path.rglob(f"*{kernel_id}*"):
                    if beside != file and beside.is_file():
                        beside.unlink()

    return act


@pytest.mark.parametrize(
    ("how", "code"), [("missing", "E-ART-002"), ("damaged", "E-ART-003"), ("unsigned", "E-ART-005")]
)
def test_a_bad_kernel_is_refused_and_put_aside_and_the_host_goes_on_bit_for_bit(
    where: Place, tmp_path: Path, how: str, code: str
) -> None:
    wanted = sorted(set(kernels_of(where, "whole")))
    key, _ = SigningKey.load_or_create(tmp_path / "key.pem")
    shelf = KernelShelf(where.store, key=key, trusted=[])
    grow(where, "signing", shelf=shelf)  # what was kept without a signature gets one
    before = len(where.of(KernelQuarantined))
    grow(where, "bad", shelf=shelf, kernel_cache_bytes=0, on_epoch=at(EPOCH, spoil(how, tmp_path, wanted)))

    refused = [fact for fact in of(where, "bad", DecisionExecuted) if not fact.executed]
    assert [fact.reason.split()[1] for fact in refused] == [code] * len(wanted)
    assert refused[0].step == FIRST
    assert of(where, "bad", KernelLoaded) == []
    assert digest_of(where, "bad") == digest_of(where, "plain"), "the host is that of a run without growth"

    aside = where.of(KernelQuarantined)[before:]
    assert sorted(fact.kernel_id for fact in aside) == wanted
    assert {fact.reason for fact in aside} == {how}
    assert all(fact.found_by == "tolaria" for fact in aside)
    later = [fact for fact in of(where, "bad", DecisionMade) if fact.decision > refused[-1].decision]
    assert later
    assert not [action for fact in later for action in fact.legal if action.kernel_id in wanted]

    verified = verify(where.log, where.store, "bad")
    assert verified.finished
    assert where.of(KernelQuarantined)[before:] == aside, "a replay reports nothing"
    # Forged again they are the same kernels, and the next run has them; the refusal stays what it was.
    grow(where, "mended", shelf=shelf)
    assert digest_of(where, "mended") == digest_of(where, "whole")
    assert sorted(set(kernels_of(where, "mended"))) == wanted
    assert verify(where.log, where.store, "bad") == verified


def test_a_refusal_that_is_done_again_after_a_kill_stays_a_refusal_though_the_kernel_is_back(
    where: Place, tmp_path: Path
) -> None:
    wanted, store = kernels_of(where, "whole")[0], where.store
    kept = file_of(tmp_path, wanted).read_bytes()

    def killed(data: bytes) -> None:
        raise KeyboardInterrupt

    def on_epoch(session: Any) -> None:
        if session.step_count == EPOCH:
            file_of(tmp_path, wanted).unlink()
            store.before_put = killed  # type: ignore[attr-defined]

    with pytest.raises(KeyboardInterrupt):
        grow(where, "killed", kernel_cache_bytes=0, on_epoch=on_epoch)
    assert [fact.executed for fact in of(where, "killed", DecisionExecuted)] == [True, False]
    store.before_put = lambda data: None  # type: ignore[attr-defined]
    file_of(tmp_path, wanted).write_bytes(kept)
    resume("killed", log=where.log, store=where.store)
    assert of(where, "killed", RunResumed)[0].from_step == EPOCH
    twice = [fact.reason for fact in of(where, "killed", DecisionExecuted) if fact.decision == 2]
    assert twice == [twice[0]] * 2
    assert twice[0].startswith("refused: E-ART-002")
    verdict = verify(where.log, where.store, "killed")
    assert verdict.finished
    assert verdict.overlapping > 0


# --- everything local gone


def objects(store: ArtifactStore, kernel_ids: list[str]) -> dict[str, bytes]:
    return {one: store.get(bytes.fromhex(one)) for one in kernel_ids}


def test_restarting_with_an_empty_cache_against_s3_gives_the_same_kernels_digest_for_digest(
    tmp_path: Path, s3: S3Server
) -> None:
    url = s3.url(s3.new_bucket())

    def opened(name: str) -> Place:
        return Place(open_log(f"sqlite:///{tmp_path / name}/log.db"), open_store(url))

    def close(where: Place) -> None:
        where.log.close()
        where.store.close()

    where = opened("first")
    grow(where, "whole")
    with pytest.raises(KeyboardInterrupt):
        grow(where, "cut", on_epoch=at(2 * FIRST, interrupted))
    offered = kernels_of(where, "whole")
    first = objects(where.store, offered)
    whole, loaded = digest_of(where, "whole"), [one.kernel_id for one in of(where, "whole", KernelLoaded)]
    assert len(loaded) >= 2
    close(where)

    # The log is kept: the run goes on, its kernels come from S3 again.
    where = opened("first")
    resume("cut", log=where.log, store=where.store)
    assert digest_of(where, "cut") == whole
    assert verify(where.log, where.store, "cut").finished
    close(where)

    # Nothing local is kept: another log finds the same kernels under the same ids and leaves them as they are.
    shutil.rmtree(tmp_path / "first")
    where = opened("second")
    grow(where, "again")
    assert kernels_of(where, "again") == offered
    assert [one.kernel_id for one in of(where, "again", KernelLoaded)] == loaded
    assert {fact.kernel_id for fact in where.of(KernelCompiled)} == set(offered)
    assert objects(where.store, offered) == first
    assert digest_of(where, "again") == whole
    close(where)


def interrupted() -> None:
    raise KeyboardInterrupt
