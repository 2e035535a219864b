"""The port of the artifact store: bulk bytes under their SHA-256.

Belongs here: the ``ArtifactStore`` protocol and the check every adapter makes. Does not belong here: where bytes go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from esper.artifacts.shelf import Advance
from esper.errors import ArtifactDamaged, ArtifactError


class Kept(NamedTuple):
    """What a listing says of an artifact."""

    digest: bytes
    size_bytes: int
    #: When it was stored, or a ``put`` last relied on it; seconds since the Unix epoch, by the store's clock.
    stored_at: float


class ArtifactStore(Protocol):
    """Keeps bytes by content: the same bytes are kept once, and nothing is ever changed."""

    #: What messages call it, secrets masked.
    where: str
    #: Folder in which a file for ``put_file`` costs no second copy; None where there is none.
    staging: Path | None

    def put(self, data: bytes) -> bytes:
        """Keep bytes and return their digest (32 bytes); bytes that are there already are left as they are.

        Bytes that were stored long ago count as stored now, so that a collection under way leaves them for the fact
        that is about to name them.

        Raises:
            ArtifactError: The bytes cannot be stored; nothing was kept of them.
        """
        ...

    def put_file(self, file: Path, advance: Advance | None = None) -> bytes:
        """Keep a file's bytes without holding all of them in memory; see ``put``.

        On a server a call that was cut off is taken up by the next one. A file in ``staging`` is used up.

        Args:
            file: The file; it must not change meanwhile.
            advance: Called with (bytes stored, bytes in all).
        """
        ...

    def get(self, digest: bytes) -> bytes:
        """Return the bytes of a digest, checked against it.

        Raises:
            ArtifactMissing: No artifact has this digest.
            ArtifactDamaged: The stored bytes do not have this digest.
        """
        ...

    def get_file(self, digest: bytes, file: Path, advance: Advance | None = None) -> int:
        """Write the bytes of a digest to a file, checked against it, without holding all of them in memory.

        They are written to ``<file>.part`` first; one that a call left which was cut off is gone on with.

        Args:
            digest: The digest.
            file: The file, which is replaced.
            advance: Called with (bytes that are here, bytes in all).

        Returns:
            How many bytes were fetched; those of an earlier call are not among them.

        Raises:
            ArtifactMissing: No artifact has this digest.
            ArtifactDamaged: The stored bytes do not have this digest; no file was written.
            ArtifactError: The file cannot be written, or another process is fetching into it.
        """
        ...

    def unchecked(self, digest: bytes) -> bytes | None:
        """Return what lies under a digest, though it be damaged, or None; evidence of damage and nothing else."""
        ...

    def part(self, digest: bytes, start: int, length: int) -> bytes:
        """Return bytes of an artifact from an offset on, fewer at its end; nobody has checked them.

        Raises:
            ArtifactMissing: No artifact has this digest.
        """
        ...

    def file_of(self, digest: bytes) -> Path | None:
        """Return the file in which an artifact lies on this machine, to be read only; None where it lies in none."""
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

    def inventory(self) -> Iterator[Kept]:
        """Yield every artifact with size and time, sorted by digest; cheaper than asking for each."""
        ...

    def stored_at(self, digest: bytes) -> float:
        """Return when an artifact was stored, or a ``put`` last relied on it; see ``Kept``.

        Raises:
            ArtifactMissing: No artifact has this digest.
        """
        ...

    def delete(self, digest: bytes, *, before: float | None = None) -> bool:
        """Take away an artifact and its signatures; tell whether an artifact was there. Twice is fine.

        Killed in the middle, it leaves at most signatures without their artifact, which the next call takes away.

        Args:
            digest: The digest.
            before: Only if it was stored before this time, looked at once more; None for whenever.

        Raises:
            ArtifactError: It cannot be taken away.
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

    def remove_signature(self, digest: bytes, key_id: str) -> bool:
        """Take away one signature of an artifact; tell whether it was there."""
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
