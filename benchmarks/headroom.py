"""Headroom: does a larger static network beat each task's host?

Growth can only show something where a larger network is better. For each task the host and larger versions of it
are trained as a run trains them (same data, order, batch size, schedule and number of steps for equal seeds), and
the test accuracy is compared pair by pair. One JSON line per trained network, then one per comparison.

    python -m benchmarks.headroom
    python -m benchmarks.headroom --tasks digits --seeds 10
    python -m benchmarks.headroom --tasks digits --sweep 0.002 0.005 0.01   # by validation, on seeds kept for this
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from scipy.stats import t as student_t
from torch import nn

from esper.tolaria.determinism import Flags, seeded, seeds_of, using
from esper.tolaria.hosts.image import ImageHost
from esper.tolaria.hosts.sequence import SequenceHost
from esper.tolaria.schedule import ScheduleSettings, lr_at
from esper.tolaria.task import DataOrder, Split, Task, TaskData, TaskDefaults, load_task
from esper.tolaria.tasks.impaired import Impaired

#: Seeds from here on are for choosing settings; the published table uses those from 0.
SWEEP_SEEDS_FROM = 1000
SEEDS = {"digits": 3, "mnist1d": 3, "impaired": 3}


def sizes_of(task: Task) -> dict[str, Callable[[int], nn.Module]]:
    """Return how to build each size from a host seed, the task's own host first."""

    def of(cls: type[ImageHost | SequenceHost], width: int, layers: int) -> Callable[[int], nn.Module]:
        def build(seed: int) -> nn.Module:
            with seeded(seed):
                return cls([width] * layers)

        return build

    larger: dict[str, dict[str, Callable[[int], nn.Module]]] = {
        "digits": {f"{width} channels": of(ImageHost, width, 2) for width in (16, 32)},
        "mnist1d": {f"{width} channels": of(SequenceHost, width, 4) for width in (16,)},
        "impaired": {"8 channels everywhere": of(SequenceHost, 8, 4)},
    }
    return {"host": task.host} | larger[task.name]


class Result(NamedTuple):
    """One trained network."""

    parameters: int
    train_loss: float
    validation_accuracy: float
    test_accuracy: float
    step_ms: float


def train(task: Task, network: nn.Module, data: TaskData, order_seed: int, settings: TaskDefaults) -> Result:
    """Train a network as a run without growth is trained."""
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    order = DataOrder(order_seed, data.train.size, settings.batch_size)
    schedule = ScheduleSettings()
    losses = []
    start = time.perf_counter()
    for step in range(1, settings.steps + 1):
        rate = lr_at(step, settings.learning_rate, schedule, total_steps=settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        inputs, targets = data.train.take(order.indices(step))
        loss = task.loss(network(inputs), targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    step_ms = (time.perf_counter() - start) / settings.steps * 1e3
    return Result(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        train_loss=float(torch.stack(losses[-100:]).mean()),
        validation_accuracy=accuracy(task, network, data.validation),
        test_accuracy=accuracy(task, network, data.test),
        step_ms=step_ms,
    )


def accuracy(task: Task, network: nn.Module, split: Split) -> float:
    """Return the share of right answers in per cent."""
    with torch.no_grad():
        right = task.correct(network(split.inputs), split.targets)
    assert right is not None
    return 100.0 * float(right.float().mean())


def run_all(task: Task, seeds: range, settings: TaskDefaults) -> Iterator[tuple[str, int, Result]]:
    """Train every size with every seed."""
    for seed in seeds:
        streams = seeds_of(seed)
        data = task.data(streams["data"])
        for size, build in sizes_of(task).items():
            yield size, seed, train(task, build(streams["host"]), data, streams["order"], settings)


def compared(task: str, size: str, host: list[float], larger: list[float]) -> dict[str, Any]:
    """Return the mean paired difference of test accuracies in points, with its 95 % interval (Student's t)."""
    pairs = [big - small for small, big in zip(host, larger, strict=True)]
    mean, n = statistics.mean(pairs), len(pairs)
    spread = statistics.stdev(pairs)
    half = float(student_t.ppf(0.975, n - 1)) * spread / n**0.5
    return {
        "measure": "headroom",
        "task": task,
        "size": size,
        "pairs": n,
        "host_accuracy": round(statistics.mean(host), 2),
        "accuracy": round(statistics.mean(larger), 2),
        "difference": round(mean, 2),
        "low": round(mean - half, 2),
        "high": round(mean + half, 2),
        "larger_wins": sum(difference > 0 for difference in pairs),
    }


def say(line: dict[str, Any]) -> None:
    """Print a JSON line at once."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def measure(name: str, seeds: range, settings: TaskDefaults) -> None:
    """Train every size of a task and compare each with the host."""
    accuracies: dict[str, list[float]] = {}
    task = load_task(name)
    for size, seed, result in run_all(task, seeds, settings):
        line: dict[str, Any] = {"measure": "network", "task": name, "size": size, "seed": seed}
        if isinstance(task, Impaired) and size == "host":
            line["narrow"] = task.answer(seeds_of(seed)["host"])
        say(line | {field: round(value, 4) for field, value in result._asdict().items()})
        accuracies.setdefault(size, []).append(result.test_accuracy)
    for size in list(accuracies)[1:]:
        say(compared(name, size, accuracies["host"], accuracies[size]))


def sweep(name: str, seeds: range, settings: TaskDefaults, rates: list[float]) -> None:
    """Compare learning rates by validation accuracy."""
    for rate in rates:
        found: dict[str, list[float]] = {}
        for size, _, result in run_all(load_task(name), seeds, replaced(settings, learning_rate=rate)):
            found.setdefault(size, []).append(result.validation_accuracy)
        for size, values in found.items():
            line = {"task": name, "size": size, "learning_rate": rate, "seeds": len(values)}
            spread = {"worst": round(min(values), 2), "best": round(max(values), 2)}
            say({"measure": "sweep"} | line | {"validation_accuracy": round(statistics.mean(values), 2)} | spread)


def replaced(settings: TaskDefaults, *, steps: int | None = None, learning_rate: float | None = None) -> TaskDefaults:
    """Return settings with some of them changed."""
    return TaskDefaults(
        steps=steps or settings.steps,
        batch_size=settings.batch_size,
        learning_rate=learning_rate or settings.learning_rate,
        steps_per_epoch=settings.steps_per_epoch,
        optimizer=settings.optimizer,
    )


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.headroom", description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=list(SEEDS), default=list(SEEDS))
    parser.add_argument("--seeds", type=int, help=f"pairs per task, at least 2 (default: {SEEDS})")
    parser.add_argument("--steps", type=int, help="steps per network (default: the task's)")
    parser.add_argument("--sweep", nargs="+", type=float, metavar="RATE", help="compare learning rates instead")
    options = parser.parse_args()
    if options.seeds is not None and options.seeds < 2:
        parser.error("an interval needs at least 2 seeds")
    with using(Flags()):
        for name in options.tasks:
            settings = replaced(load_task(name).defaults, steps=options.steps)
            count = options.seeds or SEEDS[name]
            if options.sweep:
                sweep(name, range(SWEEP_SEEDS_FROM, SWEEP_SEEDS_FROM + count), settings, options.sweep)
            else:
                measure(name, range(count), settings)


if __name__ == "__main__":
    main()
