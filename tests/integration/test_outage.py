"""A server that dies while a run trains costs the run nothing: facts wait on disk and are delivered in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esper.artifacts import open_store
from esper.errors import LogUnavailable
from esper.events import Envelope, fact_of
from esper.events.base import RunFact
from esper.events.run import CheckpointSaved, EpochCompleted, RunFinished, TrainingStepCompleted
from esper.oona import EventLog, MemoryLog, open_log
from esper.oona.port import iterate
from esper.oona.recording.delivery import Spool, spool_for
from esper.oona.redis.log import RedisLog
from esper.tolaria.launch import start
from esper.tolaria.session import Session
from tests.servers import RedisServer
from tests.tiny_tasks import TINY, train_tiny

ROOT = Path(__file__).parents[2]
SETTINGS = (
    *("--policy", "earliest-site", "--set", "batch_size=16", "--set", "probe_every=40"),
    *("--set", 'blueprints=["res_mlp"]', "--set", "steps_per_epoch=10"),
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


def spool_of(server: RedisServer, folder: Path, *, patience_s: float = 60.0) -> Spool:
    spool = spool_for(server.url, folder / "spool", 1 << 20)
    assert spool is not None
    spool.patience_s = patience_s
    return spool


def digests(log: EventLog) -> list[bytes]:
    """Return the parameters' digest after each epoch and at the end, and of each checkpoint all there is to resume."""
    facts = [fact_of(envelope) for envelope in iterate(log)]
    parameters = [fact.parameter_digest for fact in facts if isinstance(fact, EpochCompleted | RunFinished)]
    return parameters + [fact.digest for fact in facts if isinstance(fact, CheckpointSaved)]


@pytest.fixture(scope="module")
def expected() -> list[bytes]:
    """Return the digests of a run that nothing disturbs."""
    with MemoryLog() as log:
        train_tiny(log, open_store("memory://"))
        return digests(log)


def require_whole(log: EventLog) -> None:
    """Require every fact once and in order: numbers, ordinals and steps without gap or repetition."""
    envelopes: list[Envelope] = list(iterate(log))
    log.verify()
    assert [envelope.position for envelope in envelopes] == list(range(1, len(envelopes) + 1))
    assert len({envelope.event_id for envelope in envelopes}) == len(envelopes)
    facts = [fact_of(envelope) for envelope in envelopes]
    run_facts = [fact for fact in facts if isinstance(fact, RunFact)]
    for attempt in range(1, run_facts[-1].attempt + 1):
        ordinals = [fact.ordinal for fact in run_facts if fact.attempt == attempt]
        assert ordinals == list(range(1, len(ordinals) + 1))


def steps(log: EventLog) -> list[int]:
    facts = [fact_of(envelope) for envelope in iterate(log)]
    return [fact.step for fact in facts if isinstance(fact, TrainingStepCompleted)]


def train_through(
    log: EventLog, spool: Spool, leave: Callable[[], object], come_back: Callable[[], object] | None
) -> None:
    """Train with the server leaving after two epochs, and coming back after six if it does."""
    epochs = 0

    def on_epoch(session: Session) -> None:
        nonlocal epochs
        epochs += 1
        if epochs == 2:
            leave()
        elif epochs == 6 and come_back is not None:
            come_back()

    start("tests.tiny_tasks:Tiny", TINY, log=log, store=open_store("memory://"), spool=spool, on_epoch=on_epoch)


def test_a_run_whose_server_is_killed_and_started_again_ends_as_if_nothing_had_been(
    server: RedisServer, tmp_path: Path, expected: list[bytes]
) -> None:
    spool = spool_of(server, tmp_path)
    with open_log(server.url) as log:
        train_through(log, spool, server.kill, server.start)
        assert digests(log) == expected
        assert steps(log) == list(range(1, 81))
        require_whole(log)
    assert spool.waiting() == []


def test_a_server_that_hangs_and_does_late_what_it_was_sent_doubles_nothing(
    server: RedisServer, tmp_path: Path, expected: list[bytes]
) -> None:
    process = server.process
    assert process is not None
    with RedisLog(server.url, timeout_s=0.3) as log:
        train_through(
            log,
            spool_of(server, tmp_path),
            lambda: process.send_signal(signal.SIGSTOP),
            lambda: process.send_signal(signal.SIGCONT),
        )
        assert digests(log) == expected
        require_whole(log)


def test_a_run_that_ends_in_the_outage_is_delivered_later(
    server: RedisServer, tmp_path: Path, expected: list[bytes]
) -> None:
    spool = spool_of(server, tmp_path, patience_s=0.2)
    with open_log(server.url) as log:
        with pytest.raises(LogUnavailable, match="facts wait in") as left:
            train_through(log, spool, server.kill, None)
        server.start()
        (done,) = spool.deliver(log)
        assert (done.outcome, done.facts) == ("delivered", left.value.attributes["facts"])
        assert digests(log) == expected
        require_whole(log)


def esper(server: RedisServer, home: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "esper", "--home", str(home), "--log", server.url, *arguments]


def ran(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)


def killed_while_spooling(server: RedisServer, home: Path, hold: Path) -> Path:
    """Kill the server, then the training process once it spools; returns the spool file."""
    command = esper(server, home, "train", "--task", "tests.tiny_tasks:Waiting", "--steps", "4000", *SETTINGS)
    environment = {**os.environ, "TINY_HOLD": str(hold)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        assert process.stderr is not None
        assert any(line.startswith("run run-") for line in process.stderr)
        with open_log(server.url) as log:
            wait_until(lambda: TrainingStepCompleted.__name__ in {one.type for one in log.read(log.end() - 20, 20)})
        hold.touch()
        server.kill()
        hold.unlink()
        wait_until(lambda: any(home.glob("spool/*.spool")))
        (path,) = home.glob("spool/*.spool")
        wait_until(lambda: path.stat().st_size > 20_000)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    return path


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_what_a_killed_process_had_spooled_is_delivered_by_command(server: RedisServer, tmp_path: Path) -> None:
    home = tmp_path / "home"
    path = killed_while_spooling(server, home, tmp_path / "hold")
    away = ran(esper(server, home, "log", "deliver"))
    assert away.returncode == 5, away.stderr
    assert path.exists()
    server.start()
    with open_log(server.url) as log:
        before = log.end()
        done = ran(esper(server, home, "log", "deliver", "--json"))
        assert done.returncode == 0, done.stderr
        (row,) = json.loads(done.stdout)
        assert row["outcome"] == "delivered"
        assert log.end() - before in (row["facts"], row["facts"] - 1)
        assert row["facts"] > 20
        assert not path.exists()
        require_whole(log)
        taken = steps(log)
        assert taken == list(range(1, len(taken) + 1))
    again = ran(esper(server, home, "log", "deliver"))
    assert again.stderr.startswith("nothing waits in")


def test_a_resumed_run_begins_with_what_its_killed_process_had_spooled(server: RedisServer, tmp_path: Path) -> None:
    home = tmp_path / "home"
    path = killed_while_spooling(server, home, tmp_path / "hold")
    server.start()
    with open_log(server.url) as log:
        before = steps(log)[-1]
        resuming = subprocess.Popen(
            esper(server, home, "train", "--resume", "latest"),
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        with resuming:
            assert resuming.stderr is not None
            told = resuming.stderr.readline()
            resuming.send_signal(signal.SIGTERM)
            told += resuming.stderr.read()
        assert "attempt 2 goes on after step" in told
        assert int(told.split("goes on after step ")[1].split(";")[0]) > before, "the spooled checkpoint was used"
        assert not path.exists()
        require_whole(log)
