"""Consumers on the log in memory."""

from __future__ import annotations

from consumer_contract import ConsumerContract

from esper.oona import MemoryLog


class TestConsumerOnMemory(ConsumerContract):
    def open_log(self) -> MemoryLog:
        return MemoryLog()
