"""The audit trail of a run: everything but its single steps, in the order of the log, as sentences with their data.

Belongs here: what stands in the trail and how it reads. Does not belong here: where rows come from (``queries``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from sqlalchemy import Connection, func, select

from esper.projections import queries as q
from esper.projections import tables as t
from esper.projections.reading import Row, rows, true_at


class TrailEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One fact of a run, told."""

    position: int
    #: Microseconds since the Unix epoch; None where the table does not keep it.
    recorded_at: int | None
    attempt: int | None
    step: int | None
    #: Type name of the fact.
    type: str
    sentence: str
    #: False where a later resumption or rollback took it back.
    effective: bool
    data: dict[str, Any]


def audit_trail(connection: Connection, run: str, *, at: int | None = None) -> list[TrailEntry]:
    """Return a run's trail in the order of the log, with what was taken back.

    Args:
        connection: The tables.
        run: The run, or a unique prefix.
        at: Position; None for now.

    Raises:
        NotFound: There is no such run.
    """
    run_id = q.run_id_of(connection, run)
    return sorted(_entries(connection, run_id, at), key=lambda entry: entry.position)


def _entries(connection: Connection, run_id: str, at: int | None) -> Iterator[TrailEntry]:
    for row in q.run_events(connection, run_id, at=at):
        yield _entry(row, row["type"], _EVENTS[row["type"]](row), row["data"])
    for row in q.run_decisions(connection, run_id, at=at, attempts=True, full=True):
        yield from _decision(row)
    for row in q.operator_actions(connection, run=run_id, at=at):
        yield _entry(row, row["type"], f"{row['actor']} noted: {row['text']}")
    told: tuple[tuple[str, list[Row], Callable[[Row], str]], ...] = (
        ("SiteRegistered", _sites(connection, run_id, at), _site),
        ("KernelsOffered", _offers(connection, run_id, at), _offer),
        ("EpochCompleted", q.run_epochs(connection, run_id, at=at, attempts=True), _epoch),
        ("CheckpointSaved", q.run_checkpoints(connection, run_id, at=at, attempts=True), _checkpoint),
        ("SeedTransitioned", q.seed_transitions(connection, run_id, at=at, attempts=True), _transition),
        ("AdaptationCommanded", q.run_adaptations(connection, run_id, at=at, attempts=True), _command),
        ("FieldReportFiled", q.field_reports(connection, run=run_id, at=at, attempts=True), _report),
    )
    for name, found, sentence in told:
        for row in found:
            yield _entry(row, name, sentence(row))


def _sites(connection: Connection, run_id: str, at: int | None) -> list[Row]:
    query = select(t.sites).where(t.sites.c.run_id == run_id, true_at(t.sites, at))
    return rows(connection, query)


def _offers(connection: Connection, run_id: str, at: int | None) -> list[Row]:
    table = t.kernel_offers
    key = (table.c.position, table.c.attempt, table.c.site)
    query = select(*key, func.count().label("kernels")).where(table.c.run_id == run_id, true_at(table, at))
    return rows(connection, query.group_by(*key))


def _entry(row: Row, name: str, sentence: str, data: dict[str, Any] | None = None) -> TrailEntry:
    return TrailEntry(
        position=row["position"],
        recorded_at=row.get("recorded_at"),
        attempt=row.get("attempt"),
        step=row.get("step"),
        type=name,
        sentence=sentence,
        effective=row.get("effective", True),
        data=row if data is None else data,
    )


def _decision(row: Row) -> Iterator[TrailEntry]:
    """Tell a decision as its up to three facts."""
    number = row["decision"]
    if row["requested_position"] is not None:
        yield _entry(
            {**row, "position": row["requested_position"]},
            "DecisionRequested",
            f"decision {number} was asked for at step {row['step']}",
            {name: row[name] for name in ("decision", "feature_schema", "observation", "observation_digest")},
        )
    if row["made_position"] is not None:
        chance = f"p = {row['probability']:.3g} of {_many(len(row['legal']), 'legal action')}"
        yield _entry(
            {**row, "position": row["made_position"]},
            "DecisionMade",
            f"decision {number}: policy {row['policy_id']} chose {_action(row['action'])} ({chance})",
            {name: row[name] for name in ("decision", "policy_id", "mode", "legal", "masked", "probabilities",
                                          "chosen", "action", "uniform", "random")},
        )  # fmt: skip
    if row["executed_position"] is not None:
        outcome = "was carried out" if row["executed"] else f"was not carried out: {row['executed_reason']}"
        yield _entry(
            {**row, "position": row["executed_position"], "step": row["executed_step"]},
            "DecisionExecuted",
            f"decision {number} {outcome}",
            {"decision": number, "executed": row["executed"], "reason": row["executed_reason"]},
        )


def _action(action: Row) -> str:
    parts = [str(action["kind"])]
    if action.get("seed_id") is not None:
        parts.append(f"seed {action['seed_id']}")
    if action.get("blueprint_id") is not None:
        parts.append(f"blueprint {action['blueprint_id'][:12]}")
    if action.get("site") is not None:
        parts.append(f"at site {action['site']}")
    return " ".join(parts)


def _site(row: Row) -> str:
    return f"site {row['site']} ({row['kind']}) was found at depth {row['depth']}"


def _offer(row: Row) -> str:
    return f"{_many(row['kernels'], 'kernel')} were offered at site {row['site']}"


def _checkpoint(row: Row) -> str:
    return f"checkpoint {row['digest'][:12]} was saved at step {row['step']} ({row['size_bytes']} bytes)"


def _command(row: Row) -> str:
    return f"decision {row['decision']} commanded: {_action(row)}"


def _report(row: Row) -> str:
    return f"field report: seed {row['seed_id']} was {row['outcome']} after {row['steps']} steps, {_gain(row)}"


def _epoch(row: Row) -> str:
    text = f"epoch {row['epoch']} ended at step {row['step']}: train loss {row['train_loss']:.4g}"
    if row["validation_loss"] is not None:
        text += f", validation loss {row['validation_loss']:.4g}"
    if row["validation_accuracy"] is not None:
        text += f", validation accuracy {row['validation_accuracy']:.4f}"
    return f"{text}, {row['parameters']} parameters"


def _transition(row: Row) -> str:
    text = f"seed {row['seed_id']} at {row['site']} went from {row['source']} to {row['target']}"
    by = f" by decision {row['decision']}" if row["decision"] is not None else ""
    return f"{text} at step {row['step']} ({row['trigger']}{by}): {row['reason']}"


def _gain(data: Row) -> str:
    if data["gain"] is None:
        return "its gain was not measured"
    stderr = "" if data["gain_stderr"] is None else f" ± {data['gain_stderr']:.2g}"
    way = "higher" if data["gain"] >= 0 else "lower"
    return f"without it the held-out loss would now be {abs(data['gain']):.4g}{stderr} {way}"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _loaded(row: Row) -> str:
    data = row["data"]
    waited = "was at hand" if data["source"] == "cache" else f"was waited for ({data['stall_s']:.3g} s)"
    return f"kernel {data['kernel_id'][:12]} of seed {row['seed_id']} {waited} at step {row['step']}"


def _numbers(evidence: dict[str, Any]) -> str:
    shown = (f"{name} {'not measured' if value is None else format(value, '.4g')}" for name, value in evidence.items())
    return ", ".join(shown) or "no evidence"


def _started(row: Row) -> str:
    data = row["data"]
    return f"the run began: task {data['task']}, host {data['host']}, policy {data['policy']}"


def _resumed(row: Row) -> str:
    data = row["data"]
    return (
        f"attempt {row['attempt']} resumed from step {data['from_step']} ({data['reason']}); "
        f"{_many(data['redone_steps'], 'step')} are done again"
    )


def _rolled_back(row: Row) -> str:
    data = row["data"]
    culled = "" if data["culled_seed_id"] is None else f"; seed {data['culled_seed_id']} was culled"
    return f"rolled back from step {data['from_step']} to step {data['to_step']}{culled}"


def _tripped(row: Row) -> str:
    data = row["data"]
    suspect = "" if data["suspect_seed_id"] is None else f"; seed {data['suspect_seed_id']} is suspected"
    return f"the governor tripped at step {row['step']} ({data['kind']}: {_numbers(data['evidence'])}){suspect}"


def _finished(row: Row) -> str:
    data = row["data"]
    text = f"the run finished at step {row['step']}"
    if data["test_loss"] is not None:
        text += f": test loss {data['test_loss']:.4g}"
    if data["test_accuracy"] is not None:
        text += f", test accuracy {data['test_accuracy']:.4f}"
    return f"{text}, {data['parameters']} parameters ({data['folded_parameters']} folded)"


def _refused(row: Row) -> str:
    data = row["data"]
    return (
        f"seed {row['seed_id']} was refused the move from {data['source']} to {data['target']} "
        f"by {data['gate']} at step {row['step']}: {_numbers(data['evidence'])}"
    )


def _measured(row: Row) -> str:
    return f"seed {row['seed_id']} was left out over {row['data']['samples']} samples: {_gain(row['data'])}"


def _folded(row: Row) -> str:
    where = row["data"]["folded_into"]
    place = "stays a branch" if where is None else f"was folded into {where}"
    return f"seed {row['seed_id']} {place}, outputs differ by at most {row['data']['max_difference']:.3g}"


_EVENTS: dict[str, Callable[[Row], str]] = {
    "RunStarted": _started,
    "RunResumed": _resumed,
    "RolledBack": _rolled_back,
    "GovernorTripped": _tripped,
    "RunPaused": lambda row: f"the run was paused at step {row['step']}: {row['data']['reason']}",
    "RunFinished": _finished,
    "RunFailed": lambda row: f"the run failed at step {row['step']}: {row['data']['error']}: {row['data']['message']}",
    "SeedTransitionRefused": _refused,
    "KernelLoaded": _loaded,
    "CounterfactualMeasured": _measured,
    "SeedFaulted": lambda row: f"seed {row['seed_id']} failed ({row['data']['kind']}): {row['data']['message']}",
    "SeedFolded": _folded,
}
