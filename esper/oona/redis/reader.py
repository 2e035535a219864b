"""Pages of a log on Redis, from the server and from sealed history, as if they were one.

Belongs here: fetching records by position, topic, stream or place. Does not belong here: the Functions that collect
them (``read.lua``) and their bytes (``record``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import msgspec

from esper.errors import HistoryUnsealed, LogDamaged
from esper.events.envelope import Envelope, Recorded
from esper.oona.chain import damaged
from esper.oona.redis.record import envelopes, recorded
from esper.oona.redis.session import NO_BOUND, PAGE_BYTES, RedisSession
from esper.oona.sealing.sealed import SealedHistory

_positions = msgspec.msgpack.Decoder(list[int]).decode


class Page(NamedTuple):
    """Records as the server keeps them."""

    #: A msgpack array of records.
    body: bytes
    positions: Sequence[int]


class RedisReader:
    """Reads one log, shared by threads."""

    def __init__(self, session: RedisSession, sealed: SealedHistory | None) -> None:
        """Read a log.

        Args:
            session: The log.
            sealed: Where its trimmed history is; None where none was named.
        """
        self._session = session
        self._sealed = sealed
        self._where = f"log {session.where}"

    def read(self, after: int, limit: int, topics: Collection[str] | None, until: int | None) -> list[Envelope]:
        """Return records as ``EventLog.read`` does."""
        found: list[Envelope] = []
        for page in self._pages(after, limit, topics, until):
            found += self._envelopes(page) if isinstance(page, Page) else page
        if found:
            self._session.knows(found[-1].position, found[-1].event_id)
        return found

    def read_recorded(self, after: int, limit: int, until: int | None) -> list[Recorded]:
        """Return records as ``EventLog.read_recorded`` does."""
        found: list[Recorded] = []
        for page in self._pages(after, limit, None, until):
            found += self._recorded(page) if isinstance(page, Page) else _lean(page)
        return found

    def _envelopes(self, page: Page) -> list[Envelope]:
        try:
            return envelopes(page.body, page.positions, self._where)
        except LogDamaged as error:
            self._name_damage(page, error)
            raise

    def _recorded(self, page: Page) -> list[Recorded]:
        try:
            return recorded(page.body, page.positions, self._where)
        except LogDamaged as error:
            self._name_damage(page, error)
            raise

    def _name_damage(self, page: Page, error: LogDamaged) -> None:
        """Find the record of a page that cannot be taken apart, one record after the other."""
        if error.position == 0 and len(page.positions) > 1:
            for position in page.positions:
                self.read(position - 1, 1, None, position)

    def between(self, after: int, until: int) -> Iterator[Envelope]:
        """Yield the records after one position, up to and with another."""
        while after < until:
            page = self.read(after, 2000, None, until)
            if not page:
                return
            yield from page
            after = page[-1].position

    def _pages(
        self, after: int, limit: int, topics: Collection[str] | None, until: int | None
    ) -> Iterator[Page | list[Envelope]]:
        wanted = None if topics is None else {str(topic) for topic in topics}
        if wanted is not None and not wanted:
            return
        after, last, left = max(after, 0), NO_BOUND if until is None else min(until, NO_BOUND), min(limit, NO_BOUND)
        while left > 0 and after < last:
            page, count, through, end = self._page(after, left, last, wanted)
            yield page
            left -= count
            if through <= after or through >= end:
                return
            after = through

    def _page(
        self, after: int, limit: int, last: int, wanted: set[str] | None
    ) -> tuple[Page | list[Envelope], int, int, int]:
        """Return records, how many, the position up to which they are all there are, and where the log ends."""
        session = self._session
        function = "esper_read" if wanted is None else "esper_read_topics"
        outcome, _, end, trimmed, *rest = session.paged(
            function, [session.keys.topics], wanted, [after, limit, last, PAGE_BYTES]
        )
        session.saw(end)
        if outcome == b"trimmed":
            until = min(last, trimmed)
            found = self.history(trimmed).read(after, limit, topics=wanted, until=until)
            return found, len(found), found[-1].position if found else until, end
        body, through = rest[0], rest[1]
        positions = range(after + 1, through + 1) if wanted is None else _positions(rest[2])
        return Page(body, positions), len(positions), through, end

    def read_stream(self, stream: str, after: int, limit: int) -> list[Envelope]:
        """Return records as ``EventLog.read_stream`` does."""
        session, found, after = self._session, list[Envelope](), max(after, 0)
        keys = [session.keys.topics, session.keys.bases, session.keys.index(stream)]
        while len(found) < limit:
            left = min(limit - len(found), NO_BOUND)
            outcome, _, end, trimmed, *rest = session.paged(
                "esper_read_stream", keys, None, [stream, after, left, PAGE_BYTES]
            )
            session.saw(end)
            if outcome == b"trimmed":
                page = self.history(0).read_stream(stream, after, min(left, trimmed - after))
            else:
                page = self._envelopes(Page(rest[0], _positions(rest[2])))
            for place, one in enumerate(page, after + 1):
                if one.stream != stream or one.version != place:
                    reason = f"the index of {stream} says it is its version {place}; it is {one.stream} {one.version}"
                    raise damaged(one.position, reason, self._where)
            if not page:
                break
            found += page
            after += len(page)
        return found

    def at(self, positions: Sequence[int]) -> dict[int, Envelope]:
        """Return the records at positions, which are sorted and at most the log's end."""
        found: dict[int, Envelope] = {}
        start = 0
        for number in range(1, len(positions) + 1):
            # Those that stand together are read together.
            if number == len(positions) or positions[number] != positions[number - 1] + 1:
                first, last = positions[start], positions[number - 1]
                found |= {one.position: one for one in self.between(first - 1, last)}
                start = number
        return found

    def history(self, through: int) -> SealedHistory:
        """Return sealed history that reaches a position.

        Raises:
            HistoryUnsealed: The log was opened without it, or it does not reach so far.
        """
        sealed = self._sealed
        if sealed is None:
            raise HistoryUnsealed(
                f"{self._where}: its oldest records are in its archive, which was not named",
                hint="name the archive with --archive or the setting `archive`",
            )
        if sealed.through < through and sealed.refresh() < through:
            raise HistoryUnsealed(
                f"{self._where}: what it has no more reaches to {through}, but its archive only to {sealed.through}",
                hint="name the archive that this log was sealed to",
            )
        return sealed


def _lean(page: list[Envelope]) -> list[Recorded]:
    return [
        Recorded(one.position, one.type, one.schema, one.sender_id, one.trace_id, one.recorded_at, one.payload)
        for one in page
    ]
