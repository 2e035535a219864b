"""Compiling the small libraries that are loaded into a process to bend what it gets from the system."""

from __future__ import annotations

import subprocess
from pathlib import Path


def build_shim(name: str, folder: Path) -> Path:
    """Compile one of the C files beside this one.

    Args:
        name: ``power_journal`` or ``clock_shift``.
        folder: Where to put the library.

    Returns:
        Its path, for ``LD_PRELOAD``.
    """
    source = Path(__file__).with_name(f"{name}.c")
    library = folder / f"{name}.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", str(library), str(source), "-ldl", "-lpthread"], check=True)
    return library


class ClockShift:
    """A process's wall clock that jumps when told."""

    def __init__(self, folder: Path) -> None:
        self._place = folder / "clock-shift"
        self._place.write_bytes(bytes(8))
        self.environment = {
            "LD_PRELOAD": str(build_shim("clock_shift", folder)),
            "CLOCK_SHIFT": str(self._place),
        }

    def jump_to(self, hours: float) -> None:
        """Let the clock stand so many hours from the true time."""
        with self._place.open("r+b") as file:
            file.write(round(hours * 3600).to_bytes(8, "little", signed=True))
