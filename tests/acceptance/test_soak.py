"""Twenty random kills of redis-server under concurrent writers lose, double and disorder nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROUNDS = 20


@pytest.mark.acceptance
@pytest.mark.timeout(600)
def test_twenty_random_kills_of_redis_server_lose_double_and_disorder_nothing() -> None:
    command = [sys.executable, "tests/soak.py", "--rounds", str(ROUNDS)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = ran.stdout.splitlines()
    assert len([line for line in lines if line.endswith("yes")]) == ROUNDS + 1
    total = re.fullmatch(
        rf"total: {ROUNDS} kills, \d+ torn files, (\d+) facts acknowledged: "
        r"0 lost, 0 doubled, 0 out of order, 0 half, 0 not verified",
        lines[-1],
    )
    assert total is not None, lines[-1]
    assert int(total[1]) > 1000
