"""``esper demo``: grow a network on real data, once, from start to report."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.cli import output
from esper.cli.options import Json, single
from esper.cli.session import Session, session_of
from esper.cli.train import configure, start_run

if TYPE_CHECKING:
    from esper.tolaria.config import RunConfig

app = single("Grow a network on real data, once, from start to report.")

_ARMS = {
    "grown": "grown from the small host",
    "no-growth": "the same host without growth",
    "from-scratch": "the grown architecture from scratch",
}


@app.command()
def demo(
    ctx: typer.Context,
    task: Annotated[str, typer.Option("--task", "-t", help="Task to train.")] = "digits",
    policy: Annotated[str, typer.Option("--policy", "-p", help="What decides about growth.")] = "heuristic",
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps of each run.")] = None,
    seed: Annotated[int, typer.Option("--seed", "-s", min=0, help="Seed of all three runs.")] = 0,
    as_json: Json = False,
) -> None:
    """Grow a network on real data, compare it with two controls, and write the report.

    Three runs are recorded: the grown one, its host without growth, and its final architecture from scratch, on the
    same data in the same order.
    """
    from esper.tolaria.arms import from_scratch, kept_seeds, without_growth

    session = session_of(ctx)
    config = configure(task, policy, steps, seed, [])
    grown = _arm(session, task, config, "grown")
    arms = {"grown": grown, "no-growth": _arm(session, task, without_growth(config, grown["run_id"]), "no-growth")}
    kept = kept_seeds(session.log, grown["run_id"])
    if kept:
        arms["from-scratch"] = _arm(session, task, from_scratch(config, grown["run_id"], session.log), "from-scratch")
    else:
        output.message("the run kept no seed, so there is no grown architecture to train from scratch")
    report = _report(session, grown["run_id"])
    session.fold()
    answer = {
        "run_id": grown["run_id"],
        "arms": arms,
        "seeds_germinated": grown["seeds"],
        "seeds_fossilized": len(kept),
        "report": str(report),
        "next": _next_commands(session, grown["run_id"]),
    }
    if as_json:
        output.print_json(answer)
    else:
        _tell(answer)


def _arm(session: Session, task: str, config: RunConfig, name: str) -> dict[str, Any]:
    """Train one arm and return what it came to."""
    from replay.state import state_at

    trained = start_run(session, task, config, _ARMS[name])
    state = state_at(session.log, trained.run_id)
    result = state["result"] or {}
    return {
        "arm": _ARMS[name],
        "run_id": trained.run_id,
        "test_accuracy": result.get("test_accuracy"),
        "test_loss": result.get("test_loss"),
        "parameters": result.get("folded_parameters"),
        "training_gflops": None if not result else result["training_flops"] / 1e9,
        "inference_kflops": None if not result else result["inference_flops"] / 1e3,
        "seeds": len(state["seeds"]),
        "parameter_digest": state["parameter_digest"],
    }


def _report(session: Session, run_id: str) -> Path:
    from esper.cli.report import write_report

    return write_report(session.log, run_id, session.settings.home / "reports" / f"{run_id}.html")


def _next_commands(session: Session, run_id: str) -> list[str]:
    """Return three commands that work as printed, in the shell and folder the demo ran in."""
    program = "esper" if shutil.which("esper") == str(Path(sys.argv[0]).resolve()) else sys.argv[0]
    start = shlex.join([program, *session.global_arguments()])
    return [
        f"{start} replay verify {run_id}",
        f"{start} audit trail {run_id}",
        f"{start} decision list --run {run_id}",
    ]


def _tell(answer: dict[str, Any]) -> None:
    output.print_rows(
        list(answer["arms"].values()),
        ("arm", "test_accuracy", "test_loss", "parameters", "training_gflops", "inference_kflops", "seeds", "run_id"),
        as_json=False,
    )
    output.print_line("")
    output.print_line(
        f"run {answer['run_id']} grew {answer['seeds_germinated']} seeds and kept {answer['seeds_fossilized']}."
    )
    for arm in answer["arms"].values():
        output.print_line(f"{arm['arm']}: parameters at the end have SHA-256 {arm['parameter_digest']}")
    output.print_line(f"report: {answer['report']}")
    output.print_line("")
    output.print_line("next:")
    for command in answer["next"]:
        output.print_line(f"  {command}")
