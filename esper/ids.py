"""Identifiers: where they come from and how they are spelled.

Random ids are UUIDv7 (they sort by time, which nothing relies on); derived ids are UUIDv5 of their cause, so
that a retry gives the same id.
"""

from __future__ import annotations

import hashlib
import uuid

import uuid_utils

_NAMESPACE = uuid.UUID("0e0f3f0a-3a0b-5c58-9c6c-65737065720a")


def new_event_id() -> bytes:
    """Return a fresh 16-byte UUIDv7."""
    return uuid_utils.uuid7().bytes


def new_trace_id() -> str:
    """Return a fresh trace id: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def new_run_id() -> str:
    """Return a fresh run id: ``run-`` and 26 hexadecimal digits of a UUIDv7, newest sorting last."""
    return f"run-{uuid_utils.uuid7().hex[:26]}"


def derived_id(*cause: str | int) -> bytes:
    """Return the 16-byte UUIDv5 of a cause, e.g. ``derived_id("run", run_id, attempt, ordinal)``."""
    return uuid.uuid5(_NAMESPACE, "/".join(str(part) for part in cause)).bytes


def sha256(data: bytes) -> bytes:
    """Return the 32-byte SHA-256 of data."""
    return hashlib.sha256(data).digest()


def short(digest: bytes | str, digits: int = 12) -> str:
    """Return the first hexadecimal digits of a digest, for people."""
    text = digest.hex() if isinstance(digest, bytes) else digest
    return text[:digits]
