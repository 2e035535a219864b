"""The intermediate representation of a blueprint, and how a document becomes one.

Belongs here: the structs (site, symbols, nodes, claims, the signature of a site in a host) and the check of form:
keys, types, names, attributes and their bounds. Does not belong here: what the graph computes (``verify``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from esper.blueprints.document import read_document
from esper.blueprints.kinds import KINDS
from esper.blueprints.ops import OPS, RANK_AXES, Attr
from esper.blueprints.rules import invalid, shown
from esper.blueprints.templates import expanded, is_template

IR_VERSION = 1
MAX_NODES = 64
MAX_SYMBOLS = 16
MAX_SIZE = 65_536
#: Characters of all expressions of a document together.
MAX_EXPRESSIONS = 3072
INPUT = "x"
PRESERVES = "exact@alpha0,exact@birth"
#: What a symbol can be bound to.
SITE_SIZES = ("channels", "in_channels", "h", "w", "t", "l", "positions")
DTYPES = ("float32", "float64", "bfloat16")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_SYMBOL = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,15}")


class SiteSignature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a site in a host looks like to a blueprint. Two sites with equal signatures share kernels."""

    #: linear, conv1d, conv2d, attention, norm, block, or pair_<activation>: from a linear module's input to the output
    #: of the next one, with that activation alone between them; ``pair`` where it does not matter which.
    kind: str
    #: NC, NTC, NCL or NCHW: the layout of the site's output.
    rank: str
    #: Channels of the site's output.
    channels: int
    #: Channels of the site module's input (the first module's of a pair); None where there is no such thing.
    in_channels: int | None
    #: Sizes of the position axes: () for NC, (T,) for NTC, (L,) for NCL, (H, W) for NCHW.
    positions: tuple[int, ...]
    #: Whether later positions must not reach earlier ones.
    causal: bool
    dtype: str = "float32"


class Site(msgspec.Struct, frozen=True):
    """The sites a blueprint is written for."""

    #: Layouts, in the document's order.
    rank: tuple[str, ...]
    #: Whether the blueprint keeps the order of time: it may then stand at a causal site.
    causal: bool
    #: The only number of channels it fits; None fits any.
    channels: int | None = None
    #: The same of the site module's input.
    in_channels: int | None = None


class SymbolRange(msgspec.Struct, frozen=True):
    """A size the blueprint chooses itself, within bounds that depend on the site."""

    low: int | str
    high: int | str
    #: The size is rounded up to a multiple of this, so that compiled code is reused.
    bucket: int
    default: int | str


class Node(msgspec.Struct, frozen=True):
    """One use of an operator. Attributes are complete: defaults are filled in."""

    id: str
    op: str
    inputs: tuple[str, ...]
    attr: dict[str, int | float | bool | str]
    init: str | None
    role: str | None


class Claims(msgspec.Struct, frozen=True):
    """What the author says; the verifier computes it again."""

    preserves: str
    params: int | str
    flops: int | str


class Blueprint(msgspec.Struct, frozen=True):
    """A typed graph that computes B(x), well formed but not yet verified; ``kinds`` tells what B is for."""

    id: str
    kind: str
    site: Site
    #: Symbol -> the site size it stands for (``site.channels``) or a range.
    symbols: dict[str, str | SymbolRange]
    nodes: tuple[Node, ...]
    out: str
    claims: Claims


def parse(data: bytes | str) -> Blueprint:
    """Return the blueprint in a JSON document.

    Args:
        data: UTF-8 text in the form of ``esper/blueprints/library``, or a template.

    Raises:
        BlueprintInvalid: The document breaks a rule of form; ``path`` and ``rule`` say where and which.
    """
    raw = read_document(data)
    if is_template(raw):
        raw = expanded(raw)
    keys = ("ir", "id", "kind", "site", "symbols", "nodes", "out", "merge", "claims")
    _keys(raw, "", required=keys)
    version = _typed(raw, "ir", int, "")
    if version != IR_VERSION:
        raise invalid("version", "ir", f"the document has version {version}")
    kind = _typed(raw, "kind", str, "")
    if kind not in KINDS:
        raise invalid("kind", "kind", f"{kind[:40]!r} is not one of {', '.join(KINDS)}")
    if raw["merge"] != KINDS[kind].merge:
        raise invalid("merge", "merge", f"the merge of a {kind} blueprint is {json.dumps(KINDS[kind].merge)}")
    blueprint = Blueprint(
        id=_name(raw, "id", ""),
        kind=kind,
        site=_site(_typed(raw, "site", dict, ""), kind),
        symbols=_symbols(_typed(raw, "symbols", dict, "")),
        nodes=_nodes(_typed(raw, "nodes", list, "")),
        out=_name(raw, "out", ""),
        claims=_claims(_typed(raw, "claims", dict, "")),
    )
    _check_expressions(blueprint)
    return blueprint


def _check_expressions(blueprint: Blueprint) -> None:
    """Bound all expressions together: each is read again for each layout."""
    sizes = [value for node in blueprint.nodes for value in node.attr.values()]
    sizes += [blueprint.claims.params, blueprint.claims.flops]
    for symbol in blueprint.symbols.values():
        sizes += [symbol.low, symbol.high, symbol.default] if isinstance(symbol, SymbolRange) else []
    total = sum(len(size) for size in sizes if isinstance(size, str))
    if total > MAX_EXPRESSIONS:
        message = f"all expressions together have {total} characters, {MAX_EXPRESSIONS} are allowed"
        raise invalid("expression", "", message)


def _keys(raw: Mapping[str, Any], path: str, *, required: Collection[str], optional: Collection[str] = ()) -> None:
    for key in raw:
        if key not in required and key not in optional:
            allowed = ", ".join((*required, *optional))
            raise invalid("unknown_key", _at(path, shown(key)), f"the key is not one of {allowed}")
    for key in required:
        if key not in raw:
            raise invalid("missing_key", _at(path, key), "the key is missing")


def _at(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _typed(raw: Mapping[str, Any], key: str, wanted: type, path: str) -> Any:
    value = raw[key]
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        names = {int: "an integer", str: "a string", dict: "an object", list: "a list", bool: "true or false"}
        raise invalid("type", _at(path, key), f"the value is not {names[wanted]}")
    return value


def _name(raw: Mapping[str, Any], key: str, path: str) -> str:
    value: str = _typed(raw, key, str, path)
    if not _NAME.fullmatch(value):
        raise invalid("name", _at(path, key), f"{value[:40]!r} is not a name")
    return value


def _site(raw: Mapping[str, Any], kind: str) -> Site:
    sizes = ("channels", "in_channels") if KINDS[kind].reads == "input" else ("channels",)
    _keys(raw, "site", required=("rank", "causal"), optional=sizes)
    ranks = raw["rank"] if isinstance(raw["rank"], list) else [raw["rank"]]
    for rank in ranks:
        if not isinstance(rank, str) or rank not in RANK_AXES:
            raise invalid("rank", "site.rank", f"{str(rank)[:40]!r} is not one of {', '.join(RANK_AXES)}")
    if not ranks or len(set(ranks)) != len(ranks):
        raise invalid("rank", "site.rank", "ranks are missing or stand twice")
    for size in sizes:
        if size in raw and not 1 <= _typed(raw, size, int, "site") <= MAX_SIZE:
            raise invalid("channels", f"site.{size}", f"{raw[size]} is not between 1 and {MAX_SIZE}")
    return Site(tuple(ranks), _typed(raw, "causal", bool, "site"), raw.get("channels"), raw.get("in_channels"))


def _symbols(raw: Mapping[str, Any]) -> dict[str, str | SymbolRange]:
    if len(raw) > MAX_SYMBOLS:
        raise invalid("symbol", "symbols", f"there are {len(raw)} symbols, {MAX_SYMBOLS} are allowed")
    return {name: _symbol(name, value, f"symbols.{shown(name)}") for name, value in raw.items()}


def _symbol(name: str, value: Any, path: str) -> str | SymbolRange:
    if not _SYMBOL.fullmatch(name):
        raise invalid("symbol", path, f"{name[:40]!r} is not a symbol's name")
    if isinstance(value, str):
        if value.removeprefix("site.") not in SITE_SIZES or not value.startswith("site."):
            known = ", ".join(f"site.{size}" for size in SITE_SIZES)
            raise invalid("symbol", path, f"{value[:40]!r} is not one of {known}")
        return value
    if not isinstance(value, dict):
        raise invalid("type", path, "the value is neither a string nor an object")
    _keys(value, path, required=("int", "default"), optional=("bucket",))
    bounds = _typed(value, "int", list, path)
    if len(bounds) != 2:
        raise invalid("symbol", f"{path}.int", "bounds are two sizes: [low, high]")
    bucket = value.get("bucket", 1)
    if not isinstance(bucket, int) or isinstance(bucket, bool) or not 1 <= bucket <= MAX_SIZE:
        raise invalid("symbol", f"{path}.bucket", f"the bucket is not an integer between 1 and {MAX_SIZE}")
    return SymbolRange(
        _size(bounds[0], f"{path}.int[0]", "type"),
        _size(bounds[1], f"{path}.int[1]", "type"),
        bucket,
        _size(value["default"], f"{path}.default", "type"),
    )


def _size(value: Any, path: str, rule: str) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise invalid(rule, path, "the value is neither an integer nor an expression")
    return value


def _nodes(raw: list[Any]) -> tuple[Node, ...]:
    if not 1 <= len(raw) <= MAX_NODES:
        raise invalid("node_count", "nodes", f"there are {len(raw)} nodes, 1 to {MAX_NODES} are allowed")
    return tuple(_node(value, f"nodes[{place}]") for place, value in enumerate(raw))


def _node(raw: Any, path: str) -> Node:
    if not isinstance(raw, dict):
        raise invalid("type", path, "the node is not an object")
    _keys(raw, path, required=("id", "op", "in"), optional=("attr", "init", "role"))
    name = _typed(raw, "op", str, path)
    if name not in OPS:
        rule = "cross_batch" if "batch" in name.lower() else "unknown_op"
        raise invalid(rule, f"{path}.op", f"{name[:40]!r} is no operator")
    inputs = _typed(raw, "in", list, path)
    low, high = OPS[name].arity
    if not low <= len(inputs) <= high:
        wanted = str(low) if low == high else f"{low} to {high}"
        raise invalid("arity", f"{path}.in", f"{name} takes {wanted} inputs, not {len(inputs)}")
    for place, source in enumerate(inputs):
        if not isinstance(source, str):
            raise invalid("type", f"{path}.in[{place}]", "the value is not a string")
    attr = _attributes(name, _typed({"attr": {}} | raw, "attr", dict, path), f"{path}.attr")
    init = _choice(raw, "init", OPS[name].inits, path, "init")
    role = _choice(raw, "role", ("tail",), path, "role") if "role" in raw else None
    return Node(_name(raw, "id", path), name, tuple(inputs), attr, init, role)


def _choice(raw: Mapping[str, Any], key: str, known: tuple[str, ...], path: str, rule: str) -> str | None:
    """Return a value of a closed list, its first where the key is left out."""
    if key not in raw:
        return known[0] if known else None
    value = raw[key]
    if value not in known:
        listed = ", ".join(known) or "nothing"
        raise invalid(rule, f"{path}.{key}", f"{str(value)[:40]!r} is not one of: {listed}")
    return str(value)


def _attributes(op: str, raw: Mapping[str, Any], path: str) -> dict[str, int | float | bool | str]:
    known = OPS[op].attrs
    for key in raw:
        if key not in known:
            raise invalid(
                "unknown_attr", f"{path}.{shown(key)}", f"{op} has the attributes: {', '.join(known) or 'none'}"
            )
    found: dict[str, int | float | bool | str] = {}
    for key, attr in sorted(known.items()):
        if key in raw:
            found[key] = _attribute(raw[key], attr, f"{path}.{key}")
        elif attr.default is not None:
            found[key] = attr.default
        else:
            raise invalid("missing_attr", f"{path}.{key}", f"{op} needs the attribute")
    return found


def _attribute(value: Any, attr: Attr, path: str) -> int | float | bool | str:
    if attr.type == "flag":
        if not isinstance(value, bool):
            raise invalid("attr_type", path, "the value is not true or false")
        return value
    if attr.type == "size":
        size = _size(value, path, "attr_type")
        if isinstance(size, int) and not 1 <= size <= MAX_SIZE:
            raise invalid("attr_bounds", path, f"{size} is not between 1 and {MAX_SIZE}")
        return size
    wanted = int if attr.type == "int" else int | float
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise invalid("attr_type", path, f"the value is not {'an integer' if attr.type == 'int' else 'a number'}")
    if not attr.low <= value <= attr.high or (attr.type == "real" and abs(value) < 1e-3):
        least = ", at least 0.001 from zero" if attr.type == "real" else ""
        raise invalid("attr_bounds", path, f"{value} is not between {attr.low} and {attr.high}{least}")
    return int(value) if attr.type == "int" else float(value)


def _claims(raw: Mapping[str, Any]) -> Claims:
    _keys(raw, "claims", required=("preserves", "params", "flops"))
    if raw["preserves"] != PRESERVES:
        raise invalid("claims_preserves", "claims.preserves", f"{str(raw['preserves'])[:60]!r} is claimed")
    return Claims(
        PRESERVES,
        _size(raw["params"], "claims.params", "type"),
        _size(raw["flops"], "claims.flops", "type"),
    )
