"""The page on sealed history tells the truth: its example is real, and a stranger's few lines verify it."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sealing import archive_at, fill, make_key

from esper.artifacts.signing import VerifyKey
from esper.clock import ManualClock
from esper.oona import MemoryLog
from esper.oona.sealing.archive import Archive
from esper.oona.sealing.sealcheck import check_sealed
from esper.oona.sealing.sealer import seal

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "reference" / "segment-format.md").read_text(encoding="utf-8")
EXAMPLES = DOCS / "reference" / "examples"


def strangers_verify() -> Any:
    """Return the function that the page shows."""
    (code,) = [block for block in re.findall(r"^```text\n(.*?)^```$", PAGE, re.M | re.S) if "def verify" in block]
    found: dict[str, Any] = {}
    exec(code, found)
    return found["verify"]


def test_the_example_is_a_sound_archive(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "archive", tmp_path / "archive")
    key = VerifyKey.load(EXAMPLES / "archive.pub")
    with Archive(f"file:///{tmp_path / 'archive'}", [key]) as archive:
        report = check_sealed(archive)
        assert (report.through, report.checkpoints, report.segments, report.leftovers) == (3, 2, 2, 0)
    position, chain = strangers_verify()(EXAMPLES / "archive", key.raw)
    assert report.checkpoint is not None
    assert (position, chain) == (3, report.checkpoint.chain.hex())


def test_the_shown_bytes_are_those_of_the_example() -> None:
    (command, *lines) = next(
        block for block in re.findall(r"^```console\n\$ (.*?)^```$", PAGE, re.M | re.S) if block.startswith("xxd")
    ).splitlines()
    _, _, length, name = command.split()
    data = (EXAMPLES / "archive" / name).read_bytes()[: int(length)]
    shown = b"".join(bytes.fromhex(line[10:49].replace(" ", "")) for line in lines)
    assert shown == data
    assert hashlib.sha256(data).hexdigest() in name
    assert f"{hashlib.sha256(data).hexdigest()}  -" in PAGE
    for told in (data[56:60], data[120:124], data[252:256], data[284:288]):
        assert f"`{told.hex()}...`" in PAGE
    first = (EXAMPLES / "archive" / "checkpoints" / f"{2:016}.note").read_text().splitlines()
    assert base64.b64decode(first[2]) == data[252:284]
    assert first[3] == f"chain {data[56:88].hex()}"


@settings(max_examples=12, deadline=None)
@given(steps=st.lists(st.integers(1, 90), min_size=1, max_size=4), segment_events=st.integers(1, 64))
def test_the_strangers_lines_verify_any_archive(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], segment_events: int
) -> None:
    folder = tmp_path_factory.mktemp("archive")
    key = make_key(folder / "keys")
    with MemoryLog(ManualClock()) as log, archive_at(folder / "archive", key) as archive:
        for count in steps:
            fill(log, count)
            seal(log, archive, key, segment_events=segment_events)
        assert strangers_verify()(folder / "archive", key.public.raw) == (sum(steps), log.head().chain.hex())


@pytest.mark.parametrize("place", [20, 250, 270, -1])
def test_the_strangers_lines_notice_a_flipped_bit(tmp_path: Path, place: int) -> None:
    shutil.copytree(EXAMPLES / "archive", tmp_path / "archive")
    file = sorted((tmp_path / "archive" / "segments").iterdir())[0]
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(AssertionError):
        strangers_verify()(tmp_path / "archive", VerifyKey.load(EXAMPLES / "archive.pub").raw)
