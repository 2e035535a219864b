"""Messages for people and machines about what the process is doing, on stderr.

Belongs here: how they are formed, what is bound to each of them (run, trace, handler, ...) and that secrets never reach
them. Does not belong here: facts, which go to the log of events (``esper.oona``). Nothing is ever learned from a
message that is not also a fact.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from esper.redact import mask_value

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(
    *, level: str = "warning", form: str = "console", color: bool = False, stream: TextIO | None = None
) -> None:
    """Set up the messages of this process; the command line does it once.

    Args:
        level: Least level that is written: debug, info, warning or error.
        form: ``console`` for people, ``json`` for one object per line.
        color: Whether the console form uses colours.
        stream: Where they go; stderr when left out.
    """
    structlog.configure(
        processors=_processors(form, color=color),
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )


def _processors(form: str, *, color: bool) -> list[Processor]:
    last: Processor = structlog.dev.ConsoleRenderer(colors=color)
    if form == "json":
        last = structlog.processors.JSONRenderer(sort_keys=True)
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        # Tracebacks become text before the masking, and without local variables: those can hold secrets.
        structlog.processors.format_exc_info,
        redact,
        last,
    ]


def get_logger(part: str) -> FilteringBoundLogger:
    """Return the logger of a part, e.g. ``tolaria``; every message names it."""
    if structlog.is_configured():
        logger: FilteringBoundLogger = structlog.get_logger(part=part)
        return logger
    # Used as a library in a program that has not set structlog up: warnings only, and never on its stdout.
    quiet: FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=_processors("console", color=False),
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS["warning"]),
        part=part,
    )
    return quiet


@contextmanager
def bound(
    *,
    run_id: str | None = None,
    trace_id: str | None = None,
    handler: str | None = None,
    member: str | None = None,
    position: int | None = None,
) -> Iterator[None]:
    """Bind what is given to every message written inside the ``with`` block, in this thread or task.

    Args:
        run_id: Training run that is worked on.
        trace_id: Trace of the command or event that set the work off.
        handler: Handler that this process runs.
        member: Name of this process among those of the handler.
        position: Position of the event that is handled.
    """
    given = {"run_id": run_id, "trace_id": trace_id, "handler": handler, "member": member, "position": position}
    with structlog.contextvars.bound_contextvars(**{key: value for key, value in given.items() if value is not None}):
        yield


def redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Mask secrets in a message: values under telling names and passwords inside URLs."""
    del logger, method
    return {name: mask_value(name, value) for name, value in event.items()}
