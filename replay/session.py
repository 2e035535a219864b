"""Re-executing a recorded run and comparing every fact it gives with the recorded one.

Belongs here: the sink and store that compare instead of write, and ``verify``. The training itself is Tolaria's own
loop, so a replay runs the code that a run runs. Nothing is written to the log or the store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from esper.artifacts.store import ArtifactStore
from esper.blueprints.kernels.shelf import KernelShelf
from esper.errors import (
    ArtifactDamaged,
    ArtifactError,
    ArtifactMissing,
    ArtifactStoreUnavailable,
    EnvironmentMismatch,
    NotReexecutable,
    ReplayDiverged,
    ReplayError,
    TrainingError,
)
from esper.events import Fact
from esper.events.base import RunFact
from esper.events.decision import Action, DecisionMade, Observation
from esper.events.run import RunFailed, RunPaused, RunStarted, TrainingStepCompleted
from esper.events.seed import KernelLoaded, KernelsOffered
from esper.ids import sha256
from esper.oona.port import EventLog, Receipt
from esper.tamiyo import KernelOption, Policy
from esper.tolaria import determinism
from esper.tolaria.config import RunConfig, from_plain
from esper.tolaria.launch import policy_maker, started_fields
from esper.tolaria.recorded import options_of
from esper.tolaria.session import Session
from esper.tolaria.task import load_task
from esper.tolaria.trainer import Prepared, prepare, train
from replay.compare import Comparison, Difference, show
from replay.history import History, Recorded, load_history, overlap_disagreement
from replay.kernels import RecordedSupply

#: Fields of RunStarted that follow from its configuration and entry point; the others tell of machine and source.
_DERIVED = ("task", "host", "policy", "seeds", "total_steps", "steps_per_epoch", "dataset_digest")

#: A run that its store refused something failed for no reason of its own.
_STORE_ERRORS = frozenset(
    cls.__name__ for cls in (ArtifactError, ArtifactMissing, ArtifactDamaged, ArtifactStoreUnavailable)
)


class Verdict(NamedTuple):
    """What a verification found; divergence is raised, not returned."""

    run_id: str
    #: Facts compared.
    facts: int
    #: Training steps among them.
    steps: int
    attempts: int
    #: Superseded facts that agree with their replacements.
    overlapping: int
    #: Whether the run was recorded to its end.
    finished: bool
    #: None for a comparison by bits.
    tolerance: float | None
    largest_deviation: float


class EndOfHistory(ReplayError):
    """The recorded facts are used up; caught in this module."""


class ComparingSink:
    """Takes a run's facts and holds each against the next recorded one."""

    def __init__(self, history: History, comparison: Comparison) -> None:
        """Start at the first fact after RunStarted."""
        self.run_id = history.run_id
        self.attempt = 1
        self.compared = 0
        self.steps = 0
        self._path = [one for one in history.path if not _is_of_the_process(one.fact)]
        #: Runs that were recorded before there was this fact do not tell it.
        self._tells_loading = any(isinstance(one.fact, KernelLoaded) for one in self._path)
        self._comparison = comparison

    def emit(self, cls: type[Fact], **fields: Any) -> None:
        """Compare one fact.

        Raises:
            ReplayDiverged: It is not what was recorded.
            EndOfHistory: Nothing more was recorded.
        """
        if cls is RunPaused or (cls is KernelLoaded and not self._tells_loading):
            return
        if self.compared == len(self._path):
            raise EndOfHistory
        recorded = self._path[self.compared]
        extra = {"run_id": self.run_id, "attempt": self.attempt}
        if issubclass(cls, RunFact):
            extra["ordinal"] = self.compared
        found = self._comparison.difference(recorded.fact, cls(**extra, **fields))
        if found is not None:
            raise diverged(recorded, found)
        self.compared += 1
        self.steps += cls is TrainingStepCompleted

    def barrier(self) -> Receipt | None:
        """Do nothing: nothing was written."""
        return None

    def next_attempt(self) -> None:
        """Count attempts as the run did."""
        self.attempt += 1

    @property
    def exhausted(self) -> bool:
        """Tell whether every recorded fact was compared."""
        return self.compared == len(self._path)

    @property
    def next_recorded(self) -> Recorded:
        """Return the recorded fact that nothing was compared with yet."""
        return self._path[self.compared]


def _is_of_the_process(fact: Fact) -> bool:
    """Tell whether a fact says that a process stopped for a reason that training does not repeat."""
    return isinstance(fact, RunPaused) or (isinstance(fact, RunFailed) and fact.error in _STORE_ERRORS)


class ShadowStore:
    """Reads from a store and keeps what is put in memory, the latest only."""

    def __init__(self, store: ArtifactStore) -> None:
        """Read from a store."""
        self._store = store
        self._latest: tuple[bytes, bytes] | None = None

    def put(self, data: bytes) -> bytes:
        """Return the digest that storing would give."""
        digest = sha256(data)
        self._latest = (digest, data)
        return digest

    def get(self, digest: bytes) -> bytes:
        """Return the bytes of a digest; raises as the store does."""
        if self._latest is not None and self._latest[0] == digest:
            return self._latest[1]
        return self._store.get(digest)


class RecordedPolicy:
    """Gives the recorded distributions, in order.

    Where the policy that made a decision is at hand, it is asked again and its answer given instead, so that an
    altered distribution does not vouch for itself.
    """

    def __init__(self, history: History, policy: Policy | None = None) -> None:
        """Take the decisions from a history.

        Args:
            history: The run's facts.
            policy: What made them, if it can be asked; None trusts the recorded distributions.
        """
        self._policy = policy
        self._decisions = [one.fact for one in history.path if isinstance(one.fact, DecisionMade)]
        self._next = 0
        self.policy_id = ""
        self.digest = b""

    def decide(self, observation: Observation, legal: Sequence[Action]) -> list[float]:
        """Return the distribution of the next recorded decision.

        Raises:
            EndOfHistory: No decision was recorded here.
            ReplayError: It was made over another number of actions.
        """
        if self._next == len(self._decisions):
            raise EndOfHistory
        made = self._decisions[self._next]
        self._next += 1
        self.policy_id, self.digest = made.policy_id, made.policy_digest
        if self._policy is not None and self._policy.digest == made.policy_digest:
            self.policy_id = self._policy.policy_id
            return self._policy.decide(observation, legal)
        if len(made.probabilities) != len(legal):
            raise ReplayError(
                f"decision {made.decision} was made over {len(made.probabilities)} legal actions, now there are "
                f"{len(legal)}",
                hint="the rules of what is legal changed since; use the recorded version of Esper",
            )
        return list(made.probabilities)


def verify(
    log: EventLog,
    store: ArtifactStore,
    run_id: str,
    *,
    tolerance: float | None = None,
    on_epoch: Callable[[Session], None] | None = None,
) -> Verdict:
    """Execute a run again from its facts and compare every fact.

    Args:
        log: The log that has the run.
        store: The store that has its kernels.
        run_id: The run.
        tolerance: None compares by bits; a number compares floats within it, for other machines.
        on_epoch: Called after each epoch, for progress.

    Raises:
        NotFound: The log has no such run.
        ReplayDiverged: Something is not as recorded; names the position, the quantity and both values.
        NotReexecutable: The loop was the user's own; what can be checked of the facts was.
        EnvironmentMismatch: Comparison by bits on another machine or toolchain.
    """
    history = load_history(log, run_id)
    check_overlaps(history)
    started = history.started
    if started.entry_point is None:
        raise NotReexecutable(
            f"run {run_id}: facts verified ({len(history.path) + 1}), not re-executable: its loop was the user's own",
            hint="`esper audit trail` shows what was recorded",
        )
    config = from_plain(started.config, started.config_version)
    comparison = Comparison(tolerance)
    with determinism.applied(started.environment):
        check_environment(history, tolerance)
        determinism.seed_all(started.seeds["run"])
        task = load_task(started.entry_point)
        prepared = prepare(task, config, started.seeds)
        found = comparison.difference(started, restarted(started, config, prepared, task.name))
        if found is not None:
            raise diverged(Recorded(_started_position(log, run_id), started), found)
        sink = ComparingSink(history, comparison)
        # Within a tolerance the run has to follow the recorded choices, or it would be another run.
        asked = policy_maker(config) if tolerance is None else None
        try:
            with RecordedSupply(history, KernelShelf(store).get) as supply:
                train(
                    task,
                    prepared,
                    config,
                    sink=sink,
                    store=ShadowStore(store),
                    make_policy=lambda kernels: RecordedPolicy(history, asked and asked(kernels)),
                    kernels=lambda _: recorded_kernels(history),
                    supply=supply,
                    run_seed=started.seeds["growth"],
                    on_epoch=on_epoch,
                )
        except EndOfHistory:
            pass
        except TrainingError:
            if not sink.exhausted:
                raise
    if not sink.exhausted:
        left = sink.next_recorded
        raise diverged(left, Difference("end of the run", type(left.fact).__name__, "nothing"))
    return Verdict(
        run_id,
        facts=sink.compared,
        steps=sink.steps,
        attempts=history.attempts,
        overlapping=len(history.overlaps),
        finished=history.finished,
        tolerance=tolerance,
        largest_deviation=comparison.largest_deviation,
    )


def restarted(started: RunStarted, config: RunConfig, prepared: Prepared, task: str) -> RunStarted:
    """Return how the run would begin now: what follows from configuration, data and host is taken from them."""
    now = started_fields(
        config, task=task, entry_point=started.entry_point, host=prepared.host, dataset_digest=prepared.data.digest
    )
    return msgspec.structs.replace(started, **{name: now[name] for name in _DERIVED})


def check_overlaps(history: History) -> None:
    """Check that superseded attempts agree with what replaced them.

    Raises:
        ReplayDiverged: A superseded fact differs.
    """
    found = overlap_disagreement(history)
    if found is not None:
        (superseded, effective), field = found
        raise diverged(
            superseded,
            Difference(
                f"{type(superseded.fact).__name__}.{field}",
                show(getattr(superseded.fact, field, type(superseded.fact).__name__)),
                f"{show(getattr(effective.fact, field, type(effective.fact).__name__))} at position "
                f"{effective.position} of a later attempt",
            ),
        )


def check_environment(history: History, tolerance: float | None) -> None:
    """Check that this machine and toolchain are the recorded ones.

    Raises:
        EnvironmentMismatch: They differ and no tolerance was given.
    """
    differences = determinism.differences(history.started.environment, determinism.environment())
    if differences and tolerance is None:
        raise EnvironmentMismatch(
            f"run {history.run_id} was recorded elsewhere: {'; '.join(differences)}",
        )


def recorded_kernels(history: History) -> dict[str, list[KernelOption]]:
    """Return the kernels a run was offered, by site."""
    return {one.fact.site: options_of(one.fact) for one in history.path if isinstance(one.fact, KernelsOffered)}


def diverged(recorded: Recorded, found: Difference) -> ReplayDiverged:
    """Return the error that names a divergence."""
    step = getattr(recorded.fact, "step", None)
    where = f"position {recorded.position}" + ("" if step is None else f", step {step}")
    return ReplayDiverged(
        f"first divergence at {where}: {found.quantity} is {found.got}, recorded {found.expected}",
        hint="`esper log verify` tells whether the log itself is intact",
        position=recorded.position,
        step=step,
        quantity=found.quantity,
        expected=found.expected,
        got=found.got,
    )


def _started_position(log: EventLog, run_id: str) -> int:
    return log.read_stream(f"run/{run_id}", limit=1)[0].position
