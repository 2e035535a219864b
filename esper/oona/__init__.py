"""Oona: the append-only log, which is also the message bus. The only source of truth."""

from __future__ import annotations

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
from esper.oona.recorder import Recorder
from esper.oona.salvage import SalvageReport, salvage
from esper.oona.sqlite import SqliteLog

__all__ = [
    "ANY",
    "MAX_PAYLOAD_BYTES",
    "NO_STREAM",
    "AsyncLog",
    "EventLog",
    "Head",
    "LogReport",
    "MemoryLog",
    "Receipt",
    "Recorder",
    "SalvageReport",
    "SqliteLog",
    "iterate",
    "iterate_stream",
    "last_by",
    "open_log",
    "salvage",
]
