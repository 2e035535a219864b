"""The local directory keeps the contract of both stores, and survives what happens to disks and processes."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disks import small_file_system
from store_contract import ObjectsContract, ShelfContract, StoreContract, harmed

from esper.artifacts import LocalStore, open_objects, open_store
from esper.artifacts.local import LocalShelf
from esper.errors import ArtifactError, ConfigError

ROOT = Path(__file__).resolve().parents[2]


class InFolder(ShelfContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "deep" / "artifacts"

    def open_shelf(self) -> LocalShelf:
        return LocalShelf(self.folder)

    def harm(self, name: str, how: str) -> None:
        place = self.folder / name
        place.write_bytes(harmed(place.read_bytes(), how))


class TestLocalStore(InFolder, StoreContract):
    pass


class TestLocalObjects(InFolder, ObjectsContract):
    pass


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "artifacts")


def place_of(local: LocalStore, digest: bytes) -> Path:
    return local.path / digest.hex()[:2] / digest.hex()


def test_an_artifact_that_is_there_is_not_written_again(local: LocalStore) -> None:
    place = place_of(local, local.put(b"weights"))
    before = place.stat()
    local.put(b"weights")
    assert place.stat().st_ino == before.st_ino
    assert place.stat().st_mtime_ns == before.st_mtime_ns


def test_what_a_crash_left_behind_is_ignored(local: LocalStore) -> None:
    digest = local.put(b"weights")
    (local.path / "tmp" / "half").write_bytes(b"wei")
    (local.path / digest.hex()[:2] / "half").write_bytes(b"wei")
    (local.path / "notes.txt").write_text("not an artifact")
    assert list(local.digests()) == [digest]
    assert list(LocalStore(local.path).digests()) == [digest]


def test_nothing_is_left_in_the_temporary_folder(local: LocalStore) -> None:
    objects = open_objects(f"file:///{local.path}")
    local.put(b"weights")
    objects.put("one", b"1")
    objects.put("one", b"1")
    with pytest.raises(ArtifactError):
        objects.put("one", b"2")
    assert list((local.path / "tmp").iterdir()) == []


def test_a_store_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be created"):
        LocalStore(tmp_path / "file" / "artifacts")


def test_an_object_cannot_be_the_folder_of_another(tmp_path: Path) -> None:
    objects = open_objects(f"file:///{tmp_path}")
    objects.put("main", b"1")
    with pytest.raises(ArtifactError, match="cannot be written"):
        objects.put("main/one", b"1")
    assert objects.names() == ["main"]


# --- a delete and a touch of one file at the same moment


def waits(work: Callable[[], bool], meanwhile: Callable[[], None], file: Path) -> bool:
    """Begin something while the lock of a file is held, do something, let go, and return what it came to."""
    came: list[bool] = []
    with file.open("rb") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        thread = threading.Thread(target=lambda: came.append(work()))
        thread.start()
        thread.join(0.3)
        meanwhile()
    thread.join()
    return came[0]


def test_a_delete_sees_who_touched_the_file_while_it_waited(local: LocalStore) -> None:
    digest = local.put(b"weights")
    file = place_of(local, digest)
    os.utime(file, (0, 0))
    assert not waits(lambda: local.delete(digest, before=time.time() - 60), lambda: os.utime(file), file)
    assert local.get(digest) == b"weights"


def test_a_touch_finds_out_that_the_file_was_deleted_while_it_waited(local: LocalStore) -> None:
    file = place_of(local, local.put(b"weights"))
    name = file.relative_to(local.path).as_posix()
    assert not waits(lambda: local.shelf.touch(name), file.unlink, file)


def test_two_processes_do_not_fetch_into_one_file(local: LocalStore, tmp_path: Path) -> None:
    digest = local.put(b"weights")
    with (tmp_path / "out.part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ArtifactError, match="another process is fetching"):
            local.get_file(digest, tmp_path / "out")
    assert local.get_file(digest, tmp_path / "out") == 7


# --- a process that is killed in the middle of a put

_STOPS_BEFORE_THE_NAME = """
import os, sys, time
from esper.artifacts import open_objects, open_store
url, kind, before = sys.argv[1:]
real = os.fsync if before == "fsync" else os.link

def stop(*arguments):
    print("stopped", flush=True)
    time.sleep(600)

open_objects(url)
setattr(os, before, stop)
data = b"x" * 300_000
open_store(url).put(data) if kind == "store" else open_objects(url).put("main/one", data)
"""


@pytest.mark.parametrize("before", ["fsync", "link"])
@pytest.mark.parametrize("kind", ["store", "objects"])
def test_kill_9_in_the_middle_of_a_put_leaves_nothing_under_the_name(tmp_path: Path, kind: str, before: str) -> None:
    url = f"file:///{tmp_path}/kept"
    command = [sys.executable, "-c", _STOPS_BEFORE_THE_NAME, url, kind, before]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "stopped\n"
        writer.kill()
    assert len(list((tmp_path / "kept" / "tmp").iterdir())) == 1  # what it was writing
    store, objects = open_store(url), open_objects(url)
    assert list(store.digests()) == objects.names() == []
    data = b"x" * 300_000
    assert objects.put("main/one", data)
    assert store.get(store.put(data)) == objects.get("main/one") == data


# --- full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    with small_file_system(tmp_path / "disk", "256k") as place:
        yield place


def test_a_full_disk_is_an_error_that_keeps_nothing_and_loses_nothing(small_disk: Path) -> None:
    store, objects = LocalStore(small_disk), open_objects(f"file:///{small_disk}")
    digest = store.put(b"x" * 100_000)
    with pytest.raises(ArtifactError, match="No space left") as caught:
        store.put(b"y" * 400_000)
    assert "free space" in caught.value.hint
    with pytest.raises(ArtifactError, match="No space left"):
        objects.put("main/one", b"y" * 400_000)
    assert list(store.digests()) == [digest]
    assert list((small_disk / "tmp").iterdir()) == []
    assert store.put(b"z" * 1000) in set(store.digests())
    assert objects.put("main/one", b"z" * 1000)
    assert store.get(digest) == b"x" * 100_000


# --- URLs


def test_urls_name_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    digest = open_store(f"file:///{tmp_path}/artifacts").put(b"weights")
    assert open_store("file:///artifacts").get(digest) == b"weights"
    for url in ("artifacts", "file:artifacts", "file:///", "http://bucket"):
        with pytest.raises(ConfigError):
            open_store(url)
        with pytest.raises(ConfigError):
            open_objects(url)
