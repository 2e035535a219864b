"""P1: durable batched append to the log on Redis, against redis-py's pipelined raw XADD to the same server.

Both sides hand over 1,000 facts at a time and return when they are forced to disk (``appendfsync always``). Ours takes
typed events, encodes and hashes them, and the server checks ids and versions, numbers them and keeps its indexes. The
raw side sends (a) one field of the same payload, encoded beforehand, or (b) the five fields of the first client of
Esper: event_id, sender_id, timestamp, trace_id and the payload as JSON.
"""

from __future__ import annotations

import json
import time
from importlib.metadata import version

import redis
from msgspec.structs import asdict, replace

from benchmarks.measure import interleave, report, scratch
from benchmarks.p2_append import BATCH, RUN_ID, step
from benchmarks.redis_server import redis_server
from esper.events import Event, encode_fact
from esper.ids import derived_id
from esper.oona.redis.log import RedisLog

BATCHES = 5
#: A run's id long enough for a payload of 200 bytes.
LONG_ID = RUN_ID + "-" + 38 * "0"
STREAM = f"run/{LONG_ID}"
DIGEST = "30313233343536373839616263646566"


def events(first: int) -> list[Event]:
    """Return a batch of events, the first with this ordinal."""
    return [
        Event(
            fact=replace(step(ordinal), run_id=LONG_ID),
            event_id=derived_id("run", LONG_ID, 1, ordinal),
            sender_id="tolaria",
            trace_id="0af7651916cd43dd8448eb211c80319c",
        )
        for ordinal in range(first, first + BATCH)
    ]


class Ours:
    """Appends batches to a log that grows from repeat to repeat."""

    def __init__(self, port: int) -> None:
        """Make the log."""
        self.log = RedisLog(f"redis://127.0.0.1:{port}/0")
        self.version = 0

    def append(self) -> float:
        """Return events per second of a few batches."""
        taken = 0.0
        for _ in range(BATCHES):
            batch = events(self.version + 1)
            start = time.perf_counter()
            receipt = self.log.append(batch, stream=STREAM, expected=self.version)
            taken += time.perf_counter() - start
            assert receipt.fsynced
            self.version = receipt.version
        return BATCH * BATCHES / taken


class Raw:
    """Adds entries to streams with ids of the server's clock."""

    def __init__(self, port: int) -> None:
        """Connect as redis-py does by default."""
        self.client = redis.Redis(port=port)
        self.ordinal = 0

    def one_field(self) -> float:
        """Return entries per second of a few pipelines, payloads encoded beforehand."""
        taken = 0.0
        for _ in range(BATCHES):
            payloads = [encode_fact(one.fact) for one in events(self.ordinal + 1)]
            self.ordinal += BATCH
            start = time.perf_counter()
            pipeline = self.client.pipeline(transaction=False)
            for payload in payloads:
                pipeline.xadd("raw:one", {"payload": payload})
            pipeline.execute()
            taken += time.perf_counter() - start
        return BATCH * BATCHES / taken

    def five_fields(self) -> float:
        """Return entries per second of a few pipelines, payloads made JSON on the way."""
        taken = 0.0
        for _ in range(BATCHES):
            messages = [
                (
                    one.event_id.hex(),
                    one.trace_id,
                    {**asdict(one.fact), "samples_digest": DIGEST},
                )
                for one in events(self.ordinal + 1)
            ]
            self.ordinal += BATCH
            start = time.perf_counter()
            pipeline = self.client.pipeline(transaction=False)
            for event_id, trace_id, payload in messages:
                pipeline.xadd(
                    "raw:five",
                    {
                        "event_id": event_id,
                        "sender_id": "tolaria",
                        "timestamp": "2025-01-01T00:00:00.000000+00:00",
                        "trace_id": trace_id,
                        "payload": json.dumps(payload),
                    },
                )
            pipeline.execute()
            taken += time.perf_counter() - start
        return BATCH * BATCHES / taken


def main() -> None:
    """Measure and print."""
    with scratch() as folder, redis_server(folder / "redis") as port:
        ours, raw = Ours(port), Raw(port)
        appended, one, five = interleave([ours.append, raw.one_field, raw.five_fields], repeats=11)
        server = raw.client.info("server")["redis_version"]
        ours.log.close()
        raw.client.close()
    payload_bytes = len(encode_fact(events(1)[0].fact))
    what = f"durable append of typed events to Redis, batch {BATCH}, payload {payload_bytes} bytes, appendfsync always"
    peer = f"redis-py {version('redis')} pipeline of XADD, Redis {server}"
    report("P1a", what, appended, one, unit="events/s", peer=f"{peer}, one field", at_least=1.1)
    report("P1b", what, appended, five, unit="events/s", peer=f"{peer}, five fields", at_least=1.5)


if __name__ == "__main__":
    main()
