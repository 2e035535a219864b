"""A place in the host where a seed can be grafted.

Belongs here: what kinds of module are sites, and the signature one observed call gives. Does not belong here:
watching a forward pass (``esper.kasmina.survey``) or what is grafted (``esper.kasmina.seed``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from esper.blueprints.ir import DTYPES, SiteSignature
from esper.kasmina.flops import NORMS

BLOCKS: tuple[type[nn.Module], ...] = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
#: Modules whose inner modules PyTorch may bypass in eval mode; only their own output is a site.
FUSED: tuple[type[nn.Module], ...] = (nn.MultiheadAttention, *BLOCKS)

_KINDS: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.Linear,), "linear"),
    ((nn.Conv1d,), "conv1d"),
    ((nn.Conv2d,), "conv2d"),
    ((nn.MultiheadAttention,), "attention"),
    (NORMS, "norm"),
    (BLOCKS, "block"),
)
_CHANNELS_LAST = {2: "NC", 3: "NTC"}
#: Kinds with one layout only; another one means that the batch axis is missing.
_RANKS = {"conv1d": ("NCL",), "conv2d": ("NCHW",), "attention": ("NTC",), "block": ("NTC",)}
_CHANNELS_SECOND = {2: "NC", 3: "NCL", 4: "NCHW"}


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One module of the host whose output a seed can change."""

    #: Path of the module in the host, e.g. ``body.2``.
    path: str
    kind: str
    #: Place in the order of execution among the sites offered, from 0.
    depth: int
    signature: SiteSignature
    #: Parameters of the module.
    parameters: int
    #: Forward FLOPs of the module for one sample.
    flops: int
    module: nn.Module
    #: Shape of the observed first input and output, without the leading axis.
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    #: Number of elements of a tuple output; 0 where the output is one tensor.
    tuple_length: int
    #: Position or name of the argument that carries the first input.
    input_from: int | str
    #: Rows of the output's leading axis per sample of the model (1 unless the host folds axes into the batch).
    rows_per_sample: int
    #: The encoder that would hand this layer nested tensors in eval mode, where there is one.
    encoder: nn.TransformerEncoder | None
    #: The layer whose input a seed reads, where that is not the module itself: the first of a pair.
    reads_at: nn.Module | None = None

    @property
    def observed(self) -> nn.Module:
        """Return the module whose output telemetry is about: the layer that a seed would widen, or the site itself."""
        return self.module if self.reads_at is None else self.reads_at

    @property
    def alpha_dtype(self) -> torch.dtype:
        """Return the dtype in which alpha is kept for this site."""
        return torch.float64 if self.signature.dtype == "float64" else torch.float32

    @property
    def positions(self) -> int:
        """Return the number of positions of the observed output for one sample."""
        count = self.rows_per_sample
        for size in self.signature.positions:
            count *= size
        return count


def kind_of(module: nn.Module) -> str | None:
    """Return the kind of site a module would be, or None."""
    for types, kind in _KINDS:
        if isinstance(module, types):
            return kind
    return None


def is_opaque(module: nn.Module) -> str | None:
    """Return why hooks inside a module would be ignored or refused, or None where they work."""
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted with torch.jit"
    inner = getattr(module, "_orig_mod", None)
    if isinstance(inner, nn.Module) or module.__dict__.get("_compiled_call_impl") is not None:
        return "compiled with torch.compile"
    return None


def first_tensor(output: Any) -> torch.Tensor | None:
    """Return the tensor a seed would change: the output itself, or the first element of a tuple."""
    head = output[0] if isinstance(output, tuple) and output else output
    return head if isinstance(head, torch.Tensor) else None


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int | str, Any]:
    """Return the position or name of a module's first input, and the input itself (None where there is none)."""
    if args:
        return 0, args[0]
    if kwargs:
        name = next(iter(kwargs))
        return name, kwargs[name]
    return 0, None


def signature_of(
    module: nn.Module, kind: str, given: Any, output: torch.Tensor, causal: bool | None
) -> SiteSignature | str:
    """Return the signature one observed call gives a site, or the reason why the module is no site.

    Args:
        module: The module that was called.
        kind: Its kind, from ``kind_of``.
        given: Its first input.
        output: The tensor a seed would change.
        causal: Whether later positions must not reach earlier ones; None: only at sites of rank NTC, where
            looking back alone is right in every host.
    """
    dtype = str(output.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        return f"its output has dtype {dtype}"
    if not isinstance(given, torch.Tensor):
        return "its first input is not a tensor"
    attention = module if isinstance(module, nn.MultiheadAttention) else getattr(module, "self_attn", None)
    if isinstance(attention, nn.MultiheadAttention) and not attention.batch_first:
        return "its layout is sequence first; build it with batch_first=True"
    last = isinstance(module, nn.Linear | nn.LayerNorm | nn.RMSNorm)
    channels_last = last or kind in {"attention", "block"}
    rank = (_CHANNELS_LAST if channels_last else _CHANNELS_SECOND).get(output.dim())
    several = len(getattr(module, "normalized_shape", (1,))) != 1
    if rank is None or several or rank not in _RANKS.get(kind, (rank,)):
        return f"its output has shape {tuple(output.shape)}, a layout no blueprint has"
    axis = -1 if channels_last else 1
    positions = tuple(output.shape[1:-1]) if channels_last else tuple(output.shape[2:])
    return SiteSignature(
        kind=kind,
        rank=rank,
        channels=int(output.shape[axis]),
        in_channels=int(given.shape[axis]),
        positions=tuple(int(size) for size in positions),
        causal=rank == "NTC" if causal is None else causal,
        dtype=dtype,
    )
