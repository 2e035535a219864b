"""G4: does a policy find the one layer that is too narrow? The first graft of each run on the task ``impaired``.

The task's host has four convolutions, of which one, at a place that follows from the seed, has two channels instead of
eight. A run stops at its first graft; it counts when that is at the narrow layer or right behind it, where its two
channels are read, as ``beside``, and at the narrow layer itself as ``exact``. Of the four sites chance finds the
narrow one in a quarter of the runs.
"""

from __future__ import annotations

import argparse
import json
import math
from contextlib import suppress
from typing import Any

import torch

from esper.artifacts import open_store
from esper.cli.train import configure
from esper.events import fact_of
from esper.events.decision import AdaptationCommanded
from esper.oona.memory import MemoryLog
from esper.oona.port import iterate
from esper.tolaria.determinism import seeds_of
from esper.tolaria.launch import start
from esper.tolaria.task import load_task

POLICIES = ("random", "schedule", "earliest-site", "heuristic")
RUNS = 30
#: Bar of the design, and what guessing gives.
BAR, CHANCE = 0.8, 0.25
#: Share of the confidence interval outside of it, two-sided: 1.96 is 95 %.
_Z = 1.96


class _Grafted(BaseException):
    """Ends a run at its first graft; not an error, so that nothing is recorded as failed."""


def main() -> None:
    """Measure and print one line per policy, with every run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each policy; seeds are 0, 1, ...")
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    log, store = MemoryLog(), open_store("memory://")
    for policy in POLICIES:
        found = [_first_graft(policy, seed, log, store) for seed in range(runs)]
        _print(policy, found)


def _first_graft(policy: str, seed: int, log: MemoryLog, store: Any) -> dict[str, Any]:
    """Return where a run grafts first, and where its narrow layer is."""
    task = load_task("impaired")
    config = configure("impaired", policy, task.defaults.steps, seed, [])
    head = log.head().position

    def stop(session: Any) -> None:
        if session.growth.seeds:
            raise _Grafted

    with suppress(_Grafted):
        start("impaired", config, log=log, store=store, on_epoch=stop)
    facts = (fact_of(envelope) for envelope in iterate(log, after=head))
    sites = [f.action.site for f in facts if isinstance(f, AdaptationCommanded) and f.action.kind == "germinate"]
    answer: str = task.answer(seeds_of(seed)["host"])  # type: ignore[attr-defined] # of this task alone
    return {"seed": seed, "narrow": answer, "grafted": sites[0] if sites else None}


def _print(policy: str, found: list[dict[str, Any]]) -> None:
    exact = sum(run["grafted"] == run["narrow"] for run in found)
    beside = sum(run["grafted"] is not None and _distance(run) in {0, 1} for run in found)
    line = {
        "measure": "G4",
        "what": "first graft at the narrow layer",
        "policy": policy,
        "runs": len(found),
        "exact": _share(exact, len(found)),
        "chance": CHANCE,
        "bar": f">= {BAR:g}",
        "met": exact / len(found) >= BAR,
        "at_it_or_behind_it": _share(beside, len(found)),
        "no_graft": sum(run["grafted"] is None for run in found),
        "all": [f"{run['narrow']}>{run['grafted']}" for run in found],
    }
    print(json.dumps(line), flush=True)


def _distance(run: dict[str, Any]) -> int:
    """Return how many layers behind the narrow one the graft is; negative before it."""
    return int(run["grafted"].removeprefix("conv")) - int(run["narrow"].removeprefix("conv"))


def _share(hits: int, runs: int) -> dict[str, float]:
    """Return a share with Wilson's 95 % interval."""
    share = hits / runs
    middle = (share + _Z**2 / (2 * runs)) / (1 + _Z**2 / runs)
    half = _Z * math.sqrt(share * (1 - share) / runs + _Z**2 / (4 * runs**2)) / (1 + _Z**2 / runs)
    return {"share": round(share, 3), "low": round(middle - half, 3), "high": round(middle + half, 3)}


if __name__ == "__main__":
    main()
