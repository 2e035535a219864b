"""P6: the step of a host with every seed dormant beside the plain host, with a host step of 20 ms or more."""

from __future__ import annotations

import math
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.measure import report
from esper.kasmina import attach

PAIRS = 60
BATCH = 128
#: Student's t, 97.5 %, for 59 degrees of freedom.
T_975 = 2.001


def host() -> nn.Sequential:
    """Return a convolutional host with batch norm whose step takes tens of milliseconds on one thread."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = 3
    for width in (24, 24, 48):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def step_s(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the seconds of one training step."""
    began = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(F.cross_entropy(model(x), y))
    optimizer.step()
    return time.perf_counter() - began


def main() -> None:
    """Measure in pairs, the order turned round each time, and print ratio and interval."""
    torch.set_num_threads(1)
    x, y = torch.randn(BATCH, 3, 16, 16), torch.randint(0, 10, (BATCH,))
    plain, grown = host(), host()
    growth = attach(grown, (x,))
    sides = [(m, torch.optim.Adam(m.parameters(), lr=1e-3)) for m in (grown, plain)]
    for model, optimizer in sides * 5:
        step_s(model, optimizer, x, y)
    taken: tuple[list[float], list[float]] = ([], [])
    for pair in range(PAIRS):
        for place in (0, 1) if pair % 2 == 0 else (1, 0):
            taken[place].append(step_s(*sides[place], x, y))
    logs = [math.log(a / b) for a, b in zip(*taken, strict=True)]
    half = T_975 * statistics.stdev(logs) / math.sqrt(PAIRS)
    middle = statistics.fmean(logs)
    report(
        "P6",
        "a step with all seeds dormant",
        *taken,
        unit="s",
        peer="the plain host",
        at_most=1.01,
        sites=len(growth.sites),
        mean_ratio=round(math.exp(middle), 4),
        interval_95=[round(math.exp(middle - half), 4), round(math.exp(middle + half), 4)],
    )


if __name__ == "__main__":
    main()
