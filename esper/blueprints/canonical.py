"""One spelling and one name for each blueprint.

Belongs here: the canonical form, its JSON and its hash. Does not belong here: sizes at a site, which a kernel holds.

The form depends on neither the names nor the order of the nodes, nor on notation (blanks, key order, defaults
written out). It depends on everything else: ``a - b`` is not ``b - a``, and not even ``a + b`` is ``b + a``.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from esper.blueprints.expression import compact
from esper.blueprints.graph import order
from esper.blueprints.ir import INPUT, IR_VERSION, Blueprint, Site, SymbolRange
from esper.blueprints.kinds import KINDS


def canonical_json(blueprint: Blueprint) -> str:
    """Return a blueprint's canonical document: nodes renamed ``n0``, ``n1``, ... inputs first, keys sorted.

    Raises:
        BlueprintInvalid: The graph has a cycle or a node that does not reach ``out``.
    """
    nodes = order(blueprint)
    names = {node.id: f"n{place}" for place, node in enumerate(nodes)} | {INPUT: INPUT}
    document = {
        "ir": IR_VERSION,
        "id": blueprint.id,
        "kind": blueprint.kind,
        "site": _site(blueprint.site),
        "symbols": {name: _symbol(symbol) for name, symbol in blueprint.symbols.items()},
        "nodes": [
            {"id": names[node.id], "op": node.op, "in": [names[source] for source in node.inputs]}
            | {"attr": {key: _plain(value) for key, value in node.attr.items()}}
            | ({"init": node.init} if node.init else {})
            | ({"role": node.role} if node.role else {})
            for node in nodes
        ],
        "out": names[blueprint.out],
        "merge": KINDS[blueprint.kind].merge,
        "claims": {
            "preserves": blueprint.claims.preserves,
            "params": _plain(blueprint.claims.params),
            "flops": _plain(blueprint.claims.flops),
        },
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def blueprint_id(blueprint: Blueprint) -> str:
    """Return the SHA-256 of the canonical document, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(blueprint).encode()).hexdigest()


def _site(site: Site) -> dict[str, Any]:
    """Return a site; a number of channels that is not given is left out, as it was before it could be given."""
    sizes = {"channels": site.channels, "in_channels": site.in_channels}
    found = {"rank": sorted(site.rank), "causal": site.causal}
    return found | {name: size for name, size in sizes.items() if size is not None}


def _symbol(symbol: str | SymbolRange) -> Any:
    if isinstance(symbol, str):
        return symbol
    bounds = [_plain(symbol.low), _plain(symbol.high)]
    return {"int": bounds, "bucket": symbol.bucket, "default": _plain(symbol.default)}


def _plain(value: float | str) -> Any:
    return compact(value) if isinstance(value, str) else value
