"""Blueprint documents as commands are given them: files, standard input, or the names of shipped ones.

Belongs here: reading them, bounded whatever they are, and who submits them unless somebody is named. Does not belong
here: judging them (``esper.blueprints``).
"""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import typer

from esper.errors import NotFound

if TYPE_CHECKING:
    from esper.blueprints.forging.submission import Author
    from esper.blueprints.ir import Blueprint
    from esper.cli.session import Session

#: Stands for standard input.
STDIN = "-"


def read(document: str) -> bytes:
    """Return the bytes of a document: of stdin, of a file, or of a shipped blueprint by its name.

    Raises:
        NotFound: There is no such document.
        BlueprintInvalid: It is larger than any blueprint; it was not read to its end.
        OSError: It cannot be read.
    """
    if document == STDIN:
        return _bounded(sys.stdin.buffer, "standard input")
    path = Path(document)
    try:
        with path.open("rb") as file:
            return _bounded(file, document)
    except IsADirectoryError:
        raise NotFound(f"{document} is a folder, not a document", hint="name the JSON file") from None
    except FileNotFoundError:
        shipped = _shipped(document)
        if shipped is None:
            raise NotFound(
                f"there is no document {document}", hint="`esper blueprint list --shipped` lists what ships"
            ) from None
        return shipped


def author_of(session: Session, by: str | None) -> Author:
    """Return in whose name blueprints are submitted and retired: the given name, or the login name."""
    from esper.blueprints.forging.submission import Author

    if by is None:
        try:
            by = getpass.getuser()
        except (KeyError, OSError, ImportError):
            # A container's user need not have a name.
            raise typer.BadParameter("this user has no login name; say who you are with --by NAME") from None
    if not by.strip():
        raise typer.BadParameter("--by needs a name")
    return Author(by, f"operator:{by}", session.trace_id)


def described(blueprint: Blueprint) -> dict[str, Any]:
    """Return what the verifier computes of a blueprint: its hash, and its costs as formulas of the site's sizes.

    Raises:
        BlueprintInvalid: It breaks a rule.
    """
    from esper.blueprints.canonical import blueprint_id
    from esper.blueprints.verify import verify

    flows = verify(blueprint).flows
    return {
        "name": blueprint.id,
        "blueprint_id": blueprint_id(blueprint),
        "kind": blueprint.kind,
        "ranks": list(blueprint.site.rank),
        "causal": blueprint.site.causal,
        "nodes": len(blueprint.nodes),
        "parameters": {rank: str(flow.parameters) for rank, flow in flows.items()},
        "flops": {rank: str(flow.flops) for rank, flow in flows.items()},
    }


def _bounded(file: IO[bytes], name: str) -> bytes:
    """Read a document, but no more of it than a blueprint can have: it may be a device that never ends."""
    from esper.blueprints.document import MAX_BYTES
    from esper.blueprints.rules import invalid

    found = b""
    while len(found) <= MAX_BYTES and (part := file.read(MAX_BYTES + 1 - len(found))):
        found += part
    if len(found) > MAX_BYTES:
        raise invalid("size", "", f"{name} has more than the {MAX_BYTES} bytes that are allowed")
    return found


def _shipped(name: str) -> bytes | None:
    from importlib.resources import files

    found = files("esper.blueprints.library").joinpath(f"{name}.json")
    return found.read_bytes() if Path(name).name == name and not Path(name).suffix and found.is_file() else None
