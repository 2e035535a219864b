"""P4 on Redis: catch-up read of the log into typed structs, against redis-py's raw XREAD of the same entries.

Both sides read the whole log in pages of 2,000. Ours checks the sum and the hash of every record, makes an envelope
with its digest, and decodes the payload into the fact's struct; the raw side leaves what redis-py gives.
"""

from __future__ import annotations

import time
from importlib.metadata import version

import redis

from benchmarks.measure import interleave, report, scratch
from benchmarks.p2_append import BATCH, STREAM, events
from benchmarks.redis_server import redis_server
from esper.events import fact_of
from esper.oona import iterate
from esper.oona.redis.log import RedisLog

EVENTS = 30_000
PAGE = 2000


def main() -> None:
    """Measure and print."""
    with (
        scratch() as folder,
        redis_server(folder / "redis") as port,
        RedisLog(f"redis://127.0.0.1:{port}/0") as log,
        redis.Redis(port=port) as client,
    ):
        for first in range(0, EVENTS, BATCH):
            log.append(events(first + 1), stream=STREAM, expected=first)
        (topic,) = {one.topic for one in log.read(limit=BATCH)}
        key = f"esper:{topic}"

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

        def lean() -> float:
            start = time.perf_counter()
            count = 0
            while page := log.read_recorded(count, PAGE):
                count += len(page)
            return count / (time.perf_counter() - start)

        def raw() -> float:
            start = time.perf_counter()
            count, after = 0, b"0-0"
            while reply := client.xread({key: after}, count=PAGE):
                entries = next(iter(reply.values()))[0] if isinstance(reply, dict) else reply[0][1]
                count += len(entries)
                after = entries[-1][0]
            return count / (time.perf_counter() - start)

        facts, wrapped, recorded, plain = interleave([typed, envelopes, lean, raw])
        server = client.info("server")["redis_version"]
    peer = f"redis-py {version('redis')} XREAD, Redis {server}"
    what = "catch-up read from Redis into envelopes"
    report("P4r", f"{what} and facts", facts, plain, unit="events/s", peer=peer, at_least=0.6)
    report("P4r-envelopes", what, wrapped, plain, unit="events/s", peer=peer)
    report("P4r-recorded", "the same for projections", recorded, plain, unit="events/s", peer=peer)


if __name__ == "__main__":
    main()
