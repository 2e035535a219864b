"""Acknowledged facts outlive kill -9 at any moment and power loss; nothing is ever half there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.power import Disk, Operation, cuts, read_journal
from faults.shims import build_shim

from esper.errors import LogDamaged
from esper.events import fact_of
from esper.events.operator import NoteAdded
from esper.oona import SqliteLog, iterate

WRITER = Path(__file__).with_name("log_writer.py")
ROOT = Path(__file__).parents[2]


def start(
    path: Path, acks: Path, writer: str, batches: int, *options: str, **environment: str
) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(WRITER), str(path), str(acks), writer, str(batches), *options]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT), **environment})


def acknowledged(lines: str) -> dict[str, int]:
    """Return the version each writer was told last; a line without its end was not told."""
    told: dict[str, int] = {}
    for line in lines.split("\n")[:-1]:
        writer, version = line.split()
        told[writer] = int(version)
    return told


def check(path: Path, told: dict[str, int]) -> None:
    """Check that every acknowledged fact is in a log, that it verifies, and that all batches are whole."""
    with SqliteLog(path) as log:
        log.verify()
        for writer, version in told.items():
            assert log.stream_version(f"operator/{writer}") >= version
        unfinished: dict[str, tuple[str, int]] = {}
        for envelope in iterate(log):
            fact = fact_of(envelope)
            assert isinstance(fact, NoteAdded)
            batch, place, size, _ = fact.text.split(" ")
            expected = unfinished.pop(envelope.stream, (batch, 0))
            assert (batch, int(place)) == expected
            assert envelope.version == int(batch) + int(place) + 1
            if int(place) + 1 < int(size):
                unfinished[envelope.stream] = (batch, int(place) + 1)
        assert unfinished == {}, "half a batch"


def test_every_acknowledged_fact_outlives_kill_9(tmp_path: Path) -> None:
    path, acks = tmp_path / "log.db", tmp_path / "acks"
    draw = random.Random(9)
    reached = 0
    for _ in range(6):
        before = len(acks.read_bytes()) if acks.exists() else 0
        writers = [start(path, acks, name, 0) for name in ("ada", "bob")]
        deadline = time.monotonic() + 60
        while not acks.exists() or len(acks.read_bytes()) == before:
            assert time.monotonic() < deadline
            assert all(writer.poll() is None for writer in writers)
            time.sleep(0.005)
        time.sleep(draw.random() * 0.3)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
        for writer in writers:
            assert writer.wait() == -signal.SIGKILL
        told = acknowledged(acks.read_text())
        check(path, told)
        assert sum(told.values()) > reached
        reached = sum(told.values())
    assert set(told) == {"ada", "bob"}


class Recording:
    """What a writer did to its files until it ended."""

    def __init__(self, folder: Path, library: Path, *options: str) -> None:
        watched, journal = folder / "watched", folder / "journal"
        watched.mkdir()
        environment = {
            "LD_PRELOAD": str(library),
            "POWER_WATCH": str(watched),
            "POWER_JOURNAL": str(journal),
            # The journal notes what SQLite does to this file; nothing else of Python's start touches the folder.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        process = start(watched / "log.db", watched / "acks", "ada", 40, *options, **environment)
        assert process.wait(120) == 0
        self.operations = read_journal(journal)

    def failures(self, folder: Path, count: int, seed: int) -> Iterator[tuple[int, str]]:
        """Fail the power at many moments and yield those after which something is wrong, with what is."""
        draw = random.Random(seed)
        disk, done = Disk(folder / "watched"), 0
        for number, cut in enumerate(cuts(self.operations, count, draw)):
            for operation in self.operations[done:cut]:
                disk.do(operation)
            done = cut
            for name, coin in (("cut", None), ("drawn", draw)):
                place = folder / f"{number}-{name}"
                place.mkdir()
                disk.fail(place, coin)
                try:
                    check(place / "log.db", acknowledged(self._acks(cut)))
                except (AssertionError, LogDamaged) as error:
                    yield cut, f"{name}: {error}"

    def _acks(self, cut: int) -> str:
        return "".join(one.data.decode() for one in self.operations[:cut] if _is_ack(one))


def _is_ack(operation: Operation) -> bool:
    return operation.kind == "w" and operation.path.endswith("/acks")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim("power_journal", tmp_path_factory.mktemp("shim"))


@pytest.mark.parametrize("options", [[], ["checkpoints"]], ids=["plain", "many checkpoints"])
def test_every_acknowledged_fact_outlives_power_loss(tmp_path: Path, library: Path, options: list[str]) -> None:
    recording = Recording(tmp_path, library, *options)
    kinds = {(one.kind, Path(one.path).name) for one in recording.operations}
    assert {("w", "log.db-wal"), ("s", "log.db-wal"), ("w", "log.db.head"), ("w", "acks")} <= kinds
    assert list(recording.failures(tmp_path, 40, seed=1)) == []


@pytest.mark.parametrize("harm", ["unsynced", "early"])
def test_the_power_loss_test_finds_a_log_that_does_not_keep_its_word(tmp_path: Path, library: Path, harm: str) -> None:
    recording = Recording(tmp_path, library, harm)
    assert any(recording.failures(tmp_path, 40, seed=1))
