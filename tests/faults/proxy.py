"""A TCP proxy on the loopback, between a client and a Redis server, that loses what networks lose."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from faults.resp import end_of, words_of


@dataclass
class _Link:
    """One connection through the proxy."""

    client: socket.socket
    server: socket.socket
    #: For each command under way, whether its reply is to be lost.
    doomed: deque[bool] = field(default_factory=deque)

    def cut(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Passes on what clients and one server say to each other, except what a test asks it to lose.

    Attributes:
        delay_s: How long each reply is held.
        commands: Names of the commands passed on so far, in capitals.
        eaten: How many replies were lost so far.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.delay_s = 0.0
        self.commands: list[str] = []
        self.eaten = 0
        self._lock = threading.Lock()
        self._links: list[_Link] = []
        self._threads: list[threading.Thread] = []
        self._to_eat: deque[tuple[str, int]] = deque()
        self._seen: dict[str, int] = {}
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._part_after_eating = False
        self._closed = threading.Event()
        self._start(self._accept)

    def eat_reply(self, name: str, nth: int = 1) -> None:
        """Lose the reply of the nth command of a name from now on, after the server did it, and cut its connection."""
        with self._lock:
            self._to_eat.append((name.upper(), self._seen.get(name.upper(), 0) + nth))

    def part_after_eating(self) -> None:
        """Refuse new connections once a reply was lost: the client never learns what became of its command."""
        self._part_after_eating = True

    def cut(self) -> None:
        """Cut every connection; new ones are still taken."""
        with self._lock:
            links, self._links = self._links, []
        for link in links:
            link.cut()

    def part(self) -> None:
        """Cut every connection and refuse new ones, until ``join``."""
        self._refusing = True
        self.cut()

    def join(self) -> None:
        """Take connections again."""
        self._refusing = self._part_after_eating = False

    def stall(self) -> None:
        """Pass nothing on, and close nothing, until ``flow``: a partition that neither end is told of."""
        self._flowing.clear()

    def flow(self) -> None:
        """Pass on again, what was held first."""
        self._flowing.set()

    def close(self) -> None:
        """Cut everything and stop."""
        self._closed.set()
        self._flowing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._refusing:
                    raise ConnectionRefusedError
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client, server)
            with self._lock:
                self._links.append(link)
            self._start(self._pump_commands, link)
            self._start(self._pump_replies, link)

    def _pump_commands(self, link: _Link) -> None:
        self._pump(link, link.client, link.server, self._take_command)

    def _pump_replies(self, link: _Link) -> None:
        self._pump(link, link.server, link.client, self._take_reply)
        # Both pumps end once either end is shut down; the one that reads the server closes them.
        link.client.close()
        link.server.close()

    def _pump(
        self, link: _Link, source: socket.socket, target: socket.socket, take: Callable[[_Link, bytes], bool]
    ) -> None:
        buffer = bytearray()
        try:
            while data := source.recv(1 << 16):
                buffer += data
                start = 0
                while (end := end_of(buffer, start)) is not None and start < len(buffer):
                    message = bytes(buffer[start:end])
                    start = end
                    if not take(link, message):
                        return
                    self._flowing.wait()
                    target.sendall(message)
                del buffer[:start]
        except OSError:
            pass
        finally:
            link.cut()

    def _take_command(self, link: _Link, message: bytes) -> bool:
        name = words_of(message)[0].decode().upper()
        with self._lock:
            self.commands.append(name)
            seen = self._seen[name] = self._seen.get(name, 0) + 1
            doomed = (name, seen) in self._to_eat
            if doomed:
                self._to_eat.remove((name, seen))
            link.doomed.append(doomed)
        return True

    def _take_reply(self, link: _Link, message: bytes) -> bool:
        if self.delay_s:
            self._closed.wait(self.delay_s)
        if message[:1] == b">":
            return True
        with self._lock:
            doomed = link.doomed.popleft()
            self.eaten += doomed
            self._refusing |= doomed and self._part_after_eating
        return not doomed
