"""What a flush said to be durable in the spool outlives power loss."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from faults.power import Disk, Operation, cuts, read_journal
from faults.shims import build_shim

from esper.errors import SpoolDamaged
from esper.events.codec import decode_payload
from esper.events.operator import NoteAdded
from esper.oona.recording.spool import SpoolFile

WRITER = Path(__file__).with_name("spool_writer.py")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim("power_journal", tmp_path_factory.mktemp("shim"))


def spooled(folder: Path) -> list[int]:
    """Return the numbers of the notes in the only spool file of a folder; raises if it is damaged."""
    found: list[int] = []
    for path in folder.glob("*.spool"):
        file = SpoolFile.open(path)
        assert file is not None
        offset = file.delivered
        try:
            while (next_one := file.at(offset)) is not None:
                batch, offset = next_one
                for one in batch.facts:
                    fact = decode_payload(one.type, one.schema, one.payload)
                    assert isinstance(fact, NoteAdded)
                    found.append(int(fact.text.split()[0]))
        finally:
            file.close()
    return found


def followed(operations: Sequence[Operation]) -> Iterator[Operation]:
    """Yield operations under the name their file has by then; the journal names a file as it was opened."""
    names: dict[str, str] = {}
    for one in operations:
        yield one._replace(path=names.get(one.path, one.path))
        if one.kind == "r":
            names[one.path] = one.data.decode()


def failures(folder: Path, library: Path, *options: str) -> Iterator[str]:
    """Fail the power at many moments of a writer's life and yield what is wrong after each."""
    watched, journal = folder / "watched", folder / "journal"
    watched.mkdir()
    environment = {
        "LD_PRELOAD": str(library),
        "POWER_WATCH": str(watched),
        "POWER_JOURNAL": str(journal),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(ROOT),
    }
    (watched / "spool").mkdir()
    command = [sys.executable, str(WRITER), str(watched / "spool"), str(watched / "acks"), "40", *options]
    subprocess.run(command, env={**os.environ, **environment}, check=True, timeout=60, stderr=subprocess.DEVNULL)
    operations = list(followed(read_journal(journal)))
    assert options or {"w", "s", "r", "d"} <= {one.kind for one in operations}
    draw = random.Random(3)
    disk, done = Disk(watched), 0
    for number, cut in enumerate(cuts(operations, 60, draw)):
        for operation in operations[done:cut]:
            disk.do(operation)
        done = cut
        told = "".join(
            one.data.decode() for one in operations[:cut] if one.kind == "w" and one.path.endswith("/acks")
        ).split()
        for coin in (None, draw):
            place = folder / f"{number}-{'cut' if coin is None else 'drawn'}"
            place.mkdir()
            disk.fail(place, coin)
            try:
                found = spooled(place / "spool")
                assert found == list(range(len(found)))
                assert len(found) >= int(told[-1] if told else 0)
            except (AssertionError, SpoolDamaged) as error:
                yield f"{place.name}: {error}"


def test_what_was_told_durable_outlives_power_loss(tmp_path: Path, library: Path) -> None:
    assert list(failures(tmp_path, library)) == []


@pytest.mark.parametrize("harm", ["unsynced", "early"])
def test_the_power_loss_test_finds_a_spool_that_does_not_keep_its_word(
    tmp_path: Path, library: Path, harm: str
) -> None:
    assert any(failures(tmp_path, library, harm))
