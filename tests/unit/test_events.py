"""Facts: exact round trips, errors by name, golden bytes, and a catalogue that matches the code."""

from __future__ import annotations

import json
import math
import runpy
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from esper.errors import SchemaError, UnknownEventType, UpcastMissing
from esper.events import FACT_TYPES, Fact, decode_payload, encode_fact, infos
from esper.events.catalog import events_markdown, fields_of, lifecycle_markdown
from esper.events.codec import digest_of, fact_of, record_of, same_fact
from esper.events.envelope import Envelope
from esper.events.kernel import KernelCompiled
from esper.events.lifecycle import EDGES, SeedState
from esper.events.run import TrainingStepCompleted
from esper.names import TopicNames

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "golden" / "events"
REFERENCE = TESTS.parent / "docs" / "reference"
maker = runpy.run_path(str(TESTS / "golden" / "make_events.py"))
GOLDEN_FILES = sorted(GOLDEN.glob("*.json"))

AWKWARD = {
    "nan": math.nan,
    "nan with payload": struct.unpack("<d", struct.pack("<Q", 0xFFF8000000000123))[0],
    "inf": math.inf,
    "minus inf": -math.inf,
    "minus zero": -0.0,
    "smallest denormal": 5e-324,
    "largest denormal": 2.225073858507201e-308,
    "largest": 1.7976931348623157e308,
    "a third": 1 / 3,
}


def bits(value: Any) -> Any:
    """Plain data with every float as its eight bytes, so that comparison is exact and NaN equals itself."""
    if isinstance(value, float):
        return struct.pack(">d", value)
    if isinstance(value, dict):
        return {key: bits(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [bits(part) for part in value]
    return value


def plain(fact: Fact) -> Any:
    return msgspec.to_builtins(fact, builtin_types=(bytes,))


def with_floats(value: Any, number: float) -> Any:
    """A copy of structs and plain data with every float replaced."""
    if isinstance(value, float):
        return number
    if isinstance(value, msgspec.Struct):
        changed = {name: with_floats(getattr(value, name), number) for name in value.__struct_fields__}
        return type(value)(**changed)
    if isinstance(value, dict):
        return {key: with_floats(part, number) for key, part in value.items()}
    if isinstance(value, list):
        return [with_floats(part, number) for part in value]
    return value


def step(**changes: Any) -> TrainingStepCompleted:
    fields: dict[str, Any] = {
        "run_id": "run-1",
        "attempt": 1,
        "ordinal": 9,
        "epoch": 0,
        "step": 8,
        "loss": 0.1,
        "learning_rate": 0.01,
        "samples_digest": b"\x01" * 16,
        "duration_s": 0.25,
    }
    return TrainingStepCompleted(**{**fields, **changes})


@pytest.mark.parametrize("sparse", [False, True], ids=["full", "sparse"])
@pytest.mark.parametrize("name", sorted(FACT_TYPES))
def test_every_type_comes_back_equal_and_encodes_to_the_same_bytes(name: str, sparse: bool) -> None:
    fact = maker["example"](FACT_TYPES[name], sparse=sparse)
    payload = encode_fact(fact)
    again = decode_payload(name, fact.info.schema, payload)
    assert type(again) is type(fact)
    assert bits(plain(again)) == bits(plain(fact))
    assert encode_fact(again) == payload


@pytest.mark.parametrize("number", AWKWARD.values(), ids=AWKWARD.keys())
@pytest.mark.parametrize("name", sorted(FACT_TYPES))
def test_every_float_of_every_type_keeps_its_bits(name: str, number: float) -> None:
    fact = with_floats(maker["example"](FACT_TYPES[name], sparse=False), number)
    again = decode_payload(name, fact.info.schema, encode_fact(fact))
    assert bits(plain(again)) == bits(plain(fact))


@pytest.mark.parametrize("name", sorted(FACT_TYPES))
def test_a_payload_is_a_map_of_the_fields_in_declared_order(name: str) -> None:
    cls = FACT_TYPES[name]
    payload = msgspec.msgpack.decode(encode_fact(maker["example"](cls, sparse=True)))
    assert list(payload) == list(cls.__struct_fields__)


@pytest.mark.parametrize("name", sorted(FACT_TYPES))
def test_facts_are_frozen(name: str) -> None:
    cls = FACT_TYPES[name]
    fact = maker["example"](cls, sparse=False)
    with pytest.raises(AttributeError):
        setattr(fact, cls.__struct_fields__[0], "other")


def test_an_unknown_type_is_named_in_the_error() -> None:
    with pytest.raises(UnknownEventType, match="'SeedSang'") as caught:
        decode_payload("SeedSang", 1, b"\x80")
    assert isinstance(caught.value, LookupError)
    assert "another version" in caught.value.hint


def test_a_schema_newer_than_this_esper_asks_for_an_upgrade() -> None:
    with pytest.raises(UpcastMissing, match="schema 2 is newer than this Esper, which knows up to 1") as caught:
        decode_payload("TrainingStepCompleted", 2, encode_fact(step()))
    assert "upgrade" in caught.value.hint


def test_a_schema_that_never_was_is_refused() -> None:
    with pytest.raises(UpcastMissing, match="schema 0 to 1"):
        decode_payload("TrainingStepCompleted", 0, encode_fact(step()))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        encode_fact(step())[:-3],
        encode_fact(step()) + b"\x00",
        msgspec.msgpack.encode([1, 2]),
        msgspec.msgpack.encode(None),
        msgspec.msgpack.encode({"run_id": "run-1"}),
        encode_fact(step()).replace(b"\xa5run-1", b"\x05\x05\x05\x05\x05\x05"),
        msgspec.msgpack.encode({**plain(step()), "loss": "low"}),
        msgspec.msgpack.encode({**plain(step()), "step": 1.5}),
        msgspec.msgpack.encode({**plain(step()), "samples_digest": "not bytes!"}),
        encode_fact(step()).replace(b"run-1", b"run-\xff"),
    ],
    ids=[
        "empty",
        "no opcode",
        "cut short",
        "a byte too many",
        "an array",
        "nil",
        "fields missing",
        "keys that are numbers",
        "text for a float",
        "a fraction for an integer",
        "text for bytes",
        "text that is not UTF-8",
    ],
)
def test_a_wrong_payload_is_a_schema_error(payload: bytes) -> None:
    with pytest.raises(SchemaError, match="TrainingStepCompleted schema 1"):
        decode_payload("TrainingStepCompleted", 1, payload)


def test_a_payload_nested_without_end_is_a_schema_error() -> None:
    with pytest.raises(SchemaError, match="RunStarted schema 1"):
        decode_payload("RunStarted", 1, b"\x81\xa6config" + b"\x81\xa1a" * 100_000 + b"\xc0")


def test_same_fact_ignores_volatile_fields_only() -> None:
    first = step()
    assert same_fact(first, step(duration_s=9.0))
    for name in first.__struct_fields__:
        if name != "duration_s":
            value = getattr(first, name)
            other = value + b"\x00" if isinstance(value, bytes) else value + type(value)(1)
            assert not same_fact(first, step(**{name: other})), name


def test_same_fact_holds_nan_equal_to_nan_and_zero_apart_from_minus_zero() -> None:
    assert same_fact(step(loss=math.nan), step(loss=math.nan))
    assert not same_fact(step(loss=0.0), step(loss=-0.0))


def test_same_fact_tells_types_apart() -> None:
    example = maker["example"]
    paused, cut = (example(FACT_TYPES[name], sparse=True) for name in ("RunPaused", "RunFailed"))
    assert same_fact(paused, paused)
    assert not same_fact(paused, cut)


@pytest.mark.parametrize("name", sorted(FACT_TYPES))
def test_every_type_has_one_topic_and_a_stream_with_an_existing_key(name: str) -> None:
    info = FACT_TYPES[name].info
    if info.topic is None:
        assert (name, "topic" in FACT_TYPES[name].__struct_fields__) == ("MessagePublished", True)
    else:
        assert isinstance(info.topic, TopicNames)
    assert info.name == name
    assert info.schema >= 1
    assert info.stream in {"run", "decision", "operator", "blueprint", "handler", "message", "log"}
    assert info.key in FACT_TYPES[name].__struct_fields__
    assert set(info.volatile) < set(FACT_TYPES[name].__struct_fields__)


def test_every_type_is_listed_once() -> None:
    assert sorted(info.name for info in infos()) == sorted(FACT_TYPES)


def test_a_fact_names_its_stream() -> None:
    assert step(run_id="run-0192").stream == "run/run-0192"
    compiled = maker["example"](KernelCompiled, sparse=False)
    assert compiled.stream == f"blueprint/{compiled.blueprint_id}"


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
def test_a_golden_payload_still_decodes_to_its_fields_and_its_digest(path: Path) -> None:
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert path.stem == f"{kept['type']}.v{kept['schema']}"
    current = FACT_TYPES[kept["type"]].info.schema == kept["schema"]
    for example in kept["examples"].values():
        payload = bytes.fromhex(example["payload"])
        fact = decode_payload(kept["type"], kept["schema"], payload)
        if current:
            assert maker["fields"](fact) == example["fields"]
            assert encode_fact(fact) == payload
        record = bytes.fromhex(example["record"])
        envelope = envelope_of(record)
        assert record_of(envelope) == record
        assert digest_of(record).hex() == example["digest"]
        assert envelope.payload == payload
        assert same_fact(fact_of(envelope), fact)


def envelope_of(record: bytes) -> Envelope:
    """Read a record by the twelve places its form fixes, independently of the codec."""
    names = "position event_id type schema topic stream version sender_id trace_id causation_id recorded_at payload"
    parts = msgspec.msgpack.decode(record)
    return Envelope(**dict(zip(names.split(), parts, strict=True)), digest=b"")


def test_every_type_and_schema_has_a_golden_file() -> None:
    expected = {f"{info.name}.v{schema}" for info in infos() for schema in range(1, info.schema + 1)}
    assert {path.stem for path in GOLDEN_FILES} == expected, "run: python tests/golden/make_events.py"


def test_the_reference_pages_are_what_the_code_gives() -> None:
    assert (REFERENCE / "events.md").read_text(encoding="utf-8") == events_markdown()
    assert (REFERENCE / "lifecycle.md").read_text(encoding="utf-8") == lifecycle_markdown()


def test_the_catalogue_lists_every_field_of_every_type() -> None:
    page = events_markdown()
    for name, cls in FACT_TYPES.items():
        section = page.split(f"### {name}\n")[1].split("\n#")[0]
        for field in cls.__struct_fields__:
            assert f"| `{field}` |" in section, f"{name}.{field}"


def test_the_catalogue_takes_a_fields_type_comment_and_default_from_the_source() -> None:
    fields = {field.name: field for field in fields_of(TrainingStepCompleted)}
    assert fields["samples_digest"].type == "bytes | None"
    assert fields["loss"].doc == "Mean training loss of the batch, exact."
    assert fields["attempt"].doc == "Attempt of the run, from 1; a resumption or a rollback begins a new one."
    assert [name for name, field in fields.items() if field.volatile] == ["duration_s"]
    started = {field.name: field for field in fields_of(FACT_TYPES["RunStarted"])}
    assert started["parent_run_id"].default == "None"
    assert started["task"].default is None


def test_the_lifecycle_page_holds_every_state_and_edge() -> None:
    page = lifecycle_markdown()
    assert all(f"| `{state}` |" in page for state in SeedState)
    assert all(f"| `{edge.source}` | `{edge.target}` |" in page for edge in EDGES)
