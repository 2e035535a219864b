"""Making a replica the master of a log, and only one that has everything that is known to be acknowledged.

Redis copies to replicas without waiting, so a replica can lack what its master acknowledged. A failover that nobody
checks would lose it silently and give its positions to other facts. Belongs here: the comparison and the change. Does
not belong here: where the known heads come from (``esper.cli``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from esper.errors import ConfigError, LogDamaged, LogUnavailable
from esper.oona.port import Head
from esper.oona.redis.chain import ChainCache, Notes
from esper.oona.redis.checks import check_settings, replication_of
from esper.oona.redis.link import RedisLink
from esper.oona.redis.reader import RedisReader
from esper.oona.redis.session import RedisSession
from esper.oona.redis.url import parse_url
from esper.oona.sealing.sealed import SealedHistory

_CHANGE_S = 20.0


class Known(NamedTuple):
    """A position that is known to be acknowledged."""

    #: Who knows it, e.g. ``the newest checkpoint``.
    source: str
    position: int
    #: Chain value there; None where only the position is known.
    chain: bytes | None


def promote(url: str, known: Sequence[Known], *, sealed: SealedHistory | None = None) -> Head:
    """Make a replica the master, and return the head it begins with.

    Args:
        url: URL of the log on the replica.
        known: Positions that are known to be acknowledged; one at least.
        sealed: Where the log's trimmed history is.

    Raises:
        ConfigError: Nothing is known.
        LogDamaged: The replica lacks something that is known, or has another history there.
        LogUnavailable: The server is no replica, its master still answers, or it does not take over.
        DurabilityTooLow: The replica's settings are not those of a log.
    """
    if not known:
        raise ConfigError(
            "nothing is known of what was acknowledged, so no replica can be compared with it",
            hint="seal the log from time to time, or name the last position you know with --at-least",
        )
    link = RedisLink(parse_url(url), replica=True)
    try:
        _require_orphan(link)
        check_settings(link)
        head = _compare(link, known, sealed)
        _take_over(link)
    finally:
        link.close()
    return head


def _require_orphan(link: RedisLink) -> None:
    roles, where = replication_of(link), f"log {link.where}"
    if roles.get("role") != "slave":
        raise LogUnavailable(f"{where}: this server is a master already", hint="name it as the log")
    if roles.get("master_link_status") == "up":
        raise LogUnavailable(
            f"{where}: its master {roles.get('master_host')}:{roles.get('master_port')} still answers",
            hint="end the master first (`redis-cli SHUTDOWN` lets its replicas catch up), so that nobody writes there",
        )


def _compare(link: RedisLink, known: Sequence[Known], sealed: SealedHistory | None) -> Head:
    session = RedisSession(link, create=False)
    reader = RedisReader(session, sealed)
    chain = ChainCache(Notes(session), reader.between, f"log {link.where}")
    tail = session.tail()
    for one in sorted(known, key=lambda item: item.position):
        if one.position > tail.position:
            reason = f"the replica ends at {tail.position}, but {one.source} knows position {one.position}"
            raise _lacking(link, tail.position + 1, reason)
        if one.chain is not None and chain.at(one.position, tail.instance, tail.base) != one.chain:
            reason = f"the replica has another history there than {one.source}"
            raise _lacking(link, one.position, reason)
    return Head(tail.position, chain.at(tail.position, tail.instance, tail.base))


def _lacking(link: RedisLink, position: int, reason: str) -> LogDamaged:
    return LogDamaged(
        f"log {link.where} is not promoted: {reason}",
        hint="promote a replica that has it, or start the old master again: its append-only file has every "
        "acknowledged fact",
        position=position,
        reason=reason,
    )


def _take_over(link: RedisLink) -> None:
    link.run([["CLUSTER", "FAILOVER", "FORCE"] if link.cluster else ["REPLICAOF", "NO", "ONE"]])
    deadline = time.monotonic() + _CHANGE_S
    while replication_of(link).get("role") != "master":
        if time.monotonic() > deadline:
            raise LogUnavailable(
                f"log {link.where}: the replica did not take over within {_CHANGE_S:g} s",
                hint="see its log file; on a Cluster most masters must answer",
            )
        time.sleep(0.1)
