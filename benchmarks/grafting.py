"""One blueprint grafted into a task's host that was trained a little: what benchmark and tests of the library share.

Belongs here: a warm host that any number of trials start from, and a trial on the path that a run takes (kernel bytes,
Kasmina, the growing optimiser). Does not belong here: what is measured or demanded of a trial.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from esper.blueprints.ir import Blueprint, SiteSignature
from esper.blueprints.kernels.build import build
from esper.blueprints.kernels.kernel import Kernel, decode_kernel, encode_kernel, kernel_seed, load_module
from esper.blueprints.kinds import KINDS
from esper.blueprints.verify import fits
from esper.events.decision import Schedule
from esper.kasmina import Growth, Seed, attach
from esper.tolaria.determinism import seeds_of
from esper.tolaria.optim import GrowingOptimizer, make_optimizer
from esper.tolaria.schedule import ScheduleSettings
from esper.tolaria.task import DataOrder, Split, Task, TaskData, load_task

#: The shipped tasks whose hosts differ in kind: linear, convolutional in one and two dimensions, transformer.
TASKS = ("mnist1d_mlp", "mnist1d", "digits", "bytelm")


class Place(NamedTuple):
    """A site of a host."""

    path: str
    kind: str
    signature: SiteSignature


class Warm:
    """A task's host after some steps of training; it is copied for each trial and never changed."""

    def __init__(self, task: str, seed: int, steps: int) -> None:
        """Train a fresh host.

        Args:
            task: A shipped task's name.
            seed: As of a run.
            steps: Steps to train.
        """
        self.task: Task = load_task(task)
        seeds = seeds_of(seed)
        self.data: TaskData = self.task.data(seeds["data"])
        self.order = DataOrder(seeds["order"], self.data.train.size, self.task.defaults.batch_size)
        self.steps = 0
        self._host = self.task.host(seeds["host"])
        self._moments: dict[str, Any] = {}
        trial = Trial(self)
        trial.train(steps)
        self._host, self._moments = trial.host, trial.optimizer.optimizer.state_dict()
        self.steps = steps
        #: Sites in the order of execution.
        self.places = [Place(path, site.kind, site.signature) for path, site in trial.growth.sites.items()]

    def copy(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return the host with its optimiser, as copies."""
        host = copy.deepcopy(self._host)
        defaults = self.task.defaults
        optimizer = make_optimizer(defaults.optimizer, host.parameters(), defaults.learning_rate)
        if self._moments:
            optimizer.load_state_dict(copy.deepcopy(self._moments))
        return host, optimizer

    def places_of(self, blueprint: Blueprint) -> list[Place]:
        """Return the first site of each kind that a blueprint fits, in the order of execution."""
        found: dict[str, Place] = {}
        for place in self.places:
            if place.kind not in found and fits(blueprint, place.signature) is None:
                found[place.kind] = place
        return list(found.values())


def forged(blueprint: Blueprint, place: Place) -> Kernel:
    """Return the kernel of a blueprint at a site, through its bytes."""
    module = build(blueprint, place.signature, seed=kernel_seed(blueprint, place.signature))
    return decode_kernel(encode_kernel(blueprint, place.signature, module))


class Trial:
    """A copy of a warm host, with or without a seed, that goes on training where the warm host stopped."""

    def __init__(self, warm: Warm) -> None:
        """Copy a warm host."""
        self.warm = warm
        #: Of the batches; another one may be put here.
        self.order = warm.order
        self.step = warm.steps
        self.host, optimizer = warm.copy()
        defaults = warm.task.defaults
        self.optimizer = GrowingOptimizer(optimizer, ScheduleSettings(), defaults.steps)
        self.growth: Growth = attach(self.host, (warm.data.train.inputs[: defaults.batch_size],))

    def graft(self, kernel: Kernel, place: Place, schedule: Schedule) -> Seed:
        """Graft a kernel as a run does and let its parameters learn."""
        seed = self.growth.germinate(
            place.path,
            load_module(kernel),
            seed_id="seed-1",
            step=self.step,
            kernel_id=kernel.kernel_id,
            reads=KINDS[kernel.blueprint.kind].reads,
            schedule=schedule,
        )
        self.optimizer.add(seed.id, list(self.growth.parameters()), self.step)
        return seed

    def train(self, steps: int) -> list[float]:
        """Train on the task's next batches and return the losses."""
        losses = []
        for _ in range(steps):
            batch = self.warm.data.train.take(self.order.indices(self.step + 1))
            losses.append(self.learn(*batch))
        return losses

    def learn(self, inputs: Tensor, targets: Tensor) -> float:
        """Take one step on a batch, in the order of a run's step, and return the loss before it."""
        self.step += 1
        self.optimizer.set_rates(self.step)
        loss = self.warm.task.loss(self.host(inputs), targets).mean()
        self.optimizer.optimizer.zero_grad()
        loss.backward()
        if faults := self.growth.collect_faults(self.step):
            raise RuntimeError(f"{faults} failed: {[self.growth.seed(one).fault for one in faults]}")
        self.optimizer.optimizer.step()
        self.growth.tick(self.step)
        return float(loss.detach())

    def loss_of(self, split: Split) -> float:
        """Return the mean loss of a split."""
        with torch.no_grad():
            return float(self.warm.task.loss(self.host(split.inputs), split.targets).mean())
