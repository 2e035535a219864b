"""A TCP proxy on the loopback that counts the bytes of both directions and cuts a connection after so many."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable
from typing import Self

_CHUNK_BYTES = 1 << 16


class Wire:
    """Passes on what clients and one server say to each other, of any protocol.

    Attributes:
        sent_bytes: What clients sent to the server so far.
        received_bytes: What the server sent to clients so far.
        cuts: Connections that were cut so far.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.sent_bytes = self.received_bytes = self.cuts = 0
        self._lock = threading.Lock()
        self._cut_at: dict[str, int] = {}
        self._waiting: dict[str, tuple[int, threading.Event]] = {}
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._start(self._accept)

    def cut_after(self, sent_bytes: int | None = None, received_bytes: int | None = None) -> None:
        """Cut the connection that carries so many more bytes in one direction, once."""
        with self._lock:
            if sent_bytes is not None:
                self._cut_at["sent_bytes"] = self.sent_bytes + sent_bytes
            if received_bytes is not None:
                self._cut_at["received_bytes"] = self.received_bytes + received_bytes

    def wait_for(self, timeout_s: float, *, sent_bytes: int = 0, received_bytes: int = 0) -> bool:
        """Wait until so many bytes in all went in one direction; tell whether they did."""
        direction, wanted = ("sent_bytes", sent_bytes) if sent_bytes else ("received_bytes", received_bytes)
        reached = threading.Event()
        with self._lock:
            if getattr(self, direction) >= wanted:
                return True
            self._waiting[direction] = (wanted, reached)
        return reached.wait(timeout_s)

    def close(self) -> None:
        """Cut everything and stop."""
        self._closed = True
        _shut([self._listener])
        self._listener.close()
        with self._lock:
            ends = list(self._ends)
        _shut(ends)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._ends += [client, server]
            self._start(self._pass_on, client, server)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        back = threading.Thread(target=self._pump, args=(server, client, "received_bytes"), daemon=True)
        back.start()
        self._pump(client, server, "sent_bytes")
        back.join()
        with self._lock:
            self._ends = [end for end in self._ends if end not in (client, server)]
        client.close()
        server.close()

    def _pump(self, source: socket.socket, target: socket.socket, direction: str) -> None:
        try:
            while data := source.recv(_CHUNK_BYTES):
                if self._count(direction, len(data)):
                    return
                target.sendall(data)
        except OSError:
            pass
        finally:
            _shut([source, target])

    def _count(self, direction: str, length: int) -> bool:
        """Count bytes; tell whether their connection is to be cut in front of them."""
        with self._lock:
            total = getattr(self, direction) + length
            setattr(self, direction, total)
            wanted, reached = self._waiting.get(direction, (total + 1, threading.Event()))
            if total >= wanted:
                reached.set()
            if total < self._cut_at.get(direction, total + 1):
                return False
            del self._cut_at[direction]
            self.cuts += 1
            return True


def _shut(ends: Iterable[socket.socket]) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
