"""Artifacts on any shelf: ``ab/abcd...`` by digest, and beside it ``ab/abcd....<key id>.sig`` for each signature.

Belongs here: the one implementation of ``ArtifactStore``. Does not belong here: where bytes go (the shelves), or making
and judging signatures (``signatures``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from esper.artifacts.shelf import OnShelf
from esper.artifacts.store import checked, hex_of
from esper.errors import ArtifactConflict, ArtifactDamaged, ArtifactMissing

_ARTIFACT = re.compile(r"(?P<folder>[0-9a-f]{2})/(?P<digest>(?P=folder)[0-9a-f]{62})")
_SIGNATURE = re.compile(r"\.(?P<key_id>[0-9a-f]{16})\.sig")


class ContentStore(OnShelf):
    """Keeps artifacts on a shelf."""

    def put(self, data: bytes) -> bytes:
        """Keep bytes and return their digest; see ``ArtifactStore.put``.

        An artifact that is there is trusted only if it has the right bytes; a damaged one is replaced.
        """
        digest = hashlib.sha256(data).digest()
        name = _name(digest)
        if not self.shelf.put_new(name, data) and not self._holds(name, digest):
            self.shelf.replace(name, data)
        return digest

    def get(self, digest: bytes) -> bytes:
        """Return the bytes of a digest, checked against it; see ``ArtifactStore.get``."""
        try:
            data = self.shelf.get(_name(digest))
        except ArtifactDamaged as error:
            raise ArtifactDamaged(error.message, hint=error.hint, digest=digest.hex()) from error
        if data is None:
            raise self._missing(digest)
        return checked(digest, data, self.shelf.where)

    def has(self, digest: bytes) -> bool:
        """Tell whether an artifact has this digest; its bytes are checked by ``get``."""
        return self.shelf.size(_name(digest)) is not None

    def size(self, digest: bytes) -> int:
        """Return an artifact's size in bytes; see ``ArtifactStore.size``."""
        size = self.shelf.size(_name(digest))
        if size is None:
            raise self._missing(digest)
        return size

    def digests(self, beginning: str = "") -> Iterator[bytes]:
        """Yield the digest of every artifact, sorted; see ``ArtifactStore.digests``."""
        prefix = f"{beginning[:2]}/{beginning}" if len(beginning) >= 2 else beginning
        for name in self.shelf.names(prefix):
            if found := _ARTIFACT.fullmatch(name):
                yield bytes.fromhex(found["digest"])

    def add_signature(self, digest: bytes, key_id: str, signature: bytes) -> bool:
        """Keep a signature beside its artifact; see ``ArtifactStore.add_signature``."""
        name = f"{_name(digest)}.{key_id}.sig"
        if self.shelf.put_new(name, signature):
            return True
        if self.shelf.get(name) != signature:
            raise ArtifactConflict(
                f"{name} in {self.shelf.where} is another signature of key {key_id}",
                hint="it was changed, for one key signs the same bytes in one way: remove it, then sign again",
                name=name,
            )
        return False

    def signatures(self, digest: bytes) -> dict[str, bytes]:
        """Return the signatures of an artifact by key id; see ``ArtifactStore.signatures``."""
        name = _name(digest)
        kept = {}
        for one in self.shelf.names(f"{name}."):
            found = _SIGNATURE.fullmatch(one, len(name))
            # Nothing is ever taken away, so what was listed a moment ago is there.
            if found and (signature := self.shelf.get(one)) is not None:
                kept[found["key_id"]] = signature
        return kept

    def _holds(self, name: str, digest: bytes) -> bool:
        try:
            data = self.shelf.get(name)
        except ArtifactDamaged:
            return False
        return data is not None and hashlib.sha256(data).digest() == digest

    def _missing(self, digest: bytes) -> ArtifactMissing:
        return ArtifactMissing(
            f"no artifact {digest.hex()} in {self.shelf.where}",
            hint="check ESPER_ARTIFACTS: it must be the store this log was written with",
            digest=digest.hex(),
        )


def _name(digest: bytes) -> str:
    name = hex_of(digest)
    return f"{name[:2]}/{name}"
