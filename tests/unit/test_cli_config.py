"""``esper config show``."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import Esper


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_each_value_tells_where_it_comes_from(esper: Esper, tmp_path: Path) -> None:
    Path("esper.toml").write_text('log_level = "info"\n')
    rows = {row["name"]: row for row in esper("--db", "sqlite:///t.db", "config", "show", "--json").json}
    assert rows["home"]["origin"] == "environment ESPER_HOME"
    assert rows["db"] == {
        "name": "db",
        "value": "sqlite:///t.db",
        "origin": "flag --db",
        "description": rows["db"]["description"],
    }
    assert rows["log_level"]["origin"] == "file esper.toml"
    assert rows["log"]["origin"] == "derived from home"
    assert rows["color"]["origin"] == "default"


def test_secrets_are_masked(esper: Esper) -> None:
    ran = esper("--db", "postgresql://ada:hunter2@db/esper", "config", "show")
    assert "hunter2" not in ran.out + ran.err
    assert "postgresql://ada:***@db/esper" in ran.out


def test_without_a_terminal_a_table_is_tab_separated(esper: Esper) -> None:
    lines = esper("config", "show").out.splitlines()
    assert lines[0] == "name\tvalue\torigin"
    assert "log_format\tconsole\tdefault" in lines


def test_colours_come_when_they_are_asked_for(esper: Esper) -> None:
    assert "\x1b[" in esper("--color", "always", "config", "show").out
    assert "\x1b[" not in esper("config", "show").out


def test_named_settings_file_that_is_not_there_is_an_error(esper: Esper) -> None:
    ran = esper("--config", "gone.toml", "config", "show")
    assert ran.code == 2
    assert "gone.toml does not exist" in ran.err
