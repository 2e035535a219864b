"""Sealing: cutting what the log has grown by into segments, keeping them, and signing what the log is now.

Nothing is believed until it was read back: a segment is taken out of the archive again, computed anew from its records,
and its chain value compared with the log's; only then is the checkpoint that names it signed. Whoever is killed on the
way leaves segments that no checkpoint names; the next one makes the same bytes under the same names, or others beside
them. Belongs here: the order of these steps, and what may be trimmed. Does not belong here: the bytes (``segment``,
``checkpoint``) or checking all of history (``sealcheck``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import msgspec

from esper.artifacts.signing import SigningKey
from esper.clock import Clock, SystemClock
from esper.errors import HistoryUnsealed, LogDamaged, ProofFailed
from esper.events.envelope import Envelope
from esper.events.operator import LogRestored
from esper.metrics import LOG_UNSEALED_EVENTS
from esper.oona.chain import GENESIS
from esper.oona.port import EventLog, Progress
from esper.oona.sealing.archive import NO_SEGMENT, Archive
from esper.oona.sealing.checkpoint import Checkpoint
from esper.oona.sealing.merkle import Frontier
from esper.oona.sealing.segment import Segment, build

#: Records of a segment, unless another number is asked for.
SEGMENT_EVENTS = 65_536
#: A segment ends before the record that would make its records larger than this.
SEGMENT_BYTES = 64 << 20
_PAGE = 2000


class SealReport(msgspec.Struct, frozen=True, kw_only=True):
    """What sealing came to."""

    #: Records that were sealed now, and those sealed before.
    events: int
    sealed_before: int
    #: Segments that were written, and their bytes.
    segments: int
    segment_bytes: int
    #: The newest checkpoint; None for an empty log.
    checkpoint: Checkpoint | None
    #: Records that were appended meanwhile.
    unsealed: int


@runtime_checkable
class Trimmable(Protocol):
    """A log that can forget records which are sealed."""

    def trim(self, through: int) -> int:
        """Forget the records up to a position, and return how many were forgotten."""
        ...


def seal(
    log: EventLog,
    archive: Archive,
    key: SigningKey,
    *,
    segment_events: int = SEGMENT_EVENTS,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> SealReport:
    """Seal all that the log holds now.

    Args:
        log: The log.
        archive: Its archive; the key must be one that it trusts.
        key: Signs the checkpoint.
        segment_events: At most so many records in a segment.
        progress: Called with (records sealed, records to seal).
        clock: Gives the time of the checkpoint; the machine's clock when left out.

    Raises:
        ProofFailed: The log is not the one that was sealed before, or the archive does not give back what it was given.
        SignatureInvalid: The newest checkpoint of the archive is not signed by a trusted key.
        LogDamaged: A record of the log is not what was written.
        ArtifactError: The archive refuses, or cannot be reached; what was sealed before stays sealed.
    """
    newest = archive.newest()
    if newest is not None:
        check_same_log(log, newest)
    start, end = (newest.size if newest else 0), log.end()
    growth = _Growth(log, archive, newest)
    for envelopes in _cuts(log, start, end, segment_events):
        growth.add(envelopes)
        if progress is not None:
            progress(growth.size - start, end - start)
    if growth.segments:
        newest = archive.put_checkpoint(growth.checkpoint((clock or SystemClock()).now_us()), key)
        _check_alone(log, archive, newest)
    unsealed = log.end() - growth.size
    LOG_UNSEALED_EVENTS.set(unsealed)
    return SealReport(
        events=growth.size - start,
        sealed_before=start,
        segments=growth.segments,
        segment_bytes=growth.segment_bytes,
        checkpoint=newest,
        unsealed=unsealed,
    )


def check_same_log(log: EventLog, checkpoint: Checkpoint) -> None:
    """Check that a log is the one that a checkpoint was signed for, or has grown from it.

    Raises:
        ProofFailed: The log ends before the checkpoint, or has another history up to it.
    """
    chain = log.chain_at(checkpoint.size)
    if chain == checkpoint.chain:
        return
    if chain is None:
        reason = f"the log ends at {log.end()}, but {checkpoint.size} records are sealed: it is an older one"
    else:
        reason = f"the log's first {checkpoint.size} records are not those that were sealed: history was rewritten"
    raise ProofFailed(
        reason,
        hint="`esper log verify` finds the place; `esper log restore TARGET` makes a log of what is sealed. If this is "
        "another log, give it an archive of its own with --archive",
        position=checkpoint.size,
    )


def restored_in(envelope: Envelope, namespace: str) -> bool:
    """Tell whether a record begins a new generation of a log."""
    return envelope.type == LogRestored.info.name and envelope.stream == f"{LogRestored.info.stream}/{namespace}"


def trim(log: EventLog, archive: Archive) -> int:
    """Let a log forget what is sealed, and return how many records it forgot.

    Raises:
        HistoryUnsealed: The log cannot forget, or nothing is sealed.
        ProofFailed: The log is not the one that was sealed.
    """
    trimmable = require_trimmable(log)
    newest = archive.newest()
    if newest is None:
        raise HistoryUnsealed("nothing of this log is sealed yet", hint="run `esper log seal` first")
    check_same_log(log, newest)
    return trimmable.trim(newest.size)


def require_trimmable(log: EventLog) -> Trimmable:
    """Return a log that can forget.

    Raises:
        HistoryUnsealed: This one cannot.
    """
    if isinstance(log, Trimmable):
        return log
    raise HistoryUnsealed(
        "this log keeps all of its records: only one on a server is trimmed, to save its memory",
        hint="seal it without --trim; a log in a file grows on disk alone",
    )


class _Growth:
    """Sealed history while it grows segment by segment."""

    def __init__(self, log: EventLog, archive: Archive, newest: Checkpoint | None) -> None:
        """Go on after a checkpoint."""
        self._log = log
        self._archive = archive
        self._tree = Frontier()
        self._generation = 1 if newest is None else newest.generation
        self._chain = GENESIS if newest is None else newest.chain
        self._digest = NO_SEGMENT if newest is None else newest.segment
        if newest is not None:
            last = next(archive.walk(newest))
            self._tree = Frontier(last.first - 1, last.before)
            self._tree.extend(last.subtrees, last.count)
        self.segments = 0
        self.segment_bytes = 0

    @property
    def size(self) -> int:
        """Records sealed so far."""
        return self._tree.size

    def add(self, envelopes: list[Envelope]) -> None:
        """Write the next segment, read it back, and check it against the log."""
        data = build(
            envelopes,
            namespace=self._archive.namespace,
            chain_before=self._chain,
            before=self._tree.hashes,
            previous=self._digest,
        )
        kept = self._archive.put_segment(data)
        kept.check()
        _check_against(self._log, kept)
        header = kept.header
        self._tree.extend(header.subtrees, header.count)
        self._generation += sum(restored_in(one, self._archive.namespace) for one in envelopes)
        self._chain, self._digest = header.chain_after, header.digest
        self.segments += 1
        self.segment_bytes += len(data)

    def checkpoint(self, now_us: int) -> Checkpoint:
        """Return what is to be signed."""
        return Checkpoint(
            namespace=self._archive.namespace,
            size=self.size,
            root=self._tree.root(),
            chain=self._chain,
            generation=self._generation,
            segment=self._digest,
            signed_at=now_us,
        )


def _check_against(log: EventLog, kept: Segment) -> None:
    """Check that the chain computed from records read back is the log's own."""
    last = kept.header.last
    if log.chain_at(last) != kept.header.chain_after:
        raise LogDamaged(
            f"the log's chain at position {last} does not follow from its records",
            hint="`esper log verify` finds the first record that cannot be trusted",
            position=last,
            reason="the chain does not follow from the records",
        )


def _check_alone(log: EventLog, archive: Archive, ours: Checkpoint) -> None:
    """Check that whoever sealed to the archive meanwhile sealed this log too."""
    newest = archive.newest()
    if newest is not None and newest.size > ours.size:
        check_same_log(log, newest)


def _cuts(log: EventLog, after: int, end: int, most_events: int) -> Iterator[list[Envelope]]:
    """Yield the records of each segment.

    Segments end at multiples of their size where they can, so that sealing in smaller steps costs few subtrees.
    """
    cut: list[Envelope] = []
    cut_bytes = 0
    while after < end:
        page = log.read(after, _PAGE, until=end)
        if not page:
            raise LogDamaged(
                f"the log gives no record at position {after + 1}", position=after + 1, reason="the record is missing"
            )
        for envelope in page:
            size = len(envelope.payload) + len(envelope.stream) + len(envelope.sender_id)
            if cut and cut_bytes + size > SEGMENT_BYTES:
                yield cut
                cut, cut_bytes = [], 0
            cut.append(envelope)
            cut_bytes += size
            if envelope.position % most_events == 0:
                yield cut
                cut, cut_bytes = [], 0
        after = page[-1].position
    if cut:
        yield cut
