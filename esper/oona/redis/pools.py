"""Connections to the servers of a log: commands go out in one write, replies come back as they are.

redis-py packs, parses and pools. It never retries by itself here, since only calls that are safe to repeat may be.
Belongs here: one exchange with one server. Does not belong here: which one, and what is tried again (``link``).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, TypeAlias

from redis import exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool, SSLConnection
from redis.retry import Retry

from esper.errors import LogUnavailable
from esper.oona.redis.url import RedisAddress

Command: TypeAlias = Sequence[Any]
#: Host and port of a server.
Node: TypeAlias = tuple[str, int]

_CONNECT_S = 5.0
_READ_BYTES = 1 << 18


class RedisPools:
    """A pool of connections for each server, shared by threads."""

    def __init__(self, address: RedisAddress, timeout_s: float) -> None:
        """Connect to nothing yet.

        Args:
            address: Where the log is, and who asks.
            timeout_s: How long one reply may take.
        """
        self._address = address
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._closed = False
        self._pools: dict[Node, ConnectionPool] = {}

    @property
    def nodes(self) -> list[Node]:
        """Return the servers that were ever asked."""
        return list(self._pools)

    def exchange(self, node: Node, commands: Sequence[Command], timeout_s: float | None = None) -> list[Any]:
        """Send commands to a server in one write and return their replies; an error reply stands in its place.

        Args:
            node: Which server.
            commands: What to send, in order.
            timeout_s: How long one reply may take; the pools' own time when left out.

        Raises:
            RedisError: No reply came, and nobody knows what was done.
            LogUnavailable: The pools are closed.
        """
        pool = self._pool(node)
        connection: Any = pool.get_connection()  # redis-py leaves half of these methods untyped
        wait: dict[str, Any] = {} if timeout_s is None else {"timeout": timeout_s}
        replies: list[Any] = []
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            for _ in commands:
                try:
                    replies.append(connection.read_response(**wait))
                except redis_errors.ResponseError as error:
                    replies.append(error)
        except BaseException as error:
            # Replies that were not read must never be taken for those of the next commands.
            connection.disconnect()
            if self._closed and isinstance(error, Exception):
                # Another thread closed the connection while this one was reading; how that shows is chance.
                raise self._is_closed() from error
            raise
        finally:
            pool.release(connection)
        return replies

    def one(self, node: Node, command: Command) -> Any:
        """Send one command and return its reply; an error reply is raised."""
        (reply,) = self.exchange(node, [command])
        if isinstance(reply, redis_errors.RedisError):
            raise reply
        return reply

    def close(self) -> None:
        """Close all connections, those in use too; closing twice is fine."""
        with self._lock:
            self._closed = True
            pools = list(self._pools.values())
        for pool in pools:
            pool.disconnect()

    def _pool(self, node: Node) -> ConnectionPool:
        with self._lock:
            if self._closed:
                raise self._is_closed()
            pool = self._pools.get(node)
            if pool is None:
                pool = self._pools[node] = self._make_pool(node)
            return pool

    def _is_closed(self) -> LogUnavailable:
        return LogUnavailable(f"log {self._address.text} is closed")

    def _make_pool(self, node: Node) -> ConnectionPool:
        address = self._address
        return ConnectionPool(
            connection_class=SSLConnection if address.tls else Connection,
            host=node[0],
            port=node[1],
            db=address.db,
            username=address.username,
            password=address.password,
            socket_timeout=self._timeout_s,
            socket_connect_timeout=min(self._timeout_s, _CONNECT_S),
            socket_keepalive=True,
            socket_read_size=_READ_BYTES,
            protocol=2,
            driver_info=None,
            retry=Retry(NoBackoff(), 0),
        )
