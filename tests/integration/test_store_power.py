"""What a local store said to be kept outlives power loss, and nothing is ever half there."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.power import Disk, cuts, read_journal
from faults.shims import build_shim

from esper.artifacts import open_objects, open_store
from esper.errors import ArtifactError

ROOT = Path(__file__).parents[2]
#: Arguments: the store, the file for what was told kept, and ``unsynced`` or ``early``, which break durability.
WRITER = """
import os, sys
from esper.artifacts import open_objects, open_store
place, acks, harm = sys.argv[1:]
store, objects = open_store(f"file:///{place}"), open_objects(f"file:///{place}")
if harm == "unsynced":
    os.fsync = lambda fd: None
fd = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
for number in range(25):
    data = f"{number} ".encode() * 700
    if harm == "early":
        os.write(fd, f"{number}\\n".encode())
    store.put(data)
    objects.put(f"segments/{number:03d}", data)
    if harm != "early":
        os.write(fd, f"{number}\\n".encode())
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim("power_journal", tmp_path_factory.mktemp("shim"))


def failures(folder: Path, library: Path, harm: str) -> Iterator[str]:
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
    command = [sys.executable, "-c", WRITER, str(watched / "store"), str(watched / "acks"), harm]
    subprocess.run(command, env={**os.environ, **environment}, check=True, timeout=60)
    operations = read_journal(journal)
    assert harm or {"w", "s", "l", "d"} <= {one.kind for one in operations}
    draw = random.Random(3)
    disk, done = Disk(watched), 0
    for number, cut in enumerate(cuts(operations, 40, draw)):
        for operation in operations[done:cut]:
            disk.do(operation)
        done = cut
        acks = [one.data for one in operations[:cut] if one.kind == "w" and one.path.endswith("/acks")]
        for coin in (None, draw):
            place = folder / f"{number}-{'cut' if coin is None else 'drawn'}"
            place.mkdir()
            disk.fail(place, coin)
            try:
                check(place / "store", len(acks))
            except (AssertionError, ArtifactError) as error:
                yield f"{place.name}: {error}"


def check(place: Path, told: int) -> None:
    """See that what was told kept is there, and that whatever is there is whole."""
    store, objects = open_store(f"file:///{place}"), open_objects(f"file:///{place}")
    digests = [digest for digest in store.digests() if store.get(digest)]
    names = objects.names("segments/")
    assert len(digests) >= told
    assert len(names) >= told
    for name in names:
        assert objects.get(name) == f"{int(name[-3:])} ".encode() * 700


def test_what_was_told_kept_outlives_power_loss(tmp_path: Path, library: Path) -> None:
    assert list(failures(tmp_path, library, "")) == []


@pytest.mark.parametrize("harm", ["unsynced", "early"])
def test_the_power_loss_test_finds_a_store_that_does_not_keep_its_word(
    tmp_path: Path, library: Path, harm: str
) -> None:
    assert any(failures(tmp_path, library, harm))
