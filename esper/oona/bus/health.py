"""What a log's server says about itself, for health checks.

Belongs here: turning that into plain fields. Does not belong here: refusing a server at the start (``redis.checks``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from esper.oona.consuming.lanes import Cursor
from esper.oona.consuming.parking import Parking
from esper.oona.consuming.slots import committed_slots, known_groups
from esper.oona.port import EventLog

if TYPE_CHECKING:
    from esper.oona.redis.link import RedisLink

#: Part of the server's memory bound at which it is no longer healthy.
_MEMORY_FRAC = 0.95


def log_health(log: EventLog) -> dict[str, Any]:
    """Return what a log's server says of itself, and how far each group is.

    Raises:
        LogError: The log cannot be reached or read.
    """
    found: dict[str, Any] = {"head_position": log.end(), "fsynced": log.fsynced, **server_health(log)}
    found["groups"] = {name: group_health(log, name) for name in known_groups(log.cells)}
    troubles = found["troubles"] = _troubles(found)
    found["status"] = "unhealthy" if troubles else "healthy"
    return found


def group_health(log: EventLog, group: str) -> dict[str, Any]:
    """Return how far a group is behind, by what its members committed, and how much it has parked."""
    cursors = [
        msgspec.msgpack.decode(value, type=Cursor) for value in committed_slots(log.cells, group).values() if value
    ]
    parking = Parking(log, group)
    parking.refresh()
    position = min((cursor.position for cursor in cursors), default=None)
    return {
        "position": position,
        "lag_events": None if position is None else log.end() - position,
        "parked": parking.parked,
    }


def server_health(log: EventLog) -> dict[str, Any]:
    """Return what a log's server says of itself; nothing for a log that has none."""
    # Only a log on Redis has a link; redis-py is not imported for the others.
    link: RedisLink | None = getattr(log, "link", None)
    if link is None:
        return {}
    from esper.oona.redis.checks import info_fields

    (reply,) = link.run([["INFO", "server", "clients", "memory", "persistence", "replication"]])
    info = info_fields(reply)
    return {
        "redis_version": info.get("redis_version"),
        "used_memory": info.get("used_memory_human"),
        "connected_clients": int(info.get("connected_clients", 0)),
        "used_memory_bytes": int(info.get("used_memory", 0)),
        "memory_limit_bytes": int(info.get("maxmemory", 0)),
        "role": info.get("role"),
        "connected_replicas": int(info.get("connected_slaves", 0)),
        "persistence": {
            "append_only": info.get("aof_enabled") == "1",
            "last_write": info.get("aof_last_write_status"),
            "last_rewrite": info.get("aof_last_bgrewrite_status"),
            "rewriting": info.get("aof_rewrite_in_progress") == "1",
            "delayed_fsyncs": int(info.get("aof_delayed_fsync", 0)),
            "file_bytes": int(info.get("aof_current_size", 0)),
        },
    }


def _troubles(found: dict[str, Any]) -> list[str]:
    persistence, limit = found.get("persistence"), found.get("memory_limit_bytes")
    troubles = []
    if persistence is not None:
        if not persistence["append_only"]:
            troubles.append("the append-only file is off")
        if persistence["last_write"] != "ok":
            troubles.append("the last write to the append-only file failed")
        if found["role"] != "master":
            troubles.append("the server is a replica")
    if limit and found["used_memory_bytes"] > _MEMORY_FRAC * limit:
        troubles.append(f"{found['used_memory_bytes']} of {limit} bytes of memory are in use")
    return troubles
