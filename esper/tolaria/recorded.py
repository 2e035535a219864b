"""What the log knows of a run, as far as going on with it needs: its start, last checkpoint, kernels and attempts.

Belongs here: reading it from the run's own stream. Does not belong here: going on (``launch``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from esper.errors import NotFound
from esper.events import fact_of
from esper.events.run import CheckpointSaved, RunFinished, RunStarted, TrainingStepCompleted
from esper.events.seed import KernelsOffered
from esper.ids import new_trace_id
from esper.oona.port import EventLog, iterate_stream
from esper.tamiyo import KernelOption
from esper.tolaria import determinism
from esper.tolaria.outcomes import outcomes_of


class RecordedRun(NamedTuple):
    """What resuming needs to know of a run."""

    started: RunStarted
    checkpoint: CheckpointSaved | None
    kernels: dict[str, list[KernelOption]]
    #: Version of the run's stream.
    version: int
    attempts: int
    #: Last step of the last attempt.
    last_step: int
    finished: bool
    #: What became of the kernels that were chosen since the checkpoint: why one could not be had, else None.
    outcomes: list[str | None]

    def resumption(self, reason: str) -> dict[str, Any]:
        """Return the fields of RunResumed."""
        from_step = 0 if self.checkpoint is None else self.checkpoint.step
        return {
            "from_step": from_step,
            "checkpoint_digest": b"" if self.checkpoint is None else self.checkpoint.digest,
            "redone_steps": max(0, self.last_step - from_step),
            "reason": reason,
            "environment_digest": determinism.environment_digest(determinism.environment()),
            "writer": new_trace_id(),
        }


def recorded_run(log: EventLog, run_id: str) -> RecordedRun:
    """Read what resuming needs from the run's own stream.

    Raises:
        NotFound: The log has no such run.
    """
    started: RunStarted | None = None
    checkpoint: CheckpointSaved | None = None
    kernels: dict[str, list[KernelOption]] = {}
    version, attempts, last_step, finished, since = 0, 1, 0, False, 0
    for envelope in iterate_stream(log, f"run/{run_id}"):
        version = envelope.version
        fact = fact_of(envelope)
        attempts = max(attempts, getattr(fact, "attempt", 1))
        if isinstance(fact, RunStarted):
            started = fact
        elif isinstance(fact, TrainingStepCompleted):
            last_step = fact.step
        elif isinstance(fact, CheckpointSaved):
            checkpoint, since = fact, envelope.position
        elif isinstance(fact, KernelsOffered):
            kernels[fact.site] = options_of(fact)
        elif isinstance(fact, RunFinished):
            finished = True
    if started is None:
        raise NotFound(f"no run {run_id!r} in the log", hint="`esper run list` shows the runs")
    if checkpoint is None:
        kernels = {}
    decided = (fact_of(one) for one in iterate_stream(log, f"decision/{run_id}") if one.position > since)
    # Several attempts may have come past the checkpoint; they took the same decisions.
    outcomes = list(dict(outcomes_of(decided)).values())
    return RecordedRun(started, checkpoint, kernels, version, attempts, last_step, finished, outcomes)


def options_of(fact: KernelsOffered) -> list[KernelOption]:
    """Return the kernels a fact offers."""
    return [
        KernelOption(
            kernel_id=offer.kernel_id,
            blueprint_id=offer.blueprint_id,
            name=offer.name,
            parameters=offer.parameters,
            flops=offer.flops,
        )
        for offer in fact.offers
    ]
