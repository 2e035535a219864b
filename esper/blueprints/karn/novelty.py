"""How new a blueprint is: its least graph edit distance to the blueprints that are known.

Belongs here: a blueprint as a labelled graph, and the least over many. Does not belong here: the distance between two
graphs (``edit_distance``) or which blueprints are known (the caller says).

Names are no novelty: neither those of nodes and symbols, nor the order in which nodes are written, nor which summand
stands first. Sizes are compared as formulas of the site's sizes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import msgspec

from esper.blueprints.expression import read_expression
from esper.blueprints.graph import order
from esper.blueprints.ir import INPUT, Blueprint, SymbolRange
from esper.blueprints.karn.edit_distance import MAX_TRIES, Labelled, edit_distance, lower_bound
from esper.blueprints.polynomial import Polynomial

#: Operators whose inputs can change places.
_COMMUTATIVE = frozenset({"add", "mul"})


class Novelty(msgspec.Struct, frozen=True):
    """How far a blueprint is from all that is known."""

    #: Edits to the nearest one, relative to the nodes and edges of the larger of the two; 0 for the same graph.
    value: float
    #: Name the nearest one is known by; None where nothing is known.
    nearest: str | None
    #: Whether it is the least distance; else the search was cut short and it is an upper bound.
    exact: bool


def graph_of(blueprint: Blueprint) -> Labelled:
    """Return a blueprint as a labelled graph, the input with its site as the first node.

    Raises:
        BlueprintInvalid: The graph has a cycle or a node that does not reach ``out``, or a size cannot be read.
    """
    sizes = _sizes(blueprint)
    nodes = order(blueprint)
    places = {INPUT: 0} | {node.id: place for place, node in enumerate(nodes, 1)}
    site = blueprint.site
    entry = (tuple(sorted(site.rank)), site.causal, site.channels, site.in_channels)
    labels: list[tuple[str, Hashable]] = [(blueprint.kind, entry)]
    edges: dict[tuple[int, int], Hashable] = {}
    for node in nodes:
        attr = tuple(
            (key, str(read_expression(value, sizes, key)) if isinstance(value, str) else value)
            for key, value in sorted(node.attr.items())
        )
        labels.append((node.op, (attr, node.init)))
        for source in set(node.inputs):
            read = (0 if node.op in _COMMUTATIVE else place for place, name in enumerate(node.inputs) if name == source)
            edges[places[source], places[node.id]] = tuple(read)
    return Labelled(tuple(labels), edges)


def distance(first: Blueprint, second: Blueprint, *, max_tries: int = MAX_TRIES) -> float:
    """Return the edit distance of two blueprints, relative to the nodes and edges of the larger.

    Raises:
        BlueprintInvalid: One of them is no sound graph.
    """
    one, other = graph_of(first), graph_of(second)
    return edit_distance(one, other, max_tries=max_tries).cost / max(one.size, other.size)


def novelty(blueprint: Blueprint, known: Mapping[str, Labelled], *, max_tries: int = MAX_TRIES) -> Novelty:
    """Return how far a blueprint is from the nearest one that is known.

    Args:
        blueprint: The new one.
        known: Graphs of the others as ``graph_of`` gives them, by name.
        max_tries: Bound of the search for each of them.

    Raises:
        BlueprintInvalid: The new one is no sound graph.
    """
    graph = graph_of(blueprint)
    # Nearest first by a bound that needs no search; what it rules out is not searched.
    bounds = sorted(
        (lower_bound(graph, other) / max(graph.size, other.size), name, other) for name, other in known.items()
    )
    best, nearest, exact = float("inf"), None, True
    for bound, name, other in bounds:
        if bound >= best:
            break
        larger = max(graph.size, other.size)
        found = edit_distance(graph, other, limit=best * larger, max_tries=max_tries)
        exact = exact and found.exact
        if found.cost < best * larger:
            best, nearest = found.cost / larger, name
    return Novelty(1.0 if nearest is None else best, nearest, exact)


def _sizes(blueprint: Blueprint) -> dict[str, Polynomial]:
    """Return what each symbol stands for, free of the names a blueprint gives."""
    site = {name: Polynomial.named(symbol) for name, symbol in blueprint.symbols.items() if isinstance(symbol, str)}
    return site | {
        name: Polynomial.named(_range(name, symbol, site))
        for name, symbol in blueprint.symbols.items()
        if isinstance(symbol, SymbolRange)
    }


def _range(name: str, symbol: SymbolRange, site: Mapping[str, Polynomial]) -> str:
    low, high, default = (
        read_expression(bound, site, f"symbols.{name}") for bound in (symbol.low, symbol.high, symbol.default)
    )
    return f"[{low}..{high}/{symbol.bucket}:{default}]"
