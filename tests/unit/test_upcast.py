"""Upcasters: a stored payload is led, schema by schema, to the form the class has now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from esper.errors import SchemaError, UpcastMissing
from esper.events import codec
from esper.events.base import Fact, fact
from esper.events.registry import FACT_TYPES
from esper.events.upcast import UPCASTERS, upcast
from esper.names import TopicNames


@fact(TopicNames.OPERATOR_ACTIONS, stream="operator", key="run_id", schema=3)
class LampLit(Fact, frozen=True, kw_only=True):
    """A type with two older forms: schema 1 said watts as text, schema 2 as a number, schema 3 has a colour too."""

    run_id: str
    watts: float
    colour: str | None


def _text_to_number(payload: dict[str, Any]) -> dict[str, Any]:
    return {"run_id": payload["run_id"], "watts": float(payload["power"].removesuffix(" W"))}


def _add_colour(payload: dict[str, Any]) -> dict[str, Any]:
    return {**payload, "colour": None}


@pytest.fixture
def lamp(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(FACT_TYPES, "LampLit", LampLit)
    monkeypatch.setitem(UPCASTERS, ("LampLit", 1), _text_to_number)
    monkeypatch.setitem(UPCASTERS, ("LampLit", 2), _add_colour)
    return


@pytest.mark.usefixtures("lamp")
@pytest.mark.parametrize(
    ("schema", "stored"),
    [
        (1, {"run_id": "run-1", "power": "40.5 W"}),
        (2, {"run_id": "run-1", "watts": 40.5}),
        (3, {"run_id": "run-1", "watts": 40.5, "colour": None}),
    ],
)
def test_every_stored_schema_decodes_to_the_current_form(schema: int, stored: dict[str, Any]) -> None:
    expected = LampLit(run_id="run-1", watts=40.5, colour=None)
    assert codec.decode_payload("LampLit", schema, msgspec.msgpack.encode(stored)) == expected


@pytest.mark.usefixtures("lamp")
def test_a_missing_step_of_the_chain_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(UPCASTERS, ("LampLit", 2))
    with pytest.raises(UpcastMissing, match="LampLit schema 2 to 3"):
        codec.decode_payload("LampLit", 1, msgspec.msgpack.encode({"run_id": "run-1", "power": "1 W"}))


@pytest.mark.usefixtures("lamp")
def test_a_schema_newer_than_the_class_is_refused_and_not_guessed() -> None:
    with pytest.raises(UpcastMissing, match="newer"):
        codec.decode_payload("LampLit", 4, msgspec.msgpack.encode({"run_id": "r", "watts": 1.0, "colour": None}))


@pytest.mark.usefixtures("lamp")
def test_what_the_chain_gives_is_still_checked_against_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(UPCASTERS, ("LampLit", 2), lambda payload: {**payload, "colour": 7})
    with pytest.raises(SchemaError, match="LampLit schema 2 cannot be read"):
        codec.decode_payload("LampLit", 2, msgspec.msgpack.encode({"run_id": "run-1", "watts": 1.0}))


def test_a_current_payload_passes_through_untouched() -> None:
    payload = {"a": 1}
    assert upcast("Anything", payload, 2, 2) is payload


def test_registered_upcasters_belong_to_known_types_and_older_schemas() -> None:
    for name, schema in UPCASTERS:
        assert 1 <= schema < FACT_TYPES[name].info.schema


def test_every_older_schema_has_an_upcaster() -> None:
    for name, cls in FACT_TYPES.items():
        for schema in range(1, cls.info.schema):
            assert (name, schema) in UPCASTERS
