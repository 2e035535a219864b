"""What a disk holds after the power fails: files rebuilt from the journal that ``power_journal.c`` notes.

A write counts for sure once its file was forced after it, a name once its directory was. Until then each 512-byte
sector, truncation and name may or may not have reached the disk; a draw decides, or nothing is let through. Processes
that share a journal share its order, so that a receipt written down in one stands behind what another forced for it.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

_RECORD = struct.Struct("<cQIH")
_SECTOR_BYTES = 512


class Operation(NamedTuple):
    """One thing a process did to a file."""

    kind: str
    path: str
    offset: int
    data: bytes


def read_journal(path: Path) -> list[Operation]:
    """Return the operations of a journal, in order."""
    data = path.read_bytes()
    operations = []
    place = 0
    while place < len(data):
        kind, offset, length, name = _RECORD.unpack_from(data, place)
        place += _RECORD.size
        file = data[place : place + name].decode()
        place += name
        operations.append(Operation(kind.decode(), file, offset, data[place : place + length]))
        place += length
    return operations


@dataclass
class _File:
    """A file's bytes for sure, and what was done to it since."""

    forced: bytearray = field(default_factory=bytearray)
    later: list[Operation] = field(default_factory=list)

    def force(self) -> None:
        for operation in self.later:
            _apply(self.forced, operation)
        self.later.clear()

    def image(self, draw: random.Random | None) -> bytes:
        content = bytearray(self.forced)
        if draw is not None:
            for operation in self.later:
                for part in _parts(operation):
                    if draw.random() < 0.5:
                        _apply(content, part)
        return bytes(content)


def _parts(operation: Operation) -> list[Operation]:
    """Return the pieces of an operation that reach the disk each for itself."""
    if operation.kind == "t":
        return [operation]
    first = -(operation.offset % _SECTOR_BYTES)
    cuts = range(first, len(operation.data), _SECTOR_BYTES)
    return [
        operation._replace(
            offset=operation.offset + max(cut, 0), data=operation.data[max(cut, 0) : cut + _SECTOR_BYTES]
        )
        for cut in cuts
    ]


def _apply(content: bytearray, operation: Operation) -> None:
    end = operation.offset + len(operation.data)
    if operation.kind == "t":
        del content[operation.offset :]
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    content[operation.offset : end] = operation.data


class Disk:
    """Files of one folder as processes change them; its subfolders count as there from the start."""

    def __init__(self, root: Path) -> None:
        """Begin with an empty folder.

        Args:
            root: The folder, as the journal names it.
        """
        self._root = root
        self._now: dict[str, _File] = {}
        self._forced: dict[str, _File] = {}

    def do(self, operation: Operation) -> None:
        """Take in the next operation."""
        kind, path = operation.kind, operation.path
        if kind == "d":
            self._forced = {**_outside(path, self._forced), **_inside(path, self._now)}
        elif kind == "u":
            self._now.pop(path, None)
        elif kind == "r":
            # A file the journal has not seen was written by the C library and never forced: nothing of it is sure.
            self._now[operation.data.decode()] = self._now.pop(path, _File())
        elif kind == "l":
            self._now[operation.data.decode()] = self._now[path]
        elif kind == "c":
            self._now[path] = _File()
        elif kind == "s":
            self._now[path].force()
        else:
            self._now[path].later.append(operation)

    def fail(self, folder: Path, draw: random.Random | None) -> None:
        """Write what the disk holds if the power fails now into an empty folder.

        Args:
            folder: Where to write.
            draw: Decides what else reached the disk; None lets nothing through that was not forced.
        """
        names = dict(self._forced)
        if draw is not None:
            for path in sorted(self._now.keys() | self._forced.keys()):
                if self._now.get(path) is not self._forced.get(path) and draw.random() < 0.5:
                    names.pop(path, None)
                    if path in self._now:
                        names[path] = self._now[path]
        for path, file in names.items():
            place = folder / Path(path).relative_to(self._root)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.image(draw))


def _inside(folder: str, files: dict[str, _File]) -> dict[str, _File]:
    return {path: file for path, file in files.items() if path.rpartition("/")[0] == folder}


def _outside(folder: str, files: dict[str, _File]) -> dict[str, _File]:
    return {path: file for path, file in files.items() if path.rpartition("/")[0] != folder}


def cuts(operations: Sequence[Operation], count: int, draw: random.Random) -> list[int]:
    """Return moments to fail at: some at random, the others right after an acknowledgement or before a force."""
    telling = [
        place + after
        for place, one in enumerate(operations)
        for kind, name, after in (("w", "acks", 1), ("s", "", 0))
        if one.kind == kind and one.path.endswith(name)
    ]
    some = draw.sample(telling, min(len(telling), count // 2))
    return sorted({*some, *(draw.randrange(1, len(operations) + 1) for _ in range(count - len(some)))})
