"""The settings of an Esper process: what can be set, where each value comes from, and what is refused.

Belongs here: the names, their types and the order of precedence: flag, then environment ``ESPER_*``, then file,
then default. The file is ``./esper.toml``, or the one that ``--config`` or ``ESPER_CONFIG`` names. Does not belong
here: how a training run is configured (``esper.tolaria.config``), which is part of the run's facts.

Import this module late: pydantic-settings takes longer to import than most commands take to run.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from esper.errors import ConfigError, ConfigVersionMismatch, UnknownSetting
from esper.redact import mask_value

#: Schema number of the settings file.
CONFIG_VERSION = 1
#: The file that is read when none is named.
DEFAULT_FILE = "esper.toml"
_PREFIX = "ESPER_"
#: Names the file that is read, so it cannot stand in that file.
_FILE_VARIABLE = "ESPER_CONFIG"
_DERIVED = "derived from home"
_File = Annotated[Path, AfterValidator(Path.expanduser)]


@dataclass(frozen=True, slots=True)
class SettingValue:
    """One setting as ``esper config show`` shows it.

    Attributes:
        name: Name of the setting.
        value: Its value, secrets masked.
        origin: Where it comes from, e.g. ``environment ESPER_LOG`` or ``default``.
        description: What it is for.
    """

    name: str
    value: object
    origin: str
    description: str


class Settings(BaseSettings):
    """Every setting of an Esper process; made by `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    home: Path = Field(
        default=Path(".esper"), description="State folder: log, tables and artifacts unless they are set."
    )
    log: str = Field(default="", description="URL of the log; `sqlite:///<home>/log.db` unless set.")
    db: str = Field(default="", description="URL of the tables; `sqlite:///<home>/tables.db` unless set.")
    artifacts: str = Field(default="", description="URL of the artifact store; `file:///<home>/artifacts` unless set.")
    archive: str = Field(
        default="", description="URL of the archive of sealed history; `file:///<home>/archive` unless set."
    )
    signing_key: _File = Field(
        default=Path(".esper/keys/signing.pem"),
        description="Private key that signs; `<home>/keys/signing.pem` unless set.",
    )
    trusted_keys: _File = Field(
        default=Path(".esper/keys"),
        description="Public keys that are trusted besides your own: a folder of `*.pub` files or a file with a key a "
        "line; `<home>/keys` unless set.",
    )
    spool: _File = Field(
        default=Path(".esper/spool"),
        description="Folder where facts wait while a log on a server is away; `<home>/spool` unless set.",
    )
    spool_bytes: int = Field(
        default=256 << 20, ge=1 << 20, description="Most bytes of facts that wait there before training waits."
    )
    kernel_cache_bytes: int = Field(
        default=256 << 20, ge=0, description="Most bytes of kernels that a run keeps in memory; 0 keeps none."
    )
    forge: Literal["here", "workers"] = Field(
        default="here",
        description="Who makes a run's kernels: the run's own process, or the handlers `tezzeret` and `urabrask`.",
    )
    forge_wait_s: float = Field(
        default=600.0, gt=0, description="How many seconds a run waits for workers to make and measure its kernels."
    )
    work_forms: Literal["none", "export", "inductor", "both"] = Field(
        default="none",
        description="Compiled forms that `tezzeret` makes of each kernel, besides those that a request asks for.",
    )
    work_wall_s: float = Field(
        default=120.0, gt=0, description="How many seconds one compilation or measurement by a worker may take."
    )
    work_memory_bytes: int = Field(
        default=4 << 30,
        ge=16 << 20,
        description="Memory its child process may hold beyond what it holds when idle.",
    )
    seal_events: int = Field(
        default=65_536, ge=1, description="The handler `sealer` seals once so many events are not sealed."
    )
    seal_seconds: float = Field(
        default=600.0, gt=0, description="It also seals once the oldest event that is not sealed is so old."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="warning", description="Least level of the messages written to stderr."
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="Form of the messages written to stderr."
    )
    color: Literal["auto", "always", "never"] = Field(
        default="auto", description="Colours and boxes; `auto` uses them on a terminal only."
    )
    debug: bool = Field(default=False, description="Print a traceback with each error.")

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from the arguments alone; `load_settings` layers the sources and notes which one won."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)

    def explain(self) -> list[SettingValue]:
        """Return every setting with its value and where that comes from, secrets masked."""
        return [
            SettingValue(
                name=name,
                value=mask_value(name, _plain(getattr(self, name))),
                origin=self._origins.get(name, "default"),
                description=field.description or "",
            )
            for name, field in type(self).model_fields.items()
        ]


def load_settings(flags: Mapping[str, object] | None = None, *, config_file: Path | None = None) -> Settings:
    """Return the settings of this process.

    Args:
        flags: Values given on the command line by setting name; None stands for not given.
        config_file: Settings file to read instead of ``./esper.toml``; it must exist.

    Raises:
        UnknownSetting: A key of the file or an ``ESPER_*`` variable is not known.
        ConfigVersionMismatch: The file was written for another version.
        ConfigError: A value cannot be used, or the file cannot be read.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    for name in given:
        _require_known(name, f"flag {_flag(name)}")
    _refuse_unknown_variables()
    path, in_file = _read_file(config_file)
    read_environment: Callable[[], dict[str, Any]] = EnvSettingsSource(Settings)
    layers = (
        ("file {path}", in_file),
        ("environment {variable}", read_environment()),
        ("flag {flag}", given),
    )
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        for name, value in layer.items():
            values[name] = value
            origins[name] = origin.format(path=path, variable=_variable(name), flag=_flag(name))
    home = values.get("home") or Settings.model_fields["home"].default
    if not isinstance(home, str | Path):
        raise ConfigError(f"setting home (from {origins['home']}): a path is a text, not {home!r}")
    home = Path(home).expanduser().resolve()
    values["home"] = home
    for name, place in _derived(home).items():
        if not values.get(name):
            values[name] = place
            origins[name] = _DERIVED
    settings = _validated(values, origins)
    settings._origins = origins  # noqa: SLF001 - the model's own module fills it in
    return settings


def setting_names() -> list[str]:
    """Return the name of every setting, in the order they are shown."""
    return list(Settings.model_fields)


def _derived(home: Path) -> dict[str, str | Path]:
    return {
        "log": f"sqlite:///{home / 'log.db'}",
        "db": f"sqlite:///{home / 'tables.db'}",
        "artifacts": f"file:///{home / 'artifacts'}",
        "archive": f"file:///{home / 'archive'}",
        "spool": home / "spool",
        "signing_key": home / "keys" / "signing.pem",
        "trusted_keys": home / "keys",
    }


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _variable(name: str) -> str:
    return f"{_PREFIX}{name.upper()}"


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _validated(values: dict[str, Any], origins: dict[str, str]) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = str(first["loc"][0])
        raise ConfigError(
            f"setting {name} (from {origins.get(name, 'default')}): {first['msg']}",
            hint="`esper config show` prints every setting and where it comes from",
            name=name,
        ) from None


def _require_known(name: str, where: str) -> None:
    known = setting_names()
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    raise UnknownSetting(
        f"unknown setting {name!r} in {where}",
        hint=f"did you mean {near[0]!r}?" if near else f"the settings are {', '.join(known)}",
        name=name,
        source=where,
        nearest=near[0] if near else None,
    )


def _refuse_unknown_variables() -> None:
    for variable in sorted(os.environ):
        if variable.upper().startswith(_PREFIX) and variable.upper() != _FILE_VARIABLE:
            _require_known(variable[len(_PREFIX) :].lower(), f"environment variable {variable}")


def _read_file(named: Path | None) -> tuple[Path, dict[str, Any]]:
    """Return the settings file's path and its values, none where the default file is not there."""
    if named is None and os.environ.get(_FILE_VARIABLE):
        named = Path(os.environ[_FILE_VARIABLE])
    path = named or Path(DEFAULT_FILE)
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if named is None:
            return path, {}
        raise ConfigError(f"settings file {path} does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"settings file {path} is not TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"settings file {path} cannot be read: {error.strerror}") from error
    version = found.pop("config_version", CONFIG_VERSION)
    if type(version) is not int or version != CONFIG_VERSION:
        raise ConfigVersionMismatch(
            f"settings file {path} has config_version {version!r}, this Esper reads {CONFIG_VERSION}",
            hint=f"write the file anew for `config_version = {CONFIG_VERSION}`; see docs/reference/settings.md",
            found=version,
            expected=CONFIG_VERSION,
        )
    for name in found:
        _require_known(name, f"file {path}")
    return path, found
