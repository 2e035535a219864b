"""Garbage collection: artifacts that no fact of any log names are taken away from a store.

Belongs here: the order of things that keeps what is named. The store is listed first; then each log is verified to its
end and read to its end; what was listed, is old and is named nowhere goes, each with one more look at its age. An
artifact is put before its fact is written, and a put makes it young, so whatever a fact will name is left for it. A
kill in the middle leaves a store in which some garbage is gone. Does not belong here: recognising names (``names``), or
asking the user (``esper.cli.artifact_gc``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from esper.artifacts.content import YOUNG_S, ContentStore
from esper.artifacts.shelf import Unfinished
from esper.artifacts.store import Kept
from esper.artifacts.users import StoreUser, note_user, users_of
from esper.errors import ArtifactDamaged, ArtifactMissing, ArtifactStoreUnavailable, ConfigError
from esper.events.envelope import Envelope, Event
from esper.events.operator import ArtifactsCollected
from esper.ids import new_event_id
from esper.oona.collecting.names import Unnamed
from esper.oona.port import ANY, EventLog, Progress, iterate
from esper.oona.sealing.archive import Archive
from esper.oona.sealing.sealcheck import check_agreement, check_sealed
from esper.oona.sealing.sealed import ArchiveHistory

#: Nothing younger is ever taken away: twice the time after which a put makes bytes young again.
LEAST_AGE_S = 2 * YOUNG_S
#: So much of an artifact is searched for names of others; those that name any do it at their beginning.
SEARCHED_BYTES = 1 << 20
#: How the list of what was taken away begins: what it lists is not named by that.
_LIST = b'{"collected":'


class NamingLog(NamedTuple):
    """A log whose facts name artifacts of the store."""

    log: EventLog
    url: str
    #: Its sealed history, which it must agree with; None where it is not known.
    archive: Archive | None


class Plan(NamedTuple):
    """What a collection would take away, and what it leaves."""

    garbage: list[Kept]
    #: What killed writers left that never had a name.
    unfinished: list[Unfinished]
    #: Digests of which a killed collection left nothing but signatures.
    orphans: list[bytes]
    #: Artifacts that a fact names, or an artifact that stays.
    named: int
    #: Artifacts that nothing names and that are too young to go.
    young: int
    #: Last position of the first log that was searched.
    through: int

    @property
    def garbage_bytes(self) -> int:
        """Bytes of the garbage in all."""
        return sum(one.size_bytes for one in self.garbage)


class Collected(NamedTuple):
    """What a collection took away."""

    artifacts: int
    size_bytes: int
    unfinished: int
    #: Artifacts that somebody put again meanwhile.
    spared: int
    #: Where the fact stands that says so, and the list it names; None where no artifact was garbage.
    position: int | None
    list_digest: bytes | None


def log_id(log: EventLog) -> str | None:
    """Return what tells a log from every other: 16 digits of the chain value of its first fact; None without one."""
    chain = log.chain_at(1)
    return None if chain is None else chain.hex()[:16]


def claim_store(store: ContentStore, log: EventLog, url: str) -> bool:
    """Leave a log's mark in a store that its facts name artifacts of; tell whether it is there.

    A log without a fact leaves none yet, and in a store that is away the next process of the log leaves it.

    Args:
        store: The store.
        log: The log.
        url: Where the log is; credentials are left out of the mark.

    Raises:
        ArtifactError: The store refuses to be written.
    """
    found = log_id(log)
    if found is None:
        return False
    try:
        note_user(store.shelf, StoreUser(found, url, log.namespace))
    except ArtifactStoreUnavailable:
        return False
    return True


def plan(
    store: ContentStore,
    logs: Sequence[NamingLog],
    *,
    now: float,
    older_than_s: float,
    forgotten: Collection[str] = (),
    progress: Callable[[str], Progress | None] = lambda _: None,
) -> Plan:
    """Find what no fact names. Nothing is changed.

    Args:
        store: The store.
        logs: Every log that uses it.
        now: Seconds since the Unix epoch.
        older_than_s: Only what was stored so long ago.
        forgotten: Ids of logs whose marks in the store count no more.
        progress: Called with what is being done; returns what is called with (facts done, facts in all).

    Raises:
        ConfigError: A log is not among them that uses the store, a log is empty, none of them names anything in the
            store, or the age is too low.
        LogDamaged: A log does not verify to its end.
        ProofFailed: A log is not the one that was sealed, or ends before what is sealed.
        ArtifactError: The store cannot be read.
    """
    if older_than_s < LEAST_AGE_S:
        raise ConfigError(
            f"only what is older than {LEAST_AGE_S / 3600:g} h can be collected, not {older_than_s / 3600:g} h",
            hint="what was stored lately may be waiting for the fact that names it",
        )
    _require_all_users(store, logs, forgotten)
    inventory = list(store.inventory())
    before = now - older_than_s
    old = {kept.digest: kept for kept in inventory if kept.stored_at < before}
    unnamed = Unnamed(kept.digest for kept in inventory)
    for one in logs:
        _verify(one, unnamed, progress)
    ends = [_search(one.log, 0, unnamed, progress("looking for names")) for one in logs]
    # Whatever was appended while the first logs were read is read now.
    ends = [_search(one.log, end, unnamed, None) for one, end in zip(logs, ends, strict=True)]
    if inventory and len(unnamed) == len(inventory):
        raise ConfigError(
            f"the log names none of the {len(inventory)} artifacts in {store.where}",
            hint="it is not the log that this store was written with: check ESPER_LOG and ESPER_ARTIFACTS, or name the "
            "right one with --also-log",
        )
    _follow(store, unnamed, [one.digest for one in store.inventory() if one.digest not in old])
    garbage = [old[digest] for digest in sorted(unnamed.left) if digest in old]
    return Plan(
        garbage,
        [one for one in store.shelf.unfinished() if one.touched_at < before],
        [one.digest for one in store.orphans() if one.stored_at < before],
        named=len(inventory) - len(unnamed),
        young=len(unnamed) - len(garbage),
        through=ends[0],
    )


def collect(
    store: ContentStore,
    log: EventLog,
    found: Plan,
    *,
    now: float,
    older_than_s: float,
    actor: str,
    trace_id: str,
    progress: Progress | None = None,
) -> Collected:
    """Take away what a plan found, and append a fact that says so.

    Args:
        store: The store.
        log: The log that takes the fact.
        found: As ``plan`` gave it a moment ago.
        now: The same as for the plan.
        older_than_s: The same as for the plan.
        actor: Who wants it.
        trace_id: Trace of the command.
        progress: Called with (artifacts looked at, artifacts in all).

    Raises:
        ArtifactError: Something cannot be taken away; what was until then is in the log.
        LogError: The log does not take the fact.
    """
    before = now - older_than_s
    removed: list[Kept] = []
    try:
        for number, kept in enumerate(found.garbage, 1):
            if store.delete(kept.digest, before=before):
                removed.append(kept)
            if progress is not None:
                progress(number, len(found.garbage))
        for one in found.unfinished:
            store.shelf.give_up(one)
        for digest in found.orphans:
            store.delete(digest, before=0.0)
    finally:
        position, list_digest = (
            _append(store, log, removed, found.through, older_than_s, actor, trace_id) if removed else (None, None)
        )
    return Collected(
        len(removed),
        sum(kept.size_bytes for kept in removed),
        len(found.unfinished),
        len(found.garbage) - len(removed),
        position,
        list_digest,
    )


def _append(
    store: ContentStore,
    log: EventLog,
    removed: Sequence[Kept],
    through: int,
    older_than_s: float,
    actor: str,
    trace_id: str,
) -> tuple[int, bytes]:
    rows = [[kept.digest.hex(), kept.size_bytes] for kept in removed]
    listed = json.dumps({"collected": rows, "store": store.where}, separators=(",", ":")).encode()
    list_digest = store.put(listed)
    fact = ArtifactsCollected(
        store=store.where,
        actor=actor,
        artifacts=len(removed),
        size_bytes=sum(kept.size_bytes for kept in removed),
        through=through,
        older_than_s=older_than_s,
        list_digest=list_digest,
    )
    event = Event(fact=fact, event_id=new_event_id(), sender_id=f"operator:{actor}", trace_id=trace_id)
    return log.append([event], stream=fact.stream, expected=ANY).last, list_digest


def _require_all_users(store: ContentStore, logs: Sequence[NamingLog], forgotten: Collection[str]) -> None:
    known = {log_id(one.log): one for one in logs}
    if None in known:
        raise ConfigError(
            f"log {known[None].log.namespace} is empty: it names nothing, so everything would go",
            hint="check ESPER_LOG: it must be the log this store was written with",
        )
    others = [user for user in users_of(store.shelf) if user.log_id not in known and user.log_id not in forgotten]
    if others:
        raise ConfigError(
            f"the store {store.where} is used by {_told(others)} too",
            hint="name each with --also-log URL, so that what it names stays; `--forget-log ID` if a log is gone for "
            "good",
            logs=[user.log_id for user in others],
        )


def _told(users: Sequence[StoreUser]) -> str:
    return ", ".join(f"log {user.log_id} ({user.namespace}, first seen at {user.url})" for user in users)


def _verify(one: NamingLog, unnamed: Unnamed, progress: Callable[[str], Progress | None]) -> None:
    """Check a log and its sealed history, whose records name artifacts too."""
    one.log.verify(progress(f"verifying log {one.log.namespace}"))
    if one.archive is None:
        return

    def visit(records: list[Envelope]) -> None:
        for record in records:
            unnamed.strike(record.payload)

    if check_sealed(one.archive, progress("verifying sealed history"), visit=visit).checkpoint is not None:
        check_agreement(one.log, ArchiveHistory(one.archive))


def _search(log: EventLog, after: int, unnamed: Unnamed, progress: Progress | None) -> int:
    """Strike out what facts past a position name; return the last position that was read."""
    end = log.end()
    for envelope in iterate(log, after, until=end):
        unnamed.strike(envelope.payload)
        unnamed.strike(envelope.stream.encode())
        if progress is not None and envelope.position % 2000 == 0:
            progress(envelope.position, end)
    return end


def _follow(store: ContentStore, unnamed: Unnamed, young: list[bytes]) -> None:
    """Strike out what the artifacts that stay name, and what those name in turn; young ones stay whatever they are."""
    stays = sorted({*unnamed.take_named(), *young})
    while stays and len(unnamed):
        for digest in stays:
            data = _beginning(store, digest)
            if not data.startswith(_LIST):
                unnamed.strike_in_artifact(data)
        stays = unnamed.take_named()


def _beginning(store: ContentStore, digest: bytes) -> bytes:
    try:
        return store.part(digest, 0, SEARCHED_BYTES)
    except ArtifactMissing:
        return b""
    except ArtifactDamaged:
        return (store.unchecked(digest) or b"")[:SEARCHED_BYTES]
