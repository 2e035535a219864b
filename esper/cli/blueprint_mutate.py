"""``esper blueprint mutate``: new blueprints from known ones, listed first and submitted on request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.cli import output
from esper.cli.documents import author_of
from esper.cli.options import Json
from esper.cli.progress import progress
from esper.cli.session import Session, session_of
from esper.errors import NotFound

if TYPE_CHECKING:
    from esper.blueprints.ir import Blueprint
    from esper.blueprints.karn.offspring import Offspring

_LISTED = ("name", "parent", "mutation", "change", "novelty", "nearest", "blueprint_id")
_COMPILED = "compiled"


def mutate(
    ctx: typer.Context,
    parents: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PARENT]...",
            help="Blueprints to change, by name or id; all validated ones unless given.",
            show_default=False,
        ),
    ] = None,
    mutations: Annotated[
        list[str] | None,
        typer.Option(
            "--mutation",
            metavar="NAME",
            help="widen, swap_activation, insert_norm, kernel_size or low_rank; again for more; all unless given.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 10,
    least_novelty: Annotated[
        float,
        typer.Option(
            min=0.0, help="Leave out what is nearer than this to a known one; what is known itself is always left out."
        ),
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Decides what is tried first, and which of several ways.")] = 0,
    submit: Annotated[bool, typer.Option("--submit", help="Submit them; without it they are only listed.")] = False,
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="NAME", help="Who submits; your login name unless given.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make new blueprints from known ones by small changes; each is verified, and told how new it is."""
    from esper.blueprints.karn.mutations import MUTATIONS
    from esper.blueprints.karn.offspring import offspring

    for name in mutations or ():
        if name not in MUTATIONS:
            raise typer.BadParameter(f"there is no mutation {name!r}; one of {', '.join(MUTATIONS)}")
    session = session_of(ctx)
    author = author_of(session, by)
    rows = _library_rows(session, needed=submit or not parents)
    chosen = _parents(rows, parents or [], validated=submit)
    with progress("mutating blueprints", "tries") as advance:
        found = offspring(
            [one for _, one in chosen],
            _known(rows),
            retired=[row["blueprint_id"] for row in rows if row["status"] == "retired"],
            chosen=mutations or tuple(MUTATIONS),
            count=count,
            least_novelty=least_novelty,
            seed=seed,
            advance=advance,
        )
    _tell_refusals(found, named=bool(parents))
    made = _rows(found, {identity: one.id for identity, one in chosen}, submitted=submit, full=as_json)
    if submit:
        from esper.blueprints.forging.submission import Origin, submit_sound

        with progress("submitting", "blueprints") as advance:
            for number, (mutant, novelty) in enumerate(found.made, 1):
                origin = Origin(mutant.parent, mutant.mutation, novelty.value)
                submit_sound(session.log, mutant.blueprint, author, origin=origin)
                if advance is not None:
                    advance(number, len(found.made))
    output.print_rows(made, _LISTED, as_json=as_json, empty="no mutation gave anything new")
    if made and not submit and not as_json:
        output.message("nothing was submitted; --submit does so where the parents have validated kernels")


def _library_rows(session: Session, *, needed: bool) -> list[dict[str, Any]]:
    """Return the log's sound blueprints, each with what its document says; none without a log, if none is needed."""
    from esper.blueprints.ir import parse
    from esper.blueprints.verify import verify
    from esper.errors import BlueprintInvalid
    from esper.projections.queries import list_blueprints

    try:
        with session.tables.connect() as connection:
            rows = list_blueprints(connection, full=True)
    except NotFound:
        if needed:
            raise
        return []
    sound = []
    for row in rows:
        if row["architecture_ir"] is not None:
            try:
                sound.append({**row, "blueprint": verify(parse(row["architecture_ir"])).blueprint})
            except BlueprintInvalid as error:
                # Another program may have submitted it; the blueprint verifier says so in the log.
                output.message(f"{row['blueprint_id'][:12]} {row['name']} is left out: {error.message}")
    return sound


def _known(rows: Sequence[dict[str, Any]]) -> dict[str, Blueprint]:
    """Return what a mutant must differ from: what ships and what was submitted, but what was retired."""
    from esper.blueprints.library import load_library

    retired = {row["name"] for row in rows if row["status"] == "retired"}
    known = {name: one for name, one in load_library().items() if name not in retired}
    offered = [row for row in rows if row["status"] != "retired"]
    return known | {_label(row, rows): row["blueprint"] for row in offered}


def _label(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """Return a blueprint's name, with its id where others bear it too."""
    alone = [other["name"] for other in rows].count(row["name"]) == 1
    return str(row["name"]) if alone else f"{row['name']} {row['blueprint_id'][:12]}"


def _parents(rows: Sequence[dict[str, Any]], given: Sequence[str], *, validated: bool) -> list[tuple[str, Blueprint]]:
    """Return the blueprints to change, by id.

    Raises:
        NotFound: None is meant by a name, or none is validated.
        typer.BadParameter: One cannot be a parent.
    """
    if not given:
        found = [row for row in rows if row["validated_kernels"] and row["status"] == _COMPILED]
        if not found:
            raise NotFound(
                "no blueprint of this log is validated yet",
                hint="a run builds and measures what it may graft: `esper train`; or name a blueprint to see what "
                "could be made of it",
            )
        return [(row["blueprint_id"], row["blueprint"]) for row in found]
    chosen: dict[str, Blueprint] = {}
    for name in given:
        identity, blueprint = _parent(rows, name, validated=validated)
        chosen[identity] = blueprint
    return list(chosen.items())


def _parent(rows: Sequence[dict[str, Any]], name: str, *, validated: bool) -> tuple[str, Blueprint]:
    from esper.blueprints.canonical import blueprint_id
    from esper.blueprints.library import load_library

    meant = [row for row in rows if name in (row["name"], row["blueprint_id"])]
    meant = meant or [row for row in rows if name and row["blueprint_id"].startswith(name)]
    if len(meant) > 1:
        ids = ", ".join(row["blueprint_id"][:12] for row in meant[:5])
        raise typer.BadParameter(f"{name!r} means more than one blueprint: {ids}; give the id")
    if meant:
        _check_parent(meant[0], name, validated=validated)
        return meant[0]["blueprint_id"], meant[0]["blueprint"]
    shipped = load_library().get(name)
    if shipped is None:
        hint = "`esper blueprint list` and `esper blueprint list --shipped` list them"
        raise NotFound(f"there is no blueprint {name!r}", hint=hint)
    if validated:
        raise _not_validated(name)
    return blueprint_id(shipped), shipped


def _check_parent(row: dict[str, Any], name: str, *, validated: bool) -> None:
    if row["status"] == "retired":
        raise typer.BadParameter(f"{name} is retired; `esper blueprint submit` brings it back")
    if validated and not row["validated_kernels"]:
        raise _not_validated(name)


def _not_validated(name: str) -> typer.BadParameter:
    return typer.BadParameter(
        f"{name} has no validated kernel on this log yet, so nothing made of it is submitted; a run builds and "
        "measures what it may graft: `esper train`"
    )


def _rows(found: Offspring, names: dict[str, str], *, submitted: bool, full: bool) -> list[dict[str, Any]]:
    from esper.blueprints.canonical import canonical_json
    from esper.cli.documents import described

    return [
        {
            **described(mutant.blueprint),
            "parent": names.get(mutant.parent, mutant.parent),
            "parent_id": mutant.parent,
            "mutation": mutant.mutation,
            "target": mutant.target,
            "change": mutant.change,
            "novelty": new.value,
            "novelty_exact": new.exact,
            "nearest": new.nearest,
            "submitted": submitted,
        }
        | ({"architecture_ir": json.loads(canonical_json(mutant.blueprint))} if full else {})
        for mutant, new in found.made
    ]


def _tell_refusals(found: Offspring, *, named: bool) -> None:
    """Tell what does not apply: each where parents were named, else only how many."""
    if named:
        for parent, refusal in found.refused:
            at = f" at {refusal.target}" if refusal.target else ""
            output.message(f"{parent}: {refusal.mutation}{at} does not apply: {refusal.reason}")
        for name, mutation, new in found.known:
            output.message(f"{name}: {mutation} gives nothing new enough: {new.value:.3g} from {new.nearest}")
    elif found.refused or found.known:
        output.message(f"{len(found.refused)} mutations do not apply, {len(found.known)} give nothing new enough")
