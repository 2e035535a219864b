"""Cursors: how far each slot of a group is dealt with, in the value of the slot's cell.

A cursor is written under the slot's fencing token, so that one of a member that lost the slot is refused. It names the
digest of the record it stands at: a log that was put back to an older state, or is another one, is noticed and nothing
is skipped. Belongs here: reading, checking and writing cursors. Does not belong here: when (``consumer``).
"""

from __future__ import annotations

import msgspec

from esper.errors import HandlerError, LogRegressed
from esper.oona.consuming.lanes import Cursor, SlotWork
from esper.oona.consuming.lease import Lease
from esper.oona.port import EventLog

#: Failed tries a cursor remembers; a cell's value has a bound.
_MOST_TRIES = 2000


class Cursors:
    """Reads and writes the cursors of one group."""

    def __init__(self, log: EventLog, group: str) -> None:
        """Work on a log."""
        self._log = log
        self._group = group
        #: The position last looked up, and its digest: slots often stand at the same one.
        self._known = (0, b"")

    def open(self, number: int, lease: Lease, start: int) -> SlotWork:
        """Return the work of a slot that was just taken, from where its last owner committed.

        Args:
            number: Number of the slot.
            lease: Its lease.
            start: Where a slot begins that never had an owner.

        Raises:
            LogRegressed: The log is not the one the cursor was written for.
            LeaseLost: The lease is gone already.
            HandlerError: The cursor cannot be read.
        """
        value = lease.value
        try:
            cursor = msgspec.msgpack.decode(value, type=Cursor) if value else Cursor(start)
        except msgspec.MsgspecError as error:
            raise HandlerError(f"the cursor of slot {number} of {self._group} cannot be read: {error}") from error
        if cursor.digest and self._digest(cursor.position) != cursor.digest:
            raise self.regressed(cursor.position, "the record there is another one")
        return SlotWork(number, lease, cursor)

    def commit(self, work: SlotWork) -> None:
        """Write a slot's cursor under its token, if it changed.

        Raises:
            LeaseLost: Another member took the slot; nothing was written.
            LogRegressed: The log lost the record that the cursor stands at.
        """
        position = work.position
        tries = dict([one for one in work.tries.items() if one[0] > position][:_MOST_TRIES])
        if position != work.committed.position or tries != work.committed.tries:
            cursor = Cursor(position, self._digest(position), tries)
            work.lease.renew(msgspec.msgpack.encode(cursor))
            work.committed = cursor
        work.dirty = False

    def regressed(self, position: int, reason: str) -> LogRegressed:
        """Return the error for a log that is not the one a cursor was written for."""
        return LogRegressed(
            f"group {self._group} had dealt with the log up to position {position}, but {reason}: "
            "the log went backwards or was replaced",
            hint="check which log is opened; docs/explanation/handlers.md says how handlers begin again on another one",
        )

    def _digest(self, position: int) -> bytes:
        if position == 0:
            return b""
        if self._known[0] != position:
            found = self._log.read(position - 1, 1, until=position)
            if not found:
                raise self.regressed(position, f"the log ends at {self._log.end()}")
            self._known = (position, found[0].digest)
        return self._known[1]
