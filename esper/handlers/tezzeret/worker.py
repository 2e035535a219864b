"""The worker as a program of one's own runs it: ``await TezzeretWorker(config).run()``.

Belongs here: the configuration by keys, opening what they name, stopping, and numbers. Does not belong here: what a
worker does (``handler``), or the process that ``esper handler start tezzeret`` is (``esper.handlers.start``).
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from esper.artifacts import open_store
from esper.artifacts.signing import SigningKey
from esper.blueprints.bench.workbench import Limits
from esper.blueprints.kernels.shelf import KernelShelf
from esper.errors import ConfigError, HandlerError, LogUnavailable, UnknownSetting
from esper.handlers.runtime.health import Health
from esper.handlers.runtime.life import Life
from esper.handlers.runtime.members import Membership, default_member
from esper.handlers.runtime.presence import Presence
from esper.handlers.runtime.worker import Worker
from esper.handlers.tezzeret.forms import FORMS
from esper.handlers.tezzeret.handler import NAME, Tally, Tezzeret
from esper.ids import new_trace_id
from esper.logs import get_logger
from esper.oona.collecting.collect import claim_store
from esper.oona.consuming.consumer import Consumer
from esper.oona.open import open_configured
from esper.redact import mask_text

if TYPE_CHECKING:
    from esper.artifacts.content import ContentStore
    from esper.oona.port import EventLog
    from esper.settings import Settings

#: After how much silence a worker counts as dead, and how long what is in hand may take after a stop.
_TTL_S, _DRAIN_S = 10.0, 30.0
_LEAST_INTERVAL_S, _MOST_JOBS = 0.01, 256
_KEYS = ("urza_url", "s3_bucket", "polling_interval", "max_concurrent_jobs")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class TezzeretWorker:
    """Compiles submitted blueprints until it is stopped.

    Log, artifact store, keys and limits are those of the settings (``ESPER_*`` variables, ``esper.toml``). Any number
    of workers can run, in one process and in many.

    Attributes:
        config: The configuration as it was given.
        urza_url: Urza that a worker out of the log's reach would work through; None for none.
        s3_bucket: Bucket that kernels go to; None for the store of the settings.
        polling_interval: Most seconds of one wait for events; an event ends it.
        max_concurrent_jobs: How many kernels are compiled at the same time.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        """Check a configuration; nothing is opened yet.

        Args:
            config: Any of the keys that are attributes here; those that are left out have their defaults, which are
                None, None, 5 and 2.

        Raises:
            UnknownSetting: A key is not known.
            ConfigError: A value cannot be used.
        """
        self.config = dict(config or {})
        _refuse_unknown(self.config)
        self.urza_url = _url(self.config.get("urza_url"))
        self.s3_bucket = _bucket(self.config.get("s3_bucket"))
        self.polling_interval = _seconds(self.config.get("polling_interval", 5))
        self.max_concurrent_jobs = _count(self.config.get("max_concurrent_jobs", 2))
        self._tally = Tally()
        #: What ends the present run, and the loop that must be asked to do so.
        self._current: tuple[Life, asyncio.AbstractEventLoop] | None = None

    @property
    def running(self) -> bool:
        """Whether it runs and was not asked to stop."""
        current = self._current
        return current is not None and not current[0].stopping.is_set()

    @property
    def active_jobs(self) -> int:
        """How many kernels are being compiled now."""
        return self._tally.active

    @property
    def total_compiled(self) -> int:
        """How many kernels this worker made."""
        return self._tally.compiled

    @property
    def total_failed(self) -> int:
        """How many jobs of this worker failed because of their blueprint."""
        return self._tally.failed

    def get_stats(self) -> dict[str, Any]:
        """Return what the worker did and does, as plain data."""
        done = self.total_compiled + self.total_failed
        return {
            "running": self.running,
            "active_jobs": self.active_jobs,
            "total_compiled": self.total_compiled,
            "total_failed": self.total_failed,
            "success_rate": self.total_compiled / max(done, 1),
            "max_concurrent_jobs": self.max_concurrent_jobs,
        }

    def stop(self) -> None:
        """Ask the worker to stop: it finishes what it has begun, and ``run`` returns.

        Any thread and any signal handler may call it. A worker that does not run is not affected.
        """
        current = self._current
        if current is not None:
            life, loop = current
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has stopped
                loop.call_soon_threadsafe(life.stop, "stop() was called")

    async def run(self) -> None:
        """Compile until ``stop`` is called; a log or a store that goes away is waited for.

        Raises:
            HandlerError: It runs already.
            ConfigError: Settings cannot be used, or the log cannot be reached and ``urza_url`` is given: working
                through Urza is not built yet.
            LogUnavailable: The log cannot be reached.
        """
        if self._current is not None:
            raise HandlerError("this worker runs already", hint="make another TezzeretWorker to run two at once")
        member = default_member()
        health = Health(NAME, member, hang_s=_TTL_S)
        life = Life(health, drain_s=_DRAIN_S)
        self._current = (life, asyncio.get_running_loop())
        try:
            async with contextlib.AsyncExitStack() as opened:
                settings = await asyncio.to_thread(_settings)
                log = await asyncio.to_thread(self._open_log, settings)
                opened.push_async_callback(asyncio.to_thread, log.close)
                store = await asyncio.to_thread(self._open_store, settings)
                opened.push_async_callback(asyncio.to_thread, store.close)
                await asyncio.to_thread(claim_store, store, log, settings.log)
                presence = Presence(Membership(log.cells, NAME, member, ttl_s=_TTL_S), health)
                consumers: list[Consumer] = []
                make = self._maker(settings, log, store, member, consumers)
                try:
                    await presence.work(make, life)
                finally:
                    for consumer in consumers:
                        # Closed already, unless something went wrong; its leases must not be renewed any more.
                        with contextlib.suppress(OSError):
                            await asyncio.to_thread(consumer.close)
        finally:
            self._current = None

    def _maker(
        self, settings: Settings, log: EventLog, store: ContentStore, member: str, consumers: list[Consumer]
    ) -> Callable[[], Worker]:
        def make() -> Worker:
            shelf = KernelShelf.open(store, settings.signing_key, settings.trusted_keys, _tell_new_key)
            consumer = Consumer(
                log,
                group=NAME,
                member=member,
                topics=Tezzeret.topics,
                ttl_s=_TTL_S,
                store=store,
                sender_id=f"handler:{NAME}",
                trace_id=new_trace_id(),
            )
            consumers.append(consumer)
            handler = Tezzeret(
                log,
                lambda _: shelf,
                member=member,
                jobs=self.max_concurrent_jobs,
                limits=Limits(wall_s=settings.work_wall_s, memory_bytes=settings.work_memory_bytes),
                pipelines=FORMS[settings.work_forms],
                tally=self._tally,
            )
            return Worker(
                consumer,
                handler,
                log=log,
                store=store,
                concurrency=self.max_concurrent_jobs,
                idle_s=self.polling_interval,
            )

        return make

    def _open_log(self, settings: Settings) -> EventLog:
        try:
            return open_configured(settings)
        except LogUnavailable as error:
            if self.urza_url is None:
                raise
            raise ConfigError(
                f"the log {mask_text(settings.log)} cannot be reached, and this version of Esper has no client that "
                f"works through Urza at {mask_text(self.urza_url)} instead",
                hint="start the worker where the log can be reached (ESPER_LOG), and leave urza_url out",
                name="urza_url",
            ) from error

    def _open_store(self, settings: Settings) -> ContentStore:
        return open_store(settings.artifacts if self.s3_bucket is None else f"s3://{self.s3_bucket}")


def _settings() -> Settings:
    # Late: pydantic-settings takes longer to import than everything else here.
    from esper.settings import load_settings

    return load_settings()


def _tell_new_key(key: SigningKey) -> None:
    told = "made a signing key; give its public half to whoever is to trust this worker's kernels"
    get_logger(NAME).warning(told, key_id=key.public.key_id)


def _refuse_unknown(config: Mapping[str, Any]) -> None:
    for key in config:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            raise UnknownSetting(
                f"a Tezzeret worker has no setting {key!r}",
                hint=f"did you mean {near[0]!r}?" if near else f"its settings are {', '.join(_KEYS)}",
                name=str(key),
                source="config",
                nearest=near[0] if near else None,
            )


def _url(value: object) -> str | None:
    if value is None:
        return None
    parts = urlsplit(value) if isinstance(value, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"urza_url is no URL: {mask_text(str(value))!r}", hint="e.g. http://localhost:8000")
    return str(value)


def _bucket(value: object) -> str | None:
    if value is not None and (not isinstance(value, str) or not _BUCKET.fullmatch(value)):
        raise ConfigError(
            f"s3_bucket is no name of a bucket: {mask_text(str(value))!r}",
            hint="3 to 63 small letters, digits, dots and dashes; more than a name goes into ESPER_ARTIFACTS",
        )
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _LEAST_INTERVAL_S <= value < math.inf:
        raise ConfigError(f"polling_interval is {value!r}; it is a number of seconds from {_LEAST_INTERVAL_S} on")
    return float(value)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_JOBS:
        raise ConfigError(f"max_concurrent_jobs is {value!r}; it is a whole number from 1 to {_MOST_JOBS}")
    return value
