"""Walks a whole log on Redis, sealed history included, and checks everything the server keeps about it.

Belongs here: what verification compares. Does not belong here: reading (``reader``) and what every reader checks
of each record (``record``).
"""

from __future__ import annotations

from collections.abc import Sequence

from esper.errors import LogDamaged
from esper.events.envelope import Envelope
from esper.oona.chain import ChainWalk, damaged
from esper.oona.port import LogReport, Progress
from esper.oona.redis.chain import STEP
from esper.oona.redis.reader import RedisReader
from esper.oona.redis.record import open_note
from esper.oona.redis.session import RedisSession, Tail

#: An element of a stream's index is position * PLACE + number of the topic.
PLACE = 1 << 16
_PAGE = 2000
_STREAMS_AT_ONCE = 500


def verify(session: RedisSession, reader: RedisReader, progress: Progress | None) -> LogReport:
    """Walk a log; see ``EventLog.verify``."""
    return _Verification(session, reader).run(progress)


class _Verification:
    def __init__(self, session: RedisSession, reader: RedisReader) -> None:
        self._session = session
        self._reader = reader
        self._keys = session.keys
        self._where = f"log {session.where}"
        self._walk = ChainWalk()
        self._in_topic: dict[str, int] = {}

    def run(self, progress: Progress | None) -> LogReport:
        tail, ids, versions, lengths = self._snapshot()
        self._numbers = {name: number for number, name in enumerate(self._session.topics)}
        while self._walk.head.position < tail.position:
            self._walk_page(tail)
            done = self._walk.head.position
            if progress is not None and (done % _PAGE == 0 or done == tail.position):
                progress(done, tail.position)
        if ids != tail.position:
            raise damaged(0, f"its index of ids has {ids} ids for {tail.position} records", self._where)
        if versions != self._walk.versions:
            wrong = min(versions.items() ^ self._walk.versions.items())[0]
            has, counted = versions.get(wrong, 0), self._walk.versions.get(wrong, 0)
            raise damaged(0, f"stream {wrong} has {counted} records, and version {has} is noted", self._where)
        self._check_topics(lengths)
        self._check_ends(tail)
        return LogReport(
            events=tail.position, streams=len(self._walk.versions), head=self._walk.head, acknowledged=None
        )

    def _snapshot(self) -> tuple[Tail, int, dict[str, int], dict[str, int]]:
        """Return where the log ends and what is kept beside the records, all of one moment."""
        session, keys = self._session, self._keys
        reply = session.paged("esper_snapshot", [keys.topics, keys.ids, keys.versions], None, [])
        ids, flat, lengths = reply[5:]
        versions = {name.decode(): int(number) for name, number in zip(flat[::2], flat[1::2], strict=True)}
        return session.tail_of(reply[:5]), ids, versions, dict(zip(session.topics, lengths, strict=True))

    def _walk_page(self, tail: Tail) -> None:
        after = self._walk.head.position
        limit = min(_PAGE - after % _PAGE, tail.position - after)
        page = self._first_page(after, after + limit)
        if not page:
            raise damaged(after + 1, f"it is missing, and the log goes on to {tail.position}", self._where)
        noted: dict[int, bytes] = {}
        for envelope in page:
            self._walk.step(envelope)
            if envelope.position % STEP == 0:
                noted[envelope.position] = self._walk.head.chain
            if envelope.position == tail.base.position and self._walk.head.chain != tail.base.chain:
                raise damaged(
                    envelope.position, "it was trimmed at another chain value than sealed history has", self._where
                )
        self._check_ids(page)
        self._check_notes(noted)
        self._check_indexes([one for one in page if one.position > tail.base.position])

    def _first_page(self, after: int, until: int) -> list[Envelope]:
        """Return records; where they are damaged, walk those before first, so that the first damage is named."""
        try:
            return self._reader.read(after, until - after, None, until)
        except LogDamaged as error:
            if error.position > after + 1:
                for envelope in self._first_page(after, error.position - 1):
                    self._walk.step(envelope)
            raise

    def _check_ids(self, page: Sequence[Envelope]) -> None:
        (found,) = self._session.run([["HMGET", self._keys.ids, *[one.event_id for one in page]]])
        for one, position in zip(page, found, strict=True):
            if position is None or position != b"%d" % one.position:
                there = "no position" if position is None else position.decode("utf-8", "replace")
                raise damaged(one.position, f"the index of ids has {there} for its id", self._where)

    def _check_notes(self, noted: dict[int, bytes]) -> None:
        if not noted:
            return
        (found,) = self._session.run([["HMGET", self._keys.chain, *noted]])
        for (position, chain), note in zip(noted.items(), found, strict=True):
            if note is not None and open_note(position, note, self._where) != chain:
                raise damaged(position, "another chain value is noted there", self._where)

    def _check_indexes(self, page: Sequence[Envelope]) -> None:
        by_stream: dict[str, list[Envelope]] = {}
        for one in page:
            by_stream.setdefault(one.stream, []).append(one)
            self._in_topic[one.topic] = self._in_topic.get(one.topic, 0) + 1
        names = list(by_stream)
        for start in range(0, len(names), _STREAMS_AT_ONCE):
            some = names[start : start + _STREAMS_AT_ONCE]
            (bases,) = self._session.run([["HMGET", self._keys.bases, *some]])
            commands = []
            for name, base in zip(some, bases, strict=True):
                first = by_stream[name][0].version - 1 - int(base or 0)
                commands.append(["LRANGE", self._keys.index(name), first, first + len(by_stream[name]) - 1])
            for name, elements in zip(some, self._session.run(commands), strict=True):
                self._check_index(name, by_stream[name], elements)

    def _check_index(self, name: str, records: Sequence[Envelope], elements: Sequence[bytes]) -> None:
        for number, one in enumerate(records):
            place = one.position * PLACE + self._numbers.get(one.topic, -1)
            if number >= len(elements) or elements[number] != b"%d" % place:
                raise damaged(one.position, f"the index of stream {name} does not lead to it", self._where)

    def _check_topics(self, lengths: dict[str, int]) -> None:
        for name, length in lengths.items():
            counted = self._in_topic.get(name, 0)
            if length != counted:
                raise damaged(
                    0, f"topic {name} has {length} entries, and {counted} of them are of this log", self._where
                )

    def _check_ends(self, tail: Tail) -> None:
        """Check that no stream's index goes on after its last record."""
        names = list(self._walk.versions)
        for start in range(0, len(names), _STREAMS_AT_ONCE):
            some = names[start : start + _STREAMS_AT_ONCE]
            (bases,) = self._session.run([["HMGET", self._keys.bases, *some]])
            commands = [
                ["LINDEX", self._keys.index(name), self._walk.versions[name] - int(base or 0)]
                for name, base in zip(some, bases, strict=True)
            ]
            for name, element in zip(some, self._session.run(commands), strict=True):
                if element is not None and int(element) // PLACE <= tail.position:
                    raise damaged(0, f"the index of stream {name} has more elements than it has records", self._where)
