"""The sources of Python's standard library as data: which files count, and their bytes.

Belongs here: finding and reading them. Does not belong here: what is learnt from them (``bytelm``). What a machine's
builder or owner put among them is left out, so that the same Python gives the same bytes wherever it is installed.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from esper.errors import DependencyUnavailable

#: Bytes read of one file: a few huge files would else be most of the data.
FILE_BYTES = 64 * 1024

_NOT_SOURCES = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"}
    # Generated tables, the same lines in file after file: what is learnt by heart in one would answer another.
    | {"encodings", "pydoc_data"}
)
#: Written when Python was built, or by whoever runs the machine.
_OF_THE_MACHINE = ("_sysconfigdata", "sitecustomize", "usercustomize", "config-")


class Sources(NamedTuple):
    """The files, sorted by name, and what tells them from any others."""

    #: First ``FILE_BYTES`` of each file.
    files: list[bytes]
    #: SHA-256 over every file's name and those bytes.
    digest: bytes


@lru_cache(maxsize=1)
def read_sources() -> Sources:
    """Return the sources of the standard library of the Python that runs, tests left out.

    Raises:
        DependencyUnavailable: There are none on disk.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found: list[bytes] = []
    total = hashlib.sha256()
    for path in sorted(_files(root), key=lambda path: path.relative_to(root).as_posix()):
        with path.open("rb") as file:
            data = file.read(FILE_BYTES)
        total.update(f"{path.relative_to(root).as_posix()} {len(data)}\n".encode())
        total.update(data)
        found.append(data)
    if not found:
        raise DependencyUnavailable(
            f"Python {sys.version.split()[0]} has no sources of its standard library on disk",
            hint="use a Python that came with them",
        )
    return Sources(found, total.digest())


def _files(root: Path) -> list[Path]:
    found = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in _NOT_SOURCES and not name.startswith(_OF_THE_MACHINE)]
        for name in names:
            path = Path(folder, name)
            if name.endswith(".py") and not name.startswith(_OF_THE_MACHINE) and not path.is_symlink():
                found.append(path)
    return found
