"""The read side: what people and programs ask of the tables, as plain dicts.

Every function takes a connection (``with engine.connect() as connection``), so that several answers can come from one
moment, and most take ``at``: a position of the log whose state is asked for, None for now. Ids may be unique prefixes.
Rows of a run that a resumption or a rollback took back are left out unless ``attempts`` asks for all; each row says so
in ``effective``. Does not belong here: how the library's queries work (``library``, whose names are here too),
comparing runs (``compare``), the audit trail (``trail``), what a time or text means as a position (``positions``).
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, func, select

from esper.errors import NotFound
from esper.projections import tables as t
from esper.projections.library import (
    blueprint_id_of,
    field_reports,
    get_blueprint,
    get_kernel,
    list_blueprints,
    list_kernels,
    run_id_of,
)
from esper.projections.reading import Row, effective_at, one, rows, true_at
from esper.projections.runner import count_rows

__all__ = [
    "blueprint_id_of",
    "counts",
    "field_reports",
    "get_blueprint",
    "get_decision",
    "get_kernel",
    "get_run",
    "get_seed",
    "list_blueprints",
    "list_kernels",
    "list_runs",
    "list_seeds",
    "operator_actions",
    "run_adaptations",
    "run_checkpoints",
    "run_decisions",
    "run_epochs",
    "run_events",
    "run_id_of",
    "run_seeds",
    "run_sites",
    "run_steps",
    "seed_transitions",
    "site_health",
]

_RUNS_HINT = "`esper run list` shows the runs"
_DECISIONS_HINT = "`esper decision list --run RUN` shows the run's decisions"
_SEEDS_HINT = "`esper seed list` shows the seeds"

#: Columns of ``decisions`` by the position from which they hold.
_MADE = (
    "policy_id", "policy_digest", "mode", "legal", "masked", "probabilities", "chosen", "action_kind", "action",
    "probability", "uniform", "random", "made_position",
)  # fmt: skip
_EXECUTED = ("executed", "executed_reason", "executed_step", "executed_position")
#: What a list of decisions leaves out, because it is large; ``get_decision`` has it.
_LARGE = frozenset({"observation", "legal", "masked", "probabilities", "random"})


def list_runs(
    connection: Connection, *, at: int | None = None, status: str | None = None, limit: int | None = None
) -> list[Row]:
    """Return the runs, newest first, each with its role in a comparison (``arm``), or None for an ordinary run."""
    config = select(t.run_starts.c.config).where(t.run_starts.c.run_id == t.runs.c.run_id).scalar_subquery()
    query = select(t.runs, config.label("config")).where(true_at(t.runs, at))
    query = query.order_by(t.runs.c.started_position.desc()).limit(limit)
    if status is not None:
        query = query.where(t.runs.c.status == status)
    found = rows(connection, query)
    for run in found:
        run["arm"] = json.loads(run.pop("config") or "{}").get("arm")
        _as_of(connection, run, at)
    return found


def get_run(connection: Connection, run: str, *, at: int | None = None) -> Row:
    """Return everything that is known of a run: where it stands and what it began with.

    Raises:
        NotFound: There is no such run, or there was none yet.
    """
    run_id = run_id_of(connection, run)

    def missing() -> NotFound:
        return NotFound(f"run {run_id} had not begun at main:{at}", hint=_RUNS_HINT)

    found = one(connection, select(t.runs).where(t.runs.c.run_id == run_id, true_at(t.runs, at)), missing)
    _as_of(connection, found, at)
    start = one(connection, select(t.run_starts).where(t.run_starts.c.run_id == run_id), missing)
    return {**start, **found}


def _as_of(connection: Connection, run: Row, at: int | None) -> None:
    """Correct what a run's row only knows at its version's end."""
    if at is None:
        return
    query = select(func.max(t.steps.c.step)).where(
        t.steps.c.run_id == run["run_id"], true_at(t.steps, at), effective_at(t.steps, at)
    )
    run["steps_done"] = connection.execute(query).scalar() or 0


def run_steps(
    connection: Connection,
    run: str,
    *,
    at: int | None = None,
    after: int = 0,
    limit: int | None = None,
    attempts: bool = False,
) -> list[Row]:
    """Return a run's steps in order.

    Args:
        connection: The tables.
        run: The run.
        at: Position; None for now.
        after: Only steps with a larger number.
        limit: At most so many.
        attempts: Also steps that were taken back.
    """
    return _of_run(connection, t.steps, run, at, t.steps.c.step > after, limit=limit, attempts=attempts)


def run_epochs(connection: Connection, run: str, *, at: int | None = None, attempts: bool = False) -> list[Row]:
    """Return a run's epochs in order."""
    return _of_run(connection, t.epochs, run, at, attempts=attempts)


def run_checkpoints(connection: Connection, run: str, *, at: int | None = None, attempts: bool = False) -> list[Row]:
    """Return a run's checkpoints in order."""
    return _of_run(connection, t.checkpoints, run, at, attempts=attempts)


def run_events(
    connection: Connection, run: str, *, at: int | None = None, kind: str | None = None, attempts: bool = True
) -> list[Row]:
    """Return starts, ends, trips, refusals, faults, measured gains and folds of a run, in the order of the log.

    Args:
        connection: The tables.
        run: The run.
        at: Position; None for now.
        kind: Only this type of fact, e.g. ``SeedTransitionRefused``.
        attempts: Also what was taken back.
    """
    table = t.run_events
    of_kind = () if kind is None else (table.c.type == kind,)
    return _of_run(connection, table, run, at, *of_kind, attempts=attempts, order="position")


def run_sites(connection: Connection, run: str, *, at: int | None = None) -> list[Row]:
    """Return a run's sites in order of depth, with the kernels on offer and the latest health of each."""
    run_id = run_id_of(connection, run)
    table = t.sites
    query = select(table).where(table.c.run_id == run_id, true_at(table, at))
    latest = {row["site"]: row for row in rows(connection, query.order_by(table.c.attempt, table.c.position))}
    offers = t.kernel_offers
    query = select(offers).where(offers.c.run_id == run_id, true_at(offers, at))
    offered: dict[str, list[Row]] = {}
    for offer in rows(connection, query.order_by(offers.c.attempt, offers.c.position, offers.c.place)):
        if offer["place"] == 0:
            offered[offer["site"]] = []
        offered[offer["site"]].append(
            {name: offer[name] for name in ("kernel_id", "blueprint_id", "name", "parameters", "flops")}
        )
    health = {row["site"]: row for row in site_health(connection, run_id, at=at)}
    found = [{**row, "offers": offered.get(site, []), "health": health.get(site)} for site, row in latest.items()]
    return sorted(found, key=lambda row: (row["depth"], row["site"]))


def site_health(
    connection: Connection, run: str, *, site: str | None = None, at: int | None = None, attempts: bool = False
) -> list[Row]:
    """Return what probes measured at a run's sites, in order."""
    table = t.site_health
    of_site = () if site is None else (table.c.site == site,)
    return _of_run(connection, table, run, at, *of_site, attempts=attempts)


def run_seeds(connection: Connection, run: str, *, at: int | None = None) -> list[Row]:
    """Return a run's seeds as they are, in the order they germinated."""
    return list_seeds(connection, run=run, at=at)


def list_seeds(
    connection: Connection,
    *,
    run: str | None = None,
    state: str | None = None,
    blueprint: str | None = None,
    at: int | None = None,
    limit: int | None = None,
) -> list[Row]:
    """Return seeds of one run in the order they germinated, or of all runs, newest run first."""
    table, starts = t.seeds, t.run_starts
    query = select(table).join(starts, starts.c.run_id == table.c.run_id).where(true_at(table, at))
    if run is not None:
        query = query.where(table.c.run_id == run_id_of(connection, run))
    if state is not None:
        query = query.where(table.c.state == state)
    if blueprint is not None:
        query = query.where(table.c.blueprint_id == blueprint_id_of(connection, blueprint))
    order = (starts.c.position.desc(), table.c.germinated_step, func.length(table.c.seed_id), table.c.seed_id)
    return rows(connection, query.order_by(*order).limit(limit), at)


def get_seed(connection: Connection, run: str, seed: str, *, at: int | None = None) -> Row:
    """Return a seed with its moves and field reports.

    Raises:
        NotFound: The run has no such seed at that position.
    """
    run_id = run_id_of(connection, run)
    table = t.seeds
    query = select(table).where(table.c.run_id == run_id, table.c.seed_id == seed, true_at(table, at))

    def missing() -> NotFound:
        when = "" if at is None else f" at main:{at}"
        return NotFound(f"run {run_id} has no seed {seed!r}{when}", hint=_SEEDS_HINT)

    found = one(connection, query, missing, at)
    moves = seed_transitions(connection, run_id, seed=seed, at=at)
    reports = field_reports(connection, run=run_id, seed=seed, at=at)
    return {**found, "transitions": moves, "field_reports": reports}


def seed_transitions(
    connection: Connection, run: str, *, seed: str | None = None, at: int | None = None, attempts: bool = False
) -> list[Row]:
    """Return the moves of a run's seeds in the order of the log."""
    table = t.seed_transitions
    of_seed = () if seed is None else (table.c.seed_id == seed,)
    return _of_run(connection, table, run, at, *of_seed, attempts=attempts, order="position")


def run_decisions(
    connection: Connection, run: str, *, at: int | None = None, attempts: bool = False, full: bool = False
) -> list[Row]:
    """Return a run's decisions in order, by default without what a policy saw and could have done.

    Args:
        connection: The tables.
        run: The run.
        at: Position; None for now.
        attempts: Also decisions that were taken back.
        full: With observation, legal and masked actions, probabilities and random state.
    """
    table = t.decisions
    columns = [column for column in table.columns if full or column.name not in _LARGE]
    query = select(*columns).where(table.c.run_id == run_id_of(connection, run), true_at(table, at))
    if not attempts:
        query = query.where(effective_at(table, at))
    found = rows(connection, query.order_by(table.c.decision, table.c.attempt), at)
    return [_masked(row, at) for row in found]


def get_decision(connection: Connection, run: str, decision: int, *, at: int | None = None) -> Row:
    """Return one decision with everything that was seen, possible and drawn, and its adaptation.

    Raises:
        NotFound: The run has no such decision at that position.
    """
    run_id = run_id_of(connection, run)
    table = t.decisions
    query = select(table).where(table.c.run_id == run_id, table.c.decision == decision, true_at(table, at))

    def missing() -> NotFound:
        return NotFound(f"run {run_id} has no decision {decision}", hint=_DECISIONS_HINT)

    # Of several attempts at a decision the effective one, else the newest.
    order = (effective_at(table, at).desc(), table.c.attempt.desc())
    found = _masked(one(connection, query.order_by(*order).limit(1), missing, at), at)
    command = t.adaptations
    query = select(command).where(
        command.c.run_id == run_id,
        command.c.decision == decision,
        command.c.attempt == found["attempt"],
        true_at(command, at),
    )
    adaptation = rows(connection, query, at)
    return {**found, "adaptation": _masked(adaptation[0], at) if adaptation else None}


def run_adaptations(connection: Connection, run: str, *, at: int | None = None, attempts: bool = False) -> list[Row]:
    """Return the commands to a run's Kasmina and what came of each, in order."""
    found = _of_run(connection, t.adaptations, run, at, attempts=attempts, order="position")
    return [_masked(row, at) for row in found]


def _masked(row: Row, at: int | None) -> Row:
    """Hide what a decision or adaptation did not know yet at a position."""
    if at is not None:
        for mark, names in (("made_position", _MADE), ("executed_position", _EXECUTED)):
            if row.get(mark) is not None and row[mark] > at:
                row.update({name: None for name in names if name in row})
    return row


def operator_actions(connection: Connection, *, run: str | None = None, at: int | None = None) -> list[Row]:
    """Return what people did, in the order of the log."""
    table = t.operator_actions
    query = select(table).where(true_at(table, at)).order_by(table.c.position)
    if run is not None:
        query = query.where(table.c.run_id == run_id_of(connection, run))
    return rows(connection, query)


def counts(connection: Connection) -> dict[str, int]:
    """Return the number of rows of each table, versions and attempts included."""
    return count_rows(connection)


def _of_run(
    connection: Connection,
    table: Table,
    run: str,
    at: int | None,
    *more: ColumnElement[bool],
    attempts: bool,
    limit: int | None = None,
    order: str = "step",
) -> list[Row]:
    conditions: list[Any] = [table.c.run_id == run_id_of(connection, run), true_at(table, at), *more]
    if not attempts:
        conditions.append(effective_at(table, at))
    ordered = [table.c[order]] if order == "position" else [table.c[order], table.c.position]
    return rows(connection, select(table).where(and_(*conditions)).order_by(*ordered).limit(limit), at)
