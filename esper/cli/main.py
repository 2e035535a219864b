"""The program ``esper``: its commands, its global options, and what becomes of an error.

Belongs here: the table of commands and the rim where every error turns into a message and an exit code. Does not
belong here: any command's own work, which is in the file of its noun, imported when it is run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import typer
import typer.main

from esper.cli.failures import EXIT_INTERRUPTED, fail, fail_usage
from esper.cli.hoist import hoist
from esper.cli.lazy import LazyGroup
from esper.cli.session import Session

_DEBUG = "--debug"
#: What a shell reports for a program that its reader hung up on.
_EXIT_PIPE = 141


class Commands(LazyGroup):
    """Every command, in the order a newcomer meets them."""

    helps: ClassVar[Mapping[str, str]] = {
        "demo": "Grow a network on real data, compare it with two controls, and write the report.",
        "train": "Train a task's host, let a policy grow it, and record every fact.",
        "run": "List, show, compare and annotate training runs.",
        "log": "Read, verify, seal, prove and salvage the log of facts.",
        "projections": "Show, rebuild and verify the tables.",
        "seed": "List and show seeds: what was grafted, and what became of it.",
        "blueprint": "List, show, verify, submit, retire and mutate blueprints.",
        "kernel": "List, show, measure, compile and verify kernels: blueprints compiled for a site.",
        "decision": "List and show what policies decided, with every probability.",
        "handler": "Run handlers, show how they do, and decide about events they gave up on.",
        "artifact": "List, fetch, store, copy, verify, sign and collect artifacts: weights, kernels, checkpoints.",
        "audit": "Tell what happened, and what caused it.",
        "replay": "Re-execute a run and compare, or tell its state at a point.",
        "config": "Show the settings and where each comes from.",
        "doctor": "Check this installation, its log, tables and artifacts.",
    }
    places: ClassVar[Mapping[str, str]] = {name: f"esper.cli.{name}" for name in helps}


app = typer.Typer(
    cls=Commands,
    name="esper",
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from esper import __version__

        typer.echo(f"esper {__version__}")
        raise typer.Exit


@app.callback()
def esper(
    ctx: typer.Context,
    home: Annotated[
        Path | None, typer.Option(help="State folder; ESPER_HOME, `.esper` unless set.", show_default=False)
    ] = None,
    log: Annotated[str | None, typer.Option(help="URL of the log; ESPER_LOG.", show_default=False)] = None,
    db: Annotated[str | None, typer.Option(help="URL of the tables; ESPER_DB.", show_default=False)] = None,
    artifacts: Annotated[
        str | None, typer.Option(help="URL of the artifact store; ESPER_ARTIFACTS.", show_default=False)
    ] = None,
    archive: Annotated[
        str | None, typer.Option(help="URL of the archive of sealed history; ESPER_ARCHIVE.", show_default=False)
    ] = None,
    signing_key: Annotated[
        Path | None, typer.Option(help="Private key that signs; ESPER_SIGNING_KEY.", show_default=False)
    ] = None,
    trusted_keys: Annotated[
        Path | None,
        typer.Option(help="Folder or file of trusted public keys; ESPER_TRUSTED_KEYS.", show_default=False),
    ] = None,
    spool: Annotated[
        Path | None,
        typer.Option(help="Folder of facts that wait while the log is away; ESPER_SPOOL.", show_default=False),
    ] = None,
    spool_bytes: Annotated[
        int | None,
        typer.Option(help="Most bytes that wait there; ESPER_SPOOL_BYTES.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Settings file; ESPER_CONFIG, `./esper.toml` if it is there.", show_default=False),
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option(help="Least level of messages on stderr.", show_default=False),
    ] = None,
    log_format: Annotated[
        Literal["console", "json"] | None, typer.Option(help="Form of those messages.", show_default=False)
    ] = None,
    color: Annotated[
        Literal["auto", "always", "never"] | None, typer.Option(help="Colours and boxes.", show_default=False)
    ] = None,
    debug: Annotated[bool, typer.Option(_DEBUG, help="Print a traceback with an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train networks that grow while they train; replay and audit every run.

    Start with `esper demo`. The options below may stand before a command or after it.
    Every reading command takes --json: data on stdout, messages on stderr.
    Exit codes: 0 ok, 1 error, 2 usage, 3 divergence or failed verification, 4 not found, 5 unavailable,
    6 facts verified but not re-executable.
    """
    del version
    flags: dict[str, object] = {
        "home": home,
        "log": log,
        "db": db,
        "artifacts": artifacts,
        "archive": archive,
        "signing_key": signing_key,
        "trusted_keys": trusted_keys,
        "spool": spool,
        "spool_bytes": spool_bytes,
        "log_level": log_level,
        "log_format": log_format,
        "color": color,
        "debug": debug or None,
    }
    ctx.obj = Session(flags, config_file=config)
    ctx.call_on_close(ctx.obj.close)


def run(arguments: list[str]) -> int:
    """Run the program with these arguments and return its exit code; what goes wrong is told on stderr."""
    command: Any = typer.main.get_command(app)
    as_json = "--json" in arguments
    debug = _DEBUG in arguments or os.environ.get("ESPER_DEBUG", "") not in ("", "0", "false")
    try:
        front, rest = hoist(command, arguments)
        code = command.main(args=[*front, *rest], prog_name="esper", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        return fail_usage(error, as_json=as_json)
    except typer.Abort:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return _hung_up()
    except SystemExit as stop:
        # Typer exits by itself when a reader hangs up in the middle of a command.
        if isinstance(stop.__context__, BrokenPipeError):
            return _hung_up()
        raise
    except Exception as error:
        # The rim: whatever it is, a person gets a message and a script an exit code.
        return fail(error, as_json=as_json, debug=debug)
    return code if isinstance(code, int) else 0


def _hung_up() -> int:
    """Leave quietly when the reader of stdout is gone, e.g. ``esper log read | head``."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _EXIT_PIPE


def main() -> None:
    """Run ``esper`` with the arguments of the process."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
