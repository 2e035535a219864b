"""Graphs that become part of the host's own weights in the end, and so must have a certain form.

Belongs here: the form of ``lowrank_weight`` (one linear map) and of ``width`` (new hidden units between two linear
sites). Does not belong here: the folding itself (``kasmina``).
"""

from __future__ import annotations

from esper.blueprints.ir import INPUT, Blueprint, Node
from esper.blueprints.rules import invalid

_FOLDS = frozenset({"linear", "identity", "add", "sub", "scale_const", "concat", "split"})
#: Activations that take each unit by itself, so that new units do not touch the old ones.
UNIT_ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "sigmoid", "softplus")


def check_folds(blueprint: Blueprint) -> None:
    """Check that a ``lowrank_weight`` graph is linear and bias-free.

    Raises:
        BlueprintInvalid: A node does not fold into a weight.
    """
    for place, node in enumerate(blueprint.nodes):
        if node.op not in _FOLDS or node.attr.get("bias"):
            raise invalid("not_foldable", f"nodes[{place}]", f"{node.op} does not fold into a weight")


def check_width(blueprint: Blueprint, nodes: list[Node]) -> None:
    """Check that an ordered ``width`` graph is linear, activation, bias-free linear of zeros, in one line.

    Raises:
        BlueprintInvalid: The graph has another form.
    """
    wanted = (("linear",), UNIT_ACTIVATIONS, ("linear",))
    places = {node.id: place for place, node in enumerate(blueprint.nodes)}
    source = INPUT
    for node, known in zip(nodes, wanted, strict=False):
        if node.op not in known or node.inputs != (source,):
            raise invalid("width_form", f"nodes[{places[node.id]}]", f"{node.op} stands in place of {known[0]}")
        source = node.id
    if len(nodes) != len(wanted):
        raise invalid("width_form", "nodes", f"there are {len(nodes)} nodes, not {len(wanted)}")
    units, tail = nodes[0], nodes[-1]
    if units.init == "zeros":
        raise invalid("width_form", f"nodes[{places[units.id]}].init", "the zeros belong in the second layer")
    if tail.attr["bias"]:
        raise invalid("width_form", f"nodes[{places[tail.id]}].attr.bias", "the host's second layer has its own bias")


def width_activation(blueprint: Blueprint) -> str:
    """Return the activation of a ``width`` blueprint's units: the host's own has to be the same one to fold."""
    return next(node.op for node in blueprint.nodes if node.op in UNIT_ACTIVATIONS)
