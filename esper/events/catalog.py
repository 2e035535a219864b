"""The catalogue of all fact types and of the lifecycle, as Markdown made from the code itself.

Belongs here: reading the classes and their ``#:`` comments and laying them out. Does not belong here: writing
files (``docs/generate.py``) or any text about a type that could stand beside the type.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from types import ModuleType

import msgspec

from esper.events import lifecycle
from esper.events.base import Fact
from esper.events.lifecycle import SeedState
from esper.events.registry import FACT_TYPES, FAMILIES
from esper.names import TopicNames

_HEADER = "<!-- Generated from the code by docs/generate.py. Do not edit. -->"


class FieldDoc(msgspec.Struct, frozen=True, kw_only=True):
    """One field as the source declares it."""

    name: str
    #: The annotation as written.
    type: str
    #: The default as written, or None where the field must be given.
    default: str | None
    #: The ``#:`` comment, on one line; empty where there is none.
    doc: str
    volatile: bool = False


def fields_of(cls: type[msgspec.Struct]) -> list[FieldDoc]:
    """Return a struct's fields in the order they are encoded, inherited ones first."""
    volatile = cls.info.volatile if issubclass(cls, Fact) else ()
    declared: dict[str, FieldDoc] = {}
    for owner in reversed(cls.__mro__):
        if issubclass(owner, msgspec.Struct) and owner is not msgspec.Struct:
            for field in _declared(owner):
                declared[field.name] = field
    return [msgspec.structs.replace(declared[name], volatile=name in volatile) for name in cls.__struct_fields__]


def parts() -> list[type[msgspec.Struct]]:
    """Return the structs that facts are made of and that are no facts themselves, in source order."""
    return [
        value
        for module in FAMILIES
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, msgspec.Struct)
        and not issubclass(value, Fact)
        and value.__module__ == module.__name__
    ]


def events_markdown() -> str:
    """Return the catalogue of every fact type: topic, stream, schema and each field's type and meaning."""
    part_names = [part.__name__ for part in parts()]
    return _joined(
        [
            "# Event types",
            "",
            _HEADER,
            "",
            f"{len(FACT_TYPES)} types in {len(FAMILIES)} families. A payload is a msgpack map of the fields"
            " below in this order. Streams are named `<kind>/<key>`, e.g. `run/run-0192`. A field marked"
            " *volatile* may differ when the same thing happens again; all others are compared when an event"
            " id comes a second time. `None` stands for not measured or not there, never for a healthy"
            " default.",
            "",
            *_index(),
            *(line for module in FAMILIES for line in _family(module, part_names)),
            "## Parts of facts",
            "",
            "Structs that stand inside the fields above.",
            "",
            *(line for part in parts() for line in _part(part, part_names)),
        ]
    )


def lifecycle_markdown() -> str:
    """Return the life of a seed: a drawing, the states and the table of every legal move."""
    return _joined(
        [
            "# The life of a seed",
            "",
            _HEADER,
            "",
            *_paragraphs(lifecycle.__doc__)[:1],
            "",
            "A move that is not in the edge table is refused and recorded as"
            " [SeedTransitionRefused](events.md#seedtransitionrefused); every move that is made is a"
            " [SeedTransitioned](events.md#seedtransitioned).",
            "",
            *_drawing(),
            "",
            "## States",
            "",
            "*Attached*: the seed's branch is part of the forward pass. *Learning*: its parameters are"
            " trained. *Living*: the site is taken and the seed has not come to its end.",
            "",
            *_table(
                ("state", "attached", "learning", "living"),
                (
                    (
                        f"`{state}`",
                        _mark(state in lifecycle.ATTACHED),
                        _mark(state in lifecycle.LEARNING),
                        _mark(state in lifecycle.LIVING),
                    )
                    for state in SeedState
                ),
            ),
            "",
            "## Triggers",
            "",
            *(f"- `{_value(line.default)}`: {line.doc}" for line in _declared(lifecycle.Trigger)),
            "",
            "## Edges",
            "",
            *_table(
                ("from", "to", "trigger", "gate", "meaning"),
                (
                    (
                        f"`{edge.source}`",
                        f"`{edge.target}`",
                        " or ".join(sorted(edge.triggers)),
                        f"`{edge.gate}`" if edge.gate else "",
                        edge.meaning,
                    )
                    for edge in lifecycle.EDGES
                ),
            ),
            "",
            f"A site stays closed for {lifecycle.EMBARGO_STEPS} steps after a cull unless the run's"
            " configuration says otherwise.",
        ]
    )


def _index() -> Iterator[str]:
    yield from _table(
        ("type", "family", "topic", "stream", "schema"),
        (
            (
                f"[{cls.__name__}](#{cls.__name__.lower()})",
                cls.info.family,
                _topic(cls.info.topic),
                f"`{cls.info.stream}/<{cls.info.key}>`",
                str(cls.info.schema),
            )
            for module in FAMILIES
            for cls in _types(module)
        ),
    )
    yield ""


def _family(module: ModuleType, part_names: list[str]) -> Iterator[str]:
    yield f"## Family: {module.__name__.rsplit('.', 1)[-1]}"
    yield ""
    yield from _paragraphs(module.__doc__)
    yield ""
    for cls in _types(module):
        info = cls.info
        yield f"### {info.name}"
        yield ""
        yield from _paragraphs(cls.__doc__)
        yield ""
        volatile = ", ".join(f"`{name}`" for name in info.volatile) or "none"
        yield (
            f"Topic {_topic(info.topic)}, stream `{info.stream}/<{info.key}>`, schema {info.schema},"
            f" volatile fields: {volatile}."
        )
        yield ""
        yield from _fields(cls, part_names)
        yield ""


def _part(cls: type[msgspec.Struct], part_names: list[str]) -> Iterator[str]:
    yield f"### {cls.__name__}"
    yield ""
    yield from _paragraphs(cls.__doc__)
    yield ""
    yield from _fields(cls, part_names)
    yield ""


def _fields(cls: type[msgspec.Struct], part_names: list[str]) -> Iterator[str]:
    yield from _table(
        ("field", "type", "meaning"),
        (
            (
                f"`{field.name}`",
                f"`{field.type}`",
                " ".join(_meaning(field, [name for name in part_names if _names(field.type, name)])),
            )
            for field in fields_of(cls)
        ),
    )


def _meaning(field: FieldDoc, named_parts: list[str]) -> Iterator[str]:
    if field.doc:
        yield field.doc
    for name in named_parts:
        yield f"See [{name}](#{name.lower()})."
    if field.default is not None:
        yield f"Default `{field.default}`."
    if field.volatile:
        yield "*Volatile.*"


def _names(annotation: str, part: str) -> bool:
    return re.search(rf"\b{part}\b", annotation) is not None


def _types(module: ModuleType) -> list[type[Fact]]:
    return [cls for cls in FACT_TYPES.values() if cls.__module__ == module.__name__]


def _declared(cls: type) -> list[FieldDoc]:
    """Return what a class body declares itself: annotated fields, and the members of an enumeration."""
    source = inspect.getsource(cls)
    body = ast.parse(source).body[0]
    if not isinstance(body, ast.ClassDef):
        raise TypeError(f"{cls.__name__} is not declared by a class statement")
    lines = source.splitlines()
    found = []
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name, annotation = node.target.id, ast.unparse(node.annotation)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, annotation = node.targets[0].id, ""
        else:
            continue
        default = ast.unparse(node.value) if node.value is not None else None
        found.append(FieldDoc(name=name, type=annotation, default=default, doc=_comment(lines, node.lineno - 1)))
    return found


def _comment(lines: list[str], line: int) -> str:
    """Return the ``#:`` comment that ends just above a line."""
    first = line
    while first > 0 and lines[first - 1].lstrip().startswith("#:"):
        first -= 1
    return " ".join(text.lstrip().removeprefix("#:").strip() for text in lines[first:line])


def _drawing() -> Iterator[str]:
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield f"    [*] --> {SeedState.DORMANT}"
    for edge in lifecycle.EDGES:
        if edge.target is not SeedState.ROLLED_BACK:
            yield f"    {edge.source} --> {edge.target}"
    yield f"    {SeedState.FOSSILIZED} --> [*]"
    yield "```"
    yield ""
    yield "Left out of the drawing: a rollback of the governor can end a seed in any state before its end."


def _value(default: str | None) -> str:
    return str(ast.literal_eval(default)) if default is not None else ""


def _topic(topic: TopicNames | None) -> str:
    return "named by `topic`" if topic is None else f"`{topic}`"


def _mark(there: bool) -> str:
    return "yes" if there else ""


def _paragraphs(doc: str | None) -> list[str]:
    return inspect.cleandoc(doc or "").splitlines()


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"
