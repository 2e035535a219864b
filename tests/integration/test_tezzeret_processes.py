"""Three Tezzeret processes on a real Redis, one of them killed in the middle of a compilation.

The long version, with the whole library, blueprints that misbehave and kernels on S3, is
``tests/acceptance/test_forge_workers.py``.
"""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

from forge_processes import Crew, all_judged, await_true, of, require_each_job_once, submit
from servers import RedisServer

from esper.artifacts import open_store
from esper.events.kernel import CompilationLeased, KernelCompiled, KernelRejected, KernelValidated
from esper.oona.open import open_log


def jobs_told(url: str) -> int:
    """Return how many kernels a process says that it made."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        page = reply.read().decode()
    found = re.search(r'^esper_jobs_total{handler="tezzeret",outcome="compiled"} (\S+)$', page, re.MULTILINE)
    return 0 if found is None else int(float(found[1]))


def test_three_workers_of_which_one_is_killed_give_every_job_one_kernel_and_a_verdict(tmp_path: Path) -> None:
    with (
        RedisServer(tmp_path / "redis") as server,
        Crew(tmp_path / "home", server.url) as crew,
        open_log(server.url) as log,
    ):
        *members, _ = crew.start("tezzeret", "tezzeret", "tezzeret", "urabrask")
        submit(log, "lora", "pw_bottleneck", "se", "dw_sep_1d")
        # The first job of a process also starts its child: whoever is seen to take one is in the middle of it.
        await_true(lambda: of(log, CompilationLeased), 30, crew.told)
        taken = of(log, CompilationLeased)[0]
        victim = next(member for member in members if member.name == taken.worker)
        victim.kill()
        others = [member for member in members if member is not victim]
        await_true(lambda: all_judged(log), 60, crew.told)
        leases = require_each_job_once(log)
        again = leases[taken.job_id]
        assert len(again) == 2, "what the killed one had in hand was not done again, or more than once"
        assert again[0].worker == victim.name
        assert again[1].worker in {member.name for member in others}
        made = of(log, KernelCompiled)
        assert {fact.worker for fact in made} <= {member.name for member in others}
        assert {fact.kernel_id for fact in made} == {
            fact.kernel_id for fact in of(log, KernelValidated, KernelRejected)
        }
        with open_store(f"file:///{tmp_path}/home/artifacts") as store:
            assert all(store.has(bytes.fromhex(fact.kernel_id)) for fact in made)
        told = {member.name: jobs_told(member.url) for member in others}
        assert told == {name: sum(fact.worker == name for fact in made) for name in told}
        assert [member.end() for member in others] == [0, 0]
        log.verify()
