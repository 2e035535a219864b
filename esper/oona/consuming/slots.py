"""Which member of a group serves which slots: membership, fair shares and the leases.

A group's streams are spread over a fixed number of slots by a hash of their names, and each slot is a lease. Members
see each other by cells they renew. Nobody assigns slots: a member that holds less than its share takes free ones, one
that holds more gives some up. Belongs here: who is alive, what a fair share is, the leases. Does not belong here: what
is done with a slot (``consumer``).
"""

from __future__ import annotations

import functools
import hashlib
import threading
import uuid
from collections.abc import Callable

import msgspec

from esper.errors import ConfigError, HandlerError, LeaseLost
from esper.oona.cells import Cell, Cells
from esper.oona.consuming.lease import Lease

_PREFIX = "group"


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """What all members of a group must agree on; kept in the group's own cell by its first member."""

    #: How many slots the streams are spread over.
    slots: int
    #: Position the group began after.
    start: int
    #: How long leases last.
    ttl_s: float


@functools.lru_cache(maxsize=65536)
def slot_of(stream: str, slots: int) -> int:
    """Return the slot of a stream, the same on every machine and for ever."""
    return int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8]) % slots


def agree(cells: Cells, group: str, wanted: Callable[[], Plan]) -> Plan:
    """Return the plan of a group, which is ours if the group has none yet.

    Args:
        cells: Where the group coordinates.
        group: Name of the group.
        wanted: Gives the plan of a new group.

    Raises:
        HandlerError: The cell of the group cannot be read.
    """
    name = f"{_PREFIX}/{group}"
    while True:
        cell = cells.look(name)
        if cell is not None and cell.value:
            try:
                return msgspec.msgpack.decode(cell.value, type=Plan)
            except msgspec.MsgspecError as error:
                raise HandlerError(f"the plan of group {group} cannot be read: {error}") from error
        # A cell without a value was left by a member that ended between taking and writing it.
        taken = cells.take(name, f"plan-{uuid.uuid4().hex}", seen=cell)
        if taken is None:
            continue
        try:
            cells.free(cells.write(taken, msgspec.msgpack.encode(wanted())))
        except LeaseLost:
            continue


def known_groups(cells: Cells) -> list[str]:
    """Return the names of all groups that ever coordinated here, sorted."""
    names = [name.split("/") for name in cells.names(f"{_PREFIX}/")]
    return sorted(parts[1] for parts in names if len(parts) == 2)


def committed_slots(cells: Cells, group: str) -> dict[int, bytes]:
    """Return the value of each slot of a group that was ever held, by number."""
    prefix = f"{_PREFIX}/{group}/slot/"
    found = ((name, cells.look(name)) for name in cells.names(prefix))
    return {int(name.removeprefix(prefix)): cell.value for name, cell in found if cell is not None}


class Slots:
    """The slots that one member of a group holds.

    Attributes:
        owner: Name of this member's leases, unique to this object.
        held: The leases held now, by number of the slot.
    """

    def __init__(
        self, cells: Cells, *, group: str, member: str, slots: int, ttl_s: float, monotonic: Callable[[], float]
    ) -> None:
        """Prepare to join a group; ``balance`` joins it.

        Args:
            cells: Where the group coordinates.
            group: Name of the group.
            member: Name of this member, for people.
            slots: How many slots the group has.
            ttl_s: How long leases last.
            monotonic: Gives seconds that never go back.
        """
        # The process that had this name before may still live: it is another owner.
        self.owner = f"{member}#{uuid.uuid4().hex[:8]}"
        self.held: dict[int, Lease] = {}
        self._cells = cells
        self._ttl_s = ttl_s
        self._monotonic = monotonic
        self._members = f"{_PREFIX}/{group}/member/"
        self._own = Lease(cells, self._members + self.owner, self.owner, ttl_s=ttl_s, monotonic=monotonic)
        self._leases = [
            Lease(cells, f"{_PREFIX}/{group}/slot/{number}", self.owner, ttl_s=ttl_s, monotonic=monotonic)
            for number in range(slots)
        ]
        #: Other members as they were when they last changed, and when that was noticed.
        self._others: dict[str, tuple[Cell, float]] = {}
        self._lock = threading.Lock()
        self._closed = False

    def beat(self) -> None:
        """Renew what is held and was not renewed for a third of its time; safe to call from a second thread.

        Leases that turn out to be lost stay in ``held``, no longer valid, until ``prune``.

        Raises:
            LogUnavailable: The cells cannot be reached; what is not renewed in time is over by our own clock.
        """
        with self._lock:
            leases = [] if self._closed else [self._own, *self.held.values()]
        for lease in leases:
            if lease.held and lease.age_s >= self._ttl_s / 3:
                try:
                    lease.renew()
                except LeaseLost:
                    # The lease knows; who works under it finds out by asking it.
                    continue

    def prune(self) -> list[int]:
        """Forget the slots whose leases are over, and return their numbers."""
        lost = [number for number, lease in self.held.items() if not lease.valid]
        for number in lost:
            self.forget(number)
        return lost

    def forget(self, number: int) -> None:
        """Forget a slot whose lease is over."""
        with self._lock:
            lease = self.held.pop(number)
        lease.abandon()

    def leave(self, number: int) -> None:
        """Give a slot up, for others to take."""
        with self._lock:
            lease = self.held.pop(number)
        lease.release()

    def balance(self) -> int:
        """Join the group if need be, look who else is there, and take free slots up to a fair share.

        Returns:
            How many slots this member should give up, because it holds more than its share.
        """
        self._own.acquire()
        members = sorted([*self._alive(), self._own.name])
        rank = members.index(self._own.name)
        share = len(self._leases) // len(members) + (rank < len(self._leases) % len(members))
        # Members begin to look at different slots, so that they do not race for the same ones.
        first = rank * len(self._leases) // len(members)
        for step in range(len(self._leases)):
            number = (first + step) % len(self._leases)
            lease = self._leases[number]
            if number in self.held:
                continue
            if len(self.held) >= share:
                # Only watched, so that its expiry is known by the time somebody must take it over.
                lease.observe()
            elif lease.acquire():
                with self._lock:
                    self.held[number] = lease
        return max(0, len(self.held) - share)

    def close(self) -> None:
        """Leave the group: give up all slots and the membership. What cannot be given up expires.

        Raises:
            LogUnavailable: The cells cannot be reached.
        """
        with self._lock:
            self._closed = True
        for number in list(self.held):
            self.leave(number)
        self._own.remove()

    def _alive(self) -> list[str]:
        """Return the cells of the other members that are alive, and forget those who have been dead for long."""
        now = self._monotonic()
        there: dict[str, tuple[Cell, float]] = {}
        for name in self._cells.names(self._members):
            if name == self._own.name:
                continue
            cell = self._cells.look(name)
            if cell is None:
                continue
            known = self._others.get(name)
            changed = known is None or (known[0].token, known[0].beat) != (cell.token, cell.beat)
            there[name] = (cell, now if known is None or changed else known[1])
        self._others = there
        alive = []
        for name, (cell, since) in there.items():
            if cell.owner and now - since < self._ttl_s:
                alive.append(name)
            elif not cell.owner or now - since >= 2 * self._ttl_s:
                self._bury(name, cell)
        return alive

    def _bury(self, name: str, cell: Cell) -> None:
        # Taken first: that fails if it changed since, so that a member that wakes up is not forgotten.
        taken = self._cells.take(name, self.owner, seen=cell)
        if taken is not None:
            self._cells.drop(taken)


def require_name(what: str, name: str) -> None:
    """See that a name can stand between the slashes of a cell's name.

    Raises:
        ConfigError: It cannot.
    """
    if not name or len(name) > 200 or "/" in name or any(ord(letter) < 33 for letter in name):
        raise ConfigError(f"{name!r} is no name of a {what}", hint="use up to 200 letters without spaces and slashes")
