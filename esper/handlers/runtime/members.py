"""Who runs which handler: each process keeps a cell ``member/<handler>/<member>`` and renews it.

Belongs here: what a member tells of itself, and what another process can learn from it. Does not belong here: which
streams a member owns (``esper.oona.consuming.consumer``).

A cell says nothing about time. Whoever wants to know whether a member lives watches whether its beat moves.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable

import msgspec

from esper.errors import HandlerError, LeaseLost
from esper.oona.cells import Cell, Cells
from esper.oona.consuming.lease import Lease
from esper.oona.consuming.slots import require_name
from esper.oona.port import EventLog

_PREFIX = "member/"
#: Beats in the time after which a silent member counts as dead.
_BEATS_IN_TTL = 5
#: How many such times a dead member is still shown.
_FORGET_TTLS = 6


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """What a member tells of itself with each beat."""

    #: When the process started, microseconds since the Unix epoch by its own clock.
    started_at: int
    host: str
    pid: int
    #: Version of Esper.
    version: str
    #: Address of its pages.
    url: str
    #: Seconds between two beats.
    every_s: float
    #: Events between the handler and the end of the log, and the age of the oldest; None where it is not known.
    lag_events: int | None = None
    lag_seconds: float | None = None
    parked: int = 0
    #: Why no work is done now; None where it is.
    trouble: str | None = None


class Member(msgspec.Struct, frozen=True):
    """A member as another process sees it."""

    handler: str
    name: str
    beat: Beat
    #: True if its beat was seen to move, False if it did not for two beats, None if nobody waited for it.
    alive: bool | None


class Membership:
    """This process's own cell."""

    def __init__(self, cells: Cells, handler: str, member: str, *, ttl_s: float) -> None:
        """Prepare to join; nothing is written yet.

        Args:
            cells: The log's cells.
            handler: Name of the handler.
            member: Name of this process, which no other one may have at the same time.
            ttl_s: Seconds without a beat after which the name is free again.
        """
        require_name("handler", handler)
        require_name("member", member)
        self.member = member
        self.every_s = ttl_s / _BEATS_IN_TTL
        self._ttl_s = ttl_s
        self._cells = cells
        self._prefix = f"{_PREFIX}{handler}/"
        # The owner is this process and not the name: a second process of the same name must not pass for this one.
        self._lease = Lease(cells, self._prefix + member, f"{member}#{uuid.uuid4().hex[:8]}", ttl_s=ttl_s)
        self._others: dict[str, Lease] = {}

    def join(self) -> None:
        """Take the name; waits for one whose process died to become free.

        Raises:
            HandlerError: Another process of that name lives.
        """
        until_s = time.monotonic() + 1.5 * self._ttl_s
        while not self._lease.acquire():
            if time.monotonic() > until_s:
                raise HandlerError(
                    f"member {self.member} runs already",
                    hint="give another --member, or none: each process then has a name of its own",
                )
            time.sleep(self._ttl_s / 20)

    def beat(self, beat: Beat) -> None:
        """Say that this process lives, and forget members that have been silent for long.

        A name that was lost meanwhile is taken again where it is free.
        """
        value = msgspec.msgpack.encode(beat)
        try:
            self._lease.renew(value)
        except LeaseLost:
            if self._lease.acquire():
                self._lease.renew(value)
        self._bury()

    def leave(self) -> None:
        """Forget the cell: this process is no member any more."""
        self._lease.remove()

    def _bury(self) -> None:
        """Forget the cells of processes that died without a word, once people had time to see them."""
        names = set(self._cells.names(self._prefix)) - {self._lease.name}
        self._others = {name: self._others.get(name) or self._watched(name) for name in names}
        for lease in self._others.values():
            if lease.acquire():
                lease.remove()

    def _watched(self, name: str) -> Lease:
        return Lease(self._cells, name, self._lease.owner, ttl_s=_FORGET_TTLS * self._ttl_s)


def default_member() -> str:
    """Return a name that no other process has: host, process id, and some random digits."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def members(
    log: EventLog,
    handler: str | None = None,
    *,
    watch: bool = True,
    timer: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Member]:
    """Return the members of one handler or of all, by handler and name.

    Args:
        log: The log whose cells they keep.
        handler: Only this handler's.
        watch: Wait until each beat has moved, or should have moved twice.
        timer: Seconds from any origin, never going back.
        sleep: Waits for seconds.
    """
    first = _held(log.cells, handler)
    moved: set[str] = set()
    began_s = timer()
    while watch:
        waited_s = timer() - began_s
        now = _held(log.cells, handler)
        moved |= {name for name, (cell, _) in now.items() if name in first and cell.beat != first[name][0].beat}
        if all(name in moved or name not in now or waited_s > 2.5 * beat.every_s for name, (_, beat) in first.items()):
            # Who left meanwhile is no member any more.
            first = {name: now[name] for name in first if name in now}
            break
        sleep(0.05)
    return [_member(name, beat, name in moved if watch else None) for name, (_, beat) in sorted(first.items())]


def _member(name: str, beat: Beat, alive: bool | None) -> Member:
    handler, _, own = name.removeprefix(_PREFIX).partition("/")
    return Member(handler=handler, name=own, beat=beat, alive=alive)


def _held(cells: Cells, handler: str | None) -> dict[str, tuple[Cell, Beat]]:
    found = {}
    for name in cells.names(_PREFIX if handler is None else f"{_PREFIX}{handler}/"):
        cell = cells.look(name)
        # A cell without a value was taken a moment ago, by a process that has not said anything yet.
        if cell is not None and cell.owner and cell.value:
            found[name] = (cell, msgspec.msgpack.decode(cell.value, type=Beat))
    return found
