"""Which handler a name stands for: those that ship, and anybody's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import Esper

from esper.artifacts.memory import MemoryStore
from esper.blueprints.canonical import blueprint_id, canonical_json
from esper.blueprints.library import load_library
from esper.errors import ConfigError, DependencyUnavailable, NotFound
from esper.events.blueprint import BlueprintSubmitted
from esper.handlers.blueprint_verifier import faults
from esper.handlers.catalog import SERVICE, SHIPPED, Setup, load_handler
from esper.oona.memory import MemoryLog
from esper.settings import load_settings

OWN = """
from esper.names import TopicNames

class Counter:
    name = "counter"
    topics = (TopicNames.TRAINING_RUNS,)
    async def handle(self, envelope, context):
        pass

class Holder:
    inner = Counter()

ready = Counter()

class Needs(Counter):
    def __init__(self, what):
        pass

def made(**changes):
    return type("Made", (Counter,), changes)()

nameless, misnamed = made(name=None), made(name="a b")
taken = made(name="projector")
topicless, one_topic, odd_topics = made(topics=()), made(topics="training.runs"), made(topics=(3,))
deaf, halfway = made(handle=None), made(handle=lambda self, envelope: None)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "own_handlers.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "needy.py").write_text("import no_such_package")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("own_handlers", "broken", "needy"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("attribute", ["Counter", "ready", "Holder.inner"])
def test_class_or_instance_in_the_working_directory_is_loaded(own: Path, attribute: str) -> None:
    path = list(sys.path)
    assert load_handler(f"own_handlers:{attribute}").name == "counter"
    assert sys.path == path


@pytest.mark.parametrize("entry", ["nonsense", "own_handlers", "own_handlers:", ":Counter"])
def test_unknown_name_is_told_with_those_that_ship(own: Path, entry: str) -> None:
    with pytest.raises(NotFound) as raised:
        load_handler(entry)
    assert "projector, sealer, blueprint-verifier" in raised.value.hint


@pytest.mark.parametrize(
    ("entry", "kind", "told"),
    [
        ("no_such_module:x", NotFound, "there is no module 'no_such_module'"),
        ("own_handlers:Missing", NotFound, "own_handlers has no 'Missing'"),
        ("needy:x", DependencyUnavailable, "needs no_such_package"),
        ("broken:x", ConfigError, "ZeroDivisionError"),
        ("own_handlers:Needs", ConfigError, "cannot be made: TypeError"),
        ("own_handlers:nameless", ConfigError, "has no usable name: None"),
        ("own_handlers:misnamed", ConfigError, "has no usable name: 'a b'"),
        ("own_handlers:taken", ConfigError, "as a shipped handler is"),
        ("own_handlers:topicless", ConfigError, "has no usable topics"),
        ("own_handlers:one_topic", ConfigError, "has no usable topics: 'training.runs'"),
        ("own_handlers:odd_topics", ConfigError, "has no usable topics"),
        ("own_handlers:deaf", ConfigError, "has no `handle"),
        ("own_handlers:halfway", ConfigError, "has no `handle"),
    ],
)
def test_what_is_no_handler_is_refused_and_the_fault_named(
    own: Path, entry: str, kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told):
        load_handler(entry)


def test_every_shipped_handler_can_be_made(tmp_path: Path) -> None:
    from esper.artifacts.signing import SigningKey

    settings = load_settings({"home": tmp_path})
    SigningKey.create(settings.signing_key)
    with MemoryLog() as log:
        for one in SHIPPED.values():
            made = one.make(Setup(log=log, store=MemoryStore(), settings=settings, member="a", ttl_s=1.0))
            assert made.name == one.name
            assert hasattr(made, "step") == (one.kind == SERVICE)
            if hasattr(made, "close"):
                made.close()


def test_list_names_what_ships_without_a_log(esper: Esper) -> None:
    rows = esper("handler", "list", "--json").json
    assert [(row["name"], row["kind"]) for row in rows] == [
        ("projector", "service"),
        ("sealer", "service"),
        ("blueprint-verifier", "handler"),
        ("tezzeret", "handler"),
        ("urabrask", "handler"),
    ]


# --- the blueprint verifier


def submitted(**changes: object) -> BlueprintSubmitted:
    blueprint = load_library()["res_mlp"]
    fields = {
        "blueprint_id": blueprint_id(blueprint),
        "name": blueprint.id,
        "kind": blueprint.kind,
        "architecture_ir": canonical_json(blueprint),
        "submitted_by": "ada",
    }
    return BlueprintSubmitted(**{**fields, **changes})  # type: ignore[arg-type]


def test_every_shipped_blueprint_is_sound() -> None:
    for blueprint in load_library().values():
        fact = submitted(
            blueprint_id=blueprint_id(blueprint),
            name=blueprint.id,
            kind=blueprint.kind,
            architecture_ir=canonical_json(blueprint),
        )
        assert faults(fact) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architecture_ir": "{}"}, "the key is missing"),
        ({"architecture_ir": "no JSON"}, "JSON"),
        ({"architecture_ir": canonical_json(load_library()["res_mlp"]).replace('"gelu"', '"exec"')}, "no operator"),
        ({"blueprint_id": "b1" * 32}, "id: submitted as 'b1b1"),
        ({"name": "other"}, "name: submitted as 'other', the document says"),
        ({"kind": "lowrank_weight"}, "kind: submitted as 'lowrank_weight'"),
    ],
)
def test_unsound_submission_is_told_with_its_reason(changes: dict[str, object], told: str) -> None:
    (reason,) = faults(submitted(**changes))
    assert told in reason
