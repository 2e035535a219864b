"""Messages on stderr: form, bound ids, and secrets that never get there."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from esper.logs import bound, configure, get_logger
from esper.redact import is_secret_name, mask_text


@pytest.fixture(autouse=True)
def _restore_structlog() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_line_carries_part_level_time_and_fields() -> None:
    stream = io.StringIO()
    configure(level="info", form="json", stream=stream)
    get_logger("tolaria").info("checkpoint_saved", step=3)
    (line,) = lines(stream)
    assert line.pop("at").endswith("Z")
    assert line == {"part": "tolaria", "level": "info", "event": "checkpoint_saved", "step": 3}


def test_messages_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    configure(level="warning", form="json", stream=stream)
    get_logger("oona").info("quiet")
    get_logger("oona").warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


def test_bound_ids_are_on_every_message_inside_and_gone_after() -> None:
    stream = io.StringIO()
    configure(level="info", form="json", stream=stream)
    log = get_logger("tolaria")
    with bound(run_id="run-1", trace_id="ab"):
        log.info("inside")
        with bound(run_id="run-2"):
            log.info("deeper")
    log.info("outside")
    inside, deeper, outside = lines(stream)
    assert (inside["run_id"], inside["trace_id"]) == ("run-1", "ab")
    assert (deeper["run_id"], deeper["trace_id"]) == ("run-2", "ab")
    assert "run_id" not in outside


@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_never_reach_a_message(form: str) -> None:
    stream = io.StringIO()
    configure(level="info", form=form, stream=stream)
    get_logger("urza").info(
        "connecting to redis://:hunter2@cache/0",
        url="postgresql://ada:hunter2@db/esper",
        S3_SECRET_KEY="hunter2",
        headers={"Authorization": "Bearer hunter2", "accept": "json"},
        tried=["https://x:hunter2@host/a", "https://host/?token=hunter2"],
    )
    text = stream.getvalue()
    assert "hunter2" not in text
    assert "postgresql://ada:***@db/esper" in text
    assert "json" in text


@pytest.mark.parametrize("form", ["json", "console"])
def test_exception_is_written_without_local_variables(form: str) -> None:
    stream = io.StringIO()
    configure(level="info", form=form, stream=stream)

    def fail() -> None:
        kept_in_a_local = "hunter" + "2"
        raise ValueError(f"no use for {len(kept_in_a_local)} letters")

    try:
        fail()
    except ValueError:
        get_logger("tolaria").exception("failed")
    assert "no use for 7 letters" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_exception_text_is_masked_too() -> None:
    stream = io.StringIO()
    configure(level="info", form="json", stream=stream)

    def fail() -> None:
        raise ConnectionError("cannot reach redis://:hunter2@cache/0")

    try:
        fail()
    except ConnectionError:
        get_logger("oona").exception("failed")
    assert "hunter2" not in stream.getvalue()
    assert "redis://:***@cache/0" in stream.getvalue()


@pytest.mark.parametrize("name", ["password", "DB_PASSWD", "token", "api_key", "Authorization", "set-cookie"])
def test_telling_names_are_secret(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["loss", "tokens", "step", "run_id", "event"])
def test_plain_names_are_not_secret(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize("text", ["sqlite:////tmp/a.db", "http://host:8080/x@y", "a:b@c", "12:30 user@host"])
def test_text_without_credentials_is_left_alone(text: str) -> None:
    assert mask_text(text) == text


def test_a_library_user_who_set_nothing_up_gets_warnings_on_stderr_and_nothing_on_stdout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    structlog.reset_defaults()
    messages = get_logger("tolaria")
    messages.info("quiet")
    messages.warning("rolling back", url="redis://ada:secret@host")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "quiet" not in captured.err
    assert "rolling back" in captured.err
    assert "secret" not in captured.err
