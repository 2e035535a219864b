"""Task `mnist1d_mlp`: the signals of `mnist1d` and a host of narrow linear layers."""

from __future__ import annotations

from torch import nn

from esper.tolaria.determinism import seeded
from esper.tolaria.hosts.dense import DenseHost
from esper.tolaria.task import TaskDefaults
from esper.tolaria.tasks.mnist1d import Mnist1d


class Mnist1dMlp(Mnist1d):
    """The data of `mnist1d`; every site of the host is a linear layer."""

    name = "mnist1d_mlp"
    defaults = TaskDefaults(steps=2000, batch_size=100, learning_rate=1e-2, steps_per_epoch=100)

    def host(self, seed: int) -> nn.Module:
        """Return a new `DenseHost` with two hidden layers of 16 units."""
        with seeded(seed):
            return DenseHost()
