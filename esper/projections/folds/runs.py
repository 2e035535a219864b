"""From run facts to runs, run_starts, steps, epochs, checkpoints and run_events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import select

from esper.events.base import Fact, RunFact
from esper.events.envelope import Recorded
from esper.events.run import (
    CheckpointSaved,
    EpochCompleted,
    GovernorTripped,
    RolledBack,
    RunFailed,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    TrainingStepCompleted,
)
from esper.names import RunStatus
from esper.projections.folds.poison import contradiction
from esper.projections.folds.seeds import SeedFold
from esper.projections.staging import Staging
from esper.projections.tables import epochs
from esper.projections.values import canonical, real

#: What ``runs`` shows of the last effective epoch.
_SHOWN = ("epoch", "train_loss", "validation_loss", "validation_accuracy", "parameters", "training_flops")
_ENDED = ("ended_position", "ended_at", "ended_why")
#: Facts whose every field but their run and number goes into run_events.
_NUMBERING = frozenset({"run_id", "attempt", "ordinal", "step"})


class RunFold:
    """Follows runs from start to end."""

    def __init__(self, staging: Staging, seeds: SeedFold) -> None:
        """Write to a staging; what a resumption takes back from seeds is the seeds' fold's."""
        self._staging = staging
        self._seeds = seeds
        self._steps = staging.rows["steps"].append
        self._epochs = staging.rows["epochs"].append
        self._checkpoints = staging.rows["checkpoints"].append
        self._starts = staging.rows["run_starts"].append
        self._events = staging.rows["run_events"].append
        self._last_step = staging.last_step

    def handlers(self) -> dict[type[Fact], Callable[[Recorded, Any], None]]:
        """Return the function for each fact type."""
        return {
            RunStarted: self.started,
            RunResumed: self.resumed,
            TrainingStepCompleted: self.step,
            EpochCompleted: self.epoch,
            CheckpointSaved: self.checkpoint,
            GovernorTripped: self.tripped,
            RolledBack: self.rolled_back,
            RunPaused: self.paused,
            RunFinished: self.finished,
            RunFailed: self.failed,
        }

    def step(self, envelope: Recorded, fact: TrainingStepCompleted) -> None:
        """Append a step; the hot path, nine facts in ten."""
        loss, rate = fact.loss, fact.learning_rate
        step, run_id = fact.step, fact.run_id
        self._steps(
            (
                run_id,
                step,
                envelope.position,
                fact.attempt,
                fact.epoch,
                loss if loss == loss else "NaN",  # noqa: PLR0124 as values.real, without the call
                rate if rate == rate else "NaN",  # noqa: PLR0124
                fact.samples_digest,
                fact.duration_s,
                None,
            )
        )
        self._last_step[run_id] = step

    def started(self, envelope: Recorded, fact: RunStarted) -> None:
        """Begin a run."""
        if self._staging.runs.current((fact.run_id,)) is not None:
            raise contradiction(envelope, f"run {fact.run_id} was started before")
        self._staging.runs.start(
            (fact.run_id,),
            envelope.position,
            {
                "task": fact.task,
                "policy": fact.policy,
                "host": fact.host,
                "status": RunStatus.RUNNING.value,
                "attempt": fact.attempt,
                "steps_done": 0,
                "total_steps": fact.total_steps,
                "parent_run_id": fact.parent_run_id,
                "parent_position": fact.parent_position,
                "started_position": envelope.position,
                "started_at": envelope.recorded_at,
            },
        )
        self._starts(
            (
                fact.run_id,
                envelope.position,
                envelope.recorded_at,
                fact.entry_point,
                canonical(fact.config, envelope.payload),
                fact.config_version,
                canonical(fact.seeds, envelope.payload),
                fact.steps_per_epoch,
                fact.git_commit,
                fact.git_dirty_digest,
                canonical(fact.packages, envelope.payload),
                canonical(fact.environment, envelope.payload),
                fact.environment_digest,
                fact.dataset_digest,
                envelope.sender_id,
                envelope.trace_id,
            )
        )
        # What run_starts holds is not told twice.
        self._event(envelope, fact, 0, {"task": fact.task, "policy": fact.policy, "host": fact.host})

    def resumed(self, envelope: Recorded, fact: RunResumed) -> None:
        """Begin a new attempt from a checkpoint, or from nothing where none had been saved."""
        bound = fact.from_step if fact.checkpoint_digest else -1
        self._go_back(envelope, fact, bound, fact.from_step)
        self._event(envelope, fact, fact.from_step, _data(fact))

    def rolled_back(self, envelope: Recorded, fact: RolledBack) -> None:
        """Begin a new attempt from an earlier state."""
        self._go_back(envelope, fact, fact.to_step, fact.to_step)
        self._event(envelope, fact, fact.to_step, _data(fact), seed_id=fact.culled_seed_id)

    def epoch(self, envelope: Recorded, fact: EpochCompleted) -> None:
        """Append an epoch and show it in the run."""
        row = (
            fact.run_id,
            fact.step,
            envelope.position,
            fact.attempt,
            envelope.recorded_at,
            fact.epoch,
            real(fact.train_loss),
            real(fact.validation_loss),
            real(fact.validation_accuracy),
            fact.parameters,
            fact.training_flops,
            fact.parameter_digest,
            fact.data_digest,
            fact.duration_s,
            None,
        )
        shown = {
            "epoch": fact.epoch,
            "train_loss": row[6],
            "validation_loss": row[7],
            "validation_accuracy": row[8],
            "parameters": fact.parameters,
            "training_flops": fact.training_flops,
            "parameter_digest": fact.parameter_digest,
        }
        self._change(envelope, fact, shown)
        self._epochs(row)

    def checkpoint(self, envelope: Recorded, fact: CheckpointSaved) -> None:
        """Append a checkpoint."""
        self._checkpoints(
            (
                fact.run_id,
                fact.step,
                envelope.position,
                fact.attempt,
                envelope.recorded_at,
                fact.digest,
                fact.size_bytes,
                None,
            )
        )

    def tripped(self, envelope: Recorded, fact: GovernorTripped) -> None:
        """Note what the governor found."""
        self._event(envelope, fact, fact.step, _data(fact), seed_id=fact.suspect_seed_id)

    def paused(self, envelope: Recorded, fact: RunPaused) -> None:
        """End an attempt on purpose."""
        self._end(envelope, fact, RunStatus.PAUSED, fact.reason, {})
        self._event(envelope, fact, fact.step, _data(fact))

    def finished(self, envelope: Recorded, fact: RunFinished) -> None:
        """End a run that took all its steps."""
        measured = {
            "test_loss": real(fact.test_loss),
            "test_accuracy": real(fact.test_accuracy),
            "parameters": fact.parameters,
            "folded_parameters": fact.folded_parameters,
            "training_flops": fact.training_flops,
            "inference_flops": fact.inference_flops,
            "parameter_digest": fact.parameter_digest,
        }
        self._end(envelope, fact, RunStatus.FINISHED, None, measured)
        self._event(envelope, fact, fact.step, _data(fact))

    def failed(self, envelope: Recorded, fact: RunFailed) -> None:
        """End a run that raised."""
        self._end(envelope, fact, RunStatus.FAILED, f"{fact.error}: {fact.message}", {})
        self._event(envelope, fact, fact.step, _data(fact))

    def _end(
        self, envelope: Recorded, fact: RunFact, status: RunStatus, why: str | None, values: dict[str, Any]
    ) -> None:
        ended = (envelope.position, envelope.recorded_at, why)
        named = dict(zip(_ENDED, ended, strict=True))
        self._change(envelope, fact, {"status": status.value, **named, **values})

    def _go_back(self, envelope: Recorded, fact: RunFact, bound: int, step: int) -> None:
        """Take back what came after a step and show the run as it was then."""
        if self._staging.runs.current((fact.run_id,)) is None:
            raise contradiction(envelope, f"run {fact.run_id} was never started")
        self._staging.supersede(fact.run_id, bound, fact.attempt, envelope.position)
        self._seeds.go_back(fact.run_id, bound, fact.attempt, envelope.position)
        shown = self._last_epoch(fact.run_id)
        nothing = dict.fromkeys(_ENDED)
        again = {"status": RunStatus.RUNNING.value, "attempt": fact.attempt, "steps_done": step}
        self._change(envelope, fact, {**again, **nothing, **shown})

    def _last_epoch(self, run_id: str) -> dict[str, Any]:
        names = (*_SHOWN, "parameter_digest")
        found = self._staging.connection.execute(
            select(*(epochs.c[name] for name in names))
            .where(epochs.c.run_id == run_id, epochs.c.superseded_at.is_(None))
            .order_by(epochs.c.step.desc(), epochs.c.position.desc())
            .limit(1)
        ).first()
        return dict.fromkeys(names) if found is None else dict(zip(names, found, strict=True))

    def _change(self, envelope: Recorded, fact: RunFact, values: dict[str, Any]) -> None:
        key = (fact.run_id,)
        runs = self._staging.runs
        if runs.current(key) is None:
            raise contradiction(envelope, f"run {fact.run_id} was never started")
        done = self._last_step.pop(fact.run_id, None)
        if done is not None:
            # The version that ends here keeps the steps done while it was true, wherever a batch ends.
            runs.refresh(key, {"steps_done": done})
        runs.change(key, envelope.position, values)

    def _event(
        self, envelope: Recorded, fact: RunFact, step: int, data: dict[str, Any], *, seed_id: str | None = None
    ) -> None:
        self._events(
            (
                fact.run_id,
                step,
                envelope.position,
                fact.attempt,
                envelope.recorded_at,
                envelope.type,
                seed_id,
                None,
                canonical(data, envelope.payload),
                None,
            )
        )


def _data(fact: RunFact) -> dict[str, Any]:
    """Return what a fact says beside its run, number and step; digests as hexadecimal text."""
    plain = {name: getattr(fact, name) for name in fact.__struct_fields__ if name not in _NUMBERING}
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in plain.items()}
