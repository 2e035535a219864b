"""The life of a seed: one table of edges and one function that judges a move.

Belongs here: states, edges, who may walk an edge and through which gate. Does not belong here: measuring what a
gate asks for (``esper.kasmina.gates``) or acting on a move (``esper.kasmina.seed``).
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from esper.errors import IllegalTransition


class SeedState(StrEnum):
    """Where a seed stands in its life."""

    DORMANT = "dormant"
    GERMINATED = "germinated"
    LOADING = "loading"
    TRAINING = "training"
    GRAFTING = "grafting"
    STABILIZATION = "stabilization"
    EVALUATING = "evaluating"
    FINE_TUNING = "fine_tuning"
    FOSSILIZED = "fossilized"
    CULLED = "culled"
    CANCELLED = "cancelled"
    EMBARGOED = "embargoed"
    ROLLED_BACK = "rolled_back"


class Trigger(StrEnum):
    """Who walks an edge."""

    #: Happens by itself as soon as its cause is there.
    AUTOMATIC = "automatic"
    #: Happens at a step boundary once the gate's evidence is good enough.
    GATED = "gated"
    #: Happens on a controller's or operator's command, through the gate where one is named.
    COMMANDED = "commanded"


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """One legal move."""

    source: SeedState
    target: SeedState
    triggers: frozenset[Trigger]
    #: Gate to pass, or None.
    gate: str | None
    meaning: str


_AUTOMATIC = frozenset({Trigger.AUTOMATIC})
_GATED = frozenset({Trigger.GATED})
_COMMANDED = frozenset({Trigger.COMMANDED})
#: A fault or failed load culls by itself; a controller culls by command.
_EITHER = frozenset({Trigger.AUTOMATIC, Trigger.COMMANDED})

S = SeedState


def _edge(
    source: SeedState, target: SeedState, triggers: frozenset[Trigger], meaning: str, gate: str | None = None
) -> Edge:
    return Edge(source=source, target=target, triggers=triggers, gate=gate, meaning=meaning)


EDGES: tuple[Edge, ...] = (
    _edge(S.DORMANT, S.GERMINATED, _COMMANDED, "a kernel is chosen for the site", "kernel_fits"),
    _edge(S.GERMINATED, S.LOADING, _AUTOMATIC, "the kernel is fetched and checked"),
    _edge(S.GERMINATED, S.CANCELLED, _COMMANDED, "withdrawn before anything was attached"),
    _edge(S.LOADING, S.TRAINING, _AUTOMATIC, "attached with the host frozen (learning = probation)"),
    _edge(S.LOADING, S.GRAFTING, _AUTOMATIC, "attached at alpha 0 (learning = joint)"),
    _edge(S.LOADING, S.CANCELLED, _COMMANDED, "withdrawn before anything was attached"),
    _edge(S.LOADING, S.CULLED, _AUTOMATIC, "the kernel could not be loaded"),
    _edge(S.TRAINING, S.GRAFTING, _GATED, "the frozen-host steps are over", "probation_done"),
    _edge(S.TRAINING, S.CULLED, _EITHER, "given up"),
    _edge(S.GRAFTING, S.STABILIZATION, _GATED, "alpha has reached its target", "alpha_reached"),
    _edge(S.GRAFTING, S.CULLED, _EITHER, "given up; alpha ramps down"),
    _edge(S.STABILIZATION, S.EVALUATING, _GATED, "settled at full alpha", "settled"),
    _edge(S.STABILIZATION, S.CULLED, _EITHER, "given up; alpha ramps down"),
    _edge(S.EVALUATING, S.FINE_TUNING, _COMMANDED, "kept for more joint training"),
    _edge(S.EVALUATING, S.FOSSILIZED, _COMMANDED, "kept for good", "counterfactual_measured"),
    _edge(S.EVALUATING, S.CULLED, _EITHER, "given up; alpha ramps down"),
    _edge(S.FINE_TUNING, S.FOSSILIZED, _COMMANDED, "kept for good", "counterfactual_measured"),
    _edge(S.FINE_TUNING, S.CULLED, _EITHER, "given up; alpha ramps down"),
    _edge(S.CULLED, S.EMBARGOED, _GATED, "detached once alpha is 0", "faded"),
    _edge(S.CANCELLED, S.EMBARGOED, _AUTOMATIC, "nothing was attached"),
    _edge(S.EMBARGOED, S.DORMANT, _GATED, "the site is free again", "embargo_over"),
    *(
        _edge(state, S.ROLLED_BACK, _AUTOMATIC, "suspected of the fault that tripped the governor")
        for state in (
            S.GERMINATED,
            S.LOADING,
            S.TRAINING,
            S.GRAFTING,
            S.STABILIZATION,
            S.EVALUATING,
            S.FINE_TUNING,
        )
    ),
    _edge(S.ROLLED_BACK, S.EMBARGOED, _AUTOMATIC, "detached by the restore"),
)

_BY_ENDS: dict[tuple[SeedState, SeedState], Edge] = {(edge.source, edge.target): edge for edge in EDGES}

#: Steps a site stays closed after a cull, by default.
EMBARGO_STEPS = 500

#: States in which a seed's branch is part of the forward pass.
ATTACHED = frozenset({S.TRAINING, S.GRAFTING, S.STABILIZATION, S.EVALUATING, S.FINE_TUNING, S.FOSSILIZED, S.CULLED})

#: States in which a seed's parameters learn. A fossilised seed goes on learning with the host at alpha 1.
LEARNING = frozenset({S.TRAINING, S.GRAFTING, S.STABILIZATION, S.EVALUATING, S.FINE_TUNING, S.FOSSILIZED})

#: States in which a site is taken by a seed that has not come to its end.
LIVING = frozenset(
    {
        S.GERMINATED,
        S.LOADING,
        S.TRAINING,
        S.GRAFTING,
        S.STABILIZATION,
        S.EVALUATING,
        S.FINE_TUNING,
        S.CULLED,
        S.CANCELLED,
        S.EMBARGOED,
        S.ROLLED_BACK,
    }
)


def edge(source: SeedState, target: SeedState) -> Edge | None:
    """Return the edge between two states, or None where there is none."""
    return _BY_ENDS.get((source, target))


def targets(source: SeedState, trigger: Trigger) -> list[SeedState]:
    """Return the states a trigger can move a seed to."""
    return [e.target for e in EDGES if e.source == source and trigger in e.triggers]


def require(source: SeedState, target: SeedState, trigger: Trigger) -> Edge:
    """Return the edge for a move.

    Raises:
        IllegalTransition: There is no such edge, or not for this trigger.
    """
    found = _BY_ENDS.get((source, target))
    if found is None:
        open_to = ", ".join(e.target for e in EDGES if e.source == source) or "nothing"
        raise IllegalTransition(
            f"a seed cannot move from {source} to {target}",
            hint=f"from {source} it can move to: {open_to}",
            source=source.value,
            target=target.value,
        )
    if trigger not in found.triggers:
        raise IllegalTransition(
            f"the move from {source} to {target} is {'/'.join(sorted(found.triggers))}, not {trigger}",
            source=source.value,
            target=target.value,
        )
    return found
