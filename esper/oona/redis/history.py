"""History that is put into a log on Redis, and history that is taken off because it is sealed.

Belongs here: restore and trim. Does not belong here: sealing (``sealing.sealed``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from esper.errors import EventIdReused, HistoryUnsealed, LogUnavailable
from esper.events.envelope import Envelope
from esper.oona.chain import ChainWalk, damaged
from esper.oona.port import Head
from esper.oona.redis.reader import RedisReader
from esper.oona.redis.record import content_of_record, seal_note
from esper.oona.redis.session import RedisSession

_PAGE = 1000
_PAGE_BYTES = 16 << 20


def restore(session: RedisSession, head: Head, records: Iterable[Envelope]) -> int:
    """Copy records of another log to the end of a log, page by page, after all of them were checked.

    Args:
        session: The log.
        head: Where it ends.
        records: Records whose first follows that end.

    Raises:
        LogDamaged: A record does not follow from the one before it; none of the records were written.
        EventIdReused: A record has the id of one that is in the log.
        LogUnavailable: Somebody else appended meanwhile.
    """
    walk, pages, page, size = ChainWalk(), list[list[Envelope]](), list[Envelope](), 0
    walk.head = head
    for envelope in records:
        if envelope.stream not in walk.versions:
            (version,) = session.run([["HGET", session.keys.versions, envelope.stream]])
            walk.versions[envelope.stream] = int(version or 0)
        walk.step(envelope)
        if len(page) == _PAGE or size > _PAGE_BYTES:
            pages.append(page)
            page, size = [], 0
        page.append(envelope)
        size += len(envelope.payload)
    if page:
        pages.append(page)
    for page in pages:
        _restore_page(session, page)
    return sum(map(len, pages))


def _restore_page(session: RedisSession, page: Sequence[Envelope]) -> None:
    keys = session.keys
    topics = {name: place for place, name in enumerate(dict.fromkeys(one.topic for one in page), 1)}
    had = {one.stream: one.version - 1 for one in reversed(page)}
    streams = {name: place for place, name in enumerate(had, 1)}
    contents = [content_of_record(one) for one in page]
    fields = [
        page[0].position,
        list(topics),
        list(streams),
        list(had.values()),
        [one.recorded_at for one in page],
        list(map(len, contents)),
        [topics[one.topic] for one in page],
        [streams[one.stream] for one in page],
    ]
    names = [keys.ids, keys.versions, keys.topics, keys.bases, *map(keys.topic, topics), *map(keys.index, streams)]
    ids = b"".join([one.event_id for one in page])
    outcome, _, position, *rest = session.call("esper_restore", names, fields, [ids, b"".join(contents)], write=True)
    if outcome == b"known":
        found = [int(one) for one in rest[0]]
        # The reply to the same page was lost: it is all there, at its places.
        if found != [one.position for one in page]:
            taken = next(one for one, there in zip(page, found, strict=True) if there)
            raise EventIdReused(
                "a record to restore has the id of one already in the log",
                event_id=taken.event_id.hex(),
                position=max(found),
            )
    elif outcome != b"ok":
        raise LogUnavailable(
            f"log {session.where} moved on to {position} while records from {page[0].position} on were restored",
            hint="restore into a namespace nobody else writes to",
        )
    session.saw(page[-1].position)
    session.knows(page[-1].position, page[-1].event_id)


def trim(session: RedisSession, reader: RedisReader, chain_at: Callable[[int], bytes | None], through: int) -> int:
    """Delete the records up to a position that sealed history has; see ``RedisLog.trim``."""
    where, keys = f"log {session.where}", session.keys
    tail = session.tail()
    if through <= tail.base.position:
        return 0
    if through > tail.position:
        raise HistoryUnsealed(f"{where} ends at {tail.position}; it cannot be trimmed up to {through}")
    sealed = reader.history(through)
    ours = chain_at(through)
    if ours is None or sealed.chain_at(through) != ours:
        raise HistoryUnsealed(
            f"{where}: at position {through} sealed history has another chain value than the log",
            hint="verify the log and its archive (`esper log verify`) before anything is trimmed",
        )
    after = tail.base.position
    while after < through:
        page = _bounded(sealed.read(after, _PAGE, until=through))
        if not page or page[0].position != after + 1:
            raise HistoryUnsealed(f"{where}: sealed history has no position {after + 1}")
        last = page[-1].position
        chain = chain_at(last)
        if chain is None or sealed.chain_at(last) != chain:
            raise damaged(last, "sealed history has another chain value there than the log", where)
        counts: dict[str, int] = {}
        for one in page:
            counts[one.stream] = counts.get(one.stream, 0) + 1
        session.refresh_topics()
        names = [keys.bases, keys.topics, *map(keys.topic, session.topics), *map(keys.index, counts)]
        fields = [after, last, len(session.topics), list(counts), list(counts.values()), len(page)]
        reply = session.call("esper_trim", names, fields, [seal_note(last, chain)], write=True)
        if reply[0] == b"moved":
            raise LogUnavailable(
                f"{where} was trimmed by somebody else to {reply[2]} meanwhile",
                hint="let one process at a time seal and trim a log",
            )
        after = last
    return through - tail.base.position


def _bounded(page: list[Envelope]) -> list[Envelope]:
    """Return as much of a page as the server may look at in one call, one record at least."""
    size = 0
    for number, one in enumerate(page):
        size += len(one.payload)
        if size > _PAGE_BYTES:
            return page[: max(number, 1)]
    return page
