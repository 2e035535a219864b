"""Consumers on the log in SQLite."""

from __future__ import annotations

from consumer_contract import ConsumerContract

from esper.oona import SqliteLog


class TestConsumerOnSqlite(ConsumerContract):
    def open_log(self) -> SqliteLog:
        return SqliteLog(self.folder / f"log{self.opened}.db")
