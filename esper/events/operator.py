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


@fact(TopicNames.OPERATOR_ACTIONS, stream="operator", key="store")
class ArtifactsCollected(Fact, frozen=True, kw_only=True):
    """A person removed artifacts from the store that no fact names."""

    #: URL of the store, without credentials.
    store: str
    actor: str
    #: Artifacts removed, and their bytes in all.
    artifacts: int
    size_bytes: int
    #: Last position of the log that was searched for names.
    through: int
    #: Only artifacts stored at least so long ago were removed.
    older_than_s: float
    #: SHA-256 of the list of removed digests, which is kept in the store.
    list_digest: bytes
