"""Fetching a large artifact piece by piece into a file, and going on where a fetch was cut off.

Belongs here: the partial file, who may write to it, and the check of all of it at the end. Does not belong here: how a
piece is read, which each shelf knows, or which artifacts are fetched (``copying``).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from esper.artifacts.shelf import Advance
from esper.artifacts.store import hex_of
from esper.errors import ArtifactDamaged, ArtifactError

#: Bytes that are asked for at once: what is held in memory, and what a cut connection costs at most.
PIECE_BYTES = 8 << 20
_PARTIAL = ".part"


class Source(Protocol):
    """What is asked of a store to fetch from it."""

    where: str

    def size(self, digest: bytes) -> int:
        """Return an artifact's size in bytes."""
        ...

    def part(self, digest: bytes, start: int, length: int) -> bytes:
        """Return bytes of an artifact from an offset on."""
        ...


def fetch(source: Source, digest: bytes, file: Path, advance: Advance | None = None) -> int:
    """Write an artifact's bytes to a file, checked; see ``ArtifactStore.get_file``."""
    hex_of(digest)
    size = source.size(digest)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        place = file.with_name(file.name + _PARTIAL)
        with _alone(place) as partial:
            fetched, found = _filled(source, digest, size, partial, advance)
            if found != digest and fetched < size:
                # What an earlier call left may be what is wrong: nothing of it is kept.
                partial.truncate(0)
                fetched, found = _filled(source, digest, size, partial, advance)
            if found != digest:
                partial.truncate(0)
                raise ArtifactDamaged(
                    f"artifact {digest.hex()} in {source.where} has {size} bytes with digest {found.hex()}",
                    hint="restore this artifact from a backup, or run again what made it",
                    digest=digest.hex(),
                )
            os.fsync(partial.fileno())
            place.replace(file)
    except ArtifactError:
        raise
    except OSError as error:
        raise ArtifactError(
            f"{file} cannot be written: {error.strerror}", hint="check the folder and its room"
        ) from error
    return fetched


def digest_of(file: Path) -> bytes:
    """Return the SHA-256 of a file, read piece by piece.

    Raises:
        ArtifactError: It cannot be read.
    """
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror}", hint="check the file") from error


def _filled(source: Source, digest: bytes, size: int, partial: IO[bytes], advance: Advance | None) -> tuple[int, bytes]:
    """Fetch what a partial file lacks; return how much that was, and the digest of all of it."""
    partial.seek(0)
    total = hashlib.sha256()
    done = 0
    while done < size and (known := partial.read(min(PIECE_BYTES, size - done))):
        total.update(known)
        done += len(known)
    partial.truncate(done)
    fetched = 0
    while True:
        if advance is not None:
            advance(done, size)
        if done == size:
            return fetched, total.digest()
        piece = source.part(digest, done, min(PIECE_BYTES, size - done))
        if not piece:
            return fetched, total.digest()
        partial.write(piece)
        partial.flush()
        total.update(piece)
        done += len(piece)
        fetched += len(piece)


@contextmanager
def _alone(place: Path) -> Iterator[IO[bytes]]:
    """Open a partial file for this process alone; one that is empty in the end is taken away.

    Raises:
        ArtifactError: Another process has it.
    """
    while True:
        with open(os.open(place, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ArtifactError(
                    f"another process is fetching into {place}", hint="wait for it, or choose another file"
                ) from None
            if not _is_at(place, opened):  # whoever had it before has finished since it was opened
                continue
            try:
                yield opened
            finally:
                if _is_at(place, opened) and os.fstat(opened.fileno()).st_size == 0:
                    place.unlink()
            return


def _is_at(place: Path, opened: IO[bytes]) -> bool:
    try:
        return place.stat().st_ino == os.fstat(opened.fileno()).st_ino
    except FileNotFoundError:
        return False
