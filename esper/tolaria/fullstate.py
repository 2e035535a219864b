"""Everything a run needs to go on, gathered from its parts and put back into them.

Belongs here: which parts have state and in which order it is put back. The byte form stands in
``esper.tolaria.checkpoint``.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from esper.kasmina import Growth, Seed
from esper.tolaria import checkpoint
from esper.tolaria.controller import Controller
from esper.tolaria.determinism import rng_state, set_rng_state
from esper.tolaria.governor import Governor
from esper.tolaria.optim import GrowingOptimizer
from esper.tolaria.supply import KernelSupply

_HOST = "host."
_RNG = "rng."


class FullState:
    """The parts of a run whose state a checkpoint keeps."""

    def __init__(
        self,
        growth: Growth,
        optimizer: GrowingOptimizer,
        governor: Governor,
        controller: Controller,
        supply: KernelSupply,
    ) -> None:
        """Name the parts."""
        self._growth = growth
        self._optimizer = optimizer
        self._governor = governor
        self._controller = controller
        self._supply = supply

    def capture(self, counters: dict[str, int]) -> checkpoint.State:
        """Return the full state.

        Args:
            counters: Plain numbers of the session itself.
        """
        growth_meta, growth_tensors = self._growth.state()
        optimizer_meta, optimizer_tensors = self._optimizer.capture()
        rng_meta, rng_tensors = rng_state()
        meta: dict[str, Any] = {
            **counters,
            "growth": growth_meta,
            "optimizer": optimizer_meta,
            "governor": self._governor.state(),
            "controller": self._controller.state(),
            "rng": rng_meta,
        }
        tensors = {
            **checkpoint.capture_module(self._growth.model, _HOST),
            **growth_tensors,
            **optimizer_tensors,
            **{f"{_RNG}{name}": tensor for name, tensor in rng_tensors.items()},
        }
        return checkpoint.State(meta, tensors)

    def restore(self, state: checkpoint.State, *, random: bool = True) -> None:
        """Put a captured state back into every part.

        Args:
            state: As ``capture`` gave it.
            random: Whether to put the random streams back too; a loop that goes on with its next batch keeps its own.

        Raises:
            CheckpointDamaged: The state does not fit the model or the optimiser.
        """
        meta, tensors = state
        checkpoint.restore_module(self._growth.model, tensors, _HOST)
        self._growth.restore(meta["growth"], tensors, self._supply.branch)
        seeds = {seed.id: parameters_of(seed) for seed in self._growth.attached()}
        self._optimizer.restore(meta["optimizer"], tensors, seeds)
        self._governor.restore(meta["governor"])
        self._controller.restore(meta["controller"])
        if random:
            streams = {name.removeprefix(_RNG): t for name, t in tensors.items() if name.startswith(_RNG)}
            set_rng_state((meta["rng"], streams))

    def parameter_digest(self) -> bytes:
        """Return the SHA-256 over every parameter and buffer of host and growth."""
        return checkpoint.tensor_digest(
            {**checkpoint.capture_module(self._growth.model, _HOST), **self._growth.state()[1]}
        )


def parameters_of(seed: Seed) -> list[nn.Parameter]:
    """Return the parameters of a seed's branch; none once it is detached."""
    return [] if seed.module is None else list(seed.module.parameters())
