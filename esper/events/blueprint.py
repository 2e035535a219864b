"""Facts of blueprints: submitted, rejected, retired."""

from __future__ import annotations

from esper.events.base import Fact, fact
from esper.names import TopicNames

_BLUEPRINTS = TopicNames.COMPILATION_BLUEPRINT_SUBMITTED


@fact(_BLUEPRINTS, stream="blueprint", key="blueprint_id")
class BlueprintSubmitted(Fact, frozen=True, kw_only=True):
    """A blueprint passed the static verifier and joined the library."""

    #: Canonical hash of the IR, 64 hexadecimal digits.
    blueprint_id: str
    #: The blueprint's own name, e.g. ``conv_bottleneck``.
    name: str
    #: residual or lowrank_weight.
    kind: str
    #: The IR as canonical JSON.
    architecture_ir: str
    submitted_by: str


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
