"""One run of the program: its settings, and the log, tables and artifacts it opens, each when it is first needed.

Belongs here: opening things once, and closing them at the end. Does not belong here: reading from them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esper.cli import output

if TYPE_CHECKING:
    import typer

    from esper.artifacts.content import ContentStore
    from esper.artifacts.signing import SigningKey, VerifyKey
    from esper.blueprints.kernels.shelf import KernelShelf
    from esper.oona.port import EventLog
    from esper.oona.recording.delivery import Spool
    from esper.oona.sealing.archive import Archive
    from esper.settings import Settings

#: What people are told to do first.
FIRST_STEP = "run `esper demo`"
_PLACES = ("home", "log", "db", "artifacts", "archive", "signing_key", "trusted_keys", "spool")


class Session:
    """What the commands of one run of the program share."""

    def __init__(self, flags: Mapping[str, object], *, config_file: Path | None = None) -> None:
        """Keep the global options; nothing is read or opened yet.

        Args:
            flags: Settings given on the command line, None where not given.
            config_file: Settings file named on the command line.
        """
        self._flags = flags
        self._config_file = config_file
        self._open = ExitStack()

    def global_arguments(self) -> list[str]:
        """Return the global options that say where things are, as they were given on the command line."""
        given = {"config": self._config_file, **{name: self._flags.get(name) for name in _PLACES}}
        return [
            word
            for name, value in given.items()
            if value is not None
            for word in (f"--{name.replace('_', '-')}", str(value))
        ]

    def fold(self) -> None:
        """Bring the tables up to the log, so that they can be verified and queried at once."""
        _ = self.tables

    def close(self) -> None:
        """Close whatever was opened, last first."""
        self._open.close()

    @cached_property
    def trace_id(self) -> str:
        """Id that everything this command sets off shares."""
        from esper.ids import new_trace_id

        return new_trace_id()

    @cached_property
    def settings(self) -> Settings:
        """The settings; messages are set up by them the first time.

        Raises:
            ConfigError: A setting is unknown or cannot be used.
        """
        from esper.logs import bound, configure
        from esper.settings import load_settings

        settings = load_settings(self._flags, config_file=self._config_file)
        output.set_color(settings.color)
        configure(
            level=settings.log_level,
            form=settings.log_format,
            color=settings.color == "always" or (settings.color == "auto" and sys.stderr.isatty()),
        )
        self._open.enter_context(bound(trace_id=self.trace_id))
        return settings

    @cached_property
    def log(self) -> EventLog:
        """The log that is there; reading never makes one.

        Raises:
            NotFound: There is no log yet.
        """
        return self._open_log(create=False)

    def open_also(self, url: str) -> EventLog:
        """Open another log than the one of the settings, which are those of both for all else."""
        from esper.oona.open import open_configured

        log = open_configured(self.settings.model_copy(update={"log": url}), create=False)
        self._open.callback(log.close)
        return log

    @cached_property
    def new_log(self) -> EventLog:
        """The log, made where there is none."""
        return self._open_log(create=True)

    @cached_property
    def spool(self) -> Spool | None:
        """Where facts wait while the log is away; None for a log on this machine's disk."""
        from esper.oona.recording.delivery import spool_for

        return spool_for(self.settings.log, self.settings.spool, self.settings.spool_bytes)

    @cached_property
    def tables(self) -> Any:
        """The engine of the tables, which know all of the log: what they lack is folded first.

        Raises:
            NotFound: There is no log yet.
            LogRegressed: The tables were built from another log.
        """
        from esper.cli.progress import progress
        from esper.projections.open import open_tables
        from esper.projections.runner import Projector

        log = self.log
        engine = open_tables(self.settings.db)
        self._open.callback(engine.dispose)
        with progress("bringing the tables up to date") as advance:
            Projector(log, engine).catch_up(advance)
        return engine

    @cached_property
    def store(self) -> ContentStore:
        """The artifact store."""
        from esper.artifacts import open_store

        store = open_store(self.settings.artifacts)
        self._open.callback(store.close)
        return store

    @cached_property
    def signing_key(self) -> SigningKey:
        """Your key, made the first time something is to be signed.

        Raises:
            ConfigError: It can neither be read nor made.
        """
        from esper.artifacts.signing import SigningKey

        path = self.settings.signing_key
        key, new = SigningKey.load_or_create(path)
        if new:
            vars(self).pop("trusted", None)
            output.message(
                f"made the signing key {path} (id {key.public.key_id}). Keep a copy of it where nobody else can read "
                f"it, and give its public half, {path.with_suffix('.pub')}, to whoever is to check what you sign; "
                "`esper artifact key` shows it again"
            )
        return key

    @cached_property
    def shelf(self) -> KernelShelf:
        """The artifact store as one for kernels: what is put is signed, and what is taken must be by a trusted key.

        Commands that only read take ``KernelShelf(session.store, trusted=session.trusted)``, which makes no key.
        """
        from esper.blueprints.kernels.shelf import KernelShelf

        key = self.signing_key
        return KernelShelf(self.store, key=key, trusted=self.trusted)

    def claim_store(self) -> None:
        """Leave the log's mark in the store, so that no collection for another log takes what this one's facts name.

        Who writes facts that name artifacts calls it once the log has a fact. A store that is away is no error here.

        Raises:
            ArtifactError: The store refuses to be written.
        """
        from esper.oona.collecting.collect import claim_store

        claim_store(self.store, self.new_log, self.settings.log)

    @cached_property
    def trusted(self) -> list[VerifyKey]:
        """The public keys that are trusted: those of the setting, and one's own."""
        from esper.artifacts.signing import load_known

        return load_known(self.settings.trusted_keys, self.settings.signing_key)

    @cached_property
    def archive(self) -> Archive:
        """The archive of the log's sealed history; it is opened when it is first read."""
        return self.archive_of(self.settings.log)

    def archive_of(self, url: str) -> Archive:
        """Return the archive of a log's sealed history, in the same place as that of the settings' log."""
        from esper.oona.open import namespace_of
        from esper.oona.sealing.archive import Archive

        archive = Archive(self.settings.archive, self.trusted, namespace=namespace_of(url))
        self._open.callback(archive.close)
        return archive

    def _open_log(self, *, create: bool) -> EventLog:
        from esper.errors import NotFound
        from esper.oona.open import open_configured
        from esper.redact import mask_text

        url = self.settings.log
        try:
            log = open_configured(self.settings, create=create)
        except NotFound:
            raise NotFound(f"no log at {mask_text(url)}", hint=FIRST_STEP) from None
        self._open.callback(log.close)
        return log


def session_of(ctx: typer.Context) -> Session:
    """Return the session of a command's context."""
    session: Any = ctx.obj
    if not isinstance(session, Session):
        raise TypeError("commands are run through the program `esper`")
    return session
