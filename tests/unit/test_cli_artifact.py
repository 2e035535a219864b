"""``esper artifact``: artifacts and signatures from the command line."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import Esper
from servers import S3Server

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    return path


DIGEST = hashlib.sha256(b"weights").hexdigest()


def place(tmp_path: Path, digest: str) -> Path:
    return tmp_path / "home" / "artifacts" / digest[:2] / digest


def test_a_file_is_put_listed_shown_and_got_back(esper: Esper, file: Path, tmp_path: Path) -> None:
    assert esper("artifact", "put", str(file), "--json").json == {"digest": DIGEST, "bytes": 7}
    listed = [{"digest": DIGEST, "bytes": 7, "signed_by": []}]
    assert esper("artifact", "list", "--json").json == listed
    assert esper("artifact", "list", DIGEST[:3].upper(), "--json").json == listed
    assert esper("artifact", "list", "0" * 64, "--json").json == []
    shown = esper("artifact", "show", DIGEST[:8], "--json").json
    assert (shown["digest"], shown["sound"], shown["signatures"]) == (
        DIGEST,
        True,
        {"good": [], "bad": [], "unknown": []},
    )
    assert esper("artifact", "get", DIGEST[:8], str(tmp_path / "back")).code == 0
    assert (tmp_path / "back").read_bytes() == b"weights"


def test_get_writes_to_stdout_and_never_over_a_file(esper: Esper, file: Path, tmp_path: Path) -> None:
    esper("artifact", "put", str(file))
    there = esper("artifact", "get", DIGEST, str(file))
    assert (there.code, "there already" in there.err) == (2, True)
    done = subprocess.run(
        [sys.executable, "-m", "esper", "--home", str(tmp_path / "home"), "artifact", "get", DIGEST, "-"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"weights"


def test_a_digest_that_is_none_unknown_or_of_several_is_refused(esper: Esper, file: Path) -> None:
    esper("artifact", "put", str(file))
    assert esper("artifact", "show", "xyz").code == 2
    assert esper("artifact", "show", "0" * 65).code == 2
    assert esper("artifact", "show", "0" * 64).code == 4
    file.write_bytes(b"others")
    esper("artifact", "put", str(file))
    several = esper("artifact", "show", "")
    assert several.code == 2
    assert "begins several" in several.err


def test_verify_names_every_damaged_artifact_and_exits_3(esper: Esper, file: Path, tmp_path: Path) -> None:
    esper("artifact", "put", str(file))
    file.write_bytes(b"others")
    other = esper("artifact", "put", str(file), "--json").json["digest"]
    file.write_bytes(b"sound")
    sound = esper("artifact", "put", str(file), "--json").json["digest"]
    assert esper("artifact", "verify", "--json").json == {
        "verified": True,
        "artifacts": 3,
        "bytes": 18,
        "signed_by_trusted_key": 0,
    }
    for digest in (DIGEST, other):
        place(tmp_path, digest).write_bytes(b"")
    ran = esper("artifact", "verify")
    assert ran.code == 3
    assert all(digest in ran.err for digest in (DIGEST, other))
    assert "2 of 3" in ran.err
    assert esper("artifact", "verify", sound[:8]).code == 0


def test_what_you_signed_is_trusted_and_what_others_signed_is_not(esper: Esper, file: Path, tmp_path: Path) -> None:
    esper("artifact", "put", str(file))
    assert esper("artifact", "sign", DIGEST).code == 4  # no key yet
    made = esper("artifact", "key", "--create", "--json").json
    assert esper("artifact", "key", "--json").json == made
    assert Path(made["public_file"]).read_text().strip() == made["public_key"]
    back = str(tmp_path / "back")
    assert esper("artifact", "get", DIGEST, back, "--signed").code == 3
    signed = [{"digest": DIGEST, "key_id": made["key_id"], "new": True}]
    assert esper("artifact", "sign", DIGEST[:8], "--json").json == signed
    assert esper("artifact", "get", DIGEST, back, "--signed").code == 0
    assert esper("artifact", "verify", "--signed", "--json").json["signed_by_trusted_key"] == 1
    stranger = ("--trusted-keys", str(tmp_path / "nobody"), "--signing-key", str(tmp_path / "other.pem"))
    ran = esper(*stranger, "artifact", "verify", "--signed")
    assert ran.code == 3
    assert "not trusted" in ran.err
    assert esper(*stranger, "artifact", "verify").code == 0
    assert esper("--trusted-keys", made["public_file"], *stranger[2:], "artifact", "verify", "--signed").code == 0


def test_your_own_key_is_trusted_wherever_it_lies(esper: Esper, file: Path, tmp_path: Path) -> None:
    mine = ("--signing-key", str(tmp_path / "elsewhere" / "mine.pem"))
    esper("artifact", "put", str(file))
    assert esper(*mine, "artifact", "key", "--create").code == 0
    assert esper(*mine, "artifact", "sign", DIGEST).code == 0
    assert esper(*mine, "artifact", "verify", "--signed").code == 0
    assert esper("artifact", "verify", "--signed").code == 3


def test_a_forged_signature_of_a_trusted_key_fails_verification(esper: Esper, file: Path, tmp_path: Path) -> None:
    esper("artifact", "put", str(file))
    key_id = esper("artifact", "key", "--create", "--json").json["key_id"]
    forged = place(tmp_path, DIGEST).with_name(f"{DIGEST}.{key_id}.sig")
    forged.write_bytes(bytes(64))
    ran = esper("artifact", "verify", "--json")
    assert ran.code == 3
    assert "E-ART-005" in ran.err
    assert DIGEST in ran.err


def test_artifacts_are_copied_with_their_signatures_and_skipped_where_they_are(
    esper: Esper, file: Path, tmp_path: Path
) -> None:
    there = f"file:///{tmp_path}/there"
    esper("artifact", "put", str(file))
    esper("artifact", "key", "--create")
    esper("artifact", "sign", DIGEST)
    file.write_bytes(b"unsigned")
    esper("artifact", "put", str(file))
    told = esper("artifact", "copy", DIGEST[:6], "--to", there, "--json").json
    assert (told["copied"], told["bytes"], told["signatures"], told["failed"]) == (1, 7, 1, 0)
    told = esper("artifact", "copy", "--to", there, "--json").json
    assert (told["copied"], told["there_already"], told["signatures"]) == (1, 1, 0)
    assert esper("--artifacts", there, "artifact", "list", "--json").json == esper("artifact", "list", "--json").json
    assert esper("--artifacts", there, "artifact", "verify", "--signed", DIGEST).code == 0
    home = ("--home", str(tmp_path / "other"))
    assert esper(*home, "artifact", "copy", "--from", there, "--json").json["copied"] == 2
    assert esper("artifact", "copy").code == 2
    assert esper("artifact", "copy", "0" * 64, "--to", there).code == 4


def test_what_is_damaged_or_not_vouched_for_is_named_and_not_copied(esper: Esper, file: Path, tmp_path: Path) -> None:
    there = f"file:///{tmp_path}/there"
    digests = []
    for data in (b"sound", b"damaged", b"forged"):
        file.write_bytes(data)
        digests.append(esper("artifact", "put", str(file), "--json").json["digest"])
    sound, damaged, forged = digests
    place(tmp_path, damaged).write_bytes(b"changed")
    key_id = esper("artifact", "key", "--create", "--json").json["key_id"]
    place(tmp_path, forged).with_name(f"{forged}.{key_id}.sig").write_bytes(bytes(64))
    ran = esper("artifact", "copy", "--to", there)
    assert ran.code == 3
    assert all(digest in ran.err for digest in (damaged, forged, "2 of 3"))
    assert [one["digest"] for one in esper("--artifacts", there, "artifact", "list", "--json").json] == [sound]
    assert esper("artifact", "copy", "--signed", sound, "--to", there).code == 3
    assert esper("artifact", "copy", sound, "--to", there).code == 0


def test_a_large_artifact_is_copied_through_a_file_and_none_is_left(esper: Esper, tmp_path: Path) -> None:
    large, small = tmp_path / "large", f"file:///{tmp_path}/there"
    large.write_bytes(bytes(range(256)) * 40_000)
    digest = esper("artifact", "put", str(large), "--json").json["digest"]
    assert esper("artifact", "copy", "--to", small, "--json").json["copied"] == 1
    assert esper("--artifacts", small, "artifact", "get", digest, str(tmp_path / "back")).code == 0
    assert (tmp_path / "back").read_bytes() == large.read_bytes()
    for store in (tmp_path / "there", tmp_path / "home" / "artifacts"):
        assert list((store / "tmp").iterdir()) == []
    place(tmp_path, digest).write_bytes(bytes(10_240_000))
    assert esper("artifact", "copy", "--to", f"file:///{tmp_path}/third").code == 3
    assert list((tmp_path / "third").rglob("*.part")) == []


def test_a_key_is_never_made_twice(esper: Esper) -> None:
    assert esper("artifact", "key").code == 4
    assert esper("artifact", "key", "--create").code == 0
    assert esper("artifact", "key", "--create").code == 1


def test_artifacts_on_s3_and_a_server_that_is_down(esper: Esper, s3: S3Server, file: Path) -> None:
    url = s3.url(s3.new_bucket())
    assert esper("--artifacts", url, "artifact", "put", str(file)).code == 0
    assert esper("--artifacts", url, "artifact", "key", "--create").code == 0
    assert esper("--artifacts", url, "artifact", "sign", DIGEST).code == 0
    assert esper("--artifacts", url, "artifact", "verify", "--signed", "--json").json["artifacts"] == 1
    s3.down()
    ran = esper("--artifacts", url, "artifact", "verify", "--json")
    assert ran.code == 5
    assert "E-ART-006" in ran.err


def test_without_boto3_a_url_of_s3_tells_what_to_install(esper: Esper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    ran = esper("--artifacts", "s3://bucket", "artifact", "list")
    assert ran.code == 5
    assert "esper[s3]" in ran.err
