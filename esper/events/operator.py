"""Facts of people: every human act, with who and why."""

from __future__ import annotations

from esper.events.base import Fact, fact
from esper.names import TopicNames


@fact(TopicNames.OPERATOR_ACTIONS, stream="log", key="namespace")
class LogRestored(Fact, frozen=True, kw_only=True):
    """A person made this log from sealed history; what follows belongs to a new generation."""

    #: Namespace of the log.
    namespace: str
    #: Generation that begins here; a log that was never restored is of generation 1.
    generation: int
    #: Last position that came from sealed history.
    through: int
    #: Chain value there.
    chain: bytes
    actor: str
    reason: str


@fact(TopicNames.OPERATOR_ACTIONS, stream="operator", key="run_id")
class NoteAdded(Fact, frozen=True, kw_only=True):
    """A person wrote something down about a run."""

    run_id: str
    actor: str
    text: str
