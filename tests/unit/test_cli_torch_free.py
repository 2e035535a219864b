"""What an auditor runs needs no torch, not even installed: one process per command looks for it afterwards."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from small_log import KERNEL, NEWER, OLDER, SEED_ID

COMMANDS = (
    "log read",
    "log tail",
    "log stats",
    "log verify",
    "log salvage saved.db",
    "projections status",
    "projections rebuild",
    "projections verify",
    "run list",
    f"run show {NEWER}",
    f"run compare {OLDER} {NEWER}",
    f"run report {NEWER}",
    f"run note {NEWER} seen --actor ada",
    "seed list",
    f"seed show {SEED_ID} --run {NEWER}",
    "blueprint list",
    "blueprint list --shipped",
    "blueprint show res_mlp",
    "blueprint verify res_mlp",
    "blueprint submit affine",
    "blueprint mutate dw_sep",
    "blueprint retire res_mlp --reason slow",
    "kernel list",
    f"kernel show {KERNEL}",
    f"kernel measure {KERNEL} --request",
    "decision list",
    f"decision show 1 --run {NEWER}",
    f"audit trail {NEWER}",
    f"replay state {NEWER}",
    "config show",
    "handler list",
    "handler status --json",
    "handler start projector --until-idle",
    "handler start blueprint-verifier --until-idle",
)
#: Runs a command where importing torch fails, so that a hidden use of it shows as an error too.
PROGRAM = (
    "import sys; sys.modules['torch'] = None\n"
    "from esper.cli.main import run\n"
    "code = run(sys.argv[1:])\n"
    "assert sys.modules['torch'] is None\n"
    "sys.exit(code)"
)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs_without_torch(command: str, small_home: Path, tmp_path: Path) -> None:
    if command.startswith("projections"):
        subprocess.run(
            [sys.executable, "-m", "esper.cli.main", "projections", "rebuild"],
            env={**os.environ, "ESPER_HOME": str(small_home)},
            capture_output=True,
            timeout=60,
            check=True,
        )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *shlex.split(command)],
        env={**os.environ, "ESPER_HOME": str(small_home)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
