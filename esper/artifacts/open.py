"""The URLs that name a place for bytes, and opening it.

Belongs here: reading URLs. Does not belong here: what is kept there.
"""

from __future__ import annotations

from esper.artifacts.local import LocalShelf
from esper.artifacts.memory import MemoryShelf
from esper.artifacts.shelf import Shelf
from esper.errors import ConfigError
from esper.redact import mask_text


def open_shelf(url: str) -> Shelf:
    """Open the place a URL names.

    Args:
        url: ``file:///path`` (three slashes and a relative path, or four and an absolute one),
            ``s3://bucket/prefix?endpoint_url=...&region=...`` or ``memory://``.

    Raises:
        ConfigError: The URL has another form.
        ArtifactError: The directory cannot be created.
        ModuleNotFoundError: The URL is one of S3 and boto3 is not installed.
    """
    if url == "memory://":
        return MemoryShelf()
    if url.startswith("s3://"):
        from esper.artifacts.s3 import S3Shelf

        return S3Shelf.open(url)
    scheme, separator, path = url.partition(":///")
    if scheme != "file" or not separator or not path:
        raise ConfigError(
            f"{mask_text(url)!r} does not name an artifact store",
            hint="use file:///relative/path, file:////absolute/path, s3://bucket/prefix or memory://",
        )
    return LocalShelf(path)
