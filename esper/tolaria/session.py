"""One run's training state and what happens at each step and at the end of each epoch.

Belongs here: the order of things in a step and at an epoch's end. Does not belong here: data, loss functions and the
loop over batches (``esper.tolaria.trainer``, or a user's own), decisions (``controller``), full state and rollback
(``savepoints``), held-out data (``held_out``), opening logs and stores (``api``).

Order within a step: learning rates, backward pass, faults of seeds, optimiser, alphas and lifecycle, telemetry, fact.
Order at an epoch's end: validation, counterfactuals, EpochCompleted, durable barrier, decision, checkpoint, durable
barrier. A checkpoint therefore holds the state after the decision, and a resumed run begins with the next step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.events.decision import Action
from esper.events.lifecycle import SeedState
from esper.events.run import EpochCompleted, RunFinished
from esper.events.seed import KernelOffer, KernelsOffered
from esper.kasmina import Growth
from esper.kasmina.fold import detach
from esper.logs import get_logger
from esper.tamiyo import KernelOption
from esper.tolaria.checkpoint import CheckpointStore
from esper.tolaria.config import RunConfig
from esper.tolaria.controller import Controller, MakePolicy
from esper.tolaria.evaluation import Evaluate, undisturbed
from esper.tolaria.fullstate import FullState, parameters_of
from esper.tolaria.governor import Governor, Trip
from esper.tolaria.held_out import HeldOut
from esper.tolaria.ledger import StepLedger
from esper.tolaria.optim import GrowingOptimizer
from esper.tolaria.savepoints import Progress, Savepoints
from esper.tolaria.sink import FactSink
from esper.tolaria.supply import KernelSupply

#: A backward pass costs about twice a forward pass.
_TRAIN_PASSES = 3


class Session:
    """A run in progress."""

    def __init__(
        self,
        growth: Growth,
        optimizer: Optimizer,
        config: RunConfig,
        *,
        sink: FactSink,
        store: CheckpointStore,
        make_policy: MakePolicy,
        supply: KernelSupply,
        run_seed: int,
        evaluate: Evaluate | None = None,
        reestimate: Callable[[nn.Module], None] | None = None,
        rewinds: bool = True,
        on_epoch: Callable[[Session], None] | None = None,
        drain_every: int | None = None,
    ) -> None:
        """Put the parts of a run together; nothing is recorded before ``begin`` or ``resume``.

        Args:
            growth: The host with its sites, attached.
            optimizer: The host's optimiser; its learning rates are taken as peaks.
            config: How the run goes.
            sink: Where facts go.
            store: Where checkpoints go.
            make_policy: Makes what decides, once the kernels are known.
            supply: Gives kernels, in time and checked; closed by whoever made it.
            run_seed: Key of the decisions' draws.
            evaluate: Losses of validation data; without it no counterfactual is measured.
            reestimate: Estimates the host's batch-norm statistics again.
            rewinds: Whether the loop can go back to an earlier step after a rollback.
            on_epoch: Called at the end of each epoch, for progress.
            drain_every: Steps between two readings of the losses; what suits the device when left out.
        """
        self.growth = growth
        self.config = config
        self.optimizer = GrowingOptimizer(optimizer, config.schedule, config.total_steps)
        self.sink = sink
        self._on_epoch = on_epoch
        self._supply = supply
        self._governor = Governor(config.governor)
        self._controller = Controller(
            growth,
            make_policy,
            sink,
            supply,
            config=config,
            run_seed=run_seed,
        )
        self._progress = Progress()
        self._state = FullState(growth, self.optimizer, self._governor, self._controller, supply)
        self._savepoints = Savepoints(
            self._progress, self._state, growth, self._governor, store=store, sink=sink, rewinds=rewinds
        )
        self._held_out = HeldOut(
            self._progress, growth, self._controller.flops_of, evaluate=evaluate, reestimate=reestimate
        )
        self._device = next(growth.model.parameters()).device
        self._ledger = StepLedger(self._device, config.steps_per_epoch, sink, drain_every)
        self._host_parameters = sum(p.numel() for p in growth.model.parameters())
        self._trip: Trip | None = None
        self._batch = config.batch_size
        self._probe: Any = None
        self._probe_stack = ExitStack()
        self._messages = get_logger("tolaria")
        self._epoch_began = self._run_began = time.perf_counter()

    # --- what the run is now

    @property
    def step_count(self) -> int:
        """Return the optimiser steps taken."""
        return self._progress.step

    @property
    def training_flops(self) -> int:
        """Return the FLOPs spent so far, held-out data included."""
        return self._progress.training_flops

    @property
    def epoch(self) -> int:
        """Return the epoch the next step belongs to, from 0."""
        return self.step_count // self.config.steps_per_epoch

    @property
    def done(self) -> bool:
        """Tell whether all steps are taken."""
        return self.step_count >= self.config.total_steps

    @property
    def at_epoch_end(self) -> bool:
        """Tell whether the last step taken ended an epoch."""
        return self.step_count % self.config.steps_per_epoch == 0

    @property
    def parameters(self) -> int:
        """Return the parameters of host and growth."""
        return self._host_parameters + sum(p.numel() for p in self.growth.parameters())

    # --- beginning

    def begin(self, kernels: dict[str, list[KernelOption]]) -> None:
        """Record the kernels on offer, graft what is born with the host, save the first checkpoint.

        Args:
            kernels: Kernels on offer by site.
        """
        self._controller.offer(kernels)
        for path, options in self._controller.kernels.items():
            self.sink.emit(
                KernelsOffered,
                site=path,
                offers=[
                    KernelOffer(
                        kernel_id=option.kernel_id,
                        blueprint_id=option.blueprint_id,
                        name=option.name,
                        parameters=option.parameters,
                        flops=option.flops,
                    )
                    for option in options
                ],
            )
        for birth in self.config.born:
            action = Action(
                kind="germinate", site=birth.site, blueprint_id=birth.blueprint_id, kernel_id=birth.kernel_id
            )
            self._controller.germinate(action, 0, None)
        self._follow_seeds()
        self._savepoints.save()
        self._arm_probe()

    def resume(self, data: bytes, kernels: dict[str, list[KernelOption]]) -> None:
        """Go on from checkpoint bytes, with the kernels on offer as when the run began.

        Raises:
            CheckpointDamaged: The bytes do not fit this run.
        """
        self._controller.offer(kernels)
        self._savepoints.resume(data)
        self._ledger.begin_epoch()
        self._arm_probe()

    # --- a step

    def step(self, loss: Tensor, *, samples_digest: bytes | None = None, batch: int | None = None) -> None:
        """Take one optimiser step on a loss and record it.

        Args:
            loss: Mean loss of the batch, 0-dim, with its graph.
            samples_digest: Digest of the batch's sample indices.
            batch: Samples in the batch; the configured size when left out.

        Raises:
            Diverged: The governor tripped and no rollback is left.
            RecorderStopped: The log no longer takes facts of this run.
        """
        number = self.step_count + 1
        self._batch = batch or self._batch
        rate = self.optimizer.set_rates(number)
        self.optimizer.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if self.growth.host_frozen:
            for parameter in self.growth.model.parameters():
                parameter.grad = None
        if self._device.type == "cpu":
            self._collect_faults(number)
        self.optimizer.optimizer.step()
        self._progress.step = number
        self._progress.training_flops += _TRAIN_PASSES * self._batch * self._held_out.forward_flops()
        self.growth.tick(number)
        self._follow_seeds()
        self._take_probe(number)
        self._ledger.note(number, rate, loss, samples_digest)
        if self._ledger.full:
            self.drain()
        if number % self.config.steps_per_epoch == 0 or self.done:
            self.drain()
            if self._trip is None:
                self._end_epoch()
        if self._trip is not None:
            self._roll_back(self._trip)
        self._arm_probe()

    def drain(self) -> None:
        """Emit the facts of the steps whose losses were gathered, and let the governor see them."""
        for step, loss in self._ledger.drain():
            self._trip = self._trip or self._governor.check(step, loss)
        if self._device.type != "cpu":
            # A failed seed is out of the forward pass since it failed; only telling it waits for the device.
            self._collect_faults(self.step_count)

    def _collect_faults(self, step: int) -> None:
        for seed_id in self.growth.collect_faults(step):
            self._messages.warning("seed faulted", step=step, seed_id=seed_id)
            self._controller.report(self.growth.seeds[seed_id], step)
            self._governor.note_change(step)

    def _arm_probe(self) -> None:
        if (self.step_count + 1) % self.config.probe_every == 0 and self._probe is None and not self.done:
            self._probe = self._probe_stack.enter_context(self.growth.probe())

    def _take_probe(self, number: int) -> None:
        if self._probe is None:
            return
        probe, self._probe = self._probe, None
        self._probe_stack.close()
        self._controller.note_health(probe.measure(number))

    def _follow_seeds(self) -> None:
        """Let the optimiser's groups and the kernels in memory follow the seeds."""
        attached = {seed.id: seed for seed in self.growth.attached()}
        grouped = set(self.optimizer.seeds())
        for seed_id in grouped - attached.keys():
            self.optimizer.remove(seed_id)
        for seed_id, seed in attached.items():
            if seed_id not in grouped:
                factor = 1.0 if seed.kernel_id is None else self._supply.rate_factor(seed.kernel_id)
                self.optimizer.add(seed_id, parameters_of(seed), self.step_count, rate_factor=factor)
        self._supply.hold(seed.kernel_id for seed in attached.values() if seed.kernel_id is not None)

    # --- the end of an epoch

    def _end_epoch(self) -> None:
        step = self.step_count
        epoch = (step - 1) // self.config.steps_per_epoch
        evaluation = self._held_out.validate()
        if evaluation is not None and not math.isfinite(evaluation.loss):
            self._trip = Trip(kind="not_finite", evidence={"validation_loss": evaluation.loss})
            return
        self._held_out.measure_seeds(last=self.done)
        self.growth.moved_alphas(step)
        train_loss, data_digest = self._ledger.totals()
        now = time.perf_counter()
        ended = {
            "epoch": epoch,
            "step": step,
            "train_loss": train_loss,
            "validation_loss": None if evaluation is None else evaluation.loss,
            "validation_accuracy": None if evaluation is None else evaluation.accuracy,
            "parameters": self.parameters,
            "training_flops": self.training_flops,
            "parameter_digest": self._state.parameter_digest(),
            "data_digest": data_digest,
            "duration_s": now - self._epoch_began,
        }
        self.sink.emit(EpochCompleted, **ended)
        self._epoch_began = now
        self._ledger.begin_epoch()
        self._controller.note_epoch(train_loss, None if evaluation is None else evaluation.loss)
        self.sink.barrier()
        self._supply.settle()
        self._decide(epoch)
        self._savepoints.save()
        if self._on_epoch is not None:
            self._on_epoch(self)

    def _decide(self, epoch: int) -> None:
        observation = self._controller.observe(
            step=self.step_count,
            total_steps=self.config.total_steps,
            epoch=epoch,
            parameters=self.parameters,
            initial_parameters=self._host_parameters,
        )
        action = self._controller.decide(observation)
        self._messages.info(
            "epoch ended",
            step=self.step_count,
            train_loss=observation.train_loss,
            validation_loss=observation.validation_loss,
            action=action.kind,
            site=action.site,
            seed_id=action.seed_id,
        )
        if action.kind == "cull":  # a graft's zero tail does not move the loss, so it needs no grace
            self._governor.note_change(self.step_count)
        self._follow_seeds()

    def _roll_back(self, trip: Trip) -> None:
        """Go back to the last checkpoint, or give up.

        Raises:
            Diverged: There is no graft to blame, or too many rollbacks were made.
        """
        if self._probe is not None:
            self._probe = None
            self._probe_stack.close()
        self._savepoints.roll_back(trip)
        self._trip = None
        self._ledger.begin_epoch()
        self._follow_seeds()
        self._savepoints.save()

    # --- the end

    def finish(self, test: Evaluate | None) -> nn.Module:
        """Fold the growth, touch the test data once and record the end.

        What the user gets is what is tested: seeds that were not kept are dropped first.

        Args:
            test: Losses of test data.

        Returns:
            The grown model as a plain module.

        Raises:
            GrowthError: The folded model does not compute the same.
        """
        for seed_id in [f"seed-{number}" for number in range(1, len(self.config.born) + 1)]:
            self.growth.command("fossilize", seed_id, step=self.step_count)
        dropped = [seed.id for seed in self.growth.attached() if seed.state is not SeedState.FOSSILIZED]
        if dropped:
            self._messages.warning("seeds that were not kept are dropped from the model", seeds=dropped)
        digest, parameters = self._state.parameter_digest(), self.parameters
        # Low-rank branches read the site's input and vanish into its weight.
        branches = [
            seed
            for seed in self.growth.attached()
            if seed.state is SeedState.FOSSILIZED and not seed.quarantined and seed.reads == "output"
        ]
        inference_flops = self._held_out.forward_flops(branches)
        model = detach(self.growth, step=self.step_count)
        evaluation = None if test is None else undisturbed(model, test)
        self.sink.emit(
            RunFinished,
            step=self.step_count,
            test_loss=None if evaluation is None else evaluation.loss,
            test_accuracy=None if evaluation is None else evaluation.accuracy,
            parameters=parameters,
            folded_parameters=sum(parameter.numel() for parameter in model.parameters()),
            training_flops=self.training_flops,
            inference_flops=inference_flops,
            parameter_digest=digest,
            duration_s=time.perf_counter() - self._run_began,
        )
        self.sink.barrier()
        return model
