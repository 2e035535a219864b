"""Forward FLOPs of the host's own modules, from the shapes of one forward pass.

Belongs here: formulas for the layers PyTorch ships. Does not belong here: costs of blueprints
(``esper.blueprints.cost``). 1 multiply-accumulate counts as 2 FLOPs; biases and pointwise activations are not
counted, and neither is arithmetic that a module does without a layer (a functional matmul, say).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

NORMS: tuple[type[nn.Module], ...] = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
)

#: Mean, variance, difference, scale and shift of one element.
_NORM_FLOPS = 5

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def module_flops(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> int:
    """Return the FLOPs of one call of a module, for the whole batch; 0 for a module without a formula.

    Args:
        module: The module that was called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        output: What it returned.
    """
    if isinstance(module, nn.MultiheadAttention):
        return _attention_flops(module, args, kwargs)
    return _per_element(module) * output.numel() if isinstance(output, torch.Tensor) else 0


def _attention_flops(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    named = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
    query, key = named["query"], named["key"]
    width = module.embed_dim
    query_rows = query.numel() // width
    key_rows = key.numel() // module.kdim
    batched = query.dim() == 3
    axis = (1 if module.batch_first else 0) if batched else 0
    key_length = key.shape[axis]
    projections = 2 * width * (2 * query_rows * width + key_rows * (module.kdim + module.vdim))
    scores_and_mix = 4 * query_rows * key_length * width
    return int(projections + scores_and_mix)


def _per_element(module: nn.Module) -> int:
    """Return the FLOPs of one element of a module's output."""
    if isinstance(module, nn.Linear):
        return 2 * module.in_features
    if isinstance(module, _CONVS):
        return 2 * (module.in_channels // module.groups) * math.prod(module.kernel_size)
    return _NORM_FLOPS if isinstance(module, NORMS) else 0
