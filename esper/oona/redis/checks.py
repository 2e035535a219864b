"""What a server must be set to before a log is kept on it; each refusal says what to change and how.

Belongs here: the checks at start-up. Does not belong here: what each receipt says of its own batch (``log``).
"""

from __future__ import annotations

from typing import Any

from esper.errors import DurabilityTooLow, LogUnavailable
from esper.oona.redis.link import RedisLink
from esper.oona.redis.pools import Node

_OLDEST = (7, 0)
_NAMES = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory-policy")
_WHY = {
    "appendonly": "without it nothing is kept when the server ends",
    "no-appendfsync-on-rewrite": "while the file is rewritten, facts would be acknowledged before they are on disk",
    "maxmemory-policy": "any other policy deletes parts of the log when memory is short",
    "cluster-replica-no-failover": "a failover nobody checks can lose acknowledged facts; use `esper log promote`",
}


def check_server(link: RedisLink) -> None:
    """Check that the log's server keeps what it acknowledges.

    Raises:
        DurabilityTooLow: A setting is not as the log needs it.
        LogUnavailable: The server is too old, or is no master.
        LogError: The server does not say how it is set.
    """
    where = f"log {link.where}"
    roles = replication_of(link)
    if roles.get("role") != "master":
        raise LogUnavailable(
            f"{where}: this server is a replica of {roles.get('master_host')}:{roles.get('master_port')}",
            hint="name the master; `esper log promote` makes a replica one",
        )
    check_settings(link)
    _check_replicas(where, roles, link.address.replicas)


def check_settings(link: RedisLink) -> None:
    """Check version and settings of a log's server, master or replica; raises as ``check_server`` does."""
    where = f"log {link.where}"
    server, persistence, settings = link.run([["INFO", "server"], ["INFO", "persistence"], ["CONFIG", "GET", *_NAMES]])
    check_version(info_fields(server).get("redis_version", "0"), where)
    values = _settings(settings)
    _require(where, link.node, values, "appendonly", "yes")
    _check_fsync(where, link.node, values.get("appendfsync", ""), link.address.durability)
    _require(where, link.node, values, "no-appendfsync-on-rewrite", "no")
    _require(where, link.node, values, "maxmemory-policy", "noeviction")
    state = info_fields(persistence).get("aof_last_write_status", "")
    if state != "ok":
        raise LogUnavailable(
            f"{where}: the server failed to write its append-only file ({state})",
            hint="see the server's log file; its disk may be full",
        )
    if link.cluster:
        for node in [link.node] if link.replica else link.shard():
            reply = link.ask(node, ["CONFIG", "GET", "cluster-replica-no-failover"])
            _require(where, node, _settings(reply), "cluster-replica-no-failover", "yes")


def replication_of(link: RedisLink) -> dict[str, str]:
    """Return what a log's server says of itself and its replicas."""
    (reply,) = link.run([["INFO", "replication"]])
    return info_fields(reply)


def check_version(text: str, where: str) -> None:
    """Check that a server is new enough.

    Args:
        text: What it calls its version, e.g. ``7.0.15``.
        where: Which log.

    Raises:
        LogUnavailable: It is too old.
    """
    parts = tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
    if parts < _OLDEST:
        raise LogUnavailable(
            f"{where}: the server is Redis {text}; a log needs Functions, which came with 7.0",
            hint="run Redis 7.0 or newer",
        )


def _check_fsync(where: str, node: Node, value: str, durability: str) -> None:
    if value in {"always", durability}:
        return
    more = "" if value != "everysec" else ", or add durability=everysec to the URL to accept the loss of about a second"
    raise DurabilityTooLow(
        f"{where}: appendfsync is {value} on {node[0]}:{node[1]}, and the log is opened for {durability}",
        hint=f"set it: `redis-cli -p {node[1]} CONFIG SET appendfsync {durability}` and in redis.conf{more}",
    )


def _require(where: str, node: Node, values: dict[str, str], name: str, wanted: str) -> None:
    value = values.get(name, "unknown")
    if value != wanted:
        raise DurabilityTooLow(
            f"{where}: {name} is {value} on {node[0]}:{node[1]}, not {wanted}: {_WHY[name]}",
            hint=f"set it: `redis-cli -p {node[1]} CONFIG SET {name} {wanted}` and in redis.conf",
        )


def _check_replicas(where: str, roles: dict[str, str], wanted: int) -> None:
    online = sum("state=online" in value for name, value in roles.items() if name.startswith("slave"))
    if online < wanted:
        raise DurabilityTooLow(
            f"{where}: {online} of the {wanted} replicas it is opened for are connected",
            hint="start them (`redis-cli -p PORT REPLICAOF HOST PORT`), or name fewer in the URL",
        )


def info_fields(reply: Any) -> dict[str, str]:
    """Return the fields of a reply of INFO."""
    lines = reply.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


def _settings(reply: Any) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in zip(reply[::2], reply[1::2], strict=True)}
