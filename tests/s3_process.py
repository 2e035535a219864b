"""A server of the S3 protocol in a process of its own, told over stdin to misbehave: one JSON object a line, each
answered by one on stdout. The protocol is moto's; what S3 does and moto does not is added: the SHA-256 that a put
brings is checked, and of two conditional puts at one moment one wins.

``python s3_process.py PORT``; it ends when stdin does.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import socket
import sys
import threading
from collections.abc import Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import BaseWSGIServer, make_server

_ERROR = '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{code}</Message></Error>'
_HOST = "127.0.0.1"


class Faulty:
    """Passes requests to moto, and does to them what it was told."""

    def __init__(self) -> None:
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.writing = threading.Lock()
        self.faults: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.down = False
        self.released = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length)
        environ["wsgi.input"] = io.BytesIO(body)
        if self.down:
            drop(environ)
        self.requests.append(f"{method} {environ['PATH_INFO']}")
        fault = self.take(method, environ["QUERY_STRING"])
        kind = fault.get("kind")
        if kind == "status":
            start_response(f"{fault['status']} {fault['code']}", [("Content-Type", "application/xml")])
            return [b"" if method == "HEAD" else _ERROR.format(code=fault["code"]).encode()]
        if kind == "hang":
            self.released.wait(60)
            drop(environ)
        if kind == "garble":
            body = bytes([body[0] ^ 1]) + body[1:]
            environ["wsgi.input"] = io.BytesIO(body)
        stated = environ.get("HTTP_X_AMZ_CHECKSUM_SHA256")
        if method == "PUT" and stated and base64.b64encode(hashlib.sha256(body).digest()).decode() != stated:
            start_response("400 Bad Request", [("Content-Type", "application/xml")])
            return [_ERROR.format(code="BadDigest").encode()]
        status, headers, answer = self.ask(environ)
        if kind == "eat":
            drop(environ)
        if kind == "flip":
            answer = bytes([answer[0] ^ 1]) + answer[1:]
        start_response(status, headers)
        if kind == "cut":
            return cut(answer, environ)
        return [answer]

    def ask(self, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        told: list[Any] = []

        def start(status: str, headers: list[tuple[str, str]], *_: object) -> None:
            told[:] = [status, headers]

        with self.writing:
            answer = b"".join(self.moto(environ, start))
        return told[0], told[1], answer

    def take(self, method: str, query: str) -> dict[str, Any]:
        for fault in self.faults:
            if fault.get("method", method) == method and fault.get("query", "") in query:
                fault["times"] -= 1
                if not fault["times"]:
                    self.faults.remove(fault)
                return fault
        return {}


def drop(environ: dict[str, Any]) -> None:
    """Break the connection off."""
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionError("dropped on purpose")


def cut(answer: bytes, environ: dict[str, Any]) -> Iterable[bytes]:
    yield answer[: len(answer) // 2]
    drop(environ)


class Control:
    """Does what stdin says."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.app = Faulty()
        self.server: BaseWSGIServer | None = None
        self.up()

    def up(self) -> None:
        if self.server is not None:
            return
        self.app.down = False
        self.server = make_server(_HOST, self.port, self.app, threaded=True, request_handler=MotoRequestHandler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections, and break off those that are there."""
        self.app.down = True
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def fault(self, **fault: Any) -> None:
        self.app.faults.append(fault)

    def heal(self) -> None:
        self.app.faults.clear()
        self.app.released.set()
        self.app.released = threading.Event()

    def requests(self) -> list[str]:
        """Return the requests since this was last asked."""
        made, self.app.requests = self.app.requests, []
        return made

    def bucket(self, name: str) -> None:
        backend().create_bucket(name, "us-east-1")

    def fill(self, bucket: str, prefix: str, count: int) -> None:
        for number in range(count):
            backend().put_object(bucket, f"{prefix}{number:06d}", b"x")

    def damage(self, bucket: str, key: str, how: str) -> None:
        """Change an object at rest; what the server has noted of it, its checksum among that, stays as it is."""
        found = backend().get_object(bucket, key)
        value = found.value
        found.value = value[:-1] if how == "cut" else bytes([value[0] ^ 1]) + value[1:]


def backend() -> Any:
    return s3_backends["123456789012"]["aws"]


def main() -> None:
    control = Control(int(sys.argv[1]))
    print(json.dumps(None), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(getattr(control, order.pop("do"))(**order)), flush=True)


if __name__ == "__main__":
    main()
