"""Keys sign, are kept from others, and are never replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from esper.artifacts.signing import SigningKey, VerifyKey, load_trusted
from esper.errors import ArtifactConflict, ConfigError, NotFound, SignatureInvalid

#: RFC 8032, section 7.1, test 2.
RFC_PRIVATE = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
RFC_PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
RFC_SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "signing.pem"


def test_a_key_that_was_made_is_loaded_and_signs_alike(path: Path) -> None:
    made, loaded = SigningKey.create(path), SigningKey.load(path)
    assert made.public == loaded.public == VerifyKey.load(path.with_suffix(".pub"))
    signature = made.sign(b"data")
    assert len(signature) == 64
    assert loaded.sign(b"data") == signature
    loaded.public.verify(signature, b"data")


def test_signatures_are_those_of_rfc_8032(path: Path, tmp_path: Path) -> None:
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(RFC_PRIVATE)))
    assert key.public.raw.hex() == RFC_PUBLIC
    assert key.sign(b"\x72").hex() == RFC_SIGNATURE
    VerifyKey(bytes.fromhex(RFC_PUBLIC)).verify(bytes.fromhex(RFC_SIGNATURE), b"\x72")


@pytest.mark.parametrize("harm", ["data", "signature", "short", "empty", "key"])
def test_what_was_changed_does_not_verify(path: Path, tmp_path: Path, harm: str) -> None:
    key = SigningKey.create(path)
    public, signature, data = key.public, key.sign(b"data"), b"data"
    if harm == "data":
        data = b"Data"
    elif harm == "signature":
        signature = bytes([signature[0] ^ 1]) + signature[1:]
    elif harm == "short":
        signature = signature[:-1]
    elif harm == "empty":
        signature = b""
    else:
        public = SigningKey.create(tmp_path / "other.pem").public
    with pytest.raises(SignatureInvalid):
        public.verify(signature, data)


def test_bytes_that_are_no_point_of_the_curve_verify_nothing() -> None:
    with pytest.raises(SignatureInvalid):
        VerifyKey(b"\x02" + bytes(31)).verify(bytes(64), b"data")


def test_only_the_owner_may_read_the_private_half(path: Path) -> None:
    SigningKey.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.with_suffix(".pub").stat().st_mode & 0o777 == 0o644
    assert sorted(one.name for one in path.parent.iterdir()) == ["signing.pem", "signing.pub"]


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o666])
def test_a_private_half_that_others_may_read_or_change_is_refused(path: Path, mode: int) -> None:
    SigningKey.create(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="others") as caught:
        SigningKey.load(path)
    assert "chmod 600" in caught.value.hint


def test_a_key_that_is_there_is_never_replaced(path: Path) -> None:
    SigningKey.create(path)
    before = [path.read_bytes(), path.with_suffix(".pub").read_bytes()]
    with pytest.raises(ArtifactConflict):
        SigningKey.create(path)
    kept = path.read_bytes()
    path.unlink()
    with pytest.raises(ArtifactConflict):
        SigningKey.create(path)  # the public half is still needed for what the key signed
    assert not path.exists()
    assert [kept, path.with_suffix(".pub").read_bytes()] == before


def test_a_public_half_that_was_lost_is_written_again_and_another_one_is_left(path: Path, tmp_path: Path) -> None:
    key = SigningKey.create(path)
    path.with_suffix(".pub").unlink()
    assert VerifyKey.load(key.keep_public(path)) == key.public
    with pytest.raises(ArtifactConflict):
        SigningKey.create(tmp_path / "other.pem").keep_public(path)
    assert VerifyKey.load(path.with_suffix(".pub")) == key.public


def test_a_private_half_is_not_named_like_a_public_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ending of a public key"):
        SigningKey.create(tmp_path / "mine.pub")
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_is_not_there_is_not_found(path: Path) -> None:
    for load in (SigningKey.load, VerifyKey.load):
        with pytest.raises(NotFound):
            load(path)


def test_a_key_where_none_can_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        SigningKey.create(tmp_path / "file" / "signing.pem")


@pytest.mark.parametrize("text", ["", "not a key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "signing.pem"
    path.write_text(text)
    path.chmod(0o600)
    for load in (SigningKey.load, VerifyKey.load):
        with pytest.raises(ConfigError):
            load(path)


def write_pem(private: Any, folder: Path) -> tuple[Path, Path]:
    """Write a key as ``openssl genpkey`` and ``openssl pkey -pubout`` do; return both files."""
    pem, public = folder / "k.pem", folder / "k.pub"
    pem.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    pem.chmod(0o600)
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return pem, public


def test_keys_in_pem_are_read(tmp_path: Path) -> None:
    pem, public = write_pem(Ed25519PrivateKey.generate(), tmp_path)
    key = SigningKey.load(pem)
    assert VerifyKey.load(public) == key.public
    assert load_trusted(public) == [key.public]


def test_keys_of_another_kind_are_refused(tmp_path: Path) -> None:
    pem, public = write_pem(X25519PrivateKey.generate(), tmp_path)
    with pytest.raises(ConfigError, match="not of Ed25519"):
        SigningKey.load(pem)
    with pytest.raises(ConfigError, match="not of Ed25519"):
        VerifyKey.load(public)


def test_trusted_keys_are_those_of_a_folder_or_a_file(tmp_path: Path) -> None:
    keys = [SigningKey.create(tmp_path / "keys" / f"{name}.pem").public for name in "ab"]
    (tmp_path / "keys" / "notes.txt").write_text("no key")
    assert load_trusted(tmp_path / "keys") == keys
    listed = tmp_path / "trusted"
    listed.write_text(f"# the team\n\n{keys[1].text}\n  {keys[0].text}\n{keys[1].text}\n")
    assert load_trusted(listed) == [keys[1], keys[0]]
    assert load_trusted(tmp_path / "nowhere") == []


def test_a_trusted_key_that_is_none_is_named(tmp_path: Path) -> None:
    listed = tmp_path / "trusted"
    listed.write_text("# the team\ned25519:AAAA\n")
    with pytest.raises(ConfigError, match="trusted, line 2"):
        load_trusted(listed)
    (tmp_path / "broken.pub").write_text("ed25519")
    with pytest.raises(ConfigError, match="broken"):
        load_trusted(tmp_path)


def test_a_key_is_not_shown(path: Path) -> None:
    key = SigningKey.create(path)
    assert repr(key) == f"SigningKey({key.public.key_id})"
    assert len(key.public.key_id) == 16
    assert VerifyKey.from_text(key.public.text) == key.public
