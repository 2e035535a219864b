"""The memory adapter keeps the log's contract."""

from __future__ import annotations

from log_contract import LogContract

from esper.clock import Clock
from esper.oona import MemoryLog


class TestMemoryLog(LogContract):
    def open_log(self, clock: Clock) -> MemoryLog:
        return MemoryLog(clock)
