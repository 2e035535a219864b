"""``esper blueprint`` and ``esper kernel``."""

from __future__ import annotations

import getpass
import io
import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from cli_support import Esper
from small_log import BLUEPRINT, KERNEL


def document(**changes: Any) -> dict[str, Any]:
    shipped = json.loads(files("esper.blueprints.library").joinpath("res_mlp.json").read_text())
    return {**shipped, **changes}


def test_verify_gives_hash_and_costs_of_a_shipped_blueprint(esper: Esper) -> None:
    told = esper("blueprint", "verify", "res_mlp", "--json").json
    assert told["verified"] is True
    assert told["name"] == "res_mlp"
    assert len(told["blueprint_id"]) == 64
    assert set(told["parameters"]) == set(told["flops"]) == {"NC", "NTC"}


def test_verify_reads_a_file_and_stdin_alike(esper: Esper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(document()))
    from_file = esper("blueprint", "verify", str(path), "--json").json
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    assert esper("blueprint", "verify", "-", "--json").json == from_file


def test_verify_names_the_rule_and_the_place_that_break(esper: Esper, tmp_path: Path) -> None:
    broken = document()
    broken["nodes"][1]["op"] = "python"
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(broken))
    ran = esper("blueprint", "verify", str(path), "--json")
    assert ran.code == 1
    error = json.loads(ran.err)["error"]
    assert error["code"] == "E-BP-002"
    assert error["details"] == {"path": "nodes[1].op", "rule": "unknown_op"}


@pytest.mark.parametrize("name", ["gone.json", "gone", "../res_mlp", "res_mlp.json"])
def test_document_that_is_not_there_is_not_found(esper: Esper, name: str) -> None:
    ran = esper("blueprint", "verify", name)
    assert ran.code == 4
    assert f"no document {name}" in ran.err


def test_several_documents_are_verified_and_each_refused_one_is_named(esper: Esper, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(document(kind="magic")))
    ran = esper("blueprint", "verify", "res_mlp", str(wrong), "se", "--json")
    assert ran.code == 1
    assert [(row["document"], row["verified"]) for row in json.loads(ran.out)] == [
        ("res_mlp", True),
        (str(wrong), False),
        ("se", True),
    ]
    assert json.loads(ran.out)[1]["rule"] == "kind"
    assert "1 of 3 documents are refused" in ran.err
    assert f"{wrong}: kind" in ran.err


def test_a_document_that_never_ends_is_refused_without_reading_on(esper: Esper) -> None:
    ran = esper("blueprint", "verify", "/dev/zero", "--json")
    assert ran.code == 1
    assert json.loads(ran.err)["error"]["details"]["rule"] == "size"


def test_a_document_that_never_ends_is_refused_on_stdin_too(esper: Esper, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/zero", "rb") as zeros:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(zeros))
        assert "standard input has more than" in esper("blueprint", "submit", "-", "--by", "ada").err


def test_a_file_that_is_not_there_leaves_no_log_behind(esper: Esper, tmp_path: Path) -> None:
    assert esper("blueprint", "submit", "gone.json").code == 4
    assert not (tmp_path / "home" / "log.db").exists()


def test_submit_names_the_login_unless_somebody_is_named(esper: Esper) -> None:
    told = esper("blueprint", "submit", "affine", "--json").json
    assert told["submitted_by"] == getpass.getuser()
    assert (told["name"], told["submitted"], told["new"]) == ("affine", True, True)


def test_a_user_without_a_name_is_asked_for_one(esper: Esper, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000 - 1)
    ran = esper("blueprint", "submit", "affine")
    assert ran.code == 2
    assert "--by NAME" in ran.err
    assert esper("blueprint", "submit", "affine", "--by", " ").code == 2


def test_submitting_again_changes_nothing_and_says_so(esper: Esper) -> None:
    esper("blueprint", "submit", "affine", "--by", "ada")
    assert esper("blueprint", "submit", "affine", "--by", "bob", "--json").json["new"] is False
    assert len(esper("log", "read", "--json").json_lines) == 1


def test_several_are_submitted_though_one_is_refused(esper: Esper, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(document(kind="magic")))
    ran = esper("blueprint", "submit", "affine", str(path), "se", "--json")
    assert ran.code == 1
    assert [row["submitted"] for row in json.loads(ran.out)] == [True, False, True]
    assert {row["name"] for row in esper("blueprint", "list", "--json").json if row["status"] == "submitted"} == {
        "affine",
        "se",
    }


def test_a_retired_blueprint_comes_back_when_it_is_submitted_again(esper: Esper) -> None:
    def status() -> str:
        (row,) = esper("blueprint", "list", "--json").json
        return str(row["status"])

    esper("blueprint", "submit", "affine", "--by", "ada")
    for _ in range(2):
        told = esper("blueprint", "retire", "affine", "--reason", "no gain", "--by", "bob", "--json").json
        assert (told["name"], told["retired_by"]) == ("affine", "bob")
        assert status() == "retired"
        assert esper("blueprint", "submit", "affine", "--by", "ada", "--json").json["new"] is True
        assert status() == "submitted"
    types = [event["type"] for event in esper("log", "read", "--json").json_lines]
    assert types == ["BlueprintSubmitted", *["BlueprintRetired", "BlueprintSubmitted"] * 2]


def test_what_cannot_be_retired_is_told_why(esper: Esper, tmp_path: Path) -> None:
    esper("blueprint", "submit", "affine", "--by", "ada")
    ran = esper("blueprint", "retire", "se", "--reason", "no gain")
    assert (ran.code, "was not submitted on this log" in ran.err) == (4, True)
    assert esper("blueprint", "retire", "beef", "--reason", "no gain").code == 4
    assert esper("blueprint", "retire", "affine", "--reason", " ").code == 2
    esper("blueprint", "retire", "affine", "--reason", "no gain")
    ran = esper("blueprint", "retire", "affine", "--reason", "no gain")
    assert (ran.code, "retired already" in ran.err) == (4, True)


def test_an_ambiguous_name_retires_nothing(esper: Esper, tmp_path: Path) -> None:
    for number, high in enumerate(("C", "2*C")):
        path = tmp_path / f"{number}.json"
        symbols = document()["symbols"] | {"r": {"int": [4, high], "bucket": 8, "default": "C//4"}}
        path.write_text(json.dumps(document(id="mine", symbols=symbols)))
        esper("blueprint", "submit", str(path), "--by", "ada")
    ran = esper("blueprint", "retire", "mine", "--reason", "no gain")
    assert ran.code == 4
    assert "more than one" in ran.err
    assert {row["status"] for row in esper("blueprint", "list", "--json").json} == {"submitted"}


def test_list_chooses_by_status_and_kind(esper: Esper) -> None:
    for name in ("affine", "lora", "se"):
        esper("blueprint", "submit", name)
    esper("blueprint", "retire", "se", "--reason", "slow")

    def names(*options: str) -> list[str]:
        return [row["name"] for row in esper("blueprint", "list", *options, "--json").json]

    assert names("--status", "retired") == ["se"]
    assert names("--kind", "lowrank_weight") == ["lora"]
    assert names("--status", "submitted", "--kind", "residual") == ["affine"]
    assert esper("blueprint", "list", "--status", "gone").code == 2
    assert esper("blueprint", "list", "--kind", "magic").code == 2
    assert esper("blueprint", "list", "--shipped", "--status", "retired").code == 2


def test_a_shipped_blueprint_is_shown_with_its_card_and_without_a_log(esper: Esper) -> None:
    shown = esper("blueprint", "show", "res_mlp", "--json").json
    assert (shown["name"], shown["status"]) == ("res_mlp", "shipped")
    assert shown["card"]["for"]
    assert esper("blueprint", "show", shown["blueprint_id"], "--json").json == shown
    text = esper("blueprint", "show", "res_mlp").out
    assert shown["card"]["for"] in text
    assert "layernorm" in text


def test_the_card_belongs_to_the_shipped_one_alone(esper: Esper, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(document(id="mine")))
    esper("blueprint", "submit", str(path), "res_mlp", "--by", "ada")
    assert esper("blueprint", "show", "mine", "--json").json["card"] is None
    shown = esper("blueprint", "show", "res_mlp", "--json").json
    assert (shown["status"], shown["card"]["name"]) == ("submitted", "res_mlp")


def test_submitted_blueprint_is_listed_and_shown(esper: Esper) -> None:
    submitted = esper("blueprint", "submit", "affine", "--by", "ada", "--json").json["blueprint_id"]
    (row,) = esper("blueprint", "list", "--json").json
    assert (row["blueprint_id"], row["name"], row["status"], row["submitted_by"]) == (
        submitted,
        "affine",
        "submitted",
        "ada",
    )
    shown = esper("blueprint", "show", submitted[:8], "--json").json
    assert shown["blueprint_id"] == submitted
    assert shown["architecture_ir"]["id"] == "affine"


def test_refused_blueprint_is_recorded_with_its_reason(esper: Esper, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(document(kind="magic")))
    assert esper("blueprint", "submit", str(path), "--by", "ada").code == 1
    (event,) = esper("log", "read", "--json").json_lines
    assert event["type"] == "BlueprintRejected"
    assert "magic" in event["fact"]["reasons"][0]


def test_shipped_blueprints_are_listed_without_a_log(esper: Esper) -> None:
    names = [row["name"] for row in esper("blueprint", "list", "--shipped", "--json").json]
    assert {"lora", "res_mlp", "pw_bottleneck", "conv_bottleneck", "affine", "noop"} <= set(names)
    assert names == sorted(names)


@pytest.mark.usefixtures("small_home")
def test_kernels_are_listed_with_their_blueprint(esper: Esper) -> None:
    (row,) = esper("kernel", "list", "--json").json
    assert (row["kernel_id"], row["blueprint_id"], row["status"]) == (KERNEL, BLUEPRINT, "validated")
    shown = esper("kernel", "show", KERNEL[:10], "--json").json
    assert shown["checks"] == {"birth_identity": True}
    assert shown["latency_p50_s"] is None


@pytest.mark.usefixtures("small_home")
@pytest.mark.parametrize(("noun", "name"), [("blueprint", "beef"), ("kernel", "beef")])
def test_unknown_id_is_not_found(esper: Esper, noun: str, name: str) -> None:
    ran = esper(noun, "show", name)
    assert ran.code == 4
    assert f"no {noun} 'beef'" in ran.err


def test_where_one_document_is_not_there_none_is_submitted(esper: Esper, tmp_path: Path) -> None:
    assert esper("blueprint", "submit", "affine", "gone.json", "se").code == 4
    assert not (tmp_path / "home" / "log.db").exists()


def test_a_run_is_offered_what_stands_in_the_library_now(esper: Esper, tmp_path: Path) -> None:
    from esper.oona import open_log
    from esper.tolaria.config import RunConfig
    from esper.tolaria.offers import offered_blueprints

    path = tmp_path / "mine.json"
    path.write_text(json.dumps(document(id="mine")))

    def offered() -> bool:
        log = open_log(f"sqlite:///{tmp_path / 'home' / 'log.db'}")
        try:
            return "mine" in [one.id for one in offered_blueprints(RunConfig(), log)]
        finally:
            log.close()

    esper("blueprint", "submit", str(path))
    assert offered()
    esper("blueprint", "retire", "mine", "--reason", "no gain")
    assert not offered()
    esper("blueprint", "submit", str(path))
    assert offered()
