"""Several writer processes at once, and rounds in which the server under them is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from servers import RedisServer

from esper.errors import LogDamaged
from esper.oona.open import open_log
from faults.checks import Outcome, Told, examine, told_by

_SCRIPT = Path(__file__).with_name("writers.py")
_ROOT = Path(__file__).parents[2]
_PATIENCE_S = 60.0


class Crew:
    """Writer processes with a file of receipts each; a context manager that ends them."""

    def __init__(
        self,
        url: str,
        folder: Path,
        names: Sequence[str],
        *options: str,
        batches: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = [folder / f"{name}.acks" for name in names]
        self._processes = [
            subprocess.Popen(
                [sys.executable, str(_SCRIPT), url, str(file), file.stem, str(batches), *options],
                env={**os.environ, "PYTHONPATH": str(_ROOT), **(environment or {})},
                stderr=subprocess.PIPE,
                text=True,
            )
            for file in self._files
        ]

        if "together" in options:
            await_true(lambda: all(file.with_suffix(".ready").exists() for file in self._files))
            (folder / "go").touch()

    @property
    def receipts(self) -> list[Told]:
        """Every receipt noted so far."""
        return [one for file in self._files for one in told_by(file)]

    def wait_for(self, more: int) -> None:
        """Wait until each writer has noted so many more receipts than now."""
        wanted = [_lines(file) + more for file in self._files]
        deadline = time.monotonic() + _PATIENCE_S
        while any(_lines(file) < count for file, count in zip(self._files, wanted, strict=True)):
            for process in self._processes:
                if process.poll() is not None:
                    raise AssertionError(f"a writer ended: {process.communicate()[1]}")
            if time.monotonic() > deadline:
                raise AssertionError(f"the writers noted nothing for {_PATIENCE_S} s")
            time.sleep(0.005)

    def finish(self) -> None:
        """Wait for writers that have an end, or stop those that have none; fail if one failed."""
        for process in self._processes:
            _, errors = process.communicate(timeout=_PATIENCE_S)
            assert process.returncode == 0, errors

    def stop(self) -> None:
        """Let every writer finish its batch, then end."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        self.finish()

    def pause(self) -> None:
        """Hold every writer where it is."""
        for process in self._processes:
            process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let every writer go on."""
        for process in self._processes:
            process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End every writer with -9."""
        for process in self._processes:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


class Round(NamedTuple):
    """One kill of the server under its writers."""

    number: int
    #: How long after the writers had last been seen to get receipts.
    killed_after_ms: float
    outcome: Outcome
    verified: bool
    #: Whether the kill tore the end of the append-only file.
    torn: bool

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return self.verified and self.outcome.sound


def kill_rounds(server: RedisServer, folder: Path, rounds: int, *, seed: int, writers: int = 3) -> Iterator[Round]:
    """Kill a server with -9 at random under concurrent writers, start it again, and yield what the log then holds.

    The writers live through every kill, and each asks again with the batch whose answer it never had.
    """
    draw = random.Random(seed)
    names = [f"writer-{number}" for number in range(writers)]
    with Crew(server.url, folder / "receipts", names, "uneven") as crew:
        for number in range(1, rounds + 1):
            crew.wait_for(2)
            delay_s = draw.uniform(0, 0.25)
            time.sleep(delay_s)
            server.kill()
            # Held while the log is looked at, so that it does not grow by what the check takes.
            crew.pause()
            receipts = crew.receipts
            # Redis's default in turn with the setting that leaves a torn end to a person.
            server.options["aof-load-truncated"] = "yes" if number % 2 else "no"
            server.start()
            torn = server.found_torn
            with open_log(server.url) as log:
                outcome = examine(log, receipts)
            yield Round(number, 1000 * delay_s, outcome, _verifies(server.url), torn)
            crew.resume()
        crew.wait_for(1)
        crew.stop()
        with open_log(server.url) as log:
            yield Round(0, 0.0, examine(log, crew.receipts), _verifies(server.url), torn=False)


def _verifies(url: str) -> bool:
    with open_log(url) as log:
        try:
            log.verify()
        except LogDamaged:
            return False
    return True


def await_true(true: Callable[[], bool]) -> None:
    """Wait until something is true; fail if it does not come true."""
    deadline = time.monotonic() + _PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.002)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
