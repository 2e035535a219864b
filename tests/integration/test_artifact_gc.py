"""Collecting artifacts of real runs: what replay needs stays, whoever writes or dies meanwhile."""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from builders import append
from cli_support import Esper
from servers import S3Server

from esper.artifacts import LocalStore, open_store
from esper.events.run import CheckpointSaved
from esper.oona import open_log
from esper.oona.collecting.collect import LEAST_AGE_S, NamingLog, collect, plan
from replay.session import verify
from tests.tiny_tasks import train_tiny
from tests.training import Place

ROOT = Path(__file__).resolve().parents[2]
DAY_S = 86_400.0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def where(home: Path) -> Iterator[Place]:
    """The log and the store of a home."""
    home.mkdir()
    with open_log(f"sqlite:///{home}/log.db") as log, open_store(f"file:///{home}/artifacts") as store:
        yield Place(log, store)


def age(store: Any, seconds: float = 2 * DAY_S) -> None:
    """Make everything in a local store older."""
    for file in Path(store.where).rglob("*"):
        if file.is_file():
            os.utime(file, (time.time() - seconds,) * 2)


def saved(number: int, digest: bytes) -> CheckpointSaved:
    return CheckpointSaved(run_id="r", attempt=1, ordinal=number, step=1, digest=digest, size_bytes=1)


def test_a_run_replays_bit_for_bit_after_a_collection(where: Place, esper: Esper) -> None:
    train_tiny(where.log, where.store, run_id="whole")
    needed = set(where.store.digests())
    garbage = {where.store.put(f"left by a run that was killed, {number}".encode()) for number in range(7)}
    assert esper("artifact", "gc", "--by", "ada", "--json").json["artifacts"] == 0  # all of it is young
    age(where.store)
    look = esper("artifact", "gc", "--dry-run", "--json").json
    assert {bytes.fromhex(row["digest"]) for row in look["garbage"]} == garbage
    assert set(where.store.digests()) == needed | garbage
    done = esper("artifact", "gc", "--by", "ada", "--json").json
    assert (done["artifacts"], done["named"], done["bytes"]) == (7, len(needed), look["bytes"])
    assert set(where.store.digests()) == needed | {bytes.fromhex(done["list"])}
    verdict = verify(where.log, where.store, "whole")
    assert verdict.finished
    assert esper("artifact", "verify").code == 0
    again = esper("artifact", "gc", "--by", "ada", "--json").json
    assert (again["artifacts"], again["position"]) == (0, None)
    # The list of what went is named by its fact, so it stays.
    age(where.store)
    assert esper("artifact", "gc", "--by", "ada", "--json").json["artifacts"] == 0


def test_writers_that_rely_on_what_is_being_collected_lose_nothing(where: Place) -> None:
    store = LocalStore(where.store.where)
    append(where.log, [saved(1, store.put(b"named"))])
    logs = [NamingLog(where.log, "", None)]
    removed = spared = 0
    for number in range(6):
        contents = [f"{number} {one}".encode() * 20 for one in range(60)]
        for data in contents:
            store.put(data)
        age(store)
        now = time.time()
        found = plan(store, logs, now=now, older_than_s=LEAST_AGE_S)
        gate = threading.Barrier(3)
        lost: list[bytes] = []
        # Their facts come later; until then nothing but their age protects what they put.
        work = [partial(put_some, store.path, contents, gate, seed, lost) for seed in (number, 100 + number)]
        writers = [threading.Thread(target=one) for one in work]
        for writer in writers:
            writer.start()
        gate.wait()
        done = collect(store, where.log, found, now=now, older_than_s=LEAST_AGE_S, actor="a", trace_id="a" * 32)
        for writer in writers:
            writer.join()
        assert lost == []
        removed, spared = removed + done.artifacts, spared + done.spared
    assert removed > 50
    assert spared > 50


def put_some(place: Path, contents: list[bytes], gate: threading.Barrier, seed: int, lost: list[bytes]) -> None:
    """Put half of these again, and note what is not there in the end or right after it was put."""
    chosen = random.Random(seed).sample(contents, len(contents) // 2)
    with open_store(f"file:///{place}") as store:
        gate.wait()
        lost += [data for data in chosen if not store.has(store.put(data))]
        lost += [data for data in chosen if not store.has(hashlib.sha256(data).digest())]


_STOPS_AFTER = """
import sys
from pathlib import Path
from esper.artifacts.local import LocalShelf
from esper.cli.main import run
real, done = LocalShelf.delete, []

def stop(self, name, **more):
    if len(done) == 3:
        print("stopped", flush=True)
        sys.stdin.read()
    done.append(real(self, name, **more))
    return done[-1]

LocalShelf.delete = stop
run(sys.argv[1:])
"""


def test_a_collection_that_is_killed_goes_on_the_next_time(where: Place, home: Path, esper: Esper) -> None:
    append(where.log, [saved(1, where.store.put(b"named"))])
    for number in range(8):
        where.store.put(b"garbage %d" % number)
    age(where.store)
    command = [sys.executable, "-c", _STOPS_AFTER, "--home", str(home), "artifact", "gc", "--by", "ada"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stopped\n"
        process.kill()
    left = len(list(where.store.digests()))
    assert 1 < left < 9
    done = esper("artifact", "gc", "--by", "ada", "--json").json
    assert done["artifacts"] == left - 1
    assert where.store.get(hashlib.sha256(b"named").digest()) == b"named"


def test_a_collection_on_s3_takes_uploads_that_were_given_up_too(
    s3: S3Server, where: Place, esper: Esper, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3.new_bucket()
    url = s3.url(bucket, "place")
    with open_store(url) as store, closing(s3.client()) as client:
        append(where.log, [saved(1, store.put(b"named"))])
        garbage = store.put(b"garbage")
        store.add_signature(garbage, "0123456789abcdef", b"signature")
        upload = client.create_multipart_upload(Bucket=bucket, Key="place/ab/upload")["UploadId"]
        client.upload_part(Bucket=bucket, Key="place/ab/upload", UploadId=upload, PartNumber=1, Body=b"part")
        other = client.create_multipart_upload(Bucket=bucket, Key="elsewhere/ab")["UploadId"]

        def gc() -> Any:
            return esper("--artifacts", url, "artifact", "gc", "--by", "ada", "--json").json

        young = gc()
        assert (young["artifacts"], young["unfinished"], young["young"]) == (0, 0, 1)
        later = time.time() + 2 * DAY_S
        monkeypatch.setattr(time, "time", lambda: later)
        assert esper("--artifacts", url, "artifact", "gc", "--dry-run", "--json").json["unfinished"] == 1
        done = gc()
        assert (done["artifacts"], done["unfinished"], done["named"]) == (1, 1, 1)
        assert store.get(hashlib.sha256(b"named").digest()) == b"named"
        assert not store.has(garbage)
        assert store.signatures(garbage) == {}
        uploads = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
        assert [one["UploadId"] for one in uploads] == [other]


# --- refusals of the command


@pytest.fixture
def garbage(where: Place) -> bytes:
    """Old garbage beside an old artifact that a fact names."""
    append(where.log, [saved(1, where.store.put(b"named"))])
    digest = where.store.put(b"garbage")
    age(where.store)
    return digest


def test_a_damaged_log_takes_nothing_away(where: Place, home: Path, garbage: bytes, esper: Esper) -> None:
    where.log.close()
    with closing(sqlite3.connect(home / "log.db")) as file:
        tables = [name for (name,) in file.execute("select name from sqlite_master where type = 'table'")]
        for table in tables:
            columns = [row[1] for row in file.execute(f"pragma table_info({table})")]
            if "payload" in columns:
                file.execute(f"update {table} set payload = x'80'")
        file.commit()
    ran = esper("artifact", "gc", "--by", "ada")
    assert ran.code == 3
    assert "E-LOG-004" in ran.err
    assert where.store.has(garbage)


def test_a_store_that_another_log_uses_is_left_until_that_log_is_named(
    where: Place, garbage: bytes, tmp_path: Path, esper: Esper
) -> None:
    from esper.oona.collecting.collect import claim_store, log_id

    url = f"sqlite:///{tmp_path}/other.db"
    theirs = where.store.put(b"theirs")
    with open_log(url) as other:
        append(other, [saved(2, theirs)])
        claim_store(LocalStore(where.store.where), other, url)
        other_id = log_id(other)
    age(where.store)
    ran = esper("artifact", "gc", "--by", "ada")
    assert (ran.code, str(other_id) in ran.err, "--also-log" in ran.err) == (2, True, True)
    done = esper("artifact", "gc", "--by", "ada", "--also-log", url, "--json").json
    assert (done["artifacts"], done["logs"]) == (1, 2)
    assert where.store.has(theirs)
    assert not where.store.has(garbage)
    assert esper("artifact", "gc", "--by", "ada", "--forget-log", str(other_id), "--json").json["artifacts"] == 1
    assert not where.store.has(theirs)
    assert esper("artifact", "gc", "--by", "ada").code == 0


def test_facts_that_wait_in_the_spool_are_waited_for(home: Path, garbage: bytes, esper: Esper) -> None:
    (home / "spool").mkdir()
    from esper.oona.recording.spool import SUFFIX

    (home / "spool" / f"one{SUFFIX}").write_bytes(b"")
    ran = esper("artifact", "gc", "--by", "ada")
    assert (ran.code, "esper log deliver" in ran.err) == (2, True)


@pytest.mark.parametrize("words", [[], ["--by", " "], ["--by", "ada", "--older-than", "1h"]])
def test_who_and_how_old_must_be_said(garbage: bytes, where: Place, esper: Esper, words: list[str]) -> None:
    assert esper("artifact", "gc", *words).code == 2
    assert where.store.has(garbage)


@pytest.mark.parametrize("text", ["", "1", "d", "-1d", "1y", "1e9d", "0x1d"])
def test_a_time_that_is_none_is_refused(garbage: bytes, esper: Esper, text: str) -> None:
    assert esper("artifact", "gc", "--by", "ada", f"--older-than={text}").code == 2


@pytest.mark.parametrize("text", ["2h", "120min", "120m", "7200s", "1.5 d", "1w"])
def test_times_are_written_as_people_do(garbage: bytes, where: Place, esper: Esper, text: str) -> None:
    age(where.store, 30 * DAY_S)
    assert esper("artifact", "gc", "--dry-run", "--older-than", text, "--json").json["artifacts"] == 1
