"""Facts: what happened, as frozen structs. No I/O, no torch."""

from __future__ import annotations

from esper.events.base import Fact, FactInfo, RunFact
from esper.events.codec import decode_payload, encode_fact, fact_of
from esper.events.envelope import Envelope, Event
from esper.events.registry import FACT_TYPES, fact_type, infos

__all__ = [
    "FACT_TYPES",
    "Envelope",
    "Event",
    "Fact",
    "FactInfo",
    "RunFact",
    "decode_payload",
    "encode_fact",
    "fact_of",
    "fact_type",
    "infos",
]
