"""Karn, first form: new blueprints from known ones by small changes, each of them verified.

Belongs here: from a parent, a mutation and its target to a sound blueprint with true claims and a name of its own, or
to the reason why not. Does not belong here: the changes themselves (``mutations``), how new a result is (``novelty``),
or submitting it (``forge``).

Everything is a pure function of the parent's canonical form, the mutation, the target and the seed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cache

import msgspec

from esper.blueprints.canonical import blueprint_id, canonical_json
from esper.blueprints.claims import with_claims
from esper.blueprints.ir import Blueprint, parse
from esper.blueprints.karn.mutation_view import Edit, Inapplicable, View, usual_sites
from esper.blueprints.karn.mutations import MUTATIONS, Mutation
from esper.blueprints.library import load_library
from esper.blueprints.verify import verify
from esper.errors import BlueprintInvalid, NotFound

_NAME_CHARACTERS = 32
_DIGITS = 8
_OWN_SUFFIX = re.compile(rf"_[0-9a-f]{{{_DIGITS}}}$")


class Mutant(msgspec.Struct, frozen=True):
    """A sound blueprint that a mutation made."""

    blueprint: Blueprint
    #: Id of the blueprint it was made from.
    parent: str
    mutation: str
    #: Node, symbol or size of the parent's canonical form.
    target: str
    #: What was changed, for people.
    change: str


class Refusal(msgspec.Struct, frozen=True):
    """Why a mutation does not apply."""

    mutation: str
    #: None where the mutation finds no place at all.
    target: str | None
    reason: str


def targets(parent: Blueprint, mutation: str) -> list[str]:
    """Return where a mutation could apply: names in the parent's canonical form.

    Raises:
        NotFound: There is no such mutation.
        BlueprintInvalid: The parent breaks a rule.
    """
    return _named(mutation).targets(View(canonical_form(parent)))


def mutate(parent: Blueprint, mutation: str, target: str, *, seed: int = 0) -> Mutant | Refusal:
    """Return what a mutation makes of a parent at one target.

    Args:
        parent: A sound blueprint.
        mutation: A name in ``MUTATIONS``.
        target: As ``targets`` gives it.
        seed: Chooses among several ways, e.g. which activation.

    Raises:
        NotFound: There is no such mutation.
        BlueprintInvalid: The parent breaks a rule.
    """
    view = View(canonical_form(parent))
    return _mutate(view, _named(mutation), target, seed)


def mutants(
    parent: Blueprint, chosen: Sequence[str] = tuple(MUTATIONS), *, seed: int = 0
) -> Iterator[Mutant | Refusal]:
    """Yield what each mutation makes of a parent at each of its targets, or why it does not apply.

    Raises:
        NotFound: There is no such mutation.
        BlueprintInvalid: The parent breaks a rule.
    """
    view = View(canonical_form(parent))
    for mutation in [_named(name) for name in chosen]:
        places = mutation.targets(view)
        if not places:
            yield Refusal(mutation.name, None, mutation.nowhere)
        for target in places:
            yield _mutate(view, mutation, target, seed)


def canonical_form(blueprint: Blueprint) -> Blueprint:
    """Return a blueprint with nodes named ``n0``, ``n1``, ... as its kernels name them.

    Raises:
        BlueprintInvalid: It breaks a rule.
    """
    return verify(parse(canonical_json(blueprint))).blueprint


def _named(mutation: str) -> Mutation:
    if mutation not in MUTATIONS:
        raise NotFound(f"there is no mutation {mutation!r}", hint=f"one of {', '.join(MUTATIONS)}")
    return MUTATIONS[mutation]


def _mutate(view: View, mutation: Mutation, target: str, seed: int) -> Mutant | Refusal:
    try:
        edits = mutation.edits(view, target)
    except Inapplicable as reason:
        return Refusal(mutation.name, target, str(reason))
    identity = blueprint_id(view.blueprint)
    first = _drawn(f"{seed} {identity} {mutation.name} {target}", len(edits))
    broken = ""
    for edit in (*edits[first:], *edits[:first]):
        try:
            found = _finished(view.blueprint, mutation, edit)
        except BlueprintInvalid as error:
            broken = f"{edit.change}: {error.message}"
            continue
        if view.sites and next(usual_sites(found), None) is None:
            broken = f"{edit.change}: the result fits no site of usual size"
            continue
        return Mutant(found, identity, mutation.name, target, edit.change)
    return Refusal(mutation.name, target, broken)


def _drawn(cause: str, count: int) -> int:
    return int.from_bytes(hashlib.sha256(cause.encode()).digest()[:8], "big") % count


def _finished(parent: Blueprint, mutation: Mutation, edit: Edit) -> Blueprint:
    """Return an edit as a whole blueprint: with claims and a name, read back and verified.

    Raises:
        BlueprintInvalid: It breaks a rule.
    """
    edited = with_claims(msgspec.structs.replace(parent, nodes=edit.nodes, symbols=edit.symbols))
    return canonical_form(msgspec.structs.replace(edited, id=_name(parent.id, mutation.short, canonical_json(edited))))


def _name(parent: str, short: str, content: str) -> str:
    """Return the parent's name, what was done, and the beginning of a hash of the result."""
    taken = _shipped_names()
    base = f"{_OWN_SUFFIX.sub('', parent)[: _NAME_CHARACTERS - _DIGITS - len(short) - 2]}_{short}"
    digest = hashlib.sha256(content.encode()).hexdigest()
    names = (f"{base}_{digest[start : start + _DIGITS]}" for start in range(len(digest) - _DIGITS))
    return next(name for name in names if name not in taken)


@cache
def _shipped_names() -> frozenset[str]:
    return frozenset(load_library())
