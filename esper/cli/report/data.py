"""The report of a run from the log alone: the same log gives the same page, whatever the tables hold.

Belongs here: turning facts into what the page shows. Does not belong here: which facts are effective (``history``) or
what grew in it (``growth``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from esper.cli.report import wording
from esper.cli.report.growth import decision_of, gains_of, lanes_of, sites_shown
from esper.cli.report.history import Decided, History, blueprint_names, decided
from esper.cli.report.model import (
    Arm,
    Note,
    Points,
    Position,
    Report,
)
from esper.events import fact_of
from esper.events.operator import NoteAdded
from esper.events.run import (
    EpochCompleted,
    RunFailed,
    RunFinished,
    RunPaused,
    RunStarted,
    TrainingStepCompleted,
)
from esper.names import TopicNames
from esper.oona.port import EventLog, iterate, iterate_stream

_ROLES = ("no-growth", "from-scratch")


def read_report(log: EventLog, run_id: str) -> Report:
    """Read everything the page about a run shows.

    Args:
        log: Log the run is in.
        run_id: The run's full id.

    Raises:
        NotFound: The log has no such run.
        SchemaError: A fact cannot be read.
    """
    history = History(log, run_id)
    started = history.started
    names = blueprint_names(log, history)
    made = decided(log, history)
    head = log.head()
    initial = _initial_parameters(history, made)
    return Report(
        run_id=run_id,
        task=started.task,
        policy=started.policy,
        host=started.host,
        status=history.status.value,
        status_reason=_reason(history),
        started_at=history.started_at,
        last_at=history.last_at,
        steps=history.steps,
        total_steps=started.total_steps,
        steps_per_epoch=started.steps_per_epoch,
        attempts=history.attempts,
        redone_steps=history.redone,
        initial_parameters=initial,
        arms=[_arm(history, "grown", wording.ARM_LABELS["grown"], initial), *_other_arms(log, history)],
        lanes=lanes_of(history, names),
        decisions=[decision_of(each, history, names) for each in made],
        gains=gains_of(history, names),
        sites=sites_shown(history),
        moments=history.moments,
        notes=_notes(log, run_id),
        position=Position(
            first=history.first,
            last=history.last,
            head=head.position,
            head_hash=head.chain.hex(),
            facts=history.count,
        ),
        seeds=started.seeds,
        config=started.config,
        packages=started.packages,
        environment=started.environment,
        environment_digest=started.environment_digest.hex(),
        dataset_digest=started.dataset_digest.hex() if started.dataset_digest else None,
        git_commit=started.git_commit,
        git_dirty_digest=started.git_dirty_digest.hex() if started.git_dirty_digest else None,
        compare_to=_compare_to(started),
        parent_run_id=started.parent_run_id,
        parent_position=started.parent_position,
    )


def _compare_to(started: RunStarted) -> str | None:
    run_id = started.config.get("compare_to")
    return run_id if isinstance(run_id, str) else None


def _reason(history: History) -> str | None:
    match history.ended:
        case RunFailed() as failed:
            return f"{failed.error} at step {failed.step:,}: {failed.message}"
        case RunPaused() as paused:
            return paused.reason
        case _:
            return None


def _initial_parameters(history: History, made: Sequence[Decided]) -> int | None:
    for each in made:
        if each.requested is not None:
            return each.requested.observation.initial_parameters
    epochs = history.of(EpochCompleted)
    return epochs[0].parameters if epochs else None


def _arm(history: History, role: str, label: str, initial: int | None) -> Arm:
    epochs = history.of(EpochCompleted)
    finished = history.ended if isinstance(history.ended, RunFinished) else None
    latest = finished or (epochs[-1] if epochs else None)
    sizes: Points = [(0.0, float(initial))] if initial is not None else []
    return Arm(
        role=role,
        label=label,
        run_id=history.started.run_id,
        status=history.status.value,
        steps=history.steps,
        test_accuracy=finished.test_accuracy if finished else None,
        test_loss=finished.test_loss if finished else None,
        parameters=finished.folded_parameters if finished else latest.parameters if latest else initial,
        training_flops=latest.training_flops if latest else None,
        inference_flops=finished.inference_flops if finished else None,
        seconds=finished.duration_s if finished else None,
        train_loss=[(float(fact.step), fact.loss) for fact in history.of(TrainingStepCompleted)],
        validation_loss=[
            (float(fact.step), fact.validation_loss) for fact in epochs if fact.validation_loss is not None
        ],
        validation_accuracy=[
            (float(fact.step), fact.validation_accuracy) for fact in epochs if fact.validation_accuracy is not None
        ],
        parameters_over_time=sizes + [(float(fact.step), float(fact.parameters)) for fact in epochs],
        flops_over_time=[(0.0, 0.0)] + [(float(fact.step), float(fact.training_flops)) for fact in epochs],
    )


def _other_arms(log: EventLog, history: History) -> list[Arm]:
    """Return the runs made to be compared with this one, and its forks, arms first."""
    found = []
    for started in _children(log, history):
        role = started.config.get("arm")
        found.append((role if role in _ROLES else "other", started.run_id))
    found.sort(key=lambda each: (*_ROLES, "other").index(each[0]))
    seen: Counter[str] = Counter()
    arms = []
    for role, run_id in found:
        seen[role] += 1
        label = wording.ARM_LABELS.get(role, f"fork {wording.short_id(run_id)}")
        if seen[role] > 1 and role in _ROLES:
            label = f"{label} ({seen[role]})"
        other = History(log, run_id)
        epochs = other.of(EpochCompleted)
        arms.append(_arm(other, role, label, epochs[0].parameters if epochs else None))
    return arms


def _children(log: EventLog, history: History) -> Iterator[RunStarted]:
    """Find the runs that name this one; they can only stand after it."""
    run_id = history.started.run_id
    for envelope in iterate(log, history.first, topics=[TopicNames.TRAINING_RUNS]):
        if envelope.type == RunStarted.__name__:
            started = fact_of(envelope)
            if isinstance(started, RunStarted) and run_id in (
                started.config.get("compare_to"),
                started.parent_run_id,
            ):
                yield started


def _notes(log: EventLog, run_id: str) -> list[Note]:
    found = []
    for envelope in iterate_stream(log, f"operator/{run_id}"):
        fact = fact_of(envelope)
        if isinstance(fact, NoteAdded):
            found.append(Note(actor=fact.actor, text=fact.text, at=envelope.recorded_at))
    return found
