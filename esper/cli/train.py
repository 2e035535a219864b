"""``esper train``: train a task's host, let a policy grow it, and record every fact."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.cli import output
from esper.cli.options import Json, single
from esper.cli.session import Session, session_of
from esper.cli.training import training_progress, workers_of

if TYPE_CHECKING:
    from esper.tolaria.config import RunConfig
    from esper.tolaria.launch import Trained

app = single("Train a task's host, let a policy grow it, and record every fact.")

Task = Annotated[
    str,
    typer.Option("--task", "-t", help="bytelm, digits, impaired, mnist1d, mnist1d_mlp, or package.module:Name."),
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Steps to take; the task's own unless given.")]
Seed = Annotated[int, typer.Option("--seed", "-s", min=0, help="Seed of data, host, order and decisions.")]


@app.command()
def train(
    ctx: typer.Context,
    task: Task = "digits",
    policy: Annotated[
        str, typer.Option("--policy", "-p", help="off, random, schedule, earliest-site or heuristic.")
    ] = "heuristic",
    steps: Steps = None,
    seed: Seed = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any field of the run's configuration, e.g. --set graft.ramp_steps=200; may be repeated.",
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Go on with this run from its last checkpoint; ignores the rest."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a task's host, let a policy grow it, and record every fact.

    Ctrl-C stops at the end of the epoch, and --resume goes on from there. The setting `forge` says whether the run
    makes its kernels itself (`here`) or waits for those of the handlers tezzeret and urabrask (`workers`).
    """
    session = session_of(ctx)
    if resume is not None:
        trained = resume_run(session, resume)
    else:
        trained = start_run(session, task, configure(task, policy, steps, seed, settings or []))
    session.fold()
    _report(session, trained, as_json=as_json)


def configure(task: str, policy: str, steps: int | None, seed: int, settings: list[str]) -> RunConfig:
    """Return the configuration that the task's defaults and the options give.

    Raises:
        UnknownSetting: ``--set`` names a field that does not exist.
        ConfigError: A value cannot be used.
    """
    from esper.tamiyo import make_policy
    from esper.tolaria.config import RunConfig, from_plain, set_field, timetable, to_plain
    from esper.tolaria.task import load_task

    defaults = load_task(task).defaults
    total_steps = steps or defaults.steps
    plain = to_plain(
        RunConfig(
            policy=policy,
            seed=seed,
            total_steps=total_steps,
            steps_per_epoch=defaults.steps_per_epoch,
            batch_size=defaults.batch_size,
            learning_rate=defaults.learning_rate,
            optimizer=defaults.optimizer,
            graft=timetable(total_steps),
        )
    )
    for setting in settings:
        set_field(plain, setting)
    config = from_plain(plain)
    make_policy(config.policy, config.policy_settings)  # a wrong one is told before anything is opened
    return config


def start_run(session: Session, task: str, config: RunConfig, what: str | None = None) -> Trained:
    """Train a run from its first step, with progress."""
    from esper.tolaria.launch import start

    def on_start(run_id: str) -> None:
        session.claim_store()
        output.message(f"run {run_id}")

    with training_progress(what or f"training {task}") as on_epoch:
        return start(
            task,
            config,
            log=session.new_log,
            store=session.store,
            spool=session.spool,
            shelf=session.shelf,
            kernel_cache_bytes=session.settings.kernel_cache_bytes,
            workers=workers_of(session.settings),
            on_start=on_start,
            on_epoch=on_epoch,
        )


def resume_run(session: Session, run: str) -> Trained:
    """Go on with a run, with progress, saying what is done again."""
    from esper.cli.tables import run_id_of
    from esper.tolaria.launch import deliver_first, resume

    deliver_first(session.spool, session.log)  # the run may be known to the spool alone
    run_id = run_id_of(session, run)
    session.claim_store()
    with training_progress(f"resuming {run_id}") as on_epoch:
        return resume(
            run_id,
            log=session.log,
            store=session.store,
            spool=session.spool,
            shelf=session.shelf,
            kernel_cache_bytes=session.settings.kernel_cache_bytes,
            workers=workers_of(session.settings),
            on_resume=lambda fact: output.message(
                f"run {run_id}: attempt {fact.attempt} goes on after step {fact.from_step}; "
                f"{fact.redone_steps} steps are done again"
            ),
            on_epoch=on_epoch,
        )


def _report(session: Session, trained: Trained, *, as_json: bool) -> None:
    from replay.state import state_at

    state: dict[str, Any] = state_at(session.log, trained.run_id)
    result = state["result"] or {}
    output.print_record(
        {
            "run_id": trained.run_id,
            "status": state["status"],
            "step": state["step"],
            "seeds": {seed_id: seed["state"] for seed_id, seed in state["seeds"].items()},
            "validation_accuracy": state["validation_accuracy"],
            "test_accuracy": result.get("test_accuracy"),
            "test_loss": result.get("test_loss"),
            "parameters": result.get("folded_parameters", state["parameters"]),
            "training_flops": result.get("training_flops", state["training_flops"]),
            "position": trained.position,
        },
        as_json=as_json,
    )
    if trained.model is None:
        again = shlex.join(["esper", *session.global_arguments(), "train", "--resume", trained.run_id])
        output.message(f"paused; go on with: {again}")
