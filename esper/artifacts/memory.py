"""Bytes in memory: the real thing without durability."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from esper.artifacts.content import ContentStore
from esper.artifacts.shelf import Advance, Entry, Unfinished


class MemoryShelf:
    """Keeps bytes in a dictionary; gone when the process ends."""

    where = "memory"
    staging: Path | None = None

    def __init__(self) -> None:
        """Start empty."""
        self.kept: dict[str, bytes] = {}
        self.times: dict[str, float] = {}
        self._lock = threading.RLock()

    def put_new(self, name: str, data: bytes) -> bool:
        """Keep bytes under a free name; see ``Shelf.put_new``."""
        with self._lock:
            if name in self.kept:
                return False
            self.replace(name, data)
            return True

    def put_file(self, name: str, file: Path, advance: Advance | None = None) -> bool:
        """Keep a file's bytes under a free name; see ``Shelf.put_file``."""
        data = file.read_bytes()
        if advance is not None:
            advance(len(data), len(data))
        return self.put_new(name, data)

    def replace(self, name: str, data: bytes) -> None:
        """Keep bytes in place of what the name holds."""
        with self._lock:
            self.kept[name] = bytes(data)
            self.times[name] = time.time()

    def get(self, name: str) -> bytes | None:
        """Return the bytes of a name, or None where it is free."""
        return self.kept.get(name)

    unchecked = get

    def part(self, name: str, start: int, length: int) -> bytes | None:
        """Return bytes of a name from an offset on, or None where it is free."""
        data = self.kept.get(name)
        return None if data is None else data[start : start + length]

    def file_of(self, name: str) -> Path | None:
        """Return None: nothing lies in a file."""
        del name
        return None

    def beginning(self, name: str, length: int) -> bytes | None:
        """Return the first bytes of a name, or None where it is free."""
        data = self.kept.get(name)
        return None if data is None else data[:length]

    def size(self, name: str) -> int | None:
        """Return how many bytes a name holds, or None where it is free."""
        data = self.kept.get(name)
        return None if data is None else len(data)

    def names(self, prefix: str = "") -> list[str]:
        """Return every name that begins with a prefix, sorted."""
        return sorted(name for name in list(self.kept) if name.startswith(prefix))

    def entries(self, prefix: str = "") -> list[Entry]:
        """Return every name that begins with a prefix, sorted, with size and time."""
        with self._lock:
            return [Entry(name, len(self.kept[name]), self.times.get(name, 0.0)) for name in self.names(prefix)]

    def stored_at(self, name: str) -> float | None:
        """Return when a name's bytes were written or last touched, or None where it is free."""
        with self._lock:
            return self.times.get(name, 0.0) if name in self.kept else None

    def touch(self, name: str) -> bool:
        """Make a name young again; see ``Shelf.touch``."""
        with self._lock:
            if name in self.kept:
                self.times[name] = time.time()
            return name in self.kept

    def delete(self, name: str, *, before: float | None = None) -> bool:
        """Make a name free; see ``Shelf.delete``."""
        with self._lock:
            if name not in self.kept or (before is not None and self.times.get(name, 0.0) >= before):
                return False
            del self.kept[name]
            self.times.pop(name, None)
            return True

    def unfinished(self) -> list[Unfinished]:
        """Return nothing: no writer leaves anything in memory."""
        return []

    def give_up(self, unfinished: Unfinished) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Keep everything: a closed store in memory can be asked still."""


class MemoryStore(ContentStore):
    """Keeps artifacts in memory."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__(MemoryShelf())
