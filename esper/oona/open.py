"""Opening a log by URL."""

from __future__ import annotations

from esper.clock import Clock
from esper.errors import ConfigError
from esper.oona.memory import MemoryLog
from esper.oona.numbered import NumberedLog
from esper.oona.sqlite import SqliteLog


def open_log(url: str, *, create: bool = True, clock: Clock | None = None) -> NumberedLog:
    """Open the log a URL names.

    Args:
        url: ``sqlite:///relative/path``, ``sqlite:////absolute/path`` or ``memory://`` (a new, empty log).
        create: Create a file that is not there.
        clock: Gives recorded_at; the machine's clock when left out.

    Raises:
        ConfigError: The URL has another form.
        NotFound: The file is not there and ``create`` is false.
        LogError: As the adapter raises.
    """
    if url == "memory://":
        return MemoryLog(clock)
    scheme, separator, path = url.partition(":///")
    if scheme != "sqlite" or not separator or not path:
        raise ConfigError(
            f"{url!r} does not name a log",
            hint="use sqlite:///relative/path, sqlite:////absolute/path or memory://",
        )
    return SqliteLog(path, create=create, clock=clock)
