"""The closed list of rules a blueprint can break, and the error that names one.

Belongs here: stable rule names with the hint a person gets. Does not belong here: the checks themselves, which
stand in the module that knows the matter (``document``, ``ir``, ``graph``, ``shapes``, ``tail``, ``verify``).
"""

from __future__ import annotations

from esper.errors import BlueprintInvalid

#: Rule name -> what to do about it. Names are stable: facts and tools refer to them.
RULES: dict[str, str] = {
    # the document
    "size": "a blueprint document is at most 256 KiB",
    "json": "write one JSON object in UTF-8",
    "depth": "a blueprint needs no deep nesting; flatten the document",
    "number": "use numbers of at most 18 digits, and no NaN or Infinity",
    "duplicate_key": "write each key once",
    # the form
    "unknown_key": "remove the key; the allowed ones are listed in the message",
    "missing_key": "add the key",
    "type": "give the value the type that the message names",
    "name": "use a lower-case letter, then lower-case letters, digits and underscores, 32 at most",
    "version": 'this Esper reads "ir": 1',
    "template": 'a template is {"type": "linear", "mlp" or "attention"} and sizes that a site can have',
    "kind": "use residual, gate, layer, lowrank_weight or width",
    "merge": "each kind has one merge; write the one that the message names",
    "node_count": "use between 1 and 64 nodes",
    "rank": "use NC, NTC, NCL or NCHW, and operators that take the rank",
    "channels": "a site that is to have a certain number of channels has 1 to 65536",
    "symbol": "bind each symbol to a site size or to a bounded integer",
    "expression": "use integers, declared symbols, + - * // and brackets",
    # the operators
    "unknown_op": "use an operator of the closed list in esper/blueprints/ops.py",
    "cross_batch": "samples must not see each other; use layernorm or groupnorm",
    "unknown_attr": "remove the attribute; the operator's own are listed in the message",
    "missing_attr": "add the attribute",
    "attr_type": "give the attribute the type that the message names",
    "attr_bounds": "keep the attribute within the bounds that the message names",
    "arity": "give the operator the number of inputs that the message names",
    "init": "use an initialisation that the operator knows",
    "role": 'write "role": "tail" on the zero-initialised nodes and nowhere else',
    # the graph
    "duplicate_id": "give each node its own id; x is the input's",
    "unknown_input": "name x or a node of this blueprint",
    "cycle": "remove the cycle; a blueprint is evaluated once, from x to out",
    "unreachable": "connect the node with out, or remove it",
    "multiple_sinks": "let every node but out feed another node",
    # shapes
    "unused_part": "read every part of a split, or make what is split smaller",
    "shape": "make the operator's inputs agree",
    "output_shape": "out must have the shape of the site's output",
    "symbol_bounds": "the site is too small or too large for the symbol's bounds",
    "signature": "give a well-formed site signature that the blueprint's site describes",
    "budget": "make the blueprint smaller, or graft it at a smaller site",
    # what the branch does at birth
    "missing_tail": "let every path from x to out pass one zero-initialised node",
    "after_tail": "after the zero tail use only operators with f(0) = 0 and a slope there; move this one before it",
    "zeros_in_series": "keep one zero on each path: two in series never get a gradient",
    "placebo": "the operator zero is for blueprints without any parameter",
    "cancelled": "subtract two different values",
    "gain": "bound the value with tanh, sigmoid or a norm before it is multiplied further",
    "causality": "use causal operators, or do not claim the site causal",
    "not_foldable": "a lowrank_weight blueprint is bias-free and linear, so that it folds into the host's weight",
    "width_form": "write linear -> activation -> linear with zeros, role tail and no bias, in one line",
    "stream": "let out be x plus branches, each zero at birth, added one after the other in a single line",
    "claims_preserves": 'claim "exact@alpha0,exact@birth", which the tail rule proves',
    "claims_params": "claim the parameter count that the message gives",
    "claims_flops": "claim the FLOP count that the message gives",
}

MAX_MESSAGE_CHARACTERS = 2000
_WHOLE = "blueprint"


def invalid(rule: str, path: str, message: str) -> BlueprintInvalid:
    """Return the error for a broken rule.

    Args:
        rule: A name in ``RULES``.
        path: Where in the document, e.g. ``nodes[2].attr.k``; empty for the whole of it.
        message: What was found there.
    """
    where = path or _WHOLE
    if len(message) > MAX_MESSAGE_CHARACTERS:
        message = f"{message[:MAX_MESSAGE_CHARACTERS]}..."
    return BlueprintInvalid(f"{where}: {message} [{rule}]", hint=RULES[rule], path=path, rule=rule)


def shown(key: str) -> str:
    """Return a key of an unknown hand, fit for a path: short, and without characters that steer a terminal."""
    return key[:40] if key.isprintable() else ascii(key[:40])[1:-1]


def placed(error: BlueprintInvalid, path: str) -> BlueprintInvalid:
    """Return an error that knew no place with one; an error that has a place stays as it is."""
    if error.path:
        return error
    message = error.message.removeprefix(f"{_WHOLE}: ").removesuffix(f" [{error.rule}]")
    return invalid(error.rule, path, message)
