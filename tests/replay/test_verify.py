"""Re-executing recorded runs: what verifies, what is named where it does not, and that nothing is written."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from cli_support import Esper
from tampering import alter_and_rechain, flip_byte_of_loss, flip_loss_and_rechain
from torch.nn import functional as F

import esper as product
from esper.errors import (
    EnvironmentMismatch,
    HostFailed,
    LogDamaged,
    NotFound,
    NotReexecutable,
    ReplayDiverged,
)
from esper.events import Event, Fact
from esper.events.decision import DecisionMade, DecisionRequested
from esper.events.run import (
    CheckpointSaved,
    EpochCompleted,
    RolledBack,
    RunFailed,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    TrainingStepCompleted,
)
from esper.events.seed import AlphaMoved, SeedTransitioned
from esper.ids import derived_id
from esper.oona.port import ANY
from replay.history import load_history, overlap_disagreement
from replay.session import verify
from replay.state import state_at
from tests import tiny_tasks
from tests.tiny_tasks import TINY, train_tiny
from tests.training import Place, go_on, place

STEPS = TINY.total_steps
INPUTS, TARGETS = torch.randn(32, 8, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 3


def interrupt_at(step: int) -> Callable[[Any], None]:
    def on_epoch(session: Any) -> None:
        if session.step_count == step:
            raise KeyboardInterrupt

    return on_epoch


def signal_at(step: int) -> Callable[[Any], None]:
    def on_epoch(session: Any) -> None:
        if session.step_count == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_epoch


def killed(where: Place, steps: int, run_id: str) -> None:
    """Record a run that stops dead within a step."""
    tiny_tasks.Interruptible.stop_after = steps
    with pytest.raises(KeyboardInterrupt):
        train_tiny(*where, "Interruptible", run_id=run_id)


def own_loop(home: Path) -> str:
    torch.manual_seed(0)
    model = tiny_tasks.small_host()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with product.run(model, optimizer, total_steps=4, steps_per_epoch=2, policy="off", home=str(home)) as run:
        while not run.done:
            run.step(F.cross_entropy(model(INPUTS), TARGETS))
    return run.run_id


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one run of each kind, named for it; tests copy it before they change anything."""
    home = tmp_path_factory.mktemp("recorded")
    where = place(home)
    train_tiny(*where, run_id="whole")
    with pytest.raises(KeyboardInterrupt):
        train_tiny(*where, run_id="unfinished", on_epoch=interrupt_at(50))
    killed(where, 37, "resumed")
    assert go_on(where, "resumed").model is not None
    assert train_tiny(*where, run_id="paused", on_epoch=signal_at(30)).model is None
    graft = msgspec.structs.replace(TINY.graft, ramp_steps=13)
    train_tiny(*where, "Recovering", run_id="rolled", graft=graft, probe_every=1000)
    with pytest.raises(HostFailed, match="the loss gave way"):
        train_tiny(*where, "Raising", run_id="failed")
    where.log.close()
    (home / "own").write_text(own_loop(home))
    return home


@pytest.fixture
def where(recorded: Path) -> Iterator[Place]:
    """The recorded home, to read only."""
    opened = place(recorded)
    yield opened
    opened.log.close()


@pytest.fixture
def copied(recorded: Path, tmp_path: Path) -> Path:
    """A copy of the home, to alter."""
    return Path(shutil.copytree(recorded, tmp_path / "home"))


def check(home: Path, run_id: str, **options: Any) -> Any:
    opened = place(home)
    try:
        return verify(opened.log, opened.store, run_id, **options)
    finally:
        opened.log.close()


def diverges(home: Path, run_id: str, position: int, quantity: str) -> ReplayDiverged:
    """Check that the log is sound by itself and that re-execution names what is wrong."""
    opened = place(home)
    opened.log.verify()
    opened.log.close()
    with pytest.raises(ReplayDiverged) as caught:
        check(home, run_id)
    assert caught.value.position == position
    assert caught.value.quantity == quantity
    assert str(position) in caught.value.message
    assert quantity in caught.value.message
    return caught.value


def of(where: Place, run_id: str, cls: type[Fact]) -> list[Any]:
    return [fact for fact in where.of(cls) if fact.run_id == run_id]  # type: ignore[attr-defined]


# --- what verifies


def test_a_whole_run_verifies_and_nothing_is_written(where: Place) -> None:
    head, kept = where.log.head(), set(where.store.digests())  # type: ignore[attr-defined]
    threads, flags = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    verdict = verify(where.log, where.store, "whole")
    assert (verdict.steps, verdict.attempts, verdict.overlapping, verdict.finished) == (STEPS, 1, 0, True)
    assert verdict.facts == len(load_history(where.log, "whole").path)
    assert (where.log.head(), set(where.store.digests())) == (head, kept)  # type: ignore[attr-defined]
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (threads, flags)


def test_verifying_needs_no_checkpoint_and_brings_none_back(copied: Path) -> None:
    opened = place(copied)
    files = [copied / "artifacts" / name[:2] / name for name in map(bytes.hex, saved(opened, "whole"))]
    for file in files:
        file.unlink()
    assert verify(opened.log, opened.store, "whole").finished
    assert not any(file.exists() for file in files)
    opened.log.close()


def saved(where: Place, run_id: str) -> set[bytes]:
    return {fact.digest for fact in of(where, run_id, CheckpointSaved)}


def test_the_run_that_is_verified_grew(where: Place) -> None:
    moves = {(fact.seed_id, fact.target) for fact in of(where, "whole", SeedTransitioned)}
    assert {("seed-1", "fossilized"), ("seed-2", "fossilized")} <= moves


def test_an_unfinished_run_verifies_up_to_where_it_came(where: Place) -> None:
    verdict = verify(where.log, where.store, "unfinished")
    assert (verdict.steps, verdict.finished) == (50, False)
    assert of(where, "unfinished", RunFinished) == []


def test_a_resumed_run_verifies_and_what_was_done_twice_agrees(where: Place) -> None:
    (resumed,) = of(where, "resumed", RunResumed)
    assert (resumed.from_step, resumed.redone_steps) == (30, 7)
    verdict = verify(where.log, where.store, "resumed")
    assert (verdict.steps, verdict.attempts, verdict.finished) == (STEPS, 2, True)
    assert verdict.overlapping >= 7
    digests = [of(where, run_id, RunFinished)[0].parameter_digest for run_id in ("whole", "resumed")]
    assert digests[0] == digests[1]


def test_a_paused_run_verifies(where: Place) -> None:
    assert of(where, "paused", RunPaused)[0].step == 30
    verdict = verify(where.log, where.store, "paused")
    assert (verdict.steps, verdict.finished) == (30, False)


def test_a_paused_run_that_went_on_verifies(copied: Path) -> None:
    opened = place(copied)
    go_on(opened, "paused")
    verdict = verify(opened.log, opened.store, "paused")
    assert (verdict.steps, verdict.attempts, verdict.overlapping) == (STEPS, 2, 0)
    opened.log.close()


def test_a_run_that_was_rolled_back_verifies(where: Place) -> None:
    (rolled, *_) = of(where, "rolled", RolledBack)
    assert rolled.from_step > rolled.to_step
    verdict = verify(where.log, where.store, "rolled")
    assert verdict.finished
    assert verdict.attempts > 1
    assert verdict.steps == len(of(where, "rolled", TrainingStepCompleted)) > STEPS


def test_a_run_that_failed_verifies_with_its_failure(where: Place) -> None:
    assert len(of(where, "failed", RunFailed)) == 1
    verdict = verify(where.log, where.store, "failed")
    assert not verdict.finished
    assert verdict.facts == len(load_history(where.log, "failed").path)


def test_a_run_whose_store_failed_verifies_up_to_there(copied: Path) -> None:
    opened = place(copied)
    version = opened.log.stream_version("run/unfinished")
    failed = RunFailed(
        run_id="unfinished",
        attempt=1,
        ordinal=version + 1,
        step=50,
        error="ArtifactError",
        message="the disk is full",
        traceback_digest=bytes(32),
    )
    append(opened, failed)
    assert verify(opened.log, opened.store, "unfinished").steps == 50
    opened.log.close()


def append(where: Place, fact: Any) -> int:
    event = Event(
        fact=fact,
        event_id=derived_id("run", fact.run_id, fact.attempt, getattr(fact, "ordinal", type(fact).__name__)),
        sender_id="test",
        trace_id="0" * 32,
    )
    return where.log.append([event], stream=fact.stream, expected=ANY).first


def test_a_decision_of_a_process_that_was_shut_out_does_not_count(copied: Path) -> None:
    """Decisions have a stream of their own, so a late one of attempt 1 can land after attempt 2 began."""
    opened = place(copied)
    killed(opened, 37, "overtaken")
    late = of(opened, "overtaken", DecisionRequested)[-1]
    (last,) = of(opened, "overtaken", CheckpointSaved)[-1:]
    steps = len(of(opened, "overtaken", TrainingStepCompleted))
    resumed = RunResumed(
        run_id="overtaken",
        attempt=2,
        ordinal=1,
        from_step=last.step,
        checkpoint_digest=last.digest,
        redone_steps=steps - last.step,
        writer="w",
        reason="test",
        environment_digest=b"",
    )
    append(opened, resumed)
    append(opened, msgspec.structs.replace(late, decision=99))
    verdict = verify(opened.log, opened.store, "overtaken")
    assert (verdict.steps, verdict.attempts) == (last.step, 2)
    opened.log.close()


# --- what is named


def test_a_flipped_byte_is_found_by_the_log_itself(copied: Path) -> None:
    position = flip_byte_of_loss(copied / "log.db", "whole", 57)
    opened = place(copied)
    with pytest.raises(LogDamaged) as caught:
        opened.log.verify()
    assert caught.value.position == position
    opened.log.close()


def test_a_flipped_loss_in_a_sound_chain_is_found_by_replay(copied: Path) -> None:
    position = flip_loss_and_rechain(copied / "log.db", "whole", 57)
    error = diverges(copied, "whole", position, "TrainingStepCompleted.loss")
    assert error.step == 57
    assert error.expected != error.got
    assert "step 57" in error.message


def replaced(**fields: Any) -> Callable[[Any], Any]:
    return lambda fact: msgspec.structs.replace(fact, **fields)


@pytest.mark.parametrize(
    ("cls", "which", "change", "quantity"),
    [
        (EpochCompleted, 3, replaced(parameter_digest=bytes(32)), "EpochCompleted.parameter_digest"),
        (EpochCompleted, 3, replaced(validation_loss=0.25), "EpochCompleted.validation_loss"),
        (EpochCompleted, 3, replaced(training_flops=7), "EpochCompleted.training_flops"),
        (TrainingStepCompleted, 9, replaced(samples_digest=bytes(16)), "TrainingStepCompleted.samples_digest"),
        (TrainingStepCompleted, 9, replaced(learning_rate=0.5), "TrainingStepCompleted.learning_rate"),
        (SeedTransitioned, 3, replaced(target="culled"), "SeedTransitioned.target"),
        (SeedTransitioned, 3, replaced(reason="because"), "SeedTransitioned.reason"),
        (AlphaMoved, 0, replaced(alpha=0.75), "AlphaMoved.alpha"),
        (CheckpointSaved, 2, replaced(digest=bytes(32)), "CheckpointSaved.digest"),
        (RunFinished, 0, replaced(test_accuracy=1.0), "RunFinished.test_accuracy"),
        (RunStarted, 0, replaced(total_steps=81), "RunStarted.total_steps"),
        (RunStarted, 0, replaced(dataset_digest=bytes(32)), "RunStarted.dataset_digest"),
        (RunStarted, 0, replaced(host="Sequential (1 parameters)"), "RunStarted.host"),
    ],
    ids=lambda value: value.split(".")[1] if isinstance(value, str) and "." in value else "",
)
def test_an_altered_fact_in_a_sound_chain_is_named(
    copied: Path, cls: type[Fact], which: int, change: Callable[[Any], Any], quantity: str
) -> None:
    position = alter_and_rechain(copied / "log.db", "whole", cls, change, which=which)
    diverges(copied, "whole", position, quantity)


def test_an_altered_probability_is_named_even_where_the_choice_stays(copied: Path) -> None:
    """The policy is asked again: a recorded distribution does not vouch for itself."""

    def shift(made: DecisionMade) -> DecisionMade:
        shifted = [0.0] * len(made.legal)
        shifted[made.chosen] = 1.0
        other = next(index for index in range(len(made.legal)) if index != made.chosen)
        low = made.uniform / 2 if other < made.chosen else 1.0
        shifted[other] = min(low, (1.0 - made.uniform) / 2)
        shifted[made.chosen] = 1.0 - shifted[other]
        assert shifted != made.probabilities
        return msgspec.structs.replace(made, probabilities=shifted)

    opened = place(copied)
    made = of(opened, "whole", DecisionMade)
    which = next(index for index, fact in enumerate(made) if len(fact.legal) > 1)
    index = next(i for i in range(len(made[which].legal)))
    opened.log.close()
    position = alter_and_rechain(copied / "log.db", "whole", DecisionMade, shift, which=which)
    diverges(copied, "whole", position, f"DecisionMade.probabilities[{index}]")


def test_a_decision_drawn_with_another_number_is_named(copied: Path) -> None:
    position = alter_and_rechain(copied / "log.db", "whole", DecisionMade, replaced(uniform=0.5), which=1)
    diverges(copied, "whole", position, "DecisionMade.uniform")


def test_a_resumed_run_whose_attempts_disagree_is_named(copied: Path) -> None:
    opened = place(copied)
    taken = of(opened, "resumed", TrainingStepCompleted)
    which = next(index for index, fact in enumerate(taken) if fact.attempt == 1 and fact.step == 33)
    opened.log.close()
    position = alter_and_rechain(copied / "log.db", "resumed", TrainingStepCompleted, replaced(loss=0.125), which=which)
    error = diverges(copied, "resumed", position, "TrainingStepCompleted.loss")
    assert error.step == 33
    assert "of a later attempt" in error.message


def test_overlaps_are_compared_across_an_attempt_that_was_short(copied: Path) -> None:
    """Attempt 2 stops earlier than attempt 1 did: what it did not come to is compared with attempt 3."""
    opened = place(copied)
    killed(opened, 38, "thrice")
    tiny_tasks.Interruptible.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        go_on(opened, "thrice")
    go_on(opened, "thrice")
    history = load_history(opened.log, "thrice")
    again = [
        one.superseded.fact.step for one in history.overlaps if isinstance(one.superseded.fact, TrainingStepCompleted)
    ]
    assert again == [31, 32, 33, 31, 32, 33, 34, 35, 36, 37, 38]
    assert overlap_disagreement(history) is None
    assert verify(opened.log, opened.store, "thrice").attempts == 3
    opened.log.close()


def test_a_missing_end_is_named(copied: Path) -> None:
    """A run that says it took more steps than it can."""
    opened = place(copied)
    version = opened.log.stream_version("run/whole")
    extra = msgspec.structs.replace(of(opened, "whole", RunFinished)[0], ordinal=version + 1)
    position = append(opened, extra)
    opened.log.close()
    diverges(copied, "whole", position, "end of the run")


# --- other machines and other loops


def other_machine(started: RunStarted) -> RunStarted:
    return msgspec.structs.replace(started, environment={**started.environment, "processor": "of another make"})


def test_another_machine_is_named_and_compared_only_within_a_tolerance(copied: Path) -> None:
    alter_and_rechain(copied / "log.db", "whole", RunStarted, other_machine)
    with pytest.raises(EnvironmentMismatch, match="of another make"):
        check(copied, "whole")
    verdict = check(copied, "whole", tolerance=1e-6)
    assert (verdict.steps, verdict.tolerance, verdict.largest_deviation) == (STEPS, 1e-6, 0.0)


def test_a_loss_beyond_the_tolerance_is_named_and_one_within_it_is_measured(copied: Path) -> None:
    alter_and_rechain(
        copied / "log.db",
        "whole",
        TrainingStepCompleted,
        lambda fact: msgspec.structs.replace(fact, loss=fact.loss + 1e-4),
        which=9,
    )
    verdict = check(copied, "whole", tolerance=1e-3)
    assert 1e-5 < verdict.largest_deviation < 1e-3
    with pytest.raises(ReplayDiverged) as caught:
        check(copied, "whole", tolerance=1e-7)
    assert caught.value.step == 10


def test_a_loop_of_the_users_own_cannot_be_executed_again(recorded: Path) -> None:
    with pytest.raises(NotReexecutable, match=r"facts verified \(\d+\)"):
        check(recorded, (recorded / "own").read_text())


def test_an_unknown_run_is_not_found(recorded: Path) -> None:
    with pytest.raises(NotFound, match="nobody"):
        check(recorded, "nobody")


def test_exit_codes_tell_the_verdict(copied: Path, esper: Esper) -> None:
    told = esper("replay", "verify", "whole", "--json").json
    assert (told["verified"], told["steps"], told["compared"]) == (True, STEPS, "bit for bit")
    assert esper("replay", "verify", "nobody").code == 4
    assert esper("replay", "verify", (copied / "own").read_text()).code == 6
    position = flip_loss_and_rechain(copied / "log.db", "whole", 7)
    ran = esper("replay", "verify", "whole", "--json")
    assert (ran.code, ran.out) == (3, "")
    for part in (f"position {position}", "step 7", "TrainingStepCompleted.loss"):
        assert part in ran.err


# --- state at a moment


def test_state_at_the_end_is_what_run_finished_says(where: Place) -> None:
    (finished,) = of(where, "whole", RunFinished)
    state = state_at(where.log, "whole")
    assert state["result"] == {name: getattr(finished, name) for name in state["result"]}
    assert (state["status"], state["step"]) == ("finished", STEPS)
    assert state["parameter_digest"] == finished.parameter_digest.hex()
    assert {seed["state"] for seed in state["seeds"].values()} == {"fossilized"}


def test_state_at_a_position_an_epoch_and_a_time_agree(copied: Path, esper: Esper) -> None:
    opened = place(copied)
    (ended,) = [one for one in load_history(opened.log, "whole").facts(EpochCompleted) if one.fact.epoch == 2]  # type: ignore[attr-defined]
    (envelope,) = opened.log.read(ended.position - 1, 1)
    opened.log.close()
    by_epoch = esper("replay", "state", "whole", "--at", "epoch:2", "--json").json
    assert (by_epoch["step"], by_epoch["epochs"], by_epoch["position"]) == (30, 3, ended.position)
    for at in (str(ended.position), f"main:{ended.position}"):
        assert esper("replay", "state", "whole", "--at", at, "--json").json == by_epoch
    time = dt.datetime.fromtimestamp(0, tz=dt.UTC) + dt.timedelta(microseconds=envelope.recorded_at)
    by_time = esper("replay", "state", "whole", "--at", time.isoformat(), "--json").json
    assert by_time["epochs"] == 3
    assert by_time["position"] >= ended.position
    assert esper("replay", "state", "whole", "--at", "epoch:99").code == 4
    assert esper("replay", "state", "whole", "--at", "soon").code == 2


def test_state_after_a_rollback_is_the_checkpoint_again(where: Place) -> None:
    history = load_history(where.log, "rolled")
    (rolled, *_) = history.facts(RolledBack)
    before = state_at(where.log, "rolled", position=rolled.position - 1)
    after = state_at(where.log, "rolled", position=rolled.position)
    saved = max(one.position for one in history.facts(CheckpointSaved) if one.position < rolled.position)
    then = state_at(where.log, "rolled", position=saved)
    assert before["seeds"] != then["seeds"], "a seed moved between checkpoint and rollback"
    assert after["seeds"] == then["seeds"]
    assert (after["step"], after["loss"]) == (then["step"], then["loss"])
    assert (after["rollbacks"], after["last_trip"]["kind"]) == (1, "not_finite")
    assert after["training_flops"] >= then["training_flops"]


def test_state_of_a_resumed_run_is_that_of_an_undisturbed_one(where: Place) -> None:
    told_apart = ("run_id", "position", "attempt")
    states = [state_at(where.log, run_id) for run_id in ("whole", "resumed")]
    whole, resumed = ({k: v for k, v in state.items() if k not in told_apart} for state in states)
    assert resumed == {**whole, "checkpoint": resumed["checkpoint"]}
    assert resumed["checkpoint"] == whole["checkpoint"]
