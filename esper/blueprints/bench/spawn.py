"""Starting a child of the workbench: its command, its environment, and the thread it is started from.

Belongs here: what the child is given. Does not belong here: speaking to it (``process``).
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from concurrent.futures import Future
from typing import IO, NamedTuple

from esper.errors import DependencyUnavailable

#: Variables that the child gets where the parent has them: finding programs and libraries, language, and all that
#: decides how numbers are computed. Nothing else: no settings, no credentials.
_KEPT_VARIABLES = frozenset(
    {
        *("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CC", "CXX", "LANG", "LC_ALL", "TZ", "SYSTEMROOT"),
        *("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS"),
        *("ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA"),
    }
)
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Spawned(NamedTuple):
    """A child that was started."""

    popen: subprocess.Popen[bytes]
    requests: IO[bytes]
    answers: IO[bytes]
    printed: IO[bytes]

    def close_pipes(self) -> None:
        """Close all three pipes; twice is fine."""
        for pipe in (self.requests, self.answers, self.printed):
            pipe.close()


class _Wish(NamedTuple):
    command: list[str]
    folder: str
    environment: dict[str, str]
    done: Future[subprocess.Popen[bytes]]


class _Spawner:
    """Starts children from one thread that lives as long as the process.

    On Linux a child that asks to die with its parent dies with the thread that started it.
    """

    def __init__(self) -> None:
        self.wishes: queue.SimpleQueue[_Wish] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="workbench-spawner", daemon=True).start()

    def _serve(self) -> None:
        while True:
            wish = self.wishes.get()
            try:
                wish.done.set_result(_start(wish))
            except BaseException as error:
                # Whoever asked raises it.
                wish.done.set_exception(error)


_spawner: _Spawner | None = None
_spawning = threading.Lock()


def spawn(tasks: str, folder: str, mark: tuple[str, str]) -> Spawned:
    """Start a child.

    Args:
        tasks: Name of the module with the table of tasks.
        folder: Its working folder, and the only one it may write in.
        mark: Name and value of a variable by which it and what it starts are known.

    Raises:
        DependencyUnavailable: This Python cannot be started.
    """
    global _spawner  # noqa: PLW0603 - one thread for the process
    with _spawning:
        _spawner = _spawner or _Spawner()
    command = [sys.executable, "-P", "-m", "esper.blueprints.bench.child", tasks, str(os.getpid()), folder]
    wish = _Wish(command, folder, _environment(folder, mark), Future())
    _spawner.wishes.put(wish)
    try:
        popen = wish.done.result()
    except OSError as error:
        raise DependencyUnavailable(f"the workbench cannot start {sys.executable}: {error.strerror}") from error
    if popen.stdin is None or popen.stdout is None or popen.stderr is None:
        raise DependencyUnavailable("the workbench's child has no pipes")
    os.set_blocking(popen.stdin.fileno(), False)
    return Spawned(popen, popen.stdin, popen.stdout, popen.stderr)


def forget_spawner() -> None:
    """Start afresh in a forked process, which has none of the threads."""
    global _spawner, _spawning
    _spawner, _spawning = None, threading.Lock()


def _start(wish: _Wish) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        wish.command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd=wish.folder,
        env=wish.environment,
        start_new_session=True,
    )


def _environment(folder: str, mark: tuple[str, str]) -> dict[str, str]:
    """Return the child's environment: what it computes with, and nothing of what the parent may hold."""
    places = [os.path.abspath(place) for place in sys.path]
    return {
        **{key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ},
        **dict.fromkeys(_THREADS, "1"),
        **dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), folder),
        "USER": "bench",
        "PYTHONPATH": os.pathsep.join(places),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        mark[0]: mark[1],
    }
