"""One fold per family of tables: from fact type to the rows it gives.

Belongs here: which function takes which type; every type of the registry has exactly one. Does not belong here:
reading the log (``esper.projections.runner``) or writing rows (``esper.projections.staging``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from esper.events.envelope import Recorded
from esper.projections.folds.blueprints import BlueprintFold
from esper.projections.folds.decisions import DecisionFold
from esper.projections.folds.handlers import HandlerFold
from esper.projections.folds.kernels import KernelFold
from esper.projections.folds.operator import OperatorFold
from esper.projections.folds.runs import RunFold
from esper.projections.folds.seeds import SeedFold
from esper.projections.folds.sites import SiteFold
from esper.projections.staging import Staging

#: Takes an envelope and the fact in it; the fact's class follows from the envelope's type.
Handler = Callable[[Recorded, Any], None]


def handlers(staging: Staging) -> dict[str, Handler]:
    """Return the function for each fact type, all writing to one staging."""
    seeds, blueprints = SeedFold(staging), BlueprintFold(staging)
    found: dict[str, Handler] = {}
    for fold in (
        RunFold(staging, seeds),
        SiteFold(staging),
        seeds,
        blueprints,
        KernelFold(staging, blueprints),
        DecisionFold(staging),
        OperatorFold(staging),
        HandlerFold(staging),
    ):
        for fact_class, handler in fold.handlers().items():
            found[fact_class.info.name] = handler
    return found
