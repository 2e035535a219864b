"""What the page says in words and numbers: the summary, the comparison, where everything came from, what to do next.

Belongs here: text made from a report. Does not belong here: drawings (``render``) or single values (``wording``).
"""

from __future__ import annotations

import shlex
from typing import Any

import msgspec

from esper.cli.report import wording as w
from esper.cli.report.model import Arm, Report
from esper.events.lifecycle import SeedState
from esper.names import RunStatus


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """A name and what stands beside it: a value and a note, or a digest and a remark."""

    name: str
    value: str = ""
    note: str = ""
    id: str = ""
    text: str = ""


def summary(report: Report) -> str:
    """Say in two sentences what happened."""
    kept = sum(lane.outcome == SeedState.FOSSILIZED for lane in report.lanes)
    born = sum(bool(lane.spans) and lane.spans[0].first == 0 for lane in report.lanes)
    match len(report.lanes):
        case 0:
            grew = "The host grew no seeds."
        case count if count == born:
            grew = f"The host had {count} seed{'s' if count > 1 else ''} from the first step and grew no more."
        case 1:
            grew = f"The host grew one seed, which was {'kept' if kept else 'not kept'}."
        case count:
            grew = f"The host grew {count} seeds, of which {kept or 'none'} {'was' if kept == 1 else 'were'} kept."
    own = report.grown
    if report.status != RunStatus.FINISHED or own.test_accuracy is None:
        done = f"{report.steps:,} of {report.total_steps:,} steps are done"
        return f"{grew} {done}{'; the test data was not touched.' if report.status != 'finished' else '.'}"
    tested = [
        (arm.role, own.test_accuracy - arm.test_accuracy)
        for arm in report.arms[1:]
        if arm.test_accuracy is not None and arm.role in w.ARM_PHRASES
    ]
    against = "".join(
        f"{', and ' if place else ': '}{_above(difference)} {w.ARM_PHRASES[role]}"
        for place, (role, difference) in enumerate(tested)
    )
    accuracy = w.percent(own.test_accuracy, 2).replace(" ", "\u00a0")
    return f"{grew} Test accuracy is {accuracy}{against}."


def _above(difference: float) -> str:
    if round(abs(difference) * 100, 1) == 0:
        return "level with"
    return f"{abs(difference) * 100:.1f} points {'above' if difference > 0 else 'below'}"


def tiles(report: Report) -> list[Item]:
    """Return the final numbers."""
    own = report.grown
    added = (
        f"from {report.initial_parameters:,}, {w.ratio(own.parameters, report.initial_parameters)}"
        if own.parameters is not None and report.initial_parameters
        else "host and growth"
    )
    kept = sum(lane.outcome == SeedState.FOSSILIZED for lane in report.lanes)
    return [
        Item(
            name="Test accuracy",
            value=w.percent(own.test_accuracy, 2),
            note=f"loss {w.number(own.test_loss)}" if own.test_loss is not None else "not tested",
        ),
        Item(name="Parameters", value=w.integer(own.parameters), note=added),
        Item(name="Training cost", value=w.si(own.training_flops, "FLOP"), note="probes and evaluations included"),
        Item(name="Inference cost", value=w.si(own.inference_flops, "FLOP"), note="forward pass, one sample"),
        Item(name="Seeds", value=str(len(report.lanes)), note=f"{kept} fossilized"),
        Item(
            name="Steps",
            value=w.integer(report.steps),
            note=f"in {w.duration(own.seconds)}" if own.seconds is not None else f"of {report.total_steps:,}",
        ),
    ]


def comparison(arm: Arm, own: Arm) -> dict[str, Any]:
    """Return one line of the comparison: values, and how they stand to the run itself."""

    def cell(name: str, value: str, delta: str) -> dict[str, str]:
        return {"name": name, "value": value, "delta": "" if arm is own else delta}

    accuracy = (
        w.points(arm.test_accuracy - own.test_accuracy)
        if arm.test_accuracy is not None and own.test_accuracy is not None
        else ""
    )
    loss = w.signed(arm.test_loss - own.test_loss, 4) if arm.test_loss is not None and own.test_loss is not None else ""
    return {
        "arm": arm,
        "cells": [
            cell("Test accuracy", w.percent(arm.test_accuracy, 2), accuracy),
            cell("Test loss", w.number(arm.test_loss), loss),
            cell("Parameters", w.integer(arm.parameters), w.ratio(arm.parameters, own.parameters)),
            cell("Training FLOPs", w.si(arm.training_flops), w.ratio(arm.training_flops, own.training_flops)),
            cell("Inference FLOPs", w.si(arm.inference_flops), w.ratio(arm.inference_flops, own.inference_flops)),
            cell("Steps", w.integer(arm.steps), ""),
        ],
    }


def provenance(report: Report) -> list[Item]:
    """Return what the run can be traced back to."""
    at = report.position
    items = [
        Item(name="Run", id=report.run_id, text=f"{report.attempts} attempt{'s' if report.attempts > 1 else ''}"),
        Item(
            name="Log",
            text=f"{at.facts:,} facts of the run between positions {at.first:,} and {at.last:,}",
        ),
        Item(name="Chain hash at the log's head", id=at.head_hash, text=f"position {at.head:,}"),
        Item(name="Dataset digest", id=report.dataset_digest or "", text="" if report.dataset_digest else "not given"),
        Item(name="Environment digest", id=report.environment_digest),
        Item(name="Git commit", id=report.git_commit or "", text="" if report.git_commit else "not in a repository"),
        Item(name="Random seeds", text=", ".join(f"{name} {seed}" for name, seed in sorted(report.seeds.items()))),
    ]
    if report.git_dirty_digest:
        items.append(Item(name="Uncommitted changes", id=report.git_dirty_digest, text="SHA-256 of the diff"))
    if report.parent_run_id:
        text = f"at position {report.parent_position:,}" if report.parent_position is not None else ""
        items.append(Item(name="Parent run", id=report.parent_run_id, text=text))
    return items


def commands(report: Report) -> list[dict[str, str]]:
    """Return commands that make sense after this run, as it ended."""
    run = report.run_id
    commands = [
        ("Check that no byte of the log was altered", "esper log verify"),
        ("Read everything that was decided, and why", f"esper audit trail {run}"),
    ]
    if report.status == RunStatus.FINISHED:
        commands.insert(1, ("Run every step again and compare it bit for bit", f"esper replay verify {run}"))
    if len(report.arms) > 1:
        others = " ".join(arm.run_id for arm in report.arms[1:])
        commands.append(("Compare the runs in the terminal", f"esper run compare {run} {others}"))
    elif report.compare_to:
        commands.append(("See this run beside the one it was made for", f"esper run report {report.compare_to}"))
    elif report.task != "custom":
        line = (
            f"esper train --task {shlex.quote(report.task)} --policy off --steps {report.total_steps}"
            f" --seed {report.seeds.get('run', 0)} --set arm=no-growth --set compare_to={run}"
        )
        commands.append(("Train the same host without growth, for comparison", line))
    if report.status != RunStatus.FINISHED and report.task != "custom":
        commands.append(("Go on from the last checkpoint", f"esper train --resume {run}"))
    return [{"why": why, "line": line} for why, line in commands]
