"""P5: what one recorded training step costs the training thread, beside mlflow on SQLite and TensorBoard's writer.

Each side is called once between small pieces of work that take about as long as a tiny training step, so that
background threads get the time they would have; only the calls themselves are summed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.measure import interleave, report, scratch, summary
from esper.events.run import TrainingStepCompleted
from esper.oona import open_log
from esper.oona.recording.recorder import Recorder
from esper.tolaria.sink import RecordingSink

STEPS = 1000
#: Steps for mlflow, whose call takes milliseconds.
FEW = 100


def work(matrix: np.ndarray) -> None:
    """Take about as long as a step of a tiny network."""
    for _ in range(4):
        matrix @ matrix


def per_call_s(call: Callable[[int], None], steps: int) -> float:
    """Return the mean seconds that a call takes between pieces of work."""
    matrix = np.ones((192, 192), dtype=np.float32)
    spent = 0.0
    for step in range(1, steps + 1):
        work(matrix)
        began = time.perf_counter()
        call(step)
        spent += time.perf_counter() - began
    return spent / steps


def esper_side(folder: Path) -> Callable[[], float]:
    """Return a side that records steps durably in the background."""
    number = 0

    def side() -> float:
        nonlocal number
        number += 1
        with open_log(f"sqlite:///{folder}/log-{number}.db") as log:
            recorder = Recorder(log, sender_id="bench", trace_id="0" * 32)
            sink = RecordingSink(recorder, "run-bench")

            def call(step: int) -> None:
                sink.emit(
                    TrainingStepCompleted,
                    epoch=0,
                    step=step,
                    loss=1.0 / step,
                    learning_rate=1e-3,
                    samples_digest=b"0123456789abcdef",
                    duration_s=1e-3,
                )

            taken = per_call_s(call, STEPS)
            sink.barrier()
            recorder.close()
            if log.head().position != STEPS:
                raise RuntimeError(f"{log.head().position} of {STEPS} steps were recorded")
            return taken

    return side


def mlflow_side(folder: Path) -> Callable[[], float]:
    """Return a side that logs the same numbers with mlflow on SQLite."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")

    def side() -> float:
        with mlflow.start_run():
            return per_call_s(
                lambda step: mlflow.log_metrics({"loss": 1.0 / step, "learning_rate": 1e-3}, step=step), FEW
            )

    return side


def tensorboard_side(folder: Path) -> Callable[[], float]:
    """Return a side that writes the same numbers with TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    def side() -> float:
        writer = SummaryWriter(str(folder / "tensorboard"))

        def call(step: int) -> None:
            writer.add_scalar("loss", 1.0 / step, step)
            writer.add_scalar("learning_rate", 1e-3, step)

        taken = per_call_s(call, STEPS)
        writer.close()
        return taken

    return side


def main() -> None:
    """Measure and print."""
    with scratch() as folder:
        sides = [esper_side(folder), mlflow_side(folder), tensorboard_side(folder)]
        ours, mlflow_s, tensorboard_s = interleave(sides, 5)
    in_us = summary([value * 1e6 for value in ours], "us")
    report(
        "P5",
        "a recorded step, every fact durable",
        ours,
        mlflow_s,
        unit="s",
        peer="mlflow log_metrics on SQLite",
        at_most=1 / 300,
        step_us=in_us,
        bar_us=10,
    )
    report(
        "P5",
        "a recorded step, every fact durable",
        ours,
        tensorboard_s,
        unit="s",
        peer="TensorBoard SummaryWriter",
        at_most=1 / 10,
        step_us=in_us,
        bar_us=10,
    )


if __name__ == "__main__":
    main()
