"""P7: the steps around a graft beside those of a run that has the same architecture from its first step.

Two runs in this process take their steps in turn. One grafts a branch, whose kernel is in memory by then; the other was
born with it. Each repeat compares the 95th percentiles of the fifty steps around the graft. What a kernel costs that
is late, because nothing is kept in memory, is reported apart.

    python -m benchmarks.p7_graft
    python -m benchmarks.p7_graft --plot docs/explanation/step-times-around-a-graft.png
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

import esper
from benchmarks.measure import report, scratch, summary
from benchmarks.p6_dormant import BATCH, host
from esper.events import fact_of
from esper.events.seed import KernelLoaded, SeedTransitioned
from esper.oona import open_log
from esper.oona.port import iterate_stream

REPEATS = 7
#: The graft is decided at the end of this step, which is the middle of the fifty.
GRAFT_AT = 50
AROUND = 25
STEPS = GRAFT_AT + AROUND
#: Steps that the configuration names; the runs are left after ``STEPS``.
TOTAL = 400
BLUEPRINT = "conv_bottleneck"
SETTINGS: dict[str, Any] = {
    "total_steps": TOTAL,
    "steps_per_epoch": GRAFT_AT,
    "blueprints": [BLUEPRINT],
    "graft": {"ramp_steps": 40, "settle_steps": 20},
}
GROWS: dict[str, Any] = {"policy": "earliest-site", "policy_settings": {"at": [GRAFT_AT / TOTAL]}}


class Repeat(NamedTuple):
    """Seconds of each step of both runs, and what the log says of the graft."""

    grafting: list[float]
    born: list[float]
    loaded: KernelLoaded


class Side:
    """One run, a step at a time."""

    def __init__(self, stack: ExitStack, home: Path, **settings: Any) -> None:
        self.model = host()
        self.x, self.y = torch.randn(BATCH, 3, 16, 16), torch.randint(0, 10, (BATCH,))
        optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.run = stack.enter_context(
            esper.run(self.model, optimizer, example_inputs=(self.x,), home=str(home), **SETTINGS, **settings)
        )

    def step_s(self) -> float:
        """Take one step and return its seconds, an epoch's end and what is decided there included."""
        began = time.perf_counter()
        self.run.step(F.cross_entropy(self.model(self.x), self.y))
        return time.perf_counter() - began


def grafted(home: Path) -> tuple[SeedTransitioned, KernelLoaded]:
    """Return what the last run in a folder says of its graft."""
    with open_log(f"sqlite:///{home}/log.db") as log:
        last = list(log.streams("run/"))[-1]
        facts = [fact_of(one) for one in iterate_stream(log, last)]
    moved = next(one for one in facts if isinstance(one, SeedTransitioned))
    return moved, next(one for one in facts if isinstance(one, KernelLoaded))


def repeat(folder: Path, name: str, born: list[dict[str, Any]]) -> Repeat:
    """Let both runs take their steps in turn, the order turned round each time."""
    with ExitStack() as stack:
        sides = [
            Side(stack, folder / f"grafting-{name}", **GROWS),
            Side(stack, folder / f"born-{name}", policy="off", born=born),
        ]
        taken: tuple[list[float], list[float]] = ([], [])
        for step in range(STEPS):
            for place in (0, 1) if step % 2 == 0 else (1, 0):
                taken[place].append(sides[place].step_s())
    return Repeat(*taken, grafted(folder / f"grafting-{name}")[1])


def scout(folder: Path) -> list[dict[str, Any]]:
    """Graft once, so that everything is warm, and return the birth that gives the same architecture."""
    with ExitStack() as stack:
        side = Side(stack, folder / "scout", **GROWS)
        for _ in range(GRAFT_AT + 5):
            side.step_s()
    moved, _ = grafted(folder / "scout")
    return [{"site": moved.site, "blueprint_id": moved.blueprint_id, "kernel_id": moved.kernel_id}]


def p95(values: list[float]) -> float:
    """Return the 95th percentile."""
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


def around(values: list[float]) -> list[float]:
    """Return the fifty steps around the graft, which is part of step ``GRAFT_AT``."""
    return values[GRAFT_AT - AROUND : GRAFT_AT + AROUND]


def late_stalls(folder: Path, repeats: int) -> tuple[list[float], list[float]]:
    """Return the stalls of kernels that were not brought ahead, and the seconds of the steps that grafted them."""
    import os

    stalls, steps = [], []
    os.environ["ESPER_KERNEL_CACHE_BYTES"] = "0"
    try:
        for number in range(repeats):
            home = folder / f"late-{number}"
            with ExitStack() as stack:
                side = Side(stack, home, **GROWS)
                steps.append([side.step_s() for _ in range(GRAFT_AT)][-1])
            stalls.append(grafted(home)[1].stall_s)
    finally:
        del os.environ["ESPER_KERNEL_CACHE_BYTES"]
    return stalls, steps


def main() -> None:
    """Measure and print; draw the step times where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="file to draw the step times in, .svg or .png")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with scratch() as folder:
        born = scout(folder)
        repeats = [repeat(folder, str(number), born) for number in range(arguments.repeats)]
        stalls, late_steps = late_stalls(folder, 5)
    plain = [statistics.median(one.grafting[: GRAFT_AT - 1]) for one in repeats]
    report(
        "P7",
        f"p95 of the {2 * AROUND} steps around a graft, kernel in memory",
        [p95(around(one.grafting)) for one in repeats],
        [p95(around(one.born)) for one in repeats],
        unit="s",
        peer="a run born with the branch",
        at_most=1.2,
        # The steps before the graft are cheaper than the peer's, so this leaves them out.
        ratio_from_graft_on=[
            round(p95(one.grafting[GRAFT_AT - 1 :]) / p95(one.born[GRAFT_AT - 1 :]), 3) for one in repeats
        ],
        host_step_s=summary(plain, "s"),
        graft_step_s=summary([one.grafting[GRAFT_AT - 1] for one in repeats], "s"),
        same_step_born_s=summary([one.born[GRAFT_AT - 1] for one in repeats], "s"),
        sources=sorted({one.loaded.source for one in repeats}),
        stall_in_memory_s=summary([one.loaded.stall_s for one in repeats], "s"),
        stall_late_s=summary(stalls, "s"),
        late_graft_step_s=summary(late_steps, "s"),
    )
    if arguments.plot is not None:
        draw(repeats, arguments.plot)


def draw(repeats: list[Repeat], file: Path) -> None:
    """Draw the step times of every repeat, and their medians, around the graft."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "p7"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained")
    steps = range(1 - AROUND, AROUND + 1)
    for name, color, rows in (
        ("run that grafts", "#b3412e", [around(one.grafting) for one in repeats]),
        ("run born with the branch", "#2e6db3", [around(one.born) for one in repeats]),
    ):
        for row in rows:
            axes.plot(steps, [1e3 * value for value in row], color=color, alpha=0.2, linewidth=0.7)
        middle = [1e3 * statistics.median(column) for column in zip(*rows, strict=True)]
        axes.plot(steps, middle, color=color, linewidth=1.8, label=f"{name} (median of {len(repeats)})")
    axes.axvline(0.5, color="#444444", linewidth=0.8, linestyle=":")
    axes.text(0.8, 0.97, "graft", transform=axes.get_xaxis_transform(), va="top", color="#444444")
    axes.set_xlabel("step, counted from the graft (step 0 ends the epoch: decision, graft, checkpoint)")
    axes.set_ylabel("milliseconds of a step")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
