"""A blueprint's claims, computed from its graph and written in its own symbols.

Belongs here: what an author would have to claim. Does not belong here: comparing claims with the graph (``verify``).
"""

from __future__ import annotations

import re
from collections.abc import Container

import msgspec

from esper.blueprints.expression import compact
from esper.blueprints.graph import order
from esper.blueprints.ir import Blueprint, Claims, SymbolRange
from esper.blueprints.ops import RANK_AXES
from esper.blueprints.polynomial import Polynomial
from esper.blueprints.shapes import Flow, infer, spelled

_SITE_SIZE = re.compile(r"site\.[a-z_]+")
#: Letters for sizes of the site that a claim needs and the blueprint has no symbol for.
_LETTERS = {
    "site.channels": "C",
    "site.in_channels": "D",
    "site.positions": "P",
    "site.t": "T",
    "site.l": "L",
    "site.h": "H",
    "site.w": "W",
}


def with_claims(blueprint: Blueprint) -> Blueprint:
    """Return a blueprint whose claims are what its graph says, with symbols for the sizes they need.

    Raises:
        BlueprintInvalid: The graph is unsound, or no one formula holds at all of its layouts.
    """
    nodes = order(blueprint)
    flows = {rank: infer(blueprint, nodes, rank) for rank in blueprint.site.rank}
    symbols = dict(blueprint.symbols)
    # At a layout with one axis of positions that axis is spelled P, which holds at every other layout too.
    rank = min(flows, key=lambda rank: (RANK_AXES[rank] != 1, rank))
    params = _claim(flows[rank], "params", symbols, several=len(flows) > 1)
    flops = _claim(flows[rank], "flops", symbols, several=len(flows) > 1)
    return msgspec.structs.replace(blueprint, symbols=symbols, claims=Claims(blueprint.claims.preserves, params, flops))


def free_symbol(symbols: Container[str], letter: str) -> str:
    """Return a symbol's name that is not taken: the letter, or the letter with a number."""
    return next(name for name in (letter, *(f"{letter}{number}" for number in range(1, 99))) if name not in symbols)


def _claim(flow: Flow, which: str, symbols: dict[str, str | SymbolRange], *, several: bool) -> str:
    """Return one claim as text; a symbol it lacks is added to ``symbols``."""
    counted: Polynomial = flow.parameters if which == "params" else flow.flops
    text = compact(spelled(counted, flow.names))

    def letter(found: re.Match[str]) -> str:
        size = found.group()
        if several and size in {"site.t", "site.l"}:
            size = "site.positions"
        known = [name for name, meaning in symbols.items() if meaning == size]
        if not known:
            known = [free_symbol(symbols, _LETTERS[size])]
            symbols[known[0]] = size
        return known[0]

    return _SITE_SIZE.sub(letter, text)
