"""The link to the server that holds a log: retries, Functions, and the right node of a Cluster.

All keys of a log are in one slot, so all its commands go to one server: the link talks to that master alone and
follows the slot when it moves. Belongs here: getting commands answered. Does not belong here: connections
(``pools``) and what commands mean for a log.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from typing import Any

from redis import exceptions as redis_errors
from redis.crc import key_slot

from esper.errors import LogUnavailable
from esper.oona.redis.errors import is_passing, named
from esper.oona.redis.library import Library
from esper.oona.redis.pools import Command, Node, RedisPools
from esper.oona.redis.url import Keys, RedisAddress

#: How often a call is tried in all, unless it takes more than twice as long as one reply may; and the pause before the
#: second try. Each further pause is twice as long.
ATTEMPTS = 4
FIRST_PAUSE_S = 0.1
_POLL_LOADING_S = 0.1


class RedisLink:
    """Gets the commands of one log answered; shared by threads."""

    def __init__(
        self, address: RedisAddress, *, timeout_s: float = 10.0, loading_s: float = 30.0, replica: bool = False
    ) -> None:
        """Connect, wait while the server loads its data, and find the node that holds the log.

        Args:
            address: Where the log is.
            timeout_s: How long one reply may take.
            loading_s: How long to wait for a server that is loading.
            replica: Stay with the server of the address, which is a replica and only read.

        Raises:
            LogUnavailable: The server cannot be reached or refuses this user.
        """
        self.address = address
        self.where = address.text
        self._timeout_s = timeout_s
        self._jitter = random.Random()  # noqa: S311 - spreads retries, keeps no secret
        #: Whether this server is a replica that is only read.
        self.replica = replica
        self._pools = RedisPools(address, timeout_s)
        self._seed: Node = (address.host, address.port)
        #: The server the log is on.
        self.node: Node = self._seed
        self.cluster = False
        self._await_loaded(loading_s)
        (info,) = self.run([["INFO", "cluster"]])
        self.cluster = b"cluster_enabled:1" in info
        self.keys = Keys(address.namespace, cluster=self.cluster)
        if self.cluster and not replica:
            self.locate()
            self._await_loaded(loading_s)

    # --- commands

    def run(
        self,
        commands: Sequence[Command],
        *,
        library: Library | None = None,
        retry: bool = True,
        timeout_s: float | None = None,
    ) -> list[Any]:
        """Send commands to the log's server in one write and return their replies.

        Args:
            commands: What to send, in order.
            library: Library to load if the server does not know a Function.
            retry: Whether the commands may be repeated when it is not known if they were done.
            timeout_s: How long one reply may take; the link's own time when left out.

        Raises:
            LogError: What the error means for a log; all replies were read.
        """
        loaded = False
        deadline = time.monotonic() + 2 * (self._timeout_s if timeout_s is None else timeout_s)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                replies = self._exchange(self.node, commands, timeout_s)
                error = next((one for one in replies if isinstance(one, redis_errors.RedisError)), None)
                if error is None:
                    return replies
            except redis_errors.RedisError as raised:
                error = raised
            last = attempt == ATTEMPTS or time.monotonic() > deadline
            if library is not None and not loaded and _is_unknown_function(error):
                self.load(library)
                loaded = True
            elif isinstance(error, redis_errors.MovedError) and not last and not self.replica:
                self.locate()
            elif retry and is_passing(error) and not last:
                time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1) * self._jitter.uniform(0.5, 1.0))
                self._look_again()
            else:
                raise named(error, self.where) from error
        raise LogUnavailable(f"log {self.where} does not answer")

    def call(
        self,
        library: Library,
        function: str,
        keys: Sequence[str],
        args: Sequence[str | bytes | int],
        *,
        write: bool = True,
        retry: bool = True,
    ) -> Any:
        """Call one Function and return its reply; raises as ``run`` does."""
        (reply,) = self.run([fcall(library, function, keys, args, write=write)], library=library, retry=retry)
        return reply

    def _exchange(self, node: Node, commands: Sequence[Command], timeout_s: float | None = None) -> list[Any]:
        if self.replica and self.cluster:
            # A replica of a Cluster sends readers to its master unless they say that they know.
            return self._pools.exchange(node, [["READONLY"], *commands], timeout_s)[1:]
        return self._pools.exchange(node, commands, timeout_s)

    def _await_loaded(self, loading_s: float) -> None:
        deadline = time.monotonic() + loading_s
        failed = 0
        while True:
            try:
                self._exchange(self.node, [["PING"]])
            except redis_errors.BusyLoadingError as error:
                if time.monotonic() > deadline:
                    raise named(error, self.where) from error
                time.sleep(_POLL_LOADING_S)
            except redis_errors.RedisError as error:
                failed += 1
                if not self.cluster or failed == ATTEMPTS or not is_passing(error):
                    raise named(error, self.where) from error
                # The nodes of a Cluster learn of a new master one after the other.
                time.sleep(FIRST_PAUSE_S * 2**failed)
                self._look_again()
            else:
                return

    # --- Functions

    def load(self, library: Library) -> None:
        """Load a library where its code is not there already; on a Cluster on every master.

        A replica has the libraries of its master.

        Raises:
            LogError: A server refuses it.
        """
        if self.replica:
            return
        for node in self.masters():
            try:
                self._load_on(node, library)
            except redis_errors.RedisError as error:
                raise named(error, self.where) from error

    def _load_on(self, node: Node, library: Library) -> None:
        there = self._pools.one(node, ["FUNCTION", "LIST", "LIBRARYNAME", library.name, "WITHCODE"])
        if there:
            about = dict(zip(there[0][::2], there[0][1::2], strict=True))
            if about[b"library_code"] == library.code.encode():
                return
        try:
            # Under its name there is nothing, or code that somebody changed.
            self._pools.one(node, ["FUNCTION", "LOAD", *(["REPLACE"] if there else []), library.code])
        except redis_errors.ResponseError as error:
            # Another client was faster.
            if "already exists" not in str(error):
                raise

    # --- the Cluster

    def masters(self) -> list[Node]:
        """Return every master of the Cluster; the one server where there is no Cluster."""
        if not self.cluster:
            return [self.node]
        return sorted({master for _, _, master, _ in self._slots()})

    def shard(self) -> list[Node]:
        """Return the servers that hold the log's slot, the master first."""
        if not self.cluster:
            return [self.node]
        slot = key_slot(self.keys.meta.encode())
        for first, last, master, replicas in self._slots():
            if first <= slot <= last:
                return [master, *replicas]
        raise LogUnavailable(
            f"log {self.where}: no node of the cluster has slot {slot}", hint="see `redis-cli --cluster check`"
        )

    def ask(self, node: Node, command: Command) -> Any:
        """Return the reply of one server of the Cluster to one command that changes nothing.

        Raises:
            LogError: What its error means for a log.
        """
        try:
            return self._pools.one(node, command)
        except redis_errors.RedisError as error:
            raise named(error, self.where) from error

    def locate(self) -> None:
        """Find the master that holds the log's slot."""
        self.node = self.shard()[0]

    def _look_again(self) -> None:
        """After a fault, see whether another master has the slot now; without an answer the node stays."""
        if self.cluster and not self.replica:
            try:
                self.locate()
            except LogUnavailable:
                return

    def _slots(self) -> list[tuple[int, int, Node, list[Node]]]:
        error: redis_errors.RedisError | None = None
        for node in dict.fromkeys([self.node, self._seed, *self._pools.nodes]):
            try:
                return _parse_slots(self._pools.one(node, ["CLUSTER", "SLOTS"]), node)
            except redis_errors.RedisError as raised:
                error = raised
        raise named(error or redis_errors.ConnectionError("no node answers"), self.where) from error

    # --- the end

    def close(self) -> None:
        """Close all connections; closing twice is fine."""
        self._pools.close()


def fcall(
    library: Library, function: str, keys: Sequence[str], args: Iterable[str | bytes | int], *, write: bool = True
) -> Command:
    """Return the command that calls a Function.

    Args:
        library: Its library.
        function: Its name without the tag.
        keys: Every key it touches.
        args: Its other arguments.
        write: Whether it writes; one that does not may run on a full server.
    """
    return ["FCALL" if write else "FCALL_RO", library.function(function), len(keys), *keys, *args]


def _is_unknown_function(error: Exception) -> bool:
    return isinstance(error, redis_errors.ResponseError) and "Function not found" in str(error)


def _parse_slots(reply: Any, asked: Node) -> list[tuple[int, int, Node, list[Node]]]:
    def node(about: Any) -> Node:
        # A node that does not know its own name is the one that was asked.
        return (about[0].decode() if about[0] else asked[0], about[1])

    return [(one[0], one[1], node(one[2]), [node(about) for about in one[3:]]) for one in reply]
