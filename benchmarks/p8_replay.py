"""P8: replay verify beside the original run, both in this process, on a SQLite log."""

from __future__ import annotations

import time

import msgspec
import torch

from benchmarks.measure import interleave, report, scratch
from esper.artifacts import open_store
from esper.cli.train import configure
from esper.ids import new_run_id
from esper.oona import open_log
from esper.tolaria.launch import start
from replay.session import verify

STEPS = 400


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with scratch() as folder, open_log(f"sqlite:///{folder}/log.db") as log:
        store = open_store(f"file:///{folder}/artifacts")
        config = msgspec.structs.replace(configure("digits", "earliest-site", STEPS, 0, []), steps_per_epoch=50)
        recorded: list[str] = []

        def original() -> float:
            run_id = new_run_id()
            began = time.perf_counter()
            start("digits", config, log=log, store=store, run_id=run_id)
            recorded.append(run_id)
            return time.perf_counter() - began

        def replayed() -> float:
            if not recorded:
                original()
            began = time.perf_counter()
            verify(log, store, recorded[-1])
            return time.perf_counter() - began

        ours, theirs = interleave([replayed, original], 5)
    report("P8", f"replay verify of {STEPS} steps", ours, theirs, unit="s", peer="the original run", at_most=1.1)


if __name__ == "__main__":
    main()
