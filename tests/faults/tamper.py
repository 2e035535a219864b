"""Altering a log on Redis behind its back, with plain commands, for tests of what notices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import redis

from esper.events.codec import digest_of, record_of
from esper.events.envelope import Envelope
from esper.oona.open import open_log
from esper.oona.port import iterate

#: Position -> (key of its topic's stream, body of its record).
Entries = dict[int, tuple[str, bytes]]


def entries(client: redis.Redis) -> Entries:
    """Return every record as it is stored."""
    found: Entries = {}
    for name in client.scan_iter("esper:*", _type="stream"):
        for entry_id, fields in client.xrange(name):
            found[int(entry_id.split(b"-")[0])] = (name.decode(), fields[b"r"])
    return dict(sorted(found.items()))


def rewrite(client: redis.Redis, altered: Entries) -> None:
    """Put records in place of those that are there; indexes and counters stay as they are."""
    with client.pipeline(transaction=True) as pipe:
        for name in {name for name, _ in entries(client).values()}:
            pipe.delete(name)
        for position, (name, body) in sorted(altered.items()):
            pipe.xadd(name, {"r": body}, id=f"{position}-0")
        pipe.execute()


def flipped(body: bytes, place: int = -1) -> bytes:
    """Return a body with one bit of one byte changed."""
    changed = bytearray(body)
    changed[place] ^= 1
    return bytes(changed)


def rechain(client: redis.Redis, url: str, change: Callable[[Sequence[Envelope]], list[Envelope]]) -> None:
    """Write a consistent other history in place of a log: numbers, hashes, indexes, even the log's own id agree.

    Args:
        client: Client of the server.
        url: URL of the log.
        change: Gives the other records, in order; their positions, versions and digests are made to fit.
    """
    with open_log(url) as log:
        before = list(iterate(log))
    log_id = client.hget("esper:@meta", "log_id")
    records: list[Envelope] = []
    versions: dict[str, int] = {}
    for position, one in enumerate(change(before), start=1):
        version = versions[one.stream] = versions.get(one.stream, 0) + 1
        placed = msgspec.structs.replace(one, position=position, version=version)
        records.append(msgspec.structs.replace(placed, digest=digest_of(record_of(placed))))
    client.delete(*client.scan_iter("esper:*"))
    with open_log(url) as log:
        log.restore(records)
    client.hset("esper:@meta", "log_id", log_id)
