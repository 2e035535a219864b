"""The chain of a log whose server cannot compute it: readers do, and note it every 1,024 positions.

A note keeps the chain value of one position on the server, with eight bytes that tell if it was changed by accident.
Belongs here: finding a chain value from the nearest one that is known. Does not belong here: reading records.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

from esper.errors import LogFull, LogUnavailable
from esper.events.codec import record_of
from esper.events.envelope import Envelope
from esper.oona.chain import GENESIS, damaged, link
from esper.oona.port import Head
from esper.oona.redis.record import open_note, seal_note
from esper.oona.redis.session import RedisSession

#: Positions between two notes.
STEP = 1024
_AT_ONCE = 1000


class Notes:
    """The chain values that are noted on the server."""

    def __init__(self, session: RedisSession) -> None:
        """Keep notes of a log."""
        self._session = session

    def nearest(self, position: int) -> tuple[int, bytes]:
        """Return the highest note at or below a position; 0 and nothing if there is none."""
        at, note = self._session.call("esper_noted", [self._session.keys.chain], [position])[4:]
        return at, note

    def keep(self, first: int, notes: list[bytes]) -> None:
        """Keep notes of every 1,024th position from a first one on, if this user and the server's memory allow it.

        Raises:
            LogDamaged: Another chain value was noted at one of them.
        """
        # Notes only save others a walk: a reader without the right to write, or a full server, does without.
        with suppress(LogUnavailable, LogFull):
            for start in range(0, len(notes), _AT_ONCE):
                some = notes[start : start + _AT_ONCE]
                self._session.call("esper_note", [self._session.keys.chain], [first + start * STEP], some, write=True)


class ChainCache:
    """Knows chain values of one log, as long as its server holds the same history."""

    def __init__(self, notes: Notes, read: Callable[[int, int], Iterable[Envelope]], where: str) -> None:
        """Begin with nothing known.

        Args:
            notes: Where notes are kept.
            read: Gives the records after one position up to and with another.
            where: Which log, for messages.
        """
        self._notes = notes
        self._read = read
        self._where = where
        self._lock = threading.Lock()
        self._instance: bytes | None = None
        self._known = Head(0, GENESIS)
        self._proven: Head | None = None

    def at(self, position: int, instance: bytes, base: Head) -> bytes:
        """Return the chain value at a position that exists.

        Args:
            position: Up to the log's end.
            instance: What the server calls itself since it started or took over another history.
            base: Last position of the log that is sealed elsewhere, and the chain value there.

        Raises:
            LogDamaged: The history is another than the one whose chain was computed before.
        """
        with self._lock:
            if instance != self._instance:
                self._instance = instance
                self._proven = self._known if self._known.position else self._proven
                self._known = Head(0, GENESIS)
            proven = self._proven
            if proven is not None and position >= proven.position:
                if self._value(proven.position, base) != proven.chain:
                    reason = "its chain value is another than before the server started anew: history was rewritten"
                    raise damaged(proven.position, reason, self._where)
                self._proven = None
            return self._value(position, base)

    def _value(self, position: int, base: Head) -> bytes:
        start = self._known if self._known.position <= position else Head(0, GENESIS)
        if base.position <= position and base.position > start.position:
            start = base
        if position - start.position >= STEP or start.position < base.position:
            at, note = self._notes.nearest(position)
            if at > start.position:
                start = Head(at, open_note(at, note, self._where))
        chain = self._walk(start, position)
        if position >= self._known.position:
            self._known = Head(position, chain)
        return chain

    def _walk(self, start: Head, position: int) -> bytes:
        chain, notes = start.chain, []
        first = start.position - start.position % STEP + STEP
        done = start.position
        for envelope in self._read(start.position, position):
            chain = link(chain, record_of(envelope))
            done = envelope.position
            if done % STEP == 0:
                notes.append(seal_note(done, chain))
        if done != position:
            raise damaged(done + 1, f"it is missing, and position {position} was asked for", self._where)
        if notes:
            self._notes.keep(first, notes)
        return chain
