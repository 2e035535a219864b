"""The tail rule: a branch adds exactly nothing at birth and can still learn.

Belongs here: where zeros stand in the graph and how large values can get. Does not belong here: shapes and costs.

Every path from the input to ``out`` passes exactly one zero-initialised node. Behind it only operators with f(0) = 0
and a slope there, so that the tail gets a gradient in the first step. Two zeros in series never would. A product
with one zero factor is zero as a whole and linear in it: its other factor is the slope.

Growth is bounded too, since zero times infinity is not zero: a value is at most ``2**gain * |x|**degree`` for typical
weights, and both are limited.
"""

from __future__ import annotations

import math

import msgspec

from esper.blueprints.ir import INPUT, Blueprint, Node
from esper.blueprints.ops import OPS, TAILS
from esper.blueprints.rules import invalid

MAX_POWER = 4.0
MAX_GAIN = 40.0
_NORM_GAIN = 8.0


class _Birth(msgspec.Struct, frozen=True):
    """What is known of a value before any training."""

    #: Fewest and most zeros on a path from the input.
    fewest: int
    most: int
    #: Bound on growth: at most 2**gain * |x|**power.
    power: float
    gain: float


def is_tail(node: Node) -> bool:
    """Tell whether a node's output is zero at birth because of its own initialisation."""
    return node.op == "zero" or (node.op in TAILS and node.init == "zeros")


def check_tail(blueprint: Blueprint, nodes: list[Node], *, has_parameters: bool) -> None:
    """Check the tail rule on an ordered graph.

    Raises:
        BlueprintInvalid: The branch is not exactly zero at birth, could never learn, or can overflow.
    """
    places = {node.id: place for place, node in enumerate(blueprint.nodes)}
    births = {INPUT: _Birth(0, 0, 1.0, 0.0)}
    for node in nodes:
        path = f"nodes[{places[node.id]}]"
        if is_tail(node) != (node.role == "tail"):
            raise invalid("role", f"{path}.role", f"{node.id!r} is {'' if is_tail(node) else 'not '}zero at birth")
        if node.op == "zero" and has_parameters:
            raise invalid("placebo", path, "the operator zero would cut parameters off for ever")
        births[node.id] = _birth(node, [births[source] for source in node.inputs], path)
    if births[blueprint.out].fewest == 0:
        raise invalid("missing_tail", "out", "a path from x to out passes no zero-initialised node")


def _birth(node: Node, inputs: list[_Birth], path: str) -> _Birth:
    if node.op == "sub" and node.inputs[0] == node.inputs[1]:
        raise invalid("cancelled", path, "a value is subtracted from itself")
    power, gain = _growth(node, inputs)
    if power > MAX_POWER or gain > MAX_GAIN:
        raise invalid("gain", path, f"{node.id!r} can reach 2**{gain:.0f} * |x|**{power:.0f}")
    most = max(birth.most for birth in inputs)
    fewest = min(birth.fewest for birth in inputs)
    if is_tail(node):
        if most:
            raise invalid("zeros_in_series", path, f"{node.id!r} is zero at birth and so is one of its inputs")
        return _Birth(1, 1, 0.0, 0.0)
    if not most:
        return _Birth(0, 0, power, gain)
    if not OPS[node.op].slope:
        raise invalid("after_tail", path, f"{node.op} stands after a zero tail")
    if node.op == "mul":
        if all(birth.most for birth in inputs):
            raise invalid("zeros_in_series", path, "both factors are zero at birth")
        fewest = max(birth.fewest for birth in inputs)
    return _Birth(fewest, most, power, gain)


def _growth(node: Node, inputs: list[_Birth]) -> tuple[float, float]:
    op = OPS[node.op]
    if op.bounds:
        return 0.0, 0.0 if node.op in {"tanh", "sigmoid", "softmax"} else _NORM_GAIN
    if node.op == "mul":
        return sum(birth.power for birth in inputs), sum(birth.gain for birth in inputs)
    power, gain = max(birth.power for birth in inputs), max(birth.gain for birth in inputs)
    if node.op == "scale_const":
        value = node.attr["value"]
        return power, gain + max(0.0, math.log2(abs(float(value))))
    return power, gain + (1.0 if op.inits or len(inputs) > 1 else 0.0)
