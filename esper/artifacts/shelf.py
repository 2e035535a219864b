"""The port under both stores: a place that keeps bytes by name, on a disk, in a bucket or in memory.

Belongs here: the ``Shelf`` protocol, what names may look like, and ending a use of one. Does not belong here: what
names mean, which is ``content`` (digests) and ``objects`` (names that people choose), or where bytes go, which is a
module per technology: ``local``, ``memory`` and ``s3``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from esper.errors import ArtifactError

#: Called with (bytes done, bytes in all) while something large is on its way.
Advance = Callable[[int, int], None]

#: Most characters of a name, and of one part of it.
MAX_NAME_CHARS = 800
MAX_PART_CHARS = 200
#: First part of a name that no object has: a local shelf writes its files there before they have their names.
TEMPORARY = "tmp"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=@+-]*")


class Entry(NamedTuple):
    """What a listing says of a name."""

    name: str
    size_bytes: int
    #: When its bytes were written or last confirmed, in seconds since the Unix epoch, by the shelf's clock.
    stored_at: float


class Unfinished(NamedTuple):
    """What a writer left that was killed before its bytes had their name."""

    #: What it would have been, as far as that is known.
    name: str
    #: How the shelf finds it again.
    token: str
    #: When it last grew, in seconds since the Unix epoch.
    touched_at: float


class Shelf(Protocol):
    """Keeps bytes by name; each operation happens wholly or not at all, also when the process is killed."""

    #: What messages call it, secrets masked.
    where: str
    #: Folder in which a file for ``put_file`` costs no second copy; None where there is none.
    staging: Path | None

    def put_new(self, name: str, data: bytes) -> bool:
        """Keep bytes under a free name; tell whether it was free. Of several writers exactly one gets the name.

        Raises:
            ArtifactError: They cannot be kept; nothing stands under the name.
        """
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Keep bytes in place of what the name holds.

        Raises:
            ArtifactError: They cannot be kept; the name holds what it held.
        """
        ...

    def put_file(self, name: str, file: Path, advance: Advance | None = None) -> bool:
        """Keep a file's bytes under a free name without holding all of them in memory; see ``put_new``.

        A call that was cut off, also by a kill, is taken up by the next one with the same name and bytes where the
        shelf is on a server. A file in ``staging`` is used up.
        """
        ...

    def get(self, name: str) -> bytes | None:
        """Return the bytes of a name, or None where it is free.

        Raises:
            ArtifactError: They cannot be read.
            ArtifactDamaged: The shelf itself noticed that they are not what was put.
        """
        ...

    def unchecked(self, name: str) -> bytes | None:
        """Return what lies under a name, though it be damaged, or None where it is free; only ever evidence."""
        ...

    def part(self, name: str, start: int, length: int) -> bytes | None:
        """Return bytes of a name from an offset on, fewer at its end, or None where it is free."""
        ...

    def file_of(self, name: str) -> Path | None:
        """Return the file that holds a name's bytes on this machine, to be read only; None where there is none."""
        ...

    def beginning(self, name: str, length: int) -> bytes | None:
        """Return the first bytes of a name, all if it has fewer, or None where it is free; raises as ``get`` does."""
        ...

    def size(self, name: str) -> int | None:
        """Return how many bytes a name holds, or None where it is free.

        Raises:
            ArtifactError: It cannot be told.
        """
        ...

    def names(self, prefix: str = "") -> list[str]:
        """Return every name that begins with a prefix, sorted.

        Raises:
            ArtifactError: They cannot be listed.
        """
        ...

    def entries(self, prefix: str = "") -> list[Entry]:
        """Return every name that begins with a prefix, sorted, with size and time; raises as ``names`` does."""
        ...

    def stored_at(self, name: str) -> float | None:
        """Return when a name's bytes were written or last touched, or None where it is free."""
        ...

    def touch(self, name: str) -> bool:
        """Make a name as young as if its bytes were written now; tell whether it was there."""
        ...

    def delete(self, name: str, *, before: float | None = None) -> bool:
        """Make a name free; tell whether something was taken away. Only collection and repair do so.

        Args:
            name: The name.
            before: Only if it was stored before this time, looked at once more; None for whenever.

        Raises:
            ArtifactError: It cannot be taken away.
        """
        ...

    def unfinished(self) -> list[Unfinished]:
        """Return what killed writers left, and what writers are at now; ``touched_at`` tells the two apart."""
        ...

    def give_up(self, unfinished: Unfinished) -> None:
        """Take away what a killed writer left; nothing happens if it is gone or finished."""
        ...

    def close(self) -> None:
        """Give up connections."""
        ...


class OnShelf:
    """What both stores share: they own a shelf and close it."""

    def __init__(self, shelf: Shelf) -> None:
        """Keep things on a shelf, which is closed with the store."""
        self.shelf = shelf

    def close(self) -> None:
        """Give up connections; the store cannot be used afterwards."""
        self.shelf.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def checked_name(name: str) -> str:
    """Return a name if every shelf can keep it: parts of ``A-Za-z0-9_.=@+-`` with ``/`` between them.

    Raises:
        ArtifactError: A part is empty, too long, begins with another sign than a letter, a digit or ``_``, or has
            other characters; or the first part is ``tmp``.
    """
    if not is_name(name):
        raise ArtifactError(
            f"{name[:100]!r} cannot name an object",
            hint="names have parts of A-Z a-z 0-9 _ . = @ + - with / between them, none beginning with a sign but _; "
            f"the first is not {TEMPORARY}",
        )
    return name


def is_name(text: str) -> bool:
    """Tell whether ``checked_name`` takes a text."""
    parts = text.split("/")
    return (
        len(text) <= MAX_NAME_CHARS
        and parts[0] != TEMPORARY
        and all(len(one) <= MAX_PART_CHARS and _PART.fullmatch(one) for one in parts)
    )
