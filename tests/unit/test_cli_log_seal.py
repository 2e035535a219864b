"""``esper log seal | verify | prove | check-proof | restore``, and what ``esper doctor`` says of sealing."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from cli_support import Esper
from tampering import flip_loss_and_rechain

from esper.cli.checkups import Checkup, _looked, _sealing
from esper.cli.failures import EXIT_DIVERGED, EXIT_ERROR, EXIT_NOT_FOUND, EXIT_USAGE
from esper.cli.session import Session

EVENTS = 26


@pytest.fixture
def sealed(esper: Esper, small_home: Path) -> Path:
    """A state folder whose log is sealed in segments of ten."""
    assert esper("log", "seal", "--segment-events", "10").code == 0
    return small_home


def public(home: Path) -> str:
    return str(home / "keys" / "signing.pub")


def test_the_first_sealing_makes_a_key_and_says_so(esper: Esper, small_home: Path) -> None:
    first = esper("log", "seal", "--segment-events", "10", "--json")
    assert "made the signing key" in first.err
    assert public(small_home) in first.err
    assert (small_home / "keys" / "signing.pem").stat().st_mode & 0o777 == 0o600
    assert (first.json["sealed"], first.json["sealed_through"], first.json["segments"]) == (EVENTS, EVENTS, 3)
    assert first.json["trimmed"] is None
    assert first.json["note_key"].startswith("esper/main+")
    esper("run", "note", "latest", "looks good", "--actor", "ada")
    second = esper("log", "seal", "--json")
    assert second.err == ""
    assert (second.json["sealed"], second.json["sealed_through"]) == (1, EVENTS + 1)
    assert second.json["key_id"] == first.json["key_id"]


def test_verify_says_how_far_history_is_sealed(esper: Esper, sealed: Path) -> None:
    esper("run", "note", "latest", "looks good", "--actor", "ada")
    found = esper("log", "verify", "--json").json
    assert (found["positions"], found["sealed_through"], found["unsealed"]) == (EVENTS + 1, EVENTS, 1)
    assert 0 <= found["unsealed_s"] < 60
    assert (found["checkpoints"], found["segments"], found["leftovers"], found["generation"]) == (1, 3, 0, 1)


def test_verify_of_a_log_that_was_never_sealed_makes_no_archive(esper: Esper, small_home: Path) -> None:
    found = esper("log", "verify", "--json").json
    assert (found["sealed_through"], found["unsealed"], found["checkpoints"]) == (0, EVENTS, 0)
    assert not (small_home / "archive").exists()
    assert not (small_home / "keys").exists()


def test_a_rewritten_log_is_named_with_its_position(esper: Esper, sealed: Path) -> None:
    position = flip_loss_and_rechain(sealed / "log.db", "run-0002", 3)
    ran = esper("log", "verify", "--json")
    assert ran.code == EXIT_DIVERGED
    error = json.loads(ran.err)["error"]
    assert (error["name"], error["details"]["position"]) == ("ProofFailed", position)
    assert esper("log", "seal").code == EXIT_DIVERGED


def test_a_damaged_segment_is_named_by_its_file(esper: Esper, sealed: Path) -> None:
    file = sorted((sealed / "archive" / "segments").iterdir())[1]
    file.write_bytes(file.read_bytes()[:-3])
    ran = esper("log", "verify")
    assert ran.code == EXIT_DIVERGED
    assert file.name in ran.err


def test_a_checkpoint_of_a_key_that_is_not_trusted_is_refused(esper: Esper, sealed: Path) -> None:
    shutil.move(sealed / "keys", sealed / "moved")
    ran = esper("log", "verify")
    assert ran.code == EXIT_DIVERGED
    assert "signed by no trusted key; trusted: none" in ran.err
    assert esper("log", "verify", "--trusted-keys", str(sealed / "moved" / "signing.pub")).code == 0


def test_a_log_in_a_file_cannot_be_trimmed(esper: Esper, small_home: Path) -> None:
    ran = esper("log", "seal", "--trim")
    assert ran.code == EXIT_ERROR
    assert "keeps all of its records" in ran.err
    assert not (small_home / "archive").exists()


@pytest.mark.parametrize("name", ["7", "main:7", "id"])
def test_a_proof_is_checked_with_the_public_key_alone(
    esper: Esper, sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    event = esper("log", "read", "--after", "6", "--limit", "1", "--json").json_lines[0]
    written = esper("log", "prove", event["event_id"] if name == "id" else name, "--out", str(tmp_path / "p"), "--json")
    assert (written.json["proves"], written.json["position"], written.json["size"]) == ("inclusion", 7, EVENTS)
    key = Path(public(sealed)).read_text().strip()
    shutil.rmtree(sealed)
    monkeypatch.setattr(socket, "socket", None)
    found = esper("log", "check-proof", str(tmp_path / "p"), "--key", key, "--json").json
    assert (found["verified"], found["proves"], found["log"], found["size"]) == (True, "inclusion", "main", EVENTS)
    assert {name: found[name] for name in event} == event
    assert not sealed.exists()


def test_a_proof_without_a_file_is_printed(esper: Esper, sealed: Path) -> None:
    assert esper("log", "prove", "7").json["proves"] == "inclusion"


def test_growth_between_checkpoints_is_proven(esper: Esper, sealed: Path, tmp_path: Path) -> None:
    esper("run", "note", "latest", "looks good", "--actor", "ada")
    esper("log", "seal")
    out = str(tmp_path / "p")
    sizes = (str(EVENTS), str(EVENTS + 1))
    assert esper("log", "prove", "--consistency", *sizes, "--out", out).code == 0
    found = esper("log", "check-proof", out, "--key", public(sealed), "--json").json
    assert (found["proves"], found["old_size"], found["size"]) == ("consistency", EVENTS, EVENTS + 1)
    assert esper("log", "prove", "--consistency", "5", sizes[1]).code == EXIT_NOT_FOUND
    assert esper("log", "prove", "--consistency", *reversed(sizes)).code == EXIT_DIVERGED


def altered(proof: dict[str, Any], name: str, value: object) -> str:
    return json.dumps({**proof, name: value})


def test_altered_proofs_do_not_hold(esper: Esper, sealed: Path, tmp_path: Path) -> None:
    proof, other = esper("log", "prove", "7").json, esper("log", "prove", "8").json
    wrong = [
        "",
        "[]",
        "{}",
        altered(proof, "format", 2),
        altered(proof, "position", 8),
        altered(proof, "position", "7"),
        altered(proof, "record", other["record"]),
        altered(proof, "record", "AAAA"),
        altered(proof, "path", proof["path"][1:]),
        altered(proof, "path", []),
        altered(proof, "proves", "consistency"),
        altered(proof, "checkpoint", proof["checkpoint"].replace("26", "27")),
        altered(proof, "checkpoint", ""),
    ]
    file = tmp_path / "p"
    for text in wrong:
        file.write_text(text)
        assert esper("log", "check-proof", str(file), "--key", public(sealed)).code == EXIT_DIVERGED, text


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("prove",), EXIT_USAGE),
        (("prove", "7", "--consistency", "1", "2"), EXIT_USAGE),
        (("prove", "seven"), EXIT_USAGE),
        (("prove", "0"), EXIT_DIVERGED),
        (("prove", "27"), EXIT_DIVERGED),
        (("prove", "0" * 32), EXIT_NOT_FOUND),
        (("check-proof", "/none", "--key", "/none"), EXIT_NOT_FOUND),
        (("restore", "new.db"), EXIT_USAGE),
        (("restore", "new.db", "--actor", " ", "--reason", "x"), EXIT_USAGE),
        (("seal", "--segment-events", "0"), EXIT_USAGE),
    ],
)
def test_mistakes_are_told(esper: Esper, sealed: Path, arguments: tuple[str, ...], code: int) -> None:
    assert esper("log", *arguments).code == code


def test_restore_makes_a_new_log_of_segments_alone(esper: Esper, sealed: Path, tmp_path: Path) -> None:
    before = esper("log", "read", "--json").out
    (sealed / "log.db").unlink()
    target = str(tmp_path / "new.db")
    words = ("log", "restore", target, "--actor", "ada", "--reason", "the disk died", "--json")
    found = esper(*words).json
    assert (found["restored"], found["position"], found["generation"], found["left_out"]) == (EVENTS, 27, 2, 0)
    url = f"sqlite:///{target}"
    assert esper("--log", url, "log", "read", "--limit", str(EVENTS), "--json").out == before
    assert esper("--log", url, "log", "verify", "--json").json["sealed_through"] == EVENTS
    assert esper("--log", url, "log", "seal", "--json").json["generation"] == 2
    assert esper(*words).code == EXIT_USAGE
    part = esper("log", "restore", str(tmp_path / "part.db"), "--through", "20", *words[3:]).json
    assert (part["restored"], part["left_out"]) == (20, 7)


def test_restore_of_a_damaged_archive_writes_nothing(esper: Esper, sealed: Path, tmp_path: Path) -> None:
    sorted((sealed / "archive" / "segments").iterdir())[1].unlink()
    ran = esper("log", "restore", str(tmp_path / "new.db"), "--actor", "ada", "--reason", "x")
    assert ran.code == EXIT_DIVERGED
    assert esper("--log", f"sqlite:///{tmp_path / 'new.db'}", "log", "stats", "--json").json["events"] == 0


def sealing_of(home: Path) -> Checkup:
    """Return what `esper doctor` finds of sealing, without its other checks."""
    session = Session({"home": home})
    try:
        return _looked("sealing", _sealing, session)
    finally:
        session.close()


def test_doctor_tells_of_sealing(esper: Esper, small_home: Path) -> None:
    assert sealing_of(small_home).found.startswith("nothing is sealed yet")
    assert not (small_home / "archive").exists()
    esper("log", "seal")
    sound = sealing_of(small_home)
    assert (sound.status, sound.found) == ("ok", "sealed through 26, which the log agrees with; 0 events since")
    flip_loss_and_rechain(small_home / "log.db", "run-0002", 3)
    assert sealing_of(small_home).status == "fail"
    (small_home / "log.db").unlink()
    assert sealing_of(small_home).status == "warn"
