"""What becomes of an error: a message with code, cause and hint on stderr, and an exit code.

Belongs here: the one form of every error and the table of exit codes; docs/reference/cli-json.md is their contract.
Does not belong here: raising errors, or printing answers (``output``).
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import TYPE_CHECKING, Any

from esper.cli.output import message, plain
from esper.errors import (
    ArtifactDamaged,
    ArtifactStoreUnavailable,
    BusConnectionError,
    ConfigError,
    DependencyUnavailable,
    EsperError,
    LogDamaged,
    LogRegressed,
    LogUnavailable,
    NotFound,
    NotReexecutable,
    ProjectionDiverged,
    ProofFailed,
    ReplayDiverged,
    SignatureInvalid,
    SpoolDamaged,
)

if TYPE_CHECKING:
    from typer import TyperException

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_DIVERGED = 3
EXIT_NOT_FOUND = 4
EXIT_UNAVAILABLE = 5
EXIT_NOT_REEXECUTABLE = 6
EXIT_INTERRUPTED = 130

_EXITS: tuple[tuple[tuple[type[EsperError], ...], int], ...] = (
    ((ConfigError,), EXIT_USAGE),
    (
        (
            LogDamaged,
            SpoolDamaged,
            ArtifactDamaged,
            ProjectionDiverged,
            LogRegressed,
            ReplayDiverged,
            ProofFailed,
            SignatureInvalid,
        ),
        EXIT_DIVERGED,
    ),
    ((NotFound,), EXIT_NOT_FOUND),
    ((DependencyUnavailable, LogUnavailable, BusConnectionError, ArtifactStoreUnavailable), EXIT_UNAVAILABLE),
    ((NotReexecutable,), EXIT_NOT_REEXECUTABLE),
)

#: Modules that come with an extra: module name -> extra.
_EXTRAS = {
    "torch": "train",
    "numpy": "train",
    "safetensors": "train",
    "sklearn": "train",
    "mnist1d": "train",
    "boto3": "s3",
    "botocore": "s3",
    "starlette": "daemons",
    "uvicorn": "daemons",
}


def exit_code(error: BaseException) -> int:
    """Return the exit code an error ends the program with."""
    for kinds, code in _EXITS:
        if isinstance(error, kinds):
            return code
    return EXIT_ERROR


def fail(error: Exception, *, as_json: bool, debug: bool) -> int:
    """Tell an error on stderr and return its exit code.

    Args:
        error: What went wrong.
        as_json: Write one JSON object on one line instead of text.
        debug: Write the traceback too.
    """
    known = _known(error)
    if debug:
        sys.stderr.write("".join(traceback.format_exception(error)))
    _tell(
        {
            "code": known.code,
            "name": type(known).__name__,
            "message": _masked(known.message),
            "hint": known.hint or None,
            "cause": _masked(_cause(known)),
            "exit_code": exit_code(known),
            "details": {name: _detail(name, value) for name, value in known.attributes.items()},
        },
        as_json=as_json,
    )
    return exit_code(known)


def fail_usage(error: TyperException, *, as_json: bool) -> int:
    """Tell a mistake on the command line and return exit code 2."""
    context = getattr(error, "ctx", None)
    text = error.format_message()
    if text.startswith("Usage:"):
        # A group called without a command: its help is the answer.
        message(text)
        return EXIT_USAGE
    hint = f"`{context.command_path} --help` shows how it is used" if context is not None else None
    _tell(
        {
            "code": "E-USE-001",
            "name": "UsageError",
            "message": text,
            "hint": hint,
            "cause": None,
            "exit_code": EXIT_USAGE,
            "details": {},
        },
        as_json=as_json,
    )
    return EXIT_USAGE


def _known(error: Exception) -> EsperError:
    """Return the error, or one of Esper's that says what a foreign one means."""
    if isinstance(error, EsperError):
        return error
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _EXTRAS:
        module = (error.name or "").split(".")[0]
        missing = DependencyUnavailable(
            f"this command needs {module}, which is not installed",
            hint=f"pip install 'esper[{_EXTRAS[module]}]'",
            module=module,
        )
        missing.__cause__ = error
        return missing
    if isinstance(error, OSError) and error.strerror is not None:
        named = f"{error.filename}: " if error.filename is not None else ""
        refused = EsperError(
            f"{named}{error.strerror}", hint="check that the path is right, may be written, and has room"
        )
        refused.__cause__ = error
        return refused
    unforeseen = EsperError(
        f"{type(error).__name__}: {error}",
        hint="this was not foreseen; run it again with --debug and report what it prints",
    )
    unforeseen.__cause__ = error.__cause__
    return unforeseen


def _cause(error: BaseException) -> str | None:
    cause = error.__cause__
    return f"{type(cause).__name__}: {cause}" if cause is not None else None


def _detail(name: str, value: Any) -> Any:
    """Return an error's attribute as JSON; telling an error must not fail over what it carries."""
    from esper.redact import mask_value

    try:
        return mask_value(name, plain(value))
    except TypeError:
        return mask_value(name, str(value))


def _masked(text: str | None) -> str | None:
    from esper.redact import mask_text

    return mask_text(text) if text is not None else None


def _tell(error: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        message(json.dumps({"error": plain(error)}, separators=(",", ":"), allow_nan=False))
        return
    message(f"error[{error['code']}] {error['message']}")
    if error["cause"]:
        message(f"cause: {error['cause']}")
    if error["hint"]:
        message(f"hint: {error['hint']}")
