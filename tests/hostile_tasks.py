"""Tasks for the workbench that break its limits; see ``Workbench(tasks=...)``. No torch, so that a child starts fast.

What Python code would do is refused by the audit hook. The rest goes around it through ctypes, as machine code could.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from esper.blueprints.bench.task import Task
from esper.errors import BlueprintInvalid, KernelRefused

_LIBC = ctypes.CDLL(None)
_PR_SET_NAME = 15
_FOREVER_S = 600.0


def echo(payload: bytes) -> bytes:
    return payload


def pid(_: bytes) -> bytes:
    return str(os.getpid()).encode()


def environment(_: bytes) -> bytes:
    return "\n".join(sorted(os.environ)).encode()


def sleep(_: bytes) -> bytes:
    time.sleep(_FOREVER_S)
    return b""


def burn(_: bytes) -> bytes:
    while True:
        pass


def allocate_at_once(_: bytes) -> bytes:
    """Take memory that is never touched, so that nobody sees it held."""
    return bytes(1 << 33)[:1]


def allocate_bit_by_bit(_: bytes) -> bytes:
    held = []
    while True:
        held.append(os.urandom(1) * (1 << 22))


def allocate_shared(_: bytes) -> bytes:
    """Take shared memory, which RLIMIT_DATA does not count."""
    held = []
    while True:
        one = mmap.mmap(-1, 1 << 24)
        one.write(bytes(1 << 24))
        held.append(one)


def hold(payload: bytes) -> bytes:
    return str(len(bytearray(int(payload)))).encode()


def ask_to_fork(_: bytes) -> bytes:
    return str(os.fork()).encode()


def ask_to_exec(_: bytes) -> bytes:
    os.execv(sys.executable, [sys.executable, "-c", ""])


def ask_for_a_program(_: bytes) -> bytes:
    return subprocess.check_output([sys.executable, "-c", "print('hello')"])


def ask_for_a_socket(_: bytes) -> bytes:
    with socket.socket() as one:
        return str(one.fileno()).encode()


def write_where(payload: bytes) -> bytes:
    Path(payload.decode()).write_text("written")
    return b"written"


def rename(payload: bytes) -> bytes:
    source, target = payload.decode().split("\n")
    os.rename(source, target)
    return b"renamed"


def write_in_folder(_: bytes) -> bytes:
    Path("note").write_text("written")
    return Path("note").resolve().read_bytes()


def folder(_: bytes) -> bytes:
    return os.fsencode(Path.cwd())


def _grandchild(note: str) -> None:
    """Start a process of another session whose parent is gone, around the audit hook."""
    between = _LIBC.fork()
    if between == 0:
        _LIBC.setsid()
        if _LIBC.fork() == 0:
            Path(note).write_text(str(os.getpid()))
            time.sleep(_FOREVER_S)
        os._exit(0)
    _LIBC.waitpid(between, None, 0)
    while not Path(note).exists():
        time.sleep(0.01)


def leave_a_grandchild(_: bytes) -> bytes:
    _grandchild("pid")
    return Path("pid").read_bytes()


def leave_a_grandchild_and_tell(payload: bytes) -> bytes:
    """As above, but the child lies about it: it waits for nothing and says that all is well."""
    os.waitpid = _no_child  # type: ignore[assignment]
    return leave_a_grandchild(payload)


def _no_child(*_: int) -> tuple[int, int]:
    raise ChildProcessError


def leave_a_grandchild_and_die(_: bytes) -> bytes:
    _grandchild("pid")
    os.write(2, b"grandchild " + Path("pid").read_bytes())
    os._exit(3)


def leave_a_grandchild_and_sleep(_: bytes) -> bytes:
    _grandchild("pid")
    os.write(2, b"grandchild " + Path("pid").read_bytes() + b"\n")
    time.sleep(_FOREVER_S)
    return b""


def leave_a_program(_: bytes) -> bytes:
    """Leave a program that has nothing of our environment, as only a task that may compile could."""
    program = "import time; time.sleep(600)"
    one = subprocess.Popen([sys.executable, "-c", program], env={}, start_new_session=True)
    one.returncode = 0  # nobody is to be warned that it runs
    return b""


def leave_a_thread(_: bytes) -> bytes:
    threading.Thread(target=time.sleep, args=(_FOREVER_S,), daemon=True).start()
    return pid(b"")


def exit_softly(_: bytes) -> bytes:
    raise SystemExit(5)


def exit_hard(_: bytes) -> bytes:
    os._exit(7)


def crash(_: bytes) -> bytes:
    ctypes.string_at(0)
    return b""


def print_garbage(_: bytes) -> bytes:
    print("garbage" * 10, flush=True)
    os.write(1, b"\x00\x01garbage")
    return b"fine"


def garbage_for_an_answer(_: bytes) -> bytes:
    for number in range(3, 32):
        try:
            if os.fstat(number).st_mode & 0o170000 == 0o010000:
                os.write(number, b"\xff" * 4096)
        except OSError:
            continue
    time.sleep(_FOREVER_S)
    return b""


def print_much(payload: bytes) -> bytes:
    piece = b"x" * (1 << 20)
    for _ in range(int(payload)):
        os.write(2, piece)
    return b"fine"


def no_bytes(_: bytes) -> bytes:
    return 3  # type: ignore[return-value]


def refuse_blueprint(_: bytes) -> bytes:
    raise BlueprintInvalid("it is unsound", hint="make it sound", path="nodes[2]", rule="tail")


def refuse_kernel(_: bytes) -> bytes:
    raise KernelRefused("it is none", hint="fetch it again")


def fail(_: bytes) -> bytes:
    raise ValueError("something else")


def terminate(_: bytes) -> bytes:
    signal.raise_signal(signal.SIGTERM)
    return b""


TASKS = {
    task.__name__: Task(task)
    for task in (
        echo,
        pid,
        environment,
        sleep,
        burn,
        allocate_at_once,
        allocate_bit_by_bit,
        allocate_shared,
        hold,
        ask_to_fork,
        ask_to_exec,
        ask_for_a_program,
        ask_for_a_socket,
        write_where,
        rename,
        write_in_folder,
        folder,
        leave_a_grandchild,
        leave_a_grandchild_and_tell,
        leave_a_grandchild_and_die,
        leave_a_grandchild_and_sleep,
        leave_a_thread,
        exit_softly,
        exit_hard,
        crash,
        print_garbage,
        garbage_for_an_answer,
        print_much,
        no_bytes,
        refuse_blueprint,
        refuse_kernel,
        fail,
        terminate,
    )
} | {
    "compile_with_a_program": Task(ask_for_a_program, may_start_processes=True),
    "compile_and_leave_a_program": Task(leave_a_program, may_start_processes=True),
}
