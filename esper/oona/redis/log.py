"""The log on Redis: many machines, one order.

Appends are numbered and checked by a Function on the server, all or nothing, and forced to disk before they are
acknowledged (``appendfsync always``). Belongs here: the port's methods. Does not belong here: the server's side
(``append.lua``, ``read.lua``), bytes (``record``), the chain (``chain``), walking everything
(``verify``), or putting history in and out (``history``).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from typing import Self

from esper.clock import Clock, SystemClock
from esper.errors import SchemaError
from esper.events.envelope import Envelope, Event, Recorded
from esper.names import TopicNames
from esper.oona.batch import Draft, conflict, draft, receipt_of_retry
from esper.oona.chain import GENESIS, damaged
from esper.oona.meter import AppendMeter, MemoryMeter
from esper.oona.port import Head, LogReport, Progress, Receipt
from esper.oona.redis.cells import RedisCells
from esper.oona.redis.chain import ChainCache, Notes
from esper.oona.redis.checks import check_server, info_fields
from esper.oona.redis.history import restore, trim
from esper.oona.redis.link import RedisLink
from esper.oona.redis.reader import RedisReader
from esper.oona.redis.record import content_of
from esper.oona.redis.session import RedisSession
from esper.oona.redis.url import parse_url
from esper.oona.redis.verify import verify
from esper.oona.sealing.sealed import SealedHistory

_DURABLE = ["CONFIG", "GET", "appendonly", "appendfsync"]
#: How long an append waits for its replicas.
_REPLICAS_MS = 1000
_BLOCK_S = 0.25
_POLL_S = 0.02
#: Contents of one batch; the server holds a batch in memory three times while it appends it.
_MOST_BATCH_BYTES = 64 << 20


class RedisLog:
    """A log in Redis streams, shared by threads, processes and machines."""

    def __init__(
        self,
        url: str,
        *,
        create: bool = True,
        clock: Clock | None = None,
        sealed: SealedHistory | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        """Connect, check that the server keeps what it acknowledges, and open the log.

        Args:
            url: ``redis://[user:password@]host:port/db?namespace=main&durability=always&replicas=0``.
            create: Make the log if it is not there.
            clock: Gives recorded_at; the machine's clock when left out.
            sealed: Where history is read that was trimmed from the server; closed with the log.
            timeout_s: How long one reply may take.

        Raises:
            ConfigError: The URL has another form.
            NotFound: There is no such log and ``create`` is false.
            DurabilityTooLow: The server does not keep the durability the URL asks for.
            LogUnavailable: The server cannot be reached or used.
            LogDamaged: What is there is not a log of this format.
        """
        address = parse_url(url)
        #: Name of the log.
        self.namespace = address.namespace
        self._clock = clock or SystemClock()
        self._sealed = sealed
        self._replicas = address.replicas
        #: Whether an append is on stable storage when it returns; each receipt says it of its own batch.
        self.fsynced = address.durability == "always"
        self._meter = AppendMeter("redis")
        self._memory = MemoryMeter("redis")
        self.link = RedisLink(address, timeout_s=timeout_s)
        try:
            check_server(self.link)
            self.session = RedisSession(self.link, create=create)
        except BaseException:
            self.link.close()
            raise
        self.where = f"log {self.link.where}"
        self._keys = self.link.keys
        self._timeout_s = timeout_s
        self._reader = RedisReader(self.session, sealed)
        self._chain = ChainCache(Notes(self.session), self._reader.between, self.where)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- appending

    def append(self, batch: Sequence[Event], *, stream: str, expected: int) -> Receipt:
        """Append a batch of facts to one stream, all or none; see ``EventLog.append``."""
        with self._meter.measured():
            receipt = self._append(draft(batch, stream), stream, expected)
        self._meter.appended(len(batch), fsynced=receipt.fsynced)
        return receipt

    def _append(self, drafts: list[Draft], stream: str, expected: int) -> Receipt:
        contents = [content_of(item, stream) for item in drafts]
        joined = b"".join(contents)
        if len(joined) > _MOST_BATCH_BYTES:
            raise SchemaError(
                f"a batch for {stream} has {len(joined)} bytes; the log takes {_MOST_BATCH_BYTES} at once",
                hint="append it in several batches",
            )
        names = list(dict.fromkeys(item.topic for item in drafts))
        number = {name: place for place, name in enumerate(names, 1)}
        keys = self._keys
        arguments = (
            "esper_append",
            [keys.ids, keys.versions, keys.topics, keys.bases, keys.index(stream), *map(keys.topic, names)],
            [
                stream,
                expected,
                self._clock.now_us(),
                names,
                list(map(len, contents)),
                [number[item.topic] for item in drafts],
            ],
            [b"".join([item.event.event_id for item in drafts]), joined],
        )
        # Before and after: whoever changes the setting meanwhile, the receipt promises no more than was kept.
        wait = [["WAIT", self._replicas, _REPLICAS_MS]] if self._replicas else []
        memory = [["INFO", "memory"]] if self._memory.due() else []
        outcome = b"anew"
        while outcome == b"anew":
            append = self.session.command(*arguments, write=True)
            before, reply, after, *more = self.session.run([_DURABLE, append, _DURABLE, *wait, *memory])
            outcome, _, *rest = self.session.checked(reply)
        fsynced = _is_durable(before) and _is_durable(after)
        replicas = more[0] if wait else 0
        if memory:
            about = info_fields(more[-1])
            self._memory.measured(int(about["used_memory"]), int(about["maxmemory"]))
        if outcome == b"conflict":
            raise conflict(stream, expected, rest[0])
        self.session.saw(rest[0])
        if outcome == b"known":
            found = self._by_id(drafts, [int(position) for position in rest[1]])
            earlier = receipt_of_retry(drafts, found, fsynced=fsynced, replicas=replicas)
            if earlier is None:
                raise damaged(0, "an id stands in the log's index of ids, but its record does not", self.where)
            return earlier
        if outcome == b"topics":
            raise SchemaError(f"the log has {rest[0]} topics, and takes no more")
        position, version = rest
        self.session.knows(position, drafts[-1].event.event_id)
        return Receipt(position - len(drafts) + 1, position, version, fsynced, replicas)

    def _by_id(self, drafts: Sequence[Draft], positions: Sequence[int]) -> dict[bytes, Envelope]:
        at = self._reader.at(sorted({one for one in positions if one}))
        found: dict[bytes, Envelope] = {}
        for item, position in zip(drafts, positions, strict=True):
            if position:
                envelope = at.get(position)
                if envelope is None or envelope.event_id != item.event.event_id:
                    reason = f"the index of ids says that {item.event.event_id.hex()} stands there, and it does not"
                    raise damaged(position, reason, self.where)
                found[envelope.event_id] = envelope
        return found

    # --- reading

    def read(
        self,
        after: int = 0,
        limit: int = 1000,
        *,
        topics: Collection[str] | None = None,
        until: int | None = None,
    ) -> list[Envelope]:
        """Return up to ``limit`` records with position > ``after``; see ``EventLog.read``."""
        return self._reader.read(after, limit, topics, until)

    def read_recorded(self, after: int, limit: int, *, until: int | None = None) -> list[Recorded]:
        """Return what projections need of up to ``limit`` records; see ``EventLog.read_recorded``."""
        return self._reader.read_recorded(after, limit, until)

    def read_stream(self, stream: str, after: int = 0, limit: int = 1000) -> list[Envelope]:
        """Return up to ``limit`` records of a stream with version > ``after``, in order."""
        return self._reader.read_stream(stream, after, limit)

    def stream_version(self, stream: str) -> int:
        """Return the version of a stream; 0 if it has no fact."""
        tail, version = self.session.run([self.session.command("esper_tail", [], []), self._hget_version(stream)])
        self.session.tail_of(self.session.checked(tail))
        return int(version or 0)

    def _hget_version(self, stream: str) -> list[str]:
        return ["HGET", self._keys.versions, stream]

    def streams(self, prefix: str = "") -> list[str]:
        """Return the names of all streams that begin with a prefix, sorted."""
        tail, names = self.session.run([self.session.command("esper_tail", [], []), ["HKEYS", self._keys.versions]])
        self.session.tail_of(self.session.checked(tail))
        return sorted(name for raw in names if (name := raw.decode()).startswith(prefix))

    # --- the end and the chain

    def end(self) -> int:
        """Return the position of the last record."""
        return self.session.tail().position

    def head(self) -> Head:
        """Return position and chain value of the last record; what is not noted yet is read and computed."""
        tail = self.session.tail()
        return Head(tail.position, self._chain.at(tail.position, tail.instance, tail.base))

    def chain_at(self, position: int) -> bytes | None:
        """Return the chain value at a position (zeros at 0), or None past the end."""
        if position == 0:
            return GENESIS
        tail = self.session.tail()
        if not 0 < position <= tail.position:
            return None
        return self._chain.at(position, tail.instance, tail.base)

    def wait(self, after: int, timeout_s: float) -> bool:
        """Wait until the log has a record past ``after``; tell whether it has."""
        deadline = time.monotonic() + timeout_s
        foreign = False
        while self.end() <= after:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            # A topic nobody knew before is noticed after a block; facts of the others end it at once.
            block_s = min(left_s, _BLOCK_S)
            if foreign:
                time.sleep(min(left_s, _POLL_S))
            else:
                foreign = self._block(after, block_s) and self.end() <= after
        return True

    def _block(self, after: int, block_s: float) -> bool:
        """Wait for an entry past a position in any topic; tell whether there is one."""
        names = sorted({*self.session.topics, *TopicNames})
        keys = [self._keys.topic(name) for name in names]
        milliseconds = max(int(block_s * 1000), 1)
        command = ["XREAD", "COUNT", 1, "BLOCK", milliseconds, "STREAMS", *keys, *[f"{after}-0"] * len(keys)]
        (reply,) = self.link.run([command], timeout_s=block_s + self._timeout_s)
        return reply is not None

    # --- the whole log

    @property
    def cells(self) -> RedisCells:
        """Return the cells that handlers of this log coordinate with, in the hash ``@cells``."""
        return RedisCells(self.link)

    def verify(self, progress: Progress | None = None) -> LogReport:
        """Walk the whole log and check it, sealed history included; see ``EventLog.verify``."""
        return verify(self.session, self._reader, progress)

    def restore(self, records: Iterable[Envelope]) -> int:
        """Copy records of another log to the end of this one; see ``EventLog.restore``."""
        return restore(self.session, self.head(), records)

    def trim(self, through: int) -> int:
        """Delete records that are sealed from the server; they are read from sealed history from now on.

        Args:
            through: Last position to delete.

        Returns:
            How many records were deleted.

        Raises:
            HistoryUnsealed: Sealed history does not reach so far, or is another one.
        """
        return trim(self.session, self._reader, self.chain_at, through)

    def close(self) -> None:
        """Release the log; closing twice is fine."""
        self.link.close()
        if self._sealed is not None:
            self._sealed.close()


def _is_durable(reply: Sequence[bytes]) -> bool:
    values = dict(zip(reply[::2], reply[1::2], strict=True))
    return values.get(b"appendonly") == b"yes" and values.get(b"appendfsync") == b"always"
