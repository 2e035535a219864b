"""The archive: sealed segments and signed checkpoints in an object store.

Names are ``segments/<first>-<last>-<digest>.seg`` and ``checkpoints/<size>.note``, positions and sizes with 16 digits.
A segment belongs to history if a checkpoint that a trusted key signed names it, or a segment that belongs to history
names it as the one before; all others are leftovers of a sealer that was killed or came second, and are never read.
Belongs here: keeping both, and finding them from the checkpoint back. Does not belong here: cutting segments out of a
log (``sealer``) or reading records of them (``sealed``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Self

from esper.artifacts.objects import ObjectStore, open_objects
from esper.artifacts.signing import SigningKey, VerifyKey
from esper.errors import ArtifactConflict, ArtifactMissing, NotFound, ProofFailed
from esper.oona.chain import GENESIS
from esper.oona.sealing.checkpoint import Checkpoint, sign, verified
from esper.oona.sealing.merkle import Frontier
from esper.oona.sealing.segment import MAX_HEADER_BYTES, Segment, SegmentHeader, read_header, read_index
from esper.oona.sealing.segment_index import SegmentIndex

#: What a segment names as the one before it if it is the first.
NO_SEGMENT = bytes(32)
_SEGMENTS = "segments/"
_CHECKPOINTS = "checkpoints/"
_NOTE = re.compile(r"checkpoints/([0-9]{16})\.note")
_NAME = re.compile(r"segments/([0-9]{16})-([0-9]{16})-([0-9a-f]{64})\.seg")
#: Enough of a segment's beginning for its header.
_BEGINNING_BYTES = 4096


class Archive:
    """Sealed history of one log."""

    def __init__(self, place: ObjectStore | str, trusted: Sequence[VerifyKey], *, namespace: str = "main") -> None:
        """Use an object store.

        Args:
            place: Where segments and checkpoints are, or its URL, which is opened when it is first used. It is closed
                with the archive.
            trusted: Keys whose checkpoints are believed.
            namespace: Name of the log.
        """
        self._place = place
        self.trusted = tuple(trusted)
        self.namespace = namespace

    @cached_property
    def objects(self) -> ObjectStore:
        """Where segments and checkpoints are."""
        return open_objects(self._place) if isinstance(self._place, str) else self._place

    def close(self) -> None:
        """Give up connections."""
        if "objects" in vars(self):
            self.objects.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _names(self, prefix: str) -> list[str]:
        """Return names that begin so; looking makes no folder where nothing was ever sealed."""
        scheme, _, path = self._place.partition(":///") if isinstance(self._place, str) else ("", "", "")
        if scheme == "file" and not Path(path).exists():
            return []
        return self.objects.names(prefix)

    # --- checkpoints

    def sizes(self) -> list[int]:
        """Return the size of every checkpoint, ascending, without reading them."""
        found = (_NOTE.fullmatch(name) for name in self._names(_CHECKPOINTS))
        return sorted(int(one[1]) for one in found if one is not None)

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint, or None if nothing was ever sealed.

        Raises:
            SignatureInvalid: No trusted key has signed it; an older one is not taken in its place.
            ProofFailed: It is one of another log or size.
        """
        sizes = self.sizes()
        return self.checkpoint(sizes[-1]) if sizes else None

    def checkpoint(self, size: int) -> Checkpoint:
        """Return the checkpoint of a size; raises as ``newest`` does."""
        return self.read_note(self.note(size), size)

    def note(self, size: int) -> bytes:
        """Return the signed note of the checkpoint of a size, not verified.

        Raises:
            NotFound: There is none of this size.
        """
        name = _note_name(size)
        try:
            return self.objects.get(name)
        except ArtifactMissing as error:
            sizes = ", ".join(str(one) for one in self.sizes()[-5:]) or "none"
            raise NotFound(
                f"there is no checkpoint of size {size}", hint=f"the newest there are: {sizes}", where=name
            ) from error

    def read_note(self, note: bytes, size: int) -> Checkpoint:
        """Return the checkpoint of a note that stands under the name of a size; raises as ``newest`` does."""
        name = _note_name(size)
        checkpoint = verified(note, self.trusted, name)
        if (checkpoint.namespace, checkpoint.size) != (self.namespace, size):
            raise ProofFailed(
                f"checkpoint {name} is signed, but for log {checkpoint.namespace} of size {checkpoint.size}",
                hint=f"this is the archive of another log than {self.namespace}, or somebody moved files in it",
                where=name,
            )
        return checkpoint

    def put_checkpoint(self, checkpoint: Checkpoint, key: SigningKey) -> Checkpoint:
        """Sign a checkpoint, keep it, read it back and return what stands there.

        Another sealer's checkpoint of the same size that says the same of the log is as good and is returned.

        Raises:
            ProofFailed: Another checkpoint of this size says something else.
            SignatureInvalid: What stands there is not signed by a trusted key.
        """
        # Of two sealers one comes second; what stands there is looked at below, whoever's it is.
        with suppress(ArtifactConflict):
            self.objects.put(_note_name(checkpoint.size), sign(checkpoint, key))
        there = self.checkpoint(checkpoint.size)
        if (there.root, there.chain, there.generation) != (checkpoint.root, checkpoint.chain, checkpoint.generation):
            raise ProofFailed(
                f"checkpoint {_note_name(checkpoint.size)} was signed for a log with another history",
                hint="two logs are sealed to one archive: give each its own with --archive",
                where=_note_name(checkpoint.size),
            )
        return there

    # --- segments

    def segment_names(self) -> list[str]:
        """Return the name of every segment, leftovers included."""
        return [name for name in self._names(_SEGMENTS) if _NAME.fullmatch(name)]

    def put_segment(self, data: bytes) -> Segment:
        """Keep a segment and return it as it was read back.

        Raises:
            ProofFailed: What was read back is not what was put.
        """
        header = read_header(data, "to be kept")
        self.objects.put(segment_name(header), data)
        return self.segment(header)

    def walk(self, checkpoint: Checkpoint) -> Iterator[SegmentHeader]:
        """Yield the headers of a checkpoint's history, newest first, each found from the one after it.

        Args:
            checkpoint: A verified checkpoint.

        Raises:
            ProofFailed: One is missing, or does not fit the one after it.
        """
        names = {one[len(_SEGMENTS) + 17 :]: one for one in self.segment_names()}
        end, digest, chain = checkpoint.size, checkpoint.segment, checkpoint.chain
        root: bytes | None = checkpoint.root
        after: tuple[bytes, ...] = ()
        while end:
            suffix = f"{end:016}-{digest.hex()}.seg"
            if suffix not in names:
                raise _missing(f"segment {_SEGMENTS}...-{suffix}", end)
            name = names[suffix]
            header = self._header(name, end, digest)
            tree = Frontier(header.first - 1, header.before)
            tree.extend(header.subtrees, header.count)
            if header.chain_after != chain or (tree.root() != root if root is not None else tree.hashes != after):
                raise _unfit(name, end, "what it ends with is not what follows from it")
            if header.first == 1 and (header.previous, header.chain_before) != (NO_SEGMENT, GENESIS):
                raise _unfit(name, 1, "it is the first, but names one before it")
            yield header
            end, digest, chain = header.first - 1, header.previous, header.chain_before
            root, after = None, header.before

    def segment(self, header: SegmentHeader) -> Segment:
        """Return the segment of a header.

        Raises:
            ProofFailed: It is missing, or its bytes are others.
        """
        name = segment_name(header)
        try:
            segment = Segment(self.objects.get(name), name)
        except ArtifactMissing as error:
            raise _missing(name, header.last) from error
        if segment.header != header:
            raise _unfit(name, header.first, "its header is not the one it had")
        return segment

    def index(self, header: SegmentHeader) -> SegmentIndex:
        """Return the index of a segment without reading its records.

        Raises:
            ProofFailed: It is missing, or its bytes are others.
        """
        name = segment_name(header)
        data = self._part(name, header.header_bytes + header.index.packed_bytes, header.last)
        return read_index(header, data, name)

    def _header(self, name: str, end: int, digest: bytes) -> SegmentHeader:
        data = self._part(name, _BEGINNING_BYTES, end)
        if len(data) >= 16 and (length := int.from_bytes(data[12:16], "little")) > len(data):
            data = self._part(name, min(length, MAX_HEADER_BYTES), end)
        header = read_header(data, name)
        if header.digest != digest or segment_name(header) != name:
            raise _unfit(name, end, "its header does not have the digest it is known by")
        if header.namespace != self.namespace:
            raise _unfit(name, end, f"it is of log {header.namespace}, not {self.namespace}")
        return header

    def _part(self, name: str, length: int, position: int) -> bytes:
        try:
            return self.objects.beginning(name, length)
        except ArtifactMissing as error:
            raise _missing(name, position) from error


def segment_name(header: SegmentHeader) -> str:
    """Return the name a segment is kept under."""
    return f"{_SEGMENTS}{header.first:016}-{header.last:016}-{header.digest.hex()}.seg"


def _note_name(size: int) -> str:
    return f"{_CHECKPOINTS}{size:016}.note"


def _missing(what: str, position: int) -> ProofFailed:
    return ProofFailed(
        f"{what} is missing from the archive",
        hint="bring it back from a copy of the archive; what it held cannot be told from the rest",
        position=position,
        where=what,
    )


def _unfit(name: str, position: int, reason: str) -> ProofFailed:
    return ProofFailed(f"segment {name} cannot be trusted: {reason}", position=position, where=name, reason=reason)
