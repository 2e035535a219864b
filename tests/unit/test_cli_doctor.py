"""``esper doctor``: finds what is wrong and says what mends it."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cli_support import Esper


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture(autouse=True)
def _quick_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe a small program in place of torch, which takes seconds to load."""
    monkeypatch.setattr("esper.cli.checkups.TORCH_PROBE", "print(1, False)")


def found(esper: Esper, *arguments: str) -> tuple[int, dict[str, Any]]:
    import json

    ran = esper(*arguments, "doctor", "--json")
    return ran.code, {row["check"]: row for row in json.loads(ran.out)}


def test_fresh_folder_is_in_order(esper: Esper, tmp_path: Path) -> None:
    code, checks = found(esper)
    assert code == 0
    assert {row["status"] for row in checks.values()} == {"ok"}
    assert list(checks) == [
        "python",
        "packages",
        "torch",
        "settings",
        "home",
        "disk",
        "log",
        "tables",
        "artifacts",
        "sealing",
    ]
    assert not (tmp_path / "home").exists()


@pytest.mark.usefixtures("small_home")
def test_log_is_opened_and_its_chain_computed(esper: Esper) -> None:
    code, checks = found(esper)
    assert code == 0
    assert "26 events" in checks["log"]["found"]
    assert "none yet" in checks["tables"]["found"]


def test_broken_chain_fails_and_names_the_position(esper: Esper, small_home: Path) -> None:
    connection = sqlite3.connect(small_home / "log.db")
    connection.execute("UPDATE events SET sender_id = 'mallory' WHERE position = 9")
    connection.commit()
    connection.close()
    code, checks = found(esper)
    assert code == 1
    assert checks["log"]["status"] == "fail"
    assert "9" in checks["log"]["found"]
    assert "esper log verify" in checks["log"]["mend"]


def test_cut_log_fails_with_the_hint_of_the_error(esper: Esper, small_home: Path) -> None:
    path = small_home / "log.db"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, checks = found(esper)
    assert code == 1
    assert "E-LOG-004" in checks["log"]["found"]
    assert "salvage" in checks["log"]["mend"]


def test_damaged_artifact_fails(esper: Esper, small_home: Path) -> None:
    digest = hashlib.sha256(b"kernel").hexdigest()
    place = small_home / "artifacts" / digest[:2] / digest
    place.parent.mkdir(parents=True)
    place.write_bytes(b"kernel")
    assert found(esper)[1]["artifacts"]["found"].startswith("1 kept; 1 read")
    place.write_bytes(b"kernal")
    code, checks = found(esper)
    assert code == 1
    assert "E-ART-003" in checks["artifacts"]["found"]


def test_little_disk_is_a_warning_and_none_a_failure(esper: Esper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10 << 30, 0, 500 << 20))
    code, checks = found(esper)
    assert (code, checks["disk"]["status"]) == (0, "warn")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10 << 30, 0, 50 << 20))
    code, checks = found(esper)
    assert (code, checks["disk"]["status"]) == (1, "fail")
    assert "ESPER_HOME" in checks["disk"]["mend"]


def test_home_that_cannot_be_made_fails(esper: Esper, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    code, checks = found(esper, "--home", str(tmp_path / "file" / "home"))
    assert code == 1
    assert "not a folder" in checks["home"]["found"]
    assert "ESPER_HOME" in checks["home"]["mend"]


def test_torch_that_cannot_be_loaded_fails_with_its_last_words(esper: Esper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esper.cli.checkups.TORCH_PROBE", "raise ImportError('libtorch is missing')")
    code, checks = found(esper)
    assert code == 1
    assert "libtorch is missing" in checks["torch"]["found"]


def test_missing_torch_is_a_warning_that_names_the_extra(esper: Esper, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    known = metadata.version

    def version(name: str) -> str:
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(metadata, "version", version)
    code, checks = found(esper)
    assert (code, checks["torch"]["status"]) == (0, "warn")
    assert "esper[train]" in checks["torch"]["mend"]


def test_own_settings_are_named_with_their_origin(esper: Esper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_LOG_LEVEL", "info")
    assert "log_level from environment ESPER_LOG_LEVEL" in found(esper)[1]["settings"]["found"]


def test_unknown_setting_is_a_finding(esper: Esper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_HOEM", os.sep)
    code, checks = found(esper)
    assert code == 1
    assert "ESPER_HOEM" in checks["settings"]["found"]
    assert checks["settings"]["mend"] == "did you mean 'home'?"
