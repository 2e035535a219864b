"""What identifies an observation: the digest of its bytes and the schema of its features.

Belongs here: identity of observations. Does not belong here: gathering them (the training loop does) or turning them
into tensors.
"""

from __future__ import annotations

import msgspec

from esper.events.decision import Observation, SeedObservation, SiteObservation
from esper.ids import sha256, short

_FEATURE_STRUCTS: tuple[type[msgspec.Struct], ...] = (Observation, SiteObservation, SeedObservation)


def schema_of(*structs: type[msgspec.Struct]) -> str:
    """Return the schema id of structs: ``observation-`` and 16 hexadecimal digits over their field names in order."""
    names = [(struct.__name__, list(struct.__struct_fields__)) for struct in structs]
    return f"observation-{short(sha256(msgspec.msgpack.encode(names)), 16)}"


#: Id of the features a decision is logged with; a field added, dropped, renamed or moved gives another one.
FEATURE_SCHEMA = schema_of(*_FEATURE_STRUCTS)


def observation_digest(observation: Observation) -> bytes:
    """Return the SHA-256 of an observation's msgpack (32 bytes); floats enter with all their bits."""
    return sha256(msgspec.msgpack.encode(observation))
