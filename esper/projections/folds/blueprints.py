"""From the facts of blueprints to their table; kernels and jobs, which share the stream, follow in ``kernels``.

Belongs here: what a blueprint has been through. Does not belong here: what its kernels have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from esper.events.base import Fact
from esper.events.blueprint import BlueprintRejected, BlueprintRetired, BlueprintSubmitted
from esper.events.envelope import Recorded
from esper.names import BlueprintStatus
from esper.projections.folds.poison import contradiction
from esper.projections.staging import Staging
from esper.projections.values import canonical, real


class BlueprintFold:
    """Follows blueprints."""

    def __init__(self, staging: Staging) -> None:
        """Write to a staging."""
        self._blueprints = staging.blueprints

    def handlers(self) -> dict[type[Fact], Callable[[Recorded, Any], None]]:
        """Return the function for each fact type."""
        return {
            BlueprintSubmitted: self.submitted,
            BlueprintRejected: self.rejected,
            BlueprintRetired: self.retired,
        }

    def submitted(self, envelope: Recorded, fact: BlueprintSubmitted) -> None:
        """Add a blueprint to the library; one that was retired comes back with its kernels."""
        before = self._blueprints.current((fact.blueprint_id,))
        kernels = 0 if before is None else before["kernels"]
        status = BlueprintStatus.COMPILED if kernels else BlueprintStatus.SUBMITTED
        self._blueprints.start(
            (fact.blueprint_id,),
            envelope.position,
            {
                "name": fact.name,
                "kind": fact.kind,
                "status": status.value,
                "submitted_by": fact.submitted_by,
                "architecture_ir": fact.architecture_ir,
                "reasons": "[]",
                "kernels": kernels,
                "parent": fact.parent,
                "mutation": fact.mutation,
                "novelty": real(fact.novelty),
            },
        )

    def rejected(self, envelope: Recorded, fact: BlueprintRejected) -> None:
        """Keep what was unsound, with the rules it broke."""
        self._blueprints.start(
            (fact.blueprint_id,),
            envelope.position,
            {
                "name": fact.name,
                "status": BlueprintStatus.FAILED.value,
                "submitted_by": fact.submitted_by,
                "reasons": canonical(fact.reasons, envelope.payload),
                "kernels": 0,
            },
        )

    def retired(self, envelope: Recorded, fact: BlueprintRetired) -> None:
        """Take a blueprint out of the offer."""
        self.known(envelope, fact.blueprint_id)
        self._blueprints.change(
            (fact.blueprint_id,),
            envelope.position,
            {
                "status": BlueprintStatus.RETIRED.value,
                "retired_by": fact.actor,
                "retired_reason": fact.reason,
            },
        )

    def compiling(self, envelope: Recorded, blueprint_id: str) -> None:
        """Show that a worker is at a blueprint that has no kernel yet."""
        found = self.known(envelope, blueprint_id)
        if not found["kernels"] and found["status"] != BlueprintStatus.RETIRED.value:
            status = BlueprintStatus.COMPILING.value
            self._blueprints.change((blueprint_id,), envelope.position, {"status": status})

    def compiled(self, envelope: Recorded, blueprint_id: str, *, new: bool) -> None:
        """Count a kernel, if it is a new one."""
        found = self.known(envelope, blueprint_id)
        retired = found["status"] == BlueprintStatus.RETIRED.value
        status = BlueprintStatus.RETIRED if retired else BlueprintStatus.COMPILED
        values = {"status": status.value, "kernels": found["kernels"] + new}
        self._blueprints.change((blueprint_id,), envelope.position, values)

    def failed(self, envelope: Recorded, blueprint_id: str, error: str) -> None:
        """Show that a blueprint could not be built for a site; others may have worked."""
        found = self.known(envelope, blueprint_id)
        values = {"last_error": error}
        if not found["kernels"] and found["status"] != BlueprintStatus.RETIRED.value:
            values["status"] = BlueprintStatus.FAILED.value
        self._blueprints.change((blueprint_id,), envelope.position, values)

    def known(self, envelope: Recorded, blueprint_id: str) -> dict[str, Any]:
        """Return a blueprint's row.

        Raises:
            PoisonEvent: It was never submitted.
        """
        found = self._blueprints.current((blueprint_id,))
        if found is None:
            raise contradiction(envelope, f"blueprint {blueprint_id} was never submitted")
        return found
