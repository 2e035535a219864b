"""``esper handler parked`` lists, shows, retries and skips what handlers gave up on."""

from __future__ import annotations

import getpass
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from cli_support import Esper

from esper.artifacts import LocalStore
from esper.events import fact_of
from esper.events.handler import EventRetried, EventSkipped
from esper.names import TopicNames
from esper.oona import SqliteLog
from esper.oona.consuming.consumer import Consumer
from esper.oona.consuming.parking import parked_events

GROUP = "urza"


def handle() -> None:
    raise ValueError("the kernel has no name")


def give_up(home: Path) -> list[int]:
    """Let a handler give up on every event that comes; returns the positions of what was parked."""
    with (
        SqliteLog(home / "log.db") as log,
        Consumer(
            log,
            group=GROUP,
            member="ada",
            topics=[TopicNames.TRAINING_RUNS],
            sender_id=f"handler:{GROUP}",
            trace_id="1" * 32,
            attempts=1,
            store=LocalStore(home / "artifacts"),
        ) as consumer,
    ):
        while found := consumer.poll(1, 0.0):
            try:
                handle()
            except ValueError as error:
                consumer.failed(found[0], error)
        return [one.position for one in parked_events(log, GROUP)]


@pytest.fixture
def parked(small_home: Path) -> list[int]:
    return give_up(small_home)


def test_nothing_parked_is_an_empty_list(esper: Esper, small_home: Path) -> None:
    assert esper("handler", "parked", "list", "--json").json == []
    ran = esper("handler", "parked", "list")
    assert (ran.code, ran.out) == (0, "")
    assert "no event is parked" in ran.err


def test_parked_events_are_listed_with_their_cause(esper: Esper, parked: list[int]) -> None:
    rows = esper("handler", "parked", "list", "--json").json
    assert [row["position"] for row in rows] == parked
    assert {row["handler"] for row in rows} == {GROUP}
    assert {(row["state"], row["cause"], row["message"]) for row in rows} == {
        ("parked", "ValueError", "the kernel has no name")
    }
    assert rows == esper("handler", "parked", "list", "--handler", GROUP, "--json").json
    assert esper("handler", "parked", "list", "--handler", "tezzeret", "--json").json == []
    assert "ValueError" in esper("handler", "parked", "list").out


def test_a_parked_event_is_shown_with_its_traceback_and_what_it_says(esper: Esper, parked: list[int]) -> None:
    shown = esper("handler", "parked", "show", GROUP, str(parked[0]), "--json").json
    assert shown["member"] == "ada"
    assert shown["event"]["position"] == parked[0]
    assert shown["event"]["fact"]["run_id"] in shown["stream"]
    assert shown["later_events_of_stream"] > 0
    assert 'raise ValueError("the kernel has no name")' in shown["traceback"]
    told = esper("handler", "parked", "show", GROUP, str(parked[0])).out
    assert "the kernel has no name" in told
    assert "Traceback" in told


def test_without_the_artifacts_a_parked_event_is_shown_without_its_traceback(
    esper: Esper, parked: list[int], small_home: Path
) -> None:
    for file in (small_home / "artifacts").rglob("*"):
        if file.is_file():
            file.unlink()
    shown = esper("handler", "parked", "show", GROUP, str(parked[0]), "--json").json
    assert shown["traceback"] is None
    assert shown["traceback_digest"] is not None


def test_an_event_that_this_version_cannot_read_is_shown_as_bytes(esper: Esper, small_home: Path) -> None:
    with closing(sqlite3.connect(small_home / "log.db")) as connection, connection:
        connection.execute("UPDATE events SET schema = 99 WHERE type = 'RunStarted'")
    position = give_up(small_home)[0]
    shown = esper("handler", "parked", "show", GROUP, str(position), "--json").json
    assert shown["cause"] == "E-SCH-003 UpcastMissing"
    assert shown["event"]["schema"] == 99
    assert bytes.fromhex(shown["event"]["payload"])
    assert esper("handler", "parked", "show", GROUP, str(position)).code == 0


@pytest.mark.parametrize(
    ("act", "kind", "state"), [("retry", EventRetried, "retrying"), ("skip", EventSkipped, "skipped")]
)
def test_a_decision_is_a_fact_with_its_author(
    esper: Esper, parked: list[int], small_home: Path, act: str, kind: type, state: str
) -> None:
    ran = esper("handler", "parked", act, GROUP, str(parked[0]), "--reason", "mended", "--actor", "ada", "--json").json
    assert (ran["state"], ran["actor"], ran["reason"]) == (state, "ada", "mended")
    with SqliteLog(small_home / "log.db") as log:
        last = log.read_stream(f"handler/{GROUP}")[-1]
    fact = fact_of(last)
    assert isinstance(fact, kind)
    assert (fact.position, fact.parking, fact.actor, fact.reason) == (parked[0], 1, "ada", "mended")
    assert last.sender_id == "operator:ada"
    listed = {row["position"]: row["state"] for row in esper("handler", "parked", "list", "--json").json}
    assert listed[parked[0]] == state


def test_the_author_is_the_login_name_unless_given(esper: Esper, parked: list[int]) -> None:
    ran = esper("handler", "parked", "skip", GROUP, str(parked[0]), "--reason", "known").out
    assert getpass.getuser() in ran


@pytest.mark.parametrize("act", ["retry", "skip"])
def test_what_is_not_parked_is_refused(esper: Esper, parked: list[int], act: str) -> None:
    ran = esper("handler", "parked", act, GROUP, "1000000", "--reason", "r")
    assert ran.code == 4
    assert "no parked event at position 1000000" in ran.err
    assert esper("handler", "parked", act, "tezzeret", str(parked[0]), "--reason", "r").code == 4
    assert esper("handler", "parked", "retry", GROUP, str(parked[0]), "--reason", "r").code == 0
    ran = esper("handler", "parked", act, GROUP, str(parked[0]), "--reason", "r")
    assert ran.code == 4
    assert "retrying already" in ran.err
    assert esper("handler", "parked", "show", GROUP, "1000000").code == 4


def test_a_decision_without_a_reason_is_refused(esper: Esper, parked: list[int]) -> None:
    assert esper("handler", "parked", "skip", GROUP, str(parked[0])).code == 2
    assert esper("handler", "parked", "skip", GROUP, str(parked[0]), "--reason", " ").code == 2
    assert esper("handler", "parked", "retry", GROUP, "0", "--reason", "r").code == 2


def test_parked_events_are_in_the_tables_too(esper: Esper, parked: list[int]) -> None:
    esper("handler", "parked", "skip", GROUP, str(parked[0]), "--reason", "known", "--actor", "ada")
    assert esper("projections", "rebuild").code == 0
    assert esper("projections", "verify").code == 0
