"""Starting and resuming recorded runs: recorder, forge and facts of the start, put around the built-in loop.

Belongs here: what a run needs from log and store. Does not belong here: reading settings or printing (``esper.cli``).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

from torch import nn

from esper.artifacts.signing import SigningKey
from esper.artifacts.store import ArtifactStore
from esper.blueprints.forging.forge import Forge
from esper.blueprints.kernels.shelf import KernelShelf
from esper.errors import ConfigError, TrainingError
from esper.events.run import RunResumed, RunStarted
from esper.ids import new_run_id, new_trace_id
from esper.logs import bound, get_logger
from esper.oona.port import EventLog
from esper.oona.recording.delivery import Spool
from esper.oona.recording.recorder import Recorder
from esper.tamiyo import KernelOption, Policy, make_policy
from esper.tolaria import determinism, provenance
from esper.tolaria.config import CONFIG_VERSION, RunConfig, check, from_plain, to_plain
from esper.tolaria.controller import MakePolicy
from esper.tolaria.offers import Maker, forge_kernels, offered_blueprints
from esper.tolaria.orders import Order, Workers
from esper.tolaria.recorded import recorded_run
from esper.tolaria.session import Session
from esper.tolaria.sink import RecordingSink
from esper.tolaria.supply import CACHE_BYTES, KernelSupply
from esper.tolaria.task import load_task
from esper.tolaria.trainer import prepare, train


class Trained(NamedTuple):
    """What a recorded run came to."""

    run_id: str
    #: The grown model as a plain module; None if the run was paused.
    model: nn.Module | None
    #: Position of the run's last durable fact.
    position: int


def start(
    entry: str,
    config: RunConfig,
    *,
    log: EventLog,
    store: ArtifactStore,
    spool: Spool | None = None,
    shelf: KernelShelf | None = None,
    kernel_cache_bytes: int = CACHE_BYTES,
    workers: Workers | None = None,
    run_id: str | None = None,
    on_start: Callable[[str], None] | None = None,
    on_epoch: Callable[[Session], None] | None = None,
) -> Trained:
    """Train a task from its first step and record everything.

    Args:
        entry: A shipped task's name or ``package.module:Name``.
        config: How the run goes.
        log: Where the facts go.
        store: Where checkpoints and kernels go.
        spool: Where facts wait while the log cannot be reached, so that training goes on; None stops the run then.
        shelf: The store as one for kernels, with the keys that sign and are trusted; without keys when left out.
        kernel_cache_bytes: Most bytes of kernels to keep in memory.
        workers: Where kernels are made by handlers, which are asked and waited for; None makes them in this process.
        run_id: The run's id; a fresh one when left out.
        on_start: Called with the run's id once its first fact is durable.
        on_epoch: Called after each epoch, for progress.

    Raises:
        ConfigError: The configuration cannot be used.
        NotFound: There is no such task.
        TrainingError: Training failed; the run is recorded as failed.
        LogError: The log took no more; the run can be resumed.
    """
    check(config)
    deliver_first(spool, log)
    chooser = policy_maker(config)
    offered_blueprints(config, log)  # so that a wrong name is found before anything is recorded
    task = load_task(entry)
    run_id = run_id or new_run_id()
    trace_id = new_trace_id()
    determinism.apply(config.threads)
    seeds = determinism.seeds_of(config.seed)
    determinism.seed_all(seeds["run"])
    prepared = prepare(task, config, seeds)
    shelf = shelf or KernelShelf(store)
    forge = Forge(log, store, sender_id="tolaria", trace_id=trace_id, shelf=shelf)
    with (
        bound(run_id=run_id, trace_id=trace_id),
        Recorder(log, sender_id="tolaria", trace_id=trace_id, spool=spool) as recorder,
        supply_of(forge, shelf, kernel_cache_bytes) as supply,
    ):
        sink = RecordingSink(recorder, run_id)
        sink.emit(
            RunStarted,
            **started_fields(
                config, task=task.name, entry_point=entry, host=prepared.host, dataset_digest=prepared.data.digest
            ),
        )
        sink.barrier()
        if on_start is not None:
            on_start(run_id)
        with stop_on_signal() as stop:
            model = train(
                task,
                prepared,
                config,
                sink=sink,
                store=store,
                make_policy=chooser,
                kernels=lambda growth: forge_kernels(
                    growth, config, maker_of(forge, workers, log, shelf, trace_id, stop), log
                ),
                supply=supply,
                run_seed=seeds["growth"],
                on_epoch=on_epoch,
                stop=stop,
            )
    return Trained(run_id, model, log.head().position)


def resume(
    run_id: str,
    *,
    log: EventLog,
    store: ArtifactStore,
    spool: Spool | None = None,
    shelf: KernelShelf | None = None,
    kernel_cache_bytes: int = CACHE_BYTES,
    workers: Workers | None = None,
    on_resume: Callable[[RunResumed], None] | None = None,
    on_epoch: Callable[[Session], None] | None = None,
) -> Trained:
    """Go on with a run from its last checkpoint, as a new attempt.

    Args:
        run_id: The run.
        log: The log that has its facts.
        store: The store that has its checkpoints.
        spool: As for ``start``; what earlier processes left there is delivered first.
        shelf: As for ``start``.
        kernel_cache_bytes: As for ``start``.
        workers: As for ``start``; only a run that has no checkpoint yet needs them.
        on_resume: Called with the fact that says what is done again.
        on_epoch: Called after each epoch, for progress.

    Raises:
        NotFound: The log has no such run.
        ConfigError: The run cannot be resumed: it is finished, or it was a user's own loop.
        ArtifactError: Its checkpoint is missing or damaged.
    """
    deliver_first(spool, log)
    known = recorded_run(log, run_id)
    if known.finished:
        raise ConfigError(f"run {run_id} is finished", hint="`esper replay verify` runs it again")
    if known.started.entry_point is None:
        raise ConfigError(
            f"run {run_id} was driven by your own loop",
            hint=f"start that program again with esper.run(..., restore={run_id!r})",
        )
    config = from_plain(known.started.config, known.started.config_version)
    chooser = policy_maker(config)
    task = load_task(known.started.entry_point)
    trace_id = new_trace_id()
    determinism.apply(config.threads)
    seeds = determinism.seeds_of(config.seed)
    determinism.seed_all(seeds["run"])
    prepared = prepare(task, config, seeds)
    if prepared.data.digest != known.started.dataset_digest:
        raise TrainingError(
            f"task {task.name} gives other data than run {run_id} was started with",
            hint="restore the data, or start a new run",
        )
    checkpoint = None if known.checkpoint is None else store.get(known.checkpoint.digest)
    shelf = shelf or KernelShelf(store)
    forge = Forge(log, store, sender_id="tolaria", trace_id=trace_id, shelf=shelf)
    with (
        bound(run_id=run_id, trace_id=trace_id),
        Recorder(log, sender_id="tolaria", trace_id=trace_id, spool=spool) as recorder,
        supply_of(forge, shelf, kernel_cache_bytes, known.outcomes) as supply,
    ):
        sink = RecordingSink(recorder, run_id, attempt=known.attempts + 1, version=known.version)
        resumed = known.resumption("resumed after the earlier attempt stopped")
        sink.emit(RunResumed, **resumed)
        sink.barrier()
        if on_resume is not None:
            on_resume(RunResumed(run_id=run_id, attempt=sink.attempt, ordinal=1, **resumed))
        with stop_on_signal() as stop:
            model = train(
                task,
                prepared,
                config,
                sink=sink,
                store=store,
                make_policy=chooser,
                kernels=lambda growth: (
                    known.kernels
                    or forge_kernels(growth, config, maker_of(forge, workers, log, shelf, trace_id, stop), log)
                ),
                supply=supply,
                run_seed=seeds["growth"],
                checkpoint=checkpoint,
                on_epoch=on_epoch,
                stop=stop,
            )
    return Trained(run_id, model, log.head().position)


def maker_of(
    forge: Forge,
    workers: Workers | None,
    log: EventLog,
    shelf: KernelShelf,
    trace_id: str,
    stop: Callable[[], bool] = lambda: False,
) -> Maker:
    """Return what makes a run's kernels: its own forge, or an order to workers."""
    if workers is None:
        return forge
    return Order(log, shelf, forge, workers, sender_id="tolaria", trace_id=trace_id, stop=stop)


def supply_of(forge: Forge, shelf: KernelShelf, max_bytes: int, outcomes: Iterable[str | None] = ()) -> KernelSupply:
    """Return the kernels of a run: from its shelf, and bad ones reported through its forge."""
    return KernelSupply(shelf.get, max_bytes=max_bytes, put_aside=forge.quarantine, outcomes=outcomes)


def tell_new_key(key: SigningKey) -> None:
    """Say that a signing key was made, to who runs a loop of their own."""
    told = "made a signing key; keep a copy of its file, and give its public half to whoever is to trust your kernels"
    get_logger("tolaria").warning(told, key_id=key.public.key_id)


def deliver_first(spool: Spool | None, log: EventLog) -> None:
    """Deliver what earlier processes left in the spool, and say what stays there.

    Raises:
        LogError: The log cannot be reached or refuses a file, which is kept, or a file is damaged.
    """
    if spool is None:
        return
    messages = get_logger("tolaria")
    for one in spool.deliver(log):
        if one.outcome == "delivered":
            messages.info("delivered what an earlier process had spooled", spool=str(one.path), facts=one.facts)
        else:
            messages.warning("a spool file stays", spool=str(one.path), reason=one.outcome, target=one.target)


def policy_maker(config: RunConfig) -> MakePolicy:
    """Return what makes the configured policy; wrong names and settings are found here, before anything starts.

    Raises:
        ConfigError: The policy or one of its settings cannot be used.
    """

    def made(kernels: Mapping[str, Sequence[KernelOption]]) -> Policy:
        return make_policy(config.policy, config.policy_settings, kernels=kernels)

    made({})
    return made


def started_fields(
    config: RunConfig, *, task: str, entry_point: str | None, host: nn.Module, dataset_digest: bytes | None
) -> dict[str, Any]:
    """Return the fields of RunStarted: configuration, provenance and environment."""
    environment = determinism.environment()
    source = provenance.source()
    return {
        "task": task,
        "entry_point": entry_point,
        "host": f"{type(host).__name__} ({sum(p.numel() for p in host.parameters())} parameters)",
        "policy": config.policy,
        "config": to_plain(config),
        "config_version": CONFIG_VERSION,
        "seeds": determinism.seeds_of(config.seed),
        "total_steps": config.total_steps,
        "steps_per_epoch": config.steps_per_epoch,
        "git_commit": source.commit,
        "git_dirty_digest": source.dirty_digest,
        "packages": provenance.packages(),
        "environment": environment,
        "environment_digest": determinism.environment_digest(environment),
        "dataset_digest": dataset_digest,
    }


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a wish to stop at the next epoch; a second one acts as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # What whoever started the process chose to ignore stays ignored.
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        nonlocal asked
        asked = True
        get_logger("tolaria").warning("stopping at the end of this epoch; ask again to stop at once")
        for one, handler in before.items():
            signal.signal(one, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
