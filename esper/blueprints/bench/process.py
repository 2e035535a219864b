"""One child of the workbench, seen from its parent: started, spoken to, watched, ended.

Belongs here: the pipe, the limits of time and memory, and killing the child with all that came of it. Does not belong
here: when a child is needed (``workbench``), or what it may not do from inside (``confinement``).

Memory is judged by what the system says the child holds, read some fifty times a second, because that holds for every
kind of memory and the child cannot answer for itself while it fills it. ``RLIMIT_DATA`` in the child stops a single
allocation beyond the limit before it is filled; it does not count shared memory, so it is the second line only.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import signal
import subprocess
import time
from collections.abc import Callable

import msgspec

from esper.blueprints.bench import procfs
from esper.blueprints.bench.ending import end_all
from esper.blueprints.bench.folder import Folder
from esper.blueprints.bench.spawn import spawn
from esper.blueprints.bench.wire import HEADER_BYTES, MARK, MAX_MESSAGE_BYTES, Answer, Request, framed
from esper.errors import DependencyUnavailable, WorkFailed

#: How often limits are looked at while nothing comes from the child.
_LOOK_S = 0.02
_START_S = 120.0
_CLOSE_S = 2.0
_READ_BYTES = 1 << 20
#: How much is kept of what the child prints.
_KEPT_BYTES = 4096
#: A child that holds so much more than when it was new serves no other job.
_BLOAT_BYTES = 512 << 20


class Process:
    """A child that does one job at a time; after a job that raised ``WorkFailed`` look at ``usable``."""

    def __init__(self, tasks: str) -> None:
        """Start the child; it is not waited for.

        Args:
            tasks: Name of the module with the table of tasks.
        """
        self.owner = os.getpid()
        self._folder = Folder()
        mark = secrets.token_hex(16)
        self._mark = f"{MARK}={mark}".encode()
        try:
            self._spawned = spawn(tasks, str(self._folder.path), (MARK, mark))
        except DependencyUnavailable:
            self._folder.remove()
            raise
        self._popen = self._spawned.popen
        self._printed = bytearray()
        self._ready = False
        self._idle_bytes: int | None = None
        #: Whether another job can be given to it.
        self.usable = True

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._popen.pid

    def alive(self) -> bool:
        """Tell whether the child runs."""
        return self.usable and self._popen.poll() is None

    def wait_until_ready(self, stop: Callable[[], bool]) -> None:
        """Wait until the child has loaded what it needs.

        Raises:
            WorkFailed: It was stopped.
            DependencyUnavailable: It cannot start.
        """
        if self._ready:
            return
        try:
            self._converse(b"", wall_s=_START_S, memory_bytes=None, stop=stop)
        except WorkFailed as error:
            if error.reason == "stopped":
                raise
            raise DependencyUnavailable(
                f"the workbench's child does not start: {error.message}",
                hint="see whether `python -c 'import esper.blueprints.kernels.crucible'` works",
            ) from error
        self._ready = True
        self._idle_bytes = procfs.resident_bytes(self.pid)

    def ask(
        self, request: Request, *, wall_s: float, memory_bytes: int, stop: Callable[[], bool]
    ) -> tuple[Answer, int | None]:
        """Give the child a job; return its answer and the most memory that was seen above what it held before.

        Raises:
            WorkFailed: A limit was broken, the child died, or it was stopped; the child is gone then.
        """
        answer, peak_bytes = self._converse(framed(request), wall_s=wall_s, memory_bytes=memory_bytes, stop=stop)
        if procfs.has_children(self.pid):
            self.kill()
            raise WorkFailed(f"{request.task} left processes behind, which were killed", reason="forked")
        if answer.spoiled or self._bloated():
            self.kill()
        return answer, peak_bytes

    def _bloated(self) -> bool:
        held = procfs.resident_bytes(self.pid)
        return held is not None and self._idle_bytes is not None and held - self._idle_bytes > _BLOAT_BYTES

    def close(self) -> None:
        """Let the child end, and kill it if it does not."""
        if self.usable and self._popen.poll() is None:
            self._spawned.requests.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(_CLOSE_S)
        self.kill()

    def kill(self) -> bool:
        """End the child and everything it started; tell whether there was anything else."""
        self.usable = False
        others = end_all(self._popen, self._mark)
        self._spawned.close_pipes()
        self._folder.remove()
        return others

    def forget(self) -> None:
        """Give up what a forked copy of the parent has of the child; the child itself is left alone."""
        self.usable = False
        self._spawned.close_pipes()
        self._popen.returncode = 0

    def _converse(
        self, message: bytes, *, wall_s: float, memory_bytes: int | None, stop: Callable[[], bool]
    ) -> tuple[Answer, int | None]:
        """Write a message and read an answer, watching the child all the while."""
        try:
            return self._exchange(message, wall_s, memory_bytes, stop)
        except BaseException:
            # Ctrl-C too: half a message was spoken, and nobody could go on from there.
            self.kill()
            raise

    def _exchange(
        self, message: bytes, wall_s: float, memory_bytes: int | None, stop: Callable[[], bool]
    ) -> tuple[Answer, int | None]:
        watch = _Watch(self.pid, wall_s, memory_bytes, stop)
        rest, inbox = memoryview(message), _Inbox()
        with selectors.DefaultSelector() as selector:
            _, requests, answers, printed = self._spawned
            selector.register(answers, selectors.EVENT_READ)
            selector.register(printed, selectors.EVENT_READ)
            if rest:
                selector.register(requests, selectors.EVENT_WRITE)
            while (answer := inbox.answer()) is None:
                watch.look()
                events = selector.select(_LOOK_S)
                if not events and self._popen.poll() is not None:
                    raise self._death()  # what it left behind may still hold the pipe open
                for key, _ in events:
                    if key.fileobj is requests:
                        rest = rest[_write_some(requests.fileno(), rest) :]
                        done = not rest
                    elif key.fileobj is printed:
                        done = not self._hear(os.read(printed.fileno(), _READ_BYTES))
                    else:
                        done = not inbox.take(os.read(answers.fileno(), _READ_BYTES))
                        if done:
                            raise self._death()
                    if done:
                        selector.unregister(key.fileobj)
        return answer, watch.peak_bytes

    def _hear(self, printed: bytes) -> bool:
        """Keep the end of what the child prints; tell whether more may come."""
        self._printed += printed[-_KEPT_BYTES:]
        del self._printed[:-_KEPT_BYTES]
        return bool(printed)

    def _death(self) -> WorkFailed:
        """Return why the child ended in the middle of a job."""
        try:
            # Closing its end of the pipe is not dying, but nothing can be asked of it any more.
            code = self._popen.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            return WorkFailed("the process that did the work closed its pipe", reason="died")
        with contextlib.suppress(OSError):
            os.set_blocking(self._spawned.printed.fileno(), False)
            self._hear(os.read(self._spawned.printed.fileno(), _READ_BYTES))
        if code == -signal.SIGXCPU:
            return WorkFailed("the work took too much processor time", reason="time_limit")
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        said = self._printed.decode("utf-8", "replace").strip()[-300:]
        text = f"the process that did the work ended with {how}" + (f": {said}" if said else "")
        if self.kill():
            return WorkFailed(f"{text}; processes that it left behind were killed", reason="forked")
        return WorkFailed(text, reason="died")


class _Inbox:
    """What came of an answer so far."""

    def __init__(self) -> None:
        self._received = bytearray()

    def take(self, piece: bytes) -> bool:
        """Take what was read; tell whether it was anything."""
        self._received += piece
        return bool(piece)

    def answer(self) -> Answer | None:
        """Return the answer once it is whole.

        Raises:
            WorkFailed: What came is none.
        """
        if len(self._received) < HEADER_BYTES:
            return None
        length = int.from_bytes(self._received[:HEADER_BYTES])
        came = len(self._received) - HEADER_BYTES
        if came < length <= MAX_MESSAGE_BYTES:
            return None
        if came == length:
            with contextlib.suppress(msgspec.DecodeError):
                return msgspec.msgpack.decode(self._received[HEADER_BYTES:], type=Answer)
        raise WorkFailed("the process that did the work answered with something that is no answer", reason="died")


class _Watch:
    """What is looked at while a job is done: the clock, the memory, and whether anybody wants it to end."""

    def __init__(self, pid: int, wall_s: float, memory_bytes: int | None, stop: Callable[[], bool]) -> None:
        self._pid = pid
        self._wall_s = wall_s
        self._until_s = time.monotonic() + wall_s
        self._memory_bytes = memory_bytes
        self._stop = stop
        self._before = procfs.resident_bytes(pid)
        self._next_s = 0.0
        #: The most memory that was seen above what was held at first; None where the system does not tell.
        self.peak_bytes = None if self._before is None else 0

    def look(self) -> None:
        """Look again.

        Raises:
            WorkFailed: The job is to end.
        """
        now_s = time.monotonic()
        if self._stop():
            raise WorkFailed("the work was stopped", reason="stopped")
        if now_s > self._until_s:
            raise WorkFailed(f"the work took more than {self._wall_s:g} s", reason="time_limit")
        # A child that talks without pause is not a reason to read /proc without pause.
        if self._before is None or self.peak_bytes is None or now_s < self._next_s:
            return
        self._next_s = now_s + _LOOK_S / 2
        held = procfs.resident_bytes(self._pid) or 0
        self.peak_bytes = max(self.peak_bytes, held - self._before)
        if self._memory_bytes is not None and self.peak_bytes > self._memory_bytes:
            raise WorkFailed(
                f"the work held {self.peak_bytes} bytes of memory, {self._memory_bytes} are allowed",
                reason="memory_limit",
            )


def _write_some(target: int, rest: memoryview) -> int:
    """Write what the pipe takes; a child that is gone takes everything, and is noticed by its silence."""
    try:
        return os.write(target, rest)
    except BlockingIOError:
        return 0
    except BrokenPipeError:
        return len(rest)
