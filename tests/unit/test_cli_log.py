"""``esper log``: what it prints of a log, and how it names damage."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import Esper
from small_log import BLUEPRINT, NEWER, OLDER

pytestmark = pytest.mark.usefixtures("small_home")


def test_read_prints_events_oldest_first_one_a_line(esper: Esper) -> None:
    lines = esper("log", "read", "-n", "3").out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert "BlueprintSubmitted" in lines[0]
    assert "name=res_mlp" in lines[0]


def test_read_as_json_gives_whole_facts_with_exact_floats(esper: Esper) -> None:
    events = esper("log", "read", "--type", "TrainingStepCompleted", "--json").json_lines
    assert [event["fact"]["loss"] for event in events] == [1.0, 0.5, 1.0, 0.5, 1.0 / 3, 0.25]
    assert events[0]["stream"] == f"run/{OLDER}"
    assert events[0]["recorded_at"].endswith("+00:00")
    assert len(bytes.fromhex(events[0]["digest"])) == 32


def test_read_goes_on_after_a_position(esper: Esper) -> None:
    everything = esper("log", "read", "--json").json_lines
    rest = esper("log", "read", "--after", "5", "--json").json_lines
    assert rest == everything[5:]
    assert [event["position"] for event in everything] == list(range(1, len(everything) + 1))


@pytest.mark.parametrize("verb", ["read", "tail"])
def test_filters_choose_by_stream_type_and_topic(esper: Esper, verb: str) -> None:
    of_stream = esper("log", verb, "--stream", f"run/{NEWER}", "-n", "99", "--json").json_lines
    assert [event["version"] for event in of_stream] == list(range(1, len(of_stream) + 1))
    both = esper("log", verb, "--stream", f"run/{NEWER}", "--type", "EpochCompleted", "-n", "99", "--json").json_lines
    assert [event["fact"]["epoch"] for event in both] == [0, 1]
    of_topic = esper("log", verb, "--topic", "training.runs", "-n", "99", "--json").json_lines
    assert [event["type"] for event in of_topic] == ["RunStarted", "RunFinished"] * 2


def test_tail_prints_the_last_events_oldest_first(esper: Esper) -> None:
    everything = esper("log", "read", "--json").json_lines
    assert esper("log", "tail", "-n", "4", "--json").json_lines == everything[-4:]
    assert esper("log", "tail", "-n", "1", "--type", "RunStarted", "--json").json_lines[0]["stream"] == f"run/{NEWER}"
    assert esper("log", "tail", "-n", "0").out == ""


def test_follow_prints_what_is_appended_later(esper: Esper, small_home: Path) -> None:
    command = [sys.executable, "-m", "esper.cli.main", "log", "tail", "-n", "1", "--follow"]
    follower = subprocess.Popen(
        command,
        env={**os.environ, "ESPER_HOME": str(small_home)},
        stdout=subprocess.PIPE,
        text=True,
        # Where the tests run in the background SIGINT is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here yet
    )
    try:
        assert follower.stdout is not None
        assert "RunFinished" in follower.stdout.readline()
        assert esper("run", "note", NEWER, "looks good", "--actor", "ada").code == 0
        assert "text=looks good" in follower.stdout.readline()
    finally:
        follower.send_signal(signal.SIGINT)
        try:
            follower.communicate(timeout=30)
        finally:
            follower.kill()
    assert follower.returncode == 130


def test_unknown_type_is_a_usage_error_with_the_nearest_name(esper: Esper) -> None:
    ran = esper("log", "read", "--type", "EpochComplete")
    assert ran.code == 2
    assert "did you mean 'EpochCompleted'?" in ran.err


def test_unknown_stream_is_not_found(esper: Esper) -> None:
    ran = esper("log", "read", "--stream", "run/none")
    assert ran.code == 4
    assert "no stream 'run/none'" in ran.err


def test_stats_count_every_event_once_in_each_way(esper: Esper) -> None:
    stats = esper("log", "stats", "--json").json
    for way in ("by_type", "by_topic", "by_stream_kind"):
        assert sum(stats[way].values()) == stats["events"]
    assert stats["by_type"]["TrainingStepCompleted"] == 6
    assert stats["streams"] == 4
    assert stats["disk_bytes"] > stats["payload_bytes"] > 0
    assert stats["disk_bytes_per_event"] == stats["disk_bytes"] / stats["events"]
    assert "TrainingStepCompleted" in esper("log", "stats").out


def test_verify_tells_positions_and_head(esper: Esper) -> None:
    report = esper("log", "verify", "--json").json
    head = esper("log", "stats", "--json").json["head"]
    assert report["verified"] is True
    assert report["positions"] == report["head_position"] == esper("log", "stats", "--json").json["events"]
    assert report["head"] == head


def flip_recorded_loss(log_file: Path) -> int:
    """Flip one bit of a stored loss and return its position."""
    connection = sqlite3.connect(log_file)
    try:
        position, payload = connection.execute(
            "SELECT position, payload FROM events WHERE type = 'TrainingStepCompleted' LIMIT 1 OFFSET 2"
        ).fetchone()
        place = payload.index(b"\xa4loss") + 8
        payload = payload[:place] + bytes([payload[place] ^ 1]) + payload[place + 1 :]
        connection.execute("UPDATE events SET payload = ? WHERE position = ?", (payload, position))
        connection.commit()
    finally:
        connection.close()
    return int(position)


def test_verify_names_a_flipped_bit_and_exits_3(esper: Esper, small_home: Path) -> None:
    position = flip_recorded_loss(small_home / "log.db")
    ran = esper("log", "verify")
    assert ran.code == 3
    assert "error[E-LOG-004]" in ran.err
    assert str(position) in ran.err
    assert "esper log salvage" in ran.err


def test_salvage_writes_the_verified_prefix_to_a_new_log(esper: Esper, small_home: Path, tmp_path: Path) -> None:
    whole = esper("log", "read", "--json").json_lines
    position = flip_recorded_loss(small_home / "log.db")
    report = esper("log", "salvage", str(tmp_path / "saved.db"), "--json").json
    assert report["damaged_at"] == position
    assert report["head"]["position"] == position - 1
    saved = esper("--log", report["target"], "log", "read", "--json").json_lines
    assert saved == whole[: position - 1]
    assert esper("--log", report["target"], "log", "verify").code == 0


def test_salvage_refuses_a_target_that_holds_records(esper: Esper, small_home: Path, tmp_path: Path) -> None:
    shutil.copyfile(small_home / "log.db", tmp_path / "other.db")
    ran = esper("log", "salvage", str(tmp_path / "other.db"))
    assert ran.code == 2
    assert "already holds" in ran.err


def test_long_ids_are_cut_for_people_and_whole_for_programs(esper: Esper) -> None:
    assert BLUEPRINT not in esper("log", "read", "-n", "1").out
    assert esper("log", "read", "-n", "1", "--json").json_lines[0]["stream"] == f"blueprint/{BLUEPRINT}"
