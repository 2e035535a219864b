"""Global options, taken from anywhere on the command line.

Belongs here: finding them among a command's own words. Does not belong here: which ones there are (``esper.cli.main``).
"""

from __future__ import annotations

from typing import Any


def hoist(root: Any, arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the global options of a command line, wherever they stand, and the rest of it.

    An option that the command has itself is the command's, what follows an option that takes a value is that value,
    and everything behind ``--`` is left alone.

    Args:
        root: The command ``esper``.
        arguments: What the program was called with.
    """
    known = _options(param for param in root.params if param.expose_value and not param.is_eager)
    if not any(word.partition("=")[0] in known for word in arguments):
        return [], arguments
    own: dict[str, bool] = {}
    command = root
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name = word.partition("=")[0]
        is_global = name in known and name not in own
        (front if is_global else rest).append(word)
        if word == "--":
            rest += words
        elif word.startswith("-"):
            if name == word and (known if is_global else own).get(name, False):
                value = next(words, None)
                if value is None and is_global:
                    # Without its value it would take the command's name for it; alone it is told as what it is.
                    return front, []
                (front if is_global else rest).extend([] if value is None else [value])
        elif hasattr(command, "get_command"):
            command = command.get_command(None, word)
            own = {} if command is None else _options(command.params)
    return front, rest


def _options(params: Any) -> dict[str, bool]:
    """Return the names of options, and whether each takes the word behind it as its value."""
    return {
        name: not param.is_flag and not getattr(param, "count", False)
        for param in params
        if param.param_type_name == "option"
        for name in (*param.opts, *param.secondary_opts)
    }
