"""Makes the generated pages of docs/reference from the code: ``python docs/generate.py``.

``--check`` writes nothing and exits 1 when a page is not what the code gives; a test does the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer.main

from esper.cli.main import app
from esper.events.catalog import events_markdown, lifecycle_markdown
from esper.settings import CONFIG_VERSION, Settings

REFERENCE = Path(__file__).parent / "reference"
_HEADER = "<!-- Generated from the code by docs/generate.py. Do not edit. -->"
_WIDTH = 100

_SETTINGS = """\
# Settings

{header}

A flag (before the command: `esper --home runs log verify`) beats the environment, which beats the file, which beats
the default. The file is `./esper.toml`, or the one that `--config` or `ESPER_CONFIG` names. `esper config show` prints
every value and where it comes from, passwords masked.

| setting | environment | flag | default | meaning |
|---|---|---|---|---|
{rows}

The file may begin with `config_version = {version}`; a file of another version is refused (E-CFG-003). An unknown
key in the file and an unknown `ESPER_*` variable are refused (E-CFG-002) and told with the nearest name, because a
mistyped setting that is ignored costs a run.

```toml
config_version = {version}
home = "/data/esper"
log_level = "info"
```

Settings are about where things are and how they are shown. What decides how a run goes is the run's configuration
(`esper train --set`), which is a fact of the run.
"""


def cli_markdown() -> str:
    """Return the reference of the command line: the help of every command, in the order of `esper --help`."""
    lines = [
        "# The command line",
        "",
        _HEADER,
        "",
        "What `--json` writes, the form of errors and the exit codes are in [cli-json.md](cli-json.md); settings are in"
        " [settings.md](settings.md).",
    ]
    for path, text in commands():
        lines += ["", f"{'#' * min(4, path.count(' ') + 2)} {path}", "", "```text", text, "```"]
    return "\n".join(lines) + "\n"


def commands() -> Iterator[tuple[str, str]]:
    """Yield every command's full name and help text."""
    yield from _walk(typer.main.get_command(app), "esper", None)


def _walk(command: Any, path: str, parent: Any) -> Iterator[tuple[str, str]]:
    context = command.context_class(
        command, info_name=path.rpartition(" ")[2], parent=parent, terminal_width=_WIDTH, max_content_width=_WIDTH
    )
    yield path, command.get_help(context).strip()
    if hasattr(command, "list_commands"):
        for name in command.list_commands(context):
            yield from _walk(command.get_command(context, name), f"{path} {name}", context)


def settings_markdown() -> str:
    """Return the reference of the settings."""
    rows = [
        f"| `{name}` | `ESPER_{name.upper()}` | `{_flag(name)}` | {_default(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return _SETTINGS.format(header=_HEADER, rows="\n".join(rows), version=CONFIG_VERSION)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _default(field: Any) -> str:
    return f"`{field.default}`" if field.default != "" else "from `home`"


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_markdown,
    "events.md": events_markdown,
    "lifecycle.md": lifecycle_markdown,
    "settings.md": settings_markdown,
}


def main() -> int:
    """Write every page, or with ``--check`` name the ones that are out of date."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, page in PAGES.items():
        path = REFERENCE / name
        text = page()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8", newline="\n")
    if stale:
        sys.stderr.write(f"{'out of date' if check else 'written'}: {', '.join(stale)}\n")
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
