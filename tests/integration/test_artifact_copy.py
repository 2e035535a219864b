"""Large artifacts on their way to and from S3: cut connections and kills cost a part, not the whole."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from faults.wire import Wire
from servers import S3Server

from esper.artifacts import LocalStore
from esper.artifacts.content import ContentStore
from esper.artifacts.copying import copy
from esper.artifacts.s3 import S3Shelf
from esper.artifacts.s3_client import connect, parse_s3_url
from esper.errors import ArtifactStoreUnavailable

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
#: The least that S3 takes as a part; ``esper`` sends 16 MiB and asks for 8 MiB.
PART = 5 * MIB
SIZE = 4 * PART + 12_345
#: Requests, answers, heads and listings beside the bytes themselves.
TALK = 200_000


@pytest.fixture
def wire(s3: S3Server) -> Iterator[Wire]:
    with Wire(s3.port) as wire:
        yield wire


@pytest.fixture
def bucket(s3: S3Server) -> str:
    return s3.new_bucket()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    path.write_bytes(random.Random(5).randbytes(SIZE))
    return path


def store_at(port: int, bucket: str, *, attempts: int = 1) -> ContentStore:
    place = parse_s3_url(f"s3://{bucket}?endpoint_url=http://127.0.0.1:{port}")
    client = connect(place, connect_timeout_s=5.0, read_timeout_s=20.0, attempts=attempts)
    return ContentStore(S3Shelf(place, client, piece_bytes=PART))


def open_uploads(s3: S3Server, bucket: str) -> list[Any]:
    with closing(s3.client()) as client:
        return list(client.list_multipart_uploads(Bucket=bucket).get("Uploads", []))


def digest_of(file: Path) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()


def test_a_connection_cut_in_the_middle_of_a_file_costs_one_part(
    s3: S3Server, wire: Wire, bucket: str, file: Path
) -> None:
    told: list[int] = []
    wire.cut_after(sent_bytes=2 * PART + PART // 2)
    with store_at(wire.port, bucket, attempts=2) as store:
        digest = store.put_file(file, lambda done, _: told.append(done))
    assert wire.cuts == 1
    assert wire.sent_bytes <= SIZE + PART + TALK
    assert told == [*(number * PART for number in range(1, 5)), SIZE]
    with store_at(s3.port, bucket) as store:
        assert store.get(digest) == file.read_bytes()
    assert open_uploads(s3, bucket) == []


def test_a_file_that_was_cut_off_goes_on_in_the_next_call(s3: S3Server, wire: Wire, bucket: str, file: Path) -> None:
    wire.cut_after(sent_bytes=3 * PART + PART // 2)
    with store_at(wire.port, bucket) as store, pytest.raises(ArtifactStoreUnavailable):
        store.put_file(file)
    first_bytes = wire.sent_bytes
    with store_at(wire.port, bucket) as store:
        assert not store.has(digest_of(file))
        assert store.put_file(file) == digest_of(file)
        again_bytes = wire.sent_bytes - first_bytes
        assert again_bytes <= SIZE - 3 * PART + TALK
        assert store.get(digest_of(file)) == file.read_bytes()
    assert open_uploads(s3, bucket) == []


def test_parts_that_are_of_other_bytes_are_not_taken_for_ones_own(s3: S3Server, bucket: str, file: Path) -> None:
    name = f"{digest_of(file).hex()[:2]}/{digest_of(file).hex()}"
    with closing(s3.client()) as client:
        upload = client.create_multipart_upload(Bucket=bucket, Key=name)["UploadId"]
        client.upload_part(Bucket=bucket, Key=name, UploadId=upload, PartNumber=1, Body=bytes(PART))
        client.upload_part(Bucket=bucket, Key=name, UploadId=upload, PartNumber=2, Body=b"short")
    with store_at(s3.port, bucket) as store:
        assert store.get(store.put_file(file)) == file.read_bytes()
    assert open_uploads(s3, bucket) == []


def test_of_two_that_send_the_same_file_at_once_both_are_done(s3: S3Server, bucket: str, file: Path) -> None:
    with store_at(s3.port, bucket) as slow, store_at(s3.port, bucket) as quick:

        def overtaken(done: int, size: int) -> None:
            if done == size:
                quick.put_file(file)

        assert slow.put_file(file, overtaken) == quick.put_file(file)
        assert slow.get(digest_of(file)) == file.read_bytes()
    assert open_uploads(s3, bucket) == []


def test_an_answer_that_was_lost_at_the_end_of_a_file_is_no_failure(s3: S3Server, bucket: str, file: Path) -> None:
    with store_at(s3.port, bucket, attempts=2) as store:
        s3.fault("eat", method="POST", query="uploadId")
        s3.fault("status", status=404, code="NoSuchUpload", method="POST", query="uploadId")
        assert store.get(store.put_file(file)) == file.read_bytes()


def test_a_fetch_that_is_cut_off_goes_on_in_the_next_call(
    s3: S3Server, wire: Wire, bucket: str, file: Path, tmp_path: Path
) -> None:
    with store_at(s3.port, bucket) as store:
        digest = store.put_file(file)
    wire.cut_after(received_bytes=12 * MIB)
    with store_at(wire.port, bucket) as store:
        # A part that breaks off is asked for again at once.
        assert store.get_file(digest, tmp_path / "once") == SIZE
        assert wire.cuts == 1
        assert wire.received_bytes <= SIZE + 8 * MIB + TALK
        s3.fault("status", status=503, code="SlowDown", times=-1, method="GET")
        (tmp_path / "twice.part").write_bytes(file.read_bytes()[: 15 * MIB])
        with pytest.raises(ArtifactStoreUnavailable):
            store.get_file(digest, tmp_path / "twice")
        s3.heal()
        assert store.get_file(digest, tmp_path / "twice") == SIZE - 15 * MIB
    assert digest_of(tmp_path / "once") == digest_of(tmp_path / "twice") == digest


def test_a_copy_from_one_bucket_to_another_goes_on_without_fetching_again(
    s3: S3Server, wire: Wire, bucket: str, file: Path, tmp_path: Path
) -> None:
    there, on_the_way = s3.new_bucket(), tmp_path / "transfer"
    with store_at(s3.port, bucket) as source, store_at(wire.port, there) as target:
        digest = source.put_file(file)
        source.add_signature(digest, "0123456789abcdef", b"signature")
        wire.cut_after(sent_bytes=3 * PART + PART // 2)
        with pytest.raises(ArtifactStoreUnavailable):
            copy(source, target, digest, on_the_way=on_the_way)
        sent_bytes = wire.sent_bytes
        s3.requests()
        assert copy(source, target, digest, on_the_way=on_the_way) == (SIZE, True, 1)
        assert wire.sent_bytes - sent_bytes <= SIZE - 3 * PART + TALK
        key = f"/{bucket}/{digest.hex()[:2]}/{digest.hex()}"
        assert [one for one in s3.requests() if one == f"GET {key}"] == []
        assert copy(source, target, digest, on_the_way=on_the_way) == (SIZE, False, 0)
        assert target.get(digest) == file.read_bytes()
        assert list(target.signatures(digest)) == ["0123456789abcdef"]
    assert list(on_the_way.iterdir()) == []


# --- the command


def esper(home: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "esper", "--home", str(home), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def ran(home: Path, *arguments: str) -> Any:
    with esper(home, *arguments) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return json.loads(out)


LARGE = 48 * MIB


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose store has one large and two small artifacts."""
    home = tmp_path / "home"
    store = LocalStore(home / "artifacts")
    store.put(b"one")
    store.put(b"two")
    store.put(random.Random(6).randbytes(LARGE))
    return home


def test_a_copy_that_is_killed_goes_on_and_sends_little_twice(
    s3: S3Server, wire: Wire, bucket: str, home: Path, tmp_path: Path
) -> None:
    there = f"s3://{bucket}/place?endpoint_url=http://127.0.0.1:{wire.port}"
    with esper(home, "artifact", "copy", "--to", there) as process:
        assert wire.wait_for(60, sent_bytes=24 * MIB)
        process.kill()
        process.communicate()
    killed_at = wire.sent_bytes
    assert len(open_uploads(s3, bucket)) == 1
    told = ran(home, "artifact", "copy", "--to", there, "--json")
    assert (told["copied"] + told["there_already"], told["failed"]) == (3, 0)
    # At most the part that was under way, and what was in the pipes.
    assert wire.sent_bytes <= LARGE + 17 * MIB + 2 * MIB
    assert wire.sent_bytes - killed_at <= LARGE - 16 * MIB + 2 * MIB
    assert open_uploads(s3, bucket) == []
    again = ran(home, "artifact", "copy", "--to", there, "--json")
    assert (again["copied"], again["bytes"], again["there_already"]) == (0, 0, 3)

    # And back, killed in the middle too.
    other, received = tmp_path / "other", wire.received_bytes
    with esper(other, "artifact", "copy", "--from", there) as process:
        assert wire.wait_for(60, received_bytes=received + 24 * MIB)
        process.kill()
        process.communicate()
    assert ran(other, "artifact", "copy", "--from", there, "--json")["failed"] == 0
    assert wire.received_bytes - received <= LARGE + 9 * MIB + 2 * MIB
    assert ran(other, "artifact", "verify", "--json")["artifacts"] == 3
    assert list((other / "artifacts" / "tmp").iterdir()) == []
