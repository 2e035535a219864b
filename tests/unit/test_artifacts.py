"""Artifact stores keep bytes under their digest and notice when they changed."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disks import small_file_system

from esper.artifacts import ArtifactStore, LocalStore, MemoryStore, open_store
from esper.errors import ArtifactDamaged, ArtifactError, ArtifactMissing, ConfigError


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "artifacts")


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "artifacts")


def place_of(local: LocalStore, digest: bytes) -> Path:
    return local.path / digest.hex()[:2] / digest.hex()


@pytest.mark.parametrize("data", [b"", b"weights", bytes(range(256)) * 5000])
def test_bytes_come_back_under_their_sha256(store: ArtifactStore, data: bytes) -> None:
    digest = store.put(data)
    assert digest == hashlib.sha256(data).digest()
    assert store.get(digest) == data
    assert store.has(digest)
    assert store.size(digest) == len(data)


def test_the_same_bytes_are_kept_once(store: ArtifactStore) -> None:
    digests = {store.put(b"one"), store.put(b"one"), store.put(b"two")}
    assert list(store.digests()) == sorted(digests)
    assert len(digests) == 2


def test_a_digest_that_is_not_there_is_missing(store: ArtifactStore) -> None:
    digest = bytes(32)
    assert not store.has(digest)
    for ask in (store.get, store.size):
        with pytest.raises(ArtifactMissing, match="0" * 64):
            ask(digest)


@pytest.mark.parametrize("digest", [b"", bytes(31), bytes(33)])
def test_a_digest_of_another_length_is_refused(store: ArtifactStore, digest: bytes) -> None:
    asks: list[Callable[[bytes], object]] = [store.get, store.has, store.size]
    for ask in asks:
        with pytest.raises(ArtifactError, match="32 bytes"):
            ask(digest)


@pytest.mark.parametrize("harm", [lambda data: data[:-1], lambda data: b"W" + data[1:], lambda data: b""])
def test_changed_bytes_are_found_at_every_get_and_healed_by_a_put(
    local: LocalStore, harm: Callable[[bytes], bytes]
) -> None:
    digest = local.put(b"weights")
    place = place_of(local, digest)
    place.write_bytes(harm(b"weights"))
    with pytest.raises(ArtifactDamaged, match=digest.hex()):
        local.get(digest)
    assert local.put(b"weights") == digest
    assert local.get(digest) == b"weights"


def test_changed_bytes_in_memory_are_found(tmp_path: Path) -> None:
    store = MemoryStore()
    digest = store.put(b"weights")
    store._kept[digest] = b"other"
    with pytest.raises(ArtifactDamaged):
        store.get(digest)


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
    local.put(b"weights")
    assert list((local.path / "tmp").iterdir()) == []


def test_writers_of_the_same_bytes_do_not_disturb_each_other(local: LocalStore) -> None:
    data = os.urandom(200_000)
    digests: list[bytes] = []
    writers = [threading.Thread(target=lambda: digests.append(local.put(data))) for _ in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert set(digests) == {hashlib.sha256(data).digest()}
    assert len(digests) == 6
    assert local.get(digests[0]) == data


def test_a_store_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be created"):
        LocalStore(tmp_path / "file" / "artifacts")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    with small_file_system(tmp_path / "disk", "256k") as place:
        yield place


def test_a_full_disk_is_an_error_that_keeps_nothing_and_loses_nothing(small_disk: Path) -> None:
    store = LocalStore(small_disk)
    digest = store.put(b"x" * 100_000)
    with pytest.raises(ArtifactError, match="No space left") as caught:
        store.put(b"y" * 400_000)
    assert "free space" in caught.value.hint
    assert list(store.digests()) == [digest]
    assert list((small_disk / "tmp").iterdir()) == []
    assert store.put(b"z" * 1000) in set(store.digests())
    assert store.get(digest) == b"x" * 100_000


def test_urls_name_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_store("memory://"), MemoryStore)
    absolute = open_store(f"file:///{tmp_path}/artifacts")
    digest = absolute.put(b"weights")
    assert open_store("file:///artifacts").get(digest) == b"weights"
    for url in ("artifacts", "file:artifacts", "file:///", "s3://bucket"):
        with pytest.raises(ConfigError):
            open_store(url)
