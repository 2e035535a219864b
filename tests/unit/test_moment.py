"""What people write for a moment of the log."""

from __future__ import annotations

import datetime as dt

import pytest

from esper.clock import ManualClock
from esper.errors import ConfigError, NotFound
from esper.events import Event
from esper.events.operator import NoteAdded
from esper.ids import derived_id
from esper.oona.memory import MemoryLog
from esper.oona.port import ANY, EventLog
from replay.moment import Moment, moment

#: In 2039, where a float of seconds no longer holds every microsecond.
BEGAN_US = 2_200_000_000_000_001
#: No whole number of seconds apart.
GAP_US = 1_000_003
NOTES = 60


@pytest.fixture(scope="module")
def log() -> EventLog:
    """Sixty notes, about a second apart."""
    clock = ManualClock(BEGAN_US)
    log = MemoryLog(clock)
    for number in range(NOTES):
        event = Event(
            fact=NoteAdded(run_id="run-1", actor="a", text=str(number)),
            event_id=derived_id("note", number),
            sender_id="test",
            trace_id="0" * 32,
        )
        log.append([event], stream="operator/run-1", expected=ANY)
        clock.advance(GAP_US)
    return log


def iso(time_us: int) -> str:
    return (dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=time_us)).isoformat()


def test_nothing_said_is_now(log: EventLog) -> None:
    assert moment(log, None) == Moment(None, None)


@pytest.mark.parametrize("text", ["7", "main:7"])
def test_a_position(log: EventLog, text: str) -> None:
    assert moment(log, text) == Moment(position=7)


@pytest.mark.parametrize("text", ["0", "61", "main:61", "20260101"])
def test_a_position_that_does_not_exist_is_not_found(log: EventLog, text: str) -> None:
    with pytest.raises(NotFound, match="ends at 60"):
        moment(log, text)


def test_an_epoch(log: EventLog) -> None:
    assert moment(log, "epoch:12") == Moment(epoch=12)


@pytest.mark.parametrize("text", ["epoch:", "epoch:-1", "epoch:x", "other:7", "main:", "soon", "", "-3", "2026-13-01"])
def test_what_is_no_moment_is_refused_with_the_three_forms(log: EventLog, text: str) -> None:
    with pytest.raises(ConfigError, match="no moment") as caught:
        moment(log, text)
    assert all(form in caught.value.hint for form in ("main:1234", "epoch:3", "2026-"))


@pytest.mark.parametrize("position", range(1, NOTES + 1))
def test_a_recorded_time_is_the_position_recorded_then(log: EventLog, position: int) -> None:
    (envelope,) = log.read(position - 1, 1)
    assert moment(log, iso(envelope.recorded_at)) == Moment(position=position)
    assert moment(log, iso(envelope.recorded_at + GAP_US - 1)) == Moment(position=position)


def test_a_time_after_the_end_is_the_end_and_before_the_start_is_not_found(log: EventLog) -> None:
    assert moment(log, "9999-12-31T23:59:59Z") == Moment(position=NOTES)
    with pytest.raises(NotFound, match="nothing was recorded"):
        moment(log, iso(BEGAN_US - 1))
    with pytest.raises(NotFound, match="nothing was recorded"):
        moment(log, "0001-01-01")


def test_a_time_without_a_zone_is_utc_and_one_with_a_zone_is_not(log: EventLog) -> None:
    (envelope,) = log.read(29, 1)
    bare = iso(envelope.recorded_at).removesuffix("+00:00")
    assert moment(log, bare) == moment(log, f"{bare}Z") == Moment(position=30)
    elsewhere = dt.datetime.fromisoformat(f"{bare}Z").astimezone(dt.timezone(dt.timedelta(hours=5)))
    assert moment(log, elsewhere.isoformat()) == Moment(position=30)


def test_in_an_empty_log_there_is_no_moment() -> None:
    for text in ("1", "2026-01-01"):
        with pytest.raises(NotFound):
            moment(MemoryLog(), text)
