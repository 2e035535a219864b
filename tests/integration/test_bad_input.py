"""What happens to a run when disk, processes, kernels or stored bytes go bad under it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cli_support import Esper

from esper.blueprints.forging.forge import Forge
from esper.blueprints.kernels.shelf import KernelShelf
from esper.errors import (
    ArtifactDamaged,
    ArtifactError,
    ArtifactMissing,
    ConcurrencyConflict,
    HostFailed,
    LogFull,
    NotFound,
    RecorderStopped,
)
from esper.events.decision import DecisionMade, FieldReportFiled
from esper.events.run import (
    CheckpointSaved,
    RunFailed,
    RunFinished,
    RunResumed,
    RunStarted,
    TrainingStepCompleted,
)
from esper.events.seed import KernelsOffered, SeedFaulted, SeedTransitioned
from replay.session import verify
from tests.tiny_tasks import TINY, train_tiny
from tests.training import Place, go_on, place

ROOT = Path(__file__).parents[2]
STEPS = TINY.total_steps
COMMAND = (sys.executable, "-m", "esper")


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with compiled kernels and one undisturbed run, ``whole``."""
    home = tmp_path_factory.mktemp("forged")
    where = place(home)
    train_tiny(*where, run_id="whole")
    # The command line takes signed kernels only; putting one again signs it.
    shelf = KernelShelf.open(where.store, home / "keys" / "signing.pem", home / "keys")
    for offered in of(where, "whole", KernelsOffered):
        for offer in offered.offers:
            shelf.put(where.store.get(bytes.fromhex(offer.kernel_id)))
    where.log.close()
    return home


@pytest.fixture
def home(forged: Path, tmp_path: Path) -> Path:
    """A copy of it, where the command line looks too."""
    return Path(shutil.copytree(forged, tmp_path / "home"))


def of(where: Place, run_id: str, cls: type) -> list[Any]:
    return [fact for fact in where.of(cls) if fact.run_id == run_id]


def ends_as_undisturbed(home: Path, run_id: str) -> None:
    """Check that a run ended once, with the bits of the undisturbed one, each effective step once, and verifies."""
    where = place(home)
    where.log.verify()
    (whole,), (finished,) = of(where, "whole", RunFinished), of(where, run_id, RunFinished)
    assert finished.parameter_digest == whole.parameter_digest
    verdict = verify(where.log, where.store, run_id)
    assert (verdict.steps, verdict.finished) == (STEPS, True)
    where.log.close()


def interrupt_at(step: int) -> Callable[[Any], None]:
    def on_epoch(session: Any) -> None:
        if session.step_count == step:
            raise KeyboardInterrupt

    return on_epoch


# --- a full disk


def fill_at(where: Place, step: int) -> Callable[[Any], None]:
    """Let the log's file grow by two more pages from a step on, as a disk does that is nearly full."""

    def on_epoch(session: Any) -> None:
        if session.step_count == step:
            writer = where.log._writer  # type: ignore[attr-defined]
            (pages,) = writer.execute("PRAGMA page_count").fetchone()
            writer.execute(f"PRAGMA max_page_count = {pages + 2}")

    return on_epoch


def test_a_full_disk_stops_the_run_with_everything_acknowledged_and_it_goes_on_later(home: Path) -> None:
    where = place(home)
    with pytest.raises(RecorderStopped, match="full") as caught:
        train_tiny(*where, run_id="crammed", on_epoch=fill_at(where, 30))
    assert isinstance(caught.value.__cause__, LogFull)
    assert "free space" in caught.value.hint
    where.log.close()
    where = place(home)  # the disk has room again
    steps = of(where, "crammed", TrainingStepCompleted)
    assert [fact.step for fact in steps] == list(range(1, len(steps) + 1))
    assert len(steps) >= 30
    assert of(where, "crammed", CheckpointSaved)[-1].step >= 30
    assert of(where, "crammed", RunFailed) == []
    assert go_on(where, "crammed").model is not None
    where.log.close()
    ends_as_undisturbed(home, "crammed")


def test_a_store_that_takes_nothing_fails_the_run_and_it_goes_on_later(home: Path) -> None:
    where = place(home)
    temporary = home / "artifacts" / "tmp"

    def spoil(session: Any) -> None:
        if session.step_count == 30:
            temporary.rmdir()
            temporary.write_text("in the way")

    with pytest.raises(ArtifactError, match="cannot be written"):
        train_tiny(*where, run_id="crammed", seed=1, on_epoch=spoil)  # its checkpoints are not in the store yet
    (failed,) = of(where, "crammed", RunFailed)
    assert (failed.error, failed.step) == ("ArtifactError", 40)
    verdict = verify(where.log, where.store, "crammed")
    assert (verdict.steps, verdict.finished) == (40, False)
    temporary.unlink()
    temporary.mkdir()
    go_on(where, "crammed")
    verdict = verify(where.log, where.store, "crammed")
    assert (verdict.steps, verdict.attempts, verdict.finished) == (STEPS, 2, True)
    where.log.close()


# --- two processes


def test_a_second_process_shuts_the_first_out_and_nothing_is_doubled(home: Path) -> None:
    where, other = place(home), place(home)

    def overtake(session: Any) -> None:
        if session.step_count == 30:
            assert go_on(other, "contested").model is not None

    with pytest.raises(RecorderStopped) as caught:
        train_tiny(*where, run_id="contested", on_epoch=overtake)
    assert isinstance(caught.value.__cause__, ConcurrencyConflict)
    assert "owns this stream" in caught.value.hint
    steps = [(fact.attempt, fact.step) for fact in of(where, "contested", TrainingStepCompleted)]
    assert steps == [(1, step) for step in range(1, 31)] + [(2, step) for step in range(31, STEPS + 1)]
    made = [(fact.attempt, fact.decision) for fact in of(where, "contested", DecisionMade)]
    assert len(made) == len(set(made))
    assert of(where, "contested", RunFailed) == []
    where.log.close()
    other.log.close()
    ends_as_undisturbed(home, "contested")


def test_the_one_that_is_shut_out_exits_with_1(home: Path, esper: Esper) -> None:
    where = place(home)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(*where, "Waiting", run_id="contested", on_epoch=interrupt_at(20))
    where.log.close()
    hold = home / "hold"
    hold.touch()
    process = subprocess.Popen(
        [*COMMAND, "--home", str(home), "train", "--resume", "contested"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TINY_HOLD": str(hold)},
    )
    assert process.stderr is not None
    try:
        assert any("attempt 2 goes on after step 20" in line for line in process.stderr)
        assert esper("train", "--resume", "contested").code == 0
    finally:
        hold.unlink()
        _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error[E-LOG-008]" in told
    assert "ConcurrencyConflict" in told
    ends_as_undisturbed(home, "contested")


# --- seeds and hosts that go wrong


#: A branch that squares: numbers that a host copes with overflow in it.
SQUARE = b"""{"ir": 1, "id": "square", "kind": "residual", "site": {"rank": ["NC"], "causal": true},
 "symbols": {"C": "site.channels", "P": "site.positions", "r": {"int": [4, "C"], "bucket": 4, "default": 4}},
 "nodes": [
  {"id": "w", "op": "linear", "in": ["x"], "attr": {"out": "r"}, "init": "kaiming"},
  {"id": "s", "op": "mul", "in": ["w", "w"]},
  {"id": "t", "op": "linear", "in": ["s"], "attr": {"out": "C"}, "init": "zeros", "role": "tail"}],
 "out": "t", "merge": {"op": "add", "gate": "alpha"},
 "claims": {"preserves": "exact@alpha0,exact@birth", "params": "2*C*r+r+C", "flops": "4*P*C*r+P*r"}}"""


@pytest.mark.parametrize(
    ("settle", "states"),
    [
        (10, ["germinated", "loading", "grafting", "stabilization", "evaluating", "fossilized"]),
        (40, ["germinated", "loading", "grafting", "stabilization", "culled", "embargoed", "dormant"]),
    ],
    ids=["kept before", "culled"],
)
def test_a_seed_that_overflows_is_put_aside_and_the_run_goes_on_to_its_end(
    home: Path, settle: int, states: list[str]
) -> None:
    where = place(home)
    Forge(*where, sender_id="test", trace_id="0" * 32).submit(SQUARE, "test")
    graft = msgspec.structs.replace(TINY.graft, settle_steps=settle)
    train_tiny(*where, "Overflowing", run_id="overflowing", sites=["middle"], blueprints=["square"], graft=graft)
    fault, *_ = of(where, "overflowing", SeedFaulted)
    assert (fault.seed_id, fault.kind, fault.step) == ("seed-1", "not_finite", 45)
    moves = [fact.target for fact in of(where, "overflowing", SeedTransitioned) if fact.seed_id == "seed-1"]
    assert moves == states
    reports = [fact.outcome for fact in of(where, "overflowing", FieldReportFiled) if fact.seed_id == "seed-1"]
    assert reports == (["fossilized", "faulted"] if states[-1] == "fossilized" else ["faulted"])
    (finished,) = of(where, "overflowing", RunFinished)
    assert finished.step == STEPS
    losses = [fact.loss for fact in of(where, "overflowing", TrainingStepCompleted)]
    assert [fact.step for fact in of(where, "overflowing", TrainingStepCompleted)] == list(range(1, STEPS + 1))
    assert all(0 <= loss < 10 for loss in losses)
    assert verify(where.log, where.store, "overflowing").finished
    where.log.close()


@pytest.mark.parametrize(("task", "at"), [("Raising", "gave way"), ("RaisingHost", "shapes")])
def test_a_task_that_raises_before_its_first_step_is_recorded_as_failed(home: Path, task: str, at: str) -> None:
    where = place(home)
    with pytest.raises(HostFailed, match=at):
        train_tiny(*where, task, run_id="raising")
    (failed,) = of(where, "raising", RunFailed)
    assert (failed.error, failed.step) == ("RuntimeError", 0)
    assert not verify(where.log, where.store, "raising").finished
    where.log.close()


def test_a_blueprint_that_does_not_exist_is_refused_before_anything_is_recorded(home: Path) -> None:
    where = place(home)
    head = where.log.head()
    with pytest.raises(NotFound, match="no blueprint is called nothing"):
        train_tiny(*where, run_id="wrong", blueprints=["nothing"])
    assert where.log.head() == head
    where.log.close()


# --- stored bytes


def checkpoint_file(home: Path, run_id: str) -> Path:
    where = place(home)
    digest = of(where, run_id, CheckpointSaved)[-1].digest.hex()
    where.log.close()
    return home / "artifacts" / digest[:2] / digest


def stopped(home: Path) -> str:
    where = place(home)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(*where, run_id="stopped", on_epoch=interrupt_at(30))
    where.log.close()
    return "stopped"


@pytest.mark.parametrize("error", [ArtifactMissing, ArtifactDamaged])
def test_a_checkpoint_that_cannot_be_trusted_stops_a_resumption_before_it_begins(
    home: Path, esper: Esper, error: type[Exception]
) -> None:
    run_id = stopped(home)
    file = checkpoint_file(home, run_id)
    kept = file.read_bytes()
    if error is ArtifactMissing:
        file.unlink()
    else:
        file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    where = place(home)
    head = where.log.head()
    with pytest.raises(error, match=file.name):
        go_on(where, run_id)
    assert where.log.head() == head
    where.log.close()
    assert esper("train", "--resume", run_id).code == (1 if error is ArtifactMissing else 3)
    file.write_bytes(kept)
    assert esper("train", "--resume", run_id).code == 0
    ends_as_undisturbed(home, run_id)


def test_a_kernel_that_is_gone_stops_a_resumption_and_it_goes_on_once_it_is_back(home: Path) -> None:
    run_id = stopped(home)
    where = place(home)
    kernel = next(fact.kernel_id for fact in of(where, run_id, SeedTransitioned) if fact.kernel_id)
    file = home / "artifacts" / kernel[:2] / kernel
    kept = file.read_bytes()
    file.unlink()
    with pytest.raises(ArtifactMissing, match=kernel):
        go_on(where, run_id)
    file.write_bytes(kept)
    go_on(where, run_id)
    where.log.close()
    ends_as_undisturbed(home, run_id)


# --- kill -9

KILLS = 2


def test_killing_at_random_moments_and_resuming_gives_the_same_bits(home: Path) -> None:
    chance = random.Random(20261123)
    code = (
        "import sys; from tests.training import place, go_on; from tests.tiny_tasks import train_tiny\n"
        "from pathlib import Path\n"
        "where = place(Path(sys.argv[1])); print('open', flush=True)\n"
        "if sys.argv[2] == 'start': train_tiny(*where, run_id='killed')\n"
        "else: go_on(where, 'killed')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed_at = []
    for number in range(KILLS):
        how = "start" if number == 0 else "resume"
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(home), how], stdout=subprocess.PIPE, env=environment, cwd=ROOT
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        # Moments in steps rather than in seconds, so that a busy machine does not move them past the end.
        wait_for_step(home, process, 12 + 25 * number + chance.randrange(20))
        time.sleep(chance.uniform(0, 0.02))
        process.kill()
        process.wait()
        process.stdout.close()
        where = place(home)
        killed_at.append(len(of(where, "killed", TrainingStepCompleted)))
        assert of(where, "killed", RunStarted)
        assert of(where, "killed", RunFinished) == [], "it ended before the kill"
        where.log.close()
    where = place(home)
    go_on(where, "killed")
    assert len(of(where, "killed", RunResumed)) == KILLS
    where.log.close()
    ends_as_undisturbed(home, "killed")


def wait_for_step(home: Path, process: subprocess.Popen[bytes], step: int) -> None:
    where = place(home)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if max((fact.step for fact in of(where, "killed", TrainingStepCompleted)), default=0) >= step:
            break
        time.sleep(0.01)
    where.log.close()
