"""S3 keeps the contract of both stores, and says what is wrong when it is not there or refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from servers import S3_ENVIRONMENT, S3Server
from store_contract import ObjectsContract, ShelfContract, StoreContract

from esper.artifacts import ArtifactStore, ObjectStore, open_objects, open_store
from esper.artifacts.content import ContentStore
from esper.artifacts.objects import NamedObjects
from esper.artifacts.s3 import S3Shelf
from esper.artifacts.s3_client import connect, parse_s3_url
from esper.errors import (
    ArtifactConflict,
    ArtifactDamaged,
    ArtifactError,
    ArtifactStoreUnavailable,
    ConfigError,
)

ROOT = Path(__file__).resolve().parents[2]
SECRET = S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"]
LATER = [(500, "InternalError"), (503, "SlowDown"), (503, "ServiceUnavailable")]


def hasty(url: str, *, attempts: int = 1, part_bytes: int = 64 << 20, read_timeout_s: float = 20.0) -> S3Shelf:
    """Open a place where each request is tried once unless told otherwise."""
    place = parse_s3_url(url)
    client = connect(place, connect_timeout_s=5.0, read_timeout_s=read_timeout_s, attempts=attempts)
    return S3Shelf(place, client, part_bytes=part_bytes)


class OnS3(ShelfContract):
    @pytest.fixture(autouse=True)
    def _bucket(self, s3: S3Server) -> None:
        self.server = s3
        self.bucket = s3.new_bucket()

    def open_shelf(self) -> S3Shelf:
        return S3Shelf.open(self.server.url(self.bucket, "some/place"))

    def harm(self, name: str, how: str) -> None:
        self.server.damage(self.bucket, f"some/place/{name}", how)


class TestS3Store(OnS3, StoreContract):
    pass


class TestS3Objects(OnS3, ObjectsContract):
    pass


@pytest.fixture
def bucket(s3: S3Server) -> str:
    return s3.new_bucket()


@pytest.fixture
def url(s3: S3Server, bucket: str) -> str:
    return s3.url(bucket)


@pytest.fixture
def store(url: str) -> Iterator[ArtifactStore]:
    with ContentStore(hasty(url)) as store:
        yield store


@pytest.fixture
def objects(url: str) -> Iterator[ObjectStore]:
    with NamedObjects(hasty(url)) as objects:
        yield objects


# --- how it is written


def test_an_artifact_is_named_by_its_digest_under_the_prefix(s3: S3Server, bucket: str) -> None:
    with ContentStore(S3Shelf.open(s3.url(bucket, "team/esper"))) as store, closing(s3.client()) as client:
        digest = store.put(b"weights").hex()
        (found,) = client.list_objects_v2(Bucket=bucket)["Contents"]
    assert found["Key"] == f"team/esper/{digest[:2]}/{digest}"


def test_places_of_one_bucket_do_not_see_each_other(s3: S3Server, bucket: str) -> None:
    with open_objects(s3.url(bucket, "a")) as first, open_objects(s3.url(bucket, "ab")) as second:
        first.put("one", b"1")
        second.put("two", b"2")
        assert (first.names(), second.names()) == (["one"], ["two"])


def test_a_new_object_takes_one_request(s3: S3Server, bucket: str, store: ArtifactStore) -> None:
    s3.requests()
    digest = store.put(b"weights").hex()
    assert s3.requests() == [f"PUT /{bucket}/{digest[:2]}/{digest}"]


def test_listings_of_many_pages_are_whole(s3: S3Server, bucket: str, objects: ObjectStore) -> None:
    s3.fill(bucket, "segments/", 2345)
    s3.fill(bucket, "others/", 3)
    assert objects.names("segments/") == [f"segments/{number:06d}" for number in range(2345)]
    assert len(objects.names()) == 2348


def test_large_objects_go_in_parts_and_are_written_once_too(s3: S3Server, bucket: str, url: str) -> None:
    part = 5 << 20
    data = os.urandom(2 * part + 12_345)
    with NamedObjects(hasty(url, part_bytes=part)) as objects:
        assert objects.put("large", data)
        assert sum("PUT" in one for one in s3.requests()) >= 3
        assert objects.get("large") == data
        assert not objects.put("large", data)
        with pytest.raises(ArtifactConflict):
            objects.put("large", data[:-1])
        # Those two were not sent at all.
        assert [one for one in s3.requests() if one.startswith(("PUT", "POST"))] == []


def uploads_of(s3: S3Server, bucket: str) -> list[object]:
    with closing(s3.client()) as client:
        return list(client.list_multipart_uploads(Bucket=bucket).get("Uploads", []))


def test_a_large_object_that_breaks_off_leaves_nothing(s3: S3Server, bucket: str, url: str) -> None:
    with NamedObjects(hasty(url, part_bytes=5 << 20)) as objects:
        s3.fault("status", status=503, code="SlowDown", method="PUT")
        with pytest.raises(ArtifactStoreUnavailable):
            objects.put("large", os.urandom((5 << 20) + 1))
        assert objects.names() == []
    assert uploads_of(s3, bucket) == []


def test_of_two_large_objects_sent_at_once_one_wins(s3: S3Server, bucket: str, url: str) -> None:
    slow, quick = hasty(url, part_bytes=5 << 20), hasty(url)
    complete = slow._client.complete_multipart_upload

    def overtaken(**request: object) -> object:
        quick.put_new("large", b"the other's")
        return complete(**request)

    slow._client.complete_multipart_upload = overtaken
    with NamedObjects(slow) as objects, NamedObjects(quick) as others:
        with pytest.raises(ArtifactConflict):
            objects.put("large", os.urandom((5 << 20) + 1))
        assert others.get("large") == b"the other's"
    assert uploads_of(s3, bucket) == []


def test_an_answer_that_was_lost_is_no_conflict(s3: S3Server, url: str) -> None:
    with NamedObjects(hasty(url, attempts=2)) as objects:
        s3.fault("eat", method="PUT")
        assert not objects.put("one", b"1")  # the second try finds what the first one wrote
        assert objects.get("one") == b"1"


def test_an_answer_that_was_lost_at_the_end_of_a_large_object_is_no_conflict(s3: S3Server, url: str) -> None:
    data = os.urandom((5 << 20) + 1)
    with NamedObjects(hasty(url, attempts=2, part_bytes=5 << 20)) as objects:
        s3.fault("eat", method="POST", query="uploadId")
        s3.fault("status", status=404, code="NoSuchUpload", method="POST", query="uploadId")
        assert not objects.put("large", data)
        assert objects.get("large") == data
        assert objects.names() == ["large"]


def test_bytes_that_change_on_their_way_to_the_server_are_not_kept(
    s3: S3Server, bucket: str, store: ArtifactStore
) -> None:
    s3.fault("garble", method="PUT", times=1)
    assert store.get(store.put(b"weights")) == b"weights"  # sent again
    s3.fault("garble", method="PUT", times=-1)
    with pytest.raises(ArtifactError, match="BadDigest"):
        store.put(b"others")
    s3.heal()
    assert len(list(store.digests())) == 1


@pytest.mark.parametrize("kind", ["flip", "cut"])
def test_bytes_that_change_or_break_off_on_their_way_back_are_read_again(
    s3: S3Server, objects: ObjectStore, kind: str
) -> None:
    objects.put("one", b"segment of a log")
    s3.fault(kind, method="GET", times=1)
    assert objects.get("one") == b"segment of a log"
    s3.fault(kind, method="GET", times=-1)
    with pytest.raises(ArtifactDamaged if kind == "flip" else ArtifactStoreUnavailable, match="one cannot be read"):
        objects.get("one")


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_an_object_that_changed_where_it_lies_is_noticed_by_its_checksum(
    s3: S3Server, bucket: str, objects: ObjectStore, how: str
) -> None:
    objects.put("one", b"segment of a log")
    s3.damage(bucket, "one", how)
    with pytest.raises(ArtifactDamaged, match="checksum"):
        objects.get("one")


def test_an_artifact_whose_checksum_was_changed_too_is_noticed_by_its_digest(
    s3: S3Server, bucket: str, store: ArtifactStore
) -> None:
    digest = store.put(b"weights")
    with closing(s3.client()) as client:
        client.put_object(Bucket=bucket, Key=f"{digest.hex()[:2]}/{digest.hex()}", Body=b"Weights")
    with pytest.raises(ArtifactDamaged, match="7 bytes with digest"):
        store.get(digest)
    store.put(b"weights")
    assert store.get(digest) == b"weights"


# --- a server that is away, and comes back


def test_refused_connections_are_unavailable_and_nothing_is_lost(
    s3: S3Server, store: ArtifactStore, objects: ObjectStore
) -> None:
    digest = store.put(b"weights")
    s3.down()
    for ask in (lambda: store.put(b"new"), lambda: store.get(digest), lambda: list(store.digests()), objects.names):
        with pytest.raises(ArtifactStoreUnavailable, match=r"Could not connect|Connection was closed|reset") as caught:
            ask()
        assert "try again" in caught.value.hint
    s3.up()
    assert store.get(digest) == b"weights"
    assert store.get(store.put(b"new")) == b"new"


def test_a_server_that_does_not_answer_is_unavailable_in_bounded_time(
    s3: S3Server, url: str, store: ArtifactStore
) -> None:
    digest = store.put(b"weights")
    s3.fault("hang", times=-1)
    begun = time.monotonic()
    with ContentStore(hasty(url, read_timeout_s=0.3)) as impatient:
        for ask in (lambda: impatient.get(digest), lambda: impatient.put(b"new"), lambda: list(impatient.digests())):
            with pytest.raises(ArtifactStoreUnavailable, match=r"[Tt]ime"):
                ask()
    assert time.monotonic() - begun < 10
    s3.heal()
    assert store.get(digest) == b"weights"
    assert store.get(store.put(b"new")) == b"new"


@pytest.mark.parametrize(("status", "code"), LATER)
def test_a_server_that_asks_to_come_back_later_is_unavailable(
    s3: S3Server, store: ArtifactStore, status: int, code: str
) -> None:
    digest = store.put(b"weights")
    s3.fault("status", status=status, code=code, times=-1)
    for ask in (lambda: store.put(b"new"), lambda: store.get(digest), lambda: list(store.digests())):
        with pytest.raises(ArtifactStoreUnavailable, match=code):
            ask()
    s3.heal()
    assert store.get(digest) == b"weights"
    assert list(store.digests()) == [digest]
    assert store.put(b"new")


def test_a_passing_trouble_is_not_noticed(s3: S3Server, url: str) -> None:
    with ContentStore(hasty(url, attempts=2)) as store:
        s3.fault("status", status=503, code="SlowDown", times=1)
        digest = store.put(b"weights")
        s3.fault("status", status=500, code="InternalError", times=1)
        assert store.get(digest) == b"weights"


def test_requests_are_tried_a_bounded_number_of_times(s3: S3Server, url: str) -> None:
    with ContentStore(hasty(url, attempts=2)) as store:
        s3.fault("status", status=503, code="SlowDown", times=-1)
        s3.requests()
        with pytest.raises(ArtifactStoreUnavailable):
            store.get(bytes(32))
        assert len(s3.requests()) == 2


def test_a_write_that_keeps_meeting_another_gives_up(s3: S3Server, objects: ObjectStore) -> None:
    s3.fault("status", status=409, code="ConditionalRequestConflict", times=1)
    assert objects.put("one", b"1")
    s3.fault("status", status=409, code="ConditionalRequestConflict", times=-1)
    with pytest.raises(ArtifactError, match="ConditionalRequestConflict"):
        objects.put("two", b"2")


# --- a server that refuses


def test_a_bucket_that_is_not_there_is_told_with_a_hint(s3: S3Server) -> None:
    with ContentStore(hasty(s3.url("no-such-bucket"))) as store:
        for ask in (lambda: store.put(b"new"), lambda: store.get(bytes(32)), lambda: store.has(bytes(32))):
            with pytest.raises(ArtifactError, match="NoSuchBucket") as caught:
                ask()
            assert not isinstance(caught.value, ArtifactStoreUnavailable)
            assert "make the bucket no-such-bucket" in caught.value.hint


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_denied_access_is_told_with_a_hint_and_no_secret(s3: S3Server, store: ArtifactStore, code: str) -> None:
    s3.fault("status", status=403, code=code, times=-1)
    for ask in (lambda: store.put(b"new"), lambda: store.get(bytes(32)), lambda: store.has(bytes(32))):
        with pytest.raises(ArtifactError, match=rf"{code}|403") as caught:
            ask()
        assert not isinstance(caught.value, ArtifactStoreUnavailable)
        assert "s3:PutObject" in caught.value.hint
        assert SECRET not in f"{caught.value.message} {caught.value.hint} {caught.value.__cause__}"


def test_missing_credentials_are_told_with_a_hint(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with closing(open_store(url)) as store, pytest.raises(ArtifactError, match="credentials") as caught:
        store.put(b"weights")
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


# --- URLs


def test_a_url_names_bucket_prefix_server_and_region() -> None:
    place = parse_s3_url("s3://bucket/a/b/?endpoint_url=https://host:9000&region=eu-west-1")
    assert place == ("bucket", "a/b/", "https://host:9000", "eu-west-1")
    assert place.url == "s3://bucket/a/b"
    assert parse_s3_url("s3://bucket") == parse_s3_url("s3://bucket/") == ("bucket", "", None, None)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://", "does not name"),
        ("s3:///prefix", "does not name"),
        ("s3://BUCKET", "does not name"),
        ("s3://bucket:9000/a", "does not name"),
        ("s3://bucket/a#b", "does not name"),
        ("s3://bucket/a//b", "beginning of names"),
        ("s3://bucket/../b", "beginning of names"),
        ("s3://bucket/tmp", "beginning of names"),
        ("s3://bucket?endpoint_url=localhost:9000", "endpoint_url begins with"),
        ("s3://bucket?endpoint_url=http://[::1", "does not name"),
        ("s3://bucket?region", "does not name"),
        ("s3://bucket?endpoint=http://host", "no parameter 'endpoint'"),
        ("s3://bucket?aws_secret_access_key=topsecret", "no parameter 'aws_secret_access_key'"),
        ("s3://key:topsecret@bucket/a", "no credentials"),
        ("s3://bucket?endpoint_url=http://key:topsecret@host", "no credentials"),
    ],
)
def test_another_url_is_refused_and_no_secret_is_shown(url: str, told: str) -> None:
    for open_one in (open_store, open_objects):
        with pytest.raises(ConfigError, match=told) as caught:
            open_one(url)
        assert "topsecret" not in f"{caught.value.message} {caught.value.hint}"


def test_only_a_url_of_s3_imports_boto3_and_only_a_signature_cryptography() -> None:
    program = (
        "import sys; from esper.artifacts import open_store, open_objects; import esper.oona, esper.artifacts.signing;"
        "open_store('memory://').put(b''); open_objects('memory://').put('a', b'');"
        "print({'boto3', 'botocore', 'cryptography'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"


def test_threads_share_a_store(url: str) -> None:
    with closing(open_store(url)) as store:
        digests: list[bytes] = []
        threads = [
            threading.Thread(target=lambda number=number: digests.append(store.put(bytes([number]) * 1000)))
            for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(digests) == list(store.digests())
        assert len(digests) == 8
