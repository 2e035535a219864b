"""A moment of the log as people write it: a position, an epoch of a run, or a time."""

from __future__ import annotations

import datetime as dt
from typing import NamedTuple

from esper.errors import ConfigError, NotFound
from esper.oona.port import EventLog, last_by

#: Name of the log that positions are printed with.
_LOG_NAME = "main"

_EPOCH = "epoch:"

_UNIX_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class Moment(NamedTuple):
    """Where to look; both None stands for now."""

    position: int | None = None
    epoch: int | None = None


def moment(log: EventLog, text: str | None) -> Moment:
    """Return the moment a text names.

    Args:
        log: The log, to find the last position recorded at or before a time.
        text: ``1234``, ``main:1234``, ``epoch:3`` or an ISO 8601 time (UTC unless it names a zone); None is now.

    Raises:
        ConfigError: The text is none of these.
        NotFound: The log ends before the position or begins after the time.
    """
    if text is None:
        return Moment()
    if text.startswith(_EPOCH) and text.removeprefix(_EPOCH).isdecimal():
        return Moment(epoch=int(text.removeprefix(_EPOCH)))
    number = text.removeprefix(f"{_LOG_NAME}:")
    if number.isdecimal():
        return Moment(position=_existing(log, int(number)))
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is no moment",
            hint="write a position (1234 or main:1234), an epoch (epoch:3) or a time (2026-11-23T12:00:00Z)",
        ) from error
    return Moment(position=_position_at(log, time if time.tzinfo else time.replace(tzinfo=dt.UTC)))


def _existing(log: EventLog, position: int) -> int:
    head = log.head().position
    if not 1 <= position <= head:
        raise NotFound(f"the log has no position {position}; it ends at {head}", hint="`esper log tail` shows its end")
    return position


def _position_at(log: EventLog, time: dt.datetime) -> int:
    """Return the last position recorded at or before a time."""
    position = last_by(log, (time - _UNIX_EPOCH) // dt.timedelta(microseconds=1))  # whole numbers: a float would round
    if position == 0:
        raise NotFound(f"nothing was recorded at or before {time.isoformat()}", hint="`esper log read` shows the start")
    return position
