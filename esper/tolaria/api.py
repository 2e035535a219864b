"""``esper.run``: growth and records around a user's own model, optimiser, data and loop.

Belongs here: the context manager that users hold. What a step does stands in ``esper.tolaria.session``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from types import TracebackType
from typing import Any, Self

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.artifacts import open_store
from esper.blueprints.forging.forge import Forge
from esper.blueprints.kernels.shelf import KernelShelf
from esper.errors import ConfigError, LogError
from esper.events.run import RunPaused, RunResumed, RunStarted
from esper.ids import new_run_id, new_trace_id
from esper.kasmina import Growth, attach
from esper.logs import bound
from esper.oona.collecting.collect import claim_store
from esper.oona.open import open_configured
from esper.oona.port import EventLog
from esper.oona.recording.delivery import spool_for
from esper.oona.recording.recorder import Recorder
from esper.settings import load_settings
from esper.tolaria import determinism
from esper.tolaria.config import RunConfig, from_plain, timetable, to_plain
from esper.tolaria.controller import MakePolicy
from esper.tolaria.evaluation import Evaluate, Evaluation
from esper.tolaria.launch import deliver_first, maker_of, policy_maker, started_fields, supply_of, tell_new_key
from esper.tolaria.offers import forge_kernels, offered_blueprints
from esper.tolaria.orders import Workers
from esper.tolaria.recorded import RecordedRun, recorded_run
from esper.tolaria.session import Session
from esper.tolaria.sink import RecordingSink
from esper.tolaria.task import samples_digest
from esper.tolaria.trainer import fail, sites_known

#: Ids of the samples of one batch.
SampleIds = Tensor | Sequence[int]


def run(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    total_steps: int,
    batch_ids: Iterable[SampleIds] | None = None,
    restore: str | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    evaluate: Callable[[nn.Module], Tensor | tuple[Tensor, Tensor]] | None = None,
    test: Callable[[nn.Module], Tensor | tuple[Tensor, Tensor]] | None = None,
    name: str = "custom",
    home: str | None = None,
    **settings: Any,
) -> Run:
    """Grow and record a model inside your own loop.

    Args:
        model: The host; changed in place while the run lasts.
        optimizer: Its optimiser. Esper sets the learning rates from their present values.
        total_steps: Steps the loop will take.
        batch_ids: Sample ids of each batch of the run, in order, so that the log can prove the data order. With
            ``restore`` too they begin with the first step; those of steps that are done are passed over.
        restore: Run id to go on with; model and optimiser are set to its last checkpoint and ``steps_done`` tells
            where to begin.
        example_inputs: Positional arguments of one forward pass, from which the sites are found at once; without it
            the first training pass is watched. Needed with ``restore``.
        evaluate: Gives the validation loss of each sample ``[n]``, or losses and which were right (bool ``[n]``).
            Without it seeds have no counterfactual, so none can be fossilised.
        test: The same for test data; called once, at the end.
        name: Task name in tables and reports.
        home: Folder of log, tables and artifacts; the configured one when left out.
        settings: Fields of the run's configuration, e.g. ``policy="earliest-site"``, ``seed=3``,
            ``steps_per_epoch=200``.

    Returns:
        A context manager; call its ``step(loss)`` instead of ``backward`` and ``optimizer.step``.

    Raises:
        UnknownSetting: A setting does not exist.
        ConfigError: A setting has a value that cannot be used.
        NotFound: ``restore`` names a run that is not in the log.
    """
    plain = {
        **to_plain(RunConfig(total_steps=total_steps, threads=torch.get_num_threads(), graft=timetable(total_steps))),
        **settings,
        "learning_rate": float(optimizer.param_groups[0]["lr"]),
    }
    config = from_plain(msgspec.to_builtins(plain))
    if restore is not None and example_inputs is None:
        raise ConfigError(
            f"restoring {restore} needs example_inputs", hint="pass one batch of inputs: example_inputs=(inputs,)"
        )
    return Run(model, optimizer, config, batch_ids, restore, example_inputs, evaluate, test, name, home)


class Run:
    """A recorded run around a user's own loop; made by ``esper.run``."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        config: RunConfig,
        batch_ids: Iterable[SampleIds] | None,
        restore: str | None,
        example_inputs: tuple[Any, ...] | None,
        evaluate: Callable[[nn.Module], Tensor | tuple[Tensor, Tensor]] | None,
        test: Callable[[nn.Module], Tensor | tuple[Tensor, Tensor]] | None,
        name: str,
        home: str | None,
    ) -> None:
        """Keep the arguments; nothing is opened before the ``with`` block begins."""
        self.model = model
        self.run_id = restore or new_run_id()
        self.config = config
        self._optimizer = optimizer
        self._ids: Iterator[SampleIds] | None = None if batch_ids is None else iter(batch_ids)
        self._restore = restore
        self._example = example_inputs
        self._evaluate = _evaluation(evaluate)
        self._test = _evaluation(test)
        self._name = name
        self._home = home
        self._stack = ExitStack()
        self._begun = False

    @property
    def steps_done(self) -> int:
        """Return the steps taken so far, those before a restore included."""
        return self._session.step_count

    @property
    def done(self) -> bool:
        """Tell whether all steps are taken."""
        return self._session.done

    @property
    def growth(self) -> Growth:
        """Return the host's sites and seeds."""
        return self._session.growth

    def __enter__(self) -> Self:
        settings = load_settings({"home": self._home})
        trace_id = new_trace_id()
        self._log = self._stack.enter_context(open_configured(settings))
        self._log_url = settings.log
        self._store = open_store(settings.artifacts)
        self._stack.callback(self._store.close)
        self._stack.enter_context(bound(run_id=self.run_id, trace_id=trace_id))
        self._shelf = KernelShelf.open(self._store, settings.signing_key, settings.trusted_keys, tell_new_key)
        self._forge = Forge(self._log, self._store, sender_id="tolaria", trace_id=trace_id, shelf=self._shelf)
        self._cache_bytes = settings.kernel_cache_bytes
        self._trace_id = trace_id
        self._workers = Workers(wait_s=settings.forge_wait_s) if settings.forge == "workers" else None
        spool = spool_for(settings.log, settings.spool, settings.spool_bytes)
        recorder = self._stack.enter_context(Recorder(self._log, sender_id="tolaria", trace_id=trace_id, spool=spool))
        try:
            deliver_first(spool, self._log)
            self._open(recorder)
        except BaseException:
            self._stack.close()
            raise
        return self

    def _open(self, recorder: Recorder) -> None:
        chooser = policy_maker(self.config)
        offered_blueprints(self.config, self._log)
        known = None if self._restore is None else restorable(self._log, self._restore, self.config)
        checkpoint = None if known is None or known.checkpoint is None else self._store.get(known.checkpoint.digest)
        self._sink = (
            RecordingSink(recorder, self.run_id)
            if known is None
            else RecordingSink(recorder, self.run_id, attempt=known.attempts + 1, version=known.version)
        )
        if known is None:
            self._sink.emit(
                RunStarted,
                **started_fields(self.config, task=self._name, entry_point=None, host=self.model, dataset_digest=None),
            )
        else:
            self._sink.emit(RunResumed, **known.resumption("restored by the user's loop"))
        self._sink.barrier()
        claim_store(self._store, self._log, self._log_url)
        try:
            self._prepare(chooser, known, checkpoint)
        except LogError:
            raise
        except Exception as error:
            fail(self._sink, None, error)
            raise

    def _prepare(self, chooser: MakePolicy, known: RecordedRun | None, checkpoint: bytes | None) -> None:
        growth = attach(
            self.model,
            self._example,
            sites=self.config.sites,
            emit=self._sink.emit if known is None else sites_known(self._sink.emit),
        )
        supply = self._stack.enter_context(
            supply_of(self._forge, self._shelf, self._cache_bytes, () if known is None else known.outcomes)
        )
        self._session = Session(
            growth,
            self._optimizer,
            self.config,
            sink=self._sink,
            store=self._store,
            make_policy=chooser,
            supply=supply,
            run_seed=determinism.seeds_of(self.config.seed)["growth"],
            evaluate=self._evaluate,
            rewinds=False,
        )
        if known is not None and checkpoint is not None:
            self._session.resume(checkpoint, known.kernels)
            self._begun = True
            if self._ids is not None:
                self._ids = islice(self._ids, self.steps_done, None)
        elif growth.discovered:
            self._begin()

    def _begin(self) -> None:
        growth = self._session.growth
        if not growth.discovered:
            raise ConfigError(
                "the model was not called in training before the first step, so its sites are not known",
                hint="compute the loss with model(inputs), or pass example_inputs=(inputs,)",
            )
        maker = maker_of(self._forge, self._workers, self._log, self._shelf, self._trace_id)
        self._session.begin(forge_kernels(growth, self.config, maker, self._log))
        self._begun = True

    def step(self, loss: Tensor) -> None:
        """Take one optimiser step: backward, update, growth and record.

        Args:
            loss: Mean loss of the batch, 0-dim, with its graph.

        Raises:
            ConfigError: All steps are taken, or ``batch_ids`` ran out.
            Diverged: The governor gave up; the run is recorded as failed.
        """
        if self._session.done:
            raise ConfigError(
                f"run {self.run_id} has taken its {self.config.total_steps} steps",
                hint="leave the loop when run.done, or give a larger total_steps",
            )
        if not self._begun:
            self._begin()
        self._session.step(loss, samples_digest=self._next_ids())

    def _next_ids(self) -> bytes | None:
        if self._ids is None:
            return None
        ids = next(self._ids, None)
        if ids is None:
            raise ConfigError(
                f"batch_ids ended before step {self.steps_done + 1}", hint="give ids for every batch of the run"
            )
        return samples_digest(torch.as_tensor(ids, dtype=torch.int64))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if isinstance(error, LogError):
                return  # the log takes no more, so there is nowhere to say it
            if isinstance(error, Exception):
                fail(self._sink, self._session, error)
            elif error is not None or not self._session.done:
                reason = "the loop ended early" if error is None else f"stopped by {type(error).__name__}"
                self._session.drain()
                self._sink.emit(RunPaused, step=self.steps_done, reason=reason)
                self._sink.barrier()
            else:
                self._finish()

    def _finish(self) -> None:
        try:
            self.model = self._session.finish(self._test)
        except LogError:
            raise
        except Exception as failed:
            fail(self._sink, self._session, failed)
            raise


def restorable(log: EventLog, run_id: str, config: RunConfig) -> RecordedRun:
    """Return what restoring a run needs.

    Raises:
        NotFound: The log has no such run.
        ConfigError: The run cannot go on in this loop, or was started with other settings.
    """
    known = recorded_run(log, run_id)
    if known.started.entry_point is not None:
        raise ConfigError(
            f"run {run_id} trains task {known.started.entry_point!r} in Esper's own loop",
            hint=f"`esper train --resume {run_id}` goes on with it",
        )
    if known.finished:
        raise ConfigError(f"run {run_id} is finished", hint="start a new run without restore=")
    if known.checkpoint is None:
        raise ConfigError(f"run {run_id} has no checkpoint yet", hint="start a new run without restore=")
    recorded, now = known.started.config, to_plain(config)
    for name in now:
        if name != "threads" and recorded.get(name) != now[name]:
            raise ConfigError(
                f"run {run_id} was started with {name} {recorded.get(name)!r} and cannot go on with {now[name]!r}",
                hint="give the same settings and the same learning rate, or start a new run",
            )
    return known


def _evaluation(given: Callable[[nn.Module], Tensor | tuple[Tensor, Tensor]] | None) -> Evaluate | None:
    if given is None:
        return None

    def evaluate(model: nn.Module) -> Evaluation:
        answer = given(model)
        losses, correct = answer if isinstance(answer, tuple) else (answer, None)
        if not isinstance(losses, Tensor) or losses.dim() != 1 or not losses.numel():
            given_back = (
                f"losses of shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else f"a {type(losses).__name__}"
            )
            raise ConfigError(
                f"evaluate gave {given_back}",
                hint="return the loss of each validation sample, [n], e.g. with reduction='none'",
            )
        if correct is not None and correct.shape != losses.shape:
            raise ConfigError(
                f"evaluate gave {tuple(losses.shape)} losses and {tuple(correct.shape)} answers",
                hint="return for each validation sample whether it was answered right, bool [n]",
            )
        return Evaluation(losses, correct)

    return evaluate
