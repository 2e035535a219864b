"""How the handlers of a log do, seen from outside: who runs them, how far they are behind, what they gave up on.

Belongs here: putting together what members, cursors and facts tell. Does not belong here: what only the members
themselves know, e.g. how a service stands while none of its processes runs.
"""

from __future__ import annotations

import msgspec

from esper.handlers.runtime.groups import group_position
from esper.handlers.runtime.members import Member, members
from esper.handlers.runtime.service import lag_after
from esper.oona.consuming.consumer import Lag
from esper.oona.consuming.parking import ParkedState, handlers_with_facts, parked_events
from esper.oona.consuming.slots import known_groups
from esper.oona.port import EventLog

#: What can be said of a member whose beat moved, did not move, or was not waited for.
_STATES = {True: "alive", False: "silent", None: "unknown"}


class MemberView(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a handler."""

    member: str
    #: alive, silent (it did not beat when it should have) or unknown (nobody waited for a beat).
    state: str
    host: str
    pid: int
    version: str
    #: Address of its pages.
    url: str
    #: Microseconds since the Unix epoch, by the process's own clock.
    started_at: int
    lag_events: int | None
    lag_seconds: float | None
    #: Why it does no work now; None where it does.
    trouble: str | None


class HandlerView(msgspec.Struct, frozen=True, kw_only=True):
    """One handler."""

    handler: str
    #: Members that are alive, and members that are silent; None where nobody waited to see.
    alive: int | None
    silent: int | None
    #: Events between the handler and the end of the log, and the age of the oldest; None where nobody knows.
    lag_events: int | None
    lag_seconds: float | None
    #: Events that are parked and wait for a person.
    parked: int
    members: list[MemberView]


def overview(log: EventLog, handler: str | None = None, *, watch: bool = True) -> list[HandlerView]:
    """Return how each handler does that is at work on a log, or has left a position or parked events, by name.

    Args:
        log: The log.
        handler: Only this one; nothing is returned if there is none.
        watch: Wait until it is known which members are alive.
    """
    there = members(log, handler, watch=watch)
    groups = set(known_groups(log.cells))
    names = {*groups, *handlers_with_facts(log), *(member.handler for member in there)}
    return [
        _view(log, name, [member for member in there if member.handler == name], is_group=name in groups, watch=watch)
        for name in sorted(names if handler is None else names & {handler})
    ]


def _view(log: EventLog, name: str, there: list[Member], *, is_group: bool, watch: bool) -> HandlerView:
    lag = _lag(log, name, [member for member in there if member.alive is not False], is_group=is_group)
    alive = sum(member.alive is True for member in there)
    return HandlerView(
        handler=name,
        alive=alive if watch else None,
        silent=len(there) - alive if watch else None,
        lag_events=None if lag is None else lag.events,
        lag_seconds=None if lag is None else lag.seconds,
        parked=sum(one.state is ParkedState.PARKED for one in parked_events(log, name)),
        members=[_member_view(member) for member in there],
    )


def _lag(log: EventLog, name: str, at_work: list[Member], *, is_group: bool) -> Lag | None:
    """Return the lag of the member that is furthest behind, or of what was committed where nobody is at work."""
    told = [
        Lag(member.beat.lag_events, member.beat.lag_seconds or 0.0)
        for member in at_work
        if member.beat.lag_events is not None
    ]
    if told:
        return Lag(max(lag.events for lag in told), max(lag.seconds for lag in told))
    position = group_position(log.cells, name) if is_group else None
    return None if position is None else lag_after(log, position)


def _member_view(member: Member) -> MemberView:
    beat = member.beat
    return MemberView(
        member=member.name,
        state=_STATES[member.alive],
        host=beat.host,
        pid=beat.pid,
        version=beat.version,
        url=beat.url,
        started_at=beat.started_at,
        lag_events=beat.lag_events,
        lag_seconds=beat.lag_seconds,
        trouble=beat.trouble,
    )
