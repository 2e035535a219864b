"""Forms of answers: exact JSON, tables for people, progress that vanishes without a terminal."""

from __future__ import annotations

import datetime as dt
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import Esper

from esper.cli import output
from esper.cli.progress import progress
from esper.oona.port import Head


def test_json_keeps_floats_exact_and_names_what_json_has_no_number_for(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json([0.1 + 0.2, float("nan"), float("inf"), -0.0])
    found = json.loads(capsys.readouterr().out)
    assert found[0].hex() == (0.1 + 0.2).hex()
    assert found[1:3] == ["nan", "inf"]
    assert str(found[3]) == "-0.0"


def test_plain_turns_bytes_times_structs_and_paths_into_text() -> None:
    noon = dt.datetime(2026, 3, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    value = {"head": Head(3, b"\xff"), "at": noon, "path": Path("/a"), "names": {"x"}, "none": None}
    assert output.plain(value) == {
        "head": {"position": 3, "chain": "ff"},
        "at": "2026-03-01T10:00:00+00:00",
        "path": "/a",
        "names": ["x"],
        "none": None,
    }


def test_value_without_a_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        output.plain(object())


def test_table_cells_stay_on_their_line_and_none_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_rows([{"a": "x\ty\nz", "b": None, "c": True, "d": 1 / 3}], ("a", "b", "c", "d"), as_json=False)
    assert capsys.readouterr().out.splitlines()[1] == "x y z\t-\tyes\t0.333333"


def test_hash_is_cut_in_tables_and_whole_in_records_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    digest = "ab" * 32
    output.print_rows([{"id": digest}], ("id",), as_json=False)
    assert capsys.readouterr().out == f"id\n{digest[:12]}\n"
    output.print_record({"id": digest}, as_json=False)
    assert digest in capsys.readouterr().out
    output.print_rows([{"id": digest}], ("id",), as_json=True)
    assert json.loads(capsys.readouterr().out) == [{"id": digest}]


def test_markup_in_a_value_is_shown_as_it_is(esper: Esper, tmp_path: Path) -> None:
    ran = esper("--color", "always", "--db", "sqlite:///[red]x[/red].db", "config", "show")
    assert "[red]x[/red].db" in ran.out


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("verifying") as advance:
        assert advance is None
    assert capsys.readouterr().err == ""


def test_progress_shows_rate_and_time_left_on_a_terminal_and_leaves_nothing() -> None:
    code = (
        "import time\n"
        "from esper.cli.progress import progress\n"
        "with progress('verifying') as advance:\n"
        "    for done in range(0, 1001, 100):\n"
        "        advance(done, 1000); time.sleep(0.05)\n"
    )
    control, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=terminal, stdout=subprocess.PIPE, env=environment)
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(control, 4096):
            shown += chunk
    except OSError:
        # A terminal whose other end is closed answers with EIO: all was read.
        pass
    finally:
        os.close(control)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == b""
    text = shown.decode()
    assert "verifying" in text
    assert "events/s" in text
    # The last thing written is the erasing of the bar's line.
    assert text.rstrip().endswith("\x1b[2K") or "\x1b[2K" in text.rsplit("verifying", 1)[1]


def test_file_that_cannot_be_written_is_a_clear_error(esper: Esper, small_home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = esper("run", "report", "latest", "--out", str(tmp_path / "file" / "page.html"))
    assert ran.code == 1
    assert "Not a directory" in ran.err or "File exists" in ran.err
    assert str(tmp_path / "file") in ran.err
    assert "not foreseen" not in ran.err
