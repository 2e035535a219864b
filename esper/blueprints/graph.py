"""The graph's own rules: unique ids, known inputs, no cycle, one sink that every node reaches.

Belongs here: structure. Does not belong here: what flows along the edges (``shapes``, ``tail``).
"""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

from esper.blueprints.ir import INPUT, Blueprint, Node
from esper.blueprints.rules import invalid


def order(blueprint: Blueprint) -> list[Node]:
    """Return the nodes so that inputs come first.

    The order follows the inputs from ``out`` depth first, so it depends on the graph alone: not on names, not on
    the order of declaration.

    Raises:
        BlueprintInvalid: The graph is not one acyclic graph that ends in ``out``.
    """
    places = _places(blueprint)
    nodes = {node.id: node for node in blueprint.nodes}
    if blueprint.out not in nodes:
        raise invalid("unknown_input", "out", f"{blueprint.out!r} is no node")
    for node in blueprint.nodes:
        for place, source in enumerate(node.inputs):
            if source not in nodes and source != INPUT:
                path = f"nodes[{places[node.id]}].in[{place}]"
                raise invalid("unknown_input", path, f"{source[:40]!r} is no node")
    _check_cycles(blueprint, places)
    _check_sinks(blueprint, places)
    _check_parts(blueprint)
    return _depth_first(blueprint, nodes)


def _places(blueprint: Blueprint) -> dict[str, int]:
    places: dict[str, int] = {}
    for place, node in enumerate(blueprint.nodes):
        if node.id in places or node.id == INPUT:
            raise invalid("duplicate_id", f"nodes[{place}].id", f"{node.id!r} is taken")
        places[node.id] = place
    return places


def _check_cycles(blueprint: Blueprint, places: dict[str, int]) -> None:
    """Remove nodes whose inputs are all known, again and again; what is left stands on or behind a cycle."""
    known = {INPUT}
    left = list(blueprint.nodes)
    while left:
        ready = [node for node in left if all(source in known for source in node.inputs)]
        if not ready:
            names = ", ".join(node.id for node in left[:8])
            raise invalid("cycle", f"nodes[{places[left[0].id]}]", f"{names} wait for each other")
        known.update(node.id for node in ready)
        left = [node for node in left if node.id not in known]


def _check_sinks(blueprint: Blueprint, places: dict[str, int]) -> None:
    fed = Counter(source for node in blueprint.nodes for source in node.inputs)
    useful = {blueprint.out}
    todo = [node for node in blueprint.nodes if node.id == blueprint.out]
    nodes = {node.id: node for node in blueprint.nodes}
    while todo:
        for source in todo.pop().inputs:
            if source != INPUT and source not in useful:
                useful.add(source)
                todo.append(nodes[source])
    for node in blueprint.nodes:
        if node.id not in useful:
            rule = "unreachable" if fed[node.id] else "multiple_sinks"
            raise invalid(rule, f"nodes[{places[node.id]}]", f"out is not reached from {node.id!r}")


def _check_parts(blueprint: Blueprint) -> None:
    """Check that nothing is computed only to be cut off by splits: such weights would never get a gradient."""
    for place, node in enumerate(blueprint.nodes):
        source = node.inputs[0]
        readers = [reader for reader in blueprint.nodes if source in reader.inputs]
        if source == INPUT or any(reader.op != "split" for reader in readers):
            continue
        read = Fraction(0)
        for start, stop in sorted(_span(reader) for reader in readers):
            if start <= read:
                read = max(read, stop)
        if read < 1:
            raise invalid("unused_part", f"nodes[{place}]", f"no split reads {source!r} from {read} of its channels on")


def _span(split: Node) -> tuple[Fraction, Fraction]:
    parts, index = int(split.attr["parts"]), int(split.attr["index"])
    return Fraction(index, parts), Fraction(index + 1, parts)


def _depth_first(blueprint: Blueprint, nodes: dict[str, Node]) -> list[Node]:
    found: dict[str, Node] = {}
    stack = [(blueprint.out, False)]
    while stack:
        name, inputs_done = stack.pop()
        if name == INPUT or name in found:
            continue
        if inputs_done:
            found[name] = nodes[name]
            continue
        stack.append((name, True))
        stack.extend((source, False) for source in reversed(nodes[name].inputs))
    return list(found.values())
