"""G5: does training stumble when a branch is grafted or culled? Random kernels at random sites of four kinds of host.

Each event is measured beside twins that go on from the same state with the same batches: for a graft the host left as
it was, for a cull the host that keeps the seed and the host that lost it at once. The loss of a fixed batch that is not
trained on is taken after every step. A spike is the most by which it lies above the worse twin, as a share of that.

Two trajectories drift apart for any reason at all. So two placebos are measured beside it: the host as it was, its
weights moved by a millionth part, and the host as it was on other batches of the same data. What they show is no spike.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.grafting import Place, Trial, Warm, forged
from esper.blueprints.ir import Blueprint
from esper.blueprints.library import load_library
from esper.blueprints.verify import fits
from esper.tolaria.config import timetable
from esper.tolaria.task import DataOrder

#: Task, warm hosts, and pairs of a graft and a cull on each of them.
HOSTS = (("digits", 4, 32), ("mnist1d", 4, 44), ("mnist1d_mlp", 4, 44), ("bytelm", 2, 10))
#: The timetable of a run of this length: alpha goes up within 60 steps and down within 12.
RUN_STEPS = 400
SETTLE_STEPS = 20
KINDS = ("graft", "cull", "nudge", "other batches")
#: Share by which the weights of a placebo differ.
NUDGE = 1e-6
#: Steps in which a jump would show before any drift does.
AT_ONCE = 10
LIMIT = 0.01
PROBE_ROWS = 256


class Event(NamedTuple):
    """One graft, cull or placebo; ``kind`` is of ``KINDS``."""

    task: str
    kind: str
    blueprint: str
    site: str
    #: Most by which the loss lay above its twins, as a share: at once, and in the whole window.
    at_once: float
    spike: float


def main() -> None:
    """Measure and print, one line per task and kind, and the events that were worst."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--share", type=float, default=1.0, help="share of the 1,000 events to run")
    share = parser.parse_args().share
    torch.set_num_threads(1)
    events = [event for task, hosts, pairs in HOSTS for event in _events(task, hosts, max(1, round(pairs * share)))]
    for task in dict.fromkeys(event.task for event in events):
        for kind in KINDS:
            _print(task, kind, [event for event in events if (event.task, event.kind) == (task, kind)])
    for kind in KINDS:
        _print("all", kind, [event for event in events if event.kind == kind])


def _print(task: str, kind: str, events: Sequence[Event]) -> None:
    worst = sorted(events, key=lambda event: -event.spike)[:3]
    line: dict[str, Any] = {
        "measure": "G5",
        "what": "loss above its twins",
        "event": kind,
        "task": task,
        "events": len(events),
        "limit": LIMIT,
        "above_at_once": sum(event.at_once > LIMIT for event in events),
        "above_in_window": sum(event.spike > LIMIT for event in events),
        "median": round(statistics.median(event.spike for event in events), 5),
        "most_at_once": round(max(event.at_once for event in events), 5),
        "most": round(worst[0].spike, 5),
        "worst": [f"{event.blueprint} at {event.site}: {event.spike:.4f}" for event in worst],
    }
    print(json.dumps(line), flush=True)


def _events(task: str, hosts: int, pairs: int) -> Iterator[Event]:
    plan = timetable(RUN_STEPS)
    window = plan.ramp_steps + SETTLE_STEPS
    for number in range(hosts):
        draw = random.Random(f"{task} {number}")
        warm = Warm(task, number, 60 + 120 * number)
        choices = _choices(warm)
        base = Trial(warm)
        start = _probe(base)
        twin = _losses(base, window)
        moved, other = Trial(warm), Trial(warm)
        _nudge(moved)
        other.order = DataOrder(number + 1, warm.data.train.size, warm.task.defaults.batch_size)
        for kind, trial in (("nudge", moved), ("other batches", other)):
            losses = _losses(trial, window)
            yield Event(task, kind, "none", "all", _above(losses[:AT_ONCE], twin), _above(losses, twin))
        for _ in range(pairs):
            blueprint, place = draw.choice(choices)
            kernel = forged(blueprint, place)
            trial = Trial(warm)
            trial.graft(kernel, place, plan)
            grafted = _probe(trial)
            losses = _losses(trial, window)
            at_once = max(_above([grafted], [start]), _above(losses[:AT_ONCE], twin))
            name = kernel.manifest.name
            yield Event(task, "graft", name, place.path, at_once, _above(losses, twin))
            yield _cull(task, name, place.path, trial, plan.fade_steps + SETTLE_STEPS)


def _cull(task: str, name: str, site: str, trial: Trial, window: int) -> Event:
    """Cull the trial's seed, beside a twin that keeps it and one that loses it at once."""
    keeping, losing = _twin(trial), _twin(trial)
    before = _probe(trial)
    trial.growth.command("cull", "seed-1", step=trial.step)
    at_once = _above([_probe(trial)], [before])
    losing.growth.command("cull", "seed-1", step=losing.step)
    losing.growth.seeds["seed-1"].ramp.aim(0.0, 0)
    losing.growth.seeds["seed-1"].set_alpha(0.0)
    lost = _probe(losing)
    faded, kept, gone = _losses(trial, window), _losses(keeping, window), [lost, *_losses(losing, window)]
    # While the branch fades, the loss is on its way to that of the host without it.
    worse = [max(one, *gone[: place + 2]) for place, one in enumerate(kept)]
    at_once = max(at_once, _above(faded[:AT_ONCE], worse))
    return Event(task, "cull", name, site, at_once, _above(faded, worse))


def _choices(warm: Warm) -> list[tuple[Blueprint, Place]]:
    """Return every blueprint with every site it fits."""
    return [
        (blueprint, place)
        for blueprint in load_library().values()
        for place in warm.places
        if blueprint.id != "noop" and fits(blueprint, place.signature) is None
    ]


def _twin(trial: Trial) -> Trial:
    return copy.deepcopy(trial, {id(trial.warm): trial.warm})


def _losses(trial: Trial, steps: int) -> list[float]:
    """Train and return the loss of the probe after each step."""
    found = []
    for _ in range(steps):
        trial.train(1)
        found.append(_probe(trial))
    return found


def _probe(trial: Trial) -> float:
    validation = trial.warm.data.validation
    rows = min(PROBE_ROWS, validation.size) if validation.inputs.dim() > 2 else 32
    trial.host.eval()
    with torch.no_grad():
        outputs = trial.host(validation.inputs[:rows])
        loss = float(trial.warm.task.loss(outputs, validation.targets[:rows]).mean())
    trial.host.train()
    return loss


def _nudge(trial: Trial) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trial.host.parameters():
            weight.mul_(1.0 + NUDGE * torch.randn(weight.shape, generator=generator))


def _above(losses: Sequence[float], twin: Sequence[float]) -> float:
    return max(one / other - 1.0 for one, other in zip(losses, twin, strict=False))


if __name__ == "__main__":
    main()
