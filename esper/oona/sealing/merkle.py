"""The Merkle tree over the log's records, as RFC 6962 and RFC 9162 define it.

A leaf is ``SHA256(0x00 || record)``, a node ``SHA256(0x01 || left || right)``. Belongs here: hashing, the subtrees
that a range of leaves falls into, making proofs and checking them. All of it is arithmetic on hashes. Does not belong
here: where leaves come from, or what a root is signed with (``checkpoint``).

Leaves are counted from 0: the record at position p is leaf p - 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, NoReturn

from esper.errors import ProofFailed

#: Root of a tree without leaves.
EMPTY_ROOT = hashlib.sha256(b"").digest()

#: Gives the hash of the complete subtree of a level and number; see ``Subtree``.
NodeSource = Callable[[int, int], bytes]


class Subtree(NamedTuple):
    """A complete subtree: the 2^level leaves from number * 2^level on."""

    level: int
    number: int

    @property
    def first(self) -> int:
        """First leaf."""
        return self.number << self.level

    @property
    def end(self) -> int:
        """Leaf after the last."""
        return (self.number + 1) << self.level


def leaf_hash(record: bytes) -> bytes:
    """Return the hash of a leaf."""
    return hashlib.sha256(b"\0" + record).digest()


def leaf_hashes(records: Iterable[bytes]) -> list[bytes]:
    """Return the hashes of many leaves."""
    sha256 = hashlib.sha256
    return [sha256(b"\0" + record).digest() for record in records]


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return hashlib.sha256(b"\1" + left + right).digest()


def subtrees(first: int, end: int) -> Iterator[Subtree]:
    """Yield the largest complete subtrees that a range of leaves falls into, from left to right.

    Args:
        first: First leaf of the range.
        end: Leaf after the last.
    """
    while first < end:
        fits = (end - first).bit_length() - 1
        aligned = (first & -first).bit_length() - 1 if first else fits
        level = min(fits, aligned)
        yield Subtree(level, first >> level)
        first += 1 << level


def subtree_hashes(first: int, leaves: Sequence[bytes]) -> list[bytes]:
    """Return the hashes of the subtrees that a run of leaves falls into, from left to right.

    Args:
        first: Number of the first leaf.
        leaves: Hashes of the leaves.
    """
    return [complete(leaves[part.first - first : part.end - first]) for part in subtrees(first, first + len(leaves))]


def complete(hashes: Sequence[bytes]) -> bytes:
    """Return the root over 2^n hashes."""
    sha256 = hashlib.sha256
    while len(hashes) > 1:
        pairs = zip(hashes[::2], hashes[1::2], strict=True)
        hashes = [sha256(b"\1" + left + right).digest() for left, right in pairs]
    return hashes[0]


class Frontier:
    """The complete subtrees of a tree that grows at its right end; all that its root depends on.

    Attributes:
        size: Leaves so far.
    """

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        """Begin with a tree.

        Args:
            size: Its leaves.
            hashes: Those of its ``subtrees``.
        """
        parts = subtrees(0, size)
        self.size = size
        self._parts = [(part.level, value) for part, value in zip(parts, hashes, strict=True)]

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """Hashes of the tree's ``subtrees``, from left to right."""
        return tuple(value for _, value in self._parts)

    def append(self, level: int, value: bytes) -> None:
        """Add the complete subtree that begins where the tree ends.

        Args:
            level: It has 2^level leaves, and begins at a multiple of that.
            value: Its hash.
        """
        self.size += 1 << level
        while self._parts and self._parts[-1][0] == level:
            value = node_hash(self._parts.pop()[1], value)
            level += 1
        self._parts.append((level, value))

    def extend(self, hashes: Sequence[bytes], leaves: int) -> None:
        """Add the next leaves by the hashes of their ``subtrees``."""
        for part, value in zip(subtrees(self.size, self.size + leaves), hashes, strict=True):
            self.append(part.level, value)

    def root(self) -> bytes:
        """Return the root of the tree so far."""
        return _folded([value for _, value in self._parts])


def root_of(first: int, end: int, node: NodeSource) -> bytes:
    """Return the root over a range of leaves that begins at 0 or where a subtree of its size may begin."""
    return _folded([node(level, number) for level, number in subtrees(first, end)])


def _folded(parts: list[bytes]) -> bytes:
    if not parts:
        return EMPTY_ROOT
    root = parts.pop()
    while parts:
        root = node_hash(parts.pop(), root)
    return root


def inclusion_proof(index: int, size: int, node: NodeSource) -> list[bytes]:
    """Return the path from a leaf to the root, PATH(m, D[n]) of RFC 6962.

    Args:
        index: Number of the leaf; below ``size``.
        size: Leaves of the tree.
        node: Gives the hashes of complete subtrees; never asked for one that holds the leaf.
    """
    path = []
    first, end = 0, size
    while end - first > 1:
        middle = first + _left(end - first)
        if index < middle:
            path.append(root_of(middle, end, node))
            end = middle
        else:
            path.append(root_of(first, middle, node))
            first = middle
    return path[::-1]


def consistency_proof(old: int, new: int, node: NodeSource) -> list[bytes]:
    """Return the proof that a tree is the beginning of another, PROOF(m, D[n]) of RFC 6962.

    Args:
        old: Leaves of the smaller tree.
        new: Leaves of the larger tree.
        node: Gives the hashes of complete subtrees; never asked for one that holds leaves on both sides of ``old``.
    """
    if old in (0, new):
        return []
    path = []
    first, end = 0, new
    while old != end:
        middle = first + _left(end - first)
        if old <= middle:
            path.append(root_of(middle, end, node))
            end = middle
        else:
            path.append(root_of(first, middle, node))
            first = middle
    if first:
        path.append(root_of(first, end, node))
    return path[::-1]


def _left(leaves: int) -> int:
    """Return how many leaves the left half has: the largest power of two below their number."""
    return 1 << ((leaves - 1).bit_length() - 1)


def check_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Check that a leaf stands in a tree (RFC 9162, section 2.1.3.2).

    Args:
        leaf: Hash of the leaf.
        index: Its number.
        size: Leaves of the tree.
        path: Hashes from ``inclusion_proof``.
        root: Root of the tree, from a source one trusts.

    Raises:
        ProofFailed: It does not, or the path is not one of such a tree.
    """
    if not 0 <= index < size:
        _fail(f"leaf {index} does not stand in a tree of {size}")
    at, last, value = index, size - 1, leaf
    for one in path:
        if last == 0:
            _fail("the path is too long")
        if at & 1 or at == last:
            value = node_hash(one, value)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            value = node_hash(value, one)
        at, last = at >> 1, last >> 1
    if last:
        _fail("the path is too short")
    if value != root:
        _fail("the path does not lead to the root")


def check_consistency(old: int, new: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]) -> None:
    """Check that a tree is the beginning of another (RFC 9162, section 2.1.4.2).

    Args:
        old: Leaves of the smaller tree.
        new: Leaves of the larger tree.
        old_root: Root of the smaller tree.
        new_root: Root of the larger tree.
        path: Hashes from ``consistency_proof``.

    Raises:
        ProofFailed: It is not, or the path is not one of such trees.
    """
    if not 0 <= old <= new:
        _fail(f"a tree of {old} cannot be the beginning of one of {new}")
    if old in (0, new):
        if path or old_root != (new_root if old else EMPTY_ROOT):
            _fail("the roots of equal trees differ, or the path is too long")
        return
    old_value, new_value = _both_roots(old, new, list(path) if old & (old - 1) else [old_root, *path])
    if old_value != old_root:
        _fail("the path does not lead to the older root")
    if new_value != new_root:
        _fail("the path does not lead to the newer root")


def _both_roots(old: int, new: int, hashes: list[bytes]) -> tuple[bytes, bytes]:
    """Return the roots that a path leads to; it begins with the largest subtree that ends where the older tree does."""
    if not hashes:
        _fail("the path is too short")
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old_value = new_value = hashes[0]
    for one in hashes[1:]:
        if last == 0:
            _fail("the path is too long")
        if at & 1 or at == last:
            old_value, new_value = node_hash(one, old_value), node_hash(one, new_value)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            new_value = node_hash(new_value, one)
        at, last = at >> 1, last >> 1
    if last:
        _fail("the path is too short")
    return old_value, new_value


def _fail(reason: str) -> NoReturn:
    raise ProofFailed(f"the Merkle proof does not hold: {reason}")
