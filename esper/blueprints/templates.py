"""Short documents that stand for whole blueprints: ``{"type": "mlp", "input_size": 256, ...}``.

Belongs here: the three types, their keys and defaults, and what each expands to. Does not belong here: any other
check; what comes out is read and verified like any document, and is a blueprint for sites of exactly those channels.

A template is a layer by itself, not a branch. Here it becomes a branch with a zero tail, in its last linear step:

- ``linear``: one linear step. Where output and input sizes differ nothing can be added to the output as it is, so it
  becomes a change of the site's own weight (``lowrank_weight``), which has no bias.
- ``mlp``: linear, relu, linear.
- ``attention``: queries, keys and values of every position, all pairs of positions, and a linear step.

Every key may stand in a template of every type; the name is made of those that mean something there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from esper.blueprints.kinds import KINDS
from esper.blueprints.rules import invalid, shown

#: Key -> what it is where it is left out. An attention has no other output size than its input size.
DEFAULTS = {"input_size": 512, "output_size": 512, "hidden_size": 1024, "heads": 8}
MAX_TEMPLATE_SIZE = 65_536


def is_template(raw: Mapping[str, Any]) -> bool:
    """Tell whether a document is a template: it has a type, and says nothing of the IR."""
    return "type" in raw and "ir" not in raw


def expanded(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the blueprint's document that a template stands for.

    Raises:
        BlueprintInvalid: The type is not known, or a size is wrong or fits no site.
    """
    made = TEMPLATES.get(raw["type"]) if isinstance(raw["type"], str) else None
    if made is None:
        raise invalid("template", "type", f"{str(raw['type'])[:40]!r} is not one of {', '.join(TEMPLATES)}")
    for key in raw:
        if key != "type" and key not in DEFAULTS:
            raise invalid("unknown_key", shown(key), f"the key is not one of type, {', '.join(DEFAULTS)}")
    sizes = {key: _size(raw, key, default) for key, default in DEFAULTS.items()}
    if raw["type"] == "attention" and "output_size" not in raw:
        sizes["output_size"] = sizes["input_size"]
    if sizes["input_size"] != sizes["output_size"] and raw["type"] != "linear":
        there = "" if "output_size" in raw else f", which is {sizes['output_size']} where it is left out"
        message = (
            f"a branch gives as many channels as it takes: input_size {sizes['input_size']} needs the same "
            f"output_size{there}"
        )
        raise invalid("template", "output_size", message)
    return made(sizes)


def _size(raw: Mapping[str, Any], key: str, default: int) -> int:
    value = raw.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise invalid("type", key, "the value is not an integer")
    if not 1 <= value <= MAX_TEMPLATE_SIZE:
        raise invalid("template", key, f"{value} is not between 1 and {MAX_TEMPLATE_SIZE}")
    return value


def _linear(sizes: dict[str, int]) -> dict[str, Any]:
    given, made = sizes["input_size"], sizes["output_size"]
    if given == made:
        return _document(f"template_linear_{given}", [_tail("x")], given, params="C*C + C", flops="2*P*C*C")
    tail = _tail("x")
    tail["attr"]["bias"] = False
    name = f"template_linear_{given}_{made}"
    document = _document(name, [tail], made, params="C*D", flops="2*P*C*D", kind="lowrank_weight")
    document["site"]["in_channels"] = given
    document["symbols"]["D"] = "site.in_channels"
    return document


def _mlp(sizes: dict[str, int]) -> dict[str, Any]:
    given, hidden = sizes["input_size"], sizes["hidden_size"]
    nodes = [_step("w", "x", hidden), {"id": "a", "op": "relu", "in": ["w"]}, _tail("a")]
    params, flops = f"2*C*{hidden} + {hidden} + C", f"4*P*C*{hidden}"
    return _document(f"template_mlp_{given}_{hidden}", nodes, given, params=params, flops=flops)


def _attention(sizes: dict[str, int]) -> dict[str, Any]:
    given, heads = sizes["input_size"], sizes["heads"]
    if given % heads:
        raise invalid("template", "heads", f"{heads} heads do not divide input_size {given}")
    nodes = [_step(name, "x", "C") for name in "qkv"]
    # A bias of keys adds one number to all scores of a query, which softmax takes away: it would never get a gradient.
    nodes[1]["attr"]["bias"] = False
    nodes.append({"id": "a", "op": "sdpa", "in": ["q", "k", "v"], "attr": {"heads": heads}})
    nodes.append(_tail("a"))
    name = f"template_attention_{given}_{heads}"
    document = _document(name, nodes, given, params="4*C*C + 3*C", flops="8*P*C*C + 4*P*P*C")
    document["site"] |= {"rank": ["NTC"], "causal": False}
    return document


def _step(name: str, source: str, out: int | str) -> dict[str, Any]:
    return {"id": name, "op": "linear", "in": [source], "attr": {"out": out}}


def _tail(source: str) -> dict[str, Any]:
    return _step("t", source, "C") | {"init": "zeros", "role": "tail"}


def _document(
    name: str, nodes: list[dict[str, Any]], channels: int, *, params: str, flops: str, kind: str = "residual"
) -> dict[str, Any]:
    return {
        "ir": 1,
        "id": name,
        "kind": kind,
        "site": {"rank": ["NC", "NTC"], "causal": True, "channels": channels},
        "symbols": {"C": "site.channels", "P": "site.positions"},
        "nodes": nodes,
        "out": nodes[-1]["id"],
        "merge": KINDS[kind].merge,
        "claims": {"preserves": "exact@alpha0,exact@birth", "params": params, "flops": flops},
    }


TEMPLATES: dict[str, Callable[[dict[str, int]], dict[str, Any]]] = {
    "linear": _linear,
    "mlp": _mlp,
    "attention": _attention,
}
