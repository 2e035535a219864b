"""Artifacts: bulk bytes under their SHA-256. The log holds digests, this holds what they stand for."""

from __future__ import annotations

from esper.artifacts.local import LocalStore
from esper.artifacts.memory import MemoryStore
from esper.artifacts.store import ArtifactStore
from esper.errors import ConfigError

__all__ = ["ArtifactStore", "LocalStore", "MemoryStore", "open_store"]


def open_store(url: str) -> ArtifactStore:
    """Open the store a URL names.

    Args:
        url: ``file:///path`` (three slashes and a relative path, or four and an absolute one) or ``memory://``.

    Raises:
        ConfigError: The URL has another form.
        ArtifactError: The directory cannot be created.
    """
    if url == "memory://":
        return MemoryStore()
    scheme, separator, path = url.partition(":///")
    if scheme != "file" or not separator or not path:
        raise ConfigError(
            f"{url!r} does not name an artifact store",
            hint="use file:///relative/path, file:////absolute/path or memory://",
        )
    return LocalStore(path)
