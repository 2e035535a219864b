"""Bytes in memory: the real thing without durability."""

from __future__ import annotations

import threading

from esper.artifacts.content import ContentStore


class MemoryShelf:
    """Keeps bytes in a dictionary; gone when the process ends."""

    where = "memory"

    def __init__(self) -> None:
        """Start empty."""
        self.kept: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def put_new(self, name: str, data: bytes) -> bool:
        """Keep bytes under a free name; see ``Shelf.put_new``."""
        with self._lock:
            if name in self.kept:
                return False
            self.kept[name] = bytes(data)
            return True

    def replace(self, name: str, data: bytes) -> None:
        """Keep bytes in place of what the name holds."""
        self.kept[name] = bytes(data)

    def get(self, name: str) -> bytes | None:
        """Return the bytes of a name, or None where it is free."""
        return self.kept.get(name)

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

    def close(self) -> None:
        """Keep everything: a closed store in memory can be asked still."""


class MemoryStore(ContentStore):
    """Keeps artifacts in memory."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__(MemoryShelf())
