"""Ed25519 keys: the private half signs, the public half tells whether a signature is its own.

Belongs here: making, keeping and reading keys, and signing bytes. Does not belong here: what is signed, which is
``signatures`` for artifacts and ``esper.oona`` for checkpoints of the log.

The private half is a PKCS #8 PEM file that only its owner may read. The public half is one line of text,
``ed25519:`` and the 32 bytes in base64; a PEM public key, as openssl writes it, is read too.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import stat
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from esper.artifacts.files import write_new
from esper.errors import ArtifactConflict, ConfigError, NotFound, SignatureInvalid

#: Ending of files with public keys.
PUBLIC_SUFFIX = ".pub"
_KIND = "ed25519:"
_KEY_BYTES = 32
_MAKE_ONE = "`esper artifact key --create` makes one; ESPER_SIGNING_KEY names another"


class VerifyKey:
    """The public half of a key."""

    def __init__(self, raw: bytes) -> None:
        """Take the 32 bytes of a public key.

        Raises:
            ConfigError: They are not 32.
        """
        if len(raw) != _KEY_BYTES:
            raise ConfigError(f"an Ed25519 public key has {_KEY_BYTES} bytes, not {len(raw)}")
        self.raw = raw

    @classmethod
    def load(cls, path: str | Path) -> VerifyKey:
        """Read a public key from a file.

        Raises:
            NotFound: There is no such file.
            ConfigError: It cannot be read, or holds something else.
        """
        path = Path(path)
        return cls.from_text(_read(path).decode("ascii", "replace"), where=str(path))

    @classmethod
    def from_text(cls, text: str, *, where: str = "a public key") -> VerifyKey:
        """Return the key of a text: a line as ``text`` gives it, or PEM.

        Raises:
            ConfigError: It is neither.
        """
        text = text.strip()
        if text.startswith("-----BEGIN PUBLIC KEY-----"):
            return cls(_raw_of_pem(text, where))
        raw = b""
        if text.startswith(_KIND):
            with contextlib.suppress(ValueError):
                raw = base64.b64decode(text.removeprefix(_KIND), validate=True)
        if len(raw) != _KEY_BYTES:
            raise ConfigError(
                f"{where} is not an Ed25519 public key",
                hint=f"it is one line `{_KIND}...` as `esper artifact key` prints it, or a PEM file",
            )
        return cls(raw)

    @property
    def text(self) -> str:
        """The key on one line."""
        return _KIND + base64.b64encode(self.raw).decode()

    @cached_property
    def key_id(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the key's 32 bytes."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def verify(self, signature: bytes, data: bytes) -> None:
        """Check that a signature of these bytes was made with the private half.

        Raises:
            SignatureInvalid: It was not.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            # Some 32 bytes are no point of the curve: nothing can be signed with such a key.
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, data)
        except (InvalidSignature, ValueError):
            raise SignatureInvalid(
                f"the signature does not fit what key {self.key_id} is said to have signed",
                hint="what was signed, or the signature, was changed: do not use it",
            ) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VerifyKey) and other.raw == self.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"VerifyKey({self.key_id})"


class SigningKey:
    """A key that signs; never printed, copied or sent anywhere."""

    def __init__(self, private: Any) -> None:
        """Take a private key of ``cryptography``; ``create`` and ``load`` are how one is got."""
        self._private = private

    @classmethod
    def create(cls, path: str | Path) -> SigningKey:
        """Make a key and keep it in a file that only its owner may read; its public half goes beside it.

        Args:
            path: File of the private half; the public half has the ending ``.pub``.

        Raises:
            ArtifactConflict: One of the two files is there already; both are left as they are.
            ConfigError: The files cannot be written.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        path = Path(path)
        public = public_half(path)
        private = Ed25519PrivateKey.generate()
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        key = cls(private)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # What an earlier key signed can be verified only while its public half is there.
            taken = public if public.exists() else path
            if taken == public or not write_new(path, pem, temporary=path.parent, root=path.parent, mode=0o600):
                raise ArtifactConflict(
                    f"there is a key at {taken} already",
                    hint="it is left as it is; set ESPER_SIGNING_KEY to make another one elsewhere",
                )
        except OSError as error:
            raise _unwritable(path, error) from error
        key.keep_public(path)
        return key

    @classmethod
    def load(cls, path: str | Path) -> SigningKey:
        """Read a key that ``create`` made, or any Ed25519 key in PKCS #8 PEM without a password.

        Raises:
            NotFound: There is no such file.
            ConfigError: It cannot be read, holds something else, or others than its owner may read it.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        path = Path(path)
        pem = _read(path, hint=_MAKE_ONE)
        if stat.S_IMODE(path.stat().st_mode) & (stat.S_IRWXO | stat.S_IWGRP):
            raise ConfigError(
                f"signing key {path} can be read or written by others, so its signatures prove nothing",
                hint=f"`chmod 600 {path}`, and make a new key if somebody may have read this one",
            )
        try:
            private = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # Its text could show parts of the key.
            raise ConfigError(f"{path} is no private key in PEM without a password", hint=_MAKE_ONE) from None
        if not isinstance(private, Ed25519PrivateKey):
            raise ConfigError(f"{path} is a private key, but not of Ed25519", hint=_MAKE_ONE)
        return cls(private)

    @classmethod
    def load_or_create(cls, path: str | Path) -> tuple[SigningKey, bool]:
        """Return the key of a file, and whether it was made now because there was none.

        Of several processes that begin at once, one makes it and all get the same.

        Raises:
            ConfigError: It can neither be read nor made.
            ArtifactConflict: The public half that lies beside it is another key's.
        """
        path = Path(path)
        if not path.exists():
            try:
                return cls.create(path), True
            except ArtifactConflict:
                if not path.exists():  # a public half without its private one is left for its owner to see to
                    raise
        key = cls.load(path)
        key.keep_public(path)
        return key, False

    @cached_property
    def public(self) -> VerifyKey:
        """The public half."""
        return VerifyKey(self._private.public_key().public_bytes_raw())

    def sign(self, data: bytes) -> bytes:
        """Return the signature of bytes: 64 bytes, the same for the same bytes."""
        signature: bytes = self._private.sign(data)
        return signature

    def keep_public(self, path: str | Path) -> Path:
        """See that the public half lies beside the private one, and return where.

        Args:
            path: File of the private half.

        Raises:
            ArtifactConflict: Another key lies there.
            ConfigError: It cannot be written or read.
        """
        public = public_half(Path(path))
        try:
            line = f"{self.public.text}\n".encode()
            if write_new(public, line, temporary=public.parent, root=public.parent):
                return public
        except OSError as error:
            raise _unwritable(public, error) from error
        if VerifyKey.load(public) != self.public:
            raise ArtifactConflict(
                f"{public} is not the public half of {path}", hint="rename one of the two: each key has its own name"
            )
        return public

    def __repr__(self) -> str:
        return f"SigningKey({self.public.key_id})"


def public_half(path: Path) -> Path:
    """Return where the public half of a private key's file lies.

    Raises:
        ConfigError: The private half has the ending of public ones.
    """
    if path.suffix == PUBLIC_SUFFIX:
        raise ConfigError(
            f"{path} has the ending of a public key", hint=f"name the file of the private half {path.stem}.pem"
        )
    return path.with_suffix(PUBLIC_SUFFIX)


def load_trusted(path: str | Path) -> list[VerifyKey]:
    """Return the public keys that are trusted: every ``*.pub`` file of a folder, or every line of a file.

    In a file with several keys, empty lines and lines that begin with ``#`` are left out. A folder that is not there
    holds no keys.

    Raises:
        ConfigError: Something there is no public key, or cannot be read.
    """
    path = Path(path)
    if path.is_file():
        text = _read(path).decode("ascii", "replace")
        if "-----BEGIN" in text:
            return [VerifyKey.from_text(text, where=str(path))]
        lines = [line.strip() for line in text.splitlines()]
        return _distinct(
            VerifyKey.from_text(line, where=f"{path}, line {number}")
            for number, line in enumerate(lines, 1)
            if line and not line.startswith("#")
        )
    return _distinct(VerifyKey.load(file) for file in sorted(path.glob(f"*{PUBLIC_SUFFIX}")))


def load_known(trusted: str | Path, signing_key: str | Path) -> list[VerifyKey]:
    """Return the public keys that are trusted, and one's own where there is one.

    Args:
        trusted: Folder or file of public keys; see ``load_trusted``.
        signing_key: File of one's own private key; only its public half is read.

    Raises:
        ConfigError: Something there is no public key, or cannot be read.
    """
    own = public_half(Path(signing_key))
    return _distinct([*load_trusted(trusted), *([VerifyKey.load(own)] if own.is_file() else [])])


def _distinct(keys: Iterable[VerifyKey]) -> list[VerifyKey]:
    return list(dict.fromkeys(keys))


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"key {path} cannot be written: {error.strerror}", hint="check the folder and its room")


def _read(path: Path, *, hint: str = "") -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"no key at {path}", hint=hint) from None
    except OSError as error:
        raise ConfigError(f"key {path} cannot be read: {error.strerror}") from error


def _raw_of_pem(text: str, where: str) -> bytes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{where} is not a public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{where} is a public key, but not of Ed25519")
    return key.public_bytes_raw()
