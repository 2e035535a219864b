"""Facts of a training run: its start, each step and epoch, checkpoints, the governor and its end."""

from __future__ import annotations

from typing import Any

from esper.events.base import RunFact, fact
from esper.names import TopicNames

_RUNS = TopicNames.TRAINING_RUNS


@fact(_RUNS, stream="run", key="run_id")
class RunStarted(RunFact, frozen=True, kw_only=True):
    """A run began; everything needed to run it again."""

    #: Task name, e.g. ``digits``, or ``custom`` for a user's own loop.
    task: str
    #: ``package.module:Task`` or a shipped task's name, which builds data and host again; None for a
    #: user's own loop.
    entry_point: str | None
    #: Host description: class and size.
    host: str
    policy: str
    #: Full configuration, as plain data.
    config: dict[str, Any]
    #: Schema number of the configuration.
    config_version: int
    #: Seeds by use: run, host, data, order.
    seeds: dict[str, int]
    total_steps: int
    steps_per_epoch: int
    git_commit: str | None
    #: SHA-256 of the uncommitted diff; None where the tree is clean or there is no git.
    git_dirty_digest: bytes | None
    packages: dict[str, str]
    #: Thread count, deterministic flags, processor, operating system, Python and torch.
    environment: dict[str, Any]
    environment_digest: bytes
    dataset_digest: bytes | None
    parent_run_id: str | None = None
    parent_position: int | None = None


@fact(_RUNS, stream="run", key="run_id")
class RunResumed(RunFact, frozen=True, kw_only=True):
    """A new attempt goes on from a checkpoint after the earlier one stopped."""

    #: Steps done in the checkpoint; steps after it are done again.
    from_step: int
    checkpoint_digest: bytes
    #: Steps of the earlier attempt that this one does again.
    redone_steps: int
    reason: str
    #: Digest of the environment the attempt runs in; bits are only promised where it equals the run's.
    environment_digest: bytes
    #: Random id of the resuming process; a second one that resumes at the same moment is shut out by it.
    writer: str


@fact(TopicNames.TRAINING_STEPS, stream="run", key="run_id", volatile=("duration_s",))
class TrainingStepCompleted(RunFact, frozen=True, kw_only=True):
    """One optimiser step was taken."""

    #: Epoch the step belongs to, from 0.
    epoch: int
    #: Step number in the run, from 1.
    step: int
    #: Mean training loss of the batch, exact.
    loss: float
    #: Learning rate of the host's first parameter group.
    learning_rate: float
    #: First 16 bytes of the SHA-256 of the batch's sample indices (int64, little endian); None if not given.
    samples_digest: bytes | None
    duration_s: float


@fact(TopicNames.SYSTEM_EVENTS_EPOCH, stream="run", key="run_id", volatile=("duration_s",))
class EpochCompleted(RunFact, frozen=True, kw_only=True):
    """An epoch ended and was evaluated on validation data."""

    epoch: int
    step: int
    #: Mean of the epoch's step losses.
    train_loss: float
    validation_loss: float | None
    validation_accuracy: float | None
    #: Parameters of host and growth together.
    parameters: int
    #: Training FLOPs so far, probes and evaluations included.
    training_flops: int
    #: SHA-256 over all parameters and buffers, host and growth, by name.
    parameter_digest: bytes
    #: SHA-256 chained over the epoch's samples_digests.
    data_digest: bytes
    duration_s: float


@fact(_RUNS, stream="run", key="run_id")
class CheckpointSaved(RunFact, frozen=True, kw_only=True):
    """The full state was stored as an artifact."""

    step: int
    #: SHA-256 of the artifact.
    digest: bytes
    size_bytes: int


@fact(_RUNS, stream="run", key="run_id")
class GovernorTripped(RunFact, frozen=True, kw_only=True):
    """The governor found training out of order."""

    step: int
    #: ``not_finite``, ``divergence`` or ``drift``.
    kind: str
    #: The numbers behind it.
    evidence: dict[str, float]
    suspect_seed_id: str | None


@fact(_RUNS, stream="run", key="run_id")
class RolledBack(RunFact, frozen=True, kw_only=True):
    """The state of a checkpoint was restored; the first fact of a new attempt."""

    from_step: int
    to_step: int
    checkpoint_digest: bytes
    culled_seed_id: str | None


@fact(_RUNS, stream="run", key="run_id")
class RunPaused(RunFact, frozen=True, kw_only=True):
    """The run was stopped on purpose; its last checkpoint resumes it."""

    step: int
    reason: str


@fact(_RUNS, stream="run", key="run_id", volatile=("duration_s",))
class RunFinished(RunFact, frozen=True, kw_only=True):
    """The run took all its steps; test data was touched here, once."""

    step: int
    test_loss: float | None
    test_accuracy: float | None
    parameters: int
    #: Parameters after folding what folds.
    folded_parameters: int
    training_flops: int
    #: Forward FLOPs of one sample after folding.
    inference_flops: int
    parameter_digest: bytes
    duration_s: float


@fact(_RUNS, stream="run", key="run_id")
class RunFailed(RunFact, frozen=True, kw_only=True):
    """The run ended with an error."""

    step: int
    #: Exception class.
    error: str
    message: str
    #: SHA-256 of the traceback text.
    traceback_digest: bytes | None
