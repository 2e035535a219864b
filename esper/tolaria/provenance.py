"""Where the code of a run comes from: git commit, digest of uncommitted work, and versions of packages.

Belongs here: reading these. Does not belong here: the machine and its flags (``esper.tolaria.determinism``).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec

import esper

#: Packages whose code takes part in a result.
PACKAGES: Final = ("mnist1d", "msgspec", "numpy", "safetensors", "scikit-learn", "torch")


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a source tree.

    Attributes:
        commit: The commit that is checked out, or None where git cannot tell.
        dirty_digest: SHA-256 over the diff to that commit and over new Python files that git does not ignore;
            None where there is neither.
        problem: Why git could not tell, or None.
    """

    commit: str | None
    dirty_digest: bytes | None
    problem: str | None = None


class _GitFailedError(Exception):
    """Git gave no answer; never leaves this module."""


def source(folder: Path | None = None, *, timeout_s: float = 10.0) -> Source:
    """Return the state of the source tree that a folder belongs to.

    A folder outside a repository, a missing git and one that does not answer in time are no errors: a run may
    well start without git. The result then says why nothing is known.

    Args:
        folder: Where the user's code is; the working directory when left out.
        timeout_s: How long each git command may take.
    """
    place = Path.cwd() if folder is None else folder
    try:
        commit = _git(place, timeout_s, "rev-parse", "--verify", "HEAD").decode().strip()
        return Source(commit=commit, dirty_digest=_dirty_digest(place, timeout_s))
    except _GitFailedError as error:
        return Source(commit=None, dirty_digest=None, problem=str(error))


def packages() -> dict[str, str]:
    """Return the version of Python, of Esper and of each installed package that takes part in a result."""
    versions = {"python": platform.python_version(), "esper": esper.__version__}
    installed = {name: _version(name) for name in PACKAGES}
    return versions | {name: version for name, version in installed.items() if version is not None}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _dirty_digest(folder: Path, timeout_s: float) -> bytes | None:
    top = Path(os.fsdecode(_git(folder, timeout_s, "rev-parse", "--show-toplevel").rstrip(b"\n")))
    diff = _git(top, timeout_s, "diff", "--binary", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD")
    # New files are in no diff, yet a new module is often the very task that is trained.
    listed = _git(top, timeout_s, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py")
    new = sorted(name for name in listed.split(b"\0") if name)
    if not diff and not new:
        return None
    total = hashlib.sha256(diff)
    for name in new:
        file = top / os.fsdecode(name)
        # It may be gone since git listed it, and a link may lead nowhere.
        content = hashlib.sha256(file.read_bytes()).digest() if file.is_file() else b""
        total.update(b"\0" + name + b"\0" + content)
    return total.digest()


def _git(folder: Path, timeout_s: float, *arguments: str) -> bytes:
    program = shutil.which("git")
    if program is None:
        raise _GitFailedError("git is not installed")
    # No optional locks: a run that starts must not disturb the user's own git commands.
    surroundings = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(  # noqa: S603 (a fixed program and fixed arguments)
            [program, "-C", str(folder), *arguments],
            capture_output=True,
            check=False,
            env=surroundings,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise _GitFailedError(f"git {arguments[0]} took longer than {timeout_s:g} s") from error
    if done.returncode != 0:
        raise _GitFailedError(done.stderr.decode(errors="replace").strip() or f"git {arguments[0]} failed")
    return done.stdout
