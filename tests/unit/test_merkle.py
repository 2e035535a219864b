"""The Merkle tree: known answers of the RFC's reference implementation, and a naive tree to agree with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.errors import ProofFailed
from esper.oona.sealing.merkle import (
    EMPTY_ROOT,
    Frontier,
    NodeSource,
    check_consistency,
    check_inclusion,
    complete,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_of,
    subtree_hashes,
    subtrees,
)

#: Leaves, roots and proofs that the implementations of RFC 6962 test themselves with.
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
FIRST_OF_EIGHT = [
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
]
SIX_OF_EIGHT = [
    "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
]


def naive_root(records: Sequence[bytes]) -> bytes:
    """MTH(D[n]) as the RFC writes it down."""
    if not records:
        return hashlib.sha256(b"").digest()
    if len(records) == 1:
        return hashlib.sha256(b"\x00" + records[0]).digest()
    half = 1
    while half * 2 < len(records):
        half *= 2
    return hashlib.sha256(b"\x01" + naive_root(records[:half]) + naive_root(records[half:])).digest()


def naive_path(index: int, records: Sequence[bytes]) -> list[bytes]:
    """PATH(m, D[n]) as the RFC writes it down."""
    if len(records) == 1:
        return []
    half = 1
    while half * 2 < len(records):
        half *= 2
    if index < half:
        return [*naive_path(index, records[:half]), naive_root(records[half:])]
    return [*naive_path(index - half, records[half:]), naive_root(records[:half])]


def naive_subproof(old: int, records: Sequence[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF(m, D[n], b) as the RFC writes it down."""
    if old == len(records):
        return [] if whole else [naive_root(records)]
    half = 1
    while half * 2 < len(records):
        half *= 2
    if old <= half:
        return [*naive_subproof(old, records[:half], whole), naive_root(records[half:])]
    return [*naive_subproof(old - half, records[half:], False), naive_root(records[:half])]


def records_of(count: int) -> list[bytes]:
    return [b"record %d" % number for number in range(count)]


def source(records: Sequence[bytes]) -> NodeSource:
    def node(level: int, index: int) -> bytes:
        part = records[index << level : (index + 1) << level]
        assert len(part) == 1 << level, "only complete subtrees are asked for"
        return complete([leaf_hash(one) for one in part])

    return node


def test_roots_are_the_known_ones() -> None:
    frontier = Frontier()
    assert frontier.root() == EMPTY_ROOT == naive_root([])
    for record, root in zip(LEAVES, ROOTS, strict=True):
        frontier.append(0, leaf_hash(record))
        assert frontier.root().hex() == root


def test_proofs_are_the_known_ones() -> None:
    path = inclusion_proof(0, 8, source(LEAVES))
    assert [one.hex() for one in path] == FIRST_OF_EIGHT
    check_inclusion(leaf_hash(LEAVES[0]), 0, 8, path, bytes.fromhex(ROOTS[7]))
    path = consistency_proof(6, 8, source(LEAVES))
    assert [one.hex() for one in path] == SIX_OF_EIGHT
    check_consistency(6, 8, bytes.fromhex(ROOTS[5]), bytes.fromhex(ROOTS[7]), path)


@given(st.integers(0, 70), st.integers(0, 70))
def test_a_range_falls_into_its_largest_subtrees(first: int, length: int) -> None:
    parts = list(subtrees(first, first + length))
    place = first
    for part in parts:
        assert part.first == place
        place = part.end
    assert place == first + length
    merged = {(part.level + 1, part.number >> 1) for part in parts}
    assert all(
        not (first <= number << level and (number + 1) << level <= first + length) for level, number in merged
    ), "two of them are one larger subtree"


@given(st.lists(st.integers(1, 40), max_size=6))
def test_a_tree_grown_by_runs_has_the_root_of_the_whole(lengths: list[int]) -> None:
    records, frontier = records_of(sum(lengths)), Frontier()
    for length in lengths:
        run = [leaf_hash(one) for one in records[frontier.size : frontier.size + length]]
        frontier.extend(subtree_hashes(frontier.size, run), length)
    assert frontier.size == len(records)
    assert frontier.root() == naive_root(records) == root_of(0, len(records), source(records))


@given(st.integers(1, 80), st.data())
def test_inclusion_agrees_with_the_naive_tree(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    records = records_of(size)
    path = inclusion_proof(index, size, source(records))
    assert path == naive_path(index, records)
    check_inclusion(leaf_hash(records[index]), index, size, path, naive_root(records))


@given(st.integers(1, 80), st.data())
def test_consistency_agrees_with_the_naive_tree(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, new))
    records = records_of(new)
    path = consistency_proof(old, new, source(records))
    assert path == naive_subproof(old, records, True)
    check_consistency(old, new, naive_root(records[:old]), naive_root(records), path)


@given(st.integers(1, 40), st.data())
def test_no_altered_inclusion_proof_holds(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    records = records_of(size)
    root, leaf = naive_root(records), leaf_hash(records[index])
    path = naive_path(index, records)
    for place in range(len(path)):
        wrong = [*path]
        wrong[place] = bytes(32)
        refuse_inclusion(leaf, index, size, wrong, root)
        refuse_inclusion(leaf, index, size, path[:place] + path[place + 1 :], root)
    refuse_inclusion(leaf, index, size, [*path, bytes(32)], root)
    refuse_inclusion(leaf_hash(b"other"), index, size, path, root)
    refuse_inclusion(leaf, index, size, path, bytes(32))
    refuse_inclusion(leaf, -1, size, path, root)
    refuse_inclusion(leaf, size, size, path, root)
    for other in range(size):
        if other != index:
            refuse_inclusion(leaf, other, size, path, root)


@given(st.integers(2, 40), st.data())
def test_no_altered_consistency_proof_holds(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, new - 1))
    records = records_of(new)
    old_root, new_root = naive_root(records[:old]), naive_root(records)
    path = naive_subproof(old, records, True)
    rewritten = [b"another", *records[1:]]
    for place in range(len(path)):
        wrong = [*path]
        wrong[place] = bytes(32)
        refuse_consistency(old, new, old_root, new_root, wrong)
        refuse_consistency(old, new, old_root, new_root, path[:place] + path[place + 1 :])
    refuse_consistency(old, new, old_root, new_root, [*path, bytes(32)])
    refuse_consistency(old, new, bytes(32), new_root, path)
    refuse_consistency(old, new, old_root, bytes(32), path)
    refuse_consistency(old, new, old_root, naive_root(rewritten), naive_subproof(old, rewritten, True))
    refuse_consistency(new, old, new_root, old_root, path)


def refuse_inclusion(leaf: bytes, index: int, size: int, path: list[bytes], root: bytes) -> None:
    with pytest.raises(ProofFailed):
        check_inclusion(leaf, index, size, path, root)


def refuse_consistency(old: int, new: int, old_root: bytes, new_root: bytes, path: list[bytes]) -> None:
    with pytest.raises(ProofFailed):
        check_consistency(old, new, old_root, new_root, path)


def test_equal_and_empty_trees_are_consistent_without_a_path() -> None:
    root = naive_root(records_of(5))
    check_consistency(5, 5, root, root, consistency_proof(5, 5, source(records_of(5))))
    check_consistency(0, 5, EMPTY_ROOT, root, consistency_proof(0, 5, source(records_of(5))))
    refuse_consistency(5, 5, root, bytes(32), [])
    refuse_consistency(5, 5, root, root, [bytes(32)])
    refuse_consistency(0, 5, root, root, [])


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.data())
def test_proofs_need_the_leaves_of_one_run_only(lengths: list[int], data: st.DataObject) -> None:
    """All else that a proof asks for is a subtree of some run, or made of several; see ``segment``."""
    records = records_of(sum(lengths))
    ends = list(accumulate(lengths))
    known = [part for first, end in pairwise([0, *ends]) for part in subtrees(first, end)]
    index = data.draw(st.integers(0, len(records) - 1))
    own_end = next(end for end in ends if end > index)
    own = range(own_end - lengths[ends.index(own_end)], own_end)
    naive = source(records)

    def cuts_one(first: int, end: int) -> bool:
        return any(part.first < place < part.end for part in known for place in (first, end))

    def node(level: int, number: int) -> bytes:
        first, end = number << level, (number + 1) << level
        assert not cuts_one(first, end) or (first in own and end - 1 in own)
        return naive(level, number)

    def whole(level: int, number: int) -> bytes:
        assert not cuts_one(number << level, (number + 1) << level)
        return naive(level, number)

    inclusion_proof(index, len(records), node)
    for old in ends:
        consistency_proof(old, len(records), whole)
