"""Signatures of artifacts: who vouches for which bytes.

Belongs here: what is signed, and judging the signatures that a store keeps. Does not belong here: keys (``signing``),
or how signatures are stored (``content``).

A signature is over a text of its own and the artifact's digest, so that no signature of anything else, such as a
checkpoint of the log, can pass for one of an artifact.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from esper.artifacts.signing import SigningKey, VerifyKey
from esper.artifacts.store import ArtifactStore, hex_of
from esper.errors import SignatureInvalid

_DOMAIN = b"esper artifact v1\n"


class Judged(NamedTuple):
    """What became of the signatures of one artifact."""

    #: Ids of trusted keys whose signatures hold.
    good: list[str]
    #: Ids of trusted keys whose signatures do not fit the artifact.
    bad: list[str]
    #: Ids of keys that are not trusted; their signatures say nothing.
    unknown: list[str]


def message_of(digest: bytes) -> bytes:
    """Return the bytes that are signed for an artifact: ``esper artifact v1``, a line feed, and the 32 bytes.

    Raises:
        ArtifactError: The digest does not have 32 bytes.
    """
    hex_of(digest)
    return _DOMAIN + digest


def sign(store: ArtifactStore, digest: bytes, key: SigningKey) -> bool:
    """Sign an artifact that is in a store, and keep the signature beside it; tell whether it is new.

    Raises:
        ArtifactMissing: No artifact has this digest.
        ArtifactDamaged: The stored bytes do not have this digest: they are read before they are vouched for.
        ArtifactConflict: Another signature of this key is kept.
    """
    store.get(digest)
    return store.add_signature(digest, key.public.key_id, key.sign(message_of(digest)))


def judge(store: ArtifactStore, digest: bytes, trusted: Collection[VerifyKey]) -> Judged:
    """Tell which of an artifact's signatures hold; its bytes are not read."""
    keys = {key.key_id: key for key in trusted}
    judged = Judged([], [], [])
    message = message_of(digest)
    for key_id, signature in sorted(store.signatures(digest).items()):
        if key_id not in keys:
            judged.unknown.append(key_id)
            continue
        try:
            keys[key_id].verify(signature, message)
        except SignatureInvalid:
            judged.bad.append(key_id)
        else:
            judged.good.append(key_id)
    return judged


def verify_signed(store: ArtifactStore, digest: bytes, trusted: Collection[VerifyKey]) -> bytes:
    """Return the bytes of an artifact that a trusted key has signed.

    Raises:
        SignatureInvalid: Nobody signed it, no trusted key did, or a trusted key's signature does not fit.
        ArtifactMissing: No artifact has this digest.
        ArtifactDamaged: The stored bytes do not have this digest.
    """
    require_signed(digest, judge(store, digest, trusted))
    return store.get(digest)


def require_signed(digest: bytes, judged: Judged) -> None:
    """Refuse an artifact that no trusted key vouches for.

    Raises:
        SignatureInvalid: It is so; attribute ``digest`` tells which artifact, and ``reason`` why: ``wrong_signature``,
            ``unknown_key`` or ``unsigned``.
    """
    name = digest.hex()
    if judged.bad:
        raise SignatureInvalid(
            f"artifact {name}: the signature of key {judged.bad[0]} does not fit it",
            hint="the signature was changed, or made for something else: find out by whom before you use the artifact",
            digest=name,
            reason="wrong_signature",
        )
    if judged.good:
        return
    if judged.unknown:
        raise SignatureInvalid(
            f"artifact {name} is signed by {', '.join(judged.unknown)}, which is not trusted",
            hint="put the signer's public key into the folder of the setting trusted_keys if you trust it",
            digest=name,
            reason="unknown_key",
        )
    raise SignatureInvalid(
        f"artifact {name} is not signed",
        hint=f"`esper artifact sign {name[:12]}` signs it, if you vouch for it",
        digest=name,
        reason="unsigned",
    )
