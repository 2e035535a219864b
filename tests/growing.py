"""Hosts and branches that the growth tests share: real small networks, and branches that can be told to fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from esper.events.decision import Schedule

torch.set_num_threads(1)


class Facts:
    """Keeps every fact emitted."""

    def __init__(self) -> None:
        self.all: list[tuple[type, dict[str, Any]]] = []

    def __call__(self, fact: type, **fields: Any) -> None:
        fact(run_id="r", attempt=1, ordinal=len(self.all) + 1, **fields)
        self.all.append((fact, fields))

    def of(self, fact: type) -> list[dict[str, Any]]:
        return [fields for kind, fields in self.all if kind is fact]


class ResidualCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu_(self.norm(self.stem(x)))
        h = h + torch.relu(self.conv(h))
        return self.head(h.mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        h = self.body(self.embed(x), src_key_padding_mask=mask)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        return self.head(self.norm(h).mean(1))


def make(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.Tensor]:
    """Return a host and a batch for it, the same each time."""
    torch.manual_seed(7)
    if name == "mlp":
        host: nn.Module = nn.Sequential(
            nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)
        )
        x = torch.randn(16, 5)
    elif name == "cnn":
        host = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 3)
        )
        x = torch.randn(8, 1, 8, 8)
    elif name == "conv1d":
        host = nn.Sequential(
            nn.Conv1d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv1d(6, 4, 3), nn.Flatten(), nn.Linear(40, 3)
        )
        x = torch.randn(8, 2, 12)
    elif name == "residual":
        host, x = ResidualCNN(), torch.randn(8, 1, 8, 8)
    else:
        host, x = Transformer(), torch.randn(6, 5, 4)
    return host.to(dtype), x.to(dtype)


HOSTS = ["mlp", "cnn", "conv1d", "residual", "transformer"]

FAST = Schedule(ramp_steps=4, settle_steps=2, fade_steps=2, embargo_steps=3, probation_steps=3)


def branch(site: Any, *, zero: bool = True, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a bottleneck that fits a site, new units at a pair, with a zero tail unless told otherwise."""
    signature = site.signature
    if site.reads_at is not None:
        act = getattr(F, site.kind.removeprefix("pair_"))
        return new_units(signature.in_channels, signature.channels, 4, act, zero=zero).to(dtype)
    channels, rank = signature.channels, signature.rank
    if rank in {"NC", "NTC"}:
        layers: list[nn.Module] = [nn.Linear(channels, 4), nn.GELU(), nn.Linear(4, channels)]
    elif rank == "NCL":
        layers = [nn.Conv1d(channels, 4, 1), nn.GELU(), nn.Conv1d(4, channels, 1)]
    else:
        layers = [nn.Conv2d(channels, 4, 1), nn.GELU(), nn.Conv2d(4, channels, 1)]
    if zero:
        nn.init.zeros_(layers[2].weight)
        nn.init.zeros_(layers[2].bias)
    return nn.Sequential(*layers).to(dtype)


def new_units(
    given: int, out: int, units: int, act: Callable[..., torch.Tensor], *, zero: bool = False
) -> fx.GraphModule:
    """Return a width branch as a blueprint gives it."""
    root = nn.Module()
    root.add_module("n0", nn.Linear(given, units))
    root.add_module("n2", nn.Linear(units, out, bias=False))
    if zero:
        nn.init.zeros_(root.get_submodule("n2").weight)
    graph = fx.Graph()
    value = graph.call_module("n0", (graph.placeholder("x"),))
    graph.output(graph.call_module("n2", (graph.call_function(act, (value,)),)))
    return fx.GraphModule(root, graph)


class Lora(nn.Module):
    """A low-rank, bias-free linear branch that reads the site module's input."""

    def __init__(self, given: int, out: int, rank: int = 2) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(given, rank, bias=False), nn.Linear(rank, out, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(x))


def reads_of(site: Any) -> Any:
    """Return what a branch at a site reads."""
    return "output" if site.reads_at is None else "input"


class Failing(nn.Module):
    """A branch that works until ``how`` says otherwise."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.line = nn.Linear(channels, channels)
        self.how = "works"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "raises":
            raise RuntimeError("this branch broke")
        if self.how == "interrupts":
            raise KeyboardInterrupt
        if self.how == "wrong_shape":
            return self.line(x)[:, :-1]
        if self.how == "nan":
            return self.line(x) * torch.log(-x.abs() - 1.0)
        if self.how == "inf":
            return self.line(x) / 0.0
        if self.how == "nan_gradient":
            # Finite forward, non-finite slope: sqrt at 0.
            return self.line(x) + torch.sqrt(self.line(x) * 0.0)
        return self.line(x)


def grads(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    target = torch.arange(len(x), device=x.device) % 3
    return torch.nn.functional.cross_entropy(model(x), target)
