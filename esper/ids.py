"""Identifiers: where they come from and how they are spelled.

Random ids are UUIDv7 (they sort by time, which nothing relies on); derived ids come from their cause alone, so that
a retry gives the same id. A cause that ends in a number gives a UUIDv8: a hash of what stands before the number, then
the number. The facts of one run thus stand side by side in an index of ids, and an append touches one page of it and
not hundreds. Any other cause gives its UUIDv5.
"""

from __future__ import annotations

import functools
import hashlib
import uuid

import uuid_utils

_NAMESPACE = uuid.UUID("0e0f3f0a-3a0b-5c58-9c6c-65737065720a")
#: Numbers below this fit the last six bytes of an id.
_NUMBERS = 1 << 48


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
    """Return the 16-byte id of a cause, e.g. ``derived_id("run", run_id, attempt, ordinal)``."""
    number = cause[-1]
    if isinstance(number, int) and 0 <= number < _NUMBERS:
        return _numbered(cause[:-1]) + number.to_bytes(6)
    return uuid.uuid5(_NAMESPACE, _spelled(cause)).bytes


@functools.lru_cache(maxsize=256)
def _numbered(cause: tuple[str | int, ...]) -> bytes:
    """Return the first ten bytes of the UUIDv8 ids of a cause's numbers: 74 bits of hash, version and variant."""
    digest = bytearray(hashlib.sha256(_NAMESPACE.bytes + _spelled(cause).encode()).digest()[:10])
    digest[6] = 0x80 | digest[6] & 0x0F
    digest[8] = 0x80 | digest[8] & 0x3F
    return bytes(digest)


def _spelled(cause: tuple[str | int, ...]) -> str:
    return "/".join(str(part) for part in cause)


def sha256(data: bytes) -> bytes:
    """Return the 32-byte SHA-256 of data."""
    return hashlib.sha256(data).digest()


def short(digest: bytes | str, digits: int = 12) -> str:
    """Return the first hexadecimal digits of a digest, for people."""
    text = digest.hex() if isinstance(digest, bytes) else digest
    return text[:digits]
