"""The blueprint verifier: a handler that checks every submitted blueprint again, whoever submitted it.

A blueprint that comes through ``esper blueprint submit`` was verified before it was recorded. A fact in the log may
come from another program or another version, and what a table calls submitted is what people and policies choose from.
Belongs here: the verdict as a fact. Does not belong here: the rules (``esper.blueprints``).
"""

from __future__ import annotations

from collections.abc import Collection

from esper.blueprints.canonical import blueprint_id
from esper.blueprints.ir import parse
from esper.blueprints.verify import verify
from esper.errors import BlueprintInvalid
from esper.events import Envelope
from esper.events.blueprint import BlueprintRejected, BlueprintSubmitted
from esper.handlers.runtime.handler import Context
from esper.names import TopicNames


class BlueprintVerifier:
    """Rejects submitted blueprints that break a static rule, and says which; a sound one needs no further word."""

    name = "blueprint-verifier"
    topics: Collection[str] = (TopicNames.COMPILATION_BLUEPRINT_SUBMITTED,)

    def handle(self, envelope: Envelope, context: Context) -> None:
        """Verify one submission; a plain function, because verifying computes and waits for nothing."""
        del envelope
        fact = context.fact
        if isinstance(fact, BlueprintSubmitted) and (reasons := faults(fact)):
            context.append(
                BlueprintRejected(
                    blueprint_id=fact.blueprint_id,
                    name=fact.name,
                    reasons=reasons,
                    submitted_by=fact.submitted_by,
                )
            )


def faults(submitted: BlueprintSubmitted) -> list[str]:
    """Return why a submitted blueprint is unsound, a line for each rule; empty where it is sound."""
    try:
        blueprint = parse(submitted.architecture_ir)
        verify(blueprint)
        identity = blueprint_id(blueprint)
    except BlueprintInvalid as error:
        return [f"{error.message}; {error.hint}"]
    claims = (
        ("id", submitted.blueprint_id, identity),
        ("name", submitted.name, blueprint.id),
        ("kind", submitted.kind, blueprint.kind),
    )
    return [
        f"{field}: submitted as {claimed[:80]!r}, the document says {true!r}; submit it as what it is"
        for field, claimed, true in claims
        if claimed != true
    ]
