"""What a kernel costs where it runs: seconds and bytes, beside a module of the site's own kind.

Belongs here: latency, the baseline, and memory. Does not belong here: numbers that are the same whenever they are
measured (``structure``, ``trials``): nothing here may stand among those.
"""

from __future__ import annotations

import statistics
import weakref
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import fx, nn
from torch.nn.utils import skip_init
from torch.utils._python_dispatch import TorchDispatchMode

from esper.blueprints.ir import SiteSignature
from esper.blueprints.kernels.build import DTYPES
from esper.blueprints.ops import CHANNELS_LAST

LATENCY_RUNS = 30
#: A kernel is slow that takes longer than this many baselines, and longer than the overhead below on top.
SLOW_RATIO = 64.0
#: What a few dozen small calls may cost anywhere.
SLOW_OVERHEAD_S = 2e-3
_LEAST_RUNS = 5
_BUDGET_S = 0.15


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Forward passes of a kernel and of its baseline, taken in turn."""

    latencies_s: list[float]
    baseline_s: list[float]
    #: What the baseline is, e.g. ``Conv2d 3x3``.
    baseline: str

    @property
    def slow(self) -> bool:
        """Return whether the kernel breaks the limit."""
        limit = SLOW_RATIO * statistics.median(self.baseline_s) + SLOW_OVERHEAD_S
        return statistics.median(self.latencies_s) > limit


def p99(seconds: list[float]) -> float:
    """Return the 99th percentile, interpolated."""
    return statistics.quantiles(seconds, n=100, method="inclusive")[98]


def time_kernel(module: nn.Module, signature: SiteSignature, x: torch.Tensor, timer: Callable[[], float]) -> Timing:
    """Time a kernel and the baseline in turn, so that whatever else the machine does meets both.

    Args:
        module: The kernel's.
        signature: Its site.
        x: What it is given.
        timer: Seconds from any origin.
    """
    name, baseline = baseline_of(signature)
    given = x if x.shape[_channel_axis(signature)] == _inputs(signature) else _resized(x, signature)
    latencies: list[float] = []
    baselines: list[float] = []
    with torch.no_grad():
        began = timer()
        module(x)
        baseline(given)
        while len(latencies) < LATENCY_RUNS:
            for run, value, seconds in ((module, x, latencies), (baseline, given, baselines)):
                start = timer()
                run(value)
                seconds.append(timer() - start)
            if timer() - began > _BUDGET_S and len(latencies) >= _LEAST_RUNS:
                break
    return Timing(latencies_s=latencies, baseline_s=baselines, baseline=name)


def _channel_axis(signature: SiteSignature) -> int:
    return -1 if signature.rank in CHANNELS_LAST else 1


def _inputs(signature: SiteSignature) -> int:
    """Return the channels the baseline reads."""
    if signature.kind in {"attention", "norm"}:
        return signature.channels
    return signature.in_channels or signature.channels


def _resized(x: torch.Tensor, signature: SiteSignature) -> torch.Tensor:
    sizes = list(x.shape)
    sizes[_channel_axis(signature)] = _inputs(signature)
    return x.new_ones(sizes)


def baseline_of(signature: SiteSignature) -> tuple[str, Callable[[torch.Tensor], Any]]:
    """Return the name and call of a module of the site's kind, layout and size, with weights that are not drawn.

    A norm costs nothing beside what is grafted at it: there the baseline is a layer of its size.
    """
    made: dict[str, Any] = {"dtype": DTYPES[signature.dtype], "device": "cpu"}
    channels, inputs = signature.channels, _inputs(signature)

    def new(kind: type[nn.Module], *sizes: int, **options: Any) -> nn.Module:
        module: nn.Module = skip_init(kind, *sizes, **options, **made)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for weight in module.parameters():
                weight.fill_(0.01)
        return module.eval()

    def layer(inputs: int) -> nn.Module:
        if signature.rank in CHANNELS_LAST:
            return new(nn.Linear, inputs, channels)
        return new(nn.Conv1d if signature.rank == "NCL" else nn.Conv2d, inputs, channels, 3, padding=1)

    if signature.kind == "attention" and signature.rank == "NTC":
        heads = next(heads for heads in (8, 4, 2, 1) if channels % heads == 0)
        attention = new(nn.MultiheadAttention, channels, heads, batch_first=True)
        return f"attention of {heads} heads", lambda x: attention(x, x, x, need_weights=False)
    first = layer(inputs)
    name = f"{type(first).__name__}{'' if signature.rank in CHANNELS_LAST else ' of width 3'}"
    if signature.kind == "block" or signature.kind.startswith("pair"):
        return f"two of {name} with GELU", nn.Sequential(first, nn.GELU(), layer(channels))
    return name, first


def peak_memory_bytes(module: fx.GraphModule, x: torch.Tensor) -> int:
    """Return the most bytes that a forward and backward pass holds in tensors, beside weights and input.

    Counted at torch's dispatcher, so that it does not depend on what the process did before; working memory inside a
    single operation is not seen.
    """
    with _Held([x, *module.parameters()]) as held:
        out = module(x)
        if out.requires_grad:
            out.float().sum().backward()
    for weight in module.parameters():
        weight.grad = None
    return int(held.most)


class _Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operations made and that are still held."""

    def __init__(self, given: list[torch.Tensor]) -> None:
        """Count what comes beside what is given."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.most: int = 0
        self._now = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in given)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor):
                self._hold(value.untyped_storage())
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self._now += size
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self._now -= size
