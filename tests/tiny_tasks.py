"""A task small enough to train a hundred steps in a second, and variants of it that go wrong in one way each."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from esper.artifacts import ArtifactStore
from esper.events.decision import Schedule
from esper.oona.port import EventLog
from esper.tolaria.config import RunConfig, check
from esper.tolaria.determinism import seeded
from esper.tolaria.launch import Trained, start
from esper.tolaria.task import Classification, Split, TaskData, TaskDefaults

#: Seed-1 is grafted at site 0 at step 20 and kept at 40 or later, seed-2 at site 3 at step 30.
TINY = RunConfig(
    policy="earliest-site",
    total_steps=80,
    steps_per_epoch=10,
    batch_size=16,
    probe_every=40,
    graft=Schedule(ramp_steps=10, settle_steps=10, fade_steps=5, embargo_steps=20),
    blueprints=["res_mlp"],
)


class Tiny(Classification):
    """Three classes of points with eight coordinates, which a small network tells apart."""

    name = "tiny"
    defaults = TaskDefaults(steps=80, batch_size=16, learning_rate=1e-2, steps_per_epoch=10)

    def data(self, seed: int) -> TaskData:
        """Return points around three centres."""
        generator = torch.Generator().manual_seed(seed)
        targets = torch.arange(192) % 3
        inputs = torch.randn(3, 8, generator=generator)[targets] + 0.8 * torch.randn(192, 8, generator=generator)
        return TaskData(*(Split(inputs[a:b], targets[a:b]) for a, b in ((0, 96), (96, 144), (144, 192))))

    def host(self, seed: int) -> nn.Module:
        """Return a small network."""
        with seeded(seed):
            self.built = small_host()
        return self.built


def small_host() -> nn.Sequential:
    """Return a network of eight inputs and three classes with sites ``0`` and ``3``, and dropout between them."""
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))


class Wide(Tiny):
    """Tiny with layers of 512 channels, where a seed learns slower than its host."""

    name = "wide"

    def host(self, seed: int) -> nn.Module:
        """Return a wide network."""
        with seeded(seed):
            return nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 3))


class Interruptible(Tiny):
    """Tiny, stopped dead at one of its training losses."""

    #: Training losses until KeyboardInterrupt is raised; None never raises. A class attribute: each run makes its task.
    stop_after: int | None = None

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, or stop."""
        cls = type(self)
        if torch.is_grad_enabled() and cls.stop_after is not None:
            cls.stop_after -= 1
            if cls.stop_after < 0:
                cls.stop_after = None
                raise KeyboardInterrupt
        return super().loss(outputs, targets)


class Waiting(Tiny):
    """Tiny that waits, before each training loss, while the file that ``TINY_HOLD`` names is there."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, in time."""
        hold = os.environ.get("TINY_HOLD")
        while hold is not None and torch.is_grad_enabled() and Path(hold).exists():
            time.sleep(0.01)
        return super().loss(outputs, targets)


class Recovering(Tiny):
    """Tiny whose loss is not finite once a seed at site 3 has lived for five steps; without it all is well."""

    def __init__(self) -> None:
        self.lived = 0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, spoilt by the seed."""
        losses = super().loss(outputs, targets)
        if not torch.is_grad_enabled() or not self.built[3]._forward_hooks:
            return losses
        self.lived += 1
        return losses * float("nan") if self.lived > 5 else losses


class Overflowing(Tiny):
    """Tiny whose second site gives numbers so large from step 45 on that a branch on them overflows; the host copes."""

    def host(self, seed: int) -> nn.Module:
        """Return a small network with a step that scales up and down again."""
        with seeded(seed):
            return ScaledHost()


class ScaledHost(nn.Module):
    """Scales up before site ``middle`` and down after it, from the 45th training pass on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.passes: Tensor
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += int(self.training)
        scale = 1e25 if self.training and int(self.passes) >= 45 else 1.0
        h = torch.relu(self.first(x))
        result: Tensor = self.last(torch.relu(self.middle(h * scale) / scale))
        return result


class Raising(Tiny):
    """Tiny whose loss raises at the very first pass."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Raise."""
        raise RuntimeError("the loss gave way")


class RaisingHost(Tiny):
    """Tiny whose host cannot be called at all."""

    def host(self, seed: int) -> nn.Module:
        """Return a host that wants another input."""
        return nn.Sequential(nn.Linear(7, 12), nn.ReLU(), nn.Linear(12, 3))


def train_tiny(
    log: EventLog,
    store: ArtifactStore,
    task: str = "Tiny",
    *,
    run_id: str | None = None,
    on_epoch: Any = None,
    **changes: Any,
) -> Trained:
    """Record a run of one of these tasks; changes are fields of its configuration."""
    config = check(msgspec.structs.replace(TINY, **changes))
    return start(f"tests.tiny_tasks:{task}", config, log=log, store=store, run_id=run_id, on_epoch=on_epoch)
