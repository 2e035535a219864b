"""``esper run``: listing, showing, comparing, reporting and annotating runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import Esper
from small_log import NEWER, OLDER, SEED_ID

pytestmark = pytest.mark.usefixtures("small_home")


def test_list_gives_objects_with_run_id_newest_first(esper: Esper) -> None:
    runs = esper("run", "list", "--json").json
    assert [run["run_id"] for run in runs] == [NEWER, OLDER]
    assert runs[0]["test_accuracy"] == 0.9
    assert runs[0]["started_at"].endswith("+00:00")


def test_list_can_be_cut_and_filtered(esper: Esper) -> None:
    assert [run["run_id"] for run in esper("run", "list", "-n", "1", "--json").json] == [NEWER]
    assert esper("run", "list", "--status", "running", "--json").json == []
    assert len(esper("run", "list", "--status", "finished", "--json").json) == 2
    assert esper("run", "list", "--status", "lost").code == 2


def test_list_as_it_was_at_a_position_or_a_time(esper: Esper) -> None:
    (event,) = esper("log", "read", "--type", "RunFinished", "-n", "1", "--json").json_lines
    (then,) = esper("run", "list", "--at", str(event["position"] - 1), "--json").json
    assert (then["run_id"], then["status"], then["test_accuracy"]) == (OLDER, "running", None)
    (then,) = esper("run", "list", "--at", event["recorded_at"], "--json").json
    assert (then["run_id"], then["status"]) == (OLDER, "finished")
    assert esper("run", "list", "--at", "999").code == 4
    assert esper("run", "list", "--at", "yesterday").code == 2


def test_empty_list_tells_the_next_command_on_stderr(esper: Esper) -> None:
    ran = esper("run", "list", "--at", "1")
    assert (ran.code, ran.out) == (0, "")
    assert "esper demo" in ran.err


def test_show_gives_configuration_epochs_and_grafted_seeds(esper: Esper) -> None:
    shown = esper("run", "show", NEWER, "--json").json
    assert shown["config"] == {"seed": 3}
    assert [epoch["validation_accuracy"] for epoch in shown["epochs"]] == [0.52, 0.54]
    assert [(seed["seed_id"], seed["gain"]) for seed in shown["grafted"]] == [(SEED_ID, None)]
    assert SEED_ID in esper("run", "show", "latest").out


@pytest.mark.parametrize("name", [NEWER, "run-0002", "latest"])
def test_run_is_meant_by_id_beginning_or_latest(esper: Esper, name: str) -> None:
    assert esper("run", "show", name, "--json").json["run_id"] == NEWER


def test_ambiguous_beginning_is_a_usage_error_that_names_the_candidates(esper: Esper) -> None:
    ran = esper("run", "show", "run-000")
    assert ran.code == 2
    assert OLDER in ran.err
    assert NEWER in ran.err


@pytest.mark.parametrize(
    "command",
    [
        ("run", "show", "run-0009"),
        ("run", "compare", NEWER, "run-0009"),
        ("run", "report", "run-0009"),
        ("run", "note", "run-0009", "text", "--actor", "ada"),
        ("audit", "trail", "run-0009"),
        ("decision", "list", "--run", "run-0009"),
        ("seed", "list", "--run", "run-0009"),
        ("replay", "state", "run-0009"),
        ("replay", "verify", "run-0009"),
        ("train", "--resume", "run-0009"),
    ],
    ids=" ".join,
)
def test_missing_run_is_not_found_with_the_nearest_id(esper: Esper, command: tuple[str, ...]) -> None:
    ran = esper(*command)
    assert ran.code == 4
    assert "error[E-NF-001] there is no run 'run-0009'" in ran.err
    assert "did you mean run-000" in ran.err


def test_compare_shows_what_differs_and_with_all_the_rest(esper: Esper) -> None:
    differs = esper("run", "compare", OLDER, NEWER, "--json").json
    assert differs["runs"] == [OLDER, NEWER]
    assert differs["metrics"]["test_accuracy"] == [0.8, 0.9]
    assert "task" not in differs["setup"]
    assert esper("run", "compare", OLDER, NEWER, "--all", "--json").json["setup"]["task"] == ["digits", "digits"]
    assert "test_accuracy\t0.8\t0.9" in esper("run", "compare", OLDER, NEWER).out


def test_run_compared_with_itself_differs_in_nothing(esper: Esper) -> None:
    ran = esper("run", "compare", NEWER, "latest")
    assert (ran.code, ran.out) == (0, "")
    assert "nothing differs" in ran.err


def test_report_is_written_where_it_says(esper: Esper, tmp_path: Path) -> None:
    path = Path(esper("run", "report", "latest").out.strip())
    assert path == tmp_path / "home" / "reports" / f"{NEWER}.html"
    assert NEWER in path.read_text(encoding="utf-8")
    told = esper("run", "report", OLDER, "--out", str(tmp_path / "page.html"), "--json").json
    assert told == {"run_id": OLDER, "report": str(tmp_path / "page.html")}
    assert (tmp_path / "page.html").is_file()


def test_note_becomes_a_fact_with_its_author_and_stands_in_the_trail(esper: Esper) -> None:
    noted = esper("run", "note", "latest", "keep this one", "--actor", "ada", "--json").json
    (event,) = esper("log", "tail", "-n", "1", "--json").json_lines
    assert event["position"] == noted["position"]
    assert event["stream"] == f"operator/{NEWER}"
    assert event["sender_id"] == "operator:ada"
    assert event["fact"] == {"run_id": NEWER, "actor": "ada", "text": "keep this one"}
    last = esper("audit", "trail", NEWER, "--json").json_lines[-1]
    assert last["position"] == noted["position"]
    assert "ada noted: keep this one" in last["sentence"]


@pytest.mark.parametrize(("text", "actor"), [("  ", "ada"), ("text", " ")])
def test_empty_note_is_refused_and_nothing_is_written(esper: Esper, text: str, actor: str) -> None:
    before = esper("log", "stats", "--json").json["events"]
    assert esper("run", "note", "latest", text, "--actor", actor).code == 2
    assert esper("log", "stats", "--json").json["events"] == before
