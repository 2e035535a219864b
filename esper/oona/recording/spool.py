"""The spool file: facts on local disk that wait for a log that cannot be reached.

Belongs here: the bytes of a spool file, writing them to stable storage and reading them back. Does not belong here:
when facts are spooled (``outage``) and how they get into the log (``delivery``).

Layout, all numbers little endian. Two slots of 64 bytes, written in turn, so that a torn write leaves the other one:
magic, sequence, end of what was forced to disk, end of what was delivered, CRC-32, zeros. From byte 128 on frames:
length of the body, CRC-32 of the body, body. The first body is the header, every other one is one append, in
order; both are msgpack.

Crash windows: a frame is forced before its batch counts as durable, and noted in a slot after that. A frame that
cannot be read is damage where a slot says that it was forced; past that it is a torn write, of which nobody was told.
A new file is filled and forced under another name first, so that one ending in ``.spool`` always has slots and header.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from esper.errors import LogUnavailable, SpoolDamaged

#: Format number in the header.
FORMAT = 1
#: Files that wait for delivery.
SUFFIX = ".spool"
#: Files that a log refused and that wait for a person.
REFUSED = ".refused"
_MAGIC = b"ESPSPOOL"
_SLOT = struct.Struct("<8sQQQ")
_CRC = struct.Struct("<I")
_FRAME = struct.Struct("<II")
_SLOT_BYTES = 64
_FIRST_FRAME = 2 * _SLOT_BYTES


class SpoolHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a spool file says of itself."""

    format: int
    #: Which log the facts are for: address and namespace, no credentials.
    target: str
    #: Microseconds since the Unix epoch when the file was made; files are delivered in this order.
    created_at: int


class SpooledFact(msgspec.Struct, frozen=True, array_like=True):
    """One fact of a batch, encoded."""

    event_id: bytes
    type: str
    schema: int
    causation_id: bytes | None
    payload: bytes


class SpooledBatch(msgspec.Struct, frozen=True, array_like=True):
    """One append, as it was or would have been tried: a retry must be the same batch."""

    stream: str
    expected: int
    sender_id: str
    trace_id: str
    facts: list[SpooledFact]


_encode = msgspec.msgpack.Encoder().encode
_decode_batch = msgspec.msgpack.Decoder(SpooledBatch).decode
_decode_header = msgspec.msgpack.Decoder(SpoolHeader).decode


def frame_of(batch: SpooledBatch) -> bytes:
    """Return the bytes of a batch's frame."""
    return _framed(_encode(batch))


class SpoolFile:
    """One spool file, locked by this process as long as it is open.

    One thread may add while another reads and notes what was delivered.

    Attributes:
        path: Where the file is.
        header: What it says of itself.
        forced: End of what is on stable storage, in bytes from the start of the file.
        delivered: End of what is in the log.
    """

    def __init__(self, path: Path, fd: int, header: SpoolHeader, first: int, slot: tuple[int, int, int]) -> None:
        """Keep an open, locked file; made by ``create`` and ``open``."""
        self.path = path
        self.header = header
        self._fd = fd
        self._first = first
        self._sequence, self.forced, self.delivered = slot
        self._slots = threading.Lock()

    @classmethod
    def create(cls, folder: Path, name: str, header: SpoolHeader) -> SpoolFile:
        """Make a new file, forced to disk with its header.

        Raises:
            LogUnavailable: The folder or the file cannot be made.
        """
        number = 0
        while True:
            path = folder / (f"{name}{SUFFIX}" if number == 0 else f"{name}-{number}{SUFFIX}")
            unborn = path.with_name(path.name + ".new")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                fd = os.open(unborn, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                number += 1
                continue
            except OSError as error:
                raise _unwritable(unborn, error) from error
            if not path.exists():
                break
            os.close(fd)
            unborn.unlink()
            number += 1
        frame = _framed(_encode(header))
        first = _FIRST_FRAME + len(frame)
        file = cls(path, fd, header, first, (0, first, first))
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            _write(fd, bytes(_FIRST_FRAME) + frame, 0)
            file._note()
            os.fsync(fd)
            unborn.rename(path)
            _force_folder(folder)
        except OSError as error:
            os.close(fd)
            unborn.unlink(missing_ok=True)
            raise _unwritable(path, error) from error
        return file

    @classmethod
    def open(cls, path: Path) -> SpoolFile | None:
        """Open and lock a file; None if another process has it, or it is gone.

        Raises:
            SpoolDamaged: Neither slot or not the header can be read.
            LogUnavailable: The file cannot be opened.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LogUnavailable(f"spool file {path} cannot be opened: {error.strerror}") from error
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                same = os.path.samestat(os.fstat(fd), path.stat())
            except (BlockingIOError, FileNotFoundError):
                same = False
            if not same:  # in use, or delivered and removed while we waited for the lock
                os.close(fd)
                return None
            file = cls(path, fd, *_beginning(fd, path))
            file._find_end()
        except BaseException:
            os.close(fd)
            raise
        return file

    @property
    def empty(self) -> bool:
        """Tell whether the file has no frame but its header."""
        return self.forced == self._first

    def add(self, frame: bytes) -> bool:
        """Write a frame and force it to disk; False if the device has no room for it, and nothing was kept of it.

        Raises:
            LogUnavailable: The device refused otherwise.
        """
        try:
            _write(self._fd, frame, self.forced)
            os.fdatasync(self._fd)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                os.ftruncate(self._fd, self.forced)
                return False
            raise _unwritable(self.path, error) from error
        with self._slots:
            self.forced += len(frame)
            self._note()
        return True

    def at(self, offset: int) -> tuple[SpooledBatch, int] | None:
        """Return the batch whose frame begins at an offset and where the next one does; None at the end.

        Raises:
            SpoolDamaged: The frame is not what was written.
        """
        if offset >= self.forced:
            return None
        body, after = _body(self._fd, self.path, offset)
        try:
            return _decode_batch(body), after
        except msgspec.MsgspecError as error:
            raise _damaged(self.path, offset, f"the frame has another form: {error}") from error

    def batches(self) -> Iterator[SpooledBatch]:
        """Yield what is not delivered yet, in order, up to the first damage."""
        offset = self.delivered
        try:
            while (found := self.at(offset)) is not None:
                batch, offset = found
                yield batch
        except SpoolDamaged:
            return

    def note_delivered(self, offset: int) -> None:
        """Note that everything before an offset is in the log."""
        with self._slots:
            self.delivered = offset
            self._note()

    def remove(self) -> None:
        """Remove the file; what it held is in the log."""
        self.path.unlink(missing_ok=True)
        self.close()

    def keep_aside(self) -> Path:
        """Rename the file so that it is delivered no more, and return its new path."""
        aside = self.path.with_name(self.path.name + REFUSED)
        self.path.rename(aside)
        self.path = aside
        self.close()
        return aside

    def close(self) -> None:
        """Let go of the file; closing twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _note(self) -> None:
        """Write the older of the two slots; losing it to a power failure loses no frame."""
        self._sequence += 1
        body = _SLOT.pack(_MAGIC, self._sequence, self.forced, self.delivered)
        slot = (body + _CRC.pack(zlib.crc32(body))).ljust(_SLOT_BYTES, b"\0")
        try:
            os.pwrite(self._fd, slot, _SLOT_BYTES * (self._sequence % 2))
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def _find_end(self) -> None:
        """Take in whole frames past the noted end: they were written, and perhaps forced, before a crash."""
        while True:
            try:
                body, after = _body(self._fd, self.path, self.forced)
                _decode_batch(body)
            except (SpoolDamaged, msgspec.MsgspecError):
                return
            self.forced = after


def _framed(body: bytes) -> bytes:
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


def _body(fd: int, path: Path, offset: int) -> tuple[bytes, int]:
    """Return the body of the frame at an offset and where the next frame begins."""
    head = os.pread(fd, _FRAME.size, offset)
    if len(head) < _FRAME.size:
        raise _damaged(path, offset, "the file ends there")
    length, crc = _FRAME.unpack(head)
    body = os.pread(fd, length, offset + _FRAME.size) if length <= os.fstat(fd).st_size else b""
    if not length or len(body) != length or zlib.crc32(body) != crc:
        raise _damaged(path, offset, "the frame does not have its checksum")
    return body, offset + _FRAME.size + length


def _beginning(fd: int, path: Path) -> tuple[SpoolHeader, int, tuple[int, int, int]]:
    """Return a file's header, where its first batch is, and its newer slot."""
    slots = [slot for slot in (_slot(os.pread(fd, _SLOT_BYTES, at)) for at in (0, _SLOT_BYTES)) if slot]
    if not slots:
        raise _damaged(path, 0, "neither slot can be read")
    body, first = _body(fd, path, _FIRST_FRAME)
    try:
        header = _decode_header(body)
    except msgspec.MsgspecError as error:
        raise _damaged(path, _FIRST_FRAME, f"the header has another form: {error}") from error
    if header.format != FORMAT:
        raise _damaged(path, _FIRST_FRAME, f"its format is {header.format}, this Esper reads {FORMAT}")
    return header, first, max(slots)


def _slot(data: bytes) -> tuple[int, int, int] | None:
    if len(data) != _SLOT_BYTES:
        return None
    body = data[: _SLOT.size]
    magic, sequence, forced, delivered = _SLOT.unpack(body)
    (crc,) = _CRC.unpack_from(data, _SLOT.size)
    return (sequence, forced, delivered) if magic == _MAGIC and crc == zlib.crc32(body) else None


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _force_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _damaged(path: Path, offset: int, reason: str) -> SpoolDamaged:
    return SpoolDamaged(
        f"spool file {path} is damaged at byte {offset}: {reason}", path=path, offset=offset, reason=reason
    )


def _unwritable(path: Path, error: OSError) -> LogUnavailable:
    return LogUnavailable(
        f"spool file {path} cannot be written: {error.strerror}",
        hint="see that the folder of the setting `spool` may be written and has room",
    )
