"""Whatever a fact names is found, in whatever structure the name stands."""

from __future__ import annotations

import hashlib
from random import Random
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.oona.collecting.names import Unnamed

DIGESTS = [hashlib.sha256(bytes([number])).digest() for number in range(24)]


def spelled(digest: bytes, draw: Random) -> Any:
    """Return one of the ways in which a fact may hold a digest."""
    digits = draw.choice([digest.hex(), digest.hex().upper()])
    return draw.choice(
        [
            digest,
            draw.randbytes(draw.randrange(50)) + digest + draw.randbytes(draw.randrange(50)),
            digest + digest,
            msgspec.msgpack.encode({"inner": [digest]}),
            digits,
            f"sha256:{digits}",
            f" {digits}/ä",
            f"a{digits}",
            f"{digits}{digits}",
            f"0{digits}{digits}f",
            msgspec.json.encode({"inner": digits}).decode(),
        ]
    )


def buried(name: Any, draw: Random) -> Any:
    """Return a payload that holds a name somewhere, beside other things."""
    body: Any = {name: draw.random()} if isinstance(name, str) and draw.random() < 0.3 else name
    for _ in range(draw.randrange(6)):
        beside = [draw.choice([None, True, draw.random(), draw.randrange(1 << 60), "ä " * draw.randrange(40)])]
        body = [*beside, body, *beside] if draw.random() < 0.5 else {"a": beside, "name": body, "": None}
    return {"fact": body, "noise": draw.randbytes(draw.randrange(200))}


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 64))
def test_what_is_named_is_never_left_over_and_what_is_not_is(seed: int) -> None:
    draw = Random(seed)
    named = set(draw.sample(DIGESTS, draw.randrange(9)))
    unnamed = Unnamed(DIGESTS)
    for digest in named:
        unnamed.strike(msgspec.msgpack.encode(buried(spelled(digest, draw), draw)))
    assert unnamed.left == set(DIGESTS) - named
    assert set(unnamed.take_named()) == named
    assert unnamed.take_named() == []


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 64))
def test_what_an_artifact_names_is_found_between_other_bytes(seed: int) -> None:
    draw = Random(seed)
    named = draw.sample(DIGESTS, draw.randrange(1, 6))
    listed = [draw.choice([one, one.hex(), f"x{one.hex()}"]) for one in named]
    plain = ["magic", 1, buried(listed, draw), draw.randbytes(3000)]
    encode = msgspec.msgpack.encode if any(isinstance(one, bytes) for one in listed) else msgspec.json.encode
    unnamed = Unnamed(DIGESTS)
    unnamed.strike_in_artifact(encode(plain))
    assert unnamed.left == set(DIGESTS) - set(named)
