"""The blueprints that ship: JSON documents beside this file, and the one function that reads them.

Belongs here: data. Does not belong here: knowledge about a particular blueprint in code.
"""

from __future__ import annotations

from importlib.resources import files

from esper.blueprints.ir import Blueprint, parse
from esper.blueprints.verify import verify


def load_library() -> dict[str, Blueprint]:
    """Return every shipped blueprint by name, verified, sorted by name.

    Raises:
        BlueprintInvalid: A shipped document was changed and breaks a rule.
    """
    documents = sorted(item.name for item in files(__name__).iterdir() if item.name.endswith(".json"))
    found = (parse(files(__name__).joinpath(name).read_bytes()) for name in documents)
    return {blueprint.id: verify(blueprint).blueprint for blueprint in found}
