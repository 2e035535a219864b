"""The shelf of kernels: what is put is signed, and nothing is taken that was touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from esper.artifacts.memory import MemoryShelf, MemoryStore
from esper.artifacts.signatures import judge
from esper.artifacts.signing import SigningKey
from esper.blueprints.ir import SiteSignature
from esper.blueprints.kernels.build import build
from esper.blueprints.kernels.kernel import encode_kernel, kernel_seed
from esper.blueprints.kernels.shelf import KernelShelf, quarantine_reason
from esper.blueprints.library import load_library
from esper.errors import (
    ArtifactConflict,
    ArtifactDamaged,
    ArtifactMissing,
    ArtifactStoreUnavailable,
    EsperError,
    KernelRefused,
    NotFound,
    SignatureInvalid,
)

SITE = SiteSignature(kind="linear", rank="NC", channels=16, in_channels=8, positions=(), causal=False)
OTHER_SITE = SiteSignature(kind="linear", rank="NC", channels=32, in_channels=8, positions=(), causal=False)


def kernel_at(site: SiteSignature) -> bytes:
    blueprint = load_library()["res_mlp"]
    return encode_kernel(blueprint, site, build(blueprint, site, seed=kernel_seed(blueprint, site)))


KERNEL = kernel_at(SITE)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[SigningKey]:
    folder = tmp_path_factory.mktemp("keys")
    return [SigningKey.create(folder / f"{name}.pem") for name in ("mine", "theirs")]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def shelf(store: MemoryStore, keys: list[SigningKey]) -> KernelShelf:
    return KernelShelf(store, key=keys[0], trusted=[])


def harm(store: MemoryStore, kernel_id: str, change: Callable[[bytes], bytes]) -> bytes:
    """Change a kernel where it lies and return what lies there now."""
    kept, name = store.shelf, f"{kernel_id[:2]}/{kernel_id}"
    assert isinstance(kept, MemoryShelf)
    kept.kept[name] = change(kept.kept[name])
    return kept.kept[name]


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def reason_of(shelf: KernelShelf, kernel_id: str, site: SiteSignature | None = None) -> str | None:
    with pytest.raises(EsperError) as caught:
        shelf.get(kernel_id, signature=site)
    return quarantine_reason(caught.value)


def test_a_kernel_that_is_put_is_signed_and_taken_back_whole(
    store: MemoryStore, shelf: KernelShelf, keys: list[SigningKey]
) -> None:
    kernel_id = shelf.put(KERNEL)
    kernel = shelf.get(kernel_id, signature=SITE)
    assert (kernel.kernel_id, kernel.signature, kernel.manifest.name) == (kernel_id, SITE, "res_mlp")
    assert shelf.has(kernel_id)
    assert shelf.signed_by == keys[0].public.key_id
    assert judge(store, bytes.fromhex(kernel_id), [keys[0].public]).good == [shelf.signed_by]


def test_putting_a_kernel_again_changes_nothing(store: MemoryStore, shelf: KernelShelf) -> None:
    ids = {shelf.put(KERNEL), shelf.put(KERNEL)}
    assert len(ids) == len(list(store.digests())) == 1
    assert len(store.signatures(bytes.fromhex(ids.pop()))) == 1


def test_bytes_that_are_no_kernel_are_not_vouched_for(store: MemoryStore, shelf: KernelShelf) -> None:
    with pytest.raises(KernelRefused):
        shelf.put(b"no kernel")
    assert list(store.digests()) == []


def test_a_tampered_byte_is_damage(store: MemoryStore, shelf: KernelShelf) -> None:
    kernel_id = shelf.put(KERNEL)
    harm(store, kernel_id, flipped)
    with pytest.raises(ArtifactDamaged):
        shelf.get(kernel_id)
    assert reason_of(shelf, kernel_id) == "damaged"


def test_a_manifest_that_was_changed_and_digested_anew_is_refused(
    store: MemoryStore, shelf: KernelShelf, keys: list[SigningKey]
) -> None:
    plain = msgspec.msgpack.decode(KERNEL)
    plain["manifest"]["parameters"] += 1
    lying = msgspec.msgpack.encode(plain)
    with pytest.raises(KernelRefused, match="manifest"):
        shelf.put(lying)
    digest = store.put(lying)
    assert reason_of(shelf, digest.hex()) == "unsigned"
    # Even whoever holds a trusted key cannot make it pass.
    store.add_signature(digest, keys[0].public.key_id, keys[0].sign(b"esper artifact v1\n" + digest))
    with pytest.raises(KernelRefused, match="manifest"):
        shelf.get(digest.hex())
    assert reason_of(shelf, digest.hex()) == "not_a_kernel"


def test_a_document_that_breaks_a_rule_is_refused_as_a_kernel(store: MemoryStore) -> None:
    plain = msgspec.msgpack.decode(KERNEL)
    plain["ir"] = plain["ir"].replace('"init":"zeros"', '"init":"kaiming"')
    digest = store.put(msgspec.msgpack.encode(plain))
    assert reason_of(KernelShelf(store), digest.hex()) == "not_a_kernel"


def test_a_wrong_signature_is_refused_though_another_one_holds(store: MemoryStore, keys: list[SigningKey]) -> None:
    mine, theirs = keys
    kernel_id = KernelShelf(store, key=theirs).put(KERNEL)
    store.add_signature(bytes.fromhex(kernel_id), mine.public.key_id, mine.sign(b"something else"))
    shelf = KernelShelf(store, key=mine, trusted=[theirs.public])
    with pytest.raises(SignatureInvalid, match="does not fit"):
        shelf.get(kernel_id)
    assert reason_of(shelf, kernel_id) == "wrong_signature"


def test_a_kernel_signed_by_a_stranger_is_refused_with_what_to_do_and_is_not_to_blame(
    store: MemoryStore, keys: list[SigningKey]
) -> None:
    mine, theirs = keys
    kernel_id = KernelShelf(store, key=theirs).put(KERNEL)
    shelf = KernelShelf(store, key=mine, trusted=[])
    with pytest.raises(SignatureInvalid, match=f"{theirs.public.key_id}, which is not trusted here") as caught:
        shelf.get(kernel_id)
    assert "trusted_keys" in caught.value.hint
    assert reason_of(shelf, kernel_id) is None
    assert KernelShelf(store, key=mine, trusted=[theirs.public]).get(kernel_id).kernel_id == kernel_id
    shelf.put(KERNEL)  # who built the same bytes vouches for them too
    assert shelf.get(kernel_id).kernel_id == kernel_id
    assert len(store.signatures(bytes.fromhex(kernel_id))) == 2


def test_an_unsigned_kernel_is_refused_where_trust_is_asked_for_and_taken_where_it_is_not(
    store: MemoryStore, shelf: KernelShelf
) -> None:
    plain = KernelShelf(store)
    kernel_id = plain.put(KERNEL)
    assert plain.signed_by is None
    assert plain.get(kernel_id).kernel_id == kernel_id
    with pytest.raises(SignatureInvalid, match="is not signed"):
        shelf.get(kernel_id)
    assert reason_of(shelf, kernel_id) == "unsigned"


def test_a_kernel_for_another_site_is_refused(shelf: KernelShelf) -> None:
    kernel_id = shelf.put(KERNEL)
    with pytest.raises(KernelRefused, match="is for a linear site NC 16"):
        shelf.get(kernel_id, signature=OTHER_SITE)
    assert reason_of(shelf, kernel_id, OTHER_SITE) == "wrong_site"


@pytest.mark.parametrize("kernel_id", ["", "zz", "ab" * 31, "AB" * 32, "ab" * 31 + "\n"])
def test_an_id_that_is_none_is_not_found(shelf: KernelShelf, kernel_id: str) -> None:
    for ask in (shelf.get, shelf.has, shelf.quarantine):
        with pytest.raises(NotFound, match="is no kernel id"):
            ask(kernel_id)


def test_a_kernel_that_is_not_there_is_missing(shelf: KernelShelf) -> None:
    assert not shelf.has("ab" * 32)
    with pytest.raises(ArtifactMissing):
        shelf.get("ab" * 32)
    assert reason_of(shelf, "ab" * 32) == "missing"
    assert shelf.quarantine("ab" * 32) is None


def test_damaged_bytes_are_moved_aside_and_sound_ones_can_be_put(
    store: MemoryStore, shelf: KernelShelf, keys: list[SigningKey]
) -> None:
    theirs = keys[1]
    kernel_id = KernelShelf(store, key=theirs).put(KERNEL)
    shelf.put(KERNEL)
    damaged = harm(store, kernel_id, flipped)
    evidence = shelf.quarantine(kernel_id)
    assert evidence is not None
    assert store.get(evidence) == damaged
    assert not shelf.has(kernel_id)
    assert shelf.put(KERNEL) == kernel_id
    assert shelf.get(kernel_id).kernel_id == kernel_id
    # Others vouched for the sound bytes, which are back.
    assert KernelShelf(store, trusted=[theirs.public]).get(kernel_id).kernel_id == kernel_id


def test_damaged_bytes_are_replaced_by_a_put_alone(store: MemoryStore, shelf: KernelShelf) -> None:
    kernel_id = shelf.put(KERNEL)
    harm(store, kernel_id, lambda data: data[:-1])
    assert shelf.put(KERNEL) == kernel_id
    assert shelf.get(kernel_id).kernel_id == kernel_id


def test_wrong_signatures_are_moved_aside_and_a_put_signs_again(
    store: MemoryStore, shelf: KernelShelf, keys: list[SigningKey]
) -> None:
    kernel_id = KernelShelf(store).put(KERNEL)
    digest, mine = bytes.fromhex(kernel_id), keys[0].public.key_id
    store.add_signature(digest, mine, b"forged")
    evidence = shelf.quarantine(kernel_id)
    assert evidence is not None
    assert json.loads(store.get(evidence)) == {"kernel_id": kernel_id, "signatures": {mine: b"forged".hex()}}
    assert reason_of(shelf, kernel_id) == "unsigned"
    shelf.put(KERNEL)
    assert shelf.get(kernel_id).kernel_id == kernel_id


def test_a_wrong_signature_of_ones_own_key_is_replaced_by_a_put(
    store: MemoryStore, shelf: KernelShelf, keys: list[SigningKey]
) -> None:
    kernel_id = KernelShelf(store).put(KERNEL)
    store.add_signature(bytes.fromhex(kernel_id), keys[0].public.key_id, b"forged")
    assert shelf.put(KERNEL) == kernel_id
    assert shelf.get(kernel_id).kernel_id == kernel_id


def test_sound_bytes_that_are_no_kernel_are_their_own_evidence(store: MemoryStore, shelf: KernelShelf) -> None:
    digest = store.put(b"no kernel")
    assert shelf.quarantine(digest.hex()) == digest
    assert store.get(digest) == b"no kernel"


def test_a_store_that_is_away_is_no_reason_for_quarantine() -> None:
    assert quarantine_reason(ArtifactStoreUnavailable()) is None


def test_a_kernel_put_on_a_disk_is_read_by_another_process_s_shelf(tmp_path: Path, keys: list[SigningKey]) -> None:
    from esper.artifacts import open_store

    url = f"file:///{tmp_path}/artifacts"
    kernel_id = KernelShelf(open_store(url), key=keys[0]).put(KERNEL)
    assert KernelShelf(open_store(url), trusted=[keys[0].public]).get(kernel_id, signature=SITE).signature == SITE


# --- keys that nobody made


def test_a_shelf_that_is_opened_makes_a_key_once_and_tells(store: MemoryStore, tmp_path: Path) -> None:
    told: list[SigningKey] = []
    key_file, folder = tmp_path / "keys" / "signing.pem", tmp_path / "keys"
    first = KernelShelf.open(store, key_file, folder, told.append)
    kernel_id = first.put(KERNEL)
    again = KernelShelf.open(store, key_file, folder, told.append)
    assert again.get(kernel_id).kernel_id == kernel_id
    assert [key.public.key_id for key in told] == [first.signed_by] == [again.signed_by]
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert (folder / "signing.pub").exists()


def test_of_two_processes_that_need_a_key_at_once_both_get_the_same(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "signing.pem"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: SigningKey.load_or_create(path), range(8)))
    assert len({key.public for key, _ in made}) == 1
    assert sum(new for _, new in made) == 1


def test_a_public_half_without_its_private_one_is_left_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    SigningKey.create(path)
    path.unlink()
    with pytest.raises(ArtifactConflict):
        SigningKey.load_or_create(path)
