"""The workbench: given tasks that behave badly, these errors, and a child that works again afterwards."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from esper.blueprints.bench.process import Process
from esper.blueprints.bench.wire import Compiled, CompileRequest, Request
from esper.blueprints.bench.workbench import Limits, Workbench, shared_bench
from esper.blueprints.canonical import canonical_json
from esper.blueprints.forging.measuring import read_measurements
from esper.blueprints.ir import SiteSignature
from esper.blueprints.kernels.build import build
from esper.blueprints.kernels.kernel import encode_kernel, kernel_seed
from esper.blueprints.library import load_library
from esper.errors import BlueprintInvalid, KernelRefused, WorkFailed

LINEAR = SiteSignature(kind="linear", rank="NC", channels=16, in_channels=8, positions=(), causal=False)
SHORT = Limits(wall_s=0.5)
SMALL = Limits(wall_s=20.0, memory_bytes=128 << 20)
LONG_S = 20.0


@pytest.fixture(scope="module")
def bench() -> Iterator[Workbench]:
    made = Workbench(Limits(wall_s=LONG_S), tasks="tests.hostile_tasks")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def works_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a job did, the next one is served."""
    yield
    if "bench" in request.fixturenames:
        assert request.getfixturevalue("bench").run("echo", b"next").result == b"next"


def reason(bench: Workbench, task: str, payload: bytes = b"", limits: Limits | None = None) -> str:
    with pytest.raises(WorkFailed) as caught:
        bench.run(task, payload, limits=limits)
    return f"{caught.value.reason}: {caught.value.message}"


def gone(pid: int) -> bool:
    """Tell whether a process is gone; one that nobody has laid to rest yet counts as gone."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


def wait_until_gone(pid: int) -> None:
    until_s = time.monotonic() + 10
    while not gone(pid):
        assert time.monotonic() < until_s, f"process {pid} still lives"
        time.sleep(0.01)


def test_a_job_is_done_in_another_process_that_stays_warm(bench: Workbench) -> None:
    first, second = (int(bench.run("pid", b"").result) for _ in range(2))
    assert first == second != os.getpid()
    done = bench.run("echo", b"x" * (5 << 20))
    assert done.result == b"x" * (5 << 20)
    assert 0 <= done.cpu_s <= done.wall_s + 0.1


def test_the_shipped_tasks_compile_to_the_same_bytes_as_here_and_measure_them() -> None:
    blueprint = load_library()["res_mlp"]
    request = CompileRequest(ir=canonical_json(blueprint), signature=LINEAR)
    done = shared_bench().run("compile", msgspec.msgpack.encode(request))
    made = msgspec.msgpack.decode(done.result, type=Compiled)
    here = encode_kernel(blueprint, LINEAR, build(blueprint, LINEAR, seed=kernel_seed(blueprint, LINEAR)))
    assert made.kernel == here
    raw = read_measurements(shared_bench().run("measure", made.kernel).result)
    assert raw.failed == []
    assert raw.values()["parameters"] == made.parameters
    with pytest.raises(KernelRefused, match="no kernel"):
        shared_bench().run("measure", b"anything")
    wrong = msgspec.structs.replace(request, ir=request.ir.replace('"init":"zeros"', '"init":"kaiming"'))
    with pytest.raises(BlueprintInvalid) as caught:
        shared_bench().run("compile", msgspec.msgpack.encode(wrong))
    assert caught.value.rule == "role"


def test_errors_of_blueprints_and_kernels_come_back_as_themselves(bench: Workbench) -> None:
    with pytest.raises(BlueprintInvalid) as blueprint:
        bench.run("refuse_blueprint", b"")
    assert (blueprint.value.message, blueprint.value.hint) == ("it is unsound", "make it sound")
    assert (blueprint.value.path, blueprint.value.rule) == ("nodes[2]", "tail")
    with pytest.raises(KernelRefused) as kernel:
        bench.run("refuse_kernel", b"")
    assert (kernel.value.message, kernel.value.hint) == ("it is none", "fetch it again")


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("fail", "error: fail: ValueError: something else"),
        ("exit_softly", "error: exit_softly: SystemExit: 5"),
        ("no_bytes", "error: no_bytes: the task gave no bytes but int"),
        ("no_such_task", "error: no_such_task: no task is called 'no_such_task'"),
        ("ask_to_fork", "error: ask_to_fork: PermissionError: work on a blueprint may not do this: os.fork"),
        ("ask_to_exec", "error: ask_to_exec: PermissionError: work on a blueprint may not do this: os.exec"),
        ("ask_for_a_program", "PermissionError: work on a blueprint may not do this: subprocess.Popen"),
        ("ask_for_a_socket", "PermissionError: work on a blueprint may not use the network: socket.__new__"),
    ],
)
def test_what_a_task_may_not_do_is_its_error_and_the_child_lives_on(bench: Workbench, task: str, said: str) -> None:
    child = bench.run("pid", b"").result
    assert said in reason(bench, task)
    assert bench.run("pid", b"").result == child


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("exit_hard", "died: the process that did the work ended with exit code 7"),
        ("crash", "died: the process that did the work ended with signal SIGSEGV"),
        ("terminate", "died: the process that did the work ended with signal SIGTERM"),
        ("garbage_for_an_answer", "died: the process that did the work answered with something that is no answer"),
    ],
)
def test_a_child_that_dies_is_said_to_have_died_and_how(bench: Workbench, task: str, said: str) -> None:
    child = bench.run("pid", b"").result
    assert said in reason(bench, task)
    assert bench.run("pid", b"").result != child


@pytest.mark.parametrize("task", ["sleep", "burn"])
def test_work_that_never_ends_is_ended(bench: Workbench, task: str) -> None:
    bench.run("echo", b"")
    began_s = time.monotonic()
    assert reason(bench, task, limits=SHORT) == "time_limit: the work took more than 0.5 s"
    assert time.monotonic() - began_s < 5


def test_processor_time_is_limited_even_where_nobody_looks_at_the_clock() -> None:
    child = Process("tests.hostile_tasks")
    try:
        child.wait_until_ready(lambda: False)
        request = Request(task="burn", payload=b"", cpu_s=0.2, memory_bytes=1 << 30)
        with pytest.raises(WorkFailed) as caught:
            child.ask(request, wall_s=600.0, memory_bytes=1 << 30, stop=lambda: False)
        assert (caught.value.reason, caught.value.message) == ("time_limit", "the work took too much processor time")
    finally:
        child.kill()


@pytest.mark.parametrize("task", ["allocate_at_once", "allocate_bit_by_bit", "allocate_shared"])
def test_work_that_takes_too_much_memory_is_ended(bench: Workbench, task: str) -> None:
    bench.run("echo", b"")
    began_s = time.monotonic()
    assert reason(bench, task, limits=SMALL).startswith("memory_limit: ")
    assert time.monotonic() - began_s < 10


def test_the_peak_is_told_above_what_the_idle_child_holds(bench: Workbench) -> None:
    bench.run("echo", b"")
    assert bench.run("echo", b"").peak_memory_bytes < 2 << 20
    assert 60 << 20 <= bench.run("hold", str(64 << 20).encode()).peak_memory_bytes < 70 << 20
    assert bench.run("echo", b"").peak_memory_bytes < 2 << 20


def test_a_grandchild_of_another_session_is_killed_and_told(bench: Workbench) -> None:
    for task in ("leave_a_grandchild", "leave_a_grandchild_and_tell"):
        folder = bench.run("folder", b"").result
        with pytest.raises(WorkFailed) as caught:
            bench.run(task, b"")
        assert caught.value.reason == "forked"
        assert living_in(folder) == []


def test_a_grandchild_of_a_child_that_died_or_was_killed_is_killed(bench: Workbench) -> None:
    said = reason(bench, "leave_a_grandchild_and_die")
    assert said.startswith("forked: the process that did the work ended with exit code 3")
    wait_until_gone(int(re.findall(r"grandchild (\d+)", said)[0]))
    folder = bench.run("folder", b"").result
    assert reason(bench, "leave_a_grandchild_and_sleep", limits=Limits(wall_s=2.0)).startswith("time_limit")
    assert living_in(folder) == []


def living_in(folder: bytes) -> list[int]:
    """Return the processes that live in a folder, which may be removed."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            inside = os.fsencode(os.readlink(process / "cwd")).startswith(folder)
        except OSError:
            continue
        if inside and not gone(int(process.name)):
            found.append(int(process.name))
    return found


def test_a_task_that_may_compile_starts_a_program_and_others_still_may_not(bench: Workbench) -> None:
    assert bench.run("compile_with_a_program", b"").result == b"hello\n"
    assert "PermissionError" in reason(bench, "ask_for_a_program")


def test_a_program_that_a_compiler_leaves_behind_is_killed_though_nothing_marks_it(bench: Workbench) -> None:
    folder = bench.run("folder", b"").result
    assert reason(bench, "compile_and_leave_a_program").startswith("forked")
    assert living_in(folder) == []


def test_a_child_in_which_a_thread_was_left_serves_no_other_job(bench: Workbench) -> None:
    first = int(bench.run("leave_a_thread", b"").result)
    wait_until_gone(first)
    assert int(bench.run("pid", b"").result) != first


def test_files_are_written_in_its_own_folder_alone(bench: Workbench, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    assert "PermissionError: work on a blueprint may not write outside its folder" in reason(
        bench, "write_where", os.fsencode(outside)
    )
    assert bench.run("write_in_folder", b"").result == b"written"
    folder = Path(os.fsdecode(bench.run("folder", b"").result))
    assert "PermissionError" in reason(bench, "rename", f"note\n{outside}".encode())
    link = f"{folder}/link"
    os.symlink(outside, link)
    assert "PermissionError" in reason(bench, "write_where", link.encode())
    assert not outside.exists()


def test_the_folder_goes_with_the_bench_and_with_one_that_was_killed(tmp_path: Path) -> None:
    with_one = Workbench(tasks="tests.hostile_tasks")
    folder = Path(os.fsdecode(with_one.run("folder", b"").result))
    assert folder.is_dir()
    with_one.close()
    assert not folder.exists()
    program = (
        "import os, signal\n"
        "from esper.blueprints.bench.workbench import Workbench\n"
        "print(os.fsdecode(Workbench(tasks='tests.hostile_tasks').run('folder', b'').result), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    left = Path(python(program).stdout.strip())
    assert left.is_dir()
    other = Workbench(tasks="tests.hostile_tasks")
    other.run("echo", b"")
    other.close()
    assert not left.exists()


def test_what_is_printed_is_no_answer_and_fills_nothing(bench: Workbench) -> None:
    assert bench.run("print_garbage", b"").result == b"fine"
    assert bench.run("print_much", b"300").result == b"fine"


def test_the_child_is_given_no_settings_and_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ESPER_LOG", "AWS_SECRET_ACCESS_KEY", "REDIS_URL", "SOME_TOKEN", "PYTHONSTARTUP"):
        monkeypatch.setenv(name, "secret")
    made = Workbench(tasks="tests.hostile_tasks")
    names = made.run("environment", b"").result.decode().split("\n")
    made.close()
    allowed = {"CUDA_VISIBLE_DEVICES", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "PATH", "PYTHONDONTWRITEBYTECODE"}
    allowed |= {"PYTHONPATH", "TMPDIR", "TZ", "USER", "WORKBENCH_MARK", "XDG_CACHE_HOME", "CC", "CXX"}
    assert [name for name in names if name not in allowed and not name.endswith("_NUM_THREADS")] == []


def test_a_job_is_stopped_when_asked_and_one_that_waits_its_turn_too(bench: Workbench) -> None:
    bench.run("echo", b"")
    stop = threading.Event()
    failures: list[str] = []

    def work() -> None:
        with pytest.raises(WorkFailed) as caught:
            bench.run("sleep", b"", stop=stop.is_set)
        failures.append(caught.value.reason)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    stop.set()
    for thread in threads:
        thread.join(10)
    assert failures == ["stopped"] * 3


def test_threads_take_turns(bench: Workbench) -> None:
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(bench.run("echo", str(n).encode()).result)) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [str(n).encode() for n in range(8)]


def test_a_child_that_was_killed_between_two_jobs_is_replaced(bench: Workbench) -> None:
    child = int(bench.run("pid", b"").result)
    os.kill(child, signal.SIGKILL)
    wait_until_gone(child)
    assert int(bench.run("pid", b"").result) != child


def test_the_child_outlives_the_thread_that_needed_it_first() -> None:
    made = Workbench(tasks="tests.hostile_tasks")
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(made.run("pid", b"").result))
    thread.start()
    thread.join()
    assert made.run("pid", b"").result == found[0]
    made.close()


def test_closing_ends_a_job_that_is_being_done_and_nothing_is_taken_afterwards() -> None:
    made = Workbench(tasks="tests.hostile_tasks")
    child = int(made.run("pid", b"").result)
    failures: list[str] = []

    def work() -> None:
        with pytest.raises(WorkFailed) as caught:
            made.run("sleep", b"")
        failures.append(caught.value.reason)

    thread = threading.Thread(target=work)
    thread.start()
    made.close()
    thread.join(10)
    assert failures == ["stopped"]
    wait_until_gone(child)
    with pytest.raises(WorkFailed, match="closed"):
        made.run("echo", b"")


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )


def test_the_child_dies_with_its_parent_even_in_the_middle_of_work() -> None:
    program = (
        "import os, signal, threading\n"
        "from esper.blueprints.bench.workbench import Workbench\n"
        "bench = Workbench(tasks='tests.hostile_tasks')\n"
        "print(bench.run('pid', b'').result.decode(), flush=True)\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()\n"
        "bench.run('burn', b'')\n"
    )
    done = python(program)
    assert done.returncode == -signal.SIGKILL
    wait_until_gone(int(done.stdout))


def test_the_shared_bench_is_closed_when_the_process_ends_and_a_forked_process_has_its_own() -> None:
    program = (
        "import os, threading\n"
        "from esper.blueprints.bench import workbench\n"
        "workbench._shared = workbench.Workbench(tasks='tests.hostile_tasks')\n"
        "bench = workbench.shared_bench()\n"
        "first = bench.run('pid', b'').result\n"
        "stop, asked = threading.Event(), threading.Event()\n"
        "def asleep():\n"
        "    try:\n"
        "        bench.run('sleep', b'', stop=lambda: asked.set() or stop.is_set())\n"
        "    except workbench.WorkFailed as error:\n"
        "        assert error.reason == 'stopped'\n"
        "thread = threading.Thread(target=asleep)\n"
        "thread.start()\n"
        "asked.wait()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    assert bench.run('pid', b'').result != first\n"
        "    raise SystemExit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "os.kill(int(first), 0)\n"
        "stop.set()\n"
        "thread.join()\n"
        "print(bench.run('pid', b'').result.decode())\n"
    )
    done = python(program)
    assert (done.returncode, done.stderr) == (0, "")
    wait_until_gone(int(done.stdout))
