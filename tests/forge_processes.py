"""Tezzeret and Urabrask as real processes of the real command line, for tests that start, kill and count."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from esper.blueprints.forging.history import BlueprintHistory, histories
from esper.blueprints.forging.jobs import toolchain
from esper.blueprints.forging.submission import Author, submit_sound
from esper.blueprints.library import load_library
from esper.events import Fact, fact_of
from esper.events.kernel import CompilationFailed, CompilationLeased, CompilationRequested, KernelCompiled
from esper.oona.port import EventLog, iterate

ROOT = Path(__file__).parents[1]
ADA = Author("ada", "operator:ada", "b" * 32)


class Member:
    """One process of a handler."""

    def __init__(self, process: subprocess.Popen[str], name: str, url: str) -> None:
        self.process = process
        self.name = name
        self.url = url

    def kill(self) -> None:
        """kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class Crew:
    """Handlers' processes on one log, with one state folder."""

    def __init__(self, folder: Path, log_url: str, settings: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "ESPER_HOME": str(folder),
            "ESPER_LOG": log_url,
            **(settings or {}),
        }
        self._stack = ExitStack()

    def start(self, *handlers: str, ttl_s: float = 2.0) -> list[Member]:
        """Start a process of each handler named, all at the same time."""
        return [self._ready(process) for process in [self._launch(name, ttl_s) for name in handlers]]

    def _launch(self, handler: str, ttl_s: float) -> subprocess.Popen[str]:
        words = ["handler", "start", handler, "--json", "--ttl-seconds", str(ttl_s), "--concurrency", "1"]
        with (self.folder / "stderr").open("a") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "esper", *words],
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._stack.callback(_end, process)
        return process

    def _ready(self, process: subprocess.Popen[str]) -> Member:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, self.told()
        told = json.loads(line)
        return Member(process, told["member"], told["url"])

    def esper(self, *words: str) -> Any:
        """Run a command and return what it prints as JSON."""
        done = subprocess.run(
            [sys.executable, "-m", "esper", *words, "--json"],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def told(self) -> str:
        """Return the end of what the processes wrote to stderr."""
        return (self.folder / "stderr").read_text()[-4000:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
    if process.poll() is None:
        process.kill()
    process.communicate()


def await_true(true: Callable[[], object], timeout_s: float, told: Callable[[], str] = str) -> None:
    until_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until_s, f"it does not come true: {told()}"
        time.sleep(0.05)


def submit(log: EventLog, *names: str) -> None:
    library = load_library()
    for name in names:
        submit_sound(log, library[name], ADA)


def of(log: EventLog, *kinds: type[Fact]) -> list[Any]:
    return [fact for fact in map(fact_of, iterate(log)) if isinstance(fact, kinds)]


def all_judged(log: EventLog) -> bool:
    """Tell whether every job that was asked for has a kernel with a verdict, or failed."""
    found: list[BlueprintHistory] = histories(log)
    wanted = {fact.job_id for fact in of(log, CompilationRequested)}
    over = {fact.job_id for fact in of(log, KernelCompiled, CompilationFailed)}
    kernels = [kernel for history in found for kernel in history.kernels.values()]
    return bool(wanted) and wanted <= over and all(kernel.current(toolchain()) for kernel in kernels)


def require_each_job_once(log: EventLog) -> dict[str, list[CompilationLeased]]:
    """See that no job came to two results, and that none was taken twice under one lease; return the leases by job."""
    results = [fact.job_id for fact in of(log, KernelCompiled, CompilationFailed)]
    assert len(results) == len(set(results))
    kernels = [fact.kernel_id for fact in of(log, KernelCompiled)]
    assert len(kernels) == len(set(kernels))
    leases: dict[str, list[CompilationLeased]] = {}
    for lease in of(log, CompilationLeased):
        leases.setdefault(lease.job_id, []).append(lease)
    for taken in leases.values():
        tokens = [lease.token for lease in taken]
        assert tokens == sorted(set(tokens)), "a job was taken again although its lease was not lost"
        assert [lease.attempt for lease in taken] == list(range(1, len(taken) + 1))
    assert set(leases) == set(results)
    return leases
