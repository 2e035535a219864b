"""A group of commands that imports a command only when it is run.

Belongs here: finding and importing commands. Does not belong here: which commands there are (``esper.cli.main``).
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

import typer
import typer.main
from typer.core import TyperGroup


class LazyGroup(TyperGroup):
    """A group whose help is written from tables; a subclass says where each command lives.

    Attributes:
        places: Command name -> module that holds its ``app``.
        helps: Command name -> the one line shown in the group's help. A test holds it equal to the command's own.
    """

    places: ClassVar[Mapping[str, str]] = {}
    helps: ClassVar[Mapping[str, str]] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the table."""
        del ctx
        return list(self.places)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and return a command, or None where there is none of that name."""
        del ctx
        return load_command(self.places[cmd_name], cmd_name) if cmd_name in self.places else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that is named, its name and the rest; a mistyped name is told with the nearest one."""
        if args and args[0] not in self.places:
            near = difflib.get_close_matches(args[0], self.places, n=1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands' lines from the table, importing none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.helps[name]) for name in self.list_commands(ctx)])


def load_command(module: str, name: str) -> Any:
    """Import the module of a command and return the command, ready to be run under its name."""
    app: typer.Typer = importlib.import_module(module).app
    command = typer.main.get_command(app)
    command.name = name
    return command
