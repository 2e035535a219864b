"""The built-in loop: a task's data and host, driven through a session. One user of the session among others.

Belongs here: batches, evaluation and batch-norm statistics for tasks. What a step does stands in
``esper.tolaria.session``; opening logs and recording the start in ``esper.tolaria.launch``.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from esper.errors import EsperError, HostFailed, LogError, ReplayError
from esper.events import Fact
from esper.events.run import RunFailed, RunPaused
from esper.events.seed import SiteRegistered
from esper.ids import sha256
from esper.kasmina import Growth, attach
from esper.kasmina.counterfactual import reestimate_batch_norm
from esper.kasmina.life import Emit
from esper.tamiyo import KernelOption
from esper.tolaria.checkpoint import CheckpointStore
from esper.tolaria.config import RunConfig
from esper.tolaria.controller import MakePolicy
from esper.tolaria.evaluation import Evaluation
from esper.tolaria.optim import make_optimizer
from esper.tolaria.orders import OrderStopped
from esper.tolaria.session import Session
from esper.tolaria.sink import FactSink
from esper.tolaria.supply import KernelSupply
from esper.tolaria.task import DataOrder, Split, Task, TaskData, samples_digest

#: Samples of one forward pass in an evaluation.
_EVALUATION_BATCH = 2048

#: Batches for estimating batch-norm statistics again.
_STATISTICS_BATCHES = 20
_STATISTICS_BATCH = 256

#: Gives the kernels on offer by site, once the sites are known.
Kernels = Callable[[Growth], dict[str, list[KernelOption]]]


class Prepared(NamedTuple):
    """A task's data and host, built from a run's seeds."""

    data: TaskData
    host: nn.Module
    order: DataOrder


def prepare(task: Task, config: RunConfig, seeds: dict[str, int]) -> Prepared:
    """Build data, host and sample order from seeds."""
    data = task.data(seeds["data"])
    host = task.host(seeds["host"])
    return Prepared(data, host, DataOrder(seeds["order"], data.train.size, config.batch_size))


def train(
    task: Task,
    prepared: Prepared,
    config: RunConfig,
    *,
    sink: FactSink,
    store: CheckpointStore,
    make_policy: MakePolicy,
    kernels: Kernels,
    supply: KernelSupply,
    run_seed: int,
    checkpoint: bytes | None = None,
    on_epoch: Callable[[Session], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> nn.Module | None:
    """Train a task's host to its last step, or until asked to stop.

    Args:
        task: What to learn.
        prepared: Its data, host and order.
        config: How the run goes.
        sink: Where facts go.
        store: Where checkpoints go.
        make_policy: Makes what decides, once the kernels are known.
        kernels: Gives the kernels on offer by site.
        supply: Gives kernels, in time and checked.
        run_seed: Key of the decisions' draws.
        checkpoint: Checkpoint bytes to go on from; None starts at the first step.
        on_epoch: Called after each epoch.
        stop: Asked after each epoch; True pauses the run there.

    Returns:
        The grown model as a plain module, or None if the run was paused.

    Raises:
        HostFailed: The host or task raised; recorded as RunFailed.
        Diverged: The governor gave up; recorded as RunFailed.
    """
    data, host, order = prepared
    session: Session | None = None

    def evaluate_on(split: Split) -> Callable[[nn.Module], Evaluation]:
        return lambda model: evaluate(task, model, split)

    try:
        growth = attach(
            host,
            (data.train.inputs[: config.batch_size],),
            sites=config.sites,
            emit=sink.emit if checkpoint is None else sites_known(sink.emit),
        )
        session = Session(
            growth,
            make_optimizer(config.optimizer, host.parameters(), config.learning_rate),
            config,
            sink=sink,
            store=store,
            make_policy=make_policy,
            supply=supply,
            run_seed=run_seed,
            evaluate=evaluate_on(data.validation),
            reestimate=lambda model: reestimate_batch_norm(model, statistics_batches(data.train)),
            on_epoch=on_epoch,
        )
        try:
            offered = kernels(growth)
        except OrderStopped:
            sink.emit(RunPaused, step=session.step_count, reason="asked to stop while it waited for its kernels")
            sink.barrier()
            return None
        if checkpoint is None:
            session.begin(offered)
        else:
            session.resume(checkpoint, offered)
        while not session.done:
            indices = order.indices(session.step_count + 1)
            inputs, targets = data.train.take(indices)
            loss = task.loss(host(inputs), targets).mean()
            session.step(loss, samples_digest=samples_digest(indices), batch=len(indices))
            if stop() and session.at_epoch_end and not session.done:
                sink.emit(RunPaused, step=session.step_count, reason="asked to stop")
                sink.barrier()
                return None
        return session.finish(evaluate_on(data.test))
    except (LogError, ReplayError):
        raise  # it is not the training that failed
    except EsperError as error:
        fail(sink, session, error)
        raise
    except Exception as error:
        step = fail(sink, session, error) + 1
        raise HostFailed(
            f"{type(error).__name__} at step {step} of task {task.name}: {error}",
            hint="the run is recorded as failed; its last checkpoint is kept",
        ) from error


def sites_known(emit: Emit) -> Emit:
    """Return an emit that drops SiteRegistered: a resumed run's log has its sites already."""

    def told(cls: type[Fact], **fields: Any) -> None:
        if cls is not SiteRegistered:
            emit(cls, **fields)

    return told


def fail(sink: FactSink, session: Session | None, error: Exception) -> int:
    """Record that a run ended with an error, after the steps before it, and return how many there were."""
    step = 0
    if session is not None:
        session.drain()
        step = session.step_count
    text = "".join(traceback.format_exception_only(error))
    sink.emit(
        RunFailed,
        step=step,
        error=type(error).__name__,
        message=str(error),
        traceback_digest=sha256(text.encode()),
    )
    sink.barrier()
    return step


def evaluate(task: Task, model: nn.Module, split: Split) -> Evaluation:
    """Return the losses of every sample of a split, in order; call it in eval mode without gradient."""
    losses: list[Tensor] = []
    correct: list[Tensor] = []
    for start in range(0, split.size, _EVALUATION_BATCH):
        targets = split.targets[start : start + _EVALUATION_BATCH]
        outputs = model(split.inputs[start : start + _EVALUATION_BATCH])
        losses.append(task.loss(outputs, targets))
        right = task.correct(outputs, targets)
        if right is not None:
            correct.append(right)
    return Evaluation(torch.cat(losses), torch.cat(correct) if correct else None)


def statistics_batches(split: Split) -> Iterator[tuple[Tensor]]:
    """Yield the first training batches, from which batch-norm statistics are estimated again."""
    size = min(split.size, _STATISTICS_BATCH)
    for index in range(min(_STATISTICS_BATCHES, split.size // size)):
        yield (split.inputs[index * size : (index + 1) * size],)
