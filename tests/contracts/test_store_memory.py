"""Memory keeps the contract of both stores."""

from __future__ import annotations

import pytest
from store_contract import ObjectsContract, ShelfContract, StoreContract, harmed

from esper.artifacts import MemoryStore, open_objects, open_store
from esper.artifacts.memory import MemoryShelf


class InMemory(ShelfContract):
    @pytest.fixture(autouse=True)
    def _shelf(self) -> None:
        self.shelf = MemoryShelf()

    def open_shelf(self) -> MemoryShelf:
        return self.shelf

    def harm(self, name: str, how: str) -> None:
        self.shelf.kept[name] = harmed(self.shelf.kept[name], how)


class TestMemoryStore(InMemory, StoreContract):
    pass


class TestMemoryObjects(InMemory, ObjectsContract):
    pass


def test_each_store_in_memory_has_its_own_memory() -> None:
    digest = open_store("memory://").put(b"weights")
    assert not open_store("memory://").has(digest)
    assert not MemoryStore().has(digest)
    open_objects("memory://").put("one", b"1")
    assert open_objects("memory://").names() == []


def test_bytes_that_their_owner_changes_later_stay_as_they_were() -> None:
    data = bytearray(b"weights")
    store = MemoryStore()
    digest = store.put(data)
    data[0] = 0
    assert store.get(digest) == b"weights"
