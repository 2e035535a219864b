"""Artifacts: bulk bytes under their SHA-256. The log holds digests, this holds what they stand for."""

from __future__ import annotations

from esper.artifacts.content import ContentStore
from esper.artifacts.local import LocalStore
from esper.artifacts.memory import MemoryStore
from esper.artifacts.objects import ObjectStore, open_objects
from esper.artifacts.open import open_shelf
from esper.artifacts.store import ArtifactStore

__all__ = ["ArtifactStore", "LocalStore", "MemoryStore", "ObjectStore", "open_objects", "open_store"]


def open_store(url: str) -> ContentStore:
    """Open the store a URL names.

    Args:
        url: ``file:///path`` (three slashes and a relative path, or four and an absolute one),
            ``s3://bucket/prefix?endpoint_url=...&region=...`` or ``memory://``.

    Raises:
        ConfigError: The URL has another form.
        ArtifactError: The directory cannot be created.
        ModuleNotFoundError: The URL is one of S3 and boto3 is not installed.
    """
    return ContentStore(open_shelf(url))
