"""Settings: precedence, origins, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from esper.errors import ConfigError, ConfigVersionMismatch, UnknownSetting
from esper.settings import Settings, load_settings, setting_names


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def origins(settings: Settings) -> dict[str, str]:
    return {value.name: value.origin for value in settings.explain()}


def test_defaults_put_everything_under_the_home_folder(tmp_path: Path) -> None:
    settings = load_settings()
    home = tmp_path / ".esper"
    assert settings.home == home
    assert settings.log == f"sqlite:///{home}/log.db"
    assert settings.db == f"sqlite:///{home}/tables.db"
    assert settings.artifacts == f"file:///{home}/artifacts"
    assert (settings.signing_key, settings.trusted_keys) == (home / "keys" / "signing.pem", home / "keys")
    assert origins(settings)["home"] == "default"
    assert origins(settings)["log"] == "derived from home"


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().log_level == "warning"
    Path("esper.toml").write_text('config_version = 1\nlog_level = "error"\n')
    settings = load_settings()
    assert (settings.log_level, origins(settings)["log_level"]) == ("error", "file esper.toml")
    monkeypatch.setenv("ESPER_LOG_LEVEL", "info")
    settings = load_settings()
    assert (settings.log_level, origins(settings)["log_level"]) == ("info", "environment ESPER_LOG_LEVEL")
    settings = load_settings({"log_level": "debug", "color": None})
    assert (settings.log_level, origins(settings)["log_level"]) == ("debug", "flag --log-level")


def test_home_from_the_file_moves_what_is_derived_from_it(tmp_path: Path) -> None:
    Path("esper.toml").write_text('home = "state"\nlog = "memory://"\n')
    settings = load_settings()
    assert settings.log == "memory://"
    assert settings.db == f"sqlite:///{tmp_path}/state/tables.db"


def test_empty_environment_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_LOG_FORMAT", "")
    assert load_settings().log_format == "console"


def test_unknown_key_in_the_file_is_refused_with_the_nearest_name() -> None:
    Path("esper.toml").write_text('log_lvel = "info"\n')
    with pytest.raises(UnknownSetting, match=r"'log_lvel' in file esper\.toml") as caught:
        load_settings()
    assert caught.value.hint == "did you mean 'log_level'?"


def test_unknown_environment_variable_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_HOEM", "x")
    with pytest.raises(UnknownSetting, match="ESPER_HOEM") as caught:
        load_settings()
    assert caught.value.hint == "did you mean 'home'?"


def test_unknown_name_far_from_all_lists_the_settings() -> None:
    with pytest.raises(UnknownSetting) as caught:
        load_settings({"zzz": 1})
    assert all(name in caught.value.hint for name in setting_names())


@pytest.mark.parametrize("version", ["2", "0", '"1"', "true", "1.0"])
def test_file_of_another_version_is_refused(version: str) -> None:
    Path("esper.toml").write_text(f"config_version = {version}\n")
    with pytest.raises(ConfigVersionMismatch, match="config_version"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('log_format = "xml"', "log_format"),
        ("log_level = 3", "log_level"),
        ("home = [1]", "home"),
        ("log = ", "not TOML"),
    ],
)
def test_unusable_file_is_refused_with_the_place(text: str, says: str) -> None:
    Path("esper.toml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_settings()


def test_unusable_environment_value_names_the_variable_and_not_the_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ESPER_COLOR", "hunter2")
    with pytest.raises(ConfigError, match="environment ESPER_COLOR") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_file_that_is_named_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml does not exist"):
        load_settings(config_file=Path("gone.toml"))
    monkeypatch.setenv("ESPER_CONFIG", "gone.toml")
    with pytest.raises(ConfigError, match=r"gone\.toml does not exist"):
        load_settings()


def test_file_named_by_the_environment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.toml").write_text('color = "never"\n')
    monkeypatch.setenv("ESPER_CONFIG", "other.toml")
    settings = load_settings()
    assert (settings.color, origins(settings)["color"]) == ("never", "file other.toml")


def test_a_folder_in_place_of_the_file_is_a_clear_error() -> None:
    Path("esper.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings()


def test_passwords_in_urls_are_masked_when_shown_and_kept_when_used() -> None:
    url = "postgresql://ada:pa:ss@word@db.example/esper?password=x1&sslmode=require"
    settings = load_settings({"db": url})
    shown = {value.name: value.value for value in settings.explain()}["db"]
    assert shown == "postgresql://ada:***@db.example/esper?password=***&sslmode=require"
    assert settings.db == url


def test_every_setting_is_described() -> None:
    assert all(value.description.endswith(".") for value in load_settings().explain())


def test_a_tilde_in_the_path_of_a_key_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    settings = load_settings({"signing_key": "~/keys/mine.pem", "trusted_keys": "~/keys/team"})
    assert settings.signing_key == Path("/home/ada/keys/mine.pem")
    assert settings.trusted_keys == Path("/home/ada/keys/team")
