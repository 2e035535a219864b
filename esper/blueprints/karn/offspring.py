"""Which mutants are worth submitting: those that are new enough, in an order that a seed decides.

Belongs here: choosing among all mutants of some parents. Does not belong here: making one (``mutate``), or measuring
how new it is (``novelty``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from esper.blueprints.canonical import blueprint_id
from esper.blueprints.ir import Blueprint
from esper.blueprints.karn.mutate import Mutant, Refusal, mutate, targets
from esper.blueprints.karn.mutations import MUTATIONS
from esper.blueprints.karn.novelty import Novelty, graph_of, novelty


class Offspring(msgspec.Struct, frozen=True):
    """What was made of the parents."""

    #: Mutants in the order they were made, with how new each is beside all before it.
    made: list[tuple[Mutant, Novelty]]
    #: Where a mutation does not apply, with the parent's name.
    refused: list[tuple[str, Refusal]]
    #: Name, mutation and novelty of what was not new enough.
    known: list[tuple[str, str, Novelty]]


def offspring(
    parents: Sequence[Blueprint],
    known: Mapping[str, Blueprint],
    *,
    retired: Collection[str] = (),
    chosen: Sequence[str] = tuple(MUTATIONS),
    count: int | None = None,
    least_novelty: float = 0.0,
    seed: int = 0,
    advance: Callable[[int, int], None] | None = None,
) -> Offspring:
    """Make mutants of parents that differ from all that is known and from each other.

    Args:
        parents: Sound blueprints.
        known: What a mutant must differ from, by name.
        retired: Ids of blueprints that people took out of the offer: nothing brings them back by chance.
        chosen: Names of mutations.
        count: Stop after so many.
        least_novelty: A mutant's novelty is at least this, and never 0.
        seed: Decides what is tried first, and which of several ways.
        advance: Called with how much was tried, and how much there is to try.

    Raises:
        NotFound: There is no such mutation.
        BlueprintInvalid: A parent breaks a rule.
    """
    found = Offspring([], [], [])
    graphs = {name: graph_of(blueprint) for name, blueprint in known.items()}
    tries: list[tuple[bytes, Blueprint, str, str]] = []
    for parent in parents:
        for mutation in chosen:
            places = targets(parent, mutation)
            if not places:
                found.refused.append((parent.id, Refusal(mutation, None, MUTATIONS[mutation].nowhere)))
            tries.extend((_place(seed, parent, mutation, target), parent, mutation, target) for target in places)
    tries.sort(key=lambda one: one[0])
    for number, (_, parent, mutation, target) in enumerate(tries, 1):
        if count is not None and len(found.made) >= count:
            break
        mutant = mutate(parent, mutation, target, seed=seed)
        if isinstance(mutant, Refusal):
            found.refused.append((parent.id, mutant))
        elif blueprint_id(mutant.blueprint) in retired:
            found.refused.append((parent.id, Refusal(mutation, target, f"{mutant.blueprint.id} was retired")))
        else:
            new = novelty(mutant.blueprint, graphs)
            if new.value <= 0 or new.value < least_novelty:
                found.known.append((mutant.blueprint.id, mutation, new))
            else:
                found.made.append((mutant, new))
                graphs[mutant.blueprint.id] = graph_of(mutant.blueprint)
        if advance is not None:
            advance(number, len(tries))
    return found


def _place(seed: int, parent: Blueprint, mutation: str, target: str) -> bytes:
    """Return what the tries are sorted by: it looks random, and is the same everywhere."""
    return hashlib.sha256(f"{seed} {blueprint_id(parent)} {mutation} {target}".encode()).digest()
