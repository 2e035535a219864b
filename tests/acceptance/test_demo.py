"""The promise of the first hour: one command grows a network, and the log can tell, prove and repeat all of it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.independent_model import check_tables
from tests.tampering import flip_byte_of_loss, flip_loss_and_rechain

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1200)]


def esper(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "esper", "--home", str(home), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def data(home: Path, *arguments: str) -> Any:
    done = esper(home, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    home = tmp_path_factory.mktemp("demo") / "home"
    return home, data(home, "demo")


def test_the_demo_grows_two_seeds_on_real_data_and_keeps_one(demo: tuple[Path, dict[str, Any]]) -> None:
    home, answer = demo
    assert answer["seeds_germinated"] >= 2
    assert answer["seeds_fossilized"] >= 1
    grown, alone, scratch = (answer["arms"][name] for name in ("grown", "no-growth", "from-scratch"))
    assert grown["parameters"] > alone["parameters"]
    assert scratch["parameters"] >= grown["parameters"]
    assert all(0.5 < arm["test_accuracy"] <= 1.0 for arm in answer["arms"].values())
    assert all(arm["training_gflops"] > 0 for arm in answer["arms"].values())
    assert grown["test_accuracy"] > alone["test_accuracy"]
    assert "<svg" in Path(answer["report"]).read_text(encoding="utf-8")
    newest_first = [run["run_id"] for run in data(home, "run", "list")]
    assert newest_first[-1] == answer["run_id"]
    assert len(newest_first) == 3


def test_the_three_next_commands_work_as_printed(demo: tuple[Path, dict[str, Any]]) -> None:
    _, answer = demo
    assert len(answer["next"]) == 3
    for command in answer["next"]:
        # The demo was started with `python -m esper`, so the first word is that module's file.
        arguments = shlex.split(command)[1:]
        done = subprocess.run(
            [sys.executable, "-m", "esper", *arguments], capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout


def test_tables_verify_right_after_the_demo(tmp_path: Path) -> None:
    assert esper(tmp_path, "demo", "--steps", "200").returncode == 0
    assert data(tmp_path, "projections", "verify")["verified"]


def test_log_tables_and_replay_verify(demo: tuple[Path, dict[str, Any]]) -> None:
    home, answer = demo
    assert data(home, "log", "verify")["verified"]
    assert data(home, "projections", "verify")
    for arm in answer["arms"].values():
        assert data(home, "replay", "verify", arm["run_id"])["finished"]


def test_one_flipped_byte_of_a_loss_is_named(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    home, answer = demo
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    position = flip_byte_of_loss(copy / "log.db", answer["run_id"], 150)
    done = esper(copy, "log", "verify")
    assert done.returncode == 3
    assert f"position {position}" in done.stderr


def test_a_consistently_rewritten_loss_is_still_found_by_replay(
    demo: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    home, answer = demo
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    flip_loss_and_rechain(copy / "log.db", answer["run_id"], 150)
    assert esper(copy, "log", "verify").returncode == 0
    done = esper(copy, "replay", "verify", answer["run_id"])
    assert done.returncode == 3
    assert "step 150" in done.stderr
    assert "TrainingStepCompleted.loss" in done.stderr


def test_the_tables_agree_with_an_independent_model(demo: tuple[Path, dict[str, Any]]) -> None:
    home, _ = demo
    data(home, "run", "list")
    check_tables(home / "log.db", home / "tables.db")


def test_deleted_tables_come_back_with_the_same_digests(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    home, _ = demo
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    before = {row["table"]: row["live"] for row in data(copy, "projections", "verify")["tables"]}
    for part in copy.glob("tables.db*"):
        part.unlink()
    assert esper(copy, "projections", "rebuild").returncode == 0
    after = {row["table"]: row["live"] for row in data(copy, "projections", "verify")["tables"]}
    assert len(before) >= 11
    assert after == before
