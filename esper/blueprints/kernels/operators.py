"""How each operator of the table is computed: torch's own modules and functions, drawn into a ``torch.fx`` graph.

Belongs here: one function per operator. Does not belong here: rules and costs (``ops``), weights' values (``build``).
Modules are made without drawing their weights, so the global generator is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import skip_init

from esper.blueprints.ir import INPUT
from esper.blueprints.ops import CHANNELS_LAST, OPS, RANK_AXES


class Use(msgspec.Struct, frozen=True):
    """One node about to be drawn, with all sizes known."""

    #: Canonical node id, which names the submodule.
    id: str
    op: str
    inputs: list[fx.Node]
    attr: Mapping[str, Any]
    #: Channels and rank of the first input.
    channels: int
    rank: str
    site_rank: str


class Canvas:
    """A graph under construction, and the modules it calls."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        """Start with the input alone.

        Args:
            dtype: Of all weights.
            device: ``cpu``, or ``meta`` for a module without memory.
        """
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.entry = self.graph.placeholder(INPUT)
        self.made: dict[str, Any] = {"dtype": dtype, "device": device}

    def draw(self, use: Use) -> fx.Node:
        """Add one operator and return its value."""
        return DRAWERS[use.op](self, use)

    def call(self, use: Use, made: type[nn.Module], *sizes: int, **options: Any) -> fx.Node:
        """Add a module with weights not set, and its call on the use's first input."""
        module: nn.Module = skip_init(made, *sizes, **options, **self.made)  # type: ignore[no-untyped-call]
        self.root.add_module(use.id, module)
        return self.graph.create_node("call_module", use.id, (use.inputs[0],))


Drawer = Callable[[Canvas, Use], fx.Node]


def _function(function: Callable[..., Any]) -> Drawer:
    return lambda canvas, use: canvas.graph.call_function(function, tuple(use.inputs))


def _over_channels(function: Callable[..., Any], *, whole: bool) -> Drawer:
    """Call a function along the channel axis, on one input or (``whole``) on all of them as a list."""

    def draw(canvas: Canvas, use: Use) -> fx.Node:
        axis = -1 if use.rank in CHANNELS_LAST else 1
        value = use.inputs if whole else use.inputs[0]
        return canvas.graph.call_function(function, (value,), {"dim": axis})

    return draw


def _convolution(made: type[nn.Module]) -> Drawer:
    def draw(canvas: Canvas, use: Use) -> fx.Node:
        k, dilation = use.attr["k"], use.attr["dilation"]
        if use.attr.get("causal"):
            padded = canvas.graph.call_function(F.pad, (use.inputs[0], (dilation * (k - 1), 0)))
            use = msgspec.structs.replace(use, inputs=[padded])
        return canvas.call(
            use,
            made,
            use.channels,
            use.attr.get("out", use.channels),
            k,
            padding=use.attr["pad"],
            dilation=dilation,
            groups=1 if "out" in OPS[use.op].attrs else use.channels,
            bias=use.attr["bias"],
        )

    return draw


def _per_channel(function: Callable[..., Any]) -> Drawer:
    def draw(canvas: Canvas, use: Use) -> fx.Node:
        holder = nn.Module()
        holder.register_parameter("weight", nn.Parameter(torch.empty(use.channels, **canvas.made)))
        canvas.root.add_module(use.id, holder)
        weight = canvas.graph.get_attr(f"{use.id}.weight")
        if use.rank not in CHANNELS_LAST:
            sizes = (use.channels, *[1] * RANK_AXES[use.rank])
            weight = canvas.graph.call_function(torch.reshape, (weight, sizes))
        return canvas.graph.call_function(function, (use.inputs[0], weight))

    return draw


def _position_axes(rank: str) -> tuple[int, ...]:
    return (1,) if rank == "NTC" else tuple(range(2, 2 + RANK_AXES[rank]))


def _gap(canvas: Canvas, use: Use) -> fx.Node:
    return canvas.graph.call_function(torch.mean, (use.inputs[0],), {"dim": _position_axes(use.rank)})


def _broadcast(canvas: Canvas, use: Use) -> fx.Node:
    """Repeat [N, C] over the positions that the branch's input has at run time."""
    value = use.inputs[0]
    sizes: list[Any] = [-1] * (2 + RANK_AXES[use.site_rank])
    for axis in _position_axes(use.site_rank):
        value = canvas.graph.call_function(torch.unsqueeze, (value, axis))
        sizes[axis] = canvas.graph.call_method("size", (canvas.entry, axis))
    return canvas.graph.call_method("expand", (value, *sizes))


def _split(canvas: Canvas, use: Use) -> fx.Node:
    length = use.channels // use.attr["parts"]
    axis = -1 if use.rank in CHANNELS_LAST else 1
    return canvas.graph.call_function(torch.narrow, (use.inputs[0], axis, use.attr["index"] * length, length))


def _mean_pool(canvas: Canvas, use: Use) -> fx.Node:
    """Average each position's window; what lies outside the borders counts as zero, as in a padded convolution."""
    k, graph = use.attr["k"], canvas.graph
    before = k - 1 if use.attr["causal"] else (k - 1) // 2
    value = use.inputs[0]
    if use.rank == "NTC":
        value = graph.call_function(torch.transpose, (value, 1, 2))
    value = graph.call_function(F.pad, (value, (before, k - 1 - before) * RANK_AXES[use.rank]))
    pool = F.avg_pool2d if use.rank == "NCHW" else F.avg_pool1d
    value = graph.call_function(pool, (value, k, 1))
    return graph.call_function(torch.transpose, (value, 1, 2)) if use.rank == "NTC" else value


def _attention(canvas: Canvas, use: Use) -> fx.Node:
    """Scaled dot product attention of queries, keys and values [N, T, C], head by head."""
    graph = canvas.graph
    heads = []
    for value in use.inputs:
        parted = graph.call_function(torch.unflatten, (value, -1, (use.attr["heads"], -1)))
        heads.append(graph.call_function(torch.transpose, (parted, 1, 2)))
    mixed = graph.call_function(F.scaled_dot_product_attention, tuple(heads), {"is_causal": use.attr["causal"]})
    return graph.call_function(torch.flatten, (graph.call_function(torch.transpose, (mixed, 1, 2)), 2))


#: Operator -> how it is drawn; the same names as ``ops.OPS``.
DRAWERS: dict[str, Drawer] = {
    "linear": lambda canvas, use: canvas.call(use, nn.Linear, use.channels, use.attr["out"], bias=use.attr["bias"]),
    "conv1d": _convolution(nn.Conv1d),
    "conv2d": _convolution(nn.Conv2d),
    "dwconv1d": _convolution(nn.Conv1d),
    "dwconv2d": _convolution(nn.Conv2d),
    "scale": _per_channel(torch.mul),
    "bias": _per_channel(torch.add),
    "layernorm": lambda canvas, use: canvas.call(use, nn.LayerNorm, use.channels),
    "rmsnorm": lambda canvas, use: canvas.call(use, nn.RMSNorm, use.channels, eps=1e-5),
    "groupnorm": lambda canvas, use: canvas.call(use, nn.GroupNorm, use.attr["groups"], use.channels),
    "relu": _function(F.relu),
    "gelu": _function(F.gelu),
    "silu": _function(F.silu),
    "tanh": _function(torch.tanh),
    "sigmoid": _function(torch.sigmoid),
    "softplus": _function(F.softplus),
    "softmax": _over_channels(F.softmax, whole=False),
    "add": _function(torch.add),
    "sub": _function(torch.sub),
    "mul": _function(torch.mul),
    "scale_const": lambda canvas, use: canvas.graph.call_function(torch.mul, (use.inputs[0], use.attr["value"])),
    "zero": _function(torch.zeros_like),
    "identity": lambda _, use: use.inputs[0],
    "concat": _over_channels(torch.cat, whole=True),
    "split": _split,
    "gap": _gap,
    "broadcast": _broadcast,
    "mean_pool": _mean_pool,
    "sdpa": _attention,
    "transpose_tokens": lambda canvas, use: canvas.graph.call_function(torch.transpose, (use.inputs[0], 1, 2)),
}
