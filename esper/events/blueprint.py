"""Facts of blueprints: submitted, rejected, retired."""

from __future__ import annotations

from esper.events.base import Fact, fact
from esper.names import TopicNames

_BLUEPRINTS = TopicNames.COMPILATION_BLUEPRINT_SUBMITTED


@fact(_BLUEPRINTS, stream="blueprint", key="blueprint_id", schema=2, volatile=("novelty",))
class BlueprintSubmitted(Fact, frozen=True, kw_only=True):
    """A blueprint passed the static verifier and joined the library."""

    #: Canonical hash of the IR, 64 hexadecimal digits.
    blueprint_id: str
    #: The blueprint's own name, e.g. ``conv_bottleneck``.
    name: str
    #: residual, gate, lowrank_weight, width or layer.
    kind: str
    #: The IR as canonical JSON.
    architecture_ir: str
    submitted_by: str
    #: Blueprint it was made from by a mutation; None where somebody wrote it.
    parent: str | None = None
    #: What the mutation changed, e.g. ``widen``.
    mutation: str | None = None
    #: Least graph edit distance to the blueprints known when it was submitted, relative to its own size.
    novelty: float | None = None


@fact(_BLUEPRINTS, stream="blueprint", key="blueprint_id")
class BlueprintRejected(Fact, frozen=True, kw_only=True):
    """A blueprint broke a static rule."""

    #: SHA-256 of the submitted bytes, since what is unsound has no canonical hash; the id it was submitted under where
    #: a handler rejects what stands in the log as submitted.
    blueprint_id: str
    name: str | None
    #: One line per broken rule: path, rule, what to do.
    reasons: list[str]
    submitted_by: str


@fact(_BLUEPRINTS, stream="blueprint", key="blueprint_id")
class BlueprintRetired(Fact, frozen=True, kw_only=True):
    """A blueprint is offered no longer; runs that used it still replay."""

    blueprint_id: str
    reason: str
    actor: str
