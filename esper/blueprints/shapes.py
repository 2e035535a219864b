"""Symbolic inference: the shape, cost and reach of every node for one layout of the site.

Belongs here: walking the ordered graph with the operators' rules. Does not belong here: the rules themselves
(``ops``), numbers at a particular site (``verify``).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from esper.blueprints.expression import read_expression
from esper.blueprints.ir import INPUT, Blueprint, Node, Site, SymbolRange
from esper.blueprints.kinds import KINDS
from esper.blueprints.ops import CHANNELS_LAST, OPS, RANK_AXES, Call, Mixing, Shape, ShapeMismatch, Value
from esper.blueprints.polynomial import Polynomial
from esper.blueprints.rules import invalid, placed
from esper.errors import BlueprintInvalid

_AXES = {"NC": (), "NTC": ("site.t",), "NCL": ("site.l",), "NCHW": ("site.h", "site.w")}


class Flow(msgspec.Struct, frozen=True):
    """What is known of a blueprint at one layout before the site's sizes are known."""

    rank: str
    #: Symbol -> what it stands for.
    names: dict[str, Polynomial]
    #: Shape of each value by node id, ``x`` included.
    shapes: dict[str, Shape]
    #: Each node's use of its operator.
    calls: dict[str, Call]
    parameters: Polynomial
    #: Forward FLOPs of one sample.
    flops: Polynomial
    mixing: Mixing


def site_sizes(rank: str, site: Site) -> dict[str, Polynomial]:
    """Return what each ``site.*`` name stands for at a layout; names that make no sense there are left out."""
    sizes = {name: Polynomial.named(name) for name in ("site.channels", "site.in_channels", *_AXES[rank])}
    for name, number in (("site.channels", site.channels), ("site.in_channels", site.in_channels)):
        if number is not None:
            sizes[name] = Polynomial.constant(number)
    positions = Polynomial.constant(1)
    for axis in _AXES[rank]:
        positions *= sizes[axis]
    return sizes | {"site.positions": positions}


def symbol_names(blueprint: Blueprint, rank: str) -> dict[str, Polynomial]:
    """Return what each symbol of a blueprint stands for at a layout.

    Raises:
        BlueprintInvalid: A symbol is bound to a size that the layout does not have.
    """
    sizes = site_sizes(rank, blueprint.site)
    if KINDS[blueprint.kind].reads == "output":
        del sizes["site.in_channels"]
    names: dict[str, Polynomial] = {}
    for name, symbol in blueprint.symbols.items():
        if isinstance(symbol, SymbolRange):
            names[name] = Polynomial.named(name)
        elif symbol in sizes:
            names[name] = sizes[symbol]
        else:
            raise invalid("symbol", f"symbols.{name}", f"a {blueprint.kind} {rank} blueprint has no {symbol}")
    return names


def infer(blueprint: Blueprint, nodes: list[Node], rank: str) -> Flow:
    """Return shapes, costs and reach of an ordered graph at one layout.

    Raises:
        BlueprintInvalid: Shapes do not fit, or the output does not have the site's shape.
    """
    names = symbol_names(blueprint, rank)
    sizes = site_sizes(rank, blueprint.site)
    positions = tuple(sizes[axis] for axis in _AXES[rank])
    site = Shape(rank, sizes["site.channels"], positions)
    entry = "site.in_channels" if KINDS[blueprint.kind].reads == "input" else "site.channels"
    shapes = {INPUT: Shape(rank, sizes[entry], positions)}
    calls: dict[str, Call] = {}
    parameters = flops = Polynomial.constant(0)
    mixing = Mixing.NONE
    places = {node.id: place for place, node in enumerate(blueprint.nodes)}
    for node in nodes:
        path = f"nodes[{places[node.id]}]"
        op = OPS[node.op]
        call = Call([shapes[source] for source in node.inputs], _resolved(node, names, path), site)
        for shape in call.inputs:
            if shape.rank not in op.ranks:
                ranks = ", ".join(rank for rank in RANK_AXES if rank in op.ranks)
                raise invalid("shape", path, f"{node.op} takes {ranks}, its input is {shape}")
        try:
            shapes[node.id] = op.shape(call)
            parameters += op.parameters(call)
            flops += op.flops(call)
        except ShapeMismatch as error:
            raise invalid("shape", path, f"{node.op}: {error}") from error
        except BlueprintInvalid as error:
            raise placed(error, path) from error
        calls[node.id] = call
        mixing = max(mixing, op.mixing(call))
    if shapes[blueprint.out] != site:
        raise invalid("output_shape", "out", f"out is {shapes[blueprint.out]}, the site's output is {site}")
    return Flow(rank, names, shapes, calls, parameters, flops, mixing)


def _resolved(node: Node, names: Mapping[str, Polynomial], path: str) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for key, value in node.attr.items():
        if isinstance(value, str):
            found[key] = read_expression(value, names, f"{path}.attr.{key}")
        else:
            found[key] = value
    return found


def tensor_shape(shape: Shape, values: Mapping[str, int]) -> tuple[int, ...]:
    """Return a value's sizes without the batch, in memory order."""
    channels = shape.channels.evaluate(values)
    positions = tuple(size.evaluate(values) for size in shape.positions)
    return (*positions, channels) if shape.rank in CHANNELS_LAST else (channels, *positions)


def spelled(polynomial: Polynomial, names: Mapping[str, Polynomial]) -> str:
    """Return a polynomial's text with the sizes of the site replaced by the blueprint's own symbols for them."""
    text = str(polynomial)
    for name, meaning in sorted(names.items()):
        if str(meaning).startswith("site.") and meaning.names() == {str(meaning)}:
            text = text.replace(str(meaning), name)
    return text
