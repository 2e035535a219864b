"""Signed checkpoints: what the log was at a size, as text that a key has signed.

The text is a C2SP tlog-checkpoint (origin, size, root) with four lines of ours, signed as a C2SP signed note, so that
other tools read and verify it too. Belongs here: writing, strict reading and the verification of signatures. Does not
belong here: whether the log agrees (``sealer``, ``sealcheck``) or where checkpoints are kept (``archive``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from typing import NoReturn

import msgspec

from esper.artifacts.signing import SigningKey, VerifyKey
from esper.errors import SignatureInvalid
from esper.oona.sealing.segment import NAMESPACE

#: Longest note that is read.
MAX_NOTE_BYTES = 8192
_ORIGIN = "esper/"
_DASH = "\N{EM DASH} "
#: Sign of Ed25519 in the ids of keys and in key texts of signed notes.
_ED25519 = b"\1"
_KEY_ID_BYTES = 4
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_SIGNATURE = re.compile(rf"{_DASH}([^\s+]+) ([A-Za-z0-9+/]+={{0,2}})")


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What is said about the log at one size."""

    #: Name of the log.
    namespace: str
    #: Records the log had, which is the position of the last.
    size: int
    #: Merkle root over them.
    root: bytes
    #: Chain value after the last.
    chain: bytes
    #: 1, and one more for each time the log was restored.
    generation: int
    #: Digest of the segment the last record is in.
    segment: bytes
    #: When it was signed, microseconds since the Unix epoch.
    signed_at: int

    @property
    def text(self) -> str:
        """The signed text; its last line ends too."""
        return "".join(
            f"{line}\n"
            for line in (
                f"{_ORIGIN}{self.namespace}",
                self.size,
                base64.b64encode(self.root).decode(),
                f"chain {self.chain.hex()}",
                f"generation {self.generation}",
                f"segment {self.segment.hex()}",
                f"time {self.signed_at}",
            )
        )


def sign(checkpoint: Checkpoint, key: SigningKey) -> bytes:
    """Return the signed note of a checkpoint."""
    name = f"{_ORIGIN}{checkpoint.namespace}"
    signature = key_hash(name, key.public) + key.sign(checkpoint.text.encode())
    return f"{checkpoint.text}\n{_DASH}{name} {base64.b64encode(signature).decode()}\n".encode()


def verified(note: bytes, trusted: Iterable[VerifyKey], where: str) -> Checkpoint:
    """Return the checkpoint of a note that a trusted key has signed.

    Args:
        note: Text and signatures.
        trusted: Public keys, any of which will do.
        where: Which checkpoint, for messages.

    Raises:
        SignatureInvalid: It is not a checkpoint, or no trusted key has signed it.
    """
    text, signatures = _parts(note, where)
    known = list(trusted)
    for name, signature in signatures:
        for key in known:
            if signature[:_KEY_ID_BYTES] != key_hash(name, key):
                continue
            try:
                key.verify(signature[_KEY_ID_BYTES:], text.encode())
            except SignatureInvalid as error:
                raise SignatureInvalid(f"checkpoint {where}: {error.message}", hint=error.hint, where=where) from error
            return _parsed(text, where)
    keys = ", ".join(key.key_id for key in known) or "none"
    raise SignatureInvalid(
        f"checkpoint {where} is signed by no trusted key; trusted: {keys}",
        hint="add the sealer's public key to the setting trusted_keys, if you have it from somebody you trust",
        where=where,
    )


def key_hash(name: str, key: VerifyKey) -> bytes:
    """Return the id that a signed note gives a key of a name."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + key.raw).digest()[:_KEY_ID_BYTES]


def note_key(namespace: str, key: VerifyKey) -> str:
    """Return a public key as other tools for signed notes take it."""
    name = f"{_ORIGIN}{namespace}"
    return f"{name}+{key_hash(name, key).hex()}+{base64.b64encode(_ED25519 + key.raw).decode()}"


def _parts(note: bytes, where: str) -> tuple[str, list[tuple[str, bytes]]]:
    """Return the signed text of a note, and the names and bytes of its signatures."""
    if len(note) > MAX_NOTE_BYTES:
        _refuse(where, f"it has {len(note)} bytes")
    try:
        whole = note.decode()
    except UnicodeDecodeError:
        _refuse(where, "it is not text")
    text, separator, rest = whole.partition("\n\n")
    if not separator or not rest.endswith("\n"):
        _refuse(where, "it has no signatures")
    signatures = []
    for line in rest.removesuffix("\n").split("\n"):
        found = _SIGNATURE.fullmatch(line)
        if found is None:
            _refuse(where, "a line of its signatures is not one")
        signatures.append((found[1], _bytes(found[2], where)))
    return text + "\n", signatures


def _parsed(text: str, where: str) -> Checkpoint:
    """Return the checkpoint of a text; anything that is not exactly one is refused."""
    lines = text.split("\n")
    if len(lines) != 8:
        _refuse(where, f"it has {len(lines) - 1} lines, not 7")
    namespace = lines[0].removeprefix(_ORIGIN)
    root = _bytes(lines[2], where)
    fields = [_field(line, name, where) for line, name in zip(lines[3:7], _FIELDS, strict=True)]
    if NAMESPACE.fullmatch(namespace) is None or len(root) != 32 or not all(_HASH.fullmatch(fields[i]) for i in (0, 2)):
        _refuse(where, "its origin or a hash is not one")
    checkpoint = Checkpoint(
        namespace=namespace,
        size=_number(lines[1], where),
        root=root,
        chain=bytes.fromhex(fields[0]),
        generation=_number(fields[1], where),
        segment=bytes.fromhex(fields[2]),
        signed_at=_number(fields[3], where),
    )
    if checkpoint.size < 1 or checkpoint.generation < 1 or checkpoint.text != text:
        _refuse(where, "it is not written as checkpoints are")
    return checkpoint


_FIELDS = ("chain", "generation", "segment", "time")
_HASH = re.compile(r"[0-9a-f]{64}")


def _field(line: str, name: str, where: str) -> str:
    found, _, value = line.partition(" ")
    if found != name:
        _refuse(where, f"it has {found!r} where {name} belongs")
    return value


def _number(text: str, where: str) -> int:
    if _NUMBER.fullmatch(text) is None:
        _refuse(where, f"{text[:40]!r} is not a number")
    return int(text)


def _bytes(text: str, where: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        data = b""
    # Several texts decode to the same bytes; only one is what those bytes are written as.
    if not data or base64.b64encode(data).decode() != text:
        _refuse(where, "a line is not base64")
    return data


def _refuse(where: str, reason: str) -> NoReturn:
    raise SignatureInvalid(f"checkpoint {where} cannot be trusted: {reason}", where=where, reason=reason)
