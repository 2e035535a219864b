"""Bytes in a local directory, in files that are written once and never changed.

A file appears under its name only when all of it is on stable storage: it is written to ``tmp/`` first, forced, linked
to its name, and the folders are forced. What a crash leaves in ``tmp/`` is never read.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from esper.artifacts.content import ContentStore
from esper.artifacts.files import write_new, write_over
from esper.artifacts.shelf import TEMPORARY, is_name
from esper.errors import ArtifactError

_FULL = {errno.ENOSPC, errno.EDQUOT}
#: What file systems answer that know no hard links.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}


class LocalShelf:
    """Keeps bytes in a directory that several processes may share."""

    def __init__(self, path: str | Path) -> None:
        """Use a directory, creating it if it is not there.

        Raises:
            ArtifactError: It cannot be created.
        """
        self.path = Path(path)
        self.where = str(path)
        self._temporary = self.path / TEMPORARY
        try:
            self._temporary.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refused("created", error) from error

    def put_new(self, name: str, data: bytes) -> bool:
        """Keep bytes under a free name; see ``Shelf.put_new``."""
        try:
            return write_new(self.path / name, data, temporary=self._temporary, root=self.path)
        except OSError as error:
            raise self._refused("written", error) from error

    def replace(self, name: str, data: bytes) -> None:
        """Keep bytes in place of what the name holds; see ``Shelf.replace``."""
        try:
            write_over(self.path / name, data, temporary=self._temporary, root=self.path)
        except OSError as error:
            raise self._refused("written", error) from error

    def get(self, name: str) -> bytes | None:
        """Return the bytes of a name, or None where it is free."""
        try:
            return (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise self._refused("read", error) from error

    def beginning(self, name: str, length: int) -> bytes | None:
        """Return the first bytes of a name, or None where it is free."""
        try:
            with (self.path / name).open("rb") as file:
                return file.read(length)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise self._refused("read", error) from error

    def size(self, name: str) -> int | None:
        """Return how many bytes a name holds, or None where it is free."""
        place = self.path / name
        try:
            return place.stat().st_size if place.is_file() else None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refused("read", error) from error

    def names(self, prefix: str = "") -> list[str]:
        """Return every name that begins with a prefix, sorted; other files in the directory are left out."""
        # Only the folder that the prefix leads to is walked.
        start = self.path / prefix.rpartition("/")[0]
        found = []
        try:
            for folder, _, files in os.walk(start, onerror=_raise):
                parent = Path(folder).relative_to(self.path)
                found += [(parent / file).as_posix() for file in files]
        except (FileNotFoundError, NotADirectoryError):
            if start != self.path:
                return []
            raise ArtifactError(
                f"artifact store {self.path} is gone", hint="restore the directory, or check ESPER_ARTIFACTS"
            ) from None
        except OSError as error:
            raise self._refused("read", error) from error
        return sorted(name for name in found if name.startswith(prefix) and is_name(name))

    def close(self) -> None:
        """Do nothing: no file is kept open."""

    def _refused(self, verb: str, error: OSError) -> ArtifactError:
        hint = "check the directory and its permissions"
        if error.errno in _FULL:
            hint = "free space, then try again"
        elif verb == "written" and error.errno in _NO_LINKS:
            hint = "check the permissions; the file system must also know hard links, which give a file its name once"
        return ArtifactError(f"artifact store {self.path} cannot be {verb}: {error.strerror}", hint=hint)


class LocalStore(ContentStore):
    """Keeps artifacts in a local directory: ``ab/abcd...`` by digest."""

    def __init__(self, path: str | Path) -> None:
        """Use a directory, creating it if it is not there.

        Raises:
            ArtifactError: It cannot be created.
        """
        shelf = LocalShelf(path)
        super().__init__(shelf)
        self.path = shelf.path


def _raise(error: OSError) -> None:
    """Let a walk fail over a folder that it cannot read; by itself it would leave the folder out."""
    raise error
