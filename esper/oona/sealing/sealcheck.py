"""Checking all of sealed history, and that the log agrees with it.

Every record is read from the archive once and everything else is computed from it again: digests, chain, versions,
Merkle roots at the size of every checkpoint, generations. Two checkpoints whose roots both come out of one walk are
consistent: the smaller tree is the beginning of the larger one. Belongs here: that walk and the comparison. Does not
belong here: checking one segment (``segment``) or proofs for others (``prove``).
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable

import msgspec

from esper.errors import LogDamaged, ProofFailed
from esper.events.envelope import Envelope
from esper.oona.chain import ChainWalk
from esper.oona.port import EventLog, Progress
from esper.oona.sealing.archive import Archive
from esper.oona.sealing.checkpoint import Checkpoint
from esper.oona.sealing.merkle import Frontier, subtree_hashes
from esper.oona.sealing.sealed import ArchiveHistory
from esper.oona.sealing.sealer import restored_in
from esper.oona.sealing.segment import Segment


class SealedReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a walk over sealed history found sound."""

    #: The newest checkpoint; None if nothing is sealed.
    checkpoint: Checkpoint | None
    #: Checkpoints whose signature, root, chain value and generation hold.
    checkpoints: int
    segments: int
    #: Bytes of the segments of history.
    segment_bytes: int
    #: Segments that no checkpoint leads to; a sealer that was killed or came second left them.
    leftovers: int

    @property
    def through(self) -> int:
        """Last sealed position."""
        return 0 if self.checkpoint is None else self.checkpoint.size


def check_sealed(
    archive: Archive,
    progress: Progress | None = None,
    *,
    visit: Callable[[list[Envelope]], None] | None = None,
) -> SealedReport:
    """Read all of sealed history and check it.

    Args:
        archive: The archive.
        progress: Called with (records checked, records sealed).
        visit: Called with the records of each segment once they were found sound.

    Raises:
        SignatureInvalid: A checkpoint is not signed by a trusted key.
        ProofFailed: A segment or checkpoint is missing, or is not what was sealed; the error names it.
    """
    checkpoints = [archive.checkpoint(size) for size in archive.sizes()]
    if not checkpoints:
        return SealedReport(
            checkpoint=None, checkpoints=0, segments=0, segment_bytes=0, leftovers=len(archive.segment_names())
        )
    newest = checkpoints[-1]
    headers = list(archive.walk(newest))[::-1]
    history = _Walk(archive.namespace, checkpoints)
    for header in headers:
        segment = archive.segment(header)
        records = history.step(segment)
        if visit is not None:
            visit(records)
        if progress is not None:
            progress(header.last, newest.size)
    return SealedReport(
        checkpoint=newest,
        checkpoints=len(checkpoints),
        segments=len(headers),
        segment_bytes=sum(header.size_bytes for header in headers),
        leftovers=len(archive.segment_names()) - len(headers),
    )


class _Walk:
    """Goes over segments in order and meets the checkpoints on the way."""

    def __init__(self, namespace: str, checkpoints: list[Checkpoint]) -> None:
        """Stand before the first record."""
        self._namespace = namespace
        self._due = deque(checkpoints)
        self._chain = ChainWalk()
        self._tree = Frontier()
        self._generation = 1

    def step(self, segment: Segment) -> list[Envelope]:
        """Check the next segment and return its records."""
        envelopes = segment.check()
        done = 0
        for place, envelope in enumerate(envelopes, 1):
            try:
                self._chain.step(envelope)
            except LogDamaged as error:
                raise ProofFailed(
                    f"segment {segment.where} cannot be trusted: position {envelope.position}: {error.reason}",
                    position=envelope.position,
                    where=segment.where,
                ) from error
            self._generation += restored_in(envelope, self._namespace)
            if place == len(envelopes) or (self._due and self._due[0].size == envelope.position):
                leaves = segment.leaves[done:place]
                self._tree.extend(subtree_hashes(self._tree.size, leaves), len(leaves))
                done = place
                self._meet()
        return envelopes

    def _meet(self) -> None:
        """Compare with the checkpoint of the size the walk has reached, if there is one."""
        if not self._due or self._due[0].size != self._tree.size:
            return
        checkpoint = self._due.popleft()
        for what, said, found in (
            ("root", checkpoint.root, self._tree.root()),
            ("chain value", checkpoint.chain, self._chain.head.chain),
            ("generation", checkpoint.generation, self._generation),
        ):
            if said != found:
                raise ProofFailed(
                    f"the checkpoint of size {checkpoint.size} has another {what} than the records that are sealed: "
                    "history was sealed twice, differently",
                    hint="the newest checkpoint that holds against the log you trust tells which one was changed",
                    position=checkpoint.size,
                )


def check_agreement(log: EventLog, history: ArchiveHistory) -> None:
    """Check that a log begins with what is sealed, and name the first position where it does not.

    Both sides were found sound in themselves, so chain values are all that has to be compared.

    Raises:
        ProofFailed: The log ends before, or has another record at a position.
    """
    through = history.through
    if log.chain_at(through) == history.chain_at(through):
        return
    end = log.end()
    low, high = 0, min(through, end) + 1
    # Chain values agree up to some position and differ ever after.
    while high - low > 1:
        middle = (low + high) // 2
        if log.chain_at(middle) == history.chain_at(middle):
            low = middle
        else:
            high = middle
    if high > end:
        reason = f"the log ends at {end}, but history is sealed through {through}: an older log is under it"
        hint = "`esper log restore TARGET` makes a log of all that is sealed"
    else:
        sealed = hashlib.sha256(history.record(high)).hexdigest()[:12]
        reason = (
            f"the log is not the one that was sealed: at position {high} another record is sealed (digest {sealed}...)"
        )
        hint = "the log was rewritten, or it is another log than the archive's; the archive's own checks hold"
    raise ProofFailed(reason, hint=hint, position=high)
