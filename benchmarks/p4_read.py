"""P4: catch-up read of the SQLite log into typed structs, against a raw SELECT of the same bytes.

Both sides read the whole log in pages of 2,000 rows with the same columns. Ours makes an envelope of every row and
decodes its payload into the fact's struct; the raw side leaves tuples.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing

from benchmarks.measure import interleave, report, scratch
from benchmarks.p2_append import BATCH, STREAM, events
from esper.events import fact_of
from esper.oona import SqliteLog, iterate
from esper.oona.sqlite.walk import ENVELOPE_COLUMNS

EVENTS = 60_000
PAGE = 2000
SELECT = f"SELECT {ENVELOPE_COLUMNS} FROM events WHERE position > ? ORDER BY position LIMIT ?"


def main() -> None:
    """Measure and print."""
    with scratch() as folder:
        path = folder / "log.db"
        with SqliteLog(path) as log, closing(sqlite3.connect(path)) as connection:
            for first in range(0, EVENTS, BATCH):
                log.append(events(first + 1), stream=STREAM, expected=first)

            def typed() -> float:
                start = time.perf_counter()
                count = 0
                for envelope in iterate(log, batch=PAGE):
                    fact_of(envelope)
                    count += 1
                return count / (time.perf_counter() - start)

            def envelopes() -> float:
                start = time.perf_counter()
                count = sum(1 for _ in iterate(log, batch=PAGE))
                return count / (time.perf_counter() - start)

            def raw() -> float:
                start = time.perf_counter()
                count = after = 0
                while rows := connection.execute(SELECT, (after, PAGE)).fetchall():
                    for _row in rows:
                        count += 1
                    after = rows[-1][0]
                return count / (time.perf_counter() - start)

            facts, wrapped, selected = interleave([typed, envelopes, raw])
    peer = f"sqlite3 SELECT of the same columns, SQLite {sqlite3.sqlite_version}"
    report("P4", "catch-up read into envelopes and facts", facts, selected, unit="events/s", peer=peer, at_least=0.6)
    report("P4-envelopes", "catch-up read into envelopes", wrapped, selected, unit="events/s", peer=peer)


if __name__ == "__main__":
    main()
