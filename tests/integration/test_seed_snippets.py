"""The usage snippets of the seed's specification of the bus run as they stand, against real Redis.

Only the URL of the server is put in. What they leave to the reader (``process_health_signal``) is given by the test.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import subprocess
import sys
import types
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from esper.oona import OonaClient, OonaMessage, TopicNames, open_log
from tests.servers import RedisServer

ROOT = Path(__file__).parents[2]

INTEGRATION_PATTERN = """
# Service initialization
oona_client = OonaClient("redis://localhost:6379")
await oona_client.connect()

# Publishing
message = OonaMessage(
    sender_id="Tamiyo-Controller-1",
    trace_id="trace-123",
    topic=TopicNames.CONTROL_KASMINA_COMMANDS,
    payload={"command": "load_kernel", "layer": "transformer.0"}
)
await oona_client.publish(message)

# Consuming
messages = await oona_client.consume(
    streams=["telemetry.seed.health"],
    consumer_group="tamiyo-controllers",
    consumer_name="controller-1"
)

for message in messages:
    await process_health_signal(message.payload)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


def run(snippet: str, server: RedisServer, names: dict[str, Any]) -> None:
    """Run a snippet with its awaits at the top level, and close the client it made."""
    code = compile(
        snippet.replace("redis://localhost:6379", f"redis://localhost:{server.port}"),
        "<seed>",
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
    )

    async def main() -> None:
        found = types.FunctionType(code, names)()
        if inspect.isawaitable(found):
            await found
        await names["oona_client"].close()

    asyncio.run(main())


def names(seen: list[Any]) -> dict[str, Any]:
    async def process_health_signal(payload: dict[str, Any]) -> None:
        seen.append(payload)

    return {
        "OonaClient": OonaClient,
        "OonaMessage": OonaMessage,
        "TopicNames": TopicNames,
        "process_health_signal": process_health_signal,
    }


def publish_health(server: RedisServer, *healths: float) -> None:
    async def main() -> None:
        async with OonaClient(server.url) as client:
            for health in healths:
                await client.publish(
                    OonaMessage(
                        sender_id="Kasmina-1",
                        trace_id="trace-124",
                        topic=TopicNames.TELEMETRY_SEED_HEALTH,
                        payload={"health": health},
                    )
                )

    asyncio.run(main())


def test_the_integration_pattern_publishes_and_consumes(server: RedisServer) -> None:
    publish_health(server, 0.25, float("inf"))
    seen: list[Any] = []
    there = names(seen)
    run(INTEGRATION_PATTERN, server, there)
    assert seen == [{"health": 0.25}, {"health": float("inf")}]
    with open_log(server.url) as log:
        (command,) = log.read(topics=[TopicNames.CONTROL_KASMINA_COMMANDS])
    assert command.sender_id == "Tamiyo-Controller-1"
    sent = OonaMessage(sender_id="s", trace_id="t", topic=TopicNames.CONTROL_KASMINA_COMMANDS, payload={})
    assert uuid.UUID(sent.event_id)
    assert sent.timestamp.tzinfo is not None


def test_the_pattern_runs_again_and_again_as_a_service_that_restarts_does(server: RedisServer) -> None:
    seen: list[Any] = []
    for number in range(3):
        publish_health(server, number)
        run(INTEGRATION_PATTERN, server, names(seen))
    # The last batch of each life was not acknowledged, so that it comes again: at least once, and nothing is missed.
    assert [one["health"] for one in seen] == [0, 0, 1, 0, 1, 2]


def test_a_group_that_is_consumed_twice_works_the_second_time(server: RedisServer) -> None:
    publish_health(server, 1, 2)
    seen: list[Any] = []
    there = names(seen)
    consuming = INTEGRATION_PATTERN.partition("# Consuming")[2]
    run(INTEGRATION_PATTERN + consuming + consuming, server, there)
    assert seen == [{"health": 1}, {"health": 2}]


def test_the_program_on_the_page_runs(server: RedisServer, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "publish-and-consume.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "program.py").write_text(program.replace("localhost:6379", f"localhost:{server.port}"))
    command = [sys.executable, str(tmp_path / "program.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1 True", "Kasmina-1 {'seed': 'seed-1', 'loss': inf}"]


def test_the_seeds_names_are_exported() -> None:
    import builtins

    from esper.oona import ConnectionError, ConsumptionError, PublishError  # noqa: A004

    assert issubclass(ConnectionError, builtins.ConnectionError)
    assert {PublishError.__name__, ConsumptionError.__name__} == {"PublishError", "ConsumptionError"}
    parameters = inspect.signature(OonaClient.consume).parameters
    assert [name for name, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD] == [
        "self",
        "streams",
        "consumer_group",
        "consumer_name",
        "count",
        "timeout",
    ]
    assert (parameters["count"].default, parameters["timeout"].default) == (10, 1000)
    assert inspect.signature(OonaClient).parameters["redis_url"].default == "redis://localhost:6379"
