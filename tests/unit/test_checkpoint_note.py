"""Signed checkpoints: what a trusted key signed is read back, everything else is refused."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from esper.artifacts.signing import SigningKey
from esper.errors import SignatureInvalid
from esper.oona.sealing.checkpoint import MAX_NOTE_BYTES, Checkpoint, note_key, sign, verified

CHECKPOINT = Checkpoint(
    namespace="main",
    size=65_536,
    root=b"r" * 32,
    chain=b"c" * 32,
    generation=2,
    segment=b"s" * 32,
    signed_at=1_755_860_000_000_000,
)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return SigningKey.create(tmp_path_factory.mktemp("keys") / "signing.pem")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return SigningKey.create(tmp_path_factory.mktemp("other") / "signing.pem")


def test_a_checkpoint_comes_back_as_it_was_signed(key: SigningKey, other: SigningKey) -> None:
    note = sign(CHECKPOINT, key)
    assert verified(note, [key.public], "x") == CHECKPOINT
    assert verified(note, [other.public, key.public], "x") == CHECKPOINT
    assert len(note) < 600


def test_the_text_is_the_documented_one(key: SigningKey) -> None:
    lines = sign(CHECKPOINT, key).decode().split("\n")
    assert lines[:8] == [
        "esper/main",
        "65536",
        "cnJycnJycnJycnJycnJycnJycnJycnJycnJycnJycnI=",
        f"chain {'63' * 32}",
        "generation 2",
        f"segment {'73' * 32}",
        "time 1755860000000000",
        "",
    ]
    assert lines[8].startswith("\N{EM DASH} esper/main ")
    assert lines[9:] == [""]


def test_a_stranger_verifies_the_note_with_the_standard_alone(key: SigningKey) -> None:
    """As the signed-note standard says it, with nothing of ours but the note and the key's text."""
    name, key_hash, encoded = note_key("main", key.public).split("+", 2)
    kind_and_key = base64.b64decode(encoded)
    assert kind_and_key[0] == 1
    assert hashlib.sha256(name.encode() + b"\n" + kind_and_key).digest()[:4].hex() == key_hash
    text, _, signatures = sign(CHECKPOINT, key).decode().partition("\n\n")
    dash, line_name, signature = signatures.rstrip("\n").split(" ")
    assert (dash, line_name) == ("\N{EM DASH}", name)
    raw = base64.b64decode(signature)
    assert raw[:4].hex() == key_hash
    Ed25519PublicKey.from_public_bytes(kind_and_key[1:]).verify(raw[4:], f"{text}\n".encode())


def test_a_note_of_another_key_is_refused(key: SigningKey, other: SigningKey) -> None:
    with pytest.raises(SignatureInvalid, match="no trusted key"):
        verified(sign(CHECKPOINT, other), [key.public], "x")
    with pytest.raises(SignatureInvalid, match="trusted: none"):
        verified(sign(CHECKPOINT, key), [], "x")


def test_a_second_signature_does_not_hide_the_trusted_one(key: SigningKey, other: SigningKey) -> None:
    theirs = sign(CHECKPOINT, other).partition(b"\n\n")[2]
    both = sign(CHECKPOINT, key) + theirs
    assert verified(both, [key.public], "x") == CHECKPOINT
    assert verified(both, [other.public], "x") == CHECKPOINT


def test_every_flipped_bit_is_noticed(key: SigningKey) -> None:
    note = sign(CHECKPOINT, key)
    for place in range(len(note)):
        for bit in range(8):
            damaged = bytearray(note)
            damaged[place] ^= 1 << bit
            with pytest.raises(SignatureInvalid):
                verified(bytes(damaged), [key.public], "x")


def test_a_signature_written_another_way_is_refused(key: SigningKey) -> None:
    """Base64 has spare bits: four texts decode to the same signature, and one of them is what was written."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    note = sign(CHECKPOINT, key).decode()
    last = note[-3]
    assert note.endswith(f"{last}=\n")
    for spare in (1, 2, 3):
        other = note[:-3] + alphabet[alphabet.index(last) + spare] + "=\n"
        assert base64.b64decode(other.split(" ")[-1]) == base64.b64decode(note.split(" ")[-1])
        with pytest.raises(SignatureInvalid):
            verified(other.encode(), [key.public], "x")


@given(st.binary(max_size=400), st.integers(0, 400))
def test_any_other_bytes_are_refused(key: SigningKey, junk: bytes, place: int) -> None:
    note = sign(CHECKPOINT, key)
    for wrong in (junk, note[:place] + junk, junk + note[place:]):
        if wrong != note:
            with pytest.raises(SignatureInvalid):
                verified(wrong, [key.public], "x")
    with pytest.raises(SignatureInvalid):
        verified(note + b"x" * MAX_NOTE_BYTES, [key.public], "x")


def signed(text: str, key: SigningKey) -> bytes:
    """Return a note over any text at all that the key did sign."""
    name = "esper/main"
    key_hash = hashlib.sha256(f"{name}\n".encode() + b"\1" + key.public.raw).digest()[:4]
    signature = base64.b64encode(key_hash + key.sign(text.encode())).decode()
    return f"{text}\n\N{EM DASH} {name} {signature}\n".encode()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("esper/main", "other/main"),
        ("esper/main", "esper/a b"),
        ("65536", "065536"),
        ("65536", "0"),
        ("65536", "-1"),
        ("65536", "65_536"),
        ("65536", "\N{ARABIC-INDIC DIGIT SIX}5536"),
        ("65536", "9" * 20),
        ("cnJycnJycnJycnJycnJycnJycnJycnJycnJycnJycnI=", "cnJy"),
        ("cnJycnJycnJycnJycnJycnJycnJycnJycnJycnJycnI=", "cnJycnJycnJycnJycnJycnJycnJycnJycnJycnJycnJ="),
        ("chain 63", "chain 6G"),
        ("chain 63", "chain  63"),
        ("chain", "link"),
        ("generation 2", "generation 0"),
        ("generation 2", "generation two"),
        ("segment 73", "segment 7"),
        ("time 1755860000000000", "time"),
        ("time 1755860000000000", "time 1755860000000000\nmore"),
        ("time 1755860000000000\n", ""),
    ],
)
def test_a_signed_text_that_is_not_exactly_a_checkpoint_is_refused(key: SigningKey, old: str, new: str) -> None:
    text = CHECKPOINT.text
    assert verified(signed(text, key), [key.public], "x") == CHECKPOINT
    assert text.count(old) == 1
    with pytest.raises(SignatureInvalid):
        verified(signed(text.replace(old, new), key), [key.public], "x")


def test_the_signature_covers_every_field(key: SigningKey) -> None:
    note = sign(CHECKPOINT, key)
    for changes in ({"size": 1}, {"root": bytes(32)}, {"generation": 3}, {"segment": bytes(32)}, {"signed_at": 0}):
        text = msgspec.structs.replace(CHECKPOINT, **changes).text
        with pytest.raises(SignatureInvalid):
            verified(text.encode() + b"\n" + note.partition(b"\n\n")[2], [key.public], "x")


def test_keys_are_told_apart_by_name_too(key: SigningKey, tmp_path: Path) -> None:
    assert note_key("main", key.public) != note_key("other", key.public)
    renamed = sign(CHECKPOINT, key).replace(b"\xe2\x80\x94 esper/main", b"\xe2\x80\x94 esper/other")
    with pytest.raises(SignatureInvalid):
        verified(renamed, [key.public], "x")
