"""What a person means by a moment of the log: a position, ``main:123`` or a time."""

from __future__ import annotations

import datetime as dt
import re

from esper.errors import ConfigError, NotFound
from esper.oona.port import EventLog, last_by
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
    return last_by(log, (moment - epoch) // dt.timedelta(microseconds=1))
