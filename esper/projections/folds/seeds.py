"""From seed facts to seeds, seed_transitions and their part of run_events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from sqlalchemy import select, update

from esper.events.base import Fact
from esper.events.envelope import Recorded
from esper.events.lifecycle import SeedState
from esper.events.seed import (
    AlphaMoved,
    CounterfactualMeasured,
    KernelLoaded,
    SeedFaulted,
    SeedFolded,
    SeedTransitioned,
    SeedTransitionRefused,
)
from esper.projections.folds.poison import contradiction
from esper.projections.staging import Staging
from esper.projections.tables import seeds as table
from esper.projections.values import canonical, real

#: Facts of a living seed that also go into run_events.
_Told: TypeAlias = CounterfactualMeasured | SeedFaulted | SeedFolded
#: What run_events keeps in columns of its own.
_ELSEWHERE = frozenset({"run_id", "attempt", "ordinal", "step", "seed_id", "site"})


class SeedFold:
    """Follows seeds through their lives, and back where a run goes back."""

    def __init__(self, staging: Staging) -> None:
        """Write to a staging."""
        self._staging = staging
        self._transitions = staging.rows["seed_transitions"].append
        self._events = staging.rows["run_events"].append

    def handlers(self) -> dict[type[Fact], Callable[[Recorded, Any], None]]:
        """Return the function for each fact type."""
        return {
            SeedTransitioned: self.moved,
            SeedTransitionRefused: self.refused,
            KernelLoaded: self.loaded,
            AlphaMoved: self.blended,
            CounterfactualMeasured: self.gained,
            SeedFaulted: self.faulted,
            SeedFolded: self.folded,
        }

    def moved(self, envelope: Recorded, fact: SeedTransitioned) -> None:
        """Append a move; one out of dormancy begins a life."""
        self._transitions(
            (
                fact.run_id,
                fact.step,
                envelope.position,
                fact.attempt,
                envelope.recorded_at,
                fact.seed_id,
                fact.site,
                fact.source,
                fact.target,
                fact.trigger,
                fact.reason,
                canonical(fact.evidence, envelope.payload),
                fact.blueprint_id,
                fact.kernel_id,
                fact.decision,
                fact.parameters,
                None,
            )
        )
        key = (fact.run_id, fact.seed_id)
        values: dict[str, Any] = {
            "attempt": fact.attempt,
            "site": fact.site,
            "state": fact.target,
            "state_step": fact.step,
            "last_step": fact.step,
            "parameters": fact.parameters,
            "superseded_at": None,
        }
        if fact.blueprint_id is not None:
            values["blueprint_id"] = fact.blueprint_id
        if fact.kernel_id is not None:
            values["kernel_id"] = fact.kernel_id
        if fact.source == SeedState.DORMANT.value:
            born = {"germinated_step": fact.step, "decision": fact.decision, "faults": 0}
            self._staging.seeds.start(key, envelope.position, {**values, **born})
        elif self._staging.seeds.current(key) is None:
            raise contradiction(envelope, f"seed {fact.seed_id} of run {fact.run_id} never left dormancy")
        else:
            self._staging.seeds.change(key, envelope.position, values)

    def refused(self, envelope: Recorded, fact: SeedTransitionRefused) -> None:
        """Note a move that did not happen."""
        self._event(envelope, fact)

    def loaded(self, envelope: Recorded, fact: KernelLoaded) -> None:
        """Note whether training waited for a kernel; its seed begins to live with the next move."""
        self._event(envelope, fact)

    def blended(self, envelope: Recorded, fact: AlphaMoved) -> None:
        """Show a seed's blending strength."""
        self._change(envelope, fact, {"alpha": real(fact.alpha), "alpha_target": real(fact.target)})

    def gained(self, envelope: Recorded, fact: CounterfactualMeasured) -> None:
        """Show what a seed brings."""
        gain = {"gain": real(fact.gain), "gain_stderr": real(fact.gain_stderr), "gain_step": fact.step}
        self._change(envelope, fact, gain)
        self._event(envelope, fact)

    def faulted(self, envelope: Recorded, fact: SeedFaulted) -> None:
        """Count a fault."""
        seed = self._staging.seeds.current((fact.run_id, fact.seed_id))
        self._change(envelope, fact, {"faults": 1 if seed is None else seed["faults"] + 1})
        self._event(envelope, fact)

    def folded(self, envelope: Recorded, fact: SeedFolded) -> None:
        """Show where a seed was folded to."""
        where = {"folded_into": fact.folded_into, "fold_difference": real(fact.max_difference)}
        self._change(envelope, fact, where)
        self._event(envelope, fact)

    def go_back(self, run_id: str, bound: int, attempt: int, position: int) -> None:
        """Show a run's seeds as they were after a step.

        Args:
            run_id: The run.
            bound: Last step that stands; -1 where nothing does.
            attempt: The attempt that goes on from there.
            position: Where the log says so.
        """
        connection, seeds = self._staging.connection, self._staging.seeds
        undone = (table.c.run_id == run_id, table.c.last_step > bound, table.c.superseded_at.is_(None))
        present = connection.execute(select(table.c.seed_id).where(*undone, table.c.valid_to.is_(None)))
        names = list(present.scalars())
        connection.execute(update(table).where(*undone).values(superseded_at=position))
        seeds.forget()
        for name in names:
            key = (run_id, name)
            before = connection.execute(
                select(table)
                .where(table.c.run_id == run_id, table.c.seed_id == name, table.c.superseded_at.is_(None))
                .order_by(table.c.valid_from.desc())
                .limit(1)
            ).first()
            if before is None:
                seeds.end(key, position)
            else:
                seeds.change(key, position, {**before._mapping, "attempt": attempt})  # noqa: SLF001 its public name

    def _change(self, envelope: Recorded, fact: AlphaMoved | _Told, values: dict[str, Any]) -> None:
        key = (fact.run_id, fact.seed_id)
        if self._staging.seeds.current(key) is None:
            raise contradiction(envelope, f"seed {key[1]} of run {fact.run_id} never left dormancy")
        now = {"attempt": fact.attempt, "last_step": fact.step, "superseded_at": None}
        self._staging.seeds.change(key, envelope.position, {**now, **values})

    def _event(self, envelope: Recorded, fact: SeedTransitionRefused | KernelLoaded | _Told) -> None:
        plain = {name: getattr(fact, name) for name in fact.__struct_fields__ if name not in _ELSEWHERE}
        data = {name: value.hex() if isinstance(value, bytes) else value for name, value in plain.items()}
        self._events(
            (
                fact.run_id,
                fact.step,
                envelope.position,
                fact.attempt,
                envelope.recorded_at,
                envelope.type,
                fact.seed_id,
                fact.site,
                canonical(data, envelope.payload),
                None,
            )
        )
