"""``esper seed``, ``esper decision``, ``esper audit``: what the tables know, as people and programs read it."""

from __future__ import annotations

import pytest
from cli_support import Esper
from small_log import BLUEPRINT, KERNEL, NEWER, OLDER, SEED_ID

pytestmark = pytest.mark.usefixtures("small_home")


def test_seeds_are_listed_and_filtered(esper: Esper) -> None:
    (seed,) = esper("seed", "list", "--json").json
    assert (seed["run_id"], seed["seed_id"], seed["state"]) == (NEWER, SEED_ID, "germinated")
    assert esper("seed", "list", "--run", OLDER, "--json").json == []
    assert esper("seed", "list", "--state", "fossilized", "--json").json == []
    assert len(esper("seed", "list", "--state", "germinated", "--json").json) == 1
    assert esper("seed", "list", "--state", "asleep").code == 2


def test_seed_is_shown_with_every_move_and_what_it_was_worth(esper: Esper) -> None:
    seed = esper("seed", "show", SEED_ID, "--json").json
    assert [(move["source"], move["target"], move["decision"]) for move in seed["transitions"]] == [
        ("dormant", "germinated", 1)
    ]
    assert [(report["outcome"], report["gain"]) for report in seed["field_reports"]] == [("culled", None)]
    assert "dormant\tgerminated\tcommanded\tpolicy" in esper("seed", "show", SEED_ID).out


def test_unknown_seed_is_not_found(esper: Esper) -> None:
    ran = esper("seed", "show", "seed-9")
    assert ran.code == 4
    assert "seed-9" in ran.err


def test_decisions_are_listed_for_the_latest_run_unless_one_is_named(esper: Esper) -> None:
    (decision,) = esper("decision", "list", "--json").json
    assert (decision["run_id"], decision["decision"], decision["probability"]) == (NEWER, 1, 0.75)
    assert esper("decision", "list", "--run", OLDER, "--json").json == []
    assert f"run {OLDER} has no decisions" in esper("decision", "list", "--run", OLDER).err


def test_decision_is_shown_with_every_legal_action_and_its_probability(esper: Esper) -> None:
    decision = esper("decision", "show", "1", "--json").json
    assert decision["probabilities"] == [0.25, 0.75]
    assert [action["kind"] for action in decision["legal"]] == ["noop", "germinate"]
    assert decision["legal"][decision["chosen"]]["kernel_id"] == KERNEL
    assert decision["observation"]["validation_loss"] == 0.55
    lines = esper("decision", "show", "1").out.splitlines()
    options = lines[lines.index("") + 1 :]
    assert options[1].split("\t")[:3] == ["*", "0.75", "germinate"]
    assert options[2].split("\t")[:3] == ["", "0.25", "noop"]


def test_unknown_decision_is_not_found(esper: Esper) -> None:
    assert esper("decision", "show", "7").code == 4
    assert esper("decision", "show", "0").code == 2


def test_decision_before_it_was_made_has_no_answer_yet(esper: Esper) -> None:
    (made,) = esper("log", "read", "--type", "DecisionMade", "--json").json_lines
    decision = esper("decision", "show", "1", "--at", str(made["position"] - 1), "--json").json
    assert decision["policy_id"] is None
    assert decision["probabilities"] is None
    ran = esper("decision", "show", "1", "--at", str(made["position"] - 1))
    assert ran.code == 0
    assert "not answered yet" in ran.err


def test_trail_tells_the_run_in_the_order_of_the_log(esper: Esper) -> None:
    entries = esper("audit", "trail", "latest", "--json").json_lines
    positions = [entry["position"] for entry in entries]
    assert positions == sorted(positions)
    types = [entry["type"] for entry in entries]
    assert types[0] == "RunStarted"
    assert types[-1] == "RunFinished"
    assert types.index("DecisionMade") < types.index("SeedTransitioned") < types.index("FieldReportFiled")
    chosen = next(entry for entry in entries if entry["type"] == "DecisionMade")
    assert BLUEPRINT[:12] in chosen["sentence"]
    text = esper("audit", "trail", "latest").out.splitlines()
    assert [int(line.split()[0]) for line in text] == positions


def test_trail_ends_at_a_position(esper: Esper) -> None:
    entries = esper("audit", "trail", NEWER, "--at", "17", "--json").json_lines
    assert entries[-1]["position"] == 17
    assert entries[-1]["type"] == "DecisionRequested"
