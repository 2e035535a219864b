"""Members: a name is one process's, a beat that moves is life, and the dead are forgotten in the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from esper.errors import ConfigError, HandlerError
from esper.handlers.overview import overview
from esper.handlers.runtime.members import Beat, Membership, default_member, members
from esper.oona.memory import MemoryLog


@pytest.fixture
def log() -> Iterator[MemoryLog]:
    with MemoryLog() as log:
        yield log


def beat(**changes: object) -> Beat:
    told = {"started_at": 1, "host": "here", "pid": 7, "version": "0", "url": "http://127.0.0.1:1", "every_s": 0.05}
    return Beat(**{**told, **changes})  # type: ignore[arg-type]


def joined(log: MemoryLog, name: str, *, ttl_s: float = 0.25) -> Membership:
    member = Membership(log.cells, "notes", name, ttl_s=ttl_s)
    member.join()
    return member


def states(log: MemoryLog, beating: Membership | None = None, *, watch: bool = True) -> dict[str, bool | None]:
    """Return who is alive, one member beating while others are watched."""

    def sleep(_: float) -> None:
        if beating is not None:
            beating.beat(beat())

    now = iter(range(10_000))
    found = members(log, "notes", watch=watch, timer=lambda: next(now) * 0.02, sleep=sleep)
    return {member.name: member.alive for member in found}


def test_member_is_alive_when_its_beat_moves_and_silent_when_not(log: MemoryLog) -> None:
    lively, silent = joined(log, "lively", ttl_s=60), joined(log, "silent", ttl_s=60)
    lively.beat(beat())
    silent.beat(beat())
    assert states(log, lively) == {"lively": True, "silent": False}
    assert states(log, watch=False) == {"lively": None, "silent": None}


def test_member_that_left_is_none(log: MemoryLog) -> None:
    member = joined(log, "a")
    member.beat(beat())
    member.leave()
    assert states(log) == {}
    assert log.cells.names("member/") == []


def test_second_process_of_a_name_is_refused_while_the_first_lives(log: MemoryLog) -> None:
    first, second = joined(log, "a"), Membership(log.cells, "notes", "a", ttl_s=0.25)
    over = threading.Event()

    def keep() -> None:
        while not over.wait(0.02):
            first.beat(beat())

    keeping = threading.Thread(target=keep)
    keeping.start()
    try:
        with pytest.raises(HandlerError, match="member a runs already"):
            second.join()
    finally:
        over.set()
        keeping.join()


def test_name_of_a_process_that_died_is_free_after_the_time_to_live(log: MemoryLog) -> None:
    joined(log, "a")
    again = joined(log, "a")
    again.beat(beat(pid=8))
    (member,) = members(log, "notes", watch=False)
    assert member.beat.pid == 8


def test_dead_members_are_forgotten_in_the_end(log: MemoryLog) -> None:
    dead, alive = joined(log, "dead", ttl_s=0.01), joined(log, "alive", ttl_s=0.01)
    dead.beat(beat())
    until_s = time.monotonic() + 10
    while log.cells.names("member/") != ["member/notes/alive"]:
        assert time.monotonic() < until_s, "the dead member's cell is still there"
        alive.beat(beat())


def test_beat_after_the_name_was_lost_takes_it_again(log: MemoryLog) -> None:
    member = joined(log, "a")
    cell = log.cells.look("member/notes/a")
    taken = log.cells.take("member/notes/a", "thief", seen=cell)
    assert taken is not None
    member.beat(beat())
    log.cells.free(taken)
    member.beat(beat(pid=9))
    assert [one.beat.pid for one in members(log, "notes", watch=False)] == [9]


@pytest.mark.parametrize("name", ["", "a/b", "a b"])
def test_name_that_a_cell_cannot_have_is_refused(log: MemoryLog, name: str) -> None:
    with pytest.raises(ConfigError):
        Membership(log.cells, "notes", name, ttl_s=1.0)


def test_names_of_two_processes_differ() -> None:
    assert default_member() != default_member()


def test_overview_takes_the_lag_of_the_member_that_is_furthest_behind(log: MemoryLog) -> None:
    for name, lag in (("a", 3), ("b", 9)):
        joined(log, name, ttl_s=60).beat(beat(lag_events=lag, lag_seconds=lag / 10, trouble=None))
    (view,) = overview(log, watch=False)
    assert (view.handler, view.lag_events, view.lag_seconds, view.alive) == ("notes", 9, 0.9, None)
    assert [member.state for member in view.members] == ["unknown", "unknown"]
    assert overview(log, "others") == []
