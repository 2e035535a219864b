"""Where a run's facts go: into the log while it trains, or against the log while it is replayed.

Belongs here: numbering facts (attempt, ordinal) and giving them ids. Does not belong here: what the facts say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from esper.events.base import Fact, RunFact
from esper.oona.port import Receipt
from esper.oona.recording.recorder import Recorder

if TYPE_CHECKING:
    from esper.oona.recording.outage import Spooled


class FactSink(Protocol):
    """What a session tells its facts to."""

    run_id: str
    attempt: int

    def emit(self, cls: type[Fact], **fields: Any) -> None:
        """Take one fact; run_id, attempt and ordinal are filled in here."""
        ...

    def barrier(self) -> Receipt | Spooled | None:
        """Return once everything emitted before is durable."""
        ...

    def next_attempt(self) -> None:
        """Begin a new attempt: ordinals start again from 1."""
        ...


class RecordingSink:
    """Numbers facts and hands them to the background recorder.

    The run's own stream is appended at exact versions, so a second process that resumes the same run is fenced out:
    the slower one gets ``RecorderStopped`` with the conflict as its cause.
    """

    def __init__(self, recorder: Recorder, run_id: str, *, attempt: int = 1, version: int = 0) -> None:
        """Own ``run/<run_id>`` from a version on.

        Args:
            recorder: Background writer to the log.
            run_id: The run.
            attempt: Attempt the facts belong to.
            version: Version the run's stream has now; 0 for a new run.
        """
        self.run_id = run_id
        self.attempt = attempt
        self._recorder = recorder
        self._ordinal = 0
        recorder.own(f"run/{run_id}", version)

    def emit(self, cls: type[Fact], **fields: Any) -> None:
        """Take one fact of the run or of its decisions.

        Raises:
            RecorderStopped: The log no longer takes facts of this run.
        """
        if issubclass(cls, RunFact):
            self._ordinal += 1
            self._recorder.put(
                cls(run_id=self.run_id, attempt=self.attempt, ordinal=self._ordinal, **fields),
                ("run", self.run_id, self.attempt, self._ordinal),
            )
            return
        fact = cls(run_id=self.run_id, attempt=self.attempt, **fields)
        # A seed can have two reports in one attempt, e.g. when a kept one fails later: the outcome tells them apart.
        which = fields["decision"] if "decision" in fields else f"{fields['seed_id']} {fields['outcome']}"
        self._recorder.put(fact, ("decision", self.run_id, self.attempt, str(which), cls.__name__))

    def barrier(self) -> Receipt | Spooled | None:
        """Return once everything emitted before is on disk: in the log, or in the spool while that is away."""
        return self._recorder.flush()

    def next_attempt(self) -> None:
        """Begin a new attempt: ordinals start again from 1."""
        self.attempt += 1
        self._ordinal = 0
