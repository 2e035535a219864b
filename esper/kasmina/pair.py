"""Pairs of linear layers with nothing but an activation between them: where a layer of the host can be widened.

Belongs here: seeing from one observed pass that the second layer's input is an activation of the first one's output.
Does not belong here: watching the pass (``survey``), or building new units into the two weights (``widen``).

What the host's code looks like does not matter: the activation may be a module or a function. It is recognised by its
values, which must be equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

#: Activation by its operator's name in the IR.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
}
#: Joins the paths of the two layers in the path of their pair.
JOINT = "+"


class Pair(NamedTuple):
    """Two linear layers: what goes into the first, and what comes out of the second, which is where growth is added."""

    first: str
    second: str
    #: Name of the activation between them.
    activation: str

    @property
    def path(self) -> str:
        """Return the path of the site, e.g. ``fc1+fc2``."""
        return f"{self.first}{JOINT}{self.second}"

    @property
    def kind(self) -> str:
        """Return the kind of site, e.g. ``pair_gelu``."""
        return f"pair_{self.activation}"


class Layer(NamedTuple):
    """A linear layer as it was seen in one pass."""

    module: nn.Linear
    given: torch.Tensor
    output: torch.Tensor


def find_pairs(layers: Mapping[str, Layer], model: nn.Module) -> list[Pair]:
    """Return the pairs among layers, in the order in which their second layers ran.

    Args:
        layers: The linear layers that were called once, by path, in the order of execution.
        model: The host; layers whose weights it uses elsewhere too are left out.
    """
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    own = {
        path: layer
        for path, layer in layers.items()
        if type(layer.module) is nn.Linear and all(uses.get(id(p)) == 1 for p in layer.module.parameters(recurse=False))
    }
    found: list[Pair] = []
    taken: set[str] = set()
    for second, after in own.items():
        for first, before in own.items():
            if first == second:
                break  # layers that ran later cannot come before this one
            if first not in taken and (name := _between(before.output, after.given)) is not None:
                found.append(Pair(first, second, name))
                taken.add(first)
                break
    return found


def _between(output: torch.Tensor, given: torch.Tensor) -> str | None:
    """Return the activation that makes the one of the other, or None."""
    if output.shape != given.shape or output.dtype != given.dtype:
        return None
    with torch.no_grad():
        return next((name for name, f in ACTIVATIONS.items() if torch.equal(f(output), given)), None)
