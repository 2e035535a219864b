"""Copying an artifact with its signatures from one store to another, so that a copy that was cut off goes on.

Belongs here: the way one artifact takes. Does not belong here: fetching a piece (``fetch``), sending one (the shelves),
or which artifacts are copied (``esper.cli.artifact_copy``).

Bytes are checked against their digest before the other store has them. Small artifacts go through memory; large ones
through a file, in the target store where that is a folder, else in a folder for files on their way.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from esper.artifacts.fetch import PIECE_BYTES, digest_of
from esper.artifacts.shelf import Advance
from esper.artifacts.store import ArtifactStore
from esper.errors import ArtifactDamaged


class Copied(NamedTuple):
    """What a copy of one artifact came to."""

    size_bytes: int
    #: Whether the target did not have it before.
    new: bool
    #: Signatures that the target did not have before.
    signatures: int


def copy(
    source: ArtifactStore, target: ArtifactStore, digest: bytes, *, on_the_way: Path, advance: Advance | None = None
) -> Copied:
    """Copy one artifact and its signatures; what the target has is not copied again.

    Args:
        source: Store that has it.
        target: Store that is to have it. An artifact of the right size is there; its bytes are not read.
        digest: Which.
        on_the_way: Folder for a file that is fetched from one server and sent to another; made when it is needed.
        advance: Called with (bytes that are through, bytes in all).

    Raises:
        ArtifactMissing: The source does not have it.
        ArtifactDamaged: The source has other bytes; the target was given none of them.
        ArtifactConflict: The target has another signature of the same key.
        ArtifactStoreUnavailable: A store is away; the next call goes on.
        ArtifactError: It cannot be read or kept.
    """
    size = source.size(digest)
    new = not target.has(digest) or target.size(digest) != size
    if new:
        if size <= PIECE_BYTES:
            target.put(source.get(digest))
        else:
            _through_file(source, target, digest, on_the_way, advance)
    if advance is not None:
        advance(size, size)
    signatures = source.signatures(digest)
    added = [target.add_signature(digest, key_id, signature) for key_id, signature in signatures.items()]
    return Copied(size, new, sum(added))


def _through_file(
    source: ArtifactStore, target: ArtifactStore, digest: bytes, on_the_way: Path, advance: Advance | None
) -> None:
    own = source.file_of(digest)
    if own is not None and target.staging is None:
        _require(digest, own, source.where)
        target.put_file(own, advance)
        return
    file = (target.staging or on_the_way) / digest.hex()
    # A file that is whole was fetched by a call that was cut off while it sent it on.
    if not (file.exists() and digest_of(file) == digest):
        source.get_file(digest, file, advance if target.staging is not None else _half(advance, 0))
    target.put_file(file, None if target.staging is not None else _half(advance, 1))
    file.unlink(missing_ok=True)


def _half(advance: Advance | None, already: int) -> Advance | None:
    """Return a progress function for one of two halves of a way."""
    if advance is None:
        return None
    return lambda done, size: advance((already * size + done) // 2, size)


def _require(digest: bytes, file: Path, where: str) -> None:
    found = digest_of(file)
    if found != digest:
        raise ArtifactDamaged(
            f"artifact {digest.hex()} in {where} has digest {found.hex()}",
            hint="restore this artifact from a backup, or run again what made it",
            digest=digest.hex(),
        )
