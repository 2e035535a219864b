"""COMPILE: blueprints compiled per second by one Tezzeret process and by two, on a real Redis.

The processes are those of ``esper handler start tezzeret``, each with one child that compiles, warm before anything is
timed. A repeat submits a batch of new blueprints and ends with the fact of the last kernel, so that verifying, asking,
leasing, compiling, signing, storing and telling are all in it.

    python -m benchmarks.compile_rate
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from benchmarks.measure import interleave, report, scratch
from benchmarks.redis_server import redis_server
from esper.blueprints.canonical import canonical_json
from esper.blueprints.forging.submission import Author, submit_sound
from esper.blueprints.ir import SiteSignature, parse
from esper.blueprints.library import load_library
from esper.events import Event
from esper.events.kernel import KernelCompiled
from esper.events.seed import SiteRegistered
from esper.ids import derived_id
from esper.names import TopicNames
from esper.oona.open import open_log
from esper.oona.port import ANY, EventLog, iterate

BATCH = 32
#: One site, at which each blueprint below is one kernel of 50 to 500 KB.
SITE = SiteSignature(kind="linear", rank="NC", channels=256, in_channels=256, positions=(), causal=False)
NAMES = ("lora", "res_mlp", "glu_mlp", "affine")
_AUTHOR = Author("benchmark", "benchmark", "b" * 32)
_MOST_S = 300.0


class Side:
    """A log with so many workers."""

    def __init__(self, log: EventLog) -> None:
        """Register the site that kernels are wanted for."""
        self.log = log
        self._batches = itertools.count()
        site = SiteRegistered(
            run_id="run-1",
            attempt=1,
            ordinal=1,
            site="body",
            kind=SITE.kind,
            depth=0,
            signature=msgspec.to_builtins(SITE),
            parameters=1,
            flops=1,
        )
        event = Event(fact=site, event_id=derived_id("benchmark", "site"), sender_id="benchmark", trace_id="b" * 32)
        log.append([event], stream=site.stream, expected=ANY)

    def rate(self) -> float:
        """Submit a batch, wait for its kernels, and return how many there were per second."""
        number = next(self._batches)
        library = load_library()
        documents = [
            canonical_json(library[name]).replace(f'"id":"{name}"', f'"id":"{name}_{number}_{place}"')
            for place, name in zip(range(BATCH), itertools.cycle(NAMES), strict=False)
        ]
        blueprints = [parse(document) for document in documents]
        after = self.log.end()
        began_s = time.perf_counter()
        waiting = {submit_sound(self.log, blueprint, _AUTHOR).blueprint_id for blueprint in blueprints}
        while waiting:
            end = self.log.end()
            for envelope in iterate(self.log, after, topics=[TopicNames.COMPILATION_KERNEL_READY], until=end):
                if envelope.type == KernelCompiled.__name__:
                    waiting.discard(envelope.stream.removeprefix("blueprint/"))
            after = end
            if waiting and not self.log.wait(after, 1.0) and time.perf_counter() - began_s > _MOST_S:
                raise TimeoutError(f"{len(waiting)} blueprints were not compiled")
        return BATCH / (time.perf_counter() - began_s)


@contextmanager
def workers(folder: Path, url: str, count: int) -> Iterator[None]:
    """Run so many worker processes."""
    folder.mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ESPER_")},
        "ESPER_HOME": str(folder),
        "ESPER_LOG": url,
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, "-m", "esper", "handler", "start", "tezzeret", "--json", "--concurrency", "1"]
    with ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True))
            stack.callback(process.terminate)
            if process.stdout is None or not json.loads(process.stdout.readline())["member"]:
                raise RuntimeError("a worker does not start")
        yield


def main() -> None:
    """Measure and print."""
    with scratch() as folder, redis_server(folder / "redis") as port, ExitStack() as stack:
        sides = []
        for count in (1, 2):
            url = f"redis://127.0.0.1:{port}/0?namespace=workers{count}"
            side = Side(stack.enter_context(open_log(url)))
            stack.enter_context(workers(folder / str(count), url, count))
            # The second member takes its half of the streams, and every child has started and warmed up.
            side.rate()
            sides.append(side)
        one, two = interleave([side.rate for side in sides])
    report(
        "COMPILE",
        f"{BATCH} new blueprints, from submission to the last kernel, with 2 workers",
        two,
        one,
        unit="blueprints/s",
        peer="1 worker",
        cores=os.cpu_count(),
    )


if __name__ == "__main__":
    main()
