"""What the errors of a Redis server mean for a log.

Belongs here: turning them into errors of ``esper.errors``, with what to do. Does not belong here: deciding whether to
try again (``link``).
"""

from __future__ import annotations

from redis import exceptions as redis_errors

from esper.errors import LogDamaged, LogError, LogFull, LogUnavailable
from esper.oona.chain import damaged
from esper.redact import mask_text

#: Errors after which the same command may go well: the server starts, or a slot moves.
PASSING = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.TryAgainError,
    redis_errors.ClusterDownError,
    redis_errors.AskError,
)
#: Errors of the family above that do not pass by themselves.
LASTING = (redis_errors.AuthenticationError, redis_errors.AuthorizationError, redis_errors.MaxConnectionsError)

_ACCESS = "check user and password in the log's URL, and the user's rules (docs: run the log on Redis)"
_BY_WORD: dict[str, tuple[type[LogError], str, str]] = {
    "OOM": (
        LogFull,
        "its memory is full",
        "seal and trim history, or raise maxmemory; what was acknowledged is kept",
    ),
    "READONLY": (LogUnavailable, "it is a replica", "name the master; `esper log promote` makes a replica one"),
    "MASTERDOWN": (LogUnavailable, "it is a replica without its master", "name the master"),
    "NOREPLICAS": (
        LogUnavailable,
        "too few replicas are connected",
        "start its replicas, or lower min-replicas-to-write",
    ),
    "LOADING": (LogUnavailable, "it is still loading its data", "wait until it is done, then start again"),
    "BUSY": (LogUnavailable, "a script keeps it busy", "wait, or see `redis-cli FUNCTION STATS`"),
    "NOAUTH": (LogUnavailable, "it asks for a password", _ACCESS),
    "WRONGPASS": (LogUnavailable, "it refuses user or password", _ACCESS),
    "NOPERM": (LogUnavailable, "this user may not do that", _ACCESS),
    "CLUSTERDOWN": (LogUnavailable, "the cluster does not serve every slot", "see `redis-cli --cluster check`"),
    "TRYAGAIN": (LogUnavailable, "the log's slot is being moved", "start again when it has moved"),
    "ASK": (LogUnavailable, "the log's slot is being moved", "start again when it has moved"),
    "MOVED": (LogUnavailable, "the log's slot has moved", "start again"),
    "CROSSSLOT": (LogUnavailable, "the log's keys are in several slots", "report this: keys of one log share a slot"),
}
_CLASSES: tuple[tuple[type[Exception], str], ...] = (
    (redis_errors.OutOfMemoryError, "OOM"),
    (redis_errors.ReadOnlyError, "READONLY"),
    (redis_errors.MasterDownError, "MASTERDOWN"),
    (redis_errors.BusyLoadingError, "LOADING"),
    (redis_errors.NoPermissionError, "NOPERM"),
    (redis_errors.AuthenticationError, "WRONGPASS"),
    (redis_errors.ClusterDownError, "CLUSTERDOWN"),
    (redis_errors.TryAgainError, "TRYAGAIN"),
    (redis_errors.MovedError, "MOVED"),
    (redis_errors.AskError, "ASK"),
    (redis_errors.ClusterCrossSlotError, "CROSSSLOT"),
)


def is_passing(error: Exception) -> bool:
    """Tell whether the same command may go well a moment later."""
    return isinstance(error, PASSING) and not isinstance(error, LASTING)


def named(error: redis_errors.RedisError, where: str) -> LogError:
    """Return the log's error for an error of Redis.

    Args:
        error: What redis-py raised.
        where: The log's URL, masked.
    """
    text = mask_text(str(error))
    word = next((word for cls, word in _CLASSES if isinstance(error, cls)), text.split(" ", 1)[0])
    if word in _BY_WORD:
        cls, what, hint = _BY_WORD[word]
        return cls(f"log {where}: {what} ({text})", hint=hint)
    if word == "MISCONF":
        return _misconf(text, where)
    if isinstance(error, redis_errors.ConnectionError | redis_errors.TimeoutError):
        hint = "check that redis-server runs there and that the network lets it through"
        return LogUnavailable(f"log {where} cannot be reached: {text}", hint=hint)
    if word == "WRONGTYPE" or "user_function" in text or "@user_script" in text:
        return _broken(text, where)
    return LogError(f"log {where}: the server answers: {text}")


def _misconf(text: str, where: str) -> LogError:
    if "no space left" in text.lower():
        return LogFull(f"log {where}: its disk is full ({text})")
    return LogUnavailable(
        f"log {where}: the server takes no writes since it failed to write to its disk ({text})",
        hint="see the server's log file; writes are taken again once its disk works",
    )


def _broken(text: str, where: str) -> LogDamaged:
    return damaged(0, f"a key does not hold what a log keeps there ({text})", where=f"log {where}")
