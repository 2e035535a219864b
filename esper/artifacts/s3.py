"""Bytes in a bucket of S3, or of a server that speaks its protocol, as objects that are written once.

A name is given by a conditional write (``If-None-Match: *``), so that of several writers one wins, and each write
brings the SHA-256 of its bytes, which the server checks before it keeps them.
"""

from __future__ import annotations

import base64
import hashlib
import time
from contextlib import closing, suppress
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
from esper.artifacts.shelf import is_name
from esper.errors import ArtifactDamaged, ArtifactError, ArtifactStoreUnavailable

#: Objects of more bytes are sent in parts of so many; S3 takes 10 000 parts, so an object may have 625 GiB.
PART_BYTES = 64 << 20
#: Tries of a write that meets another one at its name, and of a read whose bytes do not arrive whole. The client
#: itself retries requests, but not these.
_TRIES = 3
_PAUSE_S = 0.05


class S3Shelf:
    """Keeps bytes in a bucket that several processes and machines may share."""

    def __init__(self, place: S3Place, client: Any, *, part_bytes: int = PART_BYTES) -> None:
        """Use a place of a bucket.

        Args:
            place: Bucket and prefix.
            client: Client of boto3, which is closed with the shelf; see ``connect``.
            part_bytes: Size of the parts in which larger objects are sent.
        """
        self.where = place.url
        self._place = place
        self._client = client
        self._part_bytes = part_bytes

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

    def replace(self, name: str, data: bytes) -> None:
        """Keep bytes in place of what the name holds; see ``Shelf.replace``."""
        self._write(name, data)

    def get(self, name: str) -> bytes | None:
        """Return the bytes of a name, or None where it is free; the server's checksum of them is checked."""
        return self._read(name)

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
        start = self._place.prefix
        with asking(self._place, "listed"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._place.bucket, Prefix=start + prefix
            )
            found = [one["Key"][len(start) :] for page in pages for one in page.get("Contents", ())]
        return sorted(name for name in found if is_name(name))

    def close(self) -> None:
        """Give up the connections."""
        self._client.close()

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
        self._client.put_object(**key, Body=data, **_checksum(data), **condition)

    def _send_parts(self, key: dict[str, str], data: bytes, condition: dict[str, str]) -> None:
        upload = self._client.create_multipart_upload(**key, ChecksumAlgorithm="SHA256")["UploadId"]
        try:
            parts = []
            for number, start in enumerate(range(0, len(data), self._part_bytes), 1):
                part = data[start : start + self._part_bytes]
                checksum = _checksum(part)
                sent = self._client.upload_part(**key, UploadId=upload, PartNumber=number, Body=part, **checksum)
                one = {"PartNumber": number, "ETag": sent["ETag"], "ChecksumSHA256": checksum["ChecksumSHA256"]}
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


def _checksum(data: bytes) -> dict[str, str]:
    """Return what a request carries so that the server refuses bytes that changed on their way."""
    digest = hashlib.sha256(data).digest()
    return {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": base64.b64encode(digest).decode()}
