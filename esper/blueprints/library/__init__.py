"""The blueprints that ship: JSON documents beside this file, and what a card says of each.

Belongs here: data, and the functions that read it. Does not belong here: knowledge about a particular blueprint in
code. What a blueprint is for stands in ``cards/about.json``; what it did when it was last measured in
``cards/measured.jsonl`` (``python -m benchmarks LIBRARY``); what it costs is computed from its graph.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec

from esper.blueprints.ir import Blueprint, SymbolRange, parse
from esper.blueprints.polynomial import Polynomial
from esper.blueprints.shapes import Flow, spelled
from esper.blueprints.verify import verify
from esper.errors import NotFound

_SIZE = re.compile(r"site\.[hwtl]\b")


class About(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"purpose": "for"}):
    """What a person should know of a blueprint, as ``cards/about.json`` has it."""

    purpose: str
    not_for: str
    sites: str
    #: Papers: authors, year, title.
    sources: list[str]


class Measured(NamedTuple):
    """What the benchmark wrote."""

    #: Date, toolchain, hardware and threads.
    where: dict[str, Any]
    rows: list[dict[str, Any]]


def load_library() -> dict[str, Blueprint]:
    """Return every shipped blueprint by name, verified, sorted by name.

    Raises:
        BlueprintInvalid: A shipped document was changed and breaks a rule.
    """
    documents = sorted(item.name for item in files(__name__).iterdir() if item.name.endswith(".json"))
    found = (parse(files(__name__).joinpath(name).read_bytes()) for name in documents)
    return {blueprint.id: verify(blueprint).blueprint for blueprint in found}


def load_about() -> dict[str, About]:
    """Return what the cards say of every shipped blueprint, by name."""
    return msgspec.json.decode(_card_file("about.json"), type=dict[str, About])


def load_measured() -> Measured:
    """Return what was last measured of the library: where and when, and one row per task and blueprint."""
    where, *rows = _card_file("measured.jsonl").splitlines()
    return Measured(msgspec.json.decode(where), [msgspec.json.decode(row) for row in rows])


def card(name: str) -> dict[str, Any]:
    """Return the card of a shipped blueprint as plain data.

    Args:
        name: The blueprint's own name.

    Returns:
        ``name``, ``kind``, ``for``, ``not_for``, ``sites``, ``ranks``, ``causal``, ``parameters`` and ``flops``
        (formula by layout, computed from the graph), ``symbols`` (letter to meaning), ``sources``, and ``measured``
        (one row per task).

    Raises:
        NotFound: No shipped blueprint has that name.
    """
    about = load_about().get(name)
    if about is None:
        raise NotFound(f"no shipped blueprint is called {name!r}", hint="`esper blueprint list --shipped` lists them")
    blueprint = parse(files(__name__).joinpath(f"{name}.json").read_bytes())
    flows = verify(blueprint).flows
    symbols = {letter: symbol_meaning(symbol) for letter, symbol in blueprint.symbols.items()}
    parameters = {rank: _formula(flow.parameters, flow, symbols) for rank, flow in flows.items()}
    flops = {rank: _formula(flow.flops, flow, symbols) for rank, flow in flows.items()}
    return {
        "name": name,
        "kind": blueprint.kind,
        "for": about.purpose,
        "not_for": about.not_for,
        "sites": about.sites,
        "ranks": list(blueprint.site.rank),
        "causal": blueprint.site.causal,
        "parameters": parameters,
        "flops": flops,
        "symbols": dict(sorted(symbols.items())),
        "sources": about.sources,
        "measured": [row for row in load_measured().rows if row["blueprint"] == name],
    }


def symbol_meaning(symbol: str | SymbolRange) -> str:
    """Return what a letter of a formula stands for, in words."""
    if isinstance(symbol, str):
        return symbol
    rounded = f", rounded up to a multiple of {symbol.bucket}" if symbol.bucket > 1 else ""
    return f"{symbol.default}{rounded}, from {symbol.low} to {symbol.high}"


def _formula(cost: Polynomial, flow: Flow, symbols: dict[str, str]) -> str:
    """Return a cost in the blueprint's letters; a size that has none gets its own, which is added to ``symbols``."""
    text = spelled(cost, flow.names)
    for size in _SIZE.findall(text):
        letter = size.removeprefix("site.").upper()
        symbols[letter] = size
        text = text.replace(size, letter)
    return text


def _card_file(name: str) -> bytes:
    return files(__name__).joinpath("cards", name).read_bytes()
