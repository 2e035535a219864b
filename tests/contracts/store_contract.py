"""What every place for bytes must do: one suite for artifacts, one for named objects.

A new adapter passes both by subclassing them with its own ``open_shelf`` (again the same place each time it is called)
and ``harm`` (change what lies there).
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from esper.artifacts import ArtifactStore, ObjectStore
from esper.artifacts.content import ContentStore
from esper.artifacts.objects import NamedObjects
from esper.artifacts.shelf import Shelf
from esper.artifacts.signatures import judge, sign, verify_signed
from esper.artifacts.signing import SigningKey
from esper.errors import (
    ArtifactConflict,
    ArtifactDamaged,
    ArtifactError,
    ArtifactMissing,
    SignatureInvalid,
)

HARMS = ["flip", "cut"]
KEY_ID = "0123456789abcdef"


def harmed(data: bytes, how: str) -> bytes:
    """Return bytes with the last one cut off, or with a bit of the first one flipped."""
    return data[:-1] if how == "cut" else bytes([data[0] ^ 1]) + data[1:]


def at_once(*works: Callable[[], object]) -> list[object]:
    """Do things in threads that begin at the same moment; return what each gave, which may be what it raised."""
    gate = threading.Barrier(len(works))
    results: list[object] = [None] * len(works)

    def one(number: int, work: Callable[[], object]) -> None:
        gate.wait()
        try:
            results[number] = work()
        except ArtifactError as error:
            results[number] = error

    threads = [threading.Thread(target=one, args=(number, work)) for number, work in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class ShelfContract(ABC):
    """Opens a place as often as a test likes."""

    @abstractmethod
    def open_shelf(self) -> Shelf: ...

    @abstractmethod
    def harm(self, name: str, how: str) -> None:
        """Change an object where it lies: ``flip`` a bit of it or ``cut`` its last byte."""

    @pytest.fixture(autouse=True)
    def _closed(self) -> Iterator[None]:
        with ExitStack() as self.stack:
            yield


class StoreContract(ShelfContract):
    """Artifacts: bytes under their SHA-256, and signatures beside them."""

    @pytest.fixture
    def store(self) -> ArtifactStore:
        return self.another()

    def another(self) -> ArtifactStore:
        return self.stack.enter_context(ContentStore(self.open_shelf()))

    @pytest.mark.parametrize("data", [b"", b"weights", bytes(range(256)) * 5000])
    def test_bytes_come_back_under_their_sha256(self, store: ArtifactStore, data: bytes) -> None:
        digest = store.put(data)
        assert digest == hashlib.sha256(data).digest()
        assert store.get(digest) == data
        assert store.has(digest)
        assert store.size(digest) == len(data)

    def test_the_same_bytes_are_kept_once(self, store: ArtifactStore) -> None:
        digests = {store.put(b"one"), store.put(b"one"), store.put(b"two")}
        assert list(store.digests()) == sorted(digests)
        assert len(digests) == 2

    def test_what_one_writes_another_reads(self, store: ArtifactStore) -> None:
        assert self.another().get(store.put(b"weights")) == b"weights"

    def test_digests_are_listed_by_their_beginning(self, store: ArtifactStore) -> None:
        digests = sorted(store.put(bytes([number])) for number in range(20))
        for digits in (0, 1, 2, 3, 64):
            beginning = digests[0].hex()[:digits]
            assert list(store.digests(beginning)) == [one for one in digests if one.hex().startswith(beginning)]
        assert list(store.digests("f" * 64)) == []

    def test_a_digest_that_is_not_there_is_missing(self, store: ArtifactStore) -> None:
        digest = bytes(32)
        assert not store.has(digest)
        for ask in (store.get, store.size):
            with pytest.raises(ArtifactMissing, match="0" * 64):
                ask(digest)

    @pytest.mark.parametrize("digest", [b"", bytes(31), bytes(33)])
    def test_a_digest_of_another_length_is_refused(self, store: ArtifactStore, digest: bytes) -> None:
        asks: list[Callable[[bytes], object]] = [
            store.get,
            store.has,
            store.size,
            store.signatures,
            store.delete,
            store.stored_at,
            store.unchecked,
        ]
        for ask in asks:
            with pytest.raises(ArtifactError, match="32 bytes"):
                ask(digest)

    @pytest.mark.parametrize("how", HARMS)
    def test_changed_bytes_are_found_at_every_get_and_healed_by_a_put(self, store: ArtifactStore, how: str) -> None:
        digest = store.put(b"weights")
        self.harm(f"{digest.hex()[:2]}/{digest.hex()}", how)
        for _ in range(2):
            with pytest.raises(ArtifactDamaged) as caught:
                store.get(digest)
            assert caught.value.attributes == {"digest": digest.hex()}
        assert store.put(b"weights") == digest
        assert store.get(digest) == b"weights"

    def test_writers_of_the_same_bytes_do_not_disturb_each_other(self, store: ArtifactStore) -> None:
        data = os.urandom(200_000)
        stores = [self.another() for _ in range(4)]
        digests = at_once(*(partial(one.put, data) for one in stores))
        assert set(digests) == {hashlib.sha256(data).digest()}
        assert store.get(hashlib.sha256(data).digest()) == data

    # --- evidence, files and parts

    def test_what_lies_under_a_digest_is_evidence_though_it_be_damaged(self, store: ArtifactStore) -> None:
        assert store.unchecked(bytes(32)) is None
        digest = store.put(b"weights")
        assert store.unchecked(digest) == b"weights"
        self.harm(f"{digest.hex()[:2]}/{digest.hex()}", "flip")
        assert store.unchecked(digest) == harmed(b"weights", "flip")

    def test_a_part_of_an_artifact_is_read_from_an_offset(self, store: ArtifactStore) -> None:
        digest = store.put(b"weights")
        assert [store.part(digest, start, 3) for start in (0, 3, 6, 7, 9)] == [b"wei", b"ght", b"s", b"", b""]
        with pytest.raises(ArtifactMissing):
            store.part(bytes(32), 0, 1)

    @pytest.mark.parametrize("size", [0, 7, 300_000])
    def test_a_file_goes_in_and_comes_back(self, store: ArtifactStore, tmp_path: Path, size: int) -> None:
        data = os.urandom(size)
        (tmp_path / "in").write_bytes(data)
        told: list[tuple[int, int]] = []
        digest = store.put_file(tmp_path / "in", lambda *done: told.append(done))
        assert (digest, told[-1]) == (hashlib.sha256(data).digest(), (size, size))
        assert store.get(digest) == data
        assert (tmp_path / "in").exists()
        assert store.put_file(tmp_path / "in") == digest
        assert store.get_file(digest, tmp_path / "back" / "out") == size
        assert (tmp_path / "back" / "out").read_bytes() == data
        assert [file.name for file in (tmp_path / "back").iterdir()] == ["out"]

    @pytest.mark.parametrize("how", HARMS)
    def test_a_file_heals_a_damaged_artifact(self, store: ArtifactStore, tmp_path: Path, how: str) -> None:
        (tmp_path / "in").write_bytes(b"weights")
        digest = store.put(b"weights")
        self.harm(f"{digest.hex()[:2]}/{digest.hex()}", how)
        assert store.put_file(tmp_path / "in") == digest
        assert store.get(digest) == b"weights"

    @pytest.mark.parametrize("how", HARMS)
    def test_a_damaged_artifact_leaves_no_file(self, store: ArtifactStore, tmp_path: Path, how: str) -> None:
        digest = store.put(b"weights")
        self.harm(f"{digest.hex()[:2]}/{digest.hex()}", how)
        with pytest.raises(ArtifactDamaged) as caught:
            store.get_file(digest, tmp_path / "out" / "file")
        assert caught.value.attributes["digest"] == digest.hex()
        assert list((tmp_path / "out").iterdir()) == []

    def test_a_fetch_goes_on_with_what_an_earlier_one_left(self, store: ArtifactStore, tmp_path: Path) -> None:
        data = os.urandom(100_000)
        digest = store.put(data)
        (tmp_path / "out.part").write_bytes(data[:70_000])
        assert store.get_file(digest, tmp_path / "out") == 30_000
        assert (tmp_path / "out").read_bytes() == data

    def test_a_fetch_does_not_build_on_what_is_wrong(self, store: ArtifactStore, tmp_path: Path) -> None:
        data = os.urandom(100_000)
        digest = store.put(data)
        for left in (b"x" * 70_000, b"x" * 200_000):
            (tmp_path / "out.part").write_bytes(left)
            assert store.get_file(digest, tmp_path / "out") == 100_000
            assert (tmp_path / "out").read_bytes() == data

    # --- taking away

    def test_what_is_deleted_is_missing_and_can_be_put_again(self, store: ArtifactStore, key: SigningKey) -> None:
        digest, other = store.put(b"weights"), store.put(b"other")
        sign(store, digest, key)
        assert [store.delete(digest), store.delete(digest), store.delete(bytes(32))] == [True, False, False]
        assert not self.another().has(digest)
        assert store.signatures(digest) == {}
        assert list(store.digests()) == [other]
        assert store.put(b"weights") == digest
        assert store.get(digest) == b"weights"
        assert store.signatures(digest) == {}

    def test_signatures_without_their_artifact_are_taken_away_by_a_delete(
        self, store: ArtifactStore, key: SigningKey
    ) -> None:
        digest = hashlib.sha256(b"weights").digest()
        store.add_signature(digest, KEY_ID, b"left by a delete that was killed")
        assert not store.delete(digest)
        assert store.signatures(digest) == {}

    def test_one_signature_is_taken_away(self, store: ArtifactStore, key: SigningKey) -> None:
        digest = store.put(b"weights")
        sign(store, digest, key)
        store.add_signature(digest, KEY_ID, b"forged")
        assert [store.remove_signature(digest, KEY_ID), store.remove_signature(digest, KEY_ID)] == [True, False]
        assert list(store.signatures(digest)) == [key.public.key_id]

    def test_an_artifact_has_an_age_and_only_old_ones_are_deleted(self, store: ArtifactStore) -> None:
        # Servers tell whole seconds, by their own clock.
        before = time.time() - 2
        digest = store.put(b"weights")
        assert before <= store.stored_at(digest) <= time.time() + 2
        (kept,) = store.inventory()
        assert (kept.digest, kept.size_bytes) == (digest, 7)
        assert abs(kept.stored_at - store.stored_at(digest)) < 1
        assert not store.delete(digest, before=before)
        assert store.get(digest) == b"weights"
        assert store.delete(digest, before=time.time() + 2)
        with pytest.raises(ArtifactMissing):
            store.stored_at(digest)

    def test_a_put_that_relies_on_old_bytes_makes_them_young(
        self, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "in").write_bytes(b"weights")
        digest = store.put(b"weights")
        assert isinstance(store, ContentStore)
        touched: list[str] = []
        touch = store.shelf.touch
        monkeypatch.setattr(store.shelf, "touch", lambda name: [touched.append(name), touch(name)][1])
        puts: list[Callable[[], object]] = [lambda: store.put(b"weights"), lambda: store.put_file(tmp_path / "in")]
        for put in puts:
            put()
        assert touched == []
        monkeypatch.setattr("esper.artifacts.content.YOUNG_S", -10.0)  # everything is old
        for put in puts:
            put()
        assert touched == [f"{digest.hex()[:2]}/{digest.hex()}"] * 2
        assert store.stored_at(digest) >= time.time() - 2
        assert store.get(digest) == b"weights"
        assert not store.shelf.touch("ab/nothing")

    def test_bytes_that_are_taken_away_while_a_put_relies_on_them_are_put_again(
        self, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        digest, other = store.put(b"weights"), self.another()
        assert isinstance(store, ContentStore)
        stored_at = store.shelf.stored_at

        def overtaken(name: str) -> float | None:
            other.delete(digest)
            monkeypatch.setattr(store.shelf, "stored_at", stored_at)
            return stored_at(name)

        monkeypatch.setattr(store.shelf, "stored_at", overtaken)
        store.put(b"weights")
        assert other.get(digest) == b"weights"

    # --- signatures

    @pytest.fixture
    def key(self, tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
        return SigningKey.create(tmp_path_factory.mktemp("keys") / "signing.pem")

    @pytest.fixture
    def other_key(self, tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
        return SigningKey.create(tmp_path_factory.mktemp("keys") / "signing.pem")

    def test_a_signed_artifact_is_read_by_who_trusts_the_signer(
        self, store: ArtifactStore, key: SigningKey, other_key: SigningKey
    ) -> None:
        digest = store.put(b"weights")
        assert [sign(store, digest, key), sign(store, digest, key), sign(store, digest, other_key)] == [
            True,
            False,
            True,
        ]
        assert verify_signed(self.another(), digest, [key.public]) == b"weights"
        assert judge(store, digest, [key.public]) == ([key.public.key_id], [], [other_key.public.key_id])

    def test_signatures_are_no_artifacts(self, store: ArtifactStore, key: SigningKey) -> None:
        digest = store.put(b"weights")
        sign(store, digest, key)
        assert list(store.digests()) == [digest]
        assert store.signatures(store.put(b"other")) == {}

    def test_an_unsigned_artifact_is_refused(self, store: ArtifactStore, key: SigningKey) -> None:
        with pytest.raises(SignatureInvalid, match="is not signed"):
            verify_signed(store, store.put(b"weights"), [key.public])

    def test_an_unknown_signer_is_refused(self, store: ArtifactStore, key: SigningKey, other_key: SigningKey) -> None:
        digest = store.put(b"weights")
        sign(store, digest, other_key)
        for trusted in ([], [key.public]):
            with pytest.raises(SignatureInvalid, match=f"{other_key.public.key_id}, which is not trusted"):
                verify_signed(store, digest, trusted)

    def test_a_signature_of_something_else_is_refused(
        self, store: ArtifactStore, key: SigningKey, other_key: SigningKey
    ) -> None:
        digest, other = store.put(b"weights"), store.put(b"other")
        sign(store, other, key)
        store.add_signature(digest, key.public.key_id, store.signatures(other)[key.public.key_id])
        sign(store, digest, other_key)
        # One good signature does not outweigh a forged one.
        with pytest.raises(SignatureInvalid, match="does not fit"):
            verify_signed(store, digest, [key.public, other_key.public])

    def test_a_signature_of_the_bare_digest_does_not_pass(self, store: ArtifactStore, key: SigningKey) -> None:
        digest = store.put(b"weights")
        store.add_signature(digest, key.public.key_id, key.sign(digest))
        with pytest.raises(SignatureInvalid):
            verify_signed(store, digest, [key.public])

    def test_a_changed_artifact_is_found_though_its_signature_holds(
        self, store: ArtifactStore, key: SigningKey
    ) -> None:
        digest = store.put(b"weights")
        sign(store, digest, key)
        self.harm(f"{digest.hex()[:2]}/{digest.hex()}", "flip")
        with pytest.raises(ArtifactDamaged):
            verify_signed(store, digest, [key.public])

    def test_what_is_not_there_or_damaged_is_not_signed(self, store: ArtifactStore, key: SigningKey) -> None:
        with pytest.raises(ArtifactMissing):
            sign(store, bytes(32), key)
        digest = store.put(b"weights")
        self.harm(f"{digest.hex()[:2]}/{digest.hex()}", "flip")
        with pytest.raises(ArtifactDamaged):
            sign(store, digest, key)
        assert store.signatures(digest) == {}

    def test_a_signature_is_written_once(self, store: ArtifactStore) -> None:
        digest = store.put(b"weights")
        assert store.add_signature(digest, KEY_ID, b"first")
        with pytest.raises(ArtifactConflict):
            store.add_signature(digest, KEY_ID, b"second")
        assert store.signatures(digest) == {KEY_ID: b"first"}


class ObjectsContract(ShelfContract):
    """Named objects: bytes under names that their writers choose, each written once."""

    @pytest.fixture
    def objects(self) -> ObjectStore:
        return self.another()

    def another(self) -> ObjectStore:
        return self.stack.enter_context(NamedObjects(self.open_shelf()))

    @pytest.mark.parametrize("data", [b"", b"segment", bytes(range(256)) * 5000])
    def test_bytes_come_back_under_their_name(self, objects: ObjectStore, data: bytes) -> None:
        assert objects.put("main/segments/1-10.seg", data)
        assert objects.get("main/segments/1-10.seg") == data
        assert self.another().get("main/segments/1-10.seg") == data

    @pytest.mark.parametrize("data", [b"", b"seg", b"segment of a log"])
    def test_the_beginning_of_an_object_is_its_first_bytes(self, objects: ObjectStore, data: bytes) -> None:
        objects.put("one", data)
        assert objects.beginning("one", 3) == data[:3]
        with pytest.raises(ArtifactMissing):
            objects.beginning("two", 3)

    def test_the_same_bytes_again_change_nothing_and_other_bytes_are_refused(self, objects: ObjectStore) -> None:
        assert [objects.put("one", b"1"), objects.put("one", b"1")] == [True, False]
        for other in (b"", b"2", b"11"):
            with pytest.raises(ArtifactConflict, match="one"):
                objects.put("one", other)
        assert objects.get("one") == b"1"

    def test_a_name_that_is_not_there_is_missing(self, objects: ObjectStore) -> None:
        objects.put("main/one", b"1")
        for name in ("two", "main/two", "main", "main/one/deeper"):
            with pytest.raises(ArtifactMissing, match=name):
                objects.get(name)

    def test_names_are_listed_in_order_by_their_beginning(self, objects: ObjectStore) -> None:
        names = ["a", "b-10", "b-9", "b/c", "b/d/e", "ba", "_x", "B"]
        for name in names:
            objects.put(name, b"")
        assert objects.names() == sorted(names)
        assert objects.names("b") == ["b-10", "b-9", "b/c", "b/d/e", "ba"]
        assert objects.names("b/") == ["b/c", "b/d/e"]
        assert objects.names("b/d") == ["b/d/e"]
        assert objects.names("a/") == objects.names("zz/deeper/") == []

    @pytest.mark.parametrize(
        "name",
        [
            "",
            "/a",
            "a/",
            "a//b",
            "..",
            "../a",
            "a/../b",
            ".a",
            "a/.b",
            "-a",
            "a b",
            "a\n",
            "ä",
            "tmp/a",
            "tmp",
            "a" * 201,
        ],
    )
    def test_a_name_that_not_every_place_can_keep_is_refused(self, objects: ObjectStore, name: str) -> None:
        with pytest.raises(ArtifactError, match="cannot name an object"):
            objects.put(name, b"1")
        with pytest.raises(ArtifactError, match="cannot name an object"):
            objects.get(name)
        assert objects.names() == []

    def test_no_beginning_leads_out_of_the_store(self, objects: ObjectStore) -> None:
        for prefix in ("../", "/", "a/../../"):
            with pytest.raises(ArtifactError, match="cannot name an object"):
                objects.names(prefix)

    def test_of_two_writers_of_different_bytes_exactly_one_wins(self, objects: ObjectStore) -> None:
        first, second = self.another(), self.another()
        for number in range(20):
            name = f"race-{number}"
            results = at_once(partial(first.put, name, b"first"), partial(second.put, name, b"second"))
            winner, loser = (0, 1) if results[0] is True else (1, 0)
            assert results[winner] is True
            assert isinstance(results[loser], ArtifactConflict)
            assert objects.get(name) == (b"first", b"second")[winner]

    def test_of_two_writers_of_the_same_bytes_exactly_one_wrote(self, objects: ObjectStore) -> None:
        first, second = self.another(), self.another()
        for number in range(20):
            name = f"race-{number}"
            results = at_once(partial(first.put, name, b"same"), partial(second.put, name, b"same"))
            assert sorted(map(bool, results)) == [False, True]
            assert objects.get(name) == b"same"
