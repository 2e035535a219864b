"""What a person means by a moment of the log: a position, ``main:123`` or a time."""

from __future__ import annotations

import datetime as dt
import re

from esper.errors import ConfigError, NotFound
from esper.oona.port import EventLog
from esper.projections.open import MAIN

_NUMBER = re.compile(rf"(?:{MAIN}:)?(\d+)")


def resolve_at(text: str, log: EventLog) -> int:
    """Return the position that a text stands for.

    Args:
        text: ``123``, ``main:123``, or an ISO time such as ``2026-03-01T12:00:00Z``; a time without a zone is UTC. A
            time stands for the last position recorded at or before it, 0 if there is none.
        log: The log.

    Raises:
        ConfigError: The text is none of these.
        NotFound: The log has no such position.
    """
    head = log.head().position
    number = _NUMBER.fullmatch(text.strip())
    if number is not None:
        position = int(number[1])
        if position > head:
            raise NotFound(f"the log ends at {MAIN}:{head}; it has no {MAIN}:{position}", hint="`esper log stats`")
        return position
    try:
        moment = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigError(
            f"{text!r} is neither a position nor a time", hint=f"write 123, {MAIN}:123 or 2026-03-01T12:00:00Z"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return last_at(log, (moment - epoch) // dt.timedelta(microseconds=1), head)


def last_at(log: EventLog, time_us: int, head: int) -> int:
    """Return the last position recorded at or before a time; recorded times never go back, so halving finds it.

    Args:
        log: The log.
        time_us: Microseconds since the Unix epoch.
        head: Last position to look at.
    """
    low, high = 0, head
    while low < high:
        middle = (low + high + 1) // 2
        (envelope,) = log.read(after=middle - 1, limit=1)
        if envelope.recorded_at <= time_us:
            low = middle
        else:
            high = middle - 1
    return low
