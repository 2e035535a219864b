"""A blueprint as mutations see it, and the sites it is tried at.

Belongs here: what is asked of a parent, and how a changed graph is put together. Does not belong here: the mutations
(``mutations``).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from esper.blueprints.expression import compact
from esper.blueprints.graph import order
from esper.blueprints.ir import Blueprint, Node, SiteSignature, SymbolRange
from esper.blueprints.ops import RANK_AXES
from esper.blueprints.shapes import Flow, infer, spelled
from esper.blueprints.verify import Verified, verify
from esper.errors import BlueprintInvalid

#: Channels of the sites that sizes are compared at.
_USUAL_CHANNELS = (16, 64, 256, 1024)
#: Kind of blueprint -> the kind of site it stands at, where that is not a linear one.
_SITE_KINDS = {"width": "pair"}


class Inapplicable(Exception):
    """A mutation cannot apply; the message says why. Turned into a refusal by ``mutate``."""


class Edit(msgspec.Struct, frozen=True):
    """One changed graph, not yet verified."""

    nodes: tuple[Node, ...]
    symbols: dict[str, str | SymbolRange]
    #: What was changed, for people: ``r: C//4 -> C//2``.
    change: str


class View:
    """A parent as the mutations see it: in canonical form, with what was inferred of it."""

    def __init__(self, blueprint: Blueprint) -> None:
        """Infer shapes at every layout.

        Raises:
            BlueprintInvalid: The blueprint breaks a rule.
        """
        self.blueprint = blueprint
        self.nodes = {node.id: node for node in order(blueprint)}
        self.flows: dict[str, Flow] = {rank: infer(blueprint, order(blueprint), rank) for rank in blueprint.site.rank}
        #: Each usual site the blueprint fits -> its numbers there.
        self.sites = dict(usual_sites(blueprint))

    def node(self, name: str) -> Node:
        """Return a node by name.

        Raises:
            Inapplicable: There is none.
        """
        if name not in self.nodes:
            raise Inapplicable(f"{self.blueprint.id} has no node {name}; it has {', '.join(self.nodes)}")
        return self.nodes[name]

    def ranks(self, value: str) -> set[str]:
        """Return the ranks a value has at the site's layouts."""
        return {flow.shapes[value].rank for flow in self.flows.values()}

    def channels(self, value: str) -> str:
        """Return a value's channels in the blueprint's symbols."""
        flow = self.flows[self.blueprint.site.rank[0]]
        return compact(spelled(flow.shapes[value].channels, flow.names))

    def readers(self, value: str) -> list[Node]:
        """Return the nodes that read a value."""
        return [node for node in self.nodes.values() if value in node.inputs]

    def free_node(self) -> str:
        """Return a node name that is not taken."""
        return next(f"m{number}" for number in range(len(self.nodes) + 1) if f"m{number}" not in self.nodes)

    def with_nodes(self, *changed: Node, change: str, added: tuple[Node, ...] = ()) -> Edit:
        """Return an edit that replaces nodes by name and adds some."""
        by_name = {node.id: node for node in changed}
        nodes = tuple(by_name.get(name, node) for name, node in self.nodes.items())
        return Edit((*added, *nodes), dict(self.blueprint.symbols), change)


def usual_signatures(blueprint: Blueprint) -> Iterator[SiteSignature]:
    """Yield sites of usual sizes that a blueprint is written for; it may still be too large for some."""
    for rank in blueprint.site.rank:
        for channels in _USUAL_CHANNELS if blueprint.site.channels is None else (blueprint.site.channels,):
            yield SiteSignature(
                kind=_SITE_KINDS.get(blueprint.kind, "linear"),
                rank=rank,
                channels=channels,
                in_channels=blueprint.site.in_channels or channels,
                positions=(8,) * RANK_AXES[rank],
                causal=blueprint.site.causal,
            )


def usual_sites(blueprint: Blueprint) -> Iterator[tuple[SiteSignature, Verified]]:
    """Yield the sites of usual sizes that a blueprint fits, with its numbers there."""
    for signature in usual_signatures(blueprint):
        try:
            yield signature, verify(blueprint, signature)
        except BlueprintInvalid:
            # Too large or too small for this site; the others count.
            continue
