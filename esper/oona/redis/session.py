"""One opened log on Redis: what its client knows of it, and the calls of its Functions.

Every call says which log is meant and how far the client has seen it, and every reply is checked for a log that was
replaced, went back or is damaged. A server that started anew may hold an older state that others have written on since:
the client then looks for the last record it knows before it takes an answer or writes.

Belongs here: that bookkeeping. Does not belong here: records (``log``).
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from esper.errors import LogDamaged, LogUnavailable, NotFound
from esper.oona.chain import GENESIS, damaged
from esper.oona.port import Head
from esper.oona.redis.library import log_library
from esper.oona.redis.link import RedisLink, fcall
from esper.oona.redis.pools import Command
from esper.oona.redis.record import open_note
from esper.oona.redis.sweep import sweep

#: Number of the layout of keys and records; a log of another one is refused.
FORMAT = "1"
#: Stands for the instance of a client that has written to none yet.
_NONE = "-"
#: Bytes of records after which a Function ends its page.
PAGE_BYTES = 8 << 20
#: Stands for "no bound"; numbers on the server are exact below it.
NO_BOUND = 1 << 52

_encode = msgspec.msgpack.Encoder().encode


class Tail(NamedTuple):
    """Where the log ends, and up to where it is kept elsewhere."""

    position: int
    #: What the server calls itself since it started or took over another history.
    instance: bytes
    #: The last trimmed position and the chain value there.
    base: Head


class RedisSession:
    """Calls the Functions of one log; shared by threads."""

    def __init__(self, link: RedisLink, *, create: bool) -> None:
        """Open the log, or make it.

        Raises:
            NotFound: There is no such log and ``create`` is false.
            LogDamaged: The log is of another format.
            LogError: As the server refuses.
        """
        self.link = link
        self.keys = link.keys
        self.where = link.where
        self.library = log_library()
        self._lock = threading.Lock()
        self._seen = 0
        self._instance = b""
        self._swept = b""
        self._witness: tuple[int, bytes] | None = None
        self._topics: list[str] = []
        self.log_id = self._open(create)

    def _open(self, create: bool) -> str:
        if not create:
            (found,) = self.link.run([["HMGET", self.keys.meta, "log_id", "format"]])
            if found[0] is None:
                raise NotFound(
                    f"there is no log in namespace {self.link.address.namespace} of {self.where}",
                    hint="check the URL and its namespace; the first append of a run makes a log",
                )
        self.link.load(self.library)
        if create:
            made = [secrets.token_hex(16), FORMAT]
            found = self.link.call(self.library, "esper_create", [self.keys.meta], made)
        log_id, form = found
        if form is None or form.decode() != FORMAT:
            raise damaged(0, f"{self.keys.meta} is of format {form!r}; this Esper knows {FORMAT}", f"log {self.where}")
        return str(log_id.decode())

    # --- calls

    def command(
        self,
        function: str,
        keys: Sequence[str],
        fields: Iterable[Any],
        args: Sequence[bytes] = (),
        *,
        write: bool = False,
    ) -> Command:
        """Return the command that calls a Function for this log.

        Args:
            function: Its name without the tag.
            keys: Its keys after ``@meta``.
            fields: Fields of its request after the first three.
            args: Its arguments after the request.
            write: Whether it writes.
        """
        known = (self._swept.decode() or _NONE) if write else ""
        # Another name each time: the one that named the server before it was started again must notice, too.
        request = _encode([self.log_id, self._seen, [secrets.token_hex(8), known], *fields])
        return fcall(self.library, function, [self.keys.meta, *keys], [request, *args], write=write)

    def run(self, commands: Sequence[Command], *, timeout_s: float | None = None) -> list[Any]:
        """Send commands and return their replies; raises as ``RedisLink.run`` does."""
        return self.link.run(commands, library=self.library, timeout_s=timeout_s)

    def call(
        self,
        function: str,
        keys: Sequence[str],
        fields: Iterable[Any],
        args: Sequence[bytes] = (),
        *,
        write: bool = False,
    ) -> list[Any]:
        """Call a Function and return its checked reply, the outcome first."""
        fields = list(fields)
        while True:
            (sent,) = self.run([self.command(function, keys, fields, args, write=write)])
            reply = self.checked(sent)
            if reply[0] != b"anew":
                return reply

    def checked(self, reply: list[Any]) -> list[Any]:
        """Return a reply unless it says that the log is not what the client knows.

        The outcome ``anew`` says that nothing was written because the server started anew, or this client never wrote
        to it; the client has looked and has swept it, and the call may be made again.

        Raises:
            LogDamaged: The log was replaced, lost what was acknowledged, or is damaged.
        """
        self._refuse(reply)
        if reply[1] != self._instance:
            self._recognise(reply[1])
        if reply[0] == b"anew":
            sweep(self.link)
            self._swept = reply[1]
        return reply

    def _recognise(self, instance: bytes) -> None:
        """Look for the last record this client knows on a server that started anew."""
        witness = self._witness
        if witness is not None:
            position, event_id = witness
            (reply,) = self.run([self.command("esper_where", [self.keys.ids], [], [event_id])])
            self._refuse(reply)
            instance, found = reply[1], reply[3]
            if found != position:
                there = f"stands at {found} now" if found else "is not there any more"
                reason = f"the record that was acknowledged there {there}: an older state was put back and written on"
                raise damaged(position, reason, f"log {self.where}")
        self._instance = instance

    def _refuse(self, reply: list[Any]) -> None:
        outcome = reply[0]
        if outcome == b"damaged":
            raise damaged(reply[2], reply[3].decode("utf-8", "replace"), f"log {self.where}")
        if outcome == b"regressed":
            reason = f"the log ends at {reply[2]} but position {self._seen} was acknowledged"
            raise damaged(reply[2] + 1, reason, f"log {self.where}")
        if outcome == b"replaced":
            raise self._replaced(reply[2].decode("utf-8", "replace"))

    def _replaced(self, log_id: str) -> LogDamaged:
        there = f"log {log_id} is there now" if log_id else "no log is there now"
        return damaged(1, f"this is no longer the log that was opened ({self.log_id}): {there}", f"log {self.where}")

    def saw(self, position: int) -> None:
        """Note that the log reaches a position; from now on it must never end before it."""
        if position > self._seen:
            with self._lock:
                self._seen = max(self._seen, position)

    def knows(self, position: int, event_id: bytes) -> None:
        """Note which record stands at a position; it must never be another one."""
        witness = self._witness
        if witness is None or position > witness[0]:
            self._witness = (position, event_id)

    # --- state

    def tail(self) -> Tail:
        """Return where the log ends now."""
        return self.tail_of(self.call("esper_tail", [], []))

    def tail_of(self, reply: list[Any]) -> Tail:
        """Return what a reply of ``esper_tail`` says."""
        _, instance, position, trimmed, note = reply
        self.saw(position)
        base = Head(trimmed, open_note(trimmed, note, f"log {self.where}")) if trimmed else Head(0, GENESIS)
        return Tail(position, instance, base)

    @property
    def topics(self) -> list[str]:
        """Return the topics that are known to be in the log, by their numbers."""
        return self._topics

    def refresh_topics(self) -> None:
        """Learn the topics of the log.

        Raises:
            LogDamaged: They are not numbered from 0 on.
        """
        (flat,) = self.link.run([["HGETALL", self.keys.topics]])
        numbered = sorted((int(number), name.decode()) for name, number in zip(flat[::2], flat[1::2], strict=True))
        if [number for number, _ in numbered] != list(range(len(numbered))):
            raise damaged(0, f"{self.keys.topics} does not number its topics from 0 on", f"log {self.where}")
        self._topics = [name for _, name in numbered]

    def paged(self, function: str, keys: Sequence[str], topics: Iterable[str] | None, fields: list[Any]) -> list[Any]:
        """Call a Function that reads topics, learning topics that are new meanwhile.

        Args:
            function: Its name without the tag.
            keys: Its keys before the topics' streams.
            topics: The topics it is to read; None for all.
            fields: Fields of its request. The number of known topics is added if some topics are asked for.
        """
        wanted = None if topics is None else set(topics)
        for _ in range(100):
            known = self._topics
            names = known if wanted is None else [name for name in known if name in wanted]
            more = [] if wanted is None else [len(known)]
            reply = self.call(function, [*keys, *map(self.keys.topic, names)], [*fields, *more])
            if reply[0] != b"topics":
                return reply
            self.refresh_topics()
        raise LogUnavailable(f"log {self.where}: topics are added faster than they can be read")
