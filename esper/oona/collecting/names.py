"""Finding names of artifacts in any bytes, so that what is named is never taken for garbage.

Belongs here: looking. Nothing is understood: a name is a digest's 32 bytes or 64 hexadecimal digits wherever they
stand, in whatever structure and of whatever schema. What is found too often costs room, what is missed costs an
artifact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_DIGEST_BYTES = 32
_DIGITS = 64
_HEXADECIMAL = re.compile(rb"[0-9a-fA-F]{64,}")
#: Msgpack writes the length of 32 bytes in front of them, in each of its forms.
_MEASURED = re.compile(rb" (?=(.{32}))", re.DOTALL)


class Unnamed:
    """Digests that nothing has named yet."""

    def __init__(self, digests: Iterable[bytes]) -> None:
        """Begin with those that are to be looked for."""
        self._left = set(digests)
        self._named: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._left)

    @property
    def left(self) -> frozenset[bytes]:
        """Digests that nothing has named."""
        return frozenset(self._left)

    def take_named(self) -> list[bytes]:
        """Return, once, the digests that were named since this was asked last; their bytes may name others."""
        named, self._named = sorted(self._named), set()
        return named

    def strike(self, data: bytes) -> None:
        """Strike out every digest that bytes name, at any offset."""
        if not self._left:
            return
        self._strike_digits(data)
        left = self._left
        for start in range(len(data) - _DIGEST_BYTES + 1):
            if data[start : start + _DIGEST_BYTES] in left:
                self._found(data[start : start + _DIGEST_BYTES])

    def strike_in_artifact(self, data: bytes) -> None:
        """Strike out every digest that an artifact's bytes name: in digits, or as msgpack writes 32 bytes."""
        if not self._left:
            return
        self._strike_digits(data)
        for match in _MEASURED.finditer(data):
            self._found(match[1])

    def _strike_digits(self, data: bytes) -> None:
        for match in _HEXADECIMAL.finditer(data):
            digits = match[0].decode()
            # Two names may stand side by side, and where the first begins nobody says.
            for start in range(len(digits) - _DIGITS + 1):
                self._found(bytes.fromhex(digits[start : start + _DIGITS]))

    def _found(self, digest: bytes) -> None:
        if digest in self._left:
            self._left.remove(digest)
            self._named.add(digest)
