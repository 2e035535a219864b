"""Options and arguments that several commands share, and the form every group of commands has."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Write JSON to stdout; see docs/reference/cli-json.md.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")]
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="Run id, the beginning of one, or `latest`.", show_default=False)
]
OfRun = Annotated[str, typer.Option("--run", metavar="RUN", help="Run id, the beginning of one, or `latest`.")]
At = Annotated[
    str | None,
    typer.Option(
        "--at",
        metavar="POSITION|TIME",
        help="As it was at a log position (`123`, `main:123`) or a time (ISO 8601).",
        show_default=False,
    ),
]


def group(help_text: str) -> typer.Typer:
    """Return an app for the commands of one noun."""
    # With a callback a noun that has a single command is still a group, so that its verb can be written.
    return typer.Typer(
        help=help_text,
        callback=_shares_nothing,
        no_args_is_help=True,
        rich_markup_mode=None,
        add_completion=False,
    )


def single(help_text: str) -> typer.Typer:
    """Return an app for a noun that is a command itself."""
    return typer.Typer(help=help_text, rich_markup_mode=None, add_completion=False)


def _shares_nothing() -> None:
    pass
