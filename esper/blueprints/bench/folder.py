"""The folder that a child of the workbench may write in.

Belongs here: making it, and removing it again, also where its owner was killed before. Does not belong here: who may
write where (``confinement``).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "esper-bench-"
_LOCK = ".owner"


class Folder:
    """A temporary folder, held by a lock for as long as its owner lives."""

    def __init__(self) -> None:
        """Make a folder, and remove those whose owners died."""
        _sweep()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock: int | None = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Remove the folder with all that is in it; once is enough."""
        held, self._lock = self._lock, None
        if held is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(held)


def _sweep() -> None:
    """Remove folders that nobody holds. A folder without a lock is one that is just being made."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            held = os.open(path / _LOCK, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass  # its owner lives
        finally:
            os.close(held)
