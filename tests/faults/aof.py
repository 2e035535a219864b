"""Damaging the tail of an append-only file the ways disks and power cuts do, and finding where its commands end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from faults.resp import end_of, words_of


class Command(NamedTuple):
    """One command of an append-only file."""

    start: int
    end: int
    words: list[bytes]

    @property
    def name(self) -> str:
        """The command's name, in capitals."""
        return self.words[0].decode().upper()


def commands(path: Path) -> list[Command]:
    """Return the whole commands of an append-only file, in order."""
    data = path.read_bytes()
    found, start = [], 0
    while start < len(data):
        end = end_of(data, start)
        if end is None:
            break
        found.append(Command(start, end, words_of(data[start:end])))
        start = end
    return found


def batches(path: Path) -> list[tuple[int, int]]:
    """Return where each transaction begins and ends: all that one call of a function did."""
    found, start = [], 0
    for command in commands(path):
        if command.name == "MULTI":
            start = command.start
        elif command.name == "EXEC":
            found.append((start, command.end))
    return found


def cut(path: Path, size: int) -> None:
    """Leave the first ``size`` bytes, as after a write that was torn."""
    with path.open("r+b") as file:
        file.truncate(size)


def pad(path: Path, size: int, zeros: int) -> None:
    """Leave the first ``size`` bytes and put zeros behind them, as where a file grew but its bytes never came."""
    cut(path, size)
    with path.open("ab") as file:
        file.write(bytes(zeros))


def flip(path: Path, place: int, bit: int = 0) -> None:
    """Flip one bit of one byte."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


def keep(folder: Path, place: Path) -> Path:
    """Copy a server's files while it runs; with ``appendfsync always`` that is a state it had."""
    shutil.copytree(folder / "appendonlydir", place / "appendonlydir")
    return place


def put_back(kept: Path, folder: Path) -> None:
    """Put kept files in place of a stopped server's own."""
    shutil.rmtree(folder / "appendonlydir")
    shutil.copytree(kept / "appendonlydir", folder / "appendonlydir")
