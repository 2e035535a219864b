"""Blueprints join the library and leave it: the facts of it, and what the log already says.

Belongs here: submitting a document and retiring a blueprint. Does not belong here: the rules a document must keep
(``verify``) or kernels (``forge``). Torch is not imported: what is submitted is data.

What is said twice is one fact: event ids follow from what happened before. A blueprint that was retired comes back
when it is submitted again, and can be retired again.
"""

from __future__ import annotations

import msgspec

from esper.blueprints.canonical import blueprint_id, canonical_json
from esper.blueprints.forging.jobs import submitted_event_id
from esper.blueprints.ir import Blueprint, parse
from esper.blueprints.library import load_library
from esper.blueprints.verify import verify
from esper.errors import BlueprintInvalid, EventIdReused, NotFound
from esper.events import Event, Fact, fact_of
from esper.events.blueprint import BlueprintRejected, BlueprintRetired, BlueprintSubmitted
from esper.ids import derived_id, sha256
from esper.oona.port import ANY, EventLog, iterate_stream

_BLUEPRINTS_HINT = "`esper blueprint list` shows the blueprints"


class Author(msgspec.Struct, frozen=True):
    """In whose name facts are written."""

    #: A person or a program, as tables show it.
    name: str
    sender_id: str
    #: 32 hexadecimal digits.
    trace_id: str


class Origin(msgspec.Struct, frozen=True):
    """Where a blueprint comes from that nobody wrote."""

    #: Id of the blueprint it was made from.
    parent: str
    mutation: str
    novelty: float | None


class Submission(msgspec.Struct, frozen=True):
    """What came of a submission."""

    blueprint_id: str
    #: The blueprint's own name.
    name: str
    #: Whether it was noted now; the log knew it before where not.
    new: bool


class Standing(msgspec.Struct, frozen=True):
    """Where a blueprint stands in the library."""

    #: Its last submission; None where there is none.
    submitted: BlueprintSubmitted | None = None
    #: Event ids of that and of the retirement after it.
    submitted_event: bytes | None = None
    retired_event: bytes | None = None


def sound(document: bytes) -> Blueprint:
    """Return the blueprint in a document that may be submitted.

    Raises:
        BlueprintInvalid: It breaks a static rule, or bears the name of a shipped blueprint that it is not.
    """
    blueprint = parse(document)
    verify(blueprint)
    shipped = load_library().get(blueprint.id)
    # Runs and reports tell blueprints by name.
    if shipped is not None and blueprint_id(shipped) != blueprint_id(blueprint):
        raise BlueprintInvalid(
            f"id: {blueprint.id!r} is the name of a shipped blueprint that computes something else",
            hint="give yours another id",
            path="id",
            rule="name_taken",
        )
    return blueprint


def submit(log: EventLog, document: bytes, author: Author, *, origin: Origin | None = None) -> Submission:
    """Verify a document and note the outcome; a blueprint that the library has is not noted again.

    Raises:
        BlueprintInvalid: A rule is broken; the refusal was noted.
    """
    name: str | None = None
    try:
        name = parse(document).id
        blueprint = sound(document)
    except BlueprintInvalid as error:
        digest = sha256(document).hex()
        reasons = [f"{error.message}; {error.hint}"]
        refusal = BlueprintRejected(blueprint_id=digest, name=name, reasons=reasons, submitted_by=author.name)
        _append(log, refusal, derived_id("blueprint", digest, "rejected"), author, None)
        raise
    return submit_sound(log, blueprint, author, origin=origin)


def submit_sound(log: EventLog, blueprint: Blueprint, author: Author, *, origin: Origin | None = None) -> Submission:
    """Note a blueprint that is known to be sound; see ``submit``."""
    identity = blueprint_id(blueprint)
    standing = standing_of(log, identity)
    if standing.submitted is not None and standing.retired_event is None:
        return Submission(identity, blueprint.id, False)
    event_id = submitted_event_id(identity)
    if standing.retired_event is not None:
        event_id = derived_id("blueprint", identity, "submitted", standing.retired_event.hex())
    fact = BlueprintSubmitted(
        blueprint_id=identity,
        name=blueprint.id,
        kind=blueprint.kind,
        architecture_ir=canonical_json(blueprint),
        submitted_by=author.name,
        parent=None if origin is None else origin.parent,
        mutation=None if origin is None else origin.mutation,
        novelty=None if origin is None else origin.novelty,
    )
    return Submission(identity, blueprint.id, _append(log, fact, event_id, author, standing.retired_event))


def retire(log: EventLog, identity: str, reason: str, author: Author) -> None:
    """Take a blueprint out of the offer: no run grafts it any more, and those that did still replay.

    Args:
        log: The log that holds it.
        identity: The blueprint's id, 64 hexadecimal digits.
        reason: Why.
        author: Who does so.

    Raises:
        NotFound: It was never submitted there, or is retired already.
    """
    standing = standing_of(log, identity)
    if standing.submitted is None or standing.submitted_event is None:
        raise NotFound(f"blueprint {identity[:12]} was never submitted on this log", hint=_BLUEPRINTS_HINT)
    fact = BlueprintRetired(blueprint_id=identity, reason=reason, actor=author.name)
    event_id = derived_id("blueprint", identity, "retired", standing.submitted_event.hex())
    # Two people who retire it at once do so once: the second one's fact has the first one's id.
    if standing.retired_event is not None or not _append(log, fact, event_id, author, standing.submitted_event):
        raise NotFound(
            f"blueprint {standing.submitted.name} ({identity[:12]}) is retired already",
            hint="`esper blueprint submit` brings it back",
        )


def standing_of(log: EventLog, identity: str) -> Standing:
    """Return what a blueprint's stream says of its place in the library."""
    standing = Standing()
    for envelope in iterate_stream(log, f"blueprint/{identity}"):
        match fact_of(envelope):
            case BlueprintSubmitted() as fact:
                standing = Standing(fact, envelope.event_id)
            case BlueprintRetired():
                standing = msgspec.structs.replace(standing, retired_event=envelope.event_id)
            case _:
                pass  # the stream holds the blueprint's kernels too
    return standing


def _append(log: EventLog, fact: Fact, event_id: bytes, author: Author, cause: bytes | None) -> bool:
    """Append a fact; tell whether it is ours that stands in the log under its id."""
    event = Event(
        fact=fact, event_id=event_id, sender_id=author.sender_id, trace_id=author.trace_id, causation_id=cause
    )
    try:
        log.append([event], stream=fact.stream, expected=ANY)
    except EventIdReused:
        return False
    return True
