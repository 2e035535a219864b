"""Real servers for tests: Redis alone, Redis Cluster with three masters, and S3, on free ports of the loopback."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

#: What a log demands of its server.
DURABLE = {
    "appendonly": "yes",
    "appendfsync": "always",
    "aof-load-truncated": "no",
    "maxmemory-policy": "noeviction",
    "save": "",
}


def free_port() -> int:
    """Return a port nobody listens on now.

    It is below those the system gives to outgoing connections, so that nobody takes it while a killed server is down,
    and low enough that a cluster's bus port exists too and is no other server's port.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 20_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class RedisServer:
    """One redis-server process that can be stopped, killed and started again on the same files."""

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, str] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        durable: bool = True,
    ) -> None:
        if shutil.which("redis-server") is None:
            raise RuntimeError("redis-server is not installed; `make dev` installs it")
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.options = {**(DURABLE if durable else {}), **(options or {})}
        self.environment = dict(environment or {})
        self.process: subprocess.Popen[bytes] | None = None
        #: Whether the last start found the end of the append-only file torn.
        self.found_torn = False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def aof(self) -> Path:
        """The append-only file that is written to now."""
        return sorted((self.folder / "appendonlydir").glob("*.incr.aof"))[-1]

    def start(self, *, wait: bool = True, mend: bool = True) -> RedisServer:
        """Start, and wait until it answers; a torn end of its file is cut off first, as the manual says.

        Args:
            wait: Whether to wait.
            mend: Whether to cut off an end that was torn by a kill, which has no acknowledged fact.
        """
        self._launch()
        if wait:
            try:
                self.wait()
                self.found_torn = "short read while loading the AOF" in self._told()
            except RuntimeError as error:
                if not mend or "Unexpected end of file" not in str(error):
                    raise
                self.mend()
                self._launch()
                self.wait()
                self.found_torn = True
        return self

    def _told(self) -> str:
        """Return what the server wrote since it was started last."""
        return (self.folder / "server.log").read_text().rpartition("Redis is starting")[2]

    def mend(self) -> None:
        """Cut the append-only file where it can no longer be read, in front of the transaction it is in."""
        (manifest,) = (self.folder / "appendonlydir").glob("*.manifest")
        subprocess.run(["redis-check-aof", "--fix", str(manifest)], input=b"y\n", check=True, capture_output=True)

    def _launch(self) -> None:
        words = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        for name, value in self.options.items():
            words += [f"--{name}", value]
        with (self.folder / "server.log").open("ab") as out:
            self.process = subprocess.Popen(words, stdout=out, stderr=out, env={**os.environ, **self.environment})

    def wait(self, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            # Without retries of its own: those of redis-py take seconds to find that the server has ended.
            client = redis.Redis(port=self.port, protocol=2, retry=Retry(NoBackoff(), 0))
            with contextlib.suppress(redis.ConnectionError, redis.BusyLoadingError), client:
                client.ping()
                return
            if self.process is None or self.process.poll() is not None:
                raise RuntimeError(f"redis-server ended: {self._told()[-2000:]}")
            if time.monotonic() > deadline:
                raise TimeoutError("redis-server does not answer")
            time.sleep(0.02)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, protocol=2)

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
            self.process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class RedisCluster:
    """Three masters on the loopback with all slots covered."""

    def __init__(self, folder: Path) -> None:
        options = {
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": "2000",
            "cluster-replica-no-failover": "yes",
        }
        self.masters = [RedisServer(folder / f"node{number}", options) for number in range(3)]

    @property
    def url(self) -> str:
        return self.masters[0].url

    def start(self) -> RedisCluster:
        for master in self.masters:
            master.start()
        addresses = [f"127.0.0.1:{master.port}" for master in self.masters]
        subprocess.run(
            ["redis-cli", "--cluster", "create", *addresses, "--cluster-yes"],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=60,
        )
        deadline = time.monotonic() + 30
        for master in self.masters:
            with master.client() as client:
                while client.execute_command("CLUSTER INFO").get("cluster_state") != "ok":
                    if time.monotonic() > deadline:
                        raise TimeoutError("the cluster does not come up")
                    time.sleep(0.05)
        return self

    def stop(self) -> None:
        for master in self.masters:
            master.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


#: What a client of S3 needs in its environment; none of it is true anywhere else.
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST",
    "AWS_SECRET_ACCESS_KEY": "a-secret-of-no-account",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}


class S3Server:
    """A server of the S3 protocol in a process of its own (see ``s3_process``) that can be told to misbehave."""

    def __init__(self) -> None:
        self.port = free_port()
        self.buckets = 0
        self.process: subprocess.Popen[str] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def url(self, bucket: str, prefix: str = "") -> str:
        return f"s3://{bucket}/{prefix}?endpoint_url={self.endpoint}"

    def start(self) -> S3Server:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("s3_process.py")), str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **S3_ENVIRONMENT},
        )
        self._answer()
        return self

    def new_bucket(self) -> str:
        """Make a bucket that no other test uses."""
        self.buckets += 1
        name = f"bucket-{self.buckets}"
        self._order("bucket", name=name)
        return name

    def client(self) -> Any:
        import boto3.session

        return boto3.session.Session().client("s3", endpoint_url=self.endpoint, region_name="us-east-1")

    def down(self) -> None:
        """Refuse connections from now on; what is stored stays."""
        self._order("down")

    def up(self) -> None:
        self._order("up")

    def fault(self, kind: str, *, times: int = 1, **more: object) -> None:
        """Do something to the next requests.

        Args:
            kind: ``status`` (with ``status`` and ``code``), ``hang``, ``eat`` (do it, lose the answer), ``garble``
                (change a byte on the way in), ``flip`` and ``cut`` (change or break off the answer).
            times: To how many requests; -1 for all until ``heal``.
            more: ``method`` and ``query`` (a part of it) to choose requests, and what the kind takes.
        """
        self._order("fault", kind=kind, times=times, **more)

    def heal(self) -> None:
        self._order("heal")

    def requests(self) -> list[str]:
        """Return the requests since this was last asked, e.g. ``PUT /bucket-1/name``."""
        made: list[str] = self._order("requests")
        return made

    def fill(self, bucket: str, prefix: str, count: int) -> None:
        """Make objects with numbered names."""
        self._order("fill", bucket=bucket, prefix=prefix, count=count)

    def damage(self, bucket: str, key: str, how: str) -> None:
        """Change an object where it lies: ``flip`` a bit or ``cut`` the last byte."""
        self._order("damage", bucket=bucket, key=key, how=how)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _order(self, do: str, **more: object) -> Any:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the S3 server ended")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
