"""Every move a seed makes, each attempt told as one fact.

Belongs here: ticking, commanding, faults and rollback over a set of seeds. Does not belong here: the host and its
hooks (``esper.kasmina.growth``), the table of edges (``esper.events.lifecycle``) or what a gate asks for
(``esper.kasmina.gates``). Moves happen between optimiser steps only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch

from esper.errors import GrowthError, IllegalTransition, NotFound
from esper.events.base import Fact
from esper.events.lifecycle import SeedState, Trigger, require
from esper.events.seed import AlphaMoved, SeedFaulted, SeedTransitioned, SeedTransitionRefused
from esper.kasmina import gates
from esper.kasmina.guard import Fault
from esper.kasmina.seed import Seed

Emit = Callable[..., None]
Command = Literal["advance", "cull", "fossilize"]

_TARGETS: dict[str, SeedState] = {
    "advance": SeedState.FINE_TUNING,
    "cull": SeedState.CULLED,
    "fossilize": SeedState.FOSSILIZED,
}

_GATED: dict[SeedState, tuple[SeedState, Callable[[Seed], gates.Verdict], str]] = {
    SeedState.TRAINING: (SeedState.GRAFTING, gates.probation_done, "the frozen-host steps are over"),
    SeedState.GRAFTING: (SeedState.STABILIZATION, gates.alpha_reached, "alpha has reached its target"),
    SeedState.STABILIZATION: (SeedState.EVALUATING, gates.settled, "settled at full alpha"),
    SeedState.CULLED: (SeedState.EMBARGOED, gates.faded, "detached at alpha 0"),
    SeedState.EMBARGOED: (SeedState.DORMANT, gates.embargo_over, "the site is free again"),
}


class Life(ABC):
    """The seeds of one host and their moves."""

    def __init__(self, emit: Emit | None) -> None:
        #: Every seed there ever was, in order of germination.
        self.seeds: dict[str, Seed] = {}
        self._emit: Emit = emit or _drop
        self._closed = False

    @abstractmethod
    def _detach(self, seed: Seed) -> None:
        """Take a seed's branch out of the forward pass and let it go."""

    def seed(self, seed_id: str) -> Seed:
        """Return a seed.

        Raises:
            NotFound: There is no such seed.
        """
        if seed_id not in self.seeds:
            raise NotFound(f"no seed {seed_id!r} in this run", hint=f"seeds: {', '.join(self.seeds) or 'none'}")
        return self.seeds[seed_id]

    def attached(self, path: str | None = None) -> list[Seed]:
        """Return the seeds whose branch is in the forward pass, in order of germination.

        Args:
            path: Only those of this site.
        """
        return [s for s in self.seeds.values() if s.attached and (path is None or s.site.path == path)]

    def tick(self, step: int) -> None:
        """Advance every alpha and walk the gated edges that are open; call it after each optimiser step.

        Args:
            step: Optimiser steps done, this one included.
        """
        self._require_open()
        for seed in list(self.seeds.values()):
            seed.steps_in_state = step - seed.entered_at
            if seed.attached:
                seed.set_alpha(seed.ramp.tick())
            if seed.state not in _GATED:
                continue
            target, gate, reason = _GATED[seed.state]
            verdict = gate(seed)
            if verdict.passed:
                self._move(seed, target, Trigger.GATED, reason, step, verdict.evidence)
                if target is SeedState.EMBARGOED:
                    self._detach(seed)

    def command(self, kind: Command, seed_id: str, *, step: int, decision: int | None = None) -> None:
        """Do to a seed what a controller or operator commands.

        A culled seed is frozen and fades before it is detached.

        Args:
            kind: ``advance`` (to more joint training), ``cull`` or ``fossilize``.
            seed_id: The seed.
            step: Optimiser steps done.
            decision: Number of the decision.

        Raises:
            NotFound: There is no such seed.
            IllegalTransition: The lifecycle or a gate refuses; told as a fact.
        """
        self._require_open()
        seed = self.seed(seed_id)
        target = _TARGETS[kind]
        evidence: dict[str, float | None] = {}
        try:
            edge = require(seed.state, target, Trigger.COMMANDED)
        except IllegalTransition as refusal:
            self._tell_refused(seed, target, step, "lifecycle", evidence, decision)
            raise refusal from None
        if edge.gate is not None:
            verdict = gates.counterfactual_measured(seed)
            evidence = verdict.evidence
            if not verdict.passed:
                self._refuse(seed, target, step, edge.gate, evidence, decision)
        self._move(seed, target, Trigger.COMMANDED, f"commanded: {kind}", step, evidence, decision)
        if target is SeedState.CULLED:
            seed.freeze(True)
            seed.ramp.aim(0.0, seed.schedule.fade_steps)
            seed.set_alpha(seed.ramp.value)

    def moved_alphas(self, step: int) -> list[str]:
        """Tell the alpha of each seed that moved since this was last called, and return their ids."""
        moved = [seed for seed in self.seeds.values() if seed.ramp.value != seed.alpha_told]
        for seed in moved:
            seed.alpha_told = seed.ramp.value
            self._emit(
                AlphaMoved,
                seed_id=seed.id,
                site=seed.site.path,
                step=step,
                alpha=seed.ramp.value,
                target=seed.ramp.target,
            )
        return [seed.id for seed in moved]

    def collect_faults(self, step: int) -> list[str]:
        """Tell the faults since the last call and cull the seeds that failed; return their ids.

        Until then a failed seed is already out of the forward pass. A fossilised seed has no way out of its state: it
        stays FOSSILIZED and quarantined, and ``detach`` leaves it out. On an accelerator this waits for the device
        once, however many seeds there are; without seeds it does not wait.
        """
        watched = [seed for seed in self.attached() if seed.fault is None]
        if not watched:
            return []
        device = watched[0].alpha.device
        flags = torch.stack([seed.guard.failed().to(device) for seed in watched])
        failed = []
        for seed, flagged in zip(watched, flags.tolist(), strict=True):
            fault = seed.guard.fault
            if fault is None and flagged:
                fault = Fault(kind="not_finite", message="the branch or a gradient made in it was NaN or Inf")
            if fault is not None:
                failed.append(seed.id)
                self._quarantine(seed, fault, step)
        return failed

    def _quarantine(self, seed: Seed, fault: Fault, step: int) -> None:
        seed.fault = fault
        self._emit(
            SeedFaulted,
            seed_id=seed.id,
            site=seed.site.path,
            step=step,
            kind=fault.kind,
            message=fault.message,
            traceback_digest=fault.traceback_digest,
        )
        if seed.state is SeedState.FOSSILIZED:
            return
        if seed.state is not SeedState.CULLED:
            self._move(seed, SeedState.CULLED, Trigger.AUTOMATIC, f"faulted: {fault.kind}", step)
        seed.ramp.aim(0.0, 0)
        verdict = gates.faded(seed)
        self._move(seed, SeedState.EMBARGOED, Trigger.GATED, "detached at once", step, verdict.evidence)
        self._detach(seed)

    def suspect(self) -> Seed | None:
        """Return the newest seed that a rollback can put the blame on, or None."""
        blamable = [
            seed
            for seed in self.attached()
            if seed.state not in {SeedState.FOSSILIZED, SeedState.CULLED} and not seed.quarantined
        ]
        return max(blamable, key=lambda seed: seed.germinated_at, default=None) if blamable else None

    def roll_back(self, seed: Seed | str, *, step: int) -> Seed:
        """Detach a suspected seed and close its site, after the trainer restored an earlier state.

        Args:
            seed: The suspect, as ``suspect`` gave it before the restore, or its id. A seed younger than the restored
                state is entered again, without its branch, so that its site stays closed.
            step: The step that was restored.

        Raises:
            NotFound: The id is not known and no ``Seed`` was given.
            IllegalTransition: The seed's state has no way to ROLLED_BACK; told as a fact.
        """
        self._require_open()
        found = self.seeds.setdefault(seed.id, seed) if isinstance(seed, Seed) else self.seed(seed)
        try:
            require(found.state, SeedState.ROLLED_BACK, Trigger.AUTOMATIC)
        except IllegalTransition as refusal:
            self._tell_refused(found, SeedState.ROLLED_BACK, step, "lifecycle", {}, None)
            raise refusal from None
        reason = "suspected of the fault that tripped the governor"
        self._move(found, SeedState.ROLLED_BACK, Trigger.AUTOMATIC, reason, step)
        self._move(found, SeedState.EMBARGOED, Trigger.AUTOMATIC, "detached by the restore", step)
        self._detach(found)
        return found

    def tell(self, fact: type[Fact], **fields: Any) -> None:
        """Emit a fact about this host that was found out beside this handle."""
        self._emit(fact, **fields)

    def _require_open(self) -> None:
        if self._closed:
            raise GrowthError("this host was detached; it does not grow any more", hint="attach it again")

    def _move(
        self,
        seed: Seed,
        target: SeedState,
        trigger: Trigger,
        reason: str,
        step: int,
        evidence: dict[str, float | None] | None = None,
        decision: int | None = None,
    ) -> None:
        require(seed.state, target, trigger)
        source = seed.state
        seed.state, seed.entered_at, seed.steps_in_state = target, step, 0
        self._emit(
            SeedTransitioned,
            seed_id=seed.id,
            site=seed.site.path,
            source=source.value,
            target=target.value,
            step=step,
            trigger=trigger.value,
            reason=reason,
            evidence=evidence or {},
            blueprint_id=seed.blueprint_id,
            kernel_id=seed.kernel_id,
            decision=decision,
            parameters=seed.parameters,
        )

    def _tell_refused(
        self,
        seed: Seed,
        target: SeedState,
        step: int,
        gate: str,
        evidence: dict[str, float | None],
        decision: int | None,
    ) -> None:
        self._emit(
            SeedTransitionRefused,
            seed_id=seed.id,
            site=seed.site.path,
            source=seed.state.value,
            target=target.value,
            step=step,
            gate=gate,
            evidence=evidence,
            decision=decision,
        )

    def _refuse(
        self,
        seed: Seed,
        target: SeedState,
        step: int,
        gate: str,
        evidence: dict[str, float | None],
        decision: int | None,
    ) -> None:
        self._tell_refused(seed, target, step, gate, evidence, decision)
        seen = ", ".join(f"{name} = {value}" for name, value in evidence.items()) or f"it is {seed.state}"
        raise IllegalTransition(
            f"seed {seed.id!r} at {seed.site.path!r} may not become {target}: gate {gate} saw {seen}",
            hint="a gate passes on measured evidence only",
            source=seed.state.value,
            target=target.value,
        )


def _drop(_fact: type[Fact], **_fields: Any) -> None:
    """Take a fact that nobody asked for."""
