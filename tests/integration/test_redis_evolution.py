"""Case 13 on Redis: facts of older and newer versions of Esper in one log, read, kept raw or refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from faults.notes import STREAM, append_batches
from servers import RedisServer

from esper.errors import PoisonEvent, SchemaError, UnknownEventType, UpcastMissing
from esper.events import fact_of
from esper.events.base import Fact, fact
from esper.events.codec import digest_of, record_of
from esper.events.envelope import Envelope
from esper.events.registry import FACT_TYPES
from esper.events.upcast import UPCASTERS
from esper.ids import derived_id
from esper.names import TopicNames
from esper.oona.open import open_log
from esper.projections.open import open_tables
from esper.projections.runner import Projector

ROOT = Path(__file__).parents[2]
GOLDEN = sorted((ROOT / "tests" / "golden" / "events").glob("*.json"))
#: A process of another version of Esper: its LampLit has the form that is put in.
PRODUCER = """
import sys
from typing import Any
from esper.events import Event
from esper.events.base import Fact, fact
from esper.ids import derived_id
from esper.names import TopicNames
from esper.oona.open import open_log
from esper.oona.port import ANY

@fact(TopicNames.OPERATOR_ACTIONS, stream="operator", key="run_id", schema={schema})
class LampLit(Fact, frozen=True, kw_only=True):
    run_id: str
    {fields}

with open_log(sys.argv[1]) as log:
    lamp = LampLit(run_id="run-1", {values})
    event = Event(fact=lamp, event_id=derived_id("lamp", {schema}), sender_id="other", trace_id="0" * 32)
    for _ in range(2):
        receipt = log.append([event], stream="operator/run-1", expected=ANY)
    print(receipt.last)
"""


@fact(TopicNames.OPERATOR_ACTIONS, stream="operator", key="run_id", schema=3)
class LampLit(Fact, frozen=True, kw_only=True):
    """As this version knows it: schema 1 said watts as text, schema 2 as a number, schema 3 has a colour too."""

    run_id: str
    watts: float
    colour: str | None


def _text_to_number(payload: dict[str, Any]) -> dict[str, Any]:
    return {"run_id": payload["run_id"], "watts": float(payload["power"].removesuffix(" W"))}


def _add_colour(payload: dict[str, Any]) -> dict[str, Any]:
    return {**payload, "colour": None}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


def produce(server: RedisServer, schema: int, fields: str, values: str) -> int:
    """Append a LampLit from a process of another version; return its position."""
    script = PRODUCER.format(schema=schema, fields=fields, values=values)
    command = [sys.executable, "-c", script, server.url]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return int(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, timeout=60).stdout)


def test_facts_of_older_producers_are_read_in_the_form_of_today(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = produce(server, 1, "power: str", "power='40.5 W'")
    second = produce(server, 2, "watts: float", "watts=41.5")
    monkeypatch.setitem(FACT_TYPES, "LampLit", LampLit)
    monkeypatch.setitem(UPCASTERS, ("LampLit", 1), _text_to_number)
    monkeypatch.setitem(UPCASTERS, ("LampLit", 2), _add_colour)
    with open_log(server.url) as log:
        records = log.read()
        assert [one.position for one in records] == [first, second] == [1, 2]
        assert [one.schema for one in records] == [1, 2], "the log itself is never rewritten"
        assert [fact_of(one) for one in records] == [
            LampLit(run_id="run-1", watts=watts, colour=None) for watts in (40.5, 41.5)
        ]
        log.verify()


def test_facts_of_newer_producers_are_kept_raw_and_refused_by_name(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with open_log(server.url) as log:
        append_batches(log, 1, 3)
        position = produce(server, 4, "glow: dict[str, Any]", "glow={'lumen': [1.5, None], 'new': b'bytes'}")
        append_batches(log, 1, 3, first=1)
        (lamp,) = log.read(position - 1, 1)
        # The type is not known here: every byte is kept, the log verifies, and its stream goes on.
        assert (lamp.type, lamp.schema, lamp.stream, lamp.version) == ("LampLit", 4, STREAM, 4)
        assert msgspec.msgpack.decode(lamp.payload)["glow"] == {"lumen": [1.5, None], "new": b"bytes"}
        assert log.verify().events == 7
        with pytest.raises(UnknownEventType):
            fact_of(lamp)
        # Tables stop in front of it rather than skip it.
        engine = open_tables(f"sqlite:///{tmp_path}/tables.db")
        with pytest.raises(PoisonEvent):
            Projector(log, engine).catch_up()
        assert Projector(log, engine).checkpoint().position == position - 1
        engine.dispose()
        # A version that knows the type, but not this schema, says so too.
        monkeypatch.setitem(FACT_TYPES, "LampLit", LampLit)
        with pytest.raises(UpcastMissing, match="newer"):
            fact_of(lamp)


def test_every_golden_fact_comes_back_from_redis_byte_for_byte(server: RedisServer) -> None:
    examples = [
        (document["type"], example)
        for document in (json.loads(path.read_text()) for path in GOLDEN)
        for example in document["examples"].values()
    ]
    records, versions = [], {}
    for position, (name, example) in enumerate(examples, start=1):
        stored = msgspec.msgpack.decode(bytes.fromhex(example["record"]))
        stream = stored[5]
        versions[stream] = versions.get(stream, 0) + 1
        # As written by the version of the golden file, but for number and id, which a log has once.
        fields = [position, derived_id("golden", position), *stored[2:6], versions[stream], *stored[7:]]
        envelope = Envelope(*fields, digest=b"")
        records.append(msgspec.structs.replace(envelope, digest=digest_of(record_of(envelope))))
        assert envelope.payload == bytes.fromhex(example["payload"])
        assert envelope.type == name
    with open_log(server.url) as log:
        log.restore(records)
        assert log.read(0, len(records)) == records
        for record in log.read(0, len(records)):
            try:
                fact_of(record)
            except SchemaError as error:
                raise AssertionError(f"{record.type} schema {record.schema}: {error}") from error
        assert log.verify().events == len(records)
