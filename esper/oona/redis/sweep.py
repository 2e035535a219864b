"""Sweeping a server that has just started: its append-only file is rewritten before anything is appended to it.

A Redis that loads a file torn inside a batch (``aof-load-truncated yes``, its default) forgets the batch, as it should,
but may leave the batch's beginning in the file. What is appended next then stands behind an open transaction, and the
load after that one loses it although it was acknowledged. A rewrite makes a new file of what is in memory, so that
nothing is left of the old end. A server with ``aof-load-truncated no`` refuses to load such a file and needs no sweep.

Belongs here: when to rewrite, and waiting for it. Does not belong here: who asks for it (``session``).
"""

from __future__ import annotations

import time

from esper.errors import DurabilityTooLow, LogError, LogUnavailable
from esper.logs import get_logger
from esper.oona.redis.checks import info_fields
from esper.oona.redis.link import RedisLink

#: How long a rewrite may take; about ten million events are written in half a minute.
MOST_S = 600.0
_POLL_S = 0.02
_SLOWEST_POLL_S = 0.5


def sweep(link: RedisLink, *, most_s: float = MOST_S) -> None:
    """Return once no torn end of an earlier life is left in the server's append-only file.

    Args:
        link: Connection to the log's server.
        most_s: How long the rewrite may take.

    Raises:
        DurabilityTooLow: The server does not allow the rewrite to this user.
        LogUnavailable: The rewrite failed or took too long; nothing was appended.
    """
    (setting,) = link.run([["CONFIG", "GET", "aof-load-truncated"]])
    if setting[1:] == [b"no"] or _state(link) == "ok":
        return
    where = f"log {link.where}"
    get_logger("oona").info("rewriting the append-only file of a server that started", log=link.where)
    _begin(link, where)
    deadline, poll_s = time.monotonic() + most_s, _POLL_S
    while (state := _state(link)) != "ok":
        if state == "err":
            raise LogUnavailable(
                f"{where}: the server failed to rewrite its append-only file",
                hint="see the server's log file: a full disk, or memory too short for a fork (overcommit_memory)",
            )
        if time.monotonic() > deadline:
            raise LogUnavailable(
                f"{where}: the rewrite of the append-only file did not end within {most_s:g} s",
                hint="see `redis-cli INFO persistence`; with `aof-load-truncated no` in redis.conf none is needed",
            )
        time.sleep(poll_s)
        poll_s = min(2 * poll_s, _SLOWEST_POLL_S)


def _begin(link: RedisLink, where: str) -> None:
    try:
        link.run([["BGREWRITEAOF"]])
    except LogError as error:
        text = str(error.__cause__ or error)
        if "in progress" in text:
            return
        if "NOPERM" in text or "no permissions" in text.lower():
            raise DurabilityTooLow(
                f"{where}: this user may not run BGREWRITEAOF, which a server that has just started needs",
                hint="grant it (`ACL SETUSER NAME +bgrewriteaof`), or set `aof-load-truncated no` in redis.conf",
            ) from error
        raise


def _state(link: RedisLink) -> str:
    """Return how the last rewrite since the server started ended: ``ok`` or ``err``; empty if none has ended yet."""
    (reply,) = link.run([["INFO", "persistence"]])
    state = info_fields(reply)
    if state.get("aof_rewrite_in_progress") != "0" or state.get("aof_rewrite_scheduled") != "0":
        return ""
    if state.get("aof_last_rewrite_time_sec") == "-1":
        return ""
    return state.get("aof_last_bgrewrite_status", "")
