"""The head file: how far a log file had been acknowledged, kept beside it.

A database file that was cut, or put back from an older copy, can be perfectly sound in itself. The head file
remembers the last acknowledged position and its chain value, so that the missing end is noticed. It guards against
accidents, not against a person who edits both files.

Two slots of 64 bytes are written in turn, so that a torn write leaves the other one: magic, position, chain value,
CRC-32, zeros. All numbers are little endian.

Crash windows: a slot is written after the database's commit is on stable storage and before the receipt is given,
so after a kill it is at most one append behind. It is forced to stable storage once a second and at close, not at
each append, so after a power loss it may be about a second behind. Behind is fine; ahead of the database means that
acknowledged facts are missing, and that is damage.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esper.errors import LogUnavailable
from esper.oona.chain import damaged
from esper.oona.port import Head

_MAGIC = b"ESPRHEAD"
_BODY = struct.Struct("<8sQ32s")
_CRC = struct.Struct("<I")
_SLOT_BYTES = 64


class HeadFile:
    """The head file of one log; several processes may share it."""

    def __init__(self, path: Path) -> None:
        """Open a head file, creating it if it is not there.

        Raises:
            LogUnavailable: It cannot be opened or created.
        """
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise LogUnavailable(
                f"head file {path} cannot be opened: {error.strerror}",
                hint="check that the log's directory exists and is writable",
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Shut out other processes that open this log or note a head."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def read(self) -> Head | None:
        """Return the newest noted head, or None if none was ever noted.

        Raises:
            LogDamaged: The file has bytes, but neither slot can be read.
        """
        slots = self._slots()
        heads = [head for head in slots if head is not None]
        if heads:
            return max(heads, key=lambda head: head.position)
        if os.fstat(self._fd).st_size:
            raise damaged(0, "neither slot can be read", where=f"head file {self.path}")
        return None

    def note(self, head: Head) -> None:
        """Note a head if it is newer than the noted one.

        Raises:
            LogUnavailable: The file cannot be written. The log itself holds what the head stands for.
        """
        with self.locked():
            self.note_locked(head)

    def note_locked(self, head: Head) -> None:
        """Do as ``note``, for a caller inside ``locked``."""
        positions = [-1 if slot is None else slot.position for slot in self._slots()]
        if head.position <= max(positions):
            return
        body = _BODY.pack(_MAGIC, head.position, head.chain)
        slot = (body + _CRC.pack(zlib.crc32(body))).ljust(_SLOT_BYTES, b"\0")
        try:
            os.pwrite(self._fd, slot, _SLOT_BYTES * positions.index(min(positions)))
        except OSError as error:
            raise self._unwritable(error) from error

    def sync(self) -> None:
        """Force what was noted to stable storage.

        Raises:
            LogUnavailable: The device refused.
        """
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _slots(self) -> list[Head | None]:
        data = os.pread(self._fd, 2 * _SLOT_BYTES, 0)
        return [_parse(data[:_SLOT_BYTES]), _parse(data[_SLOT_BYTES:])]

    def _unwritable(self, error: OSError) -> LogUnavailable:
        return LogUnavailable(
            f"head file {self.path} cannot be written: {error.strerror}; the log itself holds the facts",
            hint="append the same facts again to get their receipt",
        )


def _parse(slot: bytes) -> Head | None:
    if len(slot) != _SLOT_BYTES:
        return None
    body = slot[: _BODY.size]
    magic, position, chain = _BODY.unpack(body)
    (crc,) = _CRC.unpack_from(slot, _BODY.size)
    return Head(position, chain) if magic == _MAGIC and crc == zlib.crc32(body) else None
