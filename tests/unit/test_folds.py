"""Folds: given facts, then rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from builders import append, blueprint_id, digest, history, kernel_id, library, realistic, started
from sqlalchemy import Connection, select

from esper.errors import PoisonEvent
from esper.events import FACT_TYPES, Fact
from esper.events.blueprint import BlueprintSubmitted
from esper.events.run import CheckpointSaved, EpochCompleted, RolledBack, RunFinished, RunResumed, TrainingStepCompleted
from esper.events.seed import AlphaMoved, CounterfactualMeasured, SeedFaulted, SeedTransitioned
from esper.oona.memory import MemoryLog
from esper.projections import tables as t
from esper.projections.folds import handlers
from esper.projections.open import open_tables
from esper.projections.reading import rows
from esper.projections.runner import Projector
from esper.projections.staging import Staging

RUN = "run-a"


class Given:
    """Facts in a log, and the tables they give."""

    def __init__(self, facts: Sequence[Fact], *, batch: int = 5000) -> None:
        self.log = MemoryLog()
        append(self.log, facts)
        self.engine = open_tables("sqlite://")
        self.projector = Projector(self.log, self.engine, batch=batch)
        self.projector.catch_up()

    def connect(self) -> Connection:
        return self.engine.connect()

    def then(self, table: Any, *names: str) -> list[Any]:
        """Return rows of a table in key order: tuples of the named columns, or bare values for one column."""
        with self.connect() as connection:
            found = rows(connection, select(table).order_by(*table.primary_key.columns))
        if len(names) == 1:
            return [row[names[0]] for row in found]
        return [tuple(row[name] for name in names) for row in found]


class Numbered:
    """Writes facts of one run without repeating what they all have."""

    def __init__(self) -> None:
        self.attempt, self.ordinal = 1, 1

    def __call__(self, cls: type[Any], **fields: Any) -> Any:
        self.ordinal += 1
        return cls(run_id=RUN, attempt=self.attempt, ordinal=self.ordinal, **fields)

    def step(self, number: int, loss: float = 1.0) -> TrainingStepCompleted:
        return self(
            TrainingStepCompleted,
            epoch=0,
            step=number,
            loss=loss,
            learning_rate=0.1,
            samples_digest=b"\x01" * 16,
            duration_s=0.5,
        )

    def epoch(self, number: int, step: int, **fields: Any) -> EpochCompleted:
        values: dict[str, Any] = {
            "train_loss": 1 / (number + 3),
            "validation_loss": None,
            "validation_accuracy": None,
            "parameters": 100 + number,
            "training_flops": step * 10,
            "parameter_digest": digest(step),
            "data_digest": digest("data", step),
            "duration_s": 1.0,
        }
        return self(EpochCompleted, epoch=number, step=step, **{**values, **fields})

    def saved(self, step: int) -> CheckpointSaved:
        return self(CheckpointSaved, step=step, digest=digest("checkpoint", step), size_bytes=10)

    def resumed(self, step: int) -> RunResumed:
        self.attempt, self.ordinal = self.attempt + 1, 0
        return self(
            RunResumed,
            from_step=step,
            checkpoint_digest=digest("checkpoint", step),
            redone_steps=1,
            writer="w",
            reason="killed",
            environment_digest=digest("environment"),
        )

    def moved(self, source: str, target: str, step: int, seed: str = "seed-1") -> SeedTransitioned:
        return self(
            SeedTransitioned,
            seed_id=seed,
            site="body.0",
            source=source,
            target=target,
            step=step,
            trigger="commanded",
            reason="test",
            evidence={"gain": None, "alpha": 1 / 3},
            blueprint_id="b" * 64,
            kernel_id="c" * 64,
            decision=4 if source == "dormant" else None,
            parameters=7,
        )

    def alpha(self, value: float, step: int) -> AlphaMoved:
        return self(AlphaMoved, seed_id="seed-1", site="body.0", step=step, alpha=value, target=1.0)


@pytest.fixture
def run() -> Numbered:
    return Numbered()


def test_every_fact_type_is_folded_by_exactly_one_function() -> None:
    assert handlers(Staging(open_tables("sqlite://").dialect)).keys() == FACT_TYPES.keys()


def test_every_table_gets_rows_from_a_realistic_log() -> None:
    given = Given(realistic())
    empty = [status.table for status in given.projector.status() if not status.rows]
    assert empty == []


def test_a_step_is_kept_with_the_bits_of_its_loss(run: Numbered) -> None:
    loss = math.nextafter(1 / 3, 1)
    given = Given([started(RUN), run.step(1, loss)])
    assert given.then(t.steps, "step", "loss", "samples_digest", "position") == [(1, loss, "01" * 16, 2)]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_kept_as_it_is_and_never_as_not_measured(run: Numbered, loss: float) -> None:
    given = Given([started(RUN), run.step(1, loss), run.epoch(0, 1, validation_loss=loss)])
    assert repr(given.then(t.steps, "loss")) == repr([loss])
    assert repr(given.then(t.epochs, "validation_loss", "validation_accuracy")) == repr([(loss, None)])
    assert repr(given.then(t.runs, "validation_loss")[-1]) == repr(loss)


def test_a_run_shows_its_latest_epoch_and_keeps_the_versions_before(run: Numbered) -> None:
    given = Given([started(RUN), run.step(1), run.epoch(0, 1), run.step(2), run.epoch(1, 2)])
    assert given.then(t.runs, "valid_from", "valid_to", "epoch", "parameters", "steps_done") == [
        (1, 3, None, None, 1),
        (3, 5, 0, 100, 2),
        (5, None, 1, 101, 2),
    ]


def test_steps_done_of_every_version_is_the_same_however_the_log_is_cut_into_batches(run: Numbered) -> None:
    facts = [started(RUN), run.step(1), run.step(2), run.epoch(0, 2), run.step(3), run.step(4)]
    whole = Given(facts).then(t.runs, "valid_from", "steps_done")
    assert whole == [(1, 2), (4, 4)]
    assert all(Given(facts, batch=size).then(t.runs, "valid_from", "steps_done") == whole for size in (1, 2, 3, 5))


def test_a_resumed_run_takes_back_steps_epochs_and_checkpoints_after_the_checkpoint(run: Numbered) -> None:
    facts = [started(RUN), run.step(1), run.epoch(0, 1), run.saved(1), run.step(2), run.epoch(1, 2), run.saved(2)]
    facts += [run.resumed(1), run.step(2, 0.5)]
    given = Given(facts)
    assert given.then(t.steps, "step", "attempt", "effective") == [(1, 1, True), (2, 1, False), (2, 2, True)]
    assert given.then(t.steps, "superseded_at") == [None, 8, None]
    assert given.then(t.epochs, "epoch", "effective") == [(0, True), (1, False)]
    assert given.then(t.checkpoints, "step", "effective") == [(1, True), (2, False)]
    assert given.then(t.runs, "attempt", "steps_done", "epoch", "status")[-1] == (2, 2, 0, "running")


def test_a_run_that_died_before_its_first_checkpoint_begins_again_from_nothing(run: Numbered) -> None:
    facts = [started(RUN), run.moved("dormant", "germinated", 0), run.step(1)]
    again = run.resumed(0)
    again = RunResumed(**{**{n: getattr(again, n) for n in again.__struct_fields__}, "checkpoint_digest": b""})
    given = Given([*facts, again, run.step(1)])
    assert given.then(t.steps, "attempt", "effective") == [(1, False), (2, True)]
    assert given.then(t.seed_transitions, "effective") == [False]
    assert given.then(t.seeds, "valid_to") == [4]
    assert given.then(t.run_events, "type", "effective") == [("RunStarted", True), ("RunResumed", True)]


def test_a_rollback_takes_back_what_came_after_the_state_it_returns_to(run: Numbered) -> None:
    facts: list[Fact] = [started(RUN), run.step(1), run.saved(1), run.step(2, math.nan)]
    run.attempt, run.ordinal = 2, 0
    facts.append(run(RolledBack, from_step=2, to_step=1, checkpoint_digest=digest("c"), culled_seed_id="seed-9"))
    given = Given([*facts, run.step(2)])
    assert given.then(t.steps, "step", "effective") == [(1, True), (2, False), (2, True)]
    assert given.then(t.run_events, "type", "seed_id")[-1] == ("RolledBack", "seed-9")


def test_a_seed_has_one_version_per_change_and_forgets_its_last_life_when_it_germinates_again(run: Numbered) -> None:
    facts = [
        started(RUN),
        run.moved("dormant", "germinated", 1),
        run.alpha(0.5, 2),
        run.moved("germinated", "cancelled", 3),
    ]
    facts += [run.moved("cancelled", "embargoed", 3), run.moved("embargoed", "dormant", 4)]
    facts += [run.moved("dormant", "germinated", 5)]
    given = Given(facts)
    assert given.then(t.seeds, "state", "alpha", "state_step", "germinated_step", "valid_to") == [
        ("germinated", None, 1, 1, 3),
        ("germinated", 0.5, 1, 1, 4),
        ("cancelled", 0.5, 3, 1, 5),
        ("embargoed", 0.5, 3, 1, 6),
        ("dormant", 0.5, 4, 1, 7),
        ("germinated", None, 5, 5, None),
    ]


def test_a_seed_goes_back_with_its_run_and_never_to_a_future_that_was_taken_back(run: Numbered) -> None:
    facts = [started(RUN), run.saved(40), run.moved("dormant", "germinated", 50), run.resumed(40)]
    # In the second attempt the seed germinates later; the third goes back to between the two germinations.
    facts += [run.saved(52), run.moved("dormant", "germinated", 55), run.alpha(0.25, 56), run.resumed(52)]
    given = Given(facts)
    assert given.then(t.seeds, "valid_from", "valid_to", "superseded_at") == [(3, 4, 4), (6, 7, 8), (7, 8, 8)]


def test_a_seed_that_stood_at_the_checkpoint_is_shown_again_as_it_was(run: Numbered) -> None:
    facts = [started(RUN), run.moved("dormant", "germinated", 5), run.saved(6), run.alpha(0.5, 7), run.resumed(6)]
    given = Given(facts)
    assert given.then(t.seeds, "alpha", "attempt", "valid_to", "effective") == [
        (None, 1, 4, True),
        (0.5, 1, 5, False),
        (None, 2, None, True),
    ]


def test_gains_and_faults_are_shown_in_the_seed_and_kept_as_events(run: Numbered) -> None:
    gain = {"samples": 9, "loss_with": 1.0, "loss_without": 1.5, "gain": 0.5, "gain_stderr": 0.1}
    measured = run(
        CounterfactualMeasured, seed_id="seed-1", site="body.0", step=3, **gain, batch_norm_reestimated=False
    )
    fault = run(
        SeedFaulted,
        seed_id="seed-1",
        site="body.0",
        step=4,
        kind="exception",
        message="x",
        traceback_digest=b"\x07" * 32,
    )
    given = Given([started(RUN), run.moved("dormant", "germinated", 1), measured, fault])
    assert given.then(t.seeds, "gain", "gain_stderr", "gain_step", "faults")[-1] == (0.5, 0.1, 3, 1)
    assert given.then(t.run_events, "data")[2]["traceback_digest"] == "07" * 32


def test_a_finished_run_shows_what_the_test_data_said(run: Numbered) -> None:
    finished = run(
        RunFinished,
        step=1,
        test_loss=0.25,
        test_accuracy=None,
        parameters=9,
        folded_parameters=8,
        training_flops=7,
        inference_flops=6,
        parameter_digest=b"\x02" * 32,
        duration_s=3.0,
    )
    given = Given([started(RUN), run.step(1), finished])
    last = given.then(t.runs, "status", "test_loss", "test_accuracy", "folded_parameters", "ended_position")[-1]
    assert last == ("finished", 0.25, None, 8, 3)


def test_kernels_and_blueprints_take_their_status_from_what_happened_to_them() -> None:
    given = Given(library(2))
    with given.connect() as connection:
        now = rows(connection, select(t.compiled_kernels).where(t.compiled_kernels.c.valid_to.is_(None)))
        blueprints = rows(connection, select(t.blueprints).where(t.blueprints.c.valid_to.is_(None)))
    statuses = {row["kernel_id"]: (row["status"], row["failed"]) for row in now}
    assert statuses[kernel_id("res_mlp", "body.0")] == ("validated", None)
    assert statuses[kernel_id("affine", "body.0")] == ("rejected", ["one_step_jump"])
    assert next(row["numbers"] for row in now if row["failed"])["one_step_jump"] == math.inf
    shown = {row["name"]: (row["status"], row["kernels"]) for row in blueprints}
    assert shown == {
        "res_mlp": ("compiled", 2),
        "conv_bottleneck": ("compiled", 2),
        "affine": ("retired", 2),
        "mutant": ("compiled", 1),
        "hopeless": ("failed", 0),
        None: ("failed", 0),
    }


def test_a_kernel_shows_its_job_its_forms_its_tags_and_why_it_waits_for_a_measurement() -> None:
    facts = library(1)
    quarantined = next(place for place, fact in enumerate(facts, 1) if type(fact).__name__ == "KernelQuarantined")
    given = Given(facts)
    mutant = t.compiled_kernels.c.kernel_id == kernel_id("mutant", "body.0")
    with given.connect() as connection:
        now = rows(connection, select(t.compiled_kernels).where(mutant, t.compiled_kernels.c.valid_to.is_(None)))[0]
        then = rows(
            connection, select(t.compiled_kernels).where(mutant, t.compiled_kernels.c.valid_from == quarantined)
        )
        jobs = rows(connection, select(t.compile_jobs).where(t.compile_jobs.c.valid_to.is_(None)))
    assert (now["status"], now["quarantined"], now["tags"]) == ("validated", None, ["fast", "small"])
    assert {(form["pipeline"], form["status"]) for form in now["forms"]} == {
        ("export", "compiled"),
        ("inductor", "refused"),
    }
    assert [(row["status"], row["quarantined"]["reason"]) for row in then] == [("pending_benchmarking", "damaged")]
    assert {(job["status"], job["leases"], job["reason"]) for job in jobs} == {
        ("compiled", 2, None),
        ("failed", 1, "time_limit"),
    }


def test_a_retired_blueprint_that_is_submitted_again_is_compiled_because_its_kernels_are_there() -> None:
    again = BlueprintSubmitted(
        blueprint_id=blueprint_id("affine"), name="affine", kind="residual", architecture_ir="{}", submitted_by="ada"
    )
    given = Given([*library(2), again])
    with given.connect() as connection:
        query = select(t.blueprints).where(t.blueprints.c.name == "affine", t.blueprints.c.valid_to.is_(None))
        (row,) = rows(connection, query)
    assert (row["status"], row["kernels"], row["retired_by"]) == ("compiled", 2, None)


def test_a_decision_is_one_row_however_its_facts_are_cut_into_batches() -> None:
    facts = [*library(), *history(RUN, steps=40, seed=1)]
    names = ("decision", "action_kind", "executed", "requested_position", "made_position", "executed_position")
    whole = Given(facts).then(t.decisions, *names)
    assert len(whole) == 4
    assert all(None not in row for row in whole)
    assert Given(facts, batch=1).then(t.decisions, *names) == whole


def test_an_adaptation_carries_the_outcome_of_its_decision() -> None:
    given = Given([*library(), *history(RUN, steps=100, seed=1)])
    outcomes = dict(given.then(t.decisions, "decision", "executed"))
    commanded = given.then(t.adaptations, "decision", "executed", "executed_reason")
    assert {executed for _, executed, _ in commanded} == {True, False}
    assert all(outcomes[number] == executed for number, executed, _ in commanded)
    assert all((reason is None) == executed for _, executed, reason in commanded)


@pytest.mark.parametrize(
    "orphan",
    [
        Numbered().epoch(0, 1),
        Numbered().resumed(1),
        Numbered().alpha(0.5, 1),
        Numbered().moved("germinated", "loading", 1),
        library()[1],
    ],
    ids=lambda fact: type(fact).__name__,
)
def test_a_fact_about_something_the_log_never_began_is_poison(orphan: Fact) -> None:
    with pytest.raises(PoisonEvent, match=r"position 1 cannot be folded") as caught:
        Given([orphan])
    assert caught.value.attributes["type"] == type(orphan).__name__


def test_a_run_that_starts_twice_is_poison(run: Numbered) -> None:
    with pytest.raises(PoisonEvent, match="started before"):
        Given([started(RUN), run.step(1), started(RUN)])
