"""One run's facts, read once and sorted by kind, with what a resumption or a rollback took back left out.

Belongs here: reading streams and telling which facts are effective. Does not belong here: what the page makes of them
(``data``).
"""

from __future__ import annotations

from typing import Any, TypeVar

from esper.cli.report.model import Moment
from esper.errors import NotFound
from esper.events import Fact, fact_of
from esper.events.decision import DecisionExecuted, DecisionMade, DecisionRequested
from esper.events.run import (
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
from esper.events.seed import (
    AlphaMoved,
    CounterfactualMeasured,
    KernelsOffered,
    SeedFaulted,
    SeedHealthMeasured,
    SeedTransitioned,
    SiteRegistered,
)
from esper.names import RunStatus
from esper.oona.port import EventLog, iterate_stream

F = TypeVar("F", bound=Fact)

#: Facts that happened at a step and are done again when a later attempt begins before it.
_STEPPED = (
    TrainingStepCompleted,
    EpochCompleted,
    SeedTransitioned,
    AlphaMoved,
    SeedHealthMeasured,
    CounterfactualMeasured,
)


class History:
    """What the log tells of one run.

    Attributes:
        started: The run's first fact.
        ended: The fact that ended or paused the run, None while it runs.
        status: What the run has come to.
        attempts: Number of attempts.
        redone: Steps that were taken and then done again.
        moments: Interruptions, in order.
        first: Position of the run's first fact.
        last: Position of the run's last fact.
        started_at: Microseconds since the Unix epoch, of the first fact.
        last_at: Of the last.
        count: Number of facts on the run's stream.
    """

    def __init__(self, log: EventLog, run_id: str) -> None:
        """Read a run's own stream.

        Raises:
            NotFound: The log has no such run.
            SchemaError: A fact cannot be read.
        """
        self._of: dict[type[Fact], list[Any]] = {}
        #: (attempt, last step that stood when it began), for every attempt but the first.
        self._restarts: list[tuple[int, int]] = []
        self.moments: list[Moment] = []
        self.ended: RunFinished | RunFailed | RunPaused | None = None
        self.attempts = 1
        self.redone = 0
        self.count = 0
        for envelope in iterate_stream(log, f"run/{run_id}"):
            fact = fact_of(envelope)
            if self.count == 0:
                self.first, self.started_at = envelope.position, envelope.recorded_at
            self.last, self.last_at = envelope.position, envelope.recorded_at
            self.count += 1
            self._take(fact)
        if not self.of(RunStarted):
            raise NotFound(f"the log has no run {run_id}", hint="`esper run list` shows the runs of this log")
        self.started: RunStarted = self.of(RunStarted)[0]

    def of(self, kind: type[F]) -> list[F]:
        """Return the effective facts of one type, in order."""
        return self._of.get(kind, [])

    @property
    def status(self) -> RunStatus:
        """Tell what the run has come to."""
        match self.ended:
            case RunFinished():
                return RunStatus.FINISHED
            case RunFailed():
                return RunStatus.FAILED
            case RunPaused():
                return RunStatus.PAUSED
            case None:
                return RunStatus.RUNNING

    @property
    def steps(self) -> int:
        """Number of the last effective step."""
        taken = self.of(TrainingStepCompleted)
        return taken[-1].step if taken else 0

    def _take(self, fact: Fact) -> None:
        self._of.setdefault(type(fact), []).append(fact)
        match fact:
            case RunResumed():
                # Without a checkpoint nothing stands, what was done before the first step included.
                self._go_back(fact.from_step if fact.checkpoint_digest else -1, fact.attempt)
                self.ended = None
                text = f"resumed after step {fact.from_step:,}: {fact.reason}; {fact.redone_steps:,} steps done again"
                self._note(fact.from_step, "resumed", text)
            case RolledBack():
                self._go_back(fact.to_step, fact.attempt)
                blamed = f"; seed {fact.culled_seed_id} was culled" if fact.culled_seed_id else ""
                text = f"rolled back from step {fact.from_step:,} to step {fact.to_step:,}{blamed}"
                self._note(fact.to_step, "rolled back", text)
            case GovernorTripped():
                numbers = ", ".join(f"{name} {value:.4g}" for name, value in sorted(fact.evidence.items()))
                self._note(fact.step, "governor tripped", " ".join(part for part in (fact.kind, numbers) if part))
            case SeedFaulted():
                text = f"seed {fact.seed_id} at {fact.site}, {fact.kind}: {fact.message}"
                self._note(fact.step, "seed faulted", text)
            case RunPaused():
                self._note(fact.step, "paused", fact.reason)
                self.ended = fact
            case RunFinished() | RunFailed():
                self.ended = fact

    def stands(self, attempt: int, step: int) -> bool:
        """Tell whether what an attempt did at a step was not taken back by a later one."""
        return all(later <= attempt or step <= last for later, last in self._restarts)

    def _note(self, step: int, kind: str, text: str) -> None:
        self.moments.append(Moment(step=step, kind=kind, text=text))

    def _go_back(self, step: int, attempt: int) -> None:
        """Leave out everything after a step: the attempt that begins here does it again."""
        self.attempts = max(self.attempts, attempt)
        self._restarts.append((attempt, step))
        self.redone += sum(fact.step > step for fact in self.of(TrainingStepCompleted))
        for kind in _STEPPED:
            if kind in self._of:
                self._of[kind] = [fact for fact in self._of[kind] if fact.step <= step]


class Decided:
    """The facts of one decision, by its number.

    Attributes:
        requested: When it was asked for, None where the log does not say.
        made: The choice.
        executed: What became of it, None where the log does not say.
    """

    def __init__(self, made: DecisionMade, requested: DecisionRequested | None) -> None:
        """Start from the choice."""
        self.requested = requested
        self.made = made
        self.executed: DecisionExecuted | None = None

    @property
    def step(self) -> int:
        """Return the step it was asked for at; 0 where the log does not say."""
        return self.requested.step if self.requested else self.executed.step if self.executed else 0


def decided(log: EventLog, history: History) -> list[Decided]:
    """Return the effective decisions of a run, in order of their numbers; of two of one number, the later attempt's."""
    found: dict[tuple[int, int], Decided] = {}
    requested: dict[tuple[int, int], DecisionRequested] = {}
    for envelope in iterate_stream(log, f"decision/{history.started.run_id}"):
        match fact_of(envelope):
            case DecisionRequested() as fact:
                requested[fact.decision, fact.attempt] = fact
            case DecisionMade() as fact:
                key = (fact.decision, fact.attempt)
                found[key] = Decided(fact, requested.get(key))
            case DecisionExecuted() as fact if (fact.decision, fact.attempt) in found:
                found[fact.decision, fact.attempt].executed = fact
    standing = {
        number: each
        for (number, attempt), each in sorted(found.items(), key=lambda item: item[0])
        if history.stands(attempt, each.step)
    }
    return list(standing.values())


def blueprint_names(log: EventLog, history: History) -> dict[str, str]:
    """Return the name of every blueprint that the run could choose from or that its seeds were made of."""
    names = {offer.blueprint_id: offer.name for offered in history.of(KernelsOffered) for offer in offered.offers}
    used = {fact.blueprint_id for fact in history.of(SeedTransitioned) if fact.blueprint_id is not None}
    for blueprint_id in sorted(used - names.keys()):
        for envelope in log.read_stream(f"blueprint/{blueprint_id}", 0, 1):
            names[blueprint_id] = getattr(fact_of(envelope), "name", None) or blueprint_id
    return names


def sites_of(history: History) -> list[SiteRegistered]:
    """Return the sites of a run once each (a resumed run registers them again), by depth."""
    found = {fact.site: fact for fact in history.of(SiteRegistered)}
    return sorted(found.values(), key=lambda fact: (fact.depth, fact.site))
