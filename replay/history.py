"""One run's facts as read from the log, and the path through them that counts.

Belongs here: reading and ordering; no torch, no comparison. A run that was killed and resumed has stretches that were
done twice; the path that counts leaves the superseded stretch out and keeps it apart, so that both can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from esper.errors import NotFound, ReplayError
from esper.events import Fact, fact_of
from esper.events.run import CheckpointSaved, RunFailed, RunFinished, RunPaused, RunResumed, RunStarted
from esper.oona.port import EventLog, iterate_stream

#: Facts of the process rather than of the training; a resumed attempt does not repeat them.
_PROCESS = (RunPaused, RunFailed, RunResumed)


class Recorded(NamedTuple):
    """A fact and where it stands in the log."""

    position: int
    fact: Fact


class Overlap(NamedTuple):
    """A superseded fact and the one that a later attempt put in its place."""

    superseded: Recorded
    effective: Recorded


class History(NamedTuple):
    """A run as the log tells it."""

    run_id: str
    started: RunStarted
    #: Facts that count, after RunStarted, in order.
    path: list[Recorded]
    #: Superseded facts beside what replaced them.
    overlaps: list[Overlap]
    #: Attempts made.
    attempts: int
    #: Position of the run's last fact.
    last_position: int

    @property
    def finished(self) -> bool:
        """Tell whether the run took all its steps."""
        return bool(self.path) and isinstance(self.path[-1].fact, RunFinished)

    def facts(self, cls: type[Fact]) -> Iterator[Recorded]:
        """Iterate over the facts of one type on the path."""
        return (one for one in self.path if isinstance(one.fact, cls))


def load_history(log: EventLog, run_id: str, *, until: int | None = None) -> History:
    """Return a run's history.

    Args:
        log: The log.
        run_id: The run.
        until: Last position to look at; the whole log when left out.

    Raises:
        NotFound: The log has no such run.
        ReplayError: The run's facts do not form a history.
    """
    recorded = _merged(log, run_id, until)
    if not recorded and until is not None and log.stream_version(f"run/{run_id}"):
        raise NotFound(f"run {run_id} had not begun at position {until}", hint="`esper run show` tells when it began")
    if not recorded:
        raise NotFound(f"no run {run_id!r} in the log", hint="`esper run list` shows the runs")
    started = recorded[0].fact
    if not isinstance(started, RunStarted):
        raise ReplayError(f"the first fact of run {run_id} is {type(started).__name__}, not RunStarted")
    path, overlaps, attempts = _effective(recorded[1:], run_id)
    return History(run_id, started, path, overlaps, attempts, recorded[-1].position)


def _merged(log: EventLog, run_id: str, until: int | None) -> list[Recorded]:
    """Return the facts of the run's own and its decisions' streams by position."""
    envelopes = [*iterate_stream(log, f"run/{run_id}"), *iterate_stream(log, f"decision/{run_id}")]
    envelopes.sort(key=lambda envelope: envelope.position)
    return [
        Recorded(envelope.position, fact_of(envelope))
        for envelope in envelopes
        if until is None or envelope.position <= until
    ]


def _effective(recorded: list[Recorded], run_id: str) -> tuple[list[Recorded], list[Overlap], int]:
    path: list[Recorded] = []
    overlaps: list[Overlap] = []
    superseded: list[Recorded] = []
    attempts = 1
    for one in recorded:
        attempt = getattr(one.fact, "attempt", 1)
        if attempt < attempts:
            continue  # said by a process that a later attempt had already shut out
        attempts = attempt
        if isinstance(one.fact, RunResumed):
            cut = _cut(path, one.fact, run_id)
            # What an attempt before the last one did, and the last one did not come to do again, follows its end.
            superseded = [old for old in path[cut:] if not isinstance(old.fact, _PROCESS)] + superseded
            del path[cut:]
            continue
        path.append(one)
        if superseded:
            overlaps.append(Overlap(superseded.pop(0), one))
    return path, overlaps, attempts


def _cut(path: list[Recorded], resumed: RunResumed, run_id: str) -> int:
    """Return how much of the path a resumption keeps: all up to the checkpoint it went on from."""
    if not resumed.checkpoint_digest:
        return 0
    for index in range(len(path) - 1, -1, -1):
        fact = path[index].fact
        if isinstance(fact, CheckpointSaved) and fact.digest == resumed.checkpoint_digest:
            return index + 1
    raise ReplayError(
        f"run {run_id} resumed from a checkpoint that none of its facts names",
        hint="`esper log verify` tells whether the log is intact",
    )


def overlap_disagreement(history: History) -> tuple[Overlap, str] | None:
    """Return the first superseded fact that its replacement does not equal bit for bit, and the field, or None."""
    for overlap in history.overlaps:
        field = differing_field(overlap.superseded.fact, overlap.effective.fact)
        if field is not None:
            return overlap, field
    return None


def differing_field(first: Fact, second: Fact) -> str | None:
    """Return the first deterministic field two facts differ in, ``type`` if it is their type, or None."""
    if type(first) is not type(second):
        return "type"
    skipped = {*first.info.volatile, "attempt", "ordinal"}
    for name in first.__struct_fields__:
        if name in skipped:
            continue
        if msgspec.msgpack.encode(getattr(first, name)) != msgspec.msgpack.encode(getattr(second, name)):
            return name
    return None
