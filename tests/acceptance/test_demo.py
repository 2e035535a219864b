"""The promise of the first hour: one command grows a network, and the log can tell, prove and repeat all of it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import RedisServer

from esper.oona.open import open_configured
from esper.projections.digest import digests
from esper.projections.open import open_tables
from esper.projections.runner import Projector
from esper.settings import load_settings
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


@pytest.fixture(scope="module")
def on_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, dict[str, Any]]]:
    """Run the same demo on a log in Redis; gives the state folder, the log's URL and the answer."""
    folder = tmp_path_factory.mktemp("redis")
    with RedisServer(folder / "server") as server:
        yield folder / "home", server.url, data(folder / "home", "demo", "--log", server.url)


def test_the_demo_on_redis_ends_with_the_same_parameters_bit_for_bit(
    demo: tuple[Path, dict[str, Any]], on_redis: tuple[Path, str, dict[str, Any]]
) -> None:
    digests = [{name: arm["parameter_digest"] for name, arm in one["arms"].items()} for one in (demo[1], on_redis[2])]
    assert digests[0] == digests[1]
    assert all(len(digest) == 64 for digest in digests[0].values())


def test_sealed_and_trimmed_history_on_redis_verifies_replays_and_restores(
    on_redis: tuple[Path, str, dict[str, Any]], tmp_path: Path
) -> None:
    home, url, answer = on_redis
    before = data(home, "log", "verify", "--log", url)
    data(home, "log", "seal", "--trim", "--log", url)
    note = ("run", "note", answer["run_id"], "sealed", "--log", url)
    assert esper(home, *note, "--actor", "ada").returncode == 0
    after = data(home, "log", "verify", "--log", url)
    assert after["sealed_through"] == before["head_position"]
    assert after["head_position"] == before["head_position"] + 1
    assert data(home, "replay", "verify", answer["run_id"], "--log", url)["finished"]
    sealed = data(home, "log", "seal", "--log", url)["sealed_through"]
    target = f"sqlite:///{tmp_path / 'log.db'}"
    act = ("--actor", "ada", "--reason", "the server burned down")
    assert esper(home, "log", "restore", target, *act, "--log", url).returncode == 0
    assert tables_at(target, sealed, tmp_path / "restored.db") == tables_at(url, sealed, tmp_path / "redis.db", home)
    check_tables(tmp_path / "log.db", tmp_path / "restored.db")


def tables_at(url: str, position: int, path: Path, home: Path | None = None) -> dict[str, str]:
    """Return the digest of every table that a log gives up to a position."""
    settings = load_settings({"log": url, "home": home or path.parent})
    engine = open_tables(f"sqlite:///{path}")
    with open_configured(settings, create=False) as log:
        Projector(log, engine).catch_up(until=position)
    with engine.connect() as connection:
        found = digests(connection)
    engine.dispose()
    return found
