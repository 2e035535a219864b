"""A redis-server of a benchmark's own, set as a log needs it, on a free port of the loopback."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

SETTINGS = {
    "appendonly": "yes",
    "appendfsync": "always",
    "aof-load-truncated": "no",
    "maxmemory-policy": "noeviction",
    "save": "",
}


@contextmanager
def redis_server(folder: Path) -> Iterator[int]:
    """Run a server on files in a folder, and give its port."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    words = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    for name, value in SETTINGS.items():
        words += [f"--{name}", value]
    with (folder / "server.log").open("wb") as out, subprocess.Popen(words, stdout=out, stderr=out) as process:
        try:
            await_answer(port)
            yield port
        finally:
            process.terminate()
            process.wait(20)


def await_answer(port: int) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + 20
    while True:
        try:
            with redis.Redis(port=port, protocol=2) as client:
                client.ping()
                return
        except redis.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
