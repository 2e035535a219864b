"""The program's rim: help, errors, exit codes, and readers that hang up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main
from cli_support import Esper

from esper import errors
from esper.cli import main as program
from esper.cli.failures import exit_code, fail
from esper.cli.lazy import load_command

HEAVY = ("torch", "sqlalchemy", "numpy", "pydantic", "structlog", "rich", "msgspec")


def run_python(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ESPER_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from esper.cli.main import run; code = run(['--help']); "
        f"print([name for name in {HEAVY!r} if name in sys.modules]); sys.exit(code)"
    )
    done = run_python(code, tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_lists_every_command_in_the_order_of_the_table(esper: Esper) -> None:
    ran = esper("--help")
    assert ran.code == 0
    listed = ran.out.split("Commands:")[1]
    places = [listed.index(f"  {name} ") for name in program.Commands.helps]
    assert places == sorted(places)


@pytest.mark.parametrize("name", list(program.Commands.helps))
def test_line_in_the_table_is_the_commands_own_help(name: str) -> None:
    command = load_command(program.Commands.places[name], name)
    assert (command.help or "").split("\n")[0] == program.Commands.helps[name]


def test_command_without_a_verb_prints_its_help_and_is_a_usage_error(esper: Esper) -> None:
    ran = esper("log")
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("Usage: esper log")


def test_mistyped_command_is_told_with_the_nearest_one(esper: Esper) -> None:
    ran = esper("proyections")
    assert ran.code == 2
    assert "No such command 'proyections'. Did you mean 'projections'?" in ran.err


def test_version_is_printed(esper: Esper) -> None:
    assert esper("--version").out == "esper 0.1.0\n"


def test_error_has_code_message_and_hint_and_leaves_stdout_alone(esper: Esper) -> None:
    ran = esper("log", "read")
    assert ran.code == 4
    assert ran.out == ""
    assert ran.err.splitlines()[0].startswith("error[E-NF-001] no log at sqlite:///")
    assert "hint: run `esper demo`" in ran.err
    assert "Traceback" not in ran.err


def test_error_under_json_is_one_object_on_stderr(esper: Esper) -> None:
    ran = esper("log", "verify", "--json")
    assert (ran.code, ran.out) == (4, "")
    error = json.loads(ran.err)["error"]
    assert error["code"] == "E-NF-001"
    assert error["name"] == "NotFound"
    assert error["exit_code"] == 4
    assert set(error) == {"code", "name", "message", "hint", "cause", "exit_code", "details"}


def test_usage_error_under_json_has_the_same_shape(esper: Esper) -> None:
    ran = esper("log", "read", "--limit", "0", "--json")
    assert ran.code == 2
    error = json.loads(ran.err)["error"]
    assert (error["code"], error["exit_code"]) == ("E-USE-001", 2)
    assert set(error) == {"code", "name", "message", "hint", "cause", "exit_code", "details"}


@pytest.mark.parametrize("place", [("--debug", "log", "read"), ("log", "read", "--debug")])
def test_traceback_comes_with_debug_only(esper: Esper, place: tuple[str, ...]) -> None:
    ran = esper(*place)
    assert ran.code == 4
    assert "Traceback" in ran.err
    assert "error[E-NF-001]" in ran.err


def test_unknown_setting_in_the_environment_is_a_usage_error(esper: Esper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_LOGLEVEL", "info")
    ran = esper("config", "show")
    assert ran.code == 2
    assert "error[E-CFG-002]" in ran.err
    assert "did you mean 'log_level'?" in ran.err


def test_password_in_a_url_is_masked_in_errors(esper: Esper) -> None:
    ran = esper("--log", "redis://ada:hunter2@127.0.0.1:1/0", "log", "read")
    assert ran.code == 5
    assert "hunter2" not in ran.err
    assert "redis://ada:***@127.0.0.1:1/0" in ran.err


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("LogDamaged", 3),
        ("ProjectionDiverged", 3),
        ("LogRegressed", 3),
        ("ReplayDiverged", 3),
        ("NotFound", 4),
        ("DependencyUnavailable", 5),
        ("LogUnavailable", 5),
        ("NotReexecutable", 6),
        ("UnknownSetting", 2),
        ("ConfigVersionMismatch", 2),
        ("ConcurrencyConflict", 1),
        ("BlueprintInvalid", 1),
    ],
)
def test_exit_code_of_an_error(name: str, code: int) -> None:
    assert exit_code(getattr(errors, name)("told")) == code


def test_missing_training_package_names_the_extra(esper: Esper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("esper.tolaria")]:
        monkeypatch.delitem(sys.modules, name)
    ran = esper("train", "--task", "digits", "--steps", "1")
    assert ran.code == 5
    assert "error[E-DEP-001] this command needs torch" in ran.err
    assert "pip install 'esper[train]'" in ran.err


def test_details_that_json_cannot_carry_are_told_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    error = errors.PoisonEvent("told", position=7, cause=ValueError("bad"), url="redis://:hunter2@cache/0")
    assert fail(error, as_json=True, debug=False) == 1
    details = json.loads(capsys.readouterr().err)["error"]["details"]
    assert details == {"position": 7, "cause": "bad", "url": "redis://:***@cache/0"}


def test_foreign_error_is_told_without_a_traceback(esper: Esper, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> object:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("esper.settings.load_settings", broken)
    ran = esper("config", "show")
    assert ran.code == 1
    assert "error[E-000] ZeroDivisionError: division by zero" in ran.err
    assert "--debug" in ran.err
    assert "Traceback" not in ran.err


def test_reader_that_hangs_up_ends_the_program_quietly(small_home: Path) -> None:
    command = f"{sys.executable} -m esper.cli.main log read -n 100 --json | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "ESPER_HOME": str(small_home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() in ("0", "141")
    assert done.stderr == ""


def test_help_is_quick(tmp_path: Path) -> None:
    """The bar is 0.4 s; three times that here, because tests share their machine."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        done = run_python("from esper.cli.main import run; run(['--help'])", tmp_path)
        times.append(time.perf_counter() - begin)
        assert done.returncode == 0
    assert min(times) < 1.2


def test_every_group_and_command_has_a_help_line() -> None:
    root = typer.main.get_command(program.app)
    for name in program.Commands.places:
        command = root.get_command(None, name)
        for verb, leaf in getattr(command, "commands", {}).items():
            assert leaf.help, f"esper {name} {verb} has no help"
