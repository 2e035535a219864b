"""The static verifier: what a blueprint promises holds for every site it fits, proved without running it.

Belongs here: the order of the checks, symbols resolved at a site, claims and budgets. Does not belong here: the
checks of form (``ir``), graph (``graph``), shapes (``shapes``) and tail (``tail``), or anything measured
(``crucible``).
"""

from __future__ import annotations

import msgspec

from esper.blueprints.expression import read_expression
from esper.blueprints.foldable import UNIT_ACTIVATIONS, check_folds, check_width, width_activation
from esper.blueprints.graph import order
from esper.blueprints.ir import DTYPES, MAX_SIZE, Blueprint, Node, SiteSignature, SymbolRange
from esper.blueprints.kinds import KINDS
from esper.blueprints.ops import OPS, RANK_AXES, Call, Mixing
from esper.blueprints.polynomial import Polynomial
from esper.blueprints.rules import invalid
from esper.blueprints.shapes import Flow, infer, site_sizes, spelled, tensor_shape
from esper.blueprints.tail import Joint, check_tail
from esper.errors import BlueprintInvalid

_PAIRS = ("pair", *(f"pair_{activation}" for activation in UNIT_ACTIVATIONS))
SITE_KINDS = ("linear", "conv1d", "conv2d", "attention", "norm", "block", *_PAIRS)
MAX_PARAMETERS = 2**24
MAX_FLOPS = 2**40
MAX_ELEMENTS = 2**26


class Verified(msgspec.Struct, frozen=True):
    """A blueprint that keeps every static rule, and its numbers at a site if one was given."""

    blueprint: Blueprint
    #: Nodes with inputs first; the order depends on the graph alone.
    nodes: list[Node]
    #: What was inferred, by rank.
    flows: dict[str, Flow]
    #: The stream of a ``layer``, from x to out; empty for other kinds.
    stream: dict[str, Joint]
    #: Values of the symbols at the signature; empty without one.
    symbols: dict[str, int]
    #: Values of the site's sizes and of the symbols, as polynomials name them; empty without a signature.
    sizes: dict[str, int]
    parameters: int | None
    #: Forward FLOPs of one sample, 1 multiply-accumulate = 2.
    flops: int | None


def verify(blueprint: Blueprint, signature: SiteSignature | None = None) -> Verified:
    """Check every static rule.

    Args:
        blueprint: As ``ir.parse`` gives it.
        signature: Also resolve it at this site.

    Raises:
        BlueprintInvalid: A rule is broken; ``path`` and ``rule`` say where and which.
    """
    nodes = order(blueprint)
    if blueprint.kind == "width":
        check_width(blueprint, nodes)
    flows = {rank: infer(blueprint, nodes, rank) for rank in blueprint.site.rank}
    has_parameters = any(flow.parameters != Polynomial.constant(0) for flow in flows.values())
    stream = check_tail(blueprint, nodes, has_parameters=has_parameters)
    for flow in flows.values():
        _check_flow(blueprint, flow)
    _check_ranges(blueprint)
    if blueprint.kind == "lowrank_weight":
        check_folds(blueprint)
    found = Verified(blueprint, nodes, flows, stream, {}, {}, None, None)
    return found if signature is None else _at_site(found, signature)


def fits(blueprint: Blueprint, signature: SiteSignature) -> str | None:
    """Return why a verified blueprint cannot stand at a site, or None if it can."""
    try:
        _check_signature(blueprint, signature)
        verify(blueprint, signature)
    except BlueprintInvalid as error:
        return error.message
    return None


def _check_flow(blueprint: Blueprint, flow: Flow) -> None:
    if blueprint.site.causal and flow.mixing > Mixing.CAUSAL:
        raise invalid("causality", "site.causal", "an operator lets later positions reach earlier ones")
    for key, claimed, counted in (
        ("params", blueprint.claims.params, flow.parameters),
        ("flops", blueprint.claims.flops, flow.flops),
    ):
        path = f"claims.{key}"
        if read_expression(claimed, flow.names, path) != counted:
            truth = spelled(counted, flow.names)
            raise invalid(f"claims_{key}", path, f"at {flow.rank} the graph has {truth}, not {claimed}")
    parameters = flow.parameters.as_constant()
    if parameters is not None and parameters > MAX_PARAMETERS:
        raise invalid("budget", "", f"{parameters} parameters are too many, {MAX_PARAMETERS} are allowed")


def _check_ranges(blueprint: Blueprint) -> None:
    """Check that the bounds of every range name sizes of the site only."""
    for rank in blueprint.site.rank:
        for name, symbol in blueprint.symbols.items():
            if isinstance(symbol, SymbolRange):
                for key, bound in (("int[0]", symbol.low), ("int[1]", symbol.high), ("default", symbol.default)):
                    read_expression(bound, _site_names(blueprint, rank), f"symbols.{name}.{key}")


def _site_names(blueprint: Blueprint, rank: str) -> dict[str, Polynomial]:
    sizes = site_sizes(rank, blueprint.site)
    return {name: sizes[symbol] for name, symbol in blueprint.symbols.items() if isinstance(symbol, str)}


def _check_signature(blueprint: Blueprint, signature: SiteSignature) -> None:
    if signature.kind not in SITE_KINDS or signature.dtype not in DTYPES or signature.rank not in RANK_AXES:
        raise invalid("signature", "signature", "kind, rank or dtype is not known")
    sizes = (signature.channels, signature.in_channels or 1, *signature.positions)
    if len(signature.positions) != RANK_AXES[signature.rank] or not all(1 <= s <= MAX_SIZE for s in sizes):
        raise invalid("signature", "signature", f"sizes {sizes} are not those of a {signature.rank} site")
    if signature.rank not in blueprint.site.rank:
        ranks = ", ".join(blueprint.site.rank)
        raise invalid("signature", "signature.rank", f"{blueprint.id} is for {ranks}, not {signature.rank}")
    if signature.causal and not blueprint.site.causal:
        raise invalid("signature", "signature.causal", f"{blueprint.id} does not keep the order of time")
    _check_kind(blueprint, signature)


def _check_kind(blueprint: Blueprint, signature: SiteSignature) -> None:
    """Check that a site is of the sort that a kind is for, with the channels that the blueprint asks for."""
    if blueprint.kind == "lowrank_weight" and signature.kind != "linear":
        raise invalid("signature", "signature.kind", f"{blueprint.id} changes the weight of a linear site")
    if (blueprint.kind == "width") != (signature.kind in _PAIRS):
        raise invalid("signature", "signature.kind", "width blueprints, and no others, are for pairs of linear sites")
    if blueprint.kind == "width" and signature.kind not in ("pair", f"pair_{width_activation(blueprint)}"):
        raise invalid("signature", "signature.kind", f"{blueprint.id} has another activation than the pair")
    if KINDS[blueprint.kind].reads == "input" and signature.in_channels is None:
        raise invalid("signature", "signature.in_channels", f"{blueprint.id} reads the input of the site's module")
    for name in ("channels", "in_channels"):
        wanted, there = getattr(blueprint.site, name), getattr(signature, name)
        if wanted is not None and wanted != there:
            raise invalid("signature", f"signature.{name}", f"{blueprint.id} is for {wanted} channels, not {there}")


def _at_site(found: Verified, signature: SiteSignature) -> Verified:
    blueprint = found.blueprint
    _check_signature(blueprint, signature)
    flow = found.flows[signature.rank]
    sizes = _sizes(signature)
    symbols = {
        name: _symbol_value(name, symbol, blueprint, signature.rank, sizes)
        for name, symbol in sorted(blueprint.symbols.items())
    }
    ranges = {name for name, symbol in blueprint.symbols.items() if isinstance(symbol, SymbolRange)}
    sizes |= {name: value for name, value in symbols.items() if name in ranges}
    _check_sizes(found, flow, sizes)
    parameters, flops = flow.parameters.evaluate(sizes), flow.flops.evaluate(sizes)
    if parameters > MAX_PARAMETERS or flops > MAX_FLOPS:
        raise invalid("budget", "", f"{parameters} parameters and {flops} FLOPs are too many")
    return msgspec.structs.replace(found, symbols=symbols, sizes=sizes, parameters=parameters, flops=flops)


def _sizes(signature: SiteSignature) -> dict[str, int]:
    axes = {"NC": (), "NTC": ("t",), "NCL": ("l",), "NCHW": ("h", "w")}[signature.rank]
    sizes = {f"site.{axis}": size for axis, size in zip(axes, signature.positions, strict=True)}
    sizes["site.channels"] = signature.channels
    if signature.in_channels is not None:
        sizes["site.in_channels"] = signature.in_channels
    return sizes


def _symbol_value(name: str, symbol: str | SymbolRange, blueprint: Blueprint, rank: str, sizes: dict[str, int]) -> int:
    """Return a symbol's size: the default, rounded up to the bucket, within the bounds."""
    if isinstance(symbol, str):
        return site_sizes(rank, blueprint.site)[symbol].evaluate(sizes)
    path = f"symbols.{name}"
    names = _site_names(blueprint, rank)
    low, high, default = (
        read_expression(bound, names, path).evaluate(sizes) for bound in (symbol.low, symbol.high, symbol.default)
    )
    if not 1 <= low <= high <= MAX_SIZE:
        raise invalid("symbol_bounds", path, f"the bounds are {low} to {high} at this site")
    rounded = -(-default // symbol.bucket) * symbol.bucket
    return min(max(rounded, low), high)


def _check_sizes(found: Verified, flow: Flow, sizes: dict[str, int]) -> None:
    places = {node.id: place for place, node in enumerate(found.blueprint.nodes)}
    for node in found.nodes:
        path = f"nodes[{places[node.id]}]"
        shape = tensor_shape(flow.shapes[node.id], sizes)
        elements = flow.shapes[node.id].elements().evaluate(sizes)
        if min(shape, default=1) < 1:
            raise invalid("shape", path, f"{node.id!r} has sizes {shape} at this site")
        if max(shape, default=1) > MAX_SIZE or elements > MAX_ELEMENTS:
            raise invalid("budget", path, f"{node.id!r} has sizes {shape} at this site")
        _check_shares(node, flow.calls[node.id], sizes, path)


def _check_shares(node: Node, call: Call, sizes: dict[str, int], path: str) -> None:
    """Check that an operator that deals out its channels in equal shares can."""
    name = OPS[node.op].shares
    if name is None:
        return
    path = f"{path}.attr.{name}"
    groups = call.size(name).evaluate(sizes)
    channels = call.first.channels.evaluate(sizes)
    if groups < 1 or channels % groups:
        raise invalid("shape", path, f"{groups} {name} do not divide {channels} channels")
    if node.op == "groupnorm" and call.first.elements().evaluate(sizes) < 2 * groups:
        raise invalid("shape", path, "a group of one number has no spread to normalise")
