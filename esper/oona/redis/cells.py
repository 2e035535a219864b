"""Cells on Redis: one hash beside the log's streams, changed by Functions of a library of its own.

Durable as the server is. A call whose reply was lost is repeated by the link: a ``take`` that had happened then gives
nothing, and the lease that asked recognises itself as the owner when it looks again.
"""

from __future__ import annotations

import functools
from typing import Any

from esper.oona.cells import Cell, check_value, lost
from esper.oona.redis.library import Library
from esper.oona.redis.link import RedisLink


@functools.cache
def cells_library() -> Library:
    """Return the library of Functions that change cells."""
    return Library("esper_cells", ["cells.lua"])


class RedisCells:
    """Cells in one hash of a Redis server, shared by threads, processes and machines."""

    def __init__(self, link: RedisLink) -> None:
        """Use the link of a log; nothing is asked of the server yet."""
        self._link = link
        self._key = link.keys.cells
        self._library = cells_library()

    def look(self, name: str) -> Cell | None:
        """Return a cell, or None if it was never taken."""
        return _cell(name, self._call("look", name, write=False))

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of all cells that begin with a prefix, sorted."""
        (fields,) = self._link.run([["HKEYS", self._key]])
        return sorted(name for name in map(bytes.decode, fields) if name.startswith(prefix))

    def take(self, name: str, owner: str, *, seen: Cell | None) -> Cell | None:
        """Become the owner of a cell that is still as it was seen; see ``Cells.take``."""
        before = () if seen is None else (seen.owner, seen.token, seen.beat, seen.value)
        return _cell(name, self._call("take", name, owner, *before))

    def write(self, cell: Cell, value: bytes) -> Cell:
        """Set the value of a cell one owns, and renew it; see ``Cells.write``."""
        check_value(cell, value)
        allowed, *rest = self._call("write", cell.name, cell.owner, cell.token, value)
        if not allowed:
            raise lost(cell, Cell(cell.name, rest[0].decode(), 0, 0, b""))
        return Cell(cell.name, rest[0].decode(), rest[1], rest[2], rest[3])

    def free(self, cell: Cell) -> None:
        """Give a cell up, its value kept; nothing happens if another has taken it."""
        self._call("free", cell.name, cell.owner, cell.token)

    def drop(self, cell: Cell) -> None:
        """Forget a cell one owns or saw unowned; nothing happens if it changed since."""
        self._call("drop", cell.name, cell.owner, cell.token)

    def _call(self, function: str, *args: str | bytes | int, write: bool = True) -> Any:
        return self._link.call(self._library, f"esper_cell_{function}", [self._key], args, write=write)


def _cell(name: str, reply: Any) -> Cell | None:
    return None if reply is None else Cell(name, reply[0].decode(), reply[1], reply[2], reply[3])
