"""What every fact type is: a frozen struct with a name, a schema number, a topic and a stream.

Belongs here: the ``Fact`` base, the ``fact`` class decorator and what it notes of a type. The types themselves
stand one family per module beside this one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, TypeVar

import msgspec

from esper.names import TopicNames


class FactInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the registry knows of one fact type."""

    #: Type name as stored in the log.
    name: str
    #: Current schema number, from 1.
    schema: int
    #: None where each fact names its own: a published message.
    topic: TopicNames | None
    #: Kind of stream the type lives in: run, decision, operator, blueprint, handler, message or log.
    stream: str
    #: Name of the field that completes the stream's name.
    key: str
    #: Family, which is the module's name.
    family: str
    #: Fields that may differ when the same thing happens again (durations, say); the others are deterministic.
    volatile: tuple[str, ...]


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened. Names are past tense; a value that was not measured is None."""

    info: ClassVar[FactInfo]

    @property
    def stream(self) -> str:
        """Return the stream this fact belongs to, e.g. ``run/run-0192``."""
        return f"{self.info.stream}/{getattr(self, self.info.key)}"

    @property
    def topic_name(self) -> str:
        """Return the topic this fact is appended to."""
        topic = self.info.topic
        return str(getattr(self, "topic")) if topic is None else topic.value  # noqa: B009 - only some types have it


F = TypeVar("F", bound=type[Fact])


def fact(
    topic: TopicNames | None, *, stream: str, key: str, schema: int = 1, volatile: tuple[str, ...] = ()
) -> Callable[[F], F]:
    """Name a Fact subclass's topic, stream and schema.

    Args:
        topic: The one topic of the type; None where its field ``topic`` names it.
        stream: Kind of stream, e.g. ``run``.
        key: Field whose value completes the stream's name.
        schema: Current schema number.
        volatile: Fields left out when two facts are compared for identity.
    """

    def note(cls: F) -> F:
        cls.info = FactInfo(
            name=cls.__name__,
            schema=schema,
            topic=topic,
            stream=stream,
            key=key,
            family=cls.__module__.rsplit(".", 1)[-1],
            volatile=volatile,
        )
        return cls

    return note


class RunFact(Fact, frozen=True, kw_only=True):
    """A fact on a run's own stream, written by Tolaria alone."""

    run_id: str
    #: Attempt of the run, from 1; a resumption or a rollback begins a new one.
    attempt: int
    #: Place among the attempt's facts, gapless from 1.
    ordinal: int
