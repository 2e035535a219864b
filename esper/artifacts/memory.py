"""Artifacts in memory: the real thing without durability."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from esper.artifacts.store import checked, hex_of
from esper.errors import ArtifactMissing


class MemoryStore:
    """Keeps artifacts in a dictionary; gone when the process ends."""

    def __init__(self) -> None:
        """Start empty."""
        self._kept: dict[bytes, bytes] = {}

    def put(self, data: bytes) -> bytes:
        """Keep bytes and return their digest."""
        digest = hashlib.sha256(data).digest()
        self._kept.setdefault(digest, bytes(data))
        return digest

    def get(self, digest: bytes) -> bytes:
        """Return the bytes of a digest, checked against it; see ``ArtifactStore.get``."""
        return checked(digest, self._find(digest), "memory")

    def has(self, digest: bytes) -> bool:
        """Tell whether an artifact has this digest."""
        hex_of(digest)
        return digest in self._kept

    def size(self, digest: bytes) -> int:
        """Return an artifact's size in bytes; see ``ArtifactStore.size``."""
        return len(self._find(digest))

    def digests(self) -> Iterator[bytes]:
        """Yield the digest of every artifact, sorted."""
        return iter(sorted(self._kept))

    def _find(self, digest: bytes) -> bytes:
        name = hex_of(digest)
        try:
            return self._kept[digest]
        except KeyError:
            raise ArtifactMissing(f"no artifact {name} in memory", digest=name) from None
