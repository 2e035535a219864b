"""Novelty: graph edit distance by hand, against an independent implementation, and its bounds."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Hashable
from importlib.resources import files
from typing import Any

import networkx
import pytest

from esper.blueprints.ir import Blueprint, parse
from esper.blueprints.karn.edit_distance import Labelled, edit_distance, lower_bound
from esper.blueprints.karn.mutate import Mutant, mutants
from esper.blueprints.karn.novelty import Novelty, distance, graph_of, novelty
from esper.blueprints.library import load_library

LIBRARY = load_library()


def graph(labels: str, *edges: tuple[int, int], places: dict[tuple[int, int], Hashable] | None = None) -> Labelled:
    """Return a graph: a letter is a node's kind, a digit behind it its detail."""
    nodes = tuple((word[0], word[1:]) for word in labels.split())
    return Labelled(nodes, dict.fromkeys(edges, (0,)) | (places or {}))


def drawn(seed: int, most: int = 6) -> Labelled:
    """Return a random small graph with few labels, so that many assignments are nearly as good."""
    draw = random.Random(seed)
    nodes = tuple((draw.choice("ab"), draw.choice(["", "1"])) for _ in range(draw.randint(1, most)))
    pairs = [(i, j) for j in range(len(nodes)) for i in range(j)]
    chosen = draw.sample(pairs, draw.randint(0, min(len(pairs), most + 1)))
    return Labelled(nodes, {pair: (draw.randint(0, 1),) for pair in chosen})


def by_networkx(first: Labelled, second: Labelled) -> float:
    def made(labelled: Labelled) -> Any:
        found = networkx.DiGraph()
        for place, (kind, detail) in enumerate(labelled.nodes):
            found.add_node(place, kind=kind, detail=detail)
        for (source, target), label in labelled.edges.items():
            found.add_edge(source, target, label=label)
        return found

    def node_cost(one: dict[str, Any], other: dict[str, Any]) -> float:
        return 0.0 if one == other else 0.5 if one["kind"] == other["kind"] else 1.0

    def edge_cost(one: dict[str, Any], other: dict[str, Any]) -> float:
        return 0.0 if one == other else 0.5

    return float(
        networkx.graph_edit_distance(made(first), made(second), node_subst_cost=node_cost, edge_subst_cost=edge_cost)
    )


@pytest.mark.parametrize(
    ("first", "second", "cost"),
    [
        (graph("a"), graph("a"), 0.0),
        (graph("a"), graph("b"), 1.0),
        (graph("a1"), graph("a2"), 0.5),
        (graph("a b", (0, 1)), graph("a b"), 1.0),
        (graph("a b", (0, 1)), graph("b a", (1, 0)), 0.0),
        # One node put into a chain: its end is replaced, and put behind it with an edge of its own.
        (graph("a b", (0, 1)), graph("a c b", (0, 1), (1, 2)), 3.0),
        (graph("a b", (0, 1)), graph("a b c", (0, 1), (1, 2)), 2.0),
        # The arguments of a node change places.
        (
            graph("a b c", places={(0, 2): (0,), (1, 2): (1,)}),
            graph("a b c", places={(0, 2): (1,), (1, 2): (0,)}),
            1.0,
        ),
        (graph("a"), graph("a a a", (0, 1), (1, 2)), 4.0),
    ],
)
def test_distances_counted_by_hand(first: Labelled, second: Labelled, cost: float) -> None:
    assert edit_distance(first, second).cost == edit_distance(second, first).cost == cost


def test_the_distance_is_the_one_of_another_implementation() -> None:
    for seed in range(60):
        first, second = drawn(2 * seed, 5), drawn(2 * seed + 1, 5)
        found = edit_distance(first, second)
        assert found.exact
        assert found.cost == by_networkx(first, second), (first, second)


def test_the_distance_is_a_metric_on_random_graphs() -> None:
    graphs = [drawn(seed) for seed in range(14)]
    between = [[edit_distance(one, other).cost for other in graphs] for one in graphs]
    for i, one in enumerate(graphs):
        assert between[i][i] == 0
        for j, other in enumerate(graphs):
            assert between[i][j] == between[j][i]
            assert lower_bound(one, other) <= between[i][j]
            assert all(between[i][j] <= between[i][k] + between[k][j] for k in range(len(graphs)))


def test_a_search_that_is_cut_short_gives_an_upper_bound_and_says_so() -> None:
    pairs = [(drawn(2 * seed + 100, 9), drawn(2 * seed + 101, 9)) for seed in range(20)]
    found = [(edit_distance(*pair), edit_distance(*pair, max_tries=8)) for pair in pairs]
    assert all(cut.cost >= least.cost for least, cut in found)
    assert all(cut.cost == least.cost for least, cut in found if cut.exact)
    assert any(cut.cost > least.cost for least, cut in found)


def test_what_costs_the_limit_is_not_looked_for() -> None:
    first, second = graph("a b", (0, 1)), graph("a b c", (0, 1), (1, 2))
    assert edit_distance(first, second, limit=2.0).cost == 2.0
    assert edit_distance(first, second, limit=1.0).cost == 1.0


def tangled(seed: int) -> Labelled:
    """Return a graph as large as the rules allow, all of whose nodes look alike and are wired at random."""
    draw = random.Random(seed)
    wired = {(draw.randrange(place), place): (0,) for place in range(1, 65) for _ in range(2)}
    return Labelled((("x", ""), *[("add", "")] * 64), wired)


def test_the_largest_graphs_take_a_bounded_search() -> None:
    first, second = tangled(1), tangled(2)
    start = time.process_time()
    found = edit_distance(first, second)
    assert time.process_time() - start < 30
    assert not found.exact
    assert lower_bound(first, second) <= found.cost <= first.size + second.size
    assert found == edit_distance(second, first)


def test_a_blueprint_is_at_no_distance_from_itself_under_other_names() -> None:
    document = json.loads(files("esper.blueprints.library").joinpath("res_mlp.json").read_text())
    text = json.dumps(document | {"id": "other", "nodes": document["nodes"][::-1]})
    for old, new in (('"w1"', '"first"'), ('"C"', '"Chans"'), ('"r"', '"hid"')):
        text = text.replace(old, new)
    for old, new in (("2*C*r+r+C+2*C", "3*Chans+2*Chans*hid+hid"), ("4*P*C*r", "4*P*Chans*hid"), ("C//4", "Chans//4")):
        text = text.replace(old, new)
    renamed = parse(text)
    assert distance(LIBRARY["res_mlp"], renamed) == 0


def test_the_order_of_summands_is_no_novelty_but_that_of_a_difference_is() -> None:
    def with_inputs(op: str, *inputs: str) -> Blueprint:
        document = json.loads(files("esper.blueprints.library").joinpath("affine.json").read_text())
        nodes = [{"id": "s", "op": "tanh", "in": ["x"]}, {"id": "d", "op": op, "in": list(inputs)}]
        document["nodes"][0]["in"] = ["d"]
        return parse(json.dumps(document | {"nodes": [*nodes, *document["nodes"]]}))

    assert distance(with_inputs("add", "x", "s"), with_inputs("add", "s", "x")) == 0
    assert distance(with_inputs("sub", "x", "s"), with_inputs("sub", "s", "x")) > 0


def test_another_width_is_a_small_novelty_and_another_design_a_large_one() -> None:
    document = json.loads(files("esper.blueprints.library").joinpath("res_mlp.json").read_text())
    document["symbols"]["r"]["default"] = "C//2"
    wider = parse(json.dumps(document | {"id": "wider"}))
    assert 0 < distance(LIBRARY["res_mlp"], wider) < 0.1
    assert distance(LIBRARY["res_mlp"], LIBRARY["se"]) > 0.5


def test_novelty_is_the_least_over_what_is_known_and_names_the_nearest() -> None:
    known = {name: graph_of(one) for name, one in LIBRARY.items()}
    assert novelty(LIBRARY["se"], known) == Novelty(0.0, "se", True)
    parent = LIBRARY["dw_sep"]
    for found in mutants(parent):
        if isinstance(found, Mutant):
            told = novelty(found.blueprint, known)
            assert told.value == min(distance(found.blueprint, one) for one in LIBRARY.values())
            assert 0 < told.value <= distance(found.blueprint, parent)


def test_where_nothing_is_known_all_is_new() -> None:
    assert novelty(LIBRARY["se"], {}) == Novelty(1.0, None, True)
