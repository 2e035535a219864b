"""The shelf of kernels: every kernel that is put there is signed, and none is taken from it unchecked.

Belongs here: the checks between a store that others write to and a module that trains, and what becomes of bytes that
fail them. Does not belong here: the bytes of a kernel (``kernel``), who is told of a failure (``forge``), or keeping
kernels that were checked at hand (``esper.kasmina.cache``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from esper.artifacts.signatures import judge, message_of, require_signed
from esper.artifacts.signing import SigningKey, VerifyKey, load_known
from esper.artifacts.store import ArtifactStore
from esper.blueprints.ir import SiteSignature
from esper.blueprints.kernels.kernel import Kernel, decode_kernel
from esper.blueprints.kernels.kernel import kernel_id as id_of
from esper.errors import (
    ArtifactDamaged,
    ArtifactMissing,
    BlueprintInvalid,
    EsperError,
    KernelRefused,
    NotFound,
    SignatureInvalid,
)
from esper.ids import sha256

_DIGITS = 64
_HEXADECIMAL = "0123456789abcdef"


class KernelShelf:
    """Keeps kernels in an artifact store."""

    def __init__(
        self, store: ArtifactStore, *, key: SigningKey | None = None, trusted: Sequence[VerifyKey] | None = None
    ) -> None:
        """Use a store.

        Args:
            store: Where the kernels are.
            key: What kernels that are put are signed with; None puts them unsigned. Its public half is trusted.
            trusted: Keys one of which must have signed a kernel that is taken; None asks for no signature.
        """
        self._store = store
        self._key = key
        self._trusted: list[VerifyKey] | None = None
        if trusted is not None:
            own = [] if key is None else [key.public]
            self._trusted = list(dict.fromkeys([*trusted, *own]))

    @classmethod
    def open(
        cls,
        store: ArtifactStore,
        signing_key: Path,
        trusted_keys: Path,
        on_new_key: Callable[[SigningKey], None] | None = None,
    ) -> KernelShelf:
        """Use a store with the keys that settings name; what is put is always signed.

        Args:
            store: Where the kernels are.
            signing_key: File of one's own key, which is made if there is none.
            trusted_keys: Folder or file of the keys that are trusted besides.
            on_new_key: Called with a key that was made.

        Raises:
            ConfigError: A key cannot be read or made.
        """
        key, new = SigningKey.load_or_create(signing_key)
        if new and on_new_key is not None:
            on_new_key(key)
        return cls(store, key=key, trusted=load_known(trusted_keys, signing_key))

    @property
    def signed_by(self) -> str | None:
        """Id of the key that signs what is put; None if nothing is signed."""
        return None if self._key is None else self._key.public.key_id

    @property
    def trusted(self) -> list[VerifyKey]:
        """The keys whose signatures count here, one's own among them."""
        own = [] if self._key is None else [self._key.public]
        return list(dict.fromkeys([*(self._trusted or []), *own]))

    def put(self, data: bytes) -> str:
        """Keep a kernel, signed where there is a key, and return its id; putting it again changes nothing.

        Damaged bytes under its id are replaced, and so is a signature of one's own that does not fit.

        Raises:
            KernelRefused: The bytes are no kernel: nothing is vouched for that would be refused later.
            ArtifactError: They cannot be kept.
        """
        _read(data)
        return self.keep(data).hex()

    def keep(self, data: bytes) -> bytes:
        """Keep what was found out about a kernel, signed where there is a key, and return its digest.

        Raises:
            ArtifactError: It cannot be kept.
        """
        digest = self._store.put(data)
        if self._key is not None:
            key_id, signature = self._key.public.key_id, self._key.sign(message_of(digest))
            if self._store.signatures(digest).get(key_id, signature) != signature:
                self._store.remove_signature(digest, key_id)
            self._store.add_signature(digest, key_id, signature)
        return digest

    def get(self, kernel_id: str, *, signature: SiteSignature | None = None) -> Kernel:
        """Return a kernel whose bytes, signature, form and site were checked.

        Args:
            kernel_id: 64 hexadecimal digits.
            signature: The site it is to fit; None for any.

        Raises:
            NotFound: The id is none of a kernel.
            ArtifactMissing: The store does not have it.
            ArtifactDamaged: The stored bytes are others.
            SignatureInvalid: No trusted key signed it, or a trusted key's signature does not fit.
            KernelRefused: The bytes are no kernel, or one for another site.
        """
        digest = _digest_of(kernel_id)
        data = self._store.get(digest)
        if self._trusted is not None:
            self._require_signed(digest, self._trusted)
        kernel = _read(data)
        if signature is not None and kernel.signature != signature:
            raise KernelRefused(
                f"kernel {kernel_id} is for {_told(kernel.signature)}, not for {_told(signature)}",
                hint="a kernel fits the one kind of site it was compiled for; `esper kernel list` shows which",
                reason="wrong_site",
            )
        return kernel

    def has(self, kernel_id: str) -> bool:
        """Tell whether the store has bytes under an id; ``get`` tells whether they hold.

        Raises:
            NotFound: The id is none of a kernel.
        """
        return self._store.has(_digest_of(kernel_id))

    def quarantine(self, kernel_id: str) -> bytes | None:
        """Move aside what does not hold of a kernel, so that ``put`` writes it soundly again.

        Damaged bytes are kept under the digest they have now and taken away from the id. Signatures that do not fit
        are taken away and kept in a record of their own. Whatever holds stays: bytes that have their digest, which are
        no kernel or one for another site, are their own evidence.

        Returns:
            The digest of the evidence; None if nothing was found.

        Raises:
            NotFound: The id is none of a kernel.
            ArtifactError: The store cannot be read or written.
        """
        digest = _digest_of(kernel_id)
        found = self._store.unchecked(digest)
        if found is None:
            return None
        own = [] if self._key is None else [self._key.public]
        bad = judge(self._store, digest, [*(self._trusted or []), *own]).bad
        signatures = self._store.signatures(digest)
        if sha256(found) != digest:
            evidence = self._store.put(found)
            # What was put soundly by somebody else since it was read stays.
            if self._store.unchecked(digest) == found:
                self._store.delete(digest)
                for key_id, signature in signatures.items():
                    if key_id not in bad:  # it vouches for the sound bytes, whoever writes them
                        self._store.add_signature(digest, key_id, signature)
            return evidence
        if not bad:
            return digest
        record = {"kernel_id": kernel_id, "signatures": {key_id: signatures[key_id].hex() for key_id in bad}}
        evidence = self._store.put(json.dumps(record, sort_keys=True).encode())
        for key_id in bad:
            self._store.remove_signature(digest, key_id)
        return evidence

    def _require_signed(self, digest: bytes, trusted: list[VerifyKey]) -> None:
        judged = judge(self._store, digest, trusted)
        try:
            require_signed(digest, judged)
        except SignatureInvalid as error:
            if error.reason != "unknown_key":
                raise
            name = digest.hex()
            raise SignatureInvalid(
                f"kernel {name} is signed by {', '.join(judged.unknown)}, which is not trusted here",
                hint="ask its owner for the public key that `esper artifact key` prints, and keep it as a file *.pub "
                f"in the folder of the setting trusted_keys; or sign it yourself: `esper artifact sign {name[:12]}`",
                digest=name,
                reason=error.reason,
            ) from error


def quarantine_reason(error: EsperError) -> str | None:
    """Return the word by which KernelQuarantined tells why a kernel could not be taken.

    Args:
        error: What ``KernelShelf.get`` raised.

    Returns:
        damaged, missing, unsigned, wrong_signature, wrong_site or not_a_kernel; None where the kernel is not to blame:
        a store that cannot be reached, or a signer whom this machine does not trust.
    """
    match error:
        case ArtifactDamaged():
            return "damaged"
        case ArtifactMissing():
            return "missing"
        case SignatureInvalid(reason="unknown_key"):
            return None
        case SignatureInvalid(reason=reason):
            return reason or None
        case KernelRefused():
            return "wrong_site" if error.attributes.get("reason") == "wrong_site" else "not_a_kernel"
        case _:
            return None


def _read(data: bytes) -> Kernel:
    try:
        return decode_kernel(data)
    except BlueprintInvalid as error:
        raise KernelRefused(
            f"the kernel {id_of(data)} holds a blueprint that breaks a rule: {error.message}"
        ) from error


def _digest_of(kernel_id: str) -> bytes:
    if len(kernel_id) != _DIGITS or kernel_id.strip(_HEXADECIMAL):
        raise NotFound(f"{kernel_id[:80]!r} is no kernel id", hint="a kernel id is 64 hexadecimal digits")
    return bytes.fromhex(kernel_id)


def _told(signature: SiteSignature) -> str:
    sizes = "x".join(str(size) for size in (signature.channels, *signature.positions))
    return f"a {signature.kind} site {signature.rank} {sizes} (in {signature.in_channels})"
