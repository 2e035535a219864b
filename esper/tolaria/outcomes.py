"""What became of the kernels that decisions chose, as the log tells it.

Belongs here: how a refusal is written and read again, so that what is done again comes to the same although the kernel
may have been mended, or broken, since. Does not belong here: what is done about a bad kernel (``supply``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from esper import errors
from esper.errors import EsperError, KernelRefused
from esper.events import Fact
from esper.events.decision import AdaptationCommanded, DecisionExecuted

_REFUSED = re.compile(r"refused: (E-[A-Z]+-\d+) (.*)", re.DOTALL)
#: Beginnings of the codes that say that a kernel could not be had; other refusals follow from the run's own state.
_OF_KERNELS = ("E-ART-", "E-BP-")
_KINDS = {kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EsperError)}


def refusal_reason(error: EsperError) -> str:
    """Return how DecisionExecuted says that an action was refused."""
    return f"refused: {error.code} {error.message}"


def outcomes_of(facts: Iterable[Fact]) -> list[tuple[int, str | None]]:
    """Return number and outcome of each decision that chose a kernel: why it could not be had, or None.

    Args:
        facts: Facts of decisions, in order.
    """
    chosen: set[int] = set()
    outcomes: list[tuple[int, str | None]] = []
    for fact in facts:
        if isinstance(fact, AdaptationCommanded) and fact.action.kind == "germinate":
            chosen.add(fact.decision)
        elif isinstance(fact, DecisionExecuted) and fact.decision in chosen:
            chosen.discard(fact.decision)
            found = _REFUSED.fullmatch(fact.reason or "")
            missed = found is not None and found[1].startswith(_OF_KERNELS)
            outcomes.append((fact.decision, fact.reason if missed else None))
    return outcomes


def as_recorded(reason: str) -> EsperError:
    """Return the error that a recorded reason tells of."""
    found = _REFUSED.fullmatch(reason)
    if found is None:
        return KernelRefused(reason, recorded=True)
    return _KINDS.get(found[1], KernelRefused)(found[2], recorded=True)
