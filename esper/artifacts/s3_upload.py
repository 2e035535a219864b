"""Sending a large file to S3 in parts that are kept when the sender is killed, and going on with them.

Belongs here: finding the open upload of a name, telling which parts it has, and sending the rest. Does not belong here:
objects that fit in memory (``s3``). Of two senders of the same bytes both may fill one upload: parts with the same
number are the same.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from esper.artifacts.s3_client import AskAgain, NameFree, S3Place, asking
from esper.artifacts.shelf import Advance, Unfinished, is_name
from esper.errors import ArtifactError

#: S3 takes so many parts of one object.
MAX_PARTS = 10_000


class Upload:
    """The upload of one name."""

    def __init__(self, place: S3Place, client: Any, name: str, piece_bytes: int) -> None:
        """Name it; the server is not asked yet.

        Args:
            place: Bucket and prefix.
            client: Client of boto3.
            name: Name of the object.
            piece_bytes: Size of a part, at least 5 MiB; larger where the object would have too many.
        """
        self._place = place
        self._client = client
        self._name = name
        self._key = {"Bucket": place.bucket, "Key": place.prefix + name}
        self._piece_bytes = piece_bytes
        self._id: str | None = None

    def send(self, file: Path, advance: Advance | None = None) -> None:
        """Send what the server lacks of a file and give the object its name, which must be free.

        Args:
            file: The file.
            advance: Called with (bytes that are there, bytes in all).

        Raises:
            NameTaken: The name is not free.
            AskAgain: The upload was completed or taken back meanwhile.
            ArtifactError: It cannot be sent; what was sent is kept for the next call.
        """
        size = file.stat().st_size
        piece_bytes = max(self._piece_bytes, -(-size // MAX_PARTS))
        with asking(self._place, "written", self._name):
            there = self._begin()
            parts, done = [], 0
            with file.open("rb") as opened:
                for number in range(1, -(-size // piece_bytes) + 1):
                    piece = opened.read(piece_bytes)
                    stated = checksum(piece)
                    tag = _tag_if_equal(there.get(number), piece, stated["ChecksumSHA256"])
                    if tag is None:
                        sent = self._client.upload_part(
                            **self._key, UploadId=self._id, PartNumber=number, Body=piece, **stated
                        )
                        tag = sent["ETag"]
                    parts.append({"PartNumber": number, "ETag": tag, "ChecksumSHA256": stated["ChecksumSHA256"]})
                    done += len(piece)
                    if advance is not None:
                        advance(done, size)
            self._complete(parts, IfNoneMatch="*")

    def copy_itself(self, size: int) -> None:
        """Write the object that is there anew from itself, on the server alone.

        Args:
            size: Its size in bytes.
        """
        with asking(self._place, "written", self._name):
            self._id = self._client.create_multipart_upload(**self._key, ChecksumAlgorithm="SHA256")["UploadId"]
            parts = []
            for number, start in enumerate(range(0, size, self._piece_bytes), 1):
                end = min(start + self._piece_bytes, size) - 1
                copied = self._client.upload_part_copy(
                    **self._key,
                    UploadId=self._id,
                    PartNumber=number,
                    CopySource=self._key,
                    CopySourceRange=f"bytes={start}-{end}",
                )["CopyPartResult"]
                stated = {"ChecksumSHA256": copied["ChecksumSHA256"]} if "ChecksumSHA256" in copied else {}
                parts.append({"PartNumber": number, "ETag": copied["ETag"], **stated})
            self._complete(parts)

    def give_up(self) -> None:
        """Take the parts back."""
        if self._id is not None:
            # Parts that cannot be taken back now are taken back by a collection, or by the bucket's rule.
            with suppress(ArtifactError), asking(self._place, "written", self._name):
                self._client.abort_multipart_upload(**self._key, UploadId=self._id)

    def _begin(self) -> dict[int, dict[str, Any]]:
        """Find the upload that was begun last, or begin one; return the parts it has by number."""
        uploads = [
            one for one in _listed_uploads(self._place, self._client, self._name) if one["Key"] == self._key["Key"]
        ]
        if not uploads:
            begun = self._client.create_multipart_upload(**self._key, ChecksumAlgorithm="SHA256")
            self._id = begun["UploadId"]
            return {}
        newest = max(uploads, key=lambda one: one["Initiated"])
        self._id = newest["UploadId"]
        return {part["PartNumber"]: part for part in _listed_parts(self._client, self._key, newest["UploadId"])}

    def _complete(self, parts: list[dict[str, Any]], **condition: str) -> None:
        self._client.complete_multipart_upload(
            **self._key, UploadId=self._id, MultipartUpload={"Parts": parts}, **condition
        )


def open_uploads(place: S3Place, client: Any) -> list[Unfinished]:
    """Return every upload under a place that is open, with the time of its last part."""
    found = []
    with asking(place, "listed"):
        for upload in _listed_uploads(place, client, ""):
            name = upload["Key"][len(place.prefix) :]
            if not is_name(name):
                continue
            times = [upload["Initiated"]]
            # It may be completed since it was listed.
            with suppress(AskAgain, NameFree), asking(place, "listed", name):
                key = {"Bucket": place.bucket, "Key": upload["Key"]}
                times += [part["LastModified"] for part in _listed_parts(client, key, upload["UploadId"])]
            found.append(Unfinished(name, upload["UploadId"], max(times).timestamp()))
    return found


def checksum(data: bytes) -> dict[str, str]:
    """Return what a request carries so that the server refuses bytes that changed on their way."""
    digest = hashlib.sha256(data).digest()
    return {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": base64.b64encode(digest).decode()}


def _tag_if_equal(part: dict[str, Any] | None, piece: bytes, sha256: str) -> str | None:
    """Return the tag of a part that the server has if it has these bytes, or None."""
    if part is None or part["Size"] != len(piece):
        return None
    tag: str = part["ETag"]
    if "ChecksumSHA256" in part:
        return tag if part["ChecksumSHA256"] == sha256 else None
    # Servers that list no checksums tag a part by its MD5, which is enough to know bytes of one's own again: in the
    # end the object is known by its SHA-256.
    return tag if tag.strip('"') == hashlib.md5(piece, usedforsecurity=False).hexdigest() else None


def _listed_uploads(place: S3Place, client: Any, name: str) -> Iterator[dict[str, Any]]:
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=place.bucket, Prefix=place.prefix + name)
    for page in pages:
        yield from page.get("Uploads", ())


def _listed_parts(client: Any, key: dict[str, str], upload_id: str) -> Iterator[dict[str, Any]]:
    for page in client.get_paginator("list_parts").paginate(**key, UploadId=upload_id):
        yield from page.get("Parts", ())
