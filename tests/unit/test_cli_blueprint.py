"""``esper blueprint`` and ``esper kernel``."""

from __future__ import annotations

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
