"""Files that appear whole or not at all: written beside, forced to disk, then given their name.

Belongs here: the two ways a finished file gets its name (only if that is free, or in place of what is there) and the
forcing of both to stable storage. Does not belong here: what the files are for.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_new(place: Path, data: bytes, *, temporary: Path, root: Path, mode: int = 0o644) -> bool:
    """Write a file under a name that is free; tell whether it was.

    Of several writers exactly one gets the name. When this returns, the name and its bytes are on stable storage,
    also when somebody else wrote them: they may have been killed before they forced the name.

    Args:
        place: The name.
        data: The bytes.
        temporary: An existing folder on the same file system, where the file is written before it has its name.
        root: The folder that was there before; those between it and the name are made.
        mode: Permissions of the file.

    Raises:
        OSError: It cannot be written; nothing stands under the name.
    """
    written = not place.exists()
    if written:
        place.parent.mkdir(parents=True, exist_ok=True)
        finished = _finished(data, temporary, mode)
        try:
            # A link fails where the name is taken; a rename would replace it.
            os.link(finished, place)
        except FileExistsError:
            written = False
        finally:
            finished.unlink(missing_ok=True)
    sync_names(place, root)
    return written


def link_new(file: Path, place: Path, *, root: Path) -> bool:
    """Give a file a second name that is free; tell whether it was. See ``write_new``.

    Args:
        file: A whole file on the same file system; it is forced to stable storage first.
        place: The name.
        root: The folder that was there before.

    Raises:
        OSError: It cannot be done; nothing of the file stands under the name.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(file, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    try:
        os.link(file, place)
    except FileExistsError:
        return False
    finally:
        sync_names(place, root)
    return True


def write_over(place: Path, data: bytes, *, temporary: Path, root: Path, mode: int = 0o644) -> None:
    """Write a file in place of what its name holds now; see ``write_new``.

    Raises:
        OSError: It cannot be written; the name holds what it held.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    finished = _finished(data, temporary, mode)
    try:
        finished.replace(place)
    finally:
        finished.unlink(missing_ok=True)
    sync_names(place, root)


def sync_names(place: Path, root: Path) -> None:
    """Force the file's name to stable storage, and those of the folders that lead to it from the root."""
    for folder in place.parents:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if folder == root:
            break


def _finished(data: bytes, temporary: Path, mode: int) -> Path:
    """Return a file of a name nobody else has, its bytes on stable storage."""
    fd, name = tempfile.mkstemp(dir=temporary)
    finished = Path(name)
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        finished.unlink(missing_ok=True)
        raise
    return finished
