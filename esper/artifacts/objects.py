"""The port of named objects: bytes under names that their writers choose, each written once.

Belongs here: the ``ObjectStore`` protocol, its one implementation over any shelf, and the URLs that name one. The log's
sealed segments and checkpoints are kept here. Does not belong here: bytes by digest (``store``), or what names mean.
"""

from __future__ import annotations

from typing import Protocol, Self

from esper.artifacts.open import open_shelf
from esper.artifacts.shelf import OnShelf, checked_name
from esper.errors import ArtifactConflict, ArtifactMissing


class ObjectStore(Protocol):
    """Keeps bytes under names; what stands under a name never changes."""

    def put(self, name: str, data: bytes) -> bool:
        """Keep bytes under a name, and tell whether they are new there.

        False means that the same bytes stood there already, also when they are this call's own: where the answer to a
        first try was lost, the second one finds them.

        Args:
            name: Parts of ``A-Za-z0-9_.=@+-`` with ``/`` between them. A name cannot be the folder of another one.
            data: The bytes.

        Raises:
            ArtifactConflict: Other bytes stand under the name; they are left as they are.
            ArtifactStoreUnavailable: The store cannot be reached; try again.
            ArtifactError: The name cannot be used or the bytes cannot be kept; nothing of them stands under the name.
        """
        ...

    def get(self, name: str) -> bytes:
        """Return the bytes of a name; whoever reads them checks them, as the store knows no digest.

        Raises:
            ArtifactMissing: Nothing has this name.
            ArtifactDamaged: The store itself noticed that the bytes are not what was put.
            ArtifactStoreUnavailable: The store cannot be reached; try again.
        """
        ...

    def beginning(self, name: str, length: int) -> bytes:
        """Return the first bytes of a name, all if it has fewer, without moving the rest; raises as ``get`` does."""
        ...

    def names(self, prefix: str = "") -> list[str]:
        """Return every name that begins with a prefix, sorted.

        Raises:
            ArtifactStoreUnavailable: The store cannot be reached; try again.
        """
        ...

    def close(self) -> None:
        """Give up connections."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class NamedObjects(OnShelf):
    """Keeps named objects on a shelf."""

    def put(self, name: str, data: bytes) -> bool:
        """Keep bytes under a name; see ``ObjectStore.put``."""
        if self.shelf.put_new(checked_name(name), data):
            return True
        found = self.shelf.get(name)
        if found != data:
            size = "nothing" if found is None else f"{len(found)} other bytes"
            raise ArtifactConflict(
                f"{name} in {self.shelf.where} holds {size} and is written once",
                hint="two writers chose one name, or the stored bytes were changed; neither is overwritten",
                name=name,
            )
        return False

    def get(self, name: str) -> bytes:
        """Return the bytes of a name; see ``ObjectStore.get``."""
        return self._there(name, self.shelf.get(checked_name(name)))

    def beginning(self, name: str, length: int) -> bytes:
        """Return the first bytes of a name; see ``ObjectStore.beginning``."""
        return self._there(name, self.shelf.beginning(checked_name(name), length))

    def _there(self, name: str, data: bytes | None) -> bytes:
        if data is None:
            raise ArtifactMissing(f"no object {name} in {self.shelf.where}", hint="check the store's URL", name=name)
        return data

    def names(self, prefix: str = "") -> list[str]:
        """Return every name that begins with a prefix, sorted; see ``ObjectStore.names``."""
        # Any name that begins so is one: no prefix leads out of the store.
        checked_name(f"{prefix}x")
        return self.shelf.names(prefix)


def open_objects(url: str) -> ObjectStore:
    """Open the object store a URL names; the URLs are those of ``esper.artifacts.open_store``.

    Raises:
        ConfigError: The URL has another form.
        ArtifactError: The folder cannot be created.
    """
    return NamedObjects(open_shelf(url))
