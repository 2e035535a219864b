"""Types shared by the tests of the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ran:
    """What one run of the program came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Return what stdout holds, which must be one JSON document, after a run that went well."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        """Return what stdout holds, one JSON object a line, after a run that went well."""
        assert self.code == 0, self.err
        return [json.loads(line) for line in self.out.splitlines()]


#: Runs the program in this process: ``esper("log", "read")``.
Esper = Callable[..., Ran]
