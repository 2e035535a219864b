"""Making a log of sealed history alone.

Everything is verified before the first record is written: every signature, every segment, every hash. The new log has
the same positions, ids, times and chain; its next record says who restored it and why, and begins a new generation, so
that nobody takes it for the log it was made from. Belongs here: that copy. Does not belong here: what a damaged file
still holds (``salvage``).
"""

from __future__ import annotations

import msgspec

from esper.errors import ConfigError, ProofFailed
from esper.events.envelope import Envelope, Event
from esper.events.operator import LogRestored
from esper.ids import derived_id
from esper.oona.port import NO_STREAM, EventLog, Head, Progress
from esper.oona.sealing.archive import Archive
from esper.oona.sealing.sealcheck import check_sealed
from esper.oona.sealing.sealer import restored_in

_AT_ONCE = 2000


class RestoreReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a restored log holds."""

    #: Last record that came from sealed history.
    head: Head
    #: Position of the fact that says so.
    position: int
    generation: int
    #: Sealed records that were left out on request.
    left_out: int


def restore(
    archive: Archive,
    target: EventLog,
    *,
    actor: str,
    reason: str,
    trace_id: str,
    through: int | None = None,
    progress: Progress | None = None,
) -> RestoreReport:
    """Copy sealed history to an empty log, and append that it was restored.

    Args:
        archive: The archive.
        target: The new log.
        actor: Who restores.
        reason: Why.
        trace_id: Trace of the command.
        through: Last position to copy; all that is sealed when left out.
        progress: Called with (records read, records to read); every record is read twice, to check and to copy.

    Raises:
        SignatureInvalid: A checkpoint is not signed by a trusted key; nothing was written.
        ProofFailed: Sealed history is damaged or does not reach so far; nothing was written.
        ConfigError: The target already holds records.
        LogError: As the target raises.
    """
    if (held := target.end()) != 0:
        raise ConfigError(
            f"the target already holds {held} records", hint="name a target that does not exist yet, or is empty"
        )
    report = check_sealed(archive, None if progress is None else lambda done, total: progress(done, 2 * total))
    checkpoint = report.checkpoint
    if checkpoint is None:
        raise ProofFailed("nothing is sealed in this archive", hint="name the archive with --archive")
    last = checkpoint.size if through is None else through
    if not 0 < last <= checkpoint.size:
        raise ProofFailed(f"position {last} is not sealed; history is sealed through {checkpoint.size}", position=last)
    generation = 2 + _copy(archive, target, last, checkpoint.size, progress)
    head = target.head()
    fact = LogRestored(
        namespace=target.namespace,
        generation=generation,
        through=head.position,
        chain=head.chain,
        actor=actor,
        reason=reason,
    )
    event = Event(
        fact=fact,
        event_id=derived_id("log-restored", target.namespace, head.chain.hex(), generation),
        sender_id=f"operator:{actor}",
        trace_id=trace_id,
    )
    version = generation - 2 if generation > 2 else NO_STREAM
    receipt = target.append([event], stream=fact.stream, expected=version)
    return RestoreReport(
        head=head, position=receipt.last, generation=generation, left_out=checkpoint.size - head.position
    )


def _copy(archive: Archive, target: EventLog, last: int, sealed: int, progress: Progress | None) -> int:
    """Copy records up to a position; return how many of them begin a generation of the target."""
    restorations = 0

    def write(envelopes: list[Envelope]) -> None:
        nonlocal restorations
        wanted = [one for one in envelopes if one.position <= last]
        for start in range(0, len(wanted), _AT_ONCE):
            target.restore(wanted[start : start + _AT_ONCE])
        restorations += sum(restored_in(one, target.namespace) for one in wanted)

    check_sealed(
        archive, None if progress is None else lambda done, _: progress(sealed + done, 2 * sealed), visit=write
    )
    return restorations
