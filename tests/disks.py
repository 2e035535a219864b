"""Small file systems, to run out of."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_file_system(place: Path, size: str) -> Iterator[Path]:
    """Mount a file system of a size (as mount names it, e.g. ``256k``) at a new folder while the block runs.

    Without the right to mount the test is skipped on a person's machine and fails in CI.
    """
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        if os.environ.get("CI"):
            pytest.fail("CI must have the right to mount a small file system")
        pytest.skip("needs the right to mount a small file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
