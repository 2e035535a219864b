"""Artifacts in a local directory: ``ab/abcd...`` by digest, written once and never changed.

An artifact appears under its name only when all of it is on stable storage: it is written to ``tmp/`` first, forced,
linked to its name, and the directory is forced. What a crash leaves in ``tmp/`` is never read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from esper.artifacts.store import checked, hex_of
from esper.errors import ArtifactError, ArtifactMissing

_FOLDER = re.compile(r"[0-9a-f]{2}")
_NAME = re.compile(r"[0-9a-f]{64}")


class LocalStore:
    """Keeps artifacts in a directory that several processes may share."""

    def __init__(self, path: str | Path) -> None:
        """Use a directory, creating it if it is not there.

        Raises:
            ArtifactError: It cannot be created.
        """
        self.path = Path(path)
        self._temporary = self.path / "tmp"
        try:
            self._temporary.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refused("created", error) from error

    def put(self, data: bytes) -> bytes:
        """Keep bytes and return their digest; see ``ArtifactStore.put``.

        A file of that name is trusted only if it has the right bytes; a damaged one is replaced.

        Raises:
            ArtifactError: The disk is full or refuses; nothing was kept.
        """
        digest = hashlib.sha256(data).digest()
        place = self._place(digest)
        try:
            if not self._holds(place, digest):
                self._write(place, data)
            # Also for a file that was there: whoever put it may have been killed before its name was forced.
            _sync_directory(place.parent)
            _sync_directory(self.path)
        except OSError as error:
            raise self._refused("written", error) from error
        return digest

    def get(self, digest: bytes) -> bytes:
        """Return the bytes of a digest, checked against it; see ``ArtifactStore.get``."""
        place = self._place(digest)
        try:
            data = place.read_bytes()
        except FileNotFoundError:
            raise self._missing(digest) from None
        except OSError as error:
            raise self._refused("read", error) from error
        return checked(digest, data, str(self.path))

    def has(self, digest: bytes) -> bool:
        """Tell whether an artifact has this digest; its bytes are checked by ``get``."""
        return self._place(digest).is_file()

    def size(self, digest: bytes) -> int:
        """Return an artifact's size in bytes; see ``ArtifactStore.size``."""
        try:
            return self._place(digest).stat().st_size
        except FileNotFoundError:
            raise self._missing(digest) from None

    def digests(self) -> Iterator[bytes]:
        """Yield the digest of every artifact, sorted."""
        for folder in sorted(self.path.iterdir()):
            if _FOLDER.fullmatch(folder.name):
                names = sorted(one.name for one in folder.iterdir() if _NAME.fullmatch(one.name))
                yield from map(bytes.fromhex, names)

    def _place(self, digest: bytes) -> Path:
        name = hex_of(digest)
        return self.path / name[:2] / name

    def _holds(self, place: Path, digest: bytes) -> bool:
        try:
            with place.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest() == digest
        except FileNotFoundError:
            return False

    def _write(self, place: Path, data: bytes) -> None:
        fd, name = tempfile.mkstemp(dir=self._temporary)
        temporary = Path(name)
        try:
            with open(fd, "wb") as file:
                os.fchmod(fd, 0o644)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            place.parent.mkdir(exist_ok=True)
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)

    def _missing(self, digest: bytes) -> ArtifactMissing:
        return ArtifactMissing(
            f"no artifact {digest.hex()} in {self.path}",
            hint="check ESPER_ARTIFACTS: it must be the store this log was written with",
            digest=digest.hex(),
        )

    def _refused(self, verb: str, error: OSError) -> ArtifactError:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        return ArtifactError(
            f"artifact store {self.path} cannot be {verb}: {error.strerror}",
            hint="free space, then try again" if full else "check the directory and its permissions",
        )


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
