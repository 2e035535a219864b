"""The five mutations: small changes of a graph that keep what it is for.

Belongs here: where each mutation can apply, and the changed graph. Does not belong here: claims, names and the verdict
on the result (``mutate``).

A mutation is asked for its targets (nodes, symbols or sizes of the canonical form) and for its edits of one target. An
edit may still break a rule; the verifier tells.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import msgspec

from esper.blueprints.claims import free_symbol
from esper.blueprints.expression import compact
from esper.blueprints.ir import INPUT, Node, SymbolRange
from esper.blueprints.karn.mutation_view import Edit, Inapplicable, View, usual_sites
from esper.blueprints.ops import OPS, RANK_AXES
from esper.blueprints.tail import is_tail

ACTIVATIONS = ("gelu", "relu", "silu", "tanh")
_NORMS = ("layernorm", "rmsnorm", "groupnorm")
#: Layers that mix channels and nothing else where their kernel is 1.
_DENSE = frozenset({"linear", "conv1d", "conv2d"})
_SHARE = re.compile(r"([A-Za-z][A-Za-z0-9_]*)//([0-9]+)")
_TIMES = re.compile(r"([0-9]+)\*([A-Za-z][A-Za-z0-9_]*)")


class Mutation(msgspec.Struct, frozen=True):
    """One kind of mutation."""

    name: str
    #: Stands for it in names of results.
    short: str
    #: What it is, in one line.
    summary: str
    #: Where it could apply.
    targets: Callable[[View], list[str]]
    #: The changed graphs for one target; raises Inapplicable.
    edits: Callable[[View, str], list[Edit]]
    #: What is missing where there is no target.
    nowhere: str


def _sizes(view: View) -> list[str]:
    """Return the sizes a blueprint chooses: its bounded symbols, and what hidden layers put out."""
    ranges = {name for name, symbol in view.blueprint.symbols.items() if isinstance(symbol, SymbolRange)}
    return sorted(ranges) + sorted({_out(node) for node in _hidden(view)} - ranges)


def _hidden(view: View) -> list[Node]:
    return [node for node in view.nodes.values() if "out" in node.attr and not is_tail(node)]


def _out(node: Node) -> str:
    return compact(str(node.attr["out"]))


def _widen(view: View, target: str) -> list[Edit]:
    symbol = view.blueprint.symbols.get(target)
    if isinstance(symbol, SymbolRange):
        return _widen_symbol(view, target, symbol)
    meant = [node for node in _hidden(view) if _out(node) == compact(target)]
    if not meant:
        raise Inapplicable(f"it chooses no size {target}")
    wider = _doubled(target)
    changed = [msgspec.structs.replace(node, attr=node.attr | {"out": wider}) for node in meant]
    return [view.with_nodes(*changed, change=f"hidden size: {target} -> {wider}")]


def _widen_symbol(view: View, name: str, symbol: SymbolRange) -> list[Edit]:
    default = compact(str(symbol.default))
    steps = [_doubled(default)]
    if symbol.bucket > 1:
        steps.append(f"{default}+{symbol.bucket}")
    found = []
    for wider in steps:
        symbols = dict(view.blueprint.symbols) | {name: msgspec.structs.replace(symbol, default=wider)}
        edited = dict(usual_sites(msgspec.structs.replace(view.blueprint, symbols=symbols)))
        if any(edited[at].symbols[name] > view.sites[at].symbols[name] for at in edited.keys() & view.sites.keys()):
            found.append(Edit(view.blueprint.nodes, symbols, f"{name}: {default} -> {wider}"))
    if not found:
        raise Inapplicable(f"{name} is as wide as its bounds allow")
    return found


def _doubled(size: str) -> int | str:
    """Return twice a size, in its simplest spelling: ``C//4`` gives ``C//2``."""
    if size.isdigit():
        return int(size) * 2
    if share := _SHARE.fullmatch(size):
        half, odd = divmod(int(share[2]), 2)
        if not odd and half:
            return share[1] if half == 1 else f"{share[1]}//{half}"
    if times := _TIMES.fullmatch(size):
        return f"{int(times[1]) * 2}*{times[2]}"
    return f"2*{size}" if size.isidentifier() else f"2*({size})"


def _activations(view: View) -> list[str]:
    return [name for name, node in view.nodes.items() if node.op in ACTIVATIONS]


def _swap(view: View, target: str) -> list[Edit]:
    node = view.node(target)
    if node.op not in ACTIVATIONS:
        raise Inapplicable(f"{target} is {node.op}, none of {', '.join(ACTIVATIONS)}")
    others = [op for op in ACTIVATIONS if op != node.op]
    return [
        view.with_nodes(msgspec.structs.replace(node, op=op), change=f"{target}: {node.op} -> {op}") for op in others
    ]


def _tails(view: View) -> list[str]:
    return [name for name, node in view.nodes.items() if is_tail(node) and node.op != "zero"]


def _norm(view: View, target: str) -> list[Edit]:
    node = view.node(target)
    if target not in _tails(view):
        raise Inapplicable(f"{target} is no tail with weights")
    if view.blueprint.kind == "lowrank_weight":
        raise Inapplicable("a norm does not fold into the host's weight")
    source = node.inputs[0]
    if source != INPUT and view.nodes[source].op in _NORMS:
        raise Inapplicable(f"{target} follows a norm already")
    ranks = view.ranks(source)
    fitting = [op for op in _NORMS if ranks <= OPS[op].ranks]
    if view.blueprint.site.causal and any(RANK_AXES[rank] for rank in ranks):
        fitting = [op for op in fitting if op != "groupnorm"]
    if not fitting:
        kept = " and keeps the order of time" if view.blueprint.site.causal else ""
        raise Inapplicable(f"no norm takes {', '.join(sorted(ranks))}{kept}")
    name = view.free_node()
    return [
        view.with_nodes(
            msgspec.structs.replace(node, inputs=(name,)),
            added=(Node(name, op, (source,), _defaults(op), None, None),),
            change=f"{op} before {target}",
        )
        for op in fitting
    ]


def _defaults(op: str) -> dict[str, int | float | bool | str]:
    return {key: attr.default for key, attr in OPS[op].attrs.items() if attr.default is not None}


def _kernels(view: View) -> list[str]:
    return [name for name, node in view.nodes.items() if "k" in node.attr]


def _resize(view: View, target: str) -> list[Edit]:
    node = view.node(target)
    if "k" not in node.attr:
        raise Inapplicable(f"{target} is {node.op}, which has no kernel size")
    changes = list(_kernel_changes(view, node))
    if not changes:
        raise Inapplicable(
            f"no other kernel size of {target} keeps its positions"
            + (" and the order of time" if view.blueprint.site.causal else "")
        )
    k = node.attr["k"]
    return [
        view.with_nodes(
            msgspec.structs.replace(node, attr=node.attr | change), change=f"{target}: kernel {k} -> {change['k']}"
        )
        for change in changes
    ]


def _kernel_changes(view: View, node: Node) -> Iterator[dict[str, int]]:
    """Yield the attributes of other kernel sizes that give the same positions."""
    bounds = OPS[node.op].attrs["k"]
    k, pad, dilation = (int(node.attr[key]) for key in ("k", "pad", "dilation"))
    pointwise = k == 1 and not pad
    if node.attr.get("causal") or (pointwise and view.blueprint.site.causal):
        if "causal" not in node.attr:
            return
        for other in (k + 1, k - 1, k + 2):
            if bounds.low <= other <= bounds.high:
                yield {"k": other, "causal": True}
        return
    for other in (k + 2, k - 2):
        wider = pad + dilation * (other - k) // 2
        if bounds.low <= other <= bounds.high and 0 <= wider <= OPS[node.op].attrs["pad"].high:
            yield {"k": other, "pad": wider}


def _dense(view: View) -> list[str]:
    return [name for name, node in view.nodes.items() if _is_dense(node)]


def _is_dense(node: Node) -> bool:
    return node.op in _DENSE and node.attr.get("k", 1) == 1 and not node.attr.get("pad")


def _split(view: View, target: str) -> list[Edit]:
    node = view.node(target)
    if not _is_dense(node):
        raise Inapplicable(f"{target} is {node.op}, which does more than mix channels")
    source = view.nodes.get(node.inputs[0])
    if (source is not None and _is_dense(source)) or any(_is_dense(reader) for reader in view.readers(target)):
        raise Inapplicable(f"{target} is half of a low-rank pair already")
    width = _smaller(view, node)
    symbols = dict(view.blueprint.symbols)
    whole = next((name for name, size in symbols.items() if size == "site.channels"), None)
    if whole is None:
        whole = free_symbol(symbols, "C")
        symbols[whole] = "site.channels"
    rank = free_symbol(symbols, "q")
    name = view.free_node()
    first = Node(name, node.op, node.inputs, node.attr | {"out": rank, "bias": False}, "kaiming", None)
    changed = view.with_nodes(msgspec.structs.replace(node, inputs=(name,)), added=(first,), change="")
    return [
        Edit(
            changed.nodes,
            symbols | {rank: SymbolRange(1, whole, 4, f"{width}//{share}")},
            f"{target}: {node.op} through {rank} = {width}//{share}",
        )
        for share in (2, 4)
    ]


def _smaller(view: View, node: Node) -> str:
    """Return the smaller of a layer's sizes in and out, written in sizes of the site."""
    if not view.sites:
        raise Inapplicable("it fits no site of usual size")
    found = next(iter(view.sites.values()))
    shapes = found.flows[view.blueprint.site.rank[0]].shapes
    values = (node.inputs[0], node.id)
    least = min(values, key=lambda value: shapes[value].channels.evaluate(found.sizes))
    return _in_site_sizes(view, view.channels(least))


def _in_site_sizes(view: View, text: str) -> str:
    for name, symbol in view.blueprint.symbols.items():
        if isinstance(symbol, SymbolRange):
            text = re.sub(rf"\b{name}\b", f"({compact(str(symbol.default))})", text)
    return text if text.isidentifier() or re.fullmatch(r"\(.*\)", text) else f"({text})"


MUTATIONS: dict[str, Mutation] = {
    mutation.name: mutation
    for mutation in (
        Mutation(
            "widen",
            "w",
            "double a size the blueprint chooses, or add a bucket to it",
            _sizes,
            _widen,
            "it chooses no size of its own",
        ),
        Mutation(
            "swap_activation",
            "a",
            "put another activation in the place of one",
            _activations,
            _swap,
            "it has no activation of the usual ones",
        ),
        Mutation(
            "insert_norm",
            "n",
            "insert a norm before a zero tail",
            _tails,
            _norm,
            "it has no tail with weights",
        ),
        Mutation(
            "kernel_size",
            "k",
            "give a convolution a larger or smaller kernel, padding kept right",
            _kernels,
            _resize,
            "it has no convolution",
        ),
        Mutation(
            "low_rank",
            "l",
            "split a layer that mixes channels into two through fewer",
            _dense,
            _split,
            "it has no layer that mixes channels and nothing else",
        ),
    )
}
