"""The sealer: a service that seals history before too much of it is unsealed.

What is sealed cannot be rewritten unnoticed; the sealing lag is what still could. Belongs here: when to seal, and that
one process does. Does not belong here: sealing (``esper.oona.sealing.sealer``).
"""

from __future__ import annotations

import asyncio
import contextlib

from esper.artifacts.signing import SigningKey, load_trusted
from esper.errors import LeaseLost
from esper.handlers.runtime.service import Sole, lag_after
from esper.ids import sha256, short
from esper.metrics import HANDLER_EVENTS, LOG_UNSEALED_EVENTS
from esper.oona.consuming.consumer import Lag
from esper.oona.consuming.lease import Lease
from esper.oona.open import namespace_of
from esper.oona.port import EventLog
from esper.oona.sealing.archive import Archive
from esper.oona.sealing.sealer import seal
from esper.redact import mask_text
from esper.settings import Settings

#: How often it is looked whether sealing is due.
_LOOK_S = 0.5


class SealerService:
    """Keeps the number and the age of unsealed events within bounds."""

    name = "sealer"

    def __init__(self, log: EventLog, settings: Settings, *, member: str, ttl_s: float) -> None:
        """Read the key and find out how far the log is sealed.

        Args:
            log: The log.
            settings: Where archive and keys are, and the bounds.
            member: Name of this process.
            ttl_s: Seconds after which a silent sealer of the same archive counts as dead.

        Raises:
            NotFound: There is no signing key; a daemon makes none, because nobody would trust it.
            ConfigError: A key or the archive's URL cannot be used.
            ProofFailed: The archive is one of another log.
        """
        self._log = log
        self._key = SigningKey.load(settings.signing_key)
        self._most_events, self._most_s = settings.seal_events, settings.seal_seconds
        trusted = list(dict.fromkeys([*load_trusted(settings.trusted_keys), self._key.public]))
        self._archive = Archive(settings.archive, trusted, namespace=namespace_of(settings.log))
        newest = self._archive.newest()
        self._through = 0 if newest is None else newest.size
        place = short(sha256(mask_text(settings.archive).encode()), 16)
        self._sole = Sole(Lease(log.cells, f"sealer/{place}", member, ttl_s=ttl_s))

    async def step(self, stopping: asyncio.Event) -> Lag:
        """Seal if that is due, or wait a moment."""
        lag = await asyncio.to_thread(self.lag)
        due = lag.events >= self._most_events or (lag.events > 0 and lag.seconds >= self._most_s)
        if await self._sole.held() and due:
            async with self._sole.kept():
                await asyncio.to_thread(self._seal, stopping)
            return await asyncio.to_thread(self.lag)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), _LOOK_S)
        return lag

    def lag(self) -> Lag:
        """Return what is not sealed yet."""
        lag = lag_after(self._log, self._through)
        LOG_UNSEALED_EVENTS.set(lag.events)
        return lag

    def close(self) -> None:
        """Let another sealer go on."""
        self._archive.close()
        self._sole.release()

    def _seal(self, stopping: asyncio.Event) -> None:
        def segment_done(_done: int, _total: int) -> None:
            # What was written so far is named by no checkpoint, and is written again under the same names.
            if not self._sole.valid:
                raise LeaseLost("another sealer seals this log now", name=self.name, owner="")
            if stopping.is_set():
                raise _Stopped

        with contextlib.suppress(_Stopped):
            report = seal(self._log, self._archive, self._key, progress=segment_done)
            self._through = report.sealed_before + report.events
            HANDLER_EVENTS.labels(self.name, "handled").inc(report.events)


class _Stopped(Exception):
    """Leaves sealing between two segments; never leaves this module."""
