"""Killing the training process at any moment loses nothing and changes nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROUNDS = 10
ARGUMENTS = ("--task", "digits", "--policy", "earliest-site", "--steps", "900", "--set", "steps_per_epoch=50")


def esper(home: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "esper", "--home", str(home), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=280)


def result(home: Path) -> dict[str, object]:
    runs = json.loads(esper(home, "run", "list", "--json").stdout)
    facts = esper(home, "log", "read", "--type", "RunFinished", "--json").stdout.splitlines()
    assert len(runs) == len(facts) == 1
    return json.loads(facts[0])["fact"]


@pytest.mark.acceptance
@pytest.mark.timeout(1800)
def test_killing_at_ten_random_moments_and_resuming_ends_with_the_same_parameters(tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    began = time.monotonic()
    esper(undisturbed, "train", *ARGUMENTS)
    whole_s = time.monotonic() - began
    expected = result(undisturbed)["parameter_digest"]
    chance = random.Random(20261123)
    for number in range(ROUNDS):
        home = tmp_path / f"killed-{number}"
        kill_while_training(home, chance, whole_s)
        resumed = esper(home, "train", "--resume", "latest")
        assert "goes on after step" in resumed.stderr, resumed.stderr
        assert result(home)["parameter_digest"] == expected, f"round {number}"
        esper(home, "log", "verify")
    esper(tmp_path / "killed-0", "replay", "verify", "latest")


def kill_while_training(home: Path, chance: random.Random, whole_s: float) -> None:
    """Start a run and kill it with -9 at a random moment after its first fact."""
    while True:
        process = subprocess.Popen(
            [sys.executable, "-m", "esper", "--home", str(home), "train", *ARGUMENTS],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert process.stderr is not None
        assert any(line.startswith("run run-") for line in process.stderr)
        time.sleep(chance.uniform(0, 0.8 * whole_s))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()
        finished = esper(home, "log", "read", "--type", "RunFinished", "--json").stdout.strip()
        if not finished:
            return
        # It ended before the kill: this moment was none within the run.
        for part in home.rglob("*"):
            if part.is_file():
                part.unlink()
