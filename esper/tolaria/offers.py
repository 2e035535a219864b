"""What a run may graft: the blueprints it is offered, built and measured for the host's sites.

Belongs here: choosing blueprints by the run's configuration, and their kernels by site. Does not belong here: building
and measuring (``esper.blueprints.forging.forge``) or choosing among kernels (``esper.tamiyo``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from esper.blueprints.forging.forge import KernelRef
from esper.blueprints.ir import Blueprint, SiteSignature, parse
from esper.blueprints.library import load_library
from esper.errors import NotFound
from esper.events import fact_of
from esper.events.blueprint import BlueprintRetired, BlueprintSubmitted
from esper.kasmina import Growth
from esper.oona.port import EventLog, iterate_stream
from esper.tamiyo import KernelOption
from esper.tolaria.config import RunConfig

#: Blueprints that are offered only when a run asks for them by name: a placebo is no growth.
_ON_REQUEST = frozenset({"noop"})


class Maker(Protocol):
    """Sees to it that there are kernels: a ``Forge`` in the run's own process, or an ``Order`` to workers."""

    def ensure(self, signatures: Sequence[SiteSignature], blueprints: Sequence[Blueprint]) -> list[KernelRef]:
        """Return a validated kernel for every blueprint at every signature it fits."""
        ...


def forge_kernels(growth: Growth, config: RunConfig, forge: Maker, log: EventLog) -> dict[str, list[KernelOption]]:
    """Have made and measured what fits the sites, and return the validated kernels by site, smallest name first."""
    blueprints = offered_blueprints(config, log)
    references = forge.ensure([site.signature for site in growth.sites.values()], blueprints)
    return {
        path: [
            KernelOption(
                kernel_id=one.kernel_id,
                blueprint_id=one.blueprint_id,
                name=one.name,
                parameters=one.parameters,
                flops=one.flops,
            )
            for one in sorted(references, key=lambda reference: (reference.name, reference.kernel_id))
            if one.signature == site.signature
        ]
        for path, site in growth.sites.items()
    }


def offered_blueprints(config: RunConfig, log: EventLog) -> Sequence[Blueprint]:
    """Return the library's blueprints and the submitted ones that a run may use.

    Raises:
        NotFound: The configuration names a blueprint that does not exist.
    """
    known = {**load_library(), **_submitted(log)}
    if config.blueprints is None:
        return [blueprint for name, blueprint in sorted(known.items()) if name not in _ON_REQUEST]
    unknown = sorted(set(config.blueprints) - known.keys())
    if unknown:
        raise NotFound(
            f"no blueprint is called {', '.join(unknown)}", hint=f"known blueprints: {', '.join(sorted(known))}"
        )
    return [known[name] for name in sorted(config.blueprints)]


def _submitted(log: EventLog) -> dict[str, Blueprint]:
    found: dict[str, Blueprint] = {}
    for stream in log.streams("blueprint/"):
        submitted, retired = None, False
        for envelope in iterate_stream(log, stream):
            fact = fact_of(envelope)
            if isinstance(fact, BlueprintSubmitted):
                submitted, retired = fact, False
            retired = retired or isinstance(fact, BlueprintRetired)
        if submitted is not None and not retired:
            found[submitted.name] = parse(submitted.architecture_ir)
    return found
