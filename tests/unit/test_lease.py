"""A lease has one owner at a time, by monotonic clocks and a token alone."""

from __future__ import annotations

import time

import pytest

from esper.clock import ManualClock, steady_s
from esper.errors import LeaseLost
from esper.oona.cells import MemoryCells
from esper.oona.consuming.lease import Lease

TTL_S = 10.0


class Steady:
    """A monotonic clock that moves when told."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def cells() -> MemoryCells:
    return MemoryCells()


@pytest.fixture
def ada_clock() -> Steady:
    return Steady(5000.0)


@pytest.fixture
def bob_clock() -> Steady:
    return Steady(3.0)


@pytest.fixture
def ada(cells: MemoryCells, ada_clock: Steady) -> Lease:
    return Lease(cells, "n", "ada", ttl_s=TTL_S, monotonic=ada_clock)


@pytest.fixture
def bob(cells: MemoryCells, bob_clock: Steady) -> Lease:
    return Lease(cells, "n", "bob", ttl_s=TTL_S, monotonic=bob_clock)


def test_a_free_lease_is_had_at_once(ada: Lease, bob: Lease) -> None:
    assert not ada.held
    assert ada.acquire()
    assert (ada.valid, ada.token, ada.value) == (True, 1, b"")
    assert not bob.acquire()
    ada.release()
    assert not ada.held
    assert bob.acquire()
    assert bob.token == 2


def test_a_lease_that_is_renewed_is_never_taken_over(
    ada: Lease, bob: Lease, ada_clock: Steady, bob_clock: Steady
) -> None:
    assert ada.acquire()
    for _ in range(20):
        bob_clock.now_s += TTL_S * 0.9
        ada_clock.now_s += TTL_S * 0.9
        ada.renew()
        assert not bob.acquire()
        assert ada.valid


def test_a_silent_holder_is_replaced_after_the_observers_own_ttl(ada: Lease, bob: Lease, bob_clock: Steady) -> None:
    assert ada.acquire()
    ada.renew(b"42")
    bob_clock.now_s += 1000.0
    assert not bob.acquire(), "the time before bob looked for the first time does not count"
    bob_clock.now_s += TTL_S - 0.001
    assert not bob.acquire()
    bob_clock.now_s += 0.001
    assert bob.acquire()
    assert (bob.token, bob.value) == (2, b"42")


def test_a_holder_distrusts_itself_before_an_observer_takes_over(
    ada: Lease, bob: Lease, ada_clock: Steady, bob_clock: Steady
) -> None:
    assert ada.acquire()
    assert not bob.acquire()
    for clock in (ada_clock, bob_clock):
        clock.now_s += TTL_S
    assert not ada.valid
    assert bob.acquire()


class SlowCells(MemoryCells):
    """Cells whose answers take a second."""

    def __init__(self, clock: Steady) -> None:
        super().__init__()
        self.clock = clock

    def write(self, cell, value):
        written = super().write(cell, value)
        self.clock.now_s += 1.0
        return written


def test_validity_counts_from_the_beginning_of_a_renewal(ada_clock: Steady) -> None:
    lease = Lease(SlowCells(ada_clock), "n", "ada", ttl_s=TTL_S, monotonic=ada_clock)
    assert lease.acquire()
    lease.renew()
    ada_clock.now_s += TTL_S - 1.0
    assert not lease.valid


def test_a_late_renewal_is_refused_by_the_token(ada: Lease, bob: Lease, bob_clock: Steady) -> None:
    assert ada.acquire()
    assert not bob.acquire()
    bob_clock.now_s += TTL_S
    assert bob.acquire()
    assert ada.valid, "its own clock stood still"
    with pytest.raises(LeaseLost):
        ada.renew(b"late")
    assert not ada.held
    assert not ada.valid
    with pytest.raises(LeaseLost):
        ada.renew()
    bob.renew()
    assert bob.value == b""


def test_an_expired_lease_that_nobody_took_can_be_renewed(ada: Lease, ada_clock: Steady) -> None:
    assert ada.acquire()
    ada_clock.now_s += 5 * TTL_S
    assert not ada.valid
    ada.renew()
    assert ada.valid
    assert ada.token == 1


def test_an_owner_whose_reply_was_lost_takes_its_own_lease_again(cells: MemoryCells, ada: Lease) -> None:
    assert cells.take("n", "ada", seen=None) is not None
    assert ada.acquire()
    assert ada.token == 2


def test_a_change_of_owner_begins_the_observers_wait_anew(
    cells: MemoryCells, ada: Lease, bob: Lease, ada_clock: Steady, bob_clock: Steady
) -> None:
    assert ada.acquire()
    assert not bob.acquire()
    bob_clock.now_s += TTL_S - 1
    ada.release()
    assert Lease(cells, "n", "eve", ttl_s=TTL_S, monotonic=ada_clock).acquire()
    assert not bob.acquire()
    bob_clock.now_s += TTL_S - 1
    assert not bob.acquire()
    bob_clock.now_s += 1
    assert bob.acquire()


def test_what_is_not_held_has_no_token_and_is_released_quietly(ada: Lease) -> None:
    ada.release()
    ada.remove()
    with pytest.raises(LeaseLost):
        _ = ada.token


def test_a_removed_lease_leaves_no_cell(cells: MemoryCells, ada: Lease) -> None:
    assert ada.acquire()
    ada.remove()
    assert cells.names() == []


def test_wall_clocks_that_jump_by_hours_change_nothing(monkeypatch: pytest.MonkeyPatch, cells: MemoryCells) -> None:
    wall = ManualClock()
    monkeypatch.setattr(time, "time", lambda: wall.now_us() / 1e6)
    monkeypatch.setattr(time, "time_ns", lambda: wall.now_us() * 1000)
    ada, bob = (Lease(cells, "n", name, ttl_s=60.0) for name in ("ada", "bob"))
    assert ada.acquire()
    for hours in (7, -30, 100):
        wall.advance(hours * 3_600_000_000)
        assert ada.valid
        assert not bob.acquire()
        ada.renew()


def test_the_steady_clock_goes_on_by_itself() -> None:
    before_s = steady_s()
    assert steady_s() >= before_s
