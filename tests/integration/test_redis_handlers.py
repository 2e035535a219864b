"""Cases 7 and 11 end to end: handler processes on a real Redis log, with poison, kills and members that come and go.

The rules themselves are tested on every log in ``tests/contracts/consumer_contract.py``.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest
from noting import add_notes
from servers import RedisServer

from esper.oona.consuming.parking import parked_events, retry, skip
from esper.oona.open import open_log
from esper.oona.port import EventLog

ROOT = Path(__file__).parents[2]
#: A handler that writes down what it does. A poisoned note fails until there is a cure.
OWN = """
import os, time
from pathlib import Path
from esper.names import TopicNames

class Mirror:
    name = "mirror"
    topics = (TopicNames.OPERATOR_ACTIONS,)

    def handle(self, envelope, context):
        text = context.fact.text
        self.say("begin", context.fact)
        if text.startswith("poison") and not Path("cure").exists():
            raise ValueError("poisoned")
        time.sleep(0.002)
        self.say("end", context.fact)

    def say(self, word, fact):
        with open("effects", "a") as out:
            out.write(f"{word} {fact.run_id} {fact.text} {os.getpid()}\\n")
"""
#: A newer version of Esper appends a fact of a type that nobody here knows.
NEWER = """
import sys
from esper.events import Event
from esper.events.base import Fact, fact
from esper.ids import derived_id
from esper.names import TopicNames
from esper.oona.open import open_log
from esper.oona.port import ANY

@fact(TopicNames.OPERATOR_ACTIONS, stream="operator", key="run_id")
class LampLit(Fact, frozen=True, kw_only=True):
    run_id: str

with open_log(sys.argv[1]) as log:
    event = Event(fact=LampLit(run_id="new"), event_id=derived_id("l", 1), sender_id="newer", trace_id="0" * 32)
    print(log.append([event], stream="operator/new", expected=ANY).last)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


class Members:
    """Handler processes that share a group."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        (folder / "own.py").write_text(OWN)
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "ESPER_HOME": str(folder), "ESPER_LOG": url}
        self._stack = ExitStack()

    def start(self, *options: str) -> subprocess.Popen[str]:
        words = ["handler", "start", "own:Mirror", "--json", "--ttl-seconds", "1.5", *options]
        with (self.folder / "stderr").open("a") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "esper", *words],
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._stack.callback(_end, process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (self.folder / "stderr").read_text()
        assert json.loads(line)["member"]
        return process

    def effects(self, word: str, run: str) -> list[str]:
        """Return what was done of a run, each thing once, in the order of the first time."""
        path = self.folder / "effects"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [line.split(" ") for line in lines]
        return list(dict.fromkeys(one[2] for one in found if one[:2] == [word, run]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()


def await_true(true: Callable[[], object], timeout_s: float = 30) -> None:
    until_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until_s, "it does not come true"
        time.sleep(0.02)


def parked(log: EventLog) -> set[int]:
    return {one.position for one in parked_events(log, "mirror") if one.state == "parked"}


# --- case 7: poison


def test_poison_on_redis_is_parked_by_live_handlers_others_go_on_and_a_retry_keeps_the_order(
    server: RedisServer, tmp_path: Path
) -> None:
    with Members(tmp_path, server.url) as members, open_log(server.url) as log:
        (poisoned, *_) = add_notes(log, ("bad", "poison"), ("bad", "b"), ("good", "a"), ("good", "b"))
        ran = subprocess.run(
            [sys.executable, "-c", NEWER, server.url], env=members.environment, stdout=subprocess.PIPE, check=True
        )
        unknown = int(ran.stdout)
        add_notes(log, ("new", "after"))
        first, second = members.start("--attempts", "2"), members.start("--attempts", "2")
        await_true(lambda: members.effects("end", "good") == ["a", "b"])
        await_true(lambda: parked(log) == {poisoned, unknown})
        # Neither a killed member nor a killed server lets anything pass what is parked.
        first.send_signal(signal.SIGKILL)
        server.kill()
        server.start()
        add_notes(log, ("good", "c"), ("bad", "c"))
        await_true(lambda: members.effects("end", "good") == ["a", "b", "c"])
        assert members.effects("end", "bad") == members.effects("end", "new") == []
        (tmp_path / "cure").touch()
        about = {"actor": "operator:ada", "reason": "cured", "trace_id": "1" * 32}
        retry(log, "mirror", poisoned, **about)
        skip(log, "mirror", unknown, **about)
        await_true(lambda: members.effects("end", "bad") == ["poison", "b", "c"])
        await_true(lambda: members.effects("end", "new") == ["after"])
        assert parked(log) == set()
        second.send_signal(signal.SIGTERM)
        assert second.wait(20) == 0
        log.verify()


# --- case 11: members come and go under load


def test_members_that_come_go_and_die_under_load_handle_each_stream_in_order_by_one_at_a_time(
    server: RedisServer, tmp_path: Path
) -> None:
    runs, count = [f"run-{number}" for number in range(4)], 40
    with Members(tmp_path, server.url) as members, open_log(server.url) as log:
        one = members.start()
        for number in range(count):
            add_notes(log, *[(run, str(number)) for run in runs])
            if number == 10:
                two = members.start()
            elif number == 18:
                one.send_signal(signal.SIGTERM)
            elif number == 24:
                members.start()
            elif number == 32:
                two.send_signal(signal.SIGKILL)
        wanted = [str(number) for number in range(count)]
        await_true(lambda: all(members.effects("end", run) == wanted for run in runs))
        assert one.wait(20) == 0
    lines = [line.split(" ") for line in (tmp_path / "effects").read_text().splitlines()]
    for run in runs:
        # Whoever began a fact ended it before anybody began the next, but for the one that was killed.
        mine = [(word, text, pid) for word, name, text, pid in lines if name == run]
        for (word, text, pid), following in itertools.pairwise(mine):
            if word == "begin" and int(pid) != two.pid:
                assert following == ("end", text, pid)
