"""The run report: one self-contained HTML page about one run, made from the log alone."""

from __future__ import annotations

from pathlib import Path

from esper.cli.report.data import read_report
from esper.cli.report.render import render
from esper.oona.port import EventLog

__all__ = ["read_report", "render", "write_report"]


def write_report(log: EventLog, run_id: str, path: Path) -> Path:
    """Write the page about a run and return where it is.

    Args:
        log: Log the run and those it is compared with are in; nothing else is read.
        run_id: The run's full id.
        path: File to write; folders above it are made, an existing file is replaced.

    Raises:
        NotFound: The log has no such run.
        SchemaError: A fact cannot be read.
        OSError: The file cannot be written.
    """
    page = render(read_report(log, run_id))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", newline="\n")
    return path
