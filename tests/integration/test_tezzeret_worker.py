"""``TezzeretWorker(config)`` in a program of one's own: configuration, starting, stopping, numbers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from servers import S3Server, free_port

from esper.artifacts import open_store
from esper.blueprints.bench import procfs
from esper.blueprints.forging.submission import Author, submit_sound
from esper.blueprints.library import load_library
from esper.errors import ConfigError, HandlerError, LogUnavailable, UnknownSetting
from esper.events import fact_of
from esper.events.kernel import CompilationFailed, CompilationLeased, CompilationRequested, KernelCompiled
from esper.handlers.runtime.members import members
from esper.handlers.tezzeret import TezzeretWorker
from esper.oona.open import open_log
from esper.oona.port import EventLog, iterate

ROOT = Path(__file__).parents[2]
LIBRARY = load_library()
STATS = ["running", "active_jobs", "total_compiled", "total_failed", "success_rate", "max_concurrent_jobs"]


class Home:
    """The state folder that the settings name, with its log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder}/log.db"

    def log(self) -> EventLog:
        return open_log(self.url)

    def submit(self, *names: str) -> None:
        with self.log() as log:
            for name in names:
                submit_sound(log, LIBRARY[name], Author("ada", "operator:ada", "b" * 32))

    def of(self, *kinds: type) -> list[Any]:
        with self.log() as log:
            return [fact for fact in map(fact_of, iterate(log)) if isinstance(fact, kinds)]

    def is_done(self) -> bool:
        """Tell whether something was asked for and every job has come to something."""
        wanted = {fact.job_id for fact in self.of(CompilationRequested)}
        return bool(wanted) and wanted == {fact.job_id for fact in self.of(KernelCompiled, CompilationFailed)}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path))
    before = procfs.descendants(os.getpid())
    yield Home(tmp_path)
    assert procfs.descendants(os.getpid()) <= before, "a child process was left behind"


async def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not await asyncio.to_thread(true):
        assert time.monotonic() < deadline, "it does not come true"
        await asyncio.sleep(0.02)


def drive(worker: TezzeretWorker, meanwhile: Callable[[], Awaitable[object]]) -> None:
    """Run a worker in a plain ``asyncio.run`` and do something beside it, which ends with the worker."""

    async def both() -> None:
        running = asyncio.create_task(worker.run())
        try:
            await until(lambda: worker.running)
            await meanwhile()
        finally:
            worker.stop()
            await running

    asyncio.run(both())


# --- configuration


def test_a_worker_without_configuration_has_the_defaults() -> None:
    worker = TezzeretWorker({})
    assert (worker.urza_url, worker.s3_bucket, worker.polling_interval, worker.max_concurrent_jobs) == (
        None,
        None,
        5,
        2,
    )
    assert list(worker.get_stats()) == STATS
    assert worker.get_stats() == {**dict.fromkeys(STATS, 0), "running": False, "max_concurrent_jobs": 2}
    assert TezzeretWorker().config == {}


def test_all_four_keys_of_the_configuration_are_taken() -> None:
    config = {
        "urza_url": "http://localhost:8000",
        "s3_bucket": "esper-artifacts",
        "polling_interval": 1,
        "max_concurrent_jobs": 3,
    }
    worker = TezzeretWorker(config)
    assert {key: getattr(worker, key) for key in config} == config
    assert worker.get_stats()["max_concurrent_jobs"] == 3


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("polling_interval", 0, "polling_interval is 0"),
        ("polling_interval", -5, "polling_interval is -5"),
        ("polling_interval", float("nan"), "polling_interval is nan"),
        ("polling_interval", "5", "polling_interval is '5'"),
        ("polling_interval", True, "polling_interval is True"),
        ("max_concurrent_jobs", 0, "max_concurrent_jobs is 0"),
        ("max_concurrent_jobs", 2.5, "max_concurrent_jobs is 2.5"),
        ("max_concurrent_jobs", 100_000, "max_concurrent_jobs is 100000"),
        ("s3_bucket", "Not A Bucket", "s3_bucket is no name"),
        ("s3_bucket", "s3://bucket", "s3_bucket is no name"),
        ("urza_url", "localhost:8000", "urza_url is no URL"),
        ("urza_url", 8000, "urza_url is no URL"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_its_key(key: str, value: object, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        TezzeretWorker({key: value})


def test_an_unknown_key_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UnknownSetting, match="'max_concurent_jobs'") as caught:
        TezzeretWorker({"max_concurent_jobs": 2})
    assert "max_concurrent_jobs" in caught.value.hint


# --- a log that is out of reach


def test_a_log_that_cannot_be_reached_is_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_LOG", f"redis://127.0.0.1:{free_port()}/0")
    worker = TezzeretWorker({})
    with pytest.raises(LogUnavailable):
        asyncio.run(worker.run())
    assert not worker.running


def test_urza_in_place_of_a_log_is_refused_by_what_is_missing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_LOG", f"redis://:hunter2@127.0.0.1:{free_port()}/0")
    worker = TezzeretWorker({"urza_url": "http://ada:secret@urza.example:8000"})
    with pytest.raises(ConfigError, match=r"no client that works through Urza at http://ada:\*\*\*@urza") as caught:
        asyncio.run(worker.run())
    assert "hunter2" not in str(caught.value)
    assert "ESPER_LOG" in caught.value.hint


# --- work


def test_a_worker_compiles_what_was_submitted_and_stops_with_its_numbers(home: Home) -> None:
    home.submit("lora", "affine")
    # Urza is not asked while the log can be reached: nobody listens there.
    urza = f"http://127.0.0.1:{free_port()}"
    worker = TezzeretWorker({"max_concurrent_jobs": 1, "polling_interval": 0.05, "urza_url": urza})
    seen: list[str] = []

    async def meanwhile() -> None:
        await until(home.is_done)
        with home.log() as log:
            seen.extend(one.name for one in await asyncio.to_thread(members, log, "tezzeret", watch=False))

    drive(worker, meanwhile)
    made = home.of(KernelCompiled)
    assert worker.get_stats() == {
        "running": False,
        "active_jobs": 0,
        "total_compiled": len(made),
        "total_failed": 0,
        "success_rate": 1.0,
        "max_concurrent_jobs": 1,
    }
    assert {one.worker for one in made} == set(seen)
    with open_store(f"file:///{home.folder}/artifacts") as store:
        assert all(store.has(bytes.fromhex(one.kernel_id)) for one in made)
    with home.log() as log:
        assert members(log, "tezzeret", watch=False) == []


def test_two_workers_in_one_process_share_the_work_and_make_each_kernel_once(home: Home) -> None:
    names = ["lora", "affine", "res_mlp", "pw_bottleneck", "conv_bottleneck", "se"]
    home.submit(*names)
    workers = [TezzeretWorker({"max_concurrent_jobs": 1}) for _ in range(2)]

    async def both() -> None:
        running = [asyncio.create_task(worker.run()) for worker in workers]
        await until(home.is_done)
        for worker in workers:
            worker.stop()
        await asyncio.gather(*running)

    asyncio.run(both())
    made = home.of(KernelCompiled)
    assert len({one.job_id for one in made}) == len(made) == len(home.of(CompilationRequested))
    assert sum(worker.total_compiled for worker in workers) == len(made)
    assert len(home.of(CompilationLeased)) == len(made)


def test_a_worker_can_run_again_and_not_twice_at_once(home: Home) -> None:
    home.submit("affine")
    worker = TezzeretWorker({"max_concurrent_jobs": 1})
    drive(worker, lambda: until(home.is_done))
    first = worker.total_compiled

    async def again() -> None:
        with pytest.raises(HandlerError, match="runs already"):
            await worker.run()
        await asyncio.to_thread(home.submit, "lora")
        await until(lambda: len(home.of(KernelCompiled)) > first and home.is_done())

    drive(worker, again)
    assert worker.total_compiled == len(home.of(KernelCompiled)) > first


def test_stop_from_another_thread_ends_an_idle_worker_at_once_whatever_its_interval(home: Home) -> None:
    worker = TezzeretWorker({"polling_interval": 3600})
    took_s = 0.0

    async def meanwhile() -> None:
        nonlocal took_s
        await asyncio.sleep(0.5)
        began_s = time.monotonic()
        thread = threading.Thread(target=worker.stop)
        thread.start()
        await until(lambda: not worker.running)
        thread.join()
        took_s = time.monotonic() - began_s

    drive(worker, meanwhile)
    assert took_s < 3
    worker.stop()  # one that does not run is not affected


def test_stop_before_the_log_is_open_is_heard(home: Home) -> None:
    async def at_once() -> None:
        worker = TezzeretWorker({})
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(0)
        worker.stop()
        await asyncio.wait_for(running, 20)

    asyncio.run(at_once())


def test_a_cancelled_worker_leaves_the_group_and_no_process(home: Home) -> None:
    home.submit("lora")

    async def cancelled() -> None:
        running = asyncio.create_task(TezzeretWorker({"max_concurrent_jobs": 1}).run())
        await until(lambda: home.of(CompilationLeased))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancelled())
    with home.log() as log:
        assert members(log, "tezzeret", watch=False) == []


# --- kernels in a bucket


def test_kernels_go_to_the_bucket_that_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.submit("affine")
    with ExitStack() as stack:
        server = stack.enter_context(S3Server())
        bucket = server.new_bucket()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
        worker = TezzeretWorker({"s3_bucket": bucket, "max_concurrent_jobs": 1})
        drive(worker, lambda: until(home.is_done))
        store = stack.enter_context(open_store(server.url(bucket)))
        made = home.of(KernelCompiled)
        assert made
        assert all(store.has(bytes.fromhex(one.kernel_id)) for one in made)
    assert not (home.folder / "artifacts").exists()


# --- a program of one's own

PROGRAM = """
import asyncio, signal
from esper.handlers.tezzeret import TezzeretWorker

worker = TezzeretWorker({"max_concurrent_jobs": 1})
signal.signal(signal.SIGTERM, lambda *_: worker.stop())
asyncio.run(worker.run())
print(worker.get_stats()["total_compiled"])
"""


def test_a_program_that_stops_its_worker_in_a_signal_handler_ends_cleanly(home: Home) -> None:
    home.submit("affine")
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    asyncio.run(until(home.is_done))
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=30)
    assert (process.returncode, out.strip()) == (0, str(len(home.of(KernelCompiled)))), errors
