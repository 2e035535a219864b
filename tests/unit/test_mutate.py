"""Karn's mutations: each changes one thing, keeps every rule, and says why where it does not apply."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from esper.blueprints.canonical import blueprint_id, canonical_json
from esper.blueprints.ir import Blueprint, SymbolRange, parse
from esper.blueprints.karn.mutate import Mutant, Refusal, mutants, mutate, targets
from esper.blueprints.karn.mutation_view import usual_signatures
from esper.blueprints.karn.mutations import MUTATIONS
from esper.blueprints.kernels.build import build
from esper.blueprints.kernels.structure import check_structure
from esper.blueprints.library import load_library
from esper.blueprints.tail import is_tail
from esper.blueprints.verify import verify
from esper.errors import BlueprintInvalid, NotFound

LIBRARY = load_library()
NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


@cache
def made(depth: int, seed: int = 0) -> tuple[tuple[Blueprint, Mutant], ...]:
    """Return every mutant of the library at a depth, with its parent."""
    parents = LIBRARY.values() if depth == 1 else [mutant.blueprint for _, mutant in made(depth - 1)]
    return tuple(
        (parent, found) for parent in parents for found in mutants(parent, seed=seed) if isinstance(found, Mutant)
    )


def mutant(name: str, mutation: str, target: str, seed: int = 0) -> Mutant:
    found = mutate(LIBRARY[name], mutation, target, seed=seed)
    assert isinstance(found, Mutant), found
    return found


def refusal(parent: Blueprint, mutation: str, target: str) -> str:
    found = mutate(parent, mutation, target)
    assert isinstance(found, Refusal), found
    assert (found.mutation, found.target) == (mutation, target)
    return found.reason


def edited(name: str, **changes: Any) -> Blueprint:
    """Return a library blueprint with keys of its document changed."""
    return verify(parse(json.dumps(json.loads(canonical_json(LIBRARY[name])) | changes))).blueprint


@pytest.mark.parametrize("depth", [1, 2])
def test_every_mutation_of_the_library_is_sound_and_something_else_than_its_parent(depth: int) -> None:
    assert len(made(depth)) >= 50
    for parent, found in made(depth):
        verify(parse(canonical_json(found.blueprint)))
        assert found.parent == blueprint_id(parent)
        unnamed = canonical_json(found.blueprint).replace(f'"{found.blueprint.id}"', f'"{parent.id}"')
        assert unnamed != canonical_json(parent), found.change


def test_names_of_mutants_are_their_own_and_never_a_shipped_one() -> None:
    found = [mutant.blueprint for _, mutant in (*made(1), *made(2))]
    assert all(NAME.fullmatch(one.id) for one in found)
    assert not {one.id for one in found} & set(LIBRARY)
    assert len({one.id for one in found}) == len({blueprint_id(one) for one in found})


def test_a_shipped_name_is_evaded(monkeypatch: pytest.MonkeyPatch) -> None:
    first = mutant("res_mlp", "widen", "r").blueprint.id
    monkeypatch.setattr("esper.blueprints.karn.mutate._shipped_names", lambda: frozenset({first}))
    again = mutant("res_mlp", "widen", "r").blueprint.id
    assert again != first
    assert NAME.fullmatch(again)


def test_every_mutation_is_made_of_some_blueprint() -> None:
    assert {found.mutation for _, found in made(1)} == set(MUTATIONS)


def test_a_mutant_follows_from_parent_mutation_target_and_seed() -> None:
    seen = set()
    for seed in range(12):
        first, second = (mutant("res_mlp", "swap_activation", "n2", seed) for _ in range(2))
        assert first == second
        seen.add(first.change)
    assert seen == {"n2: gelu -> relu", "n2: gelu -> silu", "n2: gelu -> tanh"}


def test_node_names_of_an_author_make_no_difference() -> None:
    shipped = LIBRARY["res_mlp"]
    assert list(mutants(parse(canonical_json(shipped)))) == list(mutants(shipped))


def structural(depth: int, step: int) -> Iterator[Any]:
    for _, found in made(depth)[::step]:
        yield pytest.param(found.blueprint, id=f"{found.blueprint.id}, {found.change}")


@pytest.mark.parametrize("blueprint", [*structural(1, 2), *structural(2, 25)])
def test_mutants_pass_the_structural_crucible(blueprint: Blueprint) -> None:
    for signature in usual_signatures(blueprint):
        if signature.channels > 16:
            continue
        module = build(blueprint, signature, seed=1)
        measured = check_structure(module, blueprint, signature, seed=2)
        assert all(measured.checks.values()), measured
        assert measured.checks["birth_identity"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_widen_doubles_a_symbol_or_adds_a_bucket() -> None:
    changes = {mutant("res_mlp", "widen", "r", seed).change for seed in range(12)}
    assert changes == {"r: C//4 -> C//2", "r: C//4 -> C//4+8"}


def test_widen_stops_at_the_symbols_bounds() -> None:
    symbols = {"C": "site.channels", "P": "site.positions", "r": {"int": [4, "C"], "bucket": 8, "default": "C"}}
    assert refusal(edited("res_mlp", symbols=symbols), "widen", "r") == "r is as wide as its bounds allow"


def test_widen_doubles_a_size_that_is_written_out() -> None:
    nodes = json.loads(canonical_json(LIBRARY["res_mlp"]))["nodes"]
    nodes[1]["attr"]["out"] = "2*C"
    claims = {"preserves": "exact@alpha0,exact@birth", "params": "4*C*C+5*C", "flops": "8*P*C*C"}
    parent = edited("res_mlp", nodes=nodes, claims=claims)
    assert targets(parent, "widen") == ["r", "2*C"]
    found = mutate(parent, "widen", "2*C")
    assert isinstance(found, Mutant)
    assert found.blueprint.nodes[1].attr["out"] == "4*C"
    assert found.blueprint.claims.params == "7*C+8*C*C"


def test_a_norm_stands_before_the_tail_and_fits_its_layout() -> None:
    assert {mutant("res_mlp", "insert_norm", "n3", seed).change for seed in range(8)} == {
        "layernorm before n3",
        "rmsnorm before n3",
    }
    for name, tail in (("dw_sep", "n2"), ("dw_sep_1d", "n2")):
        found = mutant(name, "insert_norm", tail).blueprint
        (place,) = [place for place, node in enumerate(found.nodes) if is_tail(node)]
        assert found.nodes[place].inputs == (found.nodes[place - 1].id,)
        assert found.nodes[place - 1].op == "groupnorm"


def test_a_norm_that_sees_later_positions_is_not_put_into_a_causal_blueprint() -> None:
    reason = refusal(LIBRARY["pw_bottleneck_1d"], "insert_norm", "n2")
    assert reason == "no norm takes NCL and keeps the order of time"


def test_kernel_sizes_keep_the_positions() -> None:
    found = mutant("dw_sep_1d", "kernel_size", "n0").blueprint
    assert (found.nodes[0].attr["k"], found.nodes[0].attr["pad"]) in {(7, 3), (3, 1)}


def test_a_causal_convolution_stays_causal_and_pads_by_itself() -> None:
    for seed in range(6):
        conv = mutant("token_conv", "kernel_size", "n1", seed).blueprint.nodes[1]
        assert conv.attr["causal"] is True
        assert conv.attr["pad"] == 0
        assert conv.attr["k"] in {3, 5, 6}
    pointwise = mutant("pw_bottleneck_1d", "kernel_size", "n0").blueprint.nodes[0]
    assert pointwise.attr["causal"] is True
    assert pointwise.attr["k"] in {2, 3}


def test_low_rank_goes_through_fewer_channels_and_keeps_one_zero() -> None:
    parent = LIBRARY["dw_sep"]
    found = mutant("dw_sep", "low_rank", "n2").blueprint
    assert [is_tail(node) for node in found.nodes].count(True) == 1
    assert is_tail(found.nodes[-1])
    assert isinstance(found.symbols["q"], SymbolRange)
    signature = next(one for one in usual_signatures(parent) if one.channels == 64)
    assert (verify(found, signature).parameters or 0) < (verify(parent, signature).parameters or 0)


@pytest.mark.parametrize(
    ("name", "mutation", "target", "reason"),
    [
        ("noop", "widen", None, "it chooses no size of its own"),
        ("noop", "insert_norm", None, "it has no tail with weights"),
        ("lora", "swap_activation", None, "it has no activation of the usual ones"),
        ("lora", "insert_norm", "n1", "a norm does not fold into the host's weight"),
        ("lora", "low_rank", "n0", "n0 is half of a low-rank pair already"),
        ("res_mlp", "kernel_size", None, "it has no convolution"),
        ("affine", "low_rank", None, "it has no layer that mixes channels and nothing else"),
    ],
)
def test_a_mutation_that_cannot_apply_says_so(name: str, mutation: str, target: str | None, reason: str) -> None:
    assert Refusal(mutation, target, reason) in list(mutants(LIBRARY[name], [mutation]))


@pytest.mark.parametrize(
    ("mutation", "target", "reason"),
    [
        ("widen", "q", "it chooses no size q"),
        ("swap_activation", "n1", "n1 is linear, none of gelu, relu, silu, tanh"),
        ("swap_activation", "n9", "res_mlp has no node n9; it has n0, n1, n2, n3"),
        ("insert_norm", "n1", "n1 is no tail with weights"),
        ("kernel_size", "n1", "n1 is linear, which has no kernel size"),
        ("low_rank", "n2", "n2 is gelu, which does more than mix channels"),
    ],
)
def test_a_target_that_is_not_meant_for_the_mutation_is_refused(mutation: str, target: str, reason: str) -> None:
    assert refusal(LIBRARY["res_mlp"], mutation, target) == reason


def test_relu_is_never_put_behind_a_zero_tail() -> None:
    after = {mutant("se", "swap_activation", "n4", seed).blueprint.nodes[4].op for seed in range(20)}
    assert after == {"gelu", "silu"}


def test_unknown_mutation_is_named_with_those_there_are() -> None:
    with pytest.raises(NotFound, match="no mutation 'grow'") as caught:
        mutate(LIBRARY["res_mlp"], "grow", "r")
    assert "low_rank" in caught.value.hint


def test_a_parent_that_breaks_a_rule_has_no_mutants() -> None:
    broken = parse(
        json.dumps(
            json.loads(canonical_json(LIBRARY["res_mlp"]))
            | {"claims": {"preserves": "exact@alpha0,exact@birth", "params": 1, "flops": 1}}
        )
    )
    with pytest.raises(BlueprintInvalid, match="claims_params"):
        list(mutants(broken))
