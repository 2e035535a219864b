"""The tail rule: a branch adds exactly nothing at birth and can still learn.

Belongs here: where zeros stand in the graph and how large values can get. Does not belong here: shapes and costs.

Every path from the input to ``out`` passes exactly one zero-initialised node. Behind it only operators with f(0) = 0
and a slope there, so that the tail gets a gradient in the first step. Two zeros in series never would. A product
with one zero factor is zero as a whole and linear in it: its other factor is the slope. So is attention in its values.

In a ``layer`` the residual stream is told from the branches: x is a stream value, and so is the sum of a stream value
and a value that is zero at birth. Branches read stream values, which are alive: no zero counts as standing behind
them, because each branch also reaches ``out`` along the stream. That takes a single stream, which ends in ``out``.

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


class Joint(msgspec.Struct, frozen=True):
    """Where a branch joins the stream of a layer."""

    #: The stream value it is added to.
    stream: str
    #: The branch's value, zero at birth.
    branch: str


def is_tail(node: Node) -> bool:
    """Tell whether a node's output is zero at birth because of its own initialisation."""
    return node.op == "zero" or (node.op in TAILS and node.init == "zeros")


def check_tail(blueprint: Blueprint, nodes: list[Node], *, has_parameters: bool) -> dict[str, Joint]:
    """Check the tail rule on an ordered graph.

    Returns:
        The stream of a ``layer``, by node id, from x to ``out``; empty for other kinds.

    Raises:
        BlueprintInvalid: The branch is not exactly zero at birth, could never learn, or can overflow.
    """
    places = {node.id: place for place, node in enumerate(blueprint.nodes)}
    births = {INPUT: _Birth(0, 0, 1.0, 0.0)}
    joints: dict[str, Joint] = {}
    for node in nodes:
        path = f"nodes[{places[node.id]}]"
        if is_tail(node) != (node.role == "tail"):
            raise invalid("role", f"{path}.role", f"{node.id!r} is {'' if is_tail(node) else 'not '}zero at birth")
        if node.op == "zero" and has_parameters:
            raise invalid("placebo", path, "the operator zero would cut parameters off for ever")
        births[node.id] = _birth(node, [births[source] for source in node.inputs], path)
        joint = _joint(node, births, joints) if blueprint.kind == "layer" else None
        if joint is not None:
            joints[node.id] = joint
            births[node.id] = msgspec.structs.replace(births[node.id], fewest=0, most=0)
    if blueprint.kind == "layer":
        return _line(blueprint.out, joints, places)
    out = births[blueprint.out]
    if out.fewest == 0:
        raise invalid("missing_tail", "out", "a path from x to out passes no zero-initialised node")
    if blueprint.kind == "gate":
        _check_growth(out.power + 1.0, out.gain, "x times the gate", "out")
    return {}


def _joint(node: Node, births: dict[str, _Birth], joints: dict[str, Joint]) -> Joint | None:
    """Return where a branch joins the stream if that is what a node is."""
    if node.op != "add":
        return None
    for stream, branch in (node.inputs, node.inputs[::-1]):
        if (stream == INPUT or stream in joints) and births[branch].fewest:
            return Joint(stream, branch)
    return None


def _line(out: str, joints: dict[str, Joint], places: dict[str, int]) -> dict[str, Joint]:
    """Return the stream from x to out; refuse a second one beside it."""
    if out not in joints:
        raise invalid("stream", "out", "out is not x plus branches that are zero at birth")
    line: list[str] = []
    value = out
    while value != INPUT:
        line.append(value)
        value = joints[value].stream
    for name in joints:
        if name not in line:
            raise invalid("stream", f"nodes[{places[name]}]", f"{name!r} is a sum beside the one line from x to out")
    return {name: joints[name] for name in reversed(line)}


def _birth(node: Node, inputs: list[_Birth], path: str) -> _Birth:
    if node.op == "sub" and node.inputs[0] == node.inputs[1]:
        raise invalid("cancelled", path, "a value is subtracted from itself")
    power, gain = _growth(node, inputs, path)
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
    if node.op == "sdpa":
        if any(birth.most for birth in inputs[:2]):
            raise invalid("after_tail", path, "a query or key stands after a zero tail; only values may")
        fewest = inputs[2].fewest
    return _Birth(fewest, most, power, gain)


def _growth(node: Node, inputs: list[_Birth], path: str) -> tuple[float, float]:
    """Return a bound on a node's values from those of its inputs."""
    op = OPS[node.op]
    power, gain = max(birth.power for birth in inputs), max(birth.gain for birth in inputs)
    if op.bounds:
        power, gain = 0.0, 0.0 if node.op in {"tanh", "sigmoid", "softmax"} else _NORM_GAIN
    elif node.op == "mul":
        power, gain = sum(birth.power for birth in inputs), sum(birth.gain for birth in inputs)
    elif node.op == "sdpa":
        # Queries meet keys in a product before softmax bounds it; the result is a mean of values.
        query, key, value = inputs
        _check_growth(query.power + key.power, query.gain + key.gain, f"the scores of {node.id!r}", path)
        power, gain = value.power, value.gain
    elif node.op == "scale_const":
        gain += max(0.0, math.log2(abs(float(node.attr["value"]))))
    elif op.inits or len(inputs) > 1:
        gain += 1.0
    _check_growth(power, gain, repr(node.id), path)
    return power, gain


def _check_growth(power: float, gain: float, what: str, path: str) -> None:
    if power > MAX_POWER or gain > MAX_GAIN:
        raise invalid("gain", path, f"{what} can reach 2**{gain:.0f} * |x|**{power:.0f}")
