"""From a handler's name to a process that runs it.

Belongs here: putting handler, consumer, pages and membership together. Does not belong here: what each of them does
(``runtime``), or which handlers there are (``catalog``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from esper.handlers.catalog import SERVICE, SHIPPED, Setup, load_handler
from esper.handlers.runtime.daemon import Daemon
from esper.handlers.runtime.health import Health, Pages
from esper.handlers.runtime.members import Membership
from esper.handlers.runtime.presence import Work
from esper.handlers.runtime.service import ServiceLoop
from esper.handlers.runtime.worker import Worker
from esper.metrics import LOG_MEMORY_BYTES, LOG_MEMORY_LIMIT_BYTES
from esper.oona.bus.health import server_health
from esper.oona.consuming.consumer import END, Consumer

if TYPE_CHECKING:
    from esper.artifacts import ArtifactStore
    from esper.handlers.runtime.handler import Handler
    from esper.oona.port import EventLog
    from esper.settings import Settings


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a handler's process runs."""

    #: Name of this process among the handler's.
    member: str
    #: Where the pages are served; port 0 takes one that is free.
    host: str = "127.0.0.1"
    port: int = 0
    #: Streams whose events are handled at the same time.
    concurrency: int = 4
    #: How often an event is tried before it is parked.
    attempts: int = 5
    #: Whether a new group begins at the end of the log, and not at its beginning.
    from_end: bool = False
    #: Whether the process ends when nothing is left to do.
    until_idle: bool = False
    #: How long what is in hand may take after the process was asked to stop.
    drain_s: float = 30.0
    #: How long a lease lasts without renewal, and how long the loop may stand still.
    ttl_s: float = 10.0


class Prepared(msgspec.Struct, frozen=True):
    """A process that is ready to run."""

    handler: str
    member: str
    #: Address of the pages.
    url: str
    daemon: Daemon


def prepare(
    name: str,
    options: Options,
    *,
    settings: Settings,
    open_log: Callable[[], EventLog],
    open_store: Callable[[], ArtifactStore],
    trace_id: str,
) -> Prepared:
    """Put a handler's process together.

    Args:
        name: Name of a shipped handler, or ``package.module:attribute``.
        options: How it runs.
        settings: Where things are.
        open_log: Opens the log.
        open_store: Opens the artifact store.
        trace_id: Trace of what the process itself says; results carry the trace of their cause.

    Raises:
        NotFound: There is no such handler.
        ConfigError: What is named is no handler, or an option cannot be used.
        HandlerError: The port is taken.
        LogUnavailable: The log cannot be reached.
    """
    shipped = SHIPPED.get(name)
    own = load_handler(name) if shipped is None else None
    called = name if own is None else own.name
    health = Health(called, options.member, hang_s=options.ttl_s)
    pages = Pages(health, host=options.host, port=options.port)
    try:
        log = open_log()
        membership = Membership(log.cells, called, options.member, ttl_s=options.ttl_s)
        store = open_store()
    except BaseException:
        pages.close()
        raise

    def make() -> Work:
        setup = Setup(
            log=log,
            store=store,
            settings=settings,
            member=options.member,
            ttl_s=options.ttl_s,
            concurrency=options.concurrency,
        )
        if shipped is not None and shipped.kind == SERVICE:
            return ServiceLoop(shipped.make(setup))
        handler: Handler = own or SHIPPED[name].make(setup)
        consumer = Consumer(
            log,
            group=handler.name,
            member=options.member,
            topics=handler.topics,
            start=END if options.from_end else 0,
            ttl_s=options.ttl_s,
            attempts=options.attempts,
            store=store,
            sender_id=f"handler:{handler.name}",
            trace_id=trace_id,
        )
        return Worker(consumer, handler, log=log, store=store, concurrency=options.concurrency)

    daemon = Daemon(
        make,
        health=health,
        pages=pages,
        membership=membership,
        refresh=lambda: _refresh(log),
        drain_s=options.drain_s,
        until_idle=options.until_idle,
    )
    return Prepared(called, options.member, pages.url, daemon)


def _refresh(log: EventLog) -> None:
    """Set the gauges of the log's server: a process that only reads would never learn them."""
    server = server_health(log)
    if server:
        LOG_MEMORY_BYTES.labels("redis").set(server["used_memory_bytes"])
        LOG_MEMORY_LIMIT_BYTES.labels("redis").set(server["memory_limit_bytes"])
