"""Proofs that leave the house: files that anyone checks with a public key alone.

Belongs here: making a proof from sealed history, its JSON form (docs/reference/segment-format.md), and checking one
with neither log nor archive. Does not belong here: the arithmetic (``merkle``) or the signature (``checkpoint``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import msgspec

from esper.artifacts.signing import VerifyKey
from esper.errors import ProofFailed
from esper.events.envelope import Envelope
from esper.oona.sealing.checkpoint import Checkpoint, verified
from esper.oona.sealing.merkle import check_consistency, check_inclusion, consistency_proof, inclusion_proof, leaf_hash
from esper.oona.sealing.sealed import ArchiveHistory
from esper.oona.sealing.segment import envelope_of_record

#: Number of the form of proof files.
PROOF_FORMAT = 1
#: Longest proof file that is read; a record has at most 1 MiB, and base64 takes a third more.
MAX_PROOF_BYTES = 8 << 20


class Inclusion(msgspec.Struct, frozen=True, kw_only=True, tag_field="proves", tag="inclusion"):
    """A record stands at its position in the log that a checkpoint was signed for."""

    format: int
    #: The signed note.
    checkpoint: str
    position: int
    #: The record's bytes; base64 in the file.
    record: bytes
    #: Hashes from the leaf to the root.
    path: tuple[bytes, ...]


class Consistency(msgspec.Struct, frozen=True, kw_only=True, tag_field="proves", tag="consistency"):
    """The log of an older checkpoint is the beginning of the log of a newer one."""

    format: int
    #: The signed notes.
    old: str
    new: str
    path: tuple[bytes, ...]


Proof: TypeAlias = Inclusion | Consistency

_decode: Callable[[bytes], Proof] = msgspec.json.Decoder(Proof).decode


class Proven(msgspec.Struct, frozen=True, kw_only=True):
    """What a proof that holds shows."""

    #: The record; None for a proof of consistency.
    record: Envelope | None
    #: The older checkpoint; None for a proof of inclusion.
    old: Checkpoint | None
    #: The checkpoint the record is in, or the newer one.
    checkpoint: Checkpoint


def prove_inclusion(history: ArchiveHistory, position: int) -> Inclusion:
    """Return the proof that the log has a record at a position, against the newest checkpoint.

    Raises:
        ProofFailed: The position is not sealed, or the archive is damaged.
    """
    record = history.record(position)
    checkpoint = history.checkpoint
    if checkpoint is None:
        raise ProofFailed("nothing is sealed", hint="`esper log seal` seals what the log holds")
    proof = Inclusion(
        format=PROOF_FORMAT,
        checkpoint=history.archive.note(checkpoint.size).decode(),
        position=position,
        record=record,
        path=tuple(inclusion_proof(position - 1, checkpoint.size, history.node)),
    )
    check_proof(proof, history.archive.trusted)
    return proof


def prove_consistency(history: ArchiveHistory, old: int, new: int) -> Consistency:
    """Return the proof that the log of one checkpoint is the beginning of the log of another.

    Args:
        history: Sealed history.
        old: Size of the older checkpoint.
        new: Size of the newer one.

    Raises:
        NotFound: There is no such checkpoint.
        ProofFailed: The one is not the beginning of the other.
    """
    proof = Consistency(
        format=PROOF_FORMAT,
        old=history.archive.note(old).decode("utf-8", "replace"),
        new=history.archive.note(new).decode("utf-8", "replace"),
        path=tuple(consistency_proof(old, new, history.node)) if 0 < old <= new <= history.through else (),
    )
    check_proof(proof, history.archive.trusted)
    return proof


def dump_proof(proof: Proof) -> bytes:
    """Return a proof as a JSON file."""
    return msgspec.json.format(msgspec.json.encode(proof), indent=2) + b"\n"


def load_proof(data: bytes, where: str) -> Proof:
    """Return the proof of a JSON file, not checked.

    Raises:
        ProofFailed: It is not a proof in a form that this Esper reads.
    """
    if len(data) > MAX_PROOF_BYTES:
        raise ProofFailed(f"{where} has {len(data)} bytes and is no proof", where=where)
    try:
        proof = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProofFailed(f"{where} is no proof: {error}", where=where) from error
    if proof.format != PROOF_FORMAT:
        raise ProofFailed(f"{where} is a proof of form {proof.format}, this Esper reads {PROOF_FORMAT}", where=where)
    return proof


def check_proof(proof: Proof, trusted: Iterable[VerifyKey]) -> Proven:
    """Check a proof with public keys alone, and return what it shows.

    Raises:
        SignatureInvalid: A checkpoint of it is not signed by one of the keys.
        ProofFailed: It does not hold.
    """
    known = tuple(trusted)
    if isinstance(proof, Inclusion):
        checkpoint = verified(proof.checkpoint.encode(), known, "of the proof")
        check_inclusion(leaf_hash(proof.record), proof.position - 1, checkpoint.size, proof.path, checkpoint.root)
        return Proven(record=_record(proof), old=None, checkpoint=checkpoint)
    old = verified(proof.old.encode(), known, "of the proof, the older")
    new = verified(proof.new.encode(), known, "of the proof, the newer")
    if old.namespace != new.namespace:
        raise ProofFailed(f"the checkpoints are of two logs, {old.namespace} and {new.namespace}")
    check_consistency(old.size, new.size, old.root, new.root, proof.path)
    if old.generation > new.generation or (old.size == new.size and old.chain != new.chain):
        raise ProofFailed(
            f"the checkpoint of size {old.size} is of a later generation than the one of size {new.size}",
            hint="the log was restored between the two; the smaller one was signed later",
        )
    return Proven(record=None, old=old, checkpoint=new)


def _record(proof: Inclusion) -> Envelope:
    try:
        envelope = envelope_of_record(proof.record)
    except ValueError as error:
        raise ProofFailed(f"the record of the proof cannot be read: {error}") from error
    if envelope.position != proof.position:
        raise ProofFailed(f"the record says that it stands at {envelope.position}, not {proof.position}")
    return envelope
