"""Task `impaired`: `mnist1d` with a host that has one layer far too narrow, at a place that is known."""

from __future__ import annotations

from torch import nn

from esper.tolaria.determinism import derived_seed, seeded
from esper.tolaria.hosts.sequence import SequenceHost
from esper.tolaria.tasks.mnist1d import Mnist1d

WIDTH, NARROW_WIDTH = 8, 2


class Impaired(Mnist1d):
    """The data of `mnist1d`; growth has a right answer here, so one can tell how often a policy finds it."""

    name = "impaired"

    def host(self, seed: int) -> nn.Module:
        """Return a new `SequenceHost` whose layer `answer` has two channels, and eight in each other one."""
        narrow = self.answer(seed)
        channels = [NARROW_WIDTH if path == narrow else WIDTH for path in SequenceHost.CONVOLUTIONS]
        with seeded(seed):
            return SequenceHost(channels)

    def answer(self, seed: int) -> str:
        """Return the path of the narrow layer in the host of that seed."""
        paths = SequenceHost.CONVOLUTIONS
        return paths[derived_seed(seed, "impaired") % len(paths)]
