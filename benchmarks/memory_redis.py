"""Memory a log takes on Redis: bytes per event while it is hot, and what is left of an event that was trimmed.

No ratio and no bar: one JSON line says what the server's own count (``used_memory``) grew by, and how the keys share
it. Events are the steps of runs with a payload of about 160 bytes, so most of it is the record itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import redis

from benchmarks.measure import scratch
from benchmarks.p2_append import BATCH, STREAM, events
from benchmarks.redis_server import redis_server
from esper.artifacts.signing import SigningKey
from esper.events import encode_fact
from esper.oona.redis.log import RedisLog
from esper.oona.sealing.archive import Archive
from esper.oona.sealing.sealed import ArchiveHistory
from esper.oona.sealing.sealer import seal

EVENTS = 100_000


def main() -> None:
    """Measure and print."""
    with scratch() as folder, redis_server(folder / "redis") as port, redis.Redis(port=port, protocol=2) as client:
        key = SigningKey.create(folder / "key.pem")
        archive = Archive(f"file:///{Path(folder).resolve()}/archive", [key.public])
        with RedisLog(f"redis://127.0.0.1:{port}/0", sealed=ArchiveHistory(archive)) as log:
            empty = used(client)
            for first in range(0, EVENTS, BATCH):
                log.append(events(first + 1), stream=STREAM, expected=first)
            hot = used(client)
            shares = {name: usage(client, name) for name in ("training.steps", "@ids", f"@stream:{STREAM}")}
            seal(log, archive, key)
            log.trim(EVENTS)
            trimmed = used(client)
        server = client.info("server")["redis_version"]
    print(
        json.dumps(
            {
                "measure": "memory",
                "what": f"memory of {EVENTS} events on Redis {server}",
                "payload_bytes": len(encode_fact(events(1)[0].fact)),
                "hot_bytes_per_event": round((hot - empty) / EVENTS, 1),
                "of_which": {name: round(size / EVENTS, 1) for name, size in shares.items()},
                "trimmed_bytes_per_event": round((trimmed - empty) / EVENTS, 1),
                "bar": None,
            }
        ),
        flush=True,
    )


def used(client: redis.Redis) -> int:
    """Return the bytes the server has allocated."""
    return int(client.info("memory")["used_memory"])


def usage(client: redis.Redis, name: str) -> int:
    """Return the bytes one key takes, counted over all of its elements."""
    return int(client.memory_usage(f"esper:{name}", samples=0) or 0)


if __name__ == "__main__":
    main()
