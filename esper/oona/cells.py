"""Cells: small named values that handlers coordinate with, beside the log.

A cell holds who owns it, a fencing token that grows with every change of owner, a beat that grows with every renewal,
and a value. Nothing true is kept in cells alone: without them every handler starts from the beginning and its effects,
which are idempotent, come out the same. Belongs here: the port and the adapter in memory. Does not belong here: what
cells are used for (``consuming.lease``, ``consuming.consumer``).
"""

from __future__ import annotations

import threading
from typing import Protocol

import msgspec

from esper.errors import LeaseLost, SchemaError

#: Largest value of a cell, in bytes.
MAX_VALUE_BYTES = 1 << 16


class Cell(msgspec.Struct, frozen=True):
    """One cell as it was seen."""

    name: str
    #: Who holds it; empty while nobody does.
    owner: str
    #: Grows by one with every ``take``; what is written under an older token is refused.
    token: int
    #: Grows by one with every ``write``, so that an observer sees that the owner lives.
    beat: int
    #: At most ``MAX_VALUE_BYTES``.
    value: bytes


class Cells(Protocol):
    """Named cells that are changed by comparing first; every method is atomic and durable as the log is."""

    def look(self, name: str) -> Cell | None:
        """Return a cell, or None if it was never taken."""
        ...

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of all cells that begin with a prefix, sorted."""
        ...

    def take(self, name: str, owner: str, *, seen: Cell | None) -> Cell | None:
        """Become the owner of a cell that is still as it was seen, its value unchanged.

        Args:
            name: Name of the cell.
            owner: Who takes it; not empty.
            seen: What ``look`` gave; None where there was no cell.

        Returns:
            The cell as it is now, its token one higher; None if it changed since it was seen.
        """
        ...

    def write(self, cell: Cell, value: bytes) -> Cell:
        """Set the value of a cell one owns, and renew it; returns the cell as it is now.

        Raises:
            LeaseLost: The cell has another token or another owner.
            SchemaError: The value is longer than ``MAX_VALUE_BYTES``.
        """
        ...

    def free(self, cell: Cell) -> None:
        """Give a cell up, its value kept; nothing happens if another has taken it."""
        ...

    def drop(self, cell: Cell) -> None:
        """Forget a cell one owns or saw unowned; nothing happens if it changed since."""
        ...


class MemoryCells:
    """Cells of one process."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._cells: dict[str, Cell] = {}

    def look(self, name: str) -> Cell | None:
        """Return a cell, or None if it was never taken."""
        with self._lock:
            return self._cells.get(name)

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of all cells that begin with a prefix, sorted."""
        with self._lock:
            return sorted(name for name in self._cells if name.startswith(prefix))

    def take(self, name: str, owner: str, *, seen: Cell | None) -> Cell | None:
        """Become the owner of a cell that is still as it was seen; see ``Cells.take``."""
        with self._lock:
            if self._cells.get(name) != seen:
                return None
            cell = taken(name, owner, seen)
            self._cells[name] = cell
            return cell

    def write(self, cell: Cell, value: bytes) -> Cell:
        """Set the value of a cell one owns, and renew it; see ``Cells.write``."""
        check_value(cell, value)
        with self._lock:
            there = self._cells.get(cell.name)
            if there is None or (there.token, there.owner) != (cell.token, cell.owner):
                raise lost(cell, there)
            written = Cell(cell.name, cell.owner, cell.token, there.beat + 1, value)
            self._cells[cell.name] = written
            return written

    def free(self, cell: Cell) -> None:
        """Give a cell up, its value kept; nothing happens if another has taken it."""
        with self._lock:
            there = self._cells.get(cell.name)
            if there is not None and (there.token, there.owner) == (cell.token, cell.owner):
                self._cells[cell.name] = Cell(cell.name, "", there.token, there.beat, there.value)

    def drop(self, cell: Cell) -> None:
        """Forget a cell one owns or saw unowned; nothing happens if it changed since."""
        with self._lock:
            there = self._cells.get(cell.name)
            if there is not None and (there.token, there.owner) == (cell.token, cell.owner):
                del self._cells[cell.name]


def taken(name: str, owner: str, seen: Cell | None) -> Cell:
    """Return the cell that a ``take`` leaves."""
    if seen is None:
        return Cell(name, owner, 1, 0, b"")
    return Cell(name, owner, seen.token + 1, seen.beat, seen.value)


def check_value(cell: Cell, value: bytes) -> None:
    """See that a value is not too long for a cell.

    Raises:
        SchemaError: It is longer than ``MAX_VALUE_BYTES``.
    """
    if len(value) > MAX_VALUE_BYTES:
        raise SchemaError(f"a value of {len(value)} bytes is too long for {cell.name}: a cell takes {MAX_VALUE_BYTES}")


def lost(cell: Cell, there: Cell | None) -> LeaseLost:
    """Return the error of an owner who finds another in its cell."""
    owner = "" if there is None else there.owner
    now = f"{owner} holds it" if owner else "nobody holds it"
    return LeaseLost(f"{cell.owner} no longer holds {cell.name}: {now}", name=cell.name, owner=owner)
