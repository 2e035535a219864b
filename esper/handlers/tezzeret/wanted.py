"""Which kernels of a blueprint are wanted: at the sites that runs have, or at typical ones where none of these fits.

Belongs here: the sites that the log knows, and the table of reference sites. Does not belong here: making kernels
(``handler``), or what a run asks for itself at its start (``esper.tolaria.orders``).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import msgspec

from esper.blueprints.ir import Blueprint, SiteSignature
from esper.blueprints.verify import fits
from esper.events import fact_of
from esper.events.seed import SiteRegistered
from esper.names import TopicNames
from esper.oona.port import EventLog, iterate

_REGISTERED = SiteRegistered.__name__

#: Where a blueprint is tried out that fits no site of any run: one site for each layout, and a pair of linear layers,
#: of sizes that the shipped tasks are near to. docs/how-to/run-workers.md shows the table.
REFERENCE_SITES: tuple[SiteSignature, ...] = (
    SiteSignature(kind="linear", rank="NC", channels=64, in_channels=64, positions=(), causal=False),
    SiteSignature(kind="linear", rank="NTC", channels=64, in_channels=64, positions=(32,), causal=False),
    SiteSignature(kind="conv1d", rank="NCL", channels=32, in_channels=32, positions=(32,), causal=False),
    SiteSignature(kind="conv2d", rank="NCHW", channels=16, in_channels=16, positions=(8, 8), causal=False),
    SiteSignature(kind="pair", rank="NC", channels=64, in_channels=64, positions=(), causal=False),
    SiteSignature(kind="pair", rank="NTC", channels=64, in_channels=64, positions=(32,), causal=False),
)


class KnownSites:
    """The signatures of all sites that runs registered in a log, followed as it grows; threads may share it."""

    def __init__(self, log: EventLog) -> None:
        """Follow a log; it is read when first asked."""
        self._log = log
        self._lock = threading.Lock()
        self._through = 0
        self._known: dict[SiteSignature, None] = {}

    def all(self) -> list[SiteSignature]:
        """Return every signature up to the end of the log, in the order they came."""
        with self._lock:
            end = self._log.end()
            for envelope in iterate(self._log, self._through, topics=(TopicNames.TELEMETRY_SEED_HEALTH,), until=end):
                # Most facts of the topic are measurements; those are not even decoded.
                if envelope.type == _REGISTERED and (signature := _signature(fact_of(envelope))) is not None:
                    self._known.setdefault(signature)
            self._through = end
            return list(self._known)


def wanted_sites(blueprint: Blueprint, known: Iterable[SiteSignature]) -> list[SiteSignature]:
    """Return the sites a blueprint should have kernels for: the known ones it fits, or else the reference ones."""
    return _fitting(blueprint, known) or _fitting(blueprint, REFERENCE_SITES)


def _fitting(blueprint: Blueprint, sites: Iterable[SiteSignature]) -> list[SiteSignature]:
    return [site for site in sites if fits(blueprint, site) is None]


def _signature(fact: object) -> SiteSignature | None:
    if not isinstance(fact, SiteRegistered):
        return None
    try:
        return msgspec.convert(fact.signature, SiteSignature)
    except msgspec.ValidationError:
        return None  # a run of another version, with sites we know nothing of
