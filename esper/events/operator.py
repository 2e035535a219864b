"""Facts of people: every human act, with who and why."""

from __future__ import annotations

from esper.events.base import Fact, fact
from esper.names import TopicNames


@fact(TopicNames.OPERATOR_ACTIONS, stream="operator", key="run_id")
class NoteAdded(Fact, frozen=True, kw_only=True):
    """A person wrote something down about a run."""

    run_id: str
    actor: str
    text: str
