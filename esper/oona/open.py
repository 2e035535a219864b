"""Opening a log by URL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from esper.clock import Clock
from esper.errors import ConfigError
from esper.oona.memory import MemoryLog
from esper.oona.port import EventLog
from esper.oona.sqlite.log import SqliteLog
from esper.redact import mask_text

if TYPE_CHECKING:
    from esper.artifacts.signing import VerifyKey
    from esper.settings import Settings

#: Beginnings of the URLs of logs on a server.
_SERVERS = ("redis://", "rediss://")
_FORMS = "sqlite:///relative/path, sqlite:////absolute/path, redis://host:port/db?namespace=main or memory://"


def open_log(
    url: str,
    *,
    create: bool = True,
    clock: Clock | None = None,
    archive: str | None = None,
    trusted: Sequence[VerifyKey] = (),
) -> EventLog:
    """Open the log a URL names.

    Args:
        url: ``sqlite:///relative/path``, ``sqlite:////absolute/path``, ``redis://host:port/db?namespace=main`` (see
            ``RedisLog``) or ``memory://`` (a new, empty log).
        create: Create a log that is not there.
        clock: Gives recorded_at; the machine's clock when left out.
        archive: URL of the archive that has what was trimmed from a log on a server.
        trusted: Keys whose checkpoints in the archive are believed.

    Raises:
        ConfigError: The URL has another form.
        NotFound: The log is not there and ``create`` is false.
        LogError: As the adapter raises.
    """
    if url == "memory://":
        return MemoryLog(clock)
    scheme, separator, path = url.partition(":///")
    if scheme == "sqlite" and separator and path:
        return SqliteLog(path, create=create, clock=clock)
    if url.startswith(_SERVERS):
        return _open_redis(url, create, clock, archive, trusted)
    raise ConfigError(f"{mask_text(url)!r} does not name a log", hint=f"use {_FORMS}")


def open_configured(settings: Settings, *, create: bool = True) -> EventLog:
    """Open the log that settings name; what was trimmed of one on a server is read in the archive they name.

    Args:
        settings: Settings of the process.
        create: Create a log that is not there.

    Raises:
        ConfigError: The log's URL has another form, or a trusted key cannot be read.
        NotFound: The log is not there and ``create`` is false.
        LogError: As the adapter raises.
    """
    if not settings.log.startswith(_SERVERS):
        return open_log(settings.log, create=create)
    from esper.artifacts.signing import load_known

    trusted = load_known(settings.trusted_keys, settings.signing_key)
    return open_log(settings.log, create=create, archive=settings.archive, trusted=trusted)


def namespace_of(url: str) -> str:
    """Return the name of the log a URL names; ``main`` unless it says another.

    Raises:
        ConfigError: It is a URL of a server, and has another form.
    """
    if not url.startswith(_SERVERS):
        return "main"
    from esper.oona.redis.url import parse_url

    return parse_url(url).namespace


def _open_redis(
    url: str, create: bool, clock: Clock | None, archive: str | None, trusted: Sequence[VerifyKey]
) -> EventLog:
    from esper.oona.redis.log import RedisLog

    if archive is None:
        return RedisLog(url, create=create, clock=clock)
    from esper.oona.sealing.archive import Archive
    from esper.oona.sealing.sealed import ArchiveHistory

    sealed = ArchiveHistory(Archive(archive, trusted, namespace=namespace_of(url)))
    try:
        return RedisLog(url, create=create, clock=clock, sealed=sealed)
    except BaseException:
        sealed.close()
        raise
