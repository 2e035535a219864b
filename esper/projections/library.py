"""Queries about blueprints, kernels and how they did; ``queries`` offers the same names.

Belongs here: what does not belong to one run. Does not belong here: runs, seeds and decisions (``queries``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from sqlalchemy import Connection, func, select

from esper.errors import NotFound
from esper.projections import tables as t
from esper.projections.reading import Row, effective_at, full_id, one, rows, shown, true_at

_RUNS_HINT = "`esper run list` shows the runs"
_BLUEPRINTS_HINT = "`esper blueprint list` shows the blueprints"
_KERNELS_HINT = "`esper kernel list` shows the kernels"


def run_id_of(connection: Connection, run: str) -> str:
    """Return the id of a run given as a unique prefix, or ``latest`` for the newest.

    Raises:
        NotFound: No run is meant, or more than one.
    """
    if run == "latest":
        query = select(t.run_starts.c.run_id).order_by(t.run_starts.c.position.desc()).limit(1)
        newest = connection.execute(query).scalar()
        if newest is None:
            raise NotFound("there are no runs yet", hint="`esper demo` makes one")
        return str(newest)
    return full_id(connection, t.run_starts.c.run_id, run, "run", _RUNS_HINT)


def blueprint_id_of(connection: Connection, blueprint: str) -> str:
    """Return the id of a blueprint given as a unique prefix of it or as its name.

    Raises:
        NotFound: No blueprint is meant, or more than one.
    """
    table = t.blueprints
    # What the verifier rejected may bear the name of a sound blueprint; the name means the sound one.
    sound = (table.c.name == blueprint, table.c.architecture_ir.is_not(None), table.c.valid_to.is_(None))
    named = list(connection.execute(select(table.c.blueprint_id).where(*sound)).scalars())
    if len(named) == 1:
        return str(named[0])
    if named:
        raise NotFound(f"{blueprint!r} names more than one blueprint: {shown(named)}", hint="give the id")
    return full_id(connection, table.c.blueprint_id, blueprint, "blueprint", _BLUEPRINTS_HINT)


def list_blueprints(
    connection: Connection,
    *,
    at: int | None = None,
    status: str | None = None,
    kind: str | None = None,
    parent: str | None = None,
    full: bool = False,
) -> list[Row]:
    """Return the blueprints by name.

    Args:
        connection: The tables.
        at: Position; None for now.
        status: Only those that stand so.
        kind: Only of this kind.
        parent: Only those a mutation made of this blueprint, by name or id.
        full: With their IR and how many of their kernels are validated.
    """
    table = t.blueprints
    columns = [column for column in table.columns if full or column.name != "architecture_ir"]
    query = select(*columns).where(true_at(table, at)).order_by(table.c.name, table.c.blueprint_id)
    if status is not None:
        query = query.where(table.c.status == status)
    if kind is not None:
        query = query.where(table.c.kind == kind)
    if parent is not None:
        query = query.where(table.c.parent == blueprint_id_of(connection, parent))
    found = rows(connection, query)
    if full:
        validated = Counter(row["blueprint_id"] for row in list_kernels(connection, status="validated", at=at))
        found = [{**row, "validated_kernels": validated[row["blueprint_id"]]} for row in found]
    return found


def get_blueprint(connection: Connection, blueprint: str, *, at: int | None = None) -> Row:
    """Return a blueprint with its IR, its kernels and how it did in runs.

    Raises:
        NotFound: There is no such blueprint at that position.
    """
    key = blueprint_id_of(connection, blueprint)
    query = select(t.blueprints).where(t.blueprints.c.blueprint_id == key, true_at(t.blueprints, at))

    def missing() -> NotFound:
        return NotFound(f"blueprint {key} was not there at main:{at}", hint=_BLUEPRINTS_HINT)

    found = one(connection, query, missing)
    kernels = list_kernels(connection, blueprint=key, at=at)
    return {**found, "compiled_kernels": kernels, "field_reports": field_reports(connection, blueprint=key, at=at)}


def list_kernels(
    connection: Connection,
    *,
    blueprint: str | None = None,
    status: str | None = None,
    site: str | None = None,
    tags: Collection[str] = (),
    at: int | None = None,
) -> list[Row]:
    """Return the kernels in the order they were compiled, each with its blueprint's name.

    Args:
        connection: The tables.
        blueprint: Only of this blueprint, by name or id.
        status: Only those that stand so.
        site: Only for this kind of site, e.g. ``conv2d``.
        tags: Only those with all of these tags.
        at: Position; None for now.
    """
    table = t.compiled_kernels
    query = select(table).where(true_at(table, at))
    if blueprint is not None:
        query = query.where(table.c.blueprint_id == blueprint_id_of(connection, blueprint))
    if status is not None:
        query = query.where(table.c.status == status)
    first = select(table.c.kernel_id, func.min(table.c.valid_from).label("made")).group_by(table.c.kernel_id)
    made = first.subquery()
    query = query.join(made, made.c.kernel_id == table.c.kernel_id).order_by(made.c.made)
    names = _blueprint_names(connection, at)
    return [
        {**row, "name": names.get(row["blueprint_id"])}
        for row in rows(connection, query)
        if (site is None or row["signature"].get("kind") == site) and set(tags) <= set(row["tags"] or ())
    ]


def get_kernel(connection: Connection, kernel: str, *, at: int | None = None) -> Row:
    """Return a kernel with what was measured of it.

    Raises:
        NotFound: There is no such kernel at that position.
    """
    table = t.compiled_kernels
    key = full_id(connection, table.c.kernel_id, kernel, "kernel", _KERNELS_HINT)

    def missing() -> NotFound:
        return NotFound(f"kernel {key} was not there at main:{at}", hint=_KERNELS_HINT)

    found = one(connection, select(table).where(table.c.kernel_id == key, true_at(table, at)), missing)
    return {**found, "name": _blueprint_names(connection, at).get(found["blueprint_id"])}


def _blueprint_names(connection: Connection, at: int | None) -> dict[str, str | None]:
    table = t.blueprints
    found = connection.execute(select(table.c.blueprint_id, table.c.name).where(true_at(table, at)))
    return {row.blueprint_id: row.name for row in found}


def field_reports(
    connection: Connection,
    *,
    run: str | None = None,
    blueprint: str | None = None,
    seed: str | None = None,
    at: int | None = None,
    attempts: bool = False,
) -> list[Row]:
    """Return how blueprints did in runs, in the order of the log."""
    table = t.field_reports
    conditions = [true_at(table, at)]
    if run is not None:
        conditions.append(table.c.run_id == run_id_of(connection, run))
    if blueprint is not None:
        conditions.append(table.c.blueprint_id == blueprint_id_of(connection, blueprint))
    if seed is not None:
        conditions.append(table.c.seed_id == seed)
    if not attempts:
        conditions.append(effective_at(table, at))
    return rows(connection, select(table).where(*conditions).order_by(table.c.position), at)
