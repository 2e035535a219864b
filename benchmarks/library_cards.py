"""LIBRARY: how each shipped blueprint behaves where it fits, beside the placebo `noop` on the same seeds and batches.

For each task a host is trained a little; then each blueprint is grafted at the first site it fits, and host and branch
train on together, in copies of that host, over the same batches. One JSON line tells where it was measured, one line
follows per task and blueprint. What it prints is what ``esper/blueprints/library/cards/measured.jsonl`` holds:

    python -m benchmarks LIBRARY > measured.jsonl
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from datetime import UTC, datetime
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx

from benchmarks.grafting import TASKS, Place, Trial, Warm, forged
from esper.blueprints.forging.jobs import hardware, toolchain
from esper.blueprints.ir import Blueprint
from esper.blueprints.kernels.crucible import characterize
from esper.blueprints.kernels.kernel import Kernel, load_module
from esper.blueprints.library import load_library
from esper.events.decision import Schedule
from esper.kasmina import Seed
from esper.tolaria.determinism import Flags, using

PLACEBO = "noop"


class Plan(NamedTuple):
    """How a task is used."""

    seeds: int
    #: Steps of the host alone, and steps of host and branch together.
    warm_steps: int
    steps: int


PLANS = {
    "mnist1d_mlp": Plan(4, 300, 400),
    "mnist1d": Plan(4, 300, 400),
    "digits": Plan(4, 200, 300),
    "bytelm": Plan(2, 150, 150),
}
#: Pairs of forward passes, with the branch and without.
LATENCY_PAIRS = 25


class Outcome(NamedTuple):
    """One branch after training together with one host."""

    train_losses: list[float]
    validation_loss: float
    dead_frac: float | None
    latency_ratio: float


def outcome_of(warm: Warm, kernel: Kernel, place: Place, steps: int) -> Outcome:
    """Graft a kernel, train, and look at it."""
    trial = Trial(warm)
    seed = trial.graft(kernel, place, Schedule(ramp_steps=steps // 3, settle_steps=steps))
    losses = trial.train(steps)
    loss = trial.loss_of(warm.data.validation)
    found = Outcome(losses, loss, dead_frac(trial, seed), latency_ratio(trial, seed))
    if seed.quarantined:
        raise RuntimeError(f"{kernel.blueprint.id} failed: {seed.fault or seed.guard.fault}")
    return found


def dead_frac(trial: Trial, seed: Seed) -> float | None:
    """Return the share of hidden units whose activation is above zero for no validation sample; None without any."""
    if not isinstance(seed.module, fx.GraphModule):
        raise TypeError("a kernel's module is a graph")
    seen: list[torch.Tensor] = []

    class Watching(fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            result = super().call_function(target, args, kwargs)
            if target in (F.relu, F.gelu, F.silu):
                seen.append(result)
            return result

    given: list[tuple[torch.Tensor, ...]] = []

    def look(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        given.append(args)

    handle = seed.module.register_forward_pre_hook(look)
    trial.loss_of(trial.warm.data.validation)
    handle.remove()
    with torch.no_grad():
        Watching(seed.module).run(*given[0])
    # Channels are last at linear layers and tokens, second at convolutions.
    last = seed.site.signature.rank in {"NC", "NTC"}
    dead = [unit for h in seen for unit in (h if last else h.movedim(1, -1)).flatten(0, -2).amax(0) <= 0]
    return float(torch.stack(dead).double().mean()) if dead else None


def latency_ratio(trial: Trial, seed: Seed) -> float:
    """Return the median time of a forward pass of one batch with the branch, over the one without."""
    inputs = trial.warm.data.train.inputs[: trial.warm.task.defaults.batch_size]
    ratios = []
    with torch.no_grad():
        for number in range(LATENCY_PAIRS + 3):
            taken = {}
            for muted in (False, True) if number % 2 else (True, False):
                seed.muted = muted
                began = time.perf_counter()
                trial.host(inputs)
                taken[muted] = time.perf_counter() - began
            ratios.append(taken[False] / taken[True])
    seed.muted = False
    return statistics.median(ratios[3:])


def rows_of(task: str, plan: Plan, library: dict[str, Blueprint]) -> list[dict[str, Any]]:
    """Measure every blueprint on a task and return one row each."""
    found: dict[str, list[tuple[Outcome, Outcome]]] = {}
    places: dict[str, Place] = {}
    for number in range(plan.seeds):
        warm = Warm(task, number, plan.warm_steps)
        placebo = library[PLACEBO]
        beside = outcome_of(warm, forged(placebo, warm.places_of(placebo)[0]), warm.places_of(placebo)[0], plan.steps)
        for name, blueprint in library.items():
            for place in warm.places_of(blueprint)[:1] if name != PLACEBO else ():
                places[name] = place
                found.setdefault(name, []).append(
                    (outcome_of(warm, forged(blueprint, place), place, plan.steps), beside)
                )
    return [row(task, library[name], places[name], outcomes, plan) for name, outcomes in found.items()]


def row(
    task: str, blueprint: Blueprint, place: Place, outcomes: list[tuple[Outcome, Outcome]], plan: Plan
) -> dict[str, Any]:
    """Return what the pairs of outcomes of one blueprint and the placebo say."""
    kernel = forged(blueprint, place)
    jump = characterize(load_module(kernel), kernel.blueprint, kernel.signature).numbers.get("jump_adam")
    ramp = plan.steps // 3
    falls = [beside.validation_loss - one.validation_loss for one, beside in outcomes]
    rises = [
        max(a - b for a, b in zip(one.train_losses[:ramp], beside.train_losses[:ramp], strict=True))
        for one, beside in outcomes
    ]
    dead = [one.dead_frac for one, _ in outcomes if one.dead_frac is not None]
    return {
        "blueprint": blueprint.id,
        "task": task,
        "site": place.path,
        "kind": place.kind,
        "parameters": kernel.manifest.parameters,
        "flops": kernel.manifest.flops,
        "jump_frac": rounded(jump),
        "worst_rise": rounded(statistics.median(rises)),
        "dead_frac": rounded(statistics.fmean(dead)) if dead else None,
        "latency_ratio": rounded(statistics.median(one.latency_ratio for one, _ in outcomes)),
        "placebo_loss": rounded(statistics.fmean(beside.validation_loss for _, beside in outcomes)),
        "fall": rounded(statistics.fmean(falls)),
        "fall_least": rounded(min(falls)),
        "fall_most": rounded(max(falls)),
        "seeds": len(falls),
        "warm_steps": plan.warm_steps,
        "steps": plan.steps,
    }


def rounded(value: float | None) -> float | None:
    """Return a number with three digits that count."""
    return None if value is None else float(f"{value:.3g}")


def main() -> None:
    """Measure on one thread and print."""
    library = load_library()
    where = {
        "measured_on": datetime.now(UTC).date().isoformat(),
        "toolchain": toolchain(),
        "hardware": hardware(),
        "threads": 1,
    }
    say(where)
    with using(Flags()):
        for task in TASKS:
            for one in rows_of(task, PLANS[task], library):
                say(one)


def say(line: dict[str, Any]) -> None:
    """Print a JSON line at once."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
