"""Bytes in a local directory, in files that are written once and never changed.

A file appears under its name only when all of it is on stable storage: it is written to ``tmp/`` first, forced, linked
to its name, and the folders are forced. What a crash leaves in ``tmp/`` is never read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from esper.artifacts.content import ContentStore
from esper.artifacts.files import link_new, sync_names, write_new, write_over
from esper.artifacts.shelf import TEMPORARY, Advance, Entry, Unfinished, is_name
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
        self.staging: Path | None = self._temporary
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

    def put_file(self, name: str, file: Path, advance: Advance | None = None) -> bool:
        """Keep a file's bytes under a free name; see ``Shelf.put_file``."""
        place = self.path / name
        size = file.stat().st_size
        try:
            if place.exists():
                return False
            # A file on its way into this store already lies on its disk.
            finished = file if file.parent == self._temporary else self._copied(file)
            try:
                written = link_new(finished, place, root=self.path)
            finally:
                finished.unlink(missing_ok=True)
        except OSError as error:
            raise self._refused("written", error) from error
        if advance is not None:
            advance(size, size)
        return written

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

    unchecked = get

    def part(self, name: str, start: int, length: int) -> bytes | None:
        """Return bytes of a name from an offset on, or None where it is free."""
        try:
            with (self.path / name).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise self._refused("read", error) from error

    def file_of(self, name: str) -> Path | None:
        """Return the file that holds a name's bytes, or None where it is free."""
        place = self.path / name
        return place if place.is_file() else None

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

    def entries(self, prefix: str = "") -> list[Entry]:
        """Return every name that begins with a prefix, sorted, with size and time."""
        found = []
        for name in self.names(prefix):
            # It may have been taken away since it was listed.
            with suppress(FileNotFoundError):
                status = (self.path / name).stat()
                found.append(Entry(name, status.st_size, status.st_mtime))
        return found

    def stored_at(self, name: str) -> float | None:
        """Return when a name's bytes were written or last touched, or None where it is free."""
        place = self.path / name
        try:
            return place.stat().st_mtime if place.is_file() else None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refused("read", error) from error

    def touch(self, name: str) -> bool:
        """Make a name young again; see ``Shelf.touch``."""
        try:
            with _locked(self.path / name) as file:
                if file is None:
                    return False
                os.utime(file)
        except OSError as error:
            raise self._refused("written", error) from error
        return True

    def delete(self, name: str, *, before: float | None = None) -> bool:
        """Make a name free; see ``Shelf.delete``.

        Whoever touches the file at the same moment either is seen or finds it gone: both hold a lock of it.
        """
        place = self.path / name
        try:
            with _locked(place) as file:
                if file is None or (before is not None and os.fstat(file).st_mtime >= before):
                    return False
                place.unlink()
            sync_names(place, self.path)
        except OSError as error:
            raise self._refused("written", error) from error
        return True

    def unfinished(self) -> list[Unfinished]:
        """Return the files that have no name yet, of writers that were killed or are at it."""
        found = []
        for file in sorted(self._temporary.iterdir()):
            with suppress(FileNotFoundError):
                found.append(Unfinished(file.name.removesuffix(".part"), file.name, file.stat().st_mtime))
        return found

    def give_up(self, unfinished: Unfinished) -> None:
        """Take away a file that has no name; see ``Shelf.give_up``."""
        try:
            (self._temporary / unfinished.token).unlink(missing_ok=True)
        except OSError as error:
            raise self._refused("written", error) from error

    def close(self) -> None:
        """Do nothing: no file is kept open."""

    def _copied(self, file: Path) -> Path:
        """Return a copy of a file on this disk."""
        fd, name = tempfile.mkstemp(dir=self._temporary)
        copy = Path(name)
        try:
            with open(fd, "wb") as target, file.open("rb") as source:
                os.fchmod(fd, 0o644)
                shutil.copyfileobj(source, target, 1 << 20)
        except BaseException:
            copy.unlink(missing_ok=True)
            raise
        return copy

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


@contextmanager
def _locked(place: Path) -> Iterator[int | None]:
    """Hold the lock of the file that a name stands for, while it is not taken away; None where the name is free."""
    try:
        file = os.open(place, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        yield None
        return
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            yield None
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        # It may have lost its name while its lock was waited for.
        yield file if os.fstat(file).st_nlink else None
    finally:
        os.close(file)


def _raise(error: OSError) -> None:
    """Let a walk fail over a folder that it cannot read; by itself it would leave the folder out."""
    raise error
