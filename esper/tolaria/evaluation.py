"""Measuring a model on held-out data without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from esper.tolaria.determinism import rng_kept


class Evaluation(NamedTuple):
    """Losses ``[n]`` of held-out samples, and which answers were right (bool ``[n, ...]``) where that makes sense."""

    losses: Tensor
    correct: Tensor | None = None

    @property
    def loss(self) -> float:
        """Return the mean loss."""
        return float(self.losses.double().mean())

    @property
    def accuracy(self) -> float | None:
        """Return the share answered right, or None."""
        return None if self.correct is None else float(self.correct.double().mean())


#: Gives the losses of held-out data for a model.
Evaluate = Callable[[nn.Module], Evaluation]


def undisturbed(model: nn.Module, evaluate: Evaluate) -> Evaluation:
    """Evaluate without gradient, in eval mode, leaving modes and random streams as they were."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with rng_kept(), torch.no_grad():
            return evaluate(model)
    finally:
        for module, training in modes:
            module.training = training
