"""Sealing that is killed, has no room or loses its store: the next run completes it, and nothing unsealed is gone."""

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
from disks import small_file_system
from sealing import archive_at, fill, make_key
from servers import RedisServer, S3Server

from esper.artifacts import open_objects
from esper.artifacts.objects import NamedObjects
from esper.artifacts.s3 import S3Shelf
from esper.artifacts.s3_client import connect, parse_s3_url
from esper.artifacts.signing import SigningKey
from esper.clock import ManualClock
from esper.errors import ArtifactError, ArtifactStoreUnavailable, HistoryUnsealed
from esper.oona import MemoryLog, SqliteLog
from esper.oona.redis.log import RedisLog
from esper.oona.sealing.archive import Archive
from esper.oona.sealing.sealcheck import check_agreement, check_sealed
from esper.oona.sealing.sealed import ArchiveHistory
from esper.oona.sealing.sealer import seal, trim

ROOT = Path(__file__).parents[2]
EVENTS = 800
#: Small segments, so that there are many moments between two of them to be killed at.
SEGMENT_EVENTS = 16


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return make_key(tmp_path / "home" / "keys")


def esper(home: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "esper", "--home", str(home), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err.decode()
    return out.decode()


def segment_files(home: Path) -> set[str]:
    return {file.name for file in (home / "archive" / "segments").glob("*.seg")}


def test_sealing_killed_at_any_moment_is_completed_by_the_next_run(tmp_path: Path, key: SigningKey) -> None:
    home = tmp_path / "home"
    words = ("log", "seal", "--segment-events", str(SEGMENT_EVENTS))
    with SqliteLog(home / "log.db", clock=ManualClock()) as log:
        fill(log, EVENTS)
    draw = random.Random(5)
    interrupted = 0
    for round_number in range(4):
        before = segment_files(home)
        sealers = [esper(home, *words) for _ in range(1 + round_number % 2)]
        wanted = len(before) + draw.randint(1, 10)
        deadline = time.monotonic() + 60
        while len(segment_files(home)) < wanted and any(one.poll() is None for one in sealers):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(draw.random() * 0.02)
        for sealer in sealers:
            sealer.send_signal(signal.SIGKILL)
        for sealer in sealers:
            interrupted += sealer.wait() == -signal.SIGKILL
            sealer.communicate()
        with archive_at(home / "archive", key) as archive:
            # Whatever is signed is sound at every moment.
            assert check_sealed(archive).through in (0, EVENTS)
    assert interrupted >= 2
    finish(esper(home, *words))
    with archive_at(home / "archive", key) as archive, SqliteLog(home / "log.db") as log:
        report = check_sealed(archive)
        assert (report.through, report.segments, report.leftovers) == (EVENTS, EVENTS // SEGMENT_EVENTS, 0)
        check_agreement(log, ArchiveHistory(archive))
    assert "sealed          0" in finish(esper(home, *words))


def test_two_sealers_at_once_both_succeed(tmp_path: Path, key: SigningKey) -> None:
    home = tmp_path / "home"
    with SqliteLog(home / "log.db", clock=ManualClock()) as log:
        fill(log, EVENTS)
    sealers = [esper(home, "log", "seal", "--segment-events", size) for size in ("16", "16", "40")]
    for sealer in sealers:
        finish(sealer)
    assert "verified        yes" in finish(esper(home, "log", "verify"))
    with archive_at(home / "archive", key) as archive:
        assert check_sealed(archive).through == EVENTS


def test_a_trimming_sealer_killed_at_any_moment_loses_nothing(tmp_path: Path, key: SigningKey) -> None:
    home = tmp_path / "home"
    draw = random.Random(7)
    with RedisServer(tmp_path / "redis") as server, MemoryLog(ManualClock()) as model:
        url = f"{server.url}?namespace=main"
        words = ("--log", url, "log", "seal", "--trim", "--segment-events", str(SEGMENT_EVENTS))
        interrupted = 0
        for _ in range(3):
            history = ArchiveHistory(archive_at(home / "archive", key))
            with RedisLog(url, clock=ManualClock(), sealed=history) as log:
                fill(log, 200)
            fill(model, 200)
            sealer = esper(home, *words)
            before = len(segment_files(home))
            deadline = time.monotonic() + 60
            while len(segment_files(home)) < before + 5 and sealer.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(draw.random() * 0.15)
            sealer.send_signal(signal.SIGKILL)
            interrupted += sealer.wait() == -signal.SIGKILL
            sealer.communicate()
            with RedisLog(url, sealed=ArchiveHistory(archive_at(home / "archive", key))) as log:
                assert log.read(0, 10_000) == model.read(0, 10_000)
        assert interrupted
        finish(esper(home, *words))
        with server.client() as client:
            kept = sum(client.xlen(name) for name in client.keys("esper:*") if client.type(name) == b"stream")
        assert kept == 0
        with RedisLog(url, sealed=ArchiveHistory(archive_at(home / "archive", key))) as log:
            assert log.read(0, 10_000) == model.read(0, 10_000)
            assert log.verify().head == model.head()


# --- the store is down


@pytest.fixture
def hasty(s3: S3Server, key: SigningKey) -> Iterator[Archive]:
    """An archive on S3 whose requests are tried once."""
    place = parse_s3_url(s3.url(s3.new_bucket(), "log"))
    client = connect(place, connect_timeout_s=5.0, read_timeout_s=20.0, attempts=1)
    with Archive(NamedObjects(S3Shelf(place, client)), [key.public]) as archive:
        yield archive


@pytest.mark.parametrize("when", [0, 1, 3])
def test_s3_down_while_sealing_stops_with_its_error_and_goes_on_later(
    tmp_path: Path, s3: S3Server, hasty: Archive, key: SigningKey, when: int
) -> None:
    with RedisServer(tmp_path / "redis") as server:
        history = ArchiveHistory(Archive(hasty.objects, hasty.trusted))
        with RedisLog(server.url, clock=ManualClock(), sealed=history) as log:
            fill(log, 100)
            seal(log, hasty, key, segment_events=16)
            fill(log, 100)
            done: list[int] = []

            def progress(sealed: int, total: int) -> None:
                done.append(sealed)
                if len(done) == when:
                    s3.down()

            if when == 0:
                s3.down()
            with pytest.raises(ArtifactStoreUnavailable):
                seal(log, hasty, key, segment_events=16, progress=progress)
            with pytest.raises(ArtifactStoreUnavailable):
                trim(log, hasty)
            # Without the archive nothing past its last checkpoint can go.
            with pytest.raises((ArtifactStoreUnavailable, HistoryUnsealed)):
                log.trim(200)
            assert len(log.read(0, 1000)) == 200
            s3.up()
            assert hasty.sizes() == [100]
            assert seal(log, hasty, key, segment_events=16).events == 100
            assert check_sealed(hasty).through == 200
            assert trim(log, hasty) == 200
            assert len(log.read(0, 1000)) == 200


def test_a_lost_answer_of_s3_is_no_second_segment(s3: S3Server, hasty: Archive, key: SigningKey) -> None:
    with MemoryLog(ManualClock()) as log:
        fill(log, 100)
        seal(log, hasty, key, segment_events=50)
        fill(log, 50)
        s3.fault("eat", method="PUT")
        with pytest.raises(ArtifactStoreUnavailable):
            seal(log, hasty, key, segment_events=50)
        assert seal(log, hasty, key, segment_events=50).events == 50
        report = check_sealed(hasty)
        assert (report.through, report.segments, report.leftovers) == (150, 3, 0)


# --- no room


def fill_up(ballast: Path) -> None:
    """Write a file until its disk is full."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return


def test_a_full_disk_while_sealing_stops_with_its_error_and_goes_on_later(tmp_path: Path, key: SigningKey) -> None:
    with small_file_system(tmp_path / "disk", "128k") as disk, MemoryLog(ManualClock()) as log:
        fill(log, 300)
        with archive_at(disk / "archive", key) as archive:
            seal(log, archive, key, segment_events=64)
            ballast = disk / "ballast"
            fill_up(ballast)
            fill(log, 300)
            with pytest.raises(ArtifactError, match="No space left"):
                seal(log, archive, key, segment_events=64)
            assert archive.sizes() == [300]
            assert check_sealed(archive).through == 300
            ballast.unlink()
            assert seal(log, archive, key, segment_events=64).events == 300
            assert check_sealed(archive).through == 600
            with open_objects(f"file:///{disk / 'archive'}") as objects:
                assert all(name.startswith(("segments/", "checkpoints/")) for name in objects.names())
