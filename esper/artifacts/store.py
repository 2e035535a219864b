"""The port of the artifact store: bulk bytes under their SHA-256.

Belongs here: the ``ArtifactStore`` protocol and the check every adapter makes. Does not belong here: where bytes go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Protocol

from esper.errors import ArtifactDamaged, ArtifactError


class ArtifactStore(Protocol):
    """Keeps bytes by content: the same bytes are kept once, and nothing is ever changed."""

    def put(self, data: bytes) -> bytes:
        """Keep bytes and return their digest (32 bytes); bytes that are there already are left as they are.

        Raises:
            ArtifactError: The bytes cannot be stored; nothing was kept of them.
        """
        ...

    def get(self, digest: bytes) -> bytes:
        """Return the bytes of a digest, checked against it.

        Raises:
            ArtifactMissing: No artifact has this digest.
            ArtifactDamaged: The stored bytes do not have this digest.
        """
        ...

    def has(self, digest: bytes) -> bool:
        """Tell whether an artifact has this digest."""
        ...

    def size(self, digest: bytes) -> int:
        """Return an artifact's size in bytes.

        Raises:
            ArtifactMissing: No artifact has this digest.
        """
        ...

    def digests(self, beginning: str = "") -> Iterator[bytes]:
        """Yield the digest of every artifact, sorted.

        Args:
            beginning: Only those whose hexadecimal digits begin so.
        """
        ...

    def add_signature(self, digest: bytes, key_id: str, signature: bytes) -> bool:
        """Keep a signature beside its artifact, and tell whether it is new there; it is written once.

        Who calls this has checked the signature: see ``esper.artifacts.signatures``.

        Raises:
            ArtifactConflict: Another signature of this key is kept; it is left as it is.
            ArtifactError: It cannot be stored.
        """
        ...

    def signatures(self, digest: bytes) -> dict[str, bytes]:
        """Return the signatures of an artifact by key id, as they were kept: nobody has checked them since."""
        ...

    def close(self) -> None:
        """Give up connections; the store cannot be used afterwards."""
        ...


def checked(digest: bytes, data: bytes, where: str) -> bytes:
    """Return data if it has a digest.

    Raises:
        ArtifactDamaged: It has another one.
    """
    found = hashlib.sha256(data).digest()
    if found != digest:
        raise ArtifactDamaged(
            f"artifact {digest.hex()} in {where} has {len(data)} bytes with digest {found.hex()}",
            hint="restore this artifact from a backup, or run again what made it",
            digest=digest.hex(),
        )
    return data


def hex_of(digest: bytes) -> str:
    """Return the 64 hexadecimal digits of a digest.

    Raises:
        ArtifactError: It is not 32 bytes.
    """
    if len(digest) != 32:
        raise ArtifactError(f"an artifact's digest has 32 bytes, not {len(digest)}")
    return digest.hex()
