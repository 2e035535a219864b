"""The chain: one hash that depends on every record before it.

``h_0`` is 32 zero bytes and ``h_n = SHA256(h_{n-1} || record_n)``. Belongs here: rows, links and the walk that checks
them. Does not belong here: where rows are kept.
"""

from __future__ import annotations

import hashlib

from esper.errors import LogDamaged
from esper.events.codec import record_of
from esper.events.envelope import Envelope
from esper.oona.port import Head

#: Chain value of an empty log.
GENESIS = bytes(32)


def link(previous: bytes, record: bytes) -> bytes:
    """Return the chain value of a record that follows a chain value."""
    return hashlib.sha256(previous + record).digest()


class ChainWalk:
    """Checks records one after the other, from position 1 on.

    Attributes:
        head: Position and chain value of the last record found sound.
        versions: Version each stream has reached.
    """

    def __init__(self) -> None:
        """Stand before the first record."""
        self.head = Head(0, GENESIS)
        self.versions: dict[str, int] = {}

    def step(self, envelope: Envelope, chain: bytes | None = None) -> bytes:
        """Check the next record and return its chain value.

        Args:
            envelope: The record as stored.
            chain: The chain value stored with it; None where none was stored.

        Raises:
            LogDamaged: The record is not the next one, or its bytes are not what was written.
        """
        expected = self.head.position + 1
        if envelope.position != expected:
            raise damaged(expected, f"the next record has position {envelope.position}")
        record = record_of(envelope)
        if hashlib.sha256(record).digest() != envelope.digest:
            raise damaged(expected, "the record's bytes do not have the digest stored with it")
        version = self.versions.get(envelope.stream, 0) + 1
        if envelope.version != version:
            raise damaged(expected, f"stream {envelope.stream} goes from version {version - 1} to {envelope.version}")
        value = link(self.head.chain, record)
        if chain is not None and chain != value:
            raise damaged(expected, "the record does not follow from the one before it: the chain is broken")
        self.versions[envelope.stream] = version
        self.head = Head(expected, value)
        return value


def damaged(position: int, reason: str, where: str = "the log") -> LogDamaged:
    """Return the error for damage found at a position.

    Args:
        position: First position that cannot be trusted; 0 if it is not known.
        reason: What was found there.
        where: Which log or file.
    """
    place = f" at position {position}" if position else ""
    return LogDamaged(f"{where} is damaged{place}: {reason}", position=position, reason=reason)
