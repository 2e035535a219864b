"""Global options stand anywhere on the command line, unless a word only looks like one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
import typer
import typer.main
from cli_support import Esper

from esper.cli.hoist import hoist
from esper.cli.main import app


def hoisted(*words: str) -> tuple[list[str], list[str]]:
    return hoist(typer.main.get_command(app), list(words))


@pytest.mark.parametrize("words", [("log", "stats", "--home", "{home}"), ("log", "--home={home}", "stats")])
def test_global_option_behind_the_command_is_obeyed(
    esper: Esper, small_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "elsewhere"))
    assert esper("log", "stats").code == 4
    assert esper(*(word.format(home=small_home) for word in words), "--json").json["events"] > 0


def test_last_of_two_wins(esper: Esper, tmp_path: Path) -> None:
    shown = esper("--log", "memory://", "config", "show", "--json", "--log", "sqlite:///other.db").json
    assert [setting["value"] for setting in shown if setting["name"] == "log"] == ["sqlite:///other.db"]


def test_words_keep_their_order() -> None:
    front, rest = hoisted("log", "read", "--after", "3", "--log", "memory://", "--debug", "--json", "--color=never")
    assert front == ["--log", "memory://", "--debug", "--color=never"]
    assert rest == ["log", "read", "--after", "3", "--json"]


def test_value_of_a_commands_option_is_not_taken_for_an_option() -> None:
    assert hoisted("log", "read", "--stream", "--log", "--home", "x") == (
        ["--home", "x"],
        ["log", "read", "--stream", "--log"],
    )


def test_words_behind_two_dashes_are_left_alone() -> None:
    assert hoisted("run", "note", "--debug", "latest", "--", "--home") == (
        ["--debug"],
        ["run", "note", "latest", "--", "--home"],
    )


def test_option_that_the_command_has_itself_is_the_commands() -> None:
    other = typer.Typer()

    @other.callback()
    def root(home: str = "", log: str = "") -> None: ...

    @other.command("send")
    def send(log: Annotated[str, typer.Option()] = "") -> None: ...

    assert hoist(typer.main.get_command(other), ["send", "--log", "tree", "--home", "here"]) == (
        ["--home", "here"],
        ["send", "--log", "tree"],
    )


def test_option_without_its_value_is_told_as_such(esper: Esper) -> None:
    ran = esper("log", "read", "--log")
    assert ran.code == 2
    assert "Option '--log' requires an argument" in ran.err


def test_unknown_option_is_still_an_error(esper: Esper) -> None:
    assert esper("log", "read", "--lock", "x").code == 2
