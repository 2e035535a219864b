"""The closed list of kinds: how a branch meets its host.

Belongs here: per kind what the branch reads and how the document says its merge. Does not belong here: what a kind
demands of the graph (``tail``, ``foldable``) or of the site (``verify``).

Whatever the kind, the built module computes delta, which is added to the site's output h under the gate alpha: so
every kind is blended, measured, culled and put out alike. With B(x) for what the graph computes:

======================  ========================================  =================
kind                    the site's new output                     delta
======================  ========================================  =================
residual                h + alpha * B(h)                          B(h)
gate                    h * (1 + alpha * B(h))                    h * B(h)
layer                   h + alpha * (B(h) - h)                    d1 + d2 + ...
lowrank_weight, width   h + alpha * B(x), x the site's input      B(x)
======================  ========================================  =================

A layer's graph gives h + d1 + d2 + ...; delta is summed without h, so that it is exactly zero at birth.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Kind(msgspec.Struct, frozen=True):
    """What is known of one kind."""

    #: What the branch reads: the site's output, or the input of the site's module.
    reads: Literal["output", "input"]
    #: The document's ``merge``.
    merge: dict[str, str]


_ADD = {"op": "add", "gate": "alpha"}

KINDS: dict[str, Kind] = {
    "residual": Kind("output", _ADD),
    "gate": Kind("output", {"op": "mul", "gate": "alpha"}),
    "layer": Kind("output", {"op": "replace", "gate": "alpha"}),
    "lowrank_weight": Kind("input", _ADD),
    "width": Kind("input", _ADD),
}
