"""Every Python block in the README and the tutorials runs as it stands, and what it says happens does happen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "tutorial").glob("*.md"))]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return [
        (f"{page.relative_to(ROOT)}:{page.read_text(encoding='utf-8')[: found.start()].count(chr(10)) + 1}", found[1])
        for page in PAGES
        for found in _BLOCK.finditer(page.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize(("place", "code"), blocks(), ids=[place for place, _ in blocks()])
def test_python_block_runs(place: str, code: str, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(code, encoding="utf-8")
    environment = {**os.environ, "ESPER_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, f"{place}\n{done.stderr}"


def test_the_tutorials_task_trains_and_verifies(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "tutorial" / "your-own-model.md").read_text(encoding="utf-8")
    (code,) = [block for block in _BLOCK.findall(page) if "class Rings" in block]
    (tmp_path / "rings.py").write_text(code, encoding="utf-8")
    for arguments in (("train", "--task", "rings:Rings", "--policy", "earliest-site"), ("replay", "verify", "latest")):
        done = subprocess.run(
            [sys.executable, "-m", "esper", "--home", str(tmp_path / "home"), *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout
