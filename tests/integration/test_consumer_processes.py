"""Members of a group as real processes: killed, paused past their lease, coming and going under load."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from consumer_member import GROUP
from servers import RedisServer

from esper.events import Event, fact_of
from esper.events.operator import NoteAdded
from esper.ids import derived_id
from esper.oona import ANY, EventLog, open_log
from esper.oona.consuming.parking import parked_events

MEMBER = Path(__file__).with_name("consumer_member.py")
ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0


class Line(NamedTuple):
    """A line of the journal."""

    member: str
    what: str
    stream: str
    version: int
    at_s: float


class Group:
    """A log and the processes that handle its notes."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        (folder / "effects").mkdir()
        self.log: EventLog = open_log(url)
        self.members: dict[str, subprocess.Popen[bytes]] = {}
        self.notes: list[tuple[str, int]] = []

    def append(self, run: str, text: str) -> bytes:
        number = sum(one == f"operator/{run}" for one, _ in self.notes) + 1
        event_id = derived_id("note", run, number)
        fact = NoteAdded(run_id=run, actor="ada", text=text)
        event = Event(fact=fact, event_id=event_id, sender_id="test", trace_id="0" * 32)
        self.log.append([event], stream=fact.stream, expected=ANY)
        self.notes.append((fact.stream, number))
        return event_id

    def start(self, member: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(MEMBER), self.url, member, str(self.folder), *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.members[member] = subprocess.Popen(command, env=environment)
        return self.members[member]

    @property
    def journal(self) -> list[Line]:
        path = self.folder / "journal"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        words = [line.split() for line in lines]
        return [Line(one[0], one[1], one[2], int(one[3]), float(one[4])) for one in words]

    def await_(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < deadline, self.journal[-20:]
            time.sleep(0.02)

    def began(self, member: str, stream: str) -> bool:
        return any(one[:3] == (member, "begin", stream) for one in self.journal)

    def all_ended(self) -> bool:
        return {(one.stream, one.version) for one in self.journal if one.what == "end"} >= set(self.notes)

    @property
    def results(self) -> list[str]:
        """What facts say about results, doubled ones too if there were any."""
        streams = self.log.streams("operator/result-")
        facts = [fact_of(one) for stream in streams for one in self.log.read_stream(stream)]
        return sorted(fact.text for fact in facts if isinstance(fact, NoteAdded))

    def check(self) -> None:
        """See that each note has one result, and each stream one owner at a time, in order."""
        ids = [derived_id("note", stream.removeprefix("operator/"), number).hex() for stream, number in self.notes]
        assert self.results == sorted(ids)
        assert parked_events(self.log, GROUP) == []
        self.log.verify()
        spans = defaultdict(list)
        open_: dict[tuple[str, str], Line] = {}
        first: dict[str, list[int]] = defaultdict(list)
        for line in sorted(self.journal, key=lambda one: one.at_s):
            if line.what == "begin":
                open_[line.member, line.stream] = line
                if line.version not in first[line.stream]:
                    first[line.stream].append(line.version)
            elif line.what == "end":
                began = open_.pop((line.member, line.stream))
                spans[line.stream].append((began.at_s, line.at_s, line.member))
        for stream, versions in first.items():
            assert versions == sorted(versions), f"{stream} came out of order"
        for stream, found in spans.items():
            for (_, ended_s, one), (began_s, _, other) in itertools.pairwise(found):
                assert one == other or began_s >= ended_s, f"{stream} had two owners at once"

    def close(self) -> None:
        for member in self.members.values():
            if member.poll() is None:
                member.send_signal(signal.SIGCONT)
                member.kill()
            member.wait()
        self.log.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"])
def group(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Group]:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("server")
        url = f"{server.url}?namespace={tmp_path.name}"
    with ExitStack() as stack:
        group = Group(url, tmp_path)
        stack.callback(group.close)
        yield group


def test_what_a_killed_member_had_in_hand_is_handled_by_another(group: Group) -> None:
    ada = group.start("ada", "stuck")
    group.append("slow", "wait")
    group.append("slow", "after")
    group.await_(lambda: group.began("ada", "operator/slow"))
    ada.kill()
    assert ada.wait() == -signal.SIGKILL
    group.start("bob")
    for number in range(5):
        group.append(f"run-{number}", "x")
    group.await_(group.all_ended)
    assert group.began("bob", "operator/slow")
    group.check()


def test_a_member_that_was_killed_between_effect_and_result_leaves_one_result(group: Group) -> None:
    ada = group.start("ada", "stuck-after-effect")
    event_id = group.append("slow", "wait")
    effect = group.folder / "effects" / event_id.hex()
    group.await_(lambda: effect.exists() and effect.read_text())
    ada.kill()
    ada.wait()
    assert group.results == []
    group.start("bob")
    group.await_(group.all_ended)
    assert effect.read_text().split() == ["ada", "bob"], "the effect was made twice, as at least once says"
    group.check()


def test_a_member_paused_past_its_lease_is_replaced_and_its_late_commit_is_rejected(group: Group) -> None:
    ada = group.start("ada", "stuck")
    event_id = group.append("slow", "wait")
    group.await_(lambda: group.began("ada", "operator/slow"))
    ada.send_signal(signal.SIGSTOP)
    group.start("bob")
    group.await_(group.all_ended)
    group.append("slow", "more")
    group.await_(group.all_ended)
    before = cursors(group.log)
    (group.folder / "go").touch()
    ada.send_signal(signal.SIGCONT)
    group.await_(lambda: any(one.member == "ada" and one.what == "late" for one in group.journal))
    assert all(cursors(group.log)[slot] >= position for slot, position in before.items())
    assert group.results.count(event_id.hex()) == 1
    effect = group.folder / "effects" / event_id.hex()
    assert effect.read_text().split() == ["bob", "ada"]
    # It is a member like any other again.
    for number in range(12):
        group.append(f"run-{number}", "x")
    group.await_(group.all_ended)


def cursors(log: EventLog) -> dict[str, int]:
    found = {name: log.cells.look(name) for name in log.cells.names(f"group/{GROUP}/slot/")}
    return {name: msgspec.msgpack.decode(cell.value)[0] for name, cell in found.items() if cell and cell.value}


def test_members_come_and_go_under_load_and_no_stream_has_two_owners_or_goes_back(group: Group) -> None:
    runs = itertools.cycle(f"run-{number}" for number in range(9))

    def load_until(what: Callable[[], object]) -> None:
        """Append notes, some fifty a second, until something holds."""
        deadline = time.monotonic() + 2 * PATIENCE_S
        while not what():
            assert time.monotonic() < deadline, group.journal[-20:]
            for _ in range(5):
                group.append(next(runs), f"0.00{len(group.notes) % 5}")
            time.sleep(0.1)

    def works(*members: str) -> Callable[[], bool]:
        """Return what tells whether each of these members ended ten notes since now."""
        before = len(group.journal)
        return lambda: all(
            sum(one.member == member and one.what == "end" for one in group.journal[before:]) >= 10
            for member in members
        )

    ada = group.start("ada")
    load_until(works("ada"))
    group.start("bob")
    load_until(works("ada", "bob"))
    eve = group.start("eve")
    load_until(works("ada", "bob", "eve"))
    ada.send_signal(signal.SIGTERM)
    load_until(lambda: ada.poll() is not None)
    assert ada.returncode == 0
    load_until(works("bob", "eve"))
    eve.kill()
    group.start("joe")
    load_until(works("bob", "joe"))
    group.await_(group.all_ended)
    group.check()
