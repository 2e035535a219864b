"""Libraries of Redis Functions, named by the digest of their code.

Two versions of Esper that use one server therefore never overwrite each other's Functions, and a library that is there
under the right name has the right code. Belongs here: source files and names. Does not belong here: loading
(``link``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files


class Library:
    """A library of Functions: Lua files of this package, run as one."""

    def __init__(self, stem: str, sources: Sequence[str]) -> None:
        """Read the sources.

        Args:
            stem: First part of the library's name, e.g. ``esper_log``.
            sources: File names; ``@TAG@`` in them stands for the tag that ends each Function's name.
        """
        body = "\n".join(files("esper.oona.redis").joinpath(name).read_text("utf-8") for name in sources)
        self.tag = hashlib.sha256(body.encode()).hexdigest()[:12]
        self.name = f"{stem}_{self.tag}"
        self.code = f"#!lua name={self.name}\n" + body.replace("@TAG@", self.tag)

    def function(self, name: str) -> str:
        """Return the full name of a Function, e.g. ``esper_append_0123456789ab``."""
        return f"{name}_{self.tag}"


#: Everything a log does on the server.
LOG_LIBRARY_SOURCES = ("append.lua", "read.lua", "trim.lua")


def log_library() -> Library:
    """Return the library of the log itself."""
    return Library("esper_log", LOG_LIBRARY_SOURCES)
