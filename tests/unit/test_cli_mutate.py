"""``esper blueprint mutate``: what is listed, what is submitted, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_support import Esper

from esper.events import Event, Fact
from esper.events.kernel import KernelCharacterized, KernelCompiled, KernelValidated
from esper.ids import new_event_id
from esper.oona import ANY, open_log


def validate(home: Path, blueprint_id: str) -> None:
    """Write the facts of a validated kernel of a blueprint."""
    names: dict[str, Any] = {"blueprint_id": blueprint_id, "kernel_id": blueprint_id}
    facts: list[Fact] = [
        KernelCompiled(
            **names,
            signature={"kind": "linear"},
            symbols={},
            parameters=1,
            flops=1,
            size_bytes=1,
            compile_seconds=0.0,
            toolchain="t",
        ),
        KernelCharacterized(
            **names,
            checks={"shape": True},
            numbers={},
            measurements_digest=bytes(32),
            latency_p50_s=None,
            latency_p99_s=None,
            measured_seconds=0.0,
        ),
        KernelValidated(**names, measurements_digest=bytes(32)),
    ]
    log = open_log(f"sqlite:///{home / 'log.db'}")
    try:
        for fact in facts:
            event = Event(fact=fact, event_id=new_event_id(), sender_id="t", trace_id="ab" * 16)
            log.append([event], stream=fact.stream, expected=ANY)
    finally:
        log.close()


@pytest.fixture
def validated(esper: Esper, tmp_path: Path) -> Esper:
    """Return the program with a log in which res_mlp is validated and dw_sep is only submitted."""
    identity = esper("blueprint", "submit", "res_mlp", "--by", "ada", "--json").json["blueprint_id"]
    esper("blueprint", "submit", "dw_sep", "--by", "ada")
    validate(tmp_path / "home", identity)
    return esper


def types(esper: Esper) -> list[str]:
    return [event["type"] for event in esper("log", "read", "--json").json_lines]


def test_mutants_of_a_shipped_blueprint_are_listed_without_a_log(esper: Esper, tmp_path: Path) -> None:
    rows = esper("blueprint", "mutate", "dw_sep", "--json").json
    assert {row["mutation"] for row in rows} == {"swap_activation", "insert_norm", "kernel_size", "low_rank"}
    assert all(row["parent"] == "dw_sep" and 0 < row["novelty"] < 1 and not row["submitted"] for row in rows)
    assert not (tmp_path / "home").exists()


def test_a_listed_mutant_is_a_document_that_can_be_submitted(esper: Esper, tmp_path: Path) -> None:
    row = esper("blueprint", "mutate", "dw_sep", "--count", "1", "--json").json[0]
    path = tmp_path / "mutant.json"
    path.write_text(json.dumps(row["architecture_ir"]))
    assert esper("blueprint", "verify", str(path), "--json").json["blueprint_id"] == row["blueprint_id"]


def test_validated_blueprints_are_the_parents_unless_some_are_named(validated: Esper) -> None:
    rows = validated("blueprint", "mutate", "--json").json
    assert {row["parent"] for row in rows} == {"res_mlp"}
    assert "BlueprintSubmitted" not in types(validated)[5:]


def test_mutants_are_submitted_with_parent_mutation_and_novelty(validated: Esper) -> None:
    rows = validated("blueprint", "mutate", "--count", "2", "--submit", "--by", "karn", "--json").json
    assert [row["submitted"] for row in rows] == [True, True]
    children = validated("blueprint", "list", "--parent", "res_mlp", "--json").json
    assert {row["name"] for row in children} == {row["name"] for row in rows}
    for child in children:
        (row,) = [row for row in rows if row["name"] == child["name"]]
        assert (child["parent"], child["mutation"], child["novelty"]) == (
            row["parent_id"],
            row["mutation"],
            row["novelty"],
        )
        assert child["submitted_by"] == "karn"
    assert "novelty" in validated("blueprint", "list").out.splitlines()[0]


def test_what_was_submitted_is_not_made_again(validated: Esper) -> None:
    first = validated("blueprint", "mutate", "--count", "100", "--submit", "--json").json
    before = len(types(validated))
    ran = validated("blueprint", "mutate", "--count", "100", "--submit")
    assert ran.code == 0
    assert "no mutation gave anything new" in ran.err
    assert len(types(validated)) == before
    assert len(first) >= 4


def test_a_retired_mutant_is_not_brought_back_by_chance(validated: Esper) -> None:
    rows = validated("blueprint", "mutate", "--count", "100", "--submit", "--json").json
    validated("blueprint", "retire", rows[0]["name"], "--reason", "no gain")
    ran = validated("blueprint", "mutate", "res_mlp", "--count", "100", "--submit")
    assert f"{rows[0]['name']} was retired" in ran.err
    (row,) = validated("blueprint", "list", "--status", "retired", "--json").json
    assert row["name"] == rows[0]["name"]


def test_the_same_seed_makes_the_same_mutants_and_another_seed_others(esper: Esper) -> None:
    def made(seed: int) -> list[str]:
        rows = esper("blueprint", "mutate", "se", "dw_sep", "--count", "4", "--seed", str(seed), "--json").json
        return [row["name"] for row in rows]

    assert made(1) == made(1)
    assert made(1) != made(2)


def test_only_what_is_new_enough_is_listed(esper: Esper) -> None:
    rows = esper("blueprint", "mutate", "se", "--least-novelty", "0.08", "--json").json
    assert rows
    assert all(row["novelty"] >= 0.08 for row in rows)
    ran = esper("blueprint", "mutate", "se", "--least-novelty", "2")
    assert ran.code == 0
    assert "gives nothing new enough" in ran.err


def test_a_mutation_that_does_not_apply_to_a_named_parent_is_told(esper: Esper) -> None:
    ran = esper("blueprint", "mutate", "res_mlp", "--mutation", "kernel_size")
    assert ran.code == 0
    assert "res_mlp: kernel_size does not apply: it has no convolution" in ran.err


def test_mutations_are_chosen_by_name(esper: Esper) -> None:
    rows = esper("blueprint", "mutate", "dw_sep", "--mutation", "low_rank", "--mutation", "insert_norm", "--json").json
    assert {row["mutation"] for row in rows} == {"low_rank", "insert_norm"}
    ran = esper("blueprint", "mutate", "dw_sep", "--mutation", "grow")
    assert (ran.code, "one of widen, swap_activation" in ran.err) == (2, True)


def test_what_is_made_of_an_unvalidated_parent_is_not_submitted(validated: Esper) -> None:
    for name in ("dw_sep", "se"):
        ran = validated("blueprint", "mutate", name, "--submit")
        assert ran.code == 2
        assert f"{name} has no validated kernel" in ran.err
    assert types(validated).count("BlueprintSubmitted") == 2


def test_a_retired_or_unknown_parent_is_refused(validated: Esper) -> None:
    validated("blueprint", "retire", "res_mlp", "--reason", "slow")
    assert "is retired" in validated("blueprint", "mutate", "res_mlp").err
    assert validated("blueprint", "mutate", "nothing").code == 4
    ran = validated("blueprint", "mutate")
    assert (ran.code, "no blueprint of this log is validated yet" in ran.err) == (4, True)


@pytest.mark.usefixtures("small_home")
def test_an_unsound_blueprint_of_another_program_is_left_out_and_told(esper: Esper) -> None:
    ran = esper("blueprint", "mutate", "dw_sep", "--json")
    assert ran.json
    assert "res_mlp is left out" in ran.err
