"""Artifacts on any shelf: ``ab/abcd...`` by digest, and beside it ``ab/abcd....<key id>.sig`` for each signature.

Belongs here: the one implementation of ``ArtifactStore``. Does not belong here: where bytes go (the shelves), making
and judging signatures (``signatures``), or fetching large ones piece by piece (``fetch``).
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esper.artifacts.fetch import PIECE_BYTES, digest_of, fetch
from esper.artifacts.shelf import Advance, OnShelf, Shelf
from esper.artifacts.store import Kept, checked, hex_of
from esper.errors import ArtifactConflict, ArtifactDamaged, ArtifactMissing

#: Bytes that were stored longer ago are made young again by a ``put`` that relies on them. A collection that leaves
#: what is younger than twice this time never takes away what somebody is about to name.
YOUNG_S = 3600.0
#: Tries of a put whose bytes are taken away while it looks at them.
_TRIES = 3
_ARTIFACT = re.compile(r"(?P<folder>[0-9a-f]{2})/(?P<digest>(?P=folder)[0-9a-f]{62})")
_SIGNATURE = re.compile(r"\.(?P<key_id>[0-9a-f]{16})\.sig")


class ContentStore(OnShelf):
    """Keeps artifacts on a shelf."""

    def __init__(self, shelf: Shelf) -> None:
        """Keep artifacts on a shelf, which is closed with the store."""
        super().__init__(shelf)
        self.where = shelf.where
        self.staging = shelf.staging

    def put(self, data: bytes) -> bytes:
        """Keep bytes and return their digest; see ``ArtifactStore.put``.

        An artifact that is there is trusted only if it has the right bytes; a damaged one is replaced.
        """
        digest = hashlib.sha256(data).digest()
        name = _name(digest)
        for _ in range(_TRIES):
            if self.shelf.put_new(name, data):
                break
            if not self._holds(name, digest):
                self.shelf.replace(name, data)
                break
            if self._relied_on(name):
                break
        return digest

    def put_file(self, file: Path, advance: Advance | None = None) -> bytes:
        """Keep a file's bytes; see ``ArtifactStore.put_file``. What is there is trusted as little as by ``put``."""
        digest = digest_of(file)
        name = _name(digest)
        for _ in range(_TRIES):
            if self.shelf.put_file(name, file, advance):
                return digest
            if not self._holds_parts(digest):
                self.shelf.delete(name)
            elif self._relied_on(name):
                break
        if file.parent == self.staging:
            file.unlink(missing_ok=True)
        return digest

    def get(self, digest: bytes) -> bytes:
        """Return the bytes of a digest, checked against it; see ``ArtifactStore.get``."""
        with _named(digest):
            data = self.shelf.get(_name(digest))
        if data is None:
            raise self._missing(digest)
        return checked(digest, data, self.where)

    def get_file(self, digest: bytes, file: Path, advance: Advance | None = None) -> int:
        """Write the bytes of a digest to a file, checked against it; see ``ArtifactStore.get_file``."""
        return fetch(self, digest, file, advance)

    def unchecked(self, digest: bytes) -> bytes | None:
        """Return what lies under a digest, though it be damaged, or None."""
        return self.shelf.unchecked(_name(digest))

    def part(self, digest: bytes, start: int, length: int) -> bytes:
        """Return bytes of an artifact from an offset on, unchecked; see ``ArtifactStore.part``."""
        with _named(digest):
            data = self.shelf.part(_name(digest), start, length)
        if data is None:
            raise self._missing(digest)
        return data

    def file_of(self, digest: bytes) -> Path | None:
        """Return the file in which an artifact lies on this machine; see ``ArtifactStore.file_of``."""
        return self.shelf.file_of(_name(digest))

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

    def inventory(self) -> Iterator[Kept]:
        """Yield every artifact with size and time, sorted by digest; see ``ArtifactStore.inventory``."""
        for name, size_bytes, stored_at in self.shelf.entries():
            if found := _ARTIFACT.fullmatch(name):
                yield Kept(bytes.fromhex(found["digest"]), size_bytes, stored_at)

    def orphans(self) -> list[Kept]:
        """Return digests of which there are signatures alone, with their bytes and the time of the youngest."""
        lonely: dict[bytes, Kept] = {}
        artifacts: set[bytes] = set()
        for name, size_bytes, stored_at in self.shelf.entries():
            found = _ARTIFACT.match(name)
            if found is None:
                continue
            digest = bytes.fromhex(found["digest"])
            if found.end() == len(name):
                artifacts.add(digest)
            elif _SIGNATURE.fullmatch(name, found.end()):
                before = lonely.get(digest, Kept(digest, 0, 0.0))
                lonely[digest] = Kept(digest, before.size_bytes + size_bytes, max(before.stored_at, stored_at))
        return [kept for digest, kept in sorted(lonely.items()) if digest not in artifacts]

    def stored_at(self, digest: bytes) -> float:
        """Return when an artifact was stored; see ``ArtifactStore.stored_at``."""
        stored_at = self.shelf.stored_at(_name(digest))
        if stored_at is None:
            raise self._missing(digest)
        return stored_at

    def delete(self, digest: bytes, *, before: float | None = None) -> bool:
        """Take away an artifact and its signatures; see ``ArtifactStore.delete``."""
        name = _name(digest)
        there = self.shelf.delete(name, before=before)
        if not self.has(digest):
            for one in self._signature_names(name):
                self.shelf.delete(one)
        return there

    def add_signature(self, digest: bytes, key_id: str, signature: bytes) -> bool:
        """Keep a signature beside its artifact; see ``ArtifactStore.add_signature``."""
        name = _signature_name(digest, key_id)
        if self.shelf.put_new(name, signature):
            return True
        if self.shelf.get(name) != signature:
            raise ArtifactConflict(
                f"{name} in {self.where} is another signature of key {key_id}",
                hint="it was changed, for one key signs the same bytes in one way: remove it, then sign again",
                name=name,
            )
        return False

    def signatures(self, digest: bytes) -> dict[str, bytes]:
        """Return the signatures of an artifact by key id; see ``ArtifactStore.signatures``."""
        kept = {}
        for one, key_id in self._signature_names(_name(digest)).items():
            # It may have been taken away since it was listed.
            if (signature := self.shelf.get(one)) is not None:
                kept[key_id] = signature
        return kept

    def remove_signature(self, digest: bytes, key_id: str) -> bool:
        """Take away one signature of an artifact; tell whether it was there."""
        return self.shelf.delete(_signature_name(digest, key_id))

    def _signature_names(self, name: str) -> dict[str, str]:
        """Return the names of an artifact's signatures, each with its key id."""
        found = {one: _SIGNATURE.fullmatch(one, len(name)) for one in self.shelf.names(f"{name}.")}
        return {one: match["key_id"] for one, match in found.items() if match}

    def _holds(self, name: str, digest: bytes) -> bool:
        try:
            data = self.shelf.get(name)
        except ArtifactDamaged:
            return False
        return data is not None and hashlib.sha256(data).digest() == digest

    def _holds_parts(self, digest: bytes) -> bool:
        """Tell what ``_holds`` tells, without holding all of the bytes in memory."""
        total, done = hashlib.sha256(), 0
        try:
            while piece := self.part(digest, done, PIECE_BYTES):
                total.update(piece)
                done += len(piece)
        except (ArtifactDamaged, ArtifactMissing):
            return False
        return total.digest() == digest

    def _relied_on(self, name: str) -> bool:
        """Make a name young again if it is old; tell whether it is there."""
        stored_at = self.shelf.stored_at(name)
        if stored_at is None:
            return False
        return time.time() - stored_at < YOUNG_S or self.shelf.touch(name)

    def _missing(self, digest: bytes) -> ArtifactMissing:
        return ArtifactMissing(
            f"no artifact {digest.hex()} in {self.where}",
            hint="check ESPER_ARTIFACTS: it must be the store this log was written with",
            digest=digest.hex(),
        )


@contextmanager
def _named(digest: bytes) -> Iterator[None]:
    """Let damage that the shelf itself noticed tell which artifact it is."""
    try:
        yield
    except ArtifactDamaged as error:
        raise ArtifactDamaged(error.message, hint=error.hint, digest=digest.hex()) from error


def _name(digest: bytes) -> str:
    name = hex_of(digest)
    return f"{name[:2]}/{name}"


def _signature_name(digest: bytes, key_id: str) -> str:
    return f"{_name(digest)}.{key_id}.sig"
