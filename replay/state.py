"""What was true of a run at one moment, from facts alone: no torch, no tables, no re-execution."""

from __future__ import annotations

import copy
from typing import Any

from esper.errors import NotFound
from esper.events.decision import DecisionMade
from esper.events.run import (
    CheckpointSaved,
    EpochCompleted,
    GovernorTripped,
    RolledBack,
    RunFailed,
    RunFinished,
    RunPaused,
    TrainingStepCompleted,
)
from esper.events.seed import AlphaMoved, CounterfactualMeasured, SeedHealthMeasured, SeedTransitioned, SiteRegistered
from esper.names import RunStatus
from esper.oona.port import EventLog
from replay.history import History, load_history


def state_at(log: EventLog, run_id: str, *, position: int | None = None, epoch: int | None = None) -> dict[str, Any]:
    """Return what was true of a run.

    Args:
        log: The log.
        run_id: The run.
        position: Last log position to take into account; the whole log when left out.
        epoch: Instead of a position: the end of this epoch (from 0), before the decision that follows it.

    Raises:
        NotFound: There is no such run, or it had not begun or not reached the epoch by then.
    """
    history = load_history(log, run_id, until=position)
    if epoch is not None:
        position = _end_of_epoch(history, epoch)
        history = load_history(log, run_id, until=position)
    return _fold(history)


def _end_of_epoch(history: History, epoch: int) -> int:
    for one in history.facts(EpochCompleted):
        if getattr(one.fact, "epoch", None) == epoch:
            return one.position
    raise NotFound(
        f"run {history.run_id} has no completed epoch {epoch}",
        hint="`esper run show` tells how far it came",
    )


def _fold(history: History) -> dict[str, Any]:
    started = history.started
    state: dict[str, Any] = {
        "run_id": history.run_id,
        "position": history.last_position,
        "task": started.task,
        "policy": started.policy,
        "status": RunStatus.RUNNING.value,
        "attempt": history.attempts,
        "step": 0,
        "total_steps": started.total_steps,
        "loss": None,
        "learning_rate": None,
        "epochs": 0,
        "validation_loss": None,
        "validation_accuracy": None,
        "parameters": None,
        "training_flops": 0,
        "parameter_digest": None,
        "checkpoint": None,
        "rollbacks": 0,
        "decisions": 0,
        "sites": {},
        "seeds": {},
        "result": None,
    }
    saved = copy.deepcopy(state)
    for one in history.path:
        if isinstance(one.fact, RolledBack):
            state = _rolled_back(state, saved)
        _apply(state, one.fact)
        if isinstance(one.fact, CheckpointSaved):
            saved = copy.deepcopy(state)
    return state


#: What a rollback does not take back.
_LASTING = ("position", "training_flops", "rollbacks", "last_trip")


def _rolled_back(state: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """Return what is true after a rollback: all is as in the last checkpoint, but for the work that was spent."""
    lasting: dict[str, Any] = {name: state[name] for name in _LASTING if name in state}
    return {**copy.deepcopy(saved), **lasting}


def _apply(state: dict[str, Any], fact: Any) -> None:  # noqa: C901, PLR0912 - one case a fact type
    match fact:
        case TrainingStepCompleted():
            state.update(
                step=fact.step, loss=fact.loss, learning_rate=fact.learning_rate, status=RunStatus.RUNNING.value
            )
        case EpochCompleted():
            state.update(
                epochs=fact.epoch + 1,
                validation_loss=fact.validation_loss,
                validation_accuracy=fact.validation_accuracy,
                parameters=fact.parameters,
                training_flops=fact.training_flops,
                parameter_digest=fact.parameter_digest.hex(),
            )
        case SiteRegistered():
            state["sites"][fact.site] = {"kind": fact.kind, "depth": fact.depth, "telemetry": None}
        case SeedHealthMeasured():
            state["sites"][fact.site]["telemetry"] = {
                "step": fact.step,
                "gradient_norm": fact.gradient_norm,
                "zr": fact.zr,
                "effective_rank": fact.effective_rank,
                "dormant_frac": fact.dormant_frac,
            }
        case SeedTransitioned():
            seed = state["seeds"].setdefault(
                fact.seed_id, {"site": fact.site, "alpha": 0.0, "gain": None, "gain_stderr": None}
            )
            seed.update(
                state=fact.target, since_step=fact.step, blueprint_id=fact.blueprint_id, kernel_id=fact.kernel_id
            )
        case AlphaMoved():
            state["seeds"][fact.seed_id]["alpha"] = fact.alpha
        case CounterfactualMeasured():
            state["seeds"][fact.seed_id].update(gain=fact.gain, gain_stderr=fact.gain_stderr)
        case DecisionMade():
            state["decisions"] = fact.decision
        case CheckpointSaved():
            state.update(step=fact.step, checkpoint={"step": fact.step, "digest": fact.digest.hex()})
        case GovernorTripped():
            state["last_trip"] = {"step": fact.step, "kind": fact.kind, "suspect": fact.suspect_seed_id}
        case RolledBack():
            state["rollbacks"] += 1
            state["step"] = fact.to_step
        case RunPaused():
            state["status"] = RunStatus.PAUSED.value
        case RunFailed():
            state.update(status=RunStatus.FAILED.value, result={"error": fact.error, "message": fact.message})
        case RunFinished():
            state.update(
                status=RunStatus.FINISHED.value,
                result={
                    "test_loss": fact.test_loss,
                    "test_accuracy": fact.test_accuracy,
                    "parameters": fact.parameters,
                    "folded_parameters": fact.folded_parameters,
                    "training_flops": fact.training_flops,
                    "inference_flops": fact.inference_flops,
                },
            )
