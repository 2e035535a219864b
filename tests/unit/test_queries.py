"""Queries: what people ask of the tables, now and at a position."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from builders import append, blueprint_id, history, kernel_id, library, realistic, started
from sqlalchemy import Connection

from esper.errors import NotFound
from esper.oona.memory import MemoryLog
from esper.projections import queries as q
from esper.projections.compare import compare_runs
from esper.projections.open import open_tables
from esper.projections.runner import Projector
from esper.projections.trail import audit_trail


def tables_of(facts: list[object]) -> Connection:
    log = MemoryLog()
    append(log, facts)  # type: ignore[arg-type]
    engine = open_tables("sqlite://")
    Projector(log, engine).catch_up()
    return engine.connect()


@pytest.fixture(scope="module")
def log() -> MemoryLog:
    log = MemoryLog()
    append(log, realistic())
    return log


@pytest.fixture(scope="module")
def tables(log: MemoryLog) -> Iterator[Connection]:
    engine = open_tables("sqlite://")
    Projector(log, engine).catch_up()
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def position_of(log: MemoryLog, kind: str, run: str, place: int = 0) -> int:
    found = [e.position for e in log.read(0, 10_000) if e.type == kind and e.stream.endswith(run)]
    return found[place]


def test_runs_are_listed_newest_first(tables: Connection) -> None:
    runs = q.list_runs(tables)
    assert [run["run_id"] for run in runs] == [f"run-000{number}" for number in (6, 5, 4, 3, 2, 1)]
    assert [run["run_id"] for run in q.list_runs(tables, limit=2)] == ["run-0006", "run-0005"]
    assert [run["run_id"] for run in q.list_runs(tables, status="failed")] == ["run-0004"]


def test_a_run_whose_process_died_still_runs_and_shows_its_last_step(tables: Connection) -> None:
    run = q.get_run(tables, "run-0005")
    assert (run["status"], run["steps_done"], run["ended_position"]) == ("running", 40, None)


def test_a_run_at_an_earlier_position_is_as_it_was_then(log: MemoryLog, tables: Connection) -> None:
    at = position_of(log, "TrainingStepCompleted", "run-0001", 14)
    run = q.get_run(tables, "run-0001", at=at)
    assert (run["status"], run["steps_done"], run["epoch"], run["test_loss"]) == ("running", 15, 0, None)
    assert run["config"]["optimizer"] == {"name": "sgd", "learning_rate": 0.1}
    assert [one["run_id"] for one in q.list_runs(tables, at=at)] == ["run-0001"]


def test_steps_leave_out_what_was_taken_back_unless_all_attempts_are_asked_for(tables: Connection) -> None:
    effective = q.run_steps(tables, "run-0003")
    assert [row["step"] for row in effective] == list(range(1, 101))
    everything = q.run_steps(tables, "run-0003", attempts=True)
    assert len(everything) > 100
    assert {row["attempt"] for row in everything if not row["effective"]} == {1, 2}
    assert [row["step"] for row in q.run_steps(tables, "run-0003", after=97, limit=2)] == [98, 99]


def test_ids_may_be_unique_prefixes(tables: Connection) -> None:
    assert q.get_run(tables, "latest")["run_id"] == "run-0006"
    assert q.get_kernel(tables, kernel_id("affine", "body.0")[:10])["name"] == "affine"
    assert q.get_blueprint(tables, blueprint_id("res_mlp")[:10])["name"] == "res_mlp"
    assert q.get_blueprint(tables, "res_mlp")["blueprint_id"] == blueprint_id("res_mlp")
    with pytest.raises(NotFound, match=r"'run-000' begins more than one run: run-0001, .* and more"):
        q.get_run(tables, "run-000")


def test_what_is_not_there_is_named_with_a_hint(tables: Connection) -> None:
    asked = [
        (lambda: q.get_run(tables, "run-9"), "no run 'run-9'", "esper run list"),
        (lambda: q.get_run(tables, ""), "no run was named", "esper run list"),
        (lambda: q.get_run(tables, "run-0006", at=3), "had not begun at main:3", "esper run list"),
        (lambda: q.get_seed(tables, "run-0001", "seed-99"), "no seed 'seed-99'", "esper seed list"),
        (lambda: q.get_decision(tables, "run-0001", 99), "no decision 99", "esper decision list"),
        (lambda: q.get_blueprint(tables, "zzz"), "no blueprint 'zzz'", "esper blueprint list"),
        (lambda: q.get_kernel(tables, "zzz"), "no kernel 'zzz'", "esper kernel list"),
        (lambda: q.run_steps(tables, "run-9"), "no run 'run-9'", "esper run list"),
        (lambda: q.run_id_of(tables_of([]), "latest"), "no runs yet", "esper demo"),
    ]
    for ask, message, hint in asked:
        with pytest.raises(NotFound, match=message) as caught:
            ask()
        assert hint in caught.value.hint


def test_a_name_or_prefix_with_wildcards_finds_nothing(tables: Connection) -> None:
    for text in ("run-%", "run_000", "%"):
        with pytest.raises(NotFound):
            q.get_run(tables, text)


def test_a_decision_shows_everything_seen_possible_and_drawn(tables: Connection) -> None:
    listed = q.run_decisions(tables, "run-0001")
    assert "observation" not in listed[0]
    decision = q.get_decision(tables, "run-0001", listed[0]["decision"])
    assert decision["legal"][decision["chosen"]] == decision["action"]
    assert decision["probabilities"][decision["chosen"]] == decision["probability"]
    assert decision["observation"]["step"] == decision["step"]
    assert (decision["adaptation"] is None) == (decision["action_kind"] == "noop")


def test_a_decision_does_not_know_its_outcome_before_it_is_in_the_log(log: MemoryLog, tables: Connection) -> None:
    at = position_of(log, "DecisionRequested", "run-0001")
    asked = q.get_decision(tables, "run-0001", 1, at=at)
    assert (asked["policy_id"], asked["executed"], asked["requested_position"]) == (None, None, at)
    made = q.get_decision(tables, "run-0001", 1, at=at + 1)
    assert (made["policy_id"], made["executed"]) == ("heuristic", None)


def test_sites_come_with_offers_and_latest_health(tables: Connection) -> None:
    sites = q.run_sites(tables, "run-0001")
    assert [site["site"] for site in sites] == [f"body.{place}" for place in range(4)]
    assert [offer["name"] for offer in sites[0]["offers"]] == ["res_mlp", "conv_bottleneck"]
    assert sites[0]["health"]["step"] == 100
    assert sites[0]["health"]["mean_correlation"] is None


def test_sites_of_a_run_that_began_again_are_told_once(tables: Connection) -> None:
    assert [site["site"] for site in q.run_sites(tables, "run-0006")] == ["body.0", "body.1"]


def test_a_seed_shows_its_effective_moves(tables: Connection) -> None:
    seeds = q.run_seeds(tables, "run-0002")
    seed = q.get_seed(tables, "run-0002", seeds[0]["seed_id"])
    states = [move["target"] for move in seed["transitions"]]
    assert states[:3] == ["germinated", "loading", "grafting"]
    assert states[-1] == seed["state"]
    fossils = q.list_seeds(tables, state="fossilized")
    assert fossils
    assert all(one["state"] == "fossilized" for one in fossils)


def test_blueprints_show_kernels_and_reports(tables: Connection) -> None:
    named = {row["name"]: row for row in q.list_blueprints(tables)}
    assert named["affine"]["status"] == "retired"
    assert named[None]["reasons"] == ["nodes[2]: unknown operator"]
    full = q.get_blueprint(tables, "res_mlp")
    assert len(full["compiled_kernels"]) == full["kernels"] == 4
    assert all(report["blueprint_id"] == full["blueprint_id"] for report in full["field_reports"])
    assert [row["status"] for row in q.list_kernels(tables, blueprint="affine", status="rejected")] == ["rejected"]
    assert q.list_kernels(tables, at=1) == []


def test_comparing_runs_shows_only_differences_by_default() -> None:
    one = history("run-a", steps=20, seed=1)
    two = history("run-b", steps=20, seed=2)
    start = started("run-b", steps=20, config={"batch_size": 32, "optimizer": {"name": "sgd"}}, policy="off")
    tables = tables_of([*library(), *one, start, *two[1:]])
    found = compare_runs(tables, "run-a", "run-b")
    assert found["runs"] == ["run-a", "run-b"]
    assert found["config"] == {"batch_size": [64, 32], "optimizer.learning_rate": [0.1, None]}
    assert found["setup"] == {"policy": ["heuristic", "off"]}
    assert found["packages"] == {}
    assert "train_loss" in found["metrics"]
    assert "status" not in found["metrics"]
    everything = compare_runs(tables, "run-a", "run-b", everything=True)
    assert everything["metrics"]["status"] == ["finished", "finished"]
    assert everything["packages"]["torch"] == ["2.13.0", "2.13.0"]


def test_a_run_is_the_same_as_itself(tables: Connection) -> None:
    found = compare_runs(tables, "run-0003", "run-0003")
    assert all(found[name] == {} for name in found if name != "runs")


def test_the_trail_tells_every_fact_of_a_run_but_single_steps_and_probes(log: MemoryLog, tables: Connection) -> None:
    untold = {"TrainingStepCompleted", "SeedHealthMeasured", "AlphaMoved"}
    for number in range(1, 7):
        run_id = f"run-000{number}"
        facts = [e for e in log.read(0, 10_000) if e.stream.endswith(run_id) and e.type not in untold]
        trail = audit_trail(tables, run_id)
        assert [(entry.position, entry.type) for entry in trail] == [(e.position, e.type) for e in facts]
        assert all(entry.sentence and "None" not in entry.sentence for entry in trail)
        json.dumps([entry.data for entry in trail])


def test_the_trail_marks_what_was_taken_back(tables: Connection) -> None:
    trail = audit_trail(tables, "run-0002")
    assert {entry.type for entry in trail if not entry.effective} >= {"EpochCompleted", "DecisionMade"}
    resumed = next(entry for entry in trail if entry.type == "RunResumed")
    assert "resumed from step" in resumed.sentence
    assert resumed.effective


def test_the_trail_at_a_position_ends_there(log: MemoryLog, tables: Connection) -> None:
    at = position_of(log, "EpochCompleted", "run-0001", 2)
    trail = audit_trail(tables, "run-0001", at=at)
    assert (trail[-1].position, trail[-1].type) == (at, "EpochCompleted")
    assert "epoch 2 ended at step 30" in trail[-1].sentence


def test_counts_name_every_table(tables: Connection) -> None:
    found = q.counts(tables)
    assert found["run_starts"] == 6
    assert min(found.values()) > 0
