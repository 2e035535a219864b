"""Bytes in a bucket of S3, or of a server that speaks its protocol, as objects that are written once.

A name is given by a conditional write (``If-None-Match: *``), so that of several writers one wins, and each write
brings the SHA-256 of its bytes, which the server checks before it keeps them.
"""

from __future__ import annotations

import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from esper.artifacts.s3_client import (
    AskAgain,
    NameFree,
    NameTaken,
    RangeEmpty,
    S3Place,
    asking,
    connect,
    parse_s3_url,
)
from esper.artifacts.s3_upload import Upload, checksum, open_uploads
from esper.artifacts.shelf import Advance, Entry, Unfinished, is_name
from esper.errors import ArtifactDamaged, ArtifactError, ArtifactStoreUnavailable

#: Objects of more bytes are sent in parts of so many; S3 takes 10 000 parts, so an object may have 625 GiB.
PART_BYTES = 64 << 20
#: Files are sent in parts of so many bytes, each of which is kept when the sender is killed. It is held in memory.
PIECE_BYTES = 16 << 20
#: Larger objects than so many bytes cannot be copied in one request.
COPY_BYTES = 5 << 30
#: Tries of a write that meets another one at its name, and of a read whose bytes do not arrive whole. The client
#: itself retries requests, but not these.
_TRIES = 3
_PAUSE_S = 0.05


class S3Shelf:
    """Keeps bytes in a bucket that several processes and machines may share."""

    staging: Path | None = None

    def __init__(
        self, place: S3Place, client: Any, *, part_bytes: int = PART_BYTES, piece_bytes: int = PIECE_BYTES
    ) -> None:
        """Use a place of a bucket.

        Args:
            place: Bucket and prefix.
            client: Client of boto3, which is closed with the shelf; see ``connect``.
            part_bytes: Size of the parts in which larger objects are sent.
            piece_bytes: Size of the parts in which larger files are sent, at least 5 MiB.
        """
        self.where = place.url
        self._place = place
        self._client = client
        self._part_bytes = part_bytes
        self._piece_bytes = piece_bytes

    @classmethod
    def open(cls, url: str) -> S3Shelf:
        """Open the place that ``s3://bucket/prefix?endpoint_url=...&region=...`` names; the server is not asked yet.

        Raises:
            ConfigError: The URL or the environment's AWS settings cannot be used.
            ModuleNotFoundError: boto3 is not installed.
        """
        place = parse_s3_url(url)
        return cls(place, connect(place))

    def put_new(self, name: str, data: bytes) -> bool:
        """Keep bytes under a free name; see ``Shelf.put_new``."""
        # A large object is not sent in vain where its name is taken already.
        if len(data) > self._part_bytes and self.size(name) is not None:
            return False
        try:
            self._write(name, data, IfNoneMatch="*")
        except NameTaken:
            return False
        return True

    def put_file(self, name: str, file: Path, advance: Advance | None = None) -> bool:
        """Keep a file's bytes under a free name, and go on where an earlier call was cut off; see ``Shelf.put_file``.

        What an upload has already is known by each part's checksum, so nothing is sent twice.
        """
        if self.size(name) is not None:
            return False
        if file.stat().st_size <= self._piece_bytes:
            data = file.read_bytes()
            if advance is not None:
                advance(len(data), len(data))
            return self.put_new(name, data)
        for left in reversed(range(_TRIES)):
            upload = Upload(self._place, self._client, name, self._piece_bytes)
            try:
                upload.send(file, advance)
            except NameTaken:
                upload.give_up()
                return False
            except AskAgain:
                # Another sender, or a first answer that was lost, may have completed the same upload.
                if self.size(name) is not None:
                    return False
                if not left:
                    raise
                time.sleep(_PAUSE_S)
            else:
                return True
        return False

    def replace(self, name: str, data: bytes) -> None:
        """Keep bytes in place of what the name holds; see ``Shelf.replace``."""
        self._write(name, data)

    def get(self, name: str) -> bytes | None:
        """Return the bytes of a name, or None where it is free; the server's checksum of them is checked."""
        return self._read(name)

    def unchecked(self, name: str) -> bytes | None:
        """Return what lies under a name, though its checksum be another, or None where it is free."""
        try:
            with asking(self._place, "read", name):
                answer = self._client.get_object(**self._object(name))
                with closing(answer["Body"]) as body:
                    # The checksum is compared at the end of the body, which is not asked for.
                    data: bytes = body.read(answer["ContentLength"])
                    return data
        except NameFree:
            return None

    def part(self, name: str, start: int, length: int) -> bytes | None:
        """Return bytes of a name from an offset on, or None where it is free."""
        try:
            return self._read(name, Range=f"bytes={start}-{start + length - 1}")
        except RangeEmpty:
            return b""

    def file_of(self, name: str) -> Path | None:
        """Return None: nothing lies on this machine."""
        del name
        return None

    def beginning(self, name: str, length: int) -> bytes | None:
        """Return the first bytes of a name, all if it has fewer, or None where it is free."""
        try:
            return self._read(name, Range=f"bytes=0-{length - 1}")
        except RangeEmpty:
            return b""

    def size(self, name: str) -> int | None:
        """Return how many bytes a name holds, or None where it is free."""
        try:
            with asking(self._place, "read", name):
                return int(self._client.head_object(**self._object(name))["ContentLength"])
        except NameFree:
            # The answer has no body and is the same where the bucket is not there; a listing tells the two apart.
            self.names(name)
            return None

    def names(self, prefix: str = "") -> list[str]:
        """Return every name that begins with a prefix, sorted; other keys of the bucket are left out."""
        found = (self._named(one["Key"]) for one in self._listed(prefix))
        return sorted(name for name in found if is_name(name))

    def entries(self, prefix: str = "") -> list[Entry]:
        """Return every name that begins with a prefix, sorted, with size and time."""
        found = ((self._named(one["Key"]), one) for one in self._listed(prefix))
        return sorted(Entry(name, one["Size"], one["LastModified"].timestamp()) for name, one in found if is_name(name))

    def stored_at(self, name: str) -> float | None:
        """Return when a name's bytes were written or last touched, or None where it is free."""
        try:
            with asking(self._place, "read", name):
                return float(self._client.head_object(**self._object(name))["LastModified"].timestamp())
        except NameFree:
            return None

    def touch(self, name: str) -> bool:
        """Make a name young again: the server copies the object onto itself."""
        key = self._object(name)
        try:
            size = self.size(name)
            if size is None:
                return False
            with asking(self._place, "written", name):
                if size <= COPY_BYTES:
                    self._client.copy_object(**key, CopySource=key, MetadataDirective="REPLACE")
                else:
                    Upload(self._place, self._client, name, COPY_BYTES).copy_itself(size)
        except NameFree:
            return False
        return True

    def delete(self, name: str, *, before: float | None = None) -> bool:
        """Make a name free; see ``Shelf.delete``.

        The time is looked at in the request before. S3 deletes nothing by its time, so that whoever touches the name
        between the two requests is not seen.
        """
        stored_at = self.stored_at(name)
        if stored_at is None or (before is not None and stored_at >= before):
            return False
        with asking(self._place, "deleted", name):
            self._client.delete_object(**self._object(name))
        return True

    def unfinished(self) -> list[Unfinished]:
        """Return the uploads that are open, each with the time of its last part."""
        return open_uploads(self._place, self._client)

    def give_up(self, unfinished: Unfinished) -> None:
        """Take back the parts of an upload; see ``Shelf.give_up``."""
        with suppress(AskAgain), asking(self._place, "deleted", unfinished.name):
            key = self._object(unfinished.name)
            self._client.abort_multipart_upload(**key, UploadId=unfinished.token)

    def close(self) -> None:
        """Give up the connections."""
        self._client.close()

    def _listed(self, prefix: str) -> list[dict[str, Any]]:
        with asking(self._place, "listed"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._place.bucket, Prefix=self._place.prefix + prefix
            )
            return [one for page in pages for one in page.get("Contents", ())]

    def _named(self, key: str) -> str:
        return key[len(self._place.prefix) :]

    def _read(self, name: str, **how: str) -> bytes | None:
        for left in reversed(range(_TRIES)):
            try:
                with asking(self._place, "read", name):
                    answer = self._client.get_object(**self._object(name), **how)
            except NameFree:
                return None
            try:
                with asking(self._place, "read", name), closing(answer["Body"]) as body:
                    data: bytes = body.read()
                    return data
            except (ArtifactStoreUnavailable, ArtifactDamaged):
                # What broke off or changed on its way arrives whole another time.
                if not left:
                    raise
        return None

    def _write(self, name: str, data: bytes, **condition: str) -> None:
        send = self._send_whole if len(data) <= self._part_bytes else self._send_parts
        for left in reversed(range(_TRIES)):
            try:
                with asking(self._place, "written", name):
                    return send(self._object(name), data, condition)
            except AskAgain:
                if not left:
                    raise
                time.sleep(_PAUSE_S)
        return None

    def _send_whole(self, key: dict[str, str], data: bytes, condition: dict[str, str]) -> None:
        self._client.put_object(**key, Body=data, **checksum(data), **condition)

    def _send_parts(self, key: dict[str, str], data: bytes, condition: dict[str, str]) -> None:
        upload = self._client.create_multipart_upload(**key, ChecksumAlgorithm="SHA256")["UploadId"]
        try:
            parts = []
            for number, start in enumerate(range(0, len(data), self._part_bytes), 1):
                part = data[start : start + self._part_bytes]
                stated = checksum(part)
                sent = self._client.upload_part(**key, UploadId=upload, PartNumber=number, Body=part, **stated)
                one = {"PartNumber": number, "ETag": sent["ETag"], "ChecksumSHA256": stated["ChecksumSHA256"]}
                parts.append(one)
            self._client.complete_multipart_upload(
                **key, UploadId=upload, MultipartUpload={"Parts": parts}, **condition
            )
        except BaseException:
            # The first error is the one to tell. Parts that cannot be taken back now are never read; the bucket's
            # rule for incomplete uploads removes them.
            with suppress(ArtifactError), asking(self._place, "written"):
                self._client.abort_multipart_upload(**key, UploadId=upload)
            raise

    def _object(self, name: str) -> dict[str, str]:
        return {"Bucket": self._place.bucket, "Key": self._place.prefix + name}
