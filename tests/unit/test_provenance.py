"""Provenance tells commit, uncommitted work and versions, and does without git."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

import esper
from esper.tolaria.provenance import packages, source

AUTHOR = ["-c", "user.name=Someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false"]


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *AUTHOR, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with one commit."""
    git(tmp_path, "init", "-q")
    (tmp_path / "model.py").write_text("width = 4\n")
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_a_clean_tree_has_a_commit_and_no_dirty_digest(tree: Path) -> None:
    found = source(tree)
    assert (found.commit, found.dirty_digest, found.problem) == (git(tree, "rev-parse", "HEAD"), None, None)


def test_an_uncommitted_change_has_a_digest_that_depends_on_the_change(tree: Path) -> None:
    (tree / "model.py").write_text("width = 8\n")
    first = source(tree)
    assert first.commit == git(tree, "rev-parse", "HEAD")
    assert first.dirty_digest is not None
    assert len(first.dirty_digest) == 32
    assert source(tree) == first
    (tree / "model.py").write_text("width = 16\n")
    assert source(tree).dirty_digest != first.dirty_digest
    (tree / "model.py").write_text("width = 4\n")
    assert source(tree).dirty_digest is None


def test_a_staged_change_counts_as_uncommitted(tree: Path) -> None:
    (tree / "model.py").write_text("width = 8\n")
    git(tree, "add", ".")
    assert source(tree).dirty_digest is not None


def test_a_new_python_file_counts_with_name_and_content_unless_ignored(tree: Path) -> None:
    (tree / "ignored.py").write_text("x = 1\n")
    (tree / "notes.txt").write_text("not code\n")
    assert source(tree).dirty_digest is None
    (tree / "mine.py").write_text("x = 1\n")
    first = source(tree).dirty_digest
    (tree / "mine.py").write_text("x = 2\n")
    second = source(tree).dirty_digest
    (tree / "mine.py").rename(tree / "yours.py")
    third = source(tree).dirty_digest
    assert None not in (first, second, third)
    assert len({first, second, third}) == 3


def test_a_folder_below_the_top_sees_the_whole_tree(tree: Path) -> None:
    (tree / "below").mkdir()
    (tree / "model.py").write_text("width = 8\n")
    assert source(tree / "below") == source(tree)


def test_outside_a_repository_nothing_is_known_and_it_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = source(tmp_path)
    assert (found.commit, found.dirty_digest) == (None, None)
    assert "not a git repository" in str(found.problem)


def test_without_git_nothing_is_known_and_it_says_why(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tree))
    found = source(tree)
    assert (found.commit, found.dirty_digest, found.problem) == (None, None, "git is not installed")


def test_a_git_that_does_not_answer_is_given_up(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tree / "git"
    slow.write_text("#!/bin/sh\nexec /bin/sleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(tree))
    found = source(tree, timeout_s=0.2)
    assert (found.commit, found.dirty_digest) == (None, None)
    assert "longer than 0.2 s" in str(found.problem)


def test_versions_are_those_of_what_takes_part() -> None:
    found = packages()
    assert found["torch"] == torch.__version__
    assert found["esper"] == esper.__version__
    assert {"python", "numpy", "msgspec", "safetensors", "scikit-learn", "mnist1d"} <= found.keys()
