"""How far a whole group is, told from what its members committed: nobody has to run for it.

Belongs here: reading the cursors of all slots. Does not belong here: writing them (``esper.oona.consuming.cursors``),
or what one member knows of its own slots (``esper.oona.consuming.consumer``).
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from esper.oona.cells import Cells
from esper.oona.consuming.lanes import Cursor
from esper.oona.consuming.slots import Plan, agree, committed_slots


def group_position(cells: Cells, group: str, *, besides: Collection[int] = ()) -> int | None:
    """Return the position up to which a group has dealt with every event and committed it.

    Args:
        cells: Where the group coordinates.
        group: Name of a group that exists.
        besides: Slots that are not looked at.

    Returns:
        The position of the slot that is furthest behind; None if all slots are left out.
    """
    plan = agree(cells, group, lambda: Plan(1, 0, 1.0))
    committed = committed_slots(cells, group)
    positions = [
        msgspec.msgpack.decode(value, type=Cursor).position if (value := committed.get(number)) else plan.start
        for number in range(plan.slots)
        if number not in besides
    ]
    return min(positions, default=None)
