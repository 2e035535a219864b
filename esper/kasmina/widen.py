"""Build new hidden units into the two layers of a pair, where they cost what the layer's own units cost.

Belongs here: putting a branch's weights beside the host's, and taking that back. Does not belong here: finding pairs
(``pair``), or folding in general (``fold``).

For a pair ``y = W2 act(W1 x + b1) + b2`` and a branch ``V2 act(V1 x + c1) + c2`` the widened pair has the rows of V1
below those of W1, the columns of V2 beside those of W2, and the sums of the outer biases. Other growth that reads the
first layer's output, or the second layer's input, meets more channels then; the new ones stand last, so it goes on
with the first ones (``fold``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx, nn

from esper.errors import GrowthError


def is_width(branch: nn.Module) -> bool:
    """Tell whether a branch is two linear layers with an activation between them, as ``width`` blueprints give."""
    return _linears(branch) is not None


def widen(first: nn.Module, second: nn.Module, branch: nn.Module) -> Callable[[], None]:
    """Build a branch's hidden units into two linear layers.

    Args:
        first: The layer whose output has more channels afterwards.
        second: The layer that reads them.
        branch: A width branch, which counts as at alpha 1.

    Returns:
        What takes it back.

    Raises:
        GrowthError: The layers or the branch have another form.
    """
    found = _linears(branch)
    if found is None or not isinstance(first, nn.Linear) or not isinstance(second, nn.Linear):
        raise GrowthError("only two linear layers can be widened, by two linear layers")
    inner, outer = found
    undo = [_kept(first), _kept(second)]
    with torch.no_grad():
        rows, columns = inner.weight.double(), outer.weight.double()
        # Growth that was built in before may have widened the neighbours: what is new there does not reach this branch.
        rows = _padded(rows, rows.shape[0], first.in_features)
        columns = _padded(columns, second.out_features, columns.shape[1])
        _set(first, torch.cat([first.weight.double(), rows]), _inner_bias(first, inner))
        _set(second, torch.cat([second.weight.double(), columns], dim=1), _outer_bias(second, outer))

    def put_back() -> None:
        for one in undo:
            one()

    return put_back


def _linears(branch: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    if not isinstance(branch, fx.GraphModule):
        return None
    called = [node for node in branch.graph.nodes if node.op == "call_module"]
    between = [node for node in branch.graph.nodes if node.op in {"call_function", "call_method", "get_attr"}]
    modules = [branch.get_submodule(str(node.target)) for node in called]
    if len(modules) != 2 or len(between) != 1:
        return None
    inner, outer = modules
    return (inner, outer) if isinstance(inner, nn.Linear) and isinstance(outer, nn.Linear) else None


def _padded(weight: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    padded = weight.new_zeros(rows, columns)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    return padded


def _inner_bias(layer: nn.Linear, new: nn.Linear) -> torch.Tensor | None:
    if _own(layer) is None and _own(new) is None:
        return None
    return torch.cat([_bias(layer), _bias(new)])


def _outer_bias(layer: nn.Linear, new: nn.Linear) -> torch.Tensor | None:
    if _own(layer) is None and _own(new) is None:
        return None
    total = _bias(layer)
    total[: new.out_features] += _bias(new)
    return total


def _own(layer: nn.Linear) -> torch.Tensor | None:
    return layer.bias


def _bias(layer: nn.Linear) -> torch.Tensor:
    """Return a copy of a layer's bias; zeros where it has none."""
    own = _own(layer)
    if own is None:
        return layer.weight.new_zeros(layer.out_features, dtype=torch.float64)
    return own.detach().double().clone()


def _set(layer: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    layer.out_features, layer.in_features = weight.shape
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)


def _kept(layer: nn.Linear) -> Callable[[], None]:
    weight, bias, sizes = layer.weight, layer.bias, (layer.out_features, layer.in_features)

    def put_back() -> None:
        layer.weight, layer.bias = weight, bias
        layer.out_features, layer.in_features = sizes

    return put_back
