"""The pages: whether the loop turns, whether work can be done, and every metric."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

import esper.metrics
from esper.errors import ConfigError, HandlerError
from esper.handlers.runtime.health import Health, Pages


class Timer:
    """Seconds that move when told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def timer() -> Timer:
    return Timer()


@pytest.fixture
def health(timer: Timer) -> Health:
    return Health("notes", "a", hang_s=10.0, timer=timer)


@pytest.fixture
def pages(health: Health) -> Iterator[Pages]:
    pages = Pages(health)
    pages.start()
    yield pages
    pages.close()


def get(url: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return reply.status, reply.headers["content-type"], reply.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.headers["content-type"], refused.read().decode()


def test_process_is_live_while_its_loop_turns(health: Health, timer: Timer) -> None:
    timer.now_s += 9.0
    assert health.live()[0] == 200
    timer.now_s += 2.0
    status, answer = health.live()
    assert (status, answer["live"], answer["reason"]) == (503, False, "the loop has not turned for 11.0 s")
    health.turn()
    assert health.live()[0] == 200


def test_process_is_ready_once_work_is_done_and_says_why_it_is_not(health: Health, timer: Timer) -> None:
    assert health.ready() == (503, {"handler": "notes", "member": "a", "ready": False, "reason": "starting"})
    health.trouble = None
    assert health.ready()[0] == 200
    health.trouble = "[E-LOG-005] the log is away"
    assert health.ready()[1]["reason"] == "[E-LOG-005] the log is away"
    assert health.live()[0] == 200
    timer.now_s += 11.0
    assert health.ready()[1]["reason"] == "the loop has not turned for 11.0 s"


def test_pages_are_served_as_json(pages: Pages, health: Health) -> None:
    health.trouble = None
    for page in ("livez", "readyz"):
        status, kind, text = get(f"{pages.url}/{page}")
        assert (status, kind) == (200, "application/json")
        assert json.loads(text)["member"] == "a"
    health.trouble = "draining"
    status, _, text = get(f"{pages.url}/readyz")
    assert (status, json.loads(text)["reason"]) == (503, "draining")
    assert get(f"{pages.url}/nothing")[0] == 404


def test_every_metric_is_served(pages: Pages) -> None:
    esper.metrics.HANDLER_LAG_EVENTS.labels("notes").set(7)
    status, kind, text = get(f"{pages.url}/metrics")
    assert status == 200
    assert kind.startswith("text/plain; version=0.0.4")
    assert 'esper_handler_lag_events{handler="notes"} 7.0' in text
    assert "# HELP esper_log_append_seconds " in text


def test_port_that_is_taken_is_told(pages: Pages, health: Health) -> None:
    with pytest.raises(HandlerError, match=f"port {pages.port} of 127.0.0.1 cannot be listened on") as raised:
        Pages(health, port=pages.port)
    assert "0 takes one that is free" in raised.value.hint


def test_port_is_given_back(health: Health) -> None:
    pages = Pages(health)
    pages.start()
    get(f"{pages.url}/livez")
    pages.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", pages.port), timeout=5)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_host_that_is_not_this_machines_is_a_usage_error(health: Health, host: str) -> None:
    with pytest.raises(ConfigError, match="is no address"):
        Pages(health, host=host)
