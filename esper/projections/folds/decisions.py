"""From decision facts to decisions, adaptations and field_reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from esper.events.base import Fact
from esper.events.decision import (
    AdaptationCommanded,
    DecisionExecuted,
    DecisionMade,
    DecisionRequested,
    FieldReportFiled,
)
from esper.events.envelope import Recorded
from esper.projections.folds.poison import contradiction
from esper.projections.staging import Key, Staging
from esper.projections.values import canonical, real

_KEY = ("run_id", "decision", "attempt")


class DecisionFold:
    """Follows decisions from question to outcome."""

    def __init__(self, staging: Staging) -> None:
        """Write to a staging."""
        self._decisions = staging.decisions
        self._adaptations = staging.adaptations
        self._seeds = staging.seeds
        self._reports = staging.rows["field_reports"].append

    def handlers(self) -> dict[type[Fact], Callable[[Recorded, Any], None]]:
        """Return the function for each fact type."""
        return {
            DecisionRequested: self.requested,
            DecisionMade: self.made,
            AdaptationCommanded: self.commanded,
            DecisionExecuted: self.executed,
            FieldReportFiled: self.reported,
        }

    def requested(self, envelope: Recorded, fact: DecisionRequested) -> None:
        """Begin a decision with what the policy could see."""
        self._decisions.fill(
            (fact.run_id, fact.decision, fact.attempt),
            _KEY,
            {
                "step": fact.step,
                "epoch": fact.epoch,
                "recorded_at": envelope.recorded_at,
                "feature_schema": fact.feature_schema,
                "observation_digest": fact.observation_digest,
                "observation": canonical(fact.observation, envelope.payload),
                "requested_position": envelope.position,
            },
        )

    def made(self, envelope: Recorded, fact: DecisionMade) -> None:
        """Add the choice and everything needed to judge it."""
        if not 0 <= fact.chosen < min(len(fact.legal), len(fact.probabilities)):
            raise contradiction(envelope, f"action {fact.chosen} of {len(fact.legal)} legal ones was chosen")
        key = (fact.run_id, fact.decision, fact.attempt)
        action = fact.legal[fact.chosen]
        payload = envelope.payload
        known = self._decisions.find(key)
        at = {"recorded_at": envelope.recorded_at} if known is None else {}
        self._decisions.fill(
            key,
            _KEY,
            {
                **at,
                "feature_schema": fact.feature_schema,
                "observation_digest": fact.observation_digest,
                "policy_id": fact.policy_id,
                "policy_digest": fact.policy_digest,
                "mode": fact.mode,
                "legal": canonical(fact.legal, payload),
                "masked": canonical(fact.masked, payload),
                "probabilities": canonical(fact.probabilities, payload),
                "chosen": fact.chosen,
                "action_kind": action.kind,
                "action": canonical(action, payload),
                "probability": real(fact.probabilities[fact.chosen]),
                "uniform": real(fact.uniform),
                "random": canonical(fact.random, payload),
                "made_position": envelope.position,
            },
        )

    def commanded(self, envelope: Recorded, fact: AdaptationCommanded) -> None:
        """Begin an adaptation."""
        key = (fact.run_id, fact.decision, fact.attempt)
        action = fact.action
        self._adaptations.fill(
            key,
            _KEY,
            {
                "step": self._step_of(key),
                "position": envelope.position,
                "recorded_at": envelope.recorded_at,
                "kind": action.kind,
                "site": action.site,
                "seed_id": action.seed_id,
                "blueprint_id": action.blueprint_id,
                "kernel_id": action.kernel_id,
                "schedule": None if action.schedule is None else canonical(action.schedule, envelope.payload),
            },
        )

    def executed(self, envelope: Recorded, fact: DecisionExecuted) -> None:
        """Add what came of a decision, and of its command where there was one."""
        key = (fact.run_id, fact.decision, fact.attempt)
        if self._decisions.find(key) is None:
            raise contradiction(envelope, f"decision {fact.decision} of run {fact.run_id} was never made")
        outcome = {
            "executed": fact.executed,
            "executed_reason": fact.reason,
            "executed_step": fact.step,
            "executed_position": envelope.position,
        }
        self._decisions.fill(key, _KEY, outcome)
        if self._adaptations.find(key) is not None:
            self._adaptations.fill(key, _KEY, outcome)

    def reported(self, envelope: Recorded, fact: FieldReportFiled) -> None:
        """Append a field report at the step its seed came to an end."""
        seed = self._seeds.current((fact.run_id, fact.seed_id))
        if seed is None:
            raise contradiction(envelope, f"seed {fact.seed_id} of run {fact.run_id} never left dormancy")
        self._reports(
            (
                fact.run_id,
                seed["germinated_step"] + fact.steps,
                envelope.position,
                fact.attempt,
                envelope.recorded_at,
                fact.seed_id,
                fact.site,
                fact.blueprint_id,
                fact.kernel_id,
                fact.outcome,
                fact.steps,
                real(fact.gain),
                real(fact.gain_stderr),
                None,
            )
        )

    def _step_of(self, key: Key) -> int | None:
        known = self._decisions.find(key)
        return None if known is None else known.values["step"]
