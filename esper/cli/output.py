"""What commands print: data on stdout, messages on stderr.

Belongs here: the two forms of every answer, JSON and tables; their contract is docs/reference/cli-json.md. Does not
belong here: what is printed, which each noun's file decides, or errors (``failures``).
"""

from __future__ import annotations

import datetime as dt
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (bytes, lambda value: value.hex()),
    (dt.datetime, lambda value: value.astimezone(dt.UTC).isoformat()),
    (Path, str),
    (Iterable, lambda value: [plain(inner) for inner in value]),
)

#: Set by the session from the setting ``color``.
_color = "auto"


def set_color(color: str) -> None:
    """Choose colours and boxes: ``auto`` (on a terminal only), ``always`` or ``never``."""
    global _color  # noqa: PLW0603 - one terminal, one process, set once
    _color = color


def plain(value: Any) -> Any:
    """Return a value as JSON can carry it.

    Bytes become hexadecimal, times ISO 8601 in UTC, and floats that JSON has no number for the texts ``nan``,
    ``inf`` and ``-inf``.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    for kinds, convert in _PLAIN:
        if isinstance(value, kinds):
            return convert(value)
    fields = getattr(value, "__struct_fields__", None) or getattr(value, "__dataclass_fields__", None)
    if fields is None:
        raise TypeError(f"{type(value).__name__} has no JSON form")
    return {name: plain(getattr(value, name)) for name in fields}


def print_json(value: Any) -> None:
    """Write one JSON document to stdout, indented."""
    _write(json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def print_json_line(value: Any) -> None:
    """Write one JSON object on one line of stdout, for listings that can be long or never end."""
    _write(json.dumps(plain(value), separators=(",", ":"), allow_nan=False) + "\n")


def print_rows(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool, empty: str = "nothing"
) -> None:
    """Write a listing: a JSON array of whole rows, or the named columns as a table.

    Args:
        rows: What to list.
        columns: Keys shown in the table, in order; a key that a row lacks shows as ``-``.
        as_json: Whether to write JSON.
        empty: Message on stderr when a table would be empty; it tells the next command to try.
    """
    if as_json:
        print_json(rows)
    elif not rows:
        message(empty)
    elif _fancy():
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in columns:
            numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
            table.add_column(column.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(_escaped(_short(cell(row.get(column)))) for column in columns))
        _console().print(table)
    else:
        _write("\t".join(columns) + "\n")
        for row in rows:
            _write("\t".join(_one_line(_short(cell(row.get(column)))) for column in columns) + "\n")


def print_record(record: Mapping[str, Any], *, as_json: bool) -> None:
    """Write one thing: a JSON object, or its keys and values one a line."""
    if as_json:
        print_json(record)
        return
    width = max((len(name) for name in record), default=0)
    for name, value in record.items():
        _write(f"{name.replace('_', ' '):<{width}}  {_one_line(cell(value))}\n")


def print_line(text: str) -> None:
    """Write a line of data to stdout."""
    _write(text + "\n")


def message(text: str) -> None:
    """Write a line for people to stderr."""
    sys.stderr.write(text + "\n")


def cell(value: Any) -> str:
    """Return a value as people are shown it: floats rounded to six digits, times to the second, None as ``-``."""
    if isinstance(value, dt.datetime):
        return f"{value.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}"
    value = plain(value)
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict | list):
        return json.dumps(value, separators=(",", ":"))
    return str(value)


def _short(text: str) -> str:
    """Cut a hash to its first digits, which every command takes in place of the whole."""
    return text[:12] if len(text) == 64 and not text.strip("0123456789abcdef") else text


def _fancy() -> bool:
    return _color == "always" or (_color == "auto" and sys.stdout.isatty())


def _console() -> Console:
    from rich.console import Console

    return Console(force_terminal=True if _color == "always" else None, highlight=False)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _one_line(text: str) -> str:
    return text.replace("\t", " ").replace("\r", " ").replace("\n", " ")


def _write(text: str) -> None:
    sys.stdout.write(text)
