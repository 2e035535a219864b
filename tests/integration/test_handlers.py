"""Handlers as real processes of the real command line: signals, kills, pauses, a log that goes away and comes back."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from noting import add_notes, texts_of
from servers import RedisServer
from small_log import write_small_log

from esper.artifacts.signing import SigningKey
from esper.blueprints.canonical import blueprint_id, canonical_json
from esper.blueprints.library import load_library
from esper.events import Event
from esper.events.blueprint import BlueprintSubmitted
from esper.ids import new_event_id
from esper.oona import EventLog, open_log
from esper.oona.consuming.parking import parked_events
from esper.oona.consuming.slots import slot_of
from esper.oona.port import ANY
from esper.projections.open import open_tables
from esper.projections.runner import Projector

ROOT = Path(__file__).parents[2]
#: A handler that does what each note says, and writes down when it begins and ends.
OWN = """
import asyncio, os, time
from esper.events.operator import NoteAdded
from esper.names import TopicNames

def say(*words):
    with open("effects", "a") as out:
        out.write(" ".join([*words, "\\n"]))

class Obeys:
    name = "obeys"
    topics = (TopicNames.OPERATOR_ACTIONS,)

    async def handle(self, envelope, context):
        order, _, rest = context.fact.text.partition(" ")
        if context.fact.run_id == "answers":
            return
        say("begin", context.fact.run_id, context.fact.text)
        if order == "wait":
            await asyncio.sleep(float(rest))
        elif order == "block":
            time.sleep(float(rest))
        elif order == "answer":
            await asyncio.sleep(float(rest))
            await context.emit(NoteAdded(run_id="answers", actor=str(os.getpid()), text=context.fact.text))
        elif order == "fail":
            raise ValueError("redis://:hunter2@cache/0 says no")
        say("end", context.fact.run_id, context.fact.text)

class Plain(Obeys):
    name = "plain"

    def handle(self, envelope, context):
        asyncio.run(Obeys.handle(self, envelope, context))
"""


class Place:
    """A folder with a log, a handler's module and what the handler wrote down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder}/log.db"
        (folder / "own.py").write_text(OWN)
        self.settings: dict[str, str] = {}

    @contextmanager
    def log(self) -> Iterator[EventLog]:
        with open_log(self.url) as log:
            yield log

    def note(self, *notes: tuple[str, str]) -> None:
        with self.log() as log:
            add_notes(log, *notes)

    @property
    def effects(self) -> list[str]:
        path = self.folder / "effects"
        return [line.strip() for line in path.read_text().splitlines()] if path.exists() else []

    def esper(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "esper", *words]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "ESPER_HOME": str(self.folder),
            "ESPER_LOG": self.url,
            **self.settings,
        }


class Running:
    """A started handler, ready for signals."""

    def __init__(self, place: Place, name: str, *options: str) -> None:
        command = [sys.executable, "-m", "esper", "handler", "start", name, "--json", "--ttl-seconds", "1.5", *options]
        self.errors = place.folder / f"stderr-{time.monotonic_ns()}"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command, cwd=place.folder, env=place.environment, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.errors.read_text()
        told = json.loads(line)
        self.member: str = told["member"]
        self.url: str = told["url"]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 20) -> int:
        """Send a signal and return the exit code."""
        self.send(number)
        return self.process.wait(timeout_s)

    def get(self, page: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"{self.url}/{page}", timeout=10) as reply:
                text = reply.read().decode()
                return reply.status, text if page == "metrics" else json.loads(text)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.loads(refused.read())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


Start = Callable[..., Running]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def start(place: Place) -> Iterator[Start]:
    running: list[Running] = []

    def started(name: str, *options: str) -> Running:
        running.append(Running(place, name, *options))
        return running[-1]

    yield started
    for one in running:
        one.close()


def await_true(true: Callable[[], object], timeout_s: float = 20) -> None:
    until_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until_s, "it does not come true"
        time.sleep(0.02)


# --- signals


def test_sigterm_finishes_what_is_in_hand_begins_nothing_and_commits(place: Place, start: Start) -> None:
    place.note(("run-1", "go 1"), ("run-1", "wait 0.7"), ("run-1", "go 2"))
    first = start("own:Obeys")
    await_true(lambda: "begin run-1 wait 0.7" in place.effects)
    assert first.end() == 0
    assert place.effects[-1] == "end run-1 wait 0.7"
    place.esper("handler", "start", "own:Obeys", "--until-idle")
    assert place.effects == [
        f"{edge} run-1 {text}" for text in ("go 1", "wait 0.7", "go 2") for edge in ("begin", "end")
    ]


@pytest.mark.parametrize(
    ("name", "order", "number", "code"),
    [
        ("own:Obeys", "wait", signal.SIGTERM, 143),
        ("own:Obeys", "block", signal.SIGINT, 130),
        ("own:Plain", "block", signal.SIGTERM, 143),
    ],
)
def test_second_signal_ends_at_once_and_commits_nothing_undone(
    place: Place, start: Start, name: str, order: str, number: signal.Signals, code: int
) -> None:
    place.note(("run-1", "go"), ("run-1", f"{order} 30"))
    running = start(name)
    await_true(lambda: f"begin run-1 {order} 30" in place.effects)
    running.send(number)
    time.sleep(0.1)
    began_s = time.monotonic()
    assert running.end(number) == code
    assert time.monotonic() - began_s < 3
    # Its slots were not given up: they fall to the next process when they expire.
    again = start(name)
    await_true(lambda: place.effects.count(f"begin run-1 {order} 30") == 2)
    again.send(signal.SIGKILL)


def test_what_outlives_the_drain_is_abandoned_and_done_again(place: Place, start: Start) -> None:
    place.note(("run-1", "block 30"))
    running = start("own:Plain", "--drain-seconds", "0.2")
    await_true(lambda: "begin run-1 block 30" in place.effects)
    began_s = time.monotonic()
    assert running.end() == 0
    assert time.monotonic() - began_s < 5
    assert "abandoned" in running.errors.read_text()
    start("own:Plain")
    await_true(lambda: place.effects.count("begin run-1 block 30") == 2)


# --- kills and pauses


def test_what_a_killed_member_had_is_done_by_another_in_order(place: Place, start: Start) -> None:
    members = {one.member: one for one in (start("own:Obeys"), start("own:Obeys"))}

    def owners() -> list[str]:
        with place.log() as log:
            cells = [log.cells.look(f"group/obeys/slot/{number}") for number in range(8)]
        return [cell.owner.partition("#")[0] for cell in cells if cell is not None]

    await_true(lambda: sorted(map(owners().count, members)) == [4, 4])
    victim = members[owners()[slot_of("operator/run-0", 8)]]
    orders = [*(f"go {number}" for number in range(20)), "wait 20", "go 20"]
    place.note(*[(f"run-{run}", order) for order in orders for run in range(4) if order != "wait 20" or run == 0])
    await_true(lambda: "begin run-0 wait 20" in place.effects)
    victim.end(signal.SIGKILL)
    await_true(lambda: place.effects.count("begin run-0 wait 20") == 2)
    for run in range(1, 4):
        await_true(lambda: f"end run-{run} go 20" in place.effects)  # noqa: B023 - called within the turn
        ends = [line for line in place.effects if line.startswith(f"end run-{run} ")]
        assert list(dict.fromkeys(ends)) == [f"end run-{run} go {number}" for number in range(21)]


def test_member_paused_past_its_lease_appends_nothing_late(place: Place, start: Start) -> None:
    place.note(("run-1", "answer 0.5"))
    paused = start("own:Obeys")
    await_true(lambda: "begin run-1 answer 0.5" in place.effects)
    paused.send(signal.SIGSTOP)
    other = start("own:Obeys")
    await_true(lambda: "end run-1 answer 0.5" in place.effects)
    paused.send(signal.SIGCONT)
    await_true(lambda: "owns this stream now" in paused.errors.read_text())
    with place.log() as log:
        (answer,) = log.read_stream("operator/answers")
        assert texts_of(log, "answers") == ["answer 0.5"]
    assert answer.sender_id == "handler:obeys"
    assert place.effects.count("end run-1 answer 0.5") == 1
    assert (paused.end(), other.end()) == (0, 0)


# --- pages


def test_pages_tell_how_the_process_is(place: Place, start: Start) -> None:
    place.note(("run-1", "go"), ("run-2", "fail"))
    running = start("own:Obeys", "--attempts", "1")
    await_true(lambda: running.get("readyz")[0] == 200)
    assert running.get("livez")[1] == {"handler": "obeys", "member": running.member, "live": True, "reason": None}
    counted = 'esper_handler_events_total{handler="obeys",outcome="%s"} 1.0'
    await_true(lambda: counted % "handled" in running.get("metrics")[1])
    await_true(lambda: counted % "parked" in running.get("metrics")[1])
    await_true(lambda: 'esper_handler_lag_events{handler="obeys"} 0.0' in running.get("metrics")[1])
    await_true(lambda: 'esper_handler_parked{handler="obeys"} 1.0' in running.get("metrics")[1])
    place.note(("run-1", "wait 1"))
    await_true(lambda: "begin run-1 wait 1" in place.effects)
    running.send(signal.SIGTERM)
    await_true(lambda: running.get("readyz")[0] == 503)
    assert running.get("readyz")[1]["reason"] == "draining: SIGTERM"
    assert running.process.wait(20) == 0
    assert "hunter2" not in running.errors.read_text()


def test_process_whose_loop_hangs_is_not_live(place: Place, start: Start) -> None:
    running = start("own:Obeys")
    assert running.get("livez")[0] == 200
    place.note(("run-1", "block 4"))
    await_true(lambda: running.get("livez")[0] == 503, 4)
    assert "the loop has not turned for" in running.get("readyz")[1]["reason"]
    await_true(lambda: running.get("livez")[0] == 200)
    assert running.end() == 0


# --- the log


def test_log_that_goes_away_and_comes_back(place: Place, start: Start, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server:
        place.url = server.url
        place.note(("run-1", "go 1"))
        running = start("own:Obeys")
        await_true(lambda: "end run-1 go 1" in place.effects)
        await_true(lambda: running.get("readyz")[0] == 200)
        server.kill()
        await_true(lambda: running.get("readyz")[0] == 503)
        assert "E-LOG-005" in running.get("readyz")[1]["reason"]
        assert running.get("livez")[0] == 200
        server.start()
        place.note(("run-1", "go 2"))
        await_true(lambda: "end run-1 go 2" in place.effects)
        await_true(lambda: running.get("readyz")[0] == 200)
        metrics = running.get("metrics")[1]
        assert float(metrics.split('esper_log_memory_bytes{adapter="redis"} ')[1].split()[0]) > 1e5
        assert running.end() == 0


def test_log_that_cannot_be_reached_at_the_start_is_exit_code_5(place: Place) -> None:
    place.url = "redis://127.0.0.1:1/0"
    done = place.esper("handler", "start", "own:Obeys", check=False)
    assert done.returncode == 5
    assert "error[E-LOG-005]" in done.stderr


# --- starting


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("nonsense",), 4, "the shipped ones are projector, sealer, blueprint-verifier"),
        (("own:Nothing",), 4, "own has no 'Nothing'"),
        (("own:Obeys", "--host", "192.0.2.1"), 2, "is no address of this machine"),
        (("own:Obeys", "--member", "a/b"), 2, "'a/b' is no name of a member"),
        (("sealer",), 4, "key"),
    ],
)
def test_start_that_cannot_be_is_told(place: Place, words: tuple[str, ...], code: int, told: str) -> None:
    done = place.esper("handler", "start", *words, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_port_and_name_of_a_running_process_are_refused(place: Place, start: Start) -> None:
    running = start("own:Obeys", "--member", "m1")
    port = running.url.rpartition(":")[2]
    done = place.esper("handler", "start", "own:Obeys", "--port", port, check=False)
    assert (done.returncode, "Address already in use" in done.stderr) == (1, True)
    done = place.esper("handler", "start", "own:Obeys", "--member", "m1", "--ttl-seconds", "1.5", check=False)
    assert (done.returncode, "member m1 runs already" in done.stderr) == (1, True)
    running.end(signal.SIGKILL)
    # The dead process's name is free once it has been silent for long enough.
    again = start("own:Obeys", "--member", "m1")
    assert again.end() == 0


def test_new_group_begins_where_it_is_told(place: Place) -> None:
    place.note(("run-1", "go 1"))
    place.esper("handler", "start", "own:Obeys", "--until-idle", "--from-end")
    assert place.effects == []
    place.note(("run-1", "go 2"))
    place.esper("handler", "start", "own:Obeys", "--until-idle", "--from-beginning")
    assert place.effects == ["begin run-1 go 2", "end run-1 go 2"]


# --- status


def test_status_tells_who_lives_and_how_far_they_are(place: Place, start: Start) -> None:
    place.note(("run-1", "go"), ("run-2", "fail"))
    options = ("--attempts", "1", "--ttl-seconds", "5")
    alive, dead = (start("own:Obeys", *options, "--member", name) for name in ("m1", "m2"))
    await_true(lambda: "begin run-2 fail" in place.effects)
    with place.log() as log:
        await_true(lambda: parked_events(log))
    dead.end(signal.SIGKILL)

    def view() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(place.esper("handler", "status", "obeys", "--json").stdout)
        return found

    await_true(lambda: view()["lag_events"] == 0)
    told = view()
    assert {member["member"]: member["state"] for member in told["members"]} == {"m1": "alive", "m2": "silent"}
    assert (told["handler"], told["alive"], told["silent"], told["parked"]) == ("obeys", 1, 1, 1)
    assert told["members"][0]["url"] == alive.url
    assert alive.end() == 0
    place.note(("run-3", "go"))
    (told,) = json.loads(place.esper("handler", "status", "--no-watch", "--json").stdout)
    assert (told["handler"], told["alive"], told["lag_events"]) == ("obeys", None, 1)
    assert place.esper("handler", "status", "nobody", check=False).returncode == 4


# --- what the documentation shows


def test_handler_on_the_page_runs_as_it_stands(place: Place) -> None:
    page = (ROOT / "docs" / "how-to" / "run-handlers.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (place.folder / "greeter.py").write_text(code)
    write_small_log(place.folder / "log.db")
    place.esper("handler", "start", "greeter:Greeter", "--until-idle")
    with place.log() as log:
        assert texts_of(log, "run-0002") == ["digits began", "4 steps"]


# --- what ships


def test_projector_takes_over_from_one_that_was_killed(place: Place, start: Start) -> None:
    write_small_log(place.folder / "log.db")
    db = f"sqlite:///{place.folder}/tables.db"
    first = start("projector")
    await_true(lambda: position_of(place, db) == 26)
    second = start("projector")
    place.note(("run-0001", "go 1"))
    await_true(lambda: position_of(place, db) == 27)
    first.end(signal.SIGKILL)
    place.note(("run-0001", "go 2"))
    await_true(lambda: position_of(place, db) == 28)
    assert second.end() == 0
    place.esper("projections", "verify")


def position_of(place: Place, db: str) -> int:
    if not (place.folder / "tables.db").exists():
        return 0
    engine = open_tables(db)
    try:
        with place.log() as log:
            return Projector(log, engine).checkpoint().position
    finally:
        engine.dispose()


def test_sealer_keeps_the_sealing_lag_bounded(place: Place, start: Start) -> None:
    SigningKey.create(place.folder / "keys" / "signing.pem")
    place.settings = {"ESPER_SEAL_EVENTS": "20"}
    write_small_log(place.folder / "log.db")
    running = start("sealer")
    await_true(lambda: "esper_log_unsealed_events 0.0" in running.get("metrics")[1])
    place.note(*[("run-1", f"go {number}") for number in range(5)])
    await_true(lambda: "esper_log_unsealed_events 5.0" in running.get("metrics")[1])
    assert running.end() == 0
    verified = json.loads(place.esper("log", "verify", "--json").stdout)
    assert (verified["positions"], verified["unsealed"]) == (31, 5)


def test_blueprint_verifier_rejects_what_is_unsound_and_says_nothing_of_the_rest(place: Place) -> None:
    sound = load_library()["res_mlp"]
    with place.log() as log:
        submit(log, blueprint_id(sound), canonical_json(sound))
        submit(log, "b1" * 32, '{"ir": 1}')
    for _ in range(2):
        place.esper("handler", "start", "blueprint-verifier", "--until-idle")
    with place.log() as log:
        written = [envelope for envelope in log.read() if envelope.sender_id == "handler:blueprint-verifier"]
        causes = log.read(1, 1)
    assert [(one.type, one.stream, one.causation_id) for one in written] == [
        ("BlueprintRejected", f"blueprint/{'b1' * 32}", causes[0].event_id)
    ]
    rows = json.loads(place.esper("blueprint", "list", "--json").stdout)
    assert {row["blueprint_id"][:4]: row["status"] for row in rows} == {
        blueprint_id(sound)[:4]: "submitted",
        "b1b1": "failed",
    }


def submit(log: EventLog, identity: str, document: str) -> None:
    fact = BlueprintSubmitted(
        blueprint_id=identity, name="res_mlp", kind="residual", architecture_ir=document, submitted_by="another program"
    )
    event = Event(fact=fact, event_id=new_event_id(), sender_id="other", trace_id="ab" * 16)
    log.append([event], stream=fact.stream, expected=ANY)
