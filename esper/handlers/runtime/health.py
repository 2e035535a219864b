"""The pages that machines watch a process by: ``/livez``, ``/readyz`` and ``/metrics``.

Belongs here: what each page answers, and the server. Does not belong here: what the numbers are (``esper.metrics``).

The server has a thread and an event loop of its own, so that it can still answer when the loop it watches hangs.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from esper.errors import ConfigError, HandlerError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

#: How often the watched loop says that it turns.
TURN_S = 0.25
_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 5.0


class Health:
    """How a process is: written by its loop, read by the server's thread."""

    def __init__(
        self, handler: str, member: str, *, hang_s: float = 10.0, timer: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin as starting.

        Args:
            handler: Name of the handler.
            member: Name of this process among the handler's.
            hang_s: Seconds without a turn after which the loop counts as hanging.
            timer: Seconds from any origin, never going back.
        """
        self._about = {"handler": handler, "member": member}
        self._hang_s = hang_s
        self._timer = timer
        self._turned_at_s = timer()
        #: Why no work can be done now; None where it can.
        self.trouble: str | None = "starting"

    def turn(self) -> None:
        """Note that the loop turns."""
        self._turned_at_s = self._timer()

    def live(self) -> tuple[int, dict[str, object]]:
        """Return status and answer of ``/livez``: whether the loop turns."""
        still_s = self._timer() - self._turned_at_s
        if still_s > self._hang_s:
            return 503, {**self._about, "live": False, "reason": f"the loop has not turned for {still_s:.1f} s"}
        return 200, {**self._about, "live": True, "reason": None}

    def ready(self) -> tuple[int, dict[str, object]]:
        """Return status and answer of ``/readyz``: whether work is done now, and why not."""
        status, answer = self.live()
        reason = answer["reason"] if status != 200 else self.trouble
        return 200 if reason is None else 503, {**self._about, "ready": reason is None, "reason": reason}


class Pages:
    """Serves the pages of one process."""

    def __init__(self, health: Health, *, host: str = "127.0.0.1", port: int = 0) -> None:
        """Take the address; nothing is served yet.

        Args:
            health: What is told.
            host: Name or address to listen on.
            port: Port to listen on; 0 for one that is free.

        Raises:
            HandlerError: The port is taken or may not be used.
            ConfigError: The host is none of this machine's.
        """
        self._health = health
        self._socket = _bound(host, port)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Serve from a thread of its own; returns when requests are answered.

        Raises:
            HandlerError: The server does not come up.
        """
        import uvicorn

        config = uvicorn.Config(
            _application(self._health),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            loop="asyncio",
            http="h11",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        self._stop = lambda: setattr(server, "should_exit", True)
        self._thread = threading.Thread(target=server.run, args=([self._socket],), name="pages", daemon=True)
        self._thread.start()
        until_s = time.monotonic() + _START_TIMEOUT_S
        while not server.started:
            if not self._thread.is_alive() or time.monotonic() > until_s:
                raise HandlerError(f"the pages at {self.url} cannot be served")
            time.sleep(0.005)

    def close(self) -> None:
        """Stop serving and give the port back."""
        self._stop()
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT_S)
        self._socket.close()


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"{host!r} is no address to listen on: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        # At once, so that a second process cannot bind it too.
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"{host!r} is no address of this machine") from error
        raise HandlerError(
            f"port {port} of {host} cannot be listened on: {error.strerror}",
            hint="give another --port; 0 takes one that is free",
            host=host,
            port=port,
        ) from error
    listener.setblocking(False)
    return listener


def _application(health: Health) -> Starlette:
    from prometheus_client import REGISTRY
    from prometheus_client.exposition import choose_encoder
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    async def livez(_: Request) -> Response:
        status, answer = health.live()
        return JSONResponse(answer, status)

    async def readyz(_: Request) -> Response:
        status, answer = health.ready()
        return JSONResponse(answer, status)

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(REGISTRY), headers={"content-type": content_type})

    return Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)])
