"""Oona: the append-only log, which is also the message bus. The only source of truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esper.errors import BusConnectionError as ConnectionError  # noqa: A004 - the seed's name for it
from esper.errors import ConsumptionError, PublishError
from esper.names import TopicNames
from esper.oona.async_log import AsyncLog
from esper.oona.memory import MemoryLog
from esper.oona.open import open_log
from esper.oona.port import (
    ANY,
    MAX_PAYLOAD_BYTES,
    NO_STREAM,
    EventLog,
    Head,
    LogReport,
    Receipt,
    iterate,
    iterate_stream,
    last_by,
)
from esper.oona.recording.recorder import Recorder
from esper.oona.salvage import SalvageReport, salvage
from esper.oona.sqlite.log import SqliteLog

if TYPE_CHECKING:
    from esper.oona.bus.client import OonaClient
    from esper.oona.bus.message import OonaMessage

__all__ = [
    "ANY",
    "MAX_PAYLOAD_BYTES",
    "NO_STREAM",
    "AsyncLog",
    "ConnectionError",
    "ConsumptionError",
    "EventLog",
    "Head",
    "LogReport",
    "MemoryLog",
    "OonaClient",
    "OonaMessage",
    "PublishError",
    "Receipt",
    "Recorder",
    "SalvageReport",
    "SqliteLog",
    "TopicNames",
    "iterate",
    "iterate_stream",
    "last_by",
    "open_log",
    "salvage",
]


def __getattr__(name: str) -> Any:
    """Return the client and its message, which take pydantic with them, when they are first asked for."""
    if name == "OonaClient":
        from esper.oona.bus.client import OonaClient

        return OonaClient
    if name == "OonaMessage":
        from esper.oona.bus.message import OonaMessage

        return OonaMessage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
