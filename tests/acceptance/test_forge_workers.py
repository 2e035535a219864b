"""The whole library through three Tezzeret and two Urabrask processes on Redis and S3, one killed while it compiles.

Every blueprint ends validated or rejected, every job has one result, and a start with nothing but the log, the store
and the trusted keys gives the same kernels, digest for digest.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from forge_processes import ADA, Crew, all_judged, await_true, of, require_each_job_once, submit
from servers import RedisServer, S3Server

from esper.artifacts import open_store
from esper.artifacts.signing import load_trusted
from esper.blueprints.canonical import blueprint_id, canonical_json
from esper.blueprints.forging.jobs import job_id, requested_event_id
from esper.blueprints.forging.submission import submit_sound
from esper.blueprints.ir import SiteSignature, parse
from esper.blueprints.kernels.kernel import load_module
from esper.blueprints.kernels.shelf import KernelShelf
from esper.blueprints.library import load_library
from esper.events import Event
from esper.events.blueprint import BlueprintRejected, BlueprintSubmitted
from esper.events.kernel import (
    CompilationFailed,
    CompilationLeased,
    CompilationRequested,
    KernelCompiled,
    KernelRejected,
    KernelValidated,
)
from esper.ids import derived_id
from esper.kasmina.cache import KernelCache
from esper.oona.open import open_log
from esper.oona.port import ANY, EventLog

LIBRARY = load_library()
#: Attention over as many positions and channels as a branch may have: measuring it takes longer than is allowed here.
ENDLESS = SiteSignature(kind="linear", rank="NTC", channels=1024, in_channels=1024, positions=(2048,), causal=False)
CONV = SiteSignature(kind="conv2d", rank="NCHW", channels=8, in_channels=3, positions=(6, 6), causal=False)
#: Seconds one job may take.
WORK_S = "20"


def say(log: EventLog, fact: CompilationRequested | BlueprintSubmitted, event_id: bytes) -> None:
    event = Event(fact=fact, event_id=event_id, sender_id="ada", trace_id="b" * 32)
    log.append([event], stream=fact.stream, expected=ANY)


def request(log: EventLog, identity: str, site: SiteSignature) -> str:
    job = job_id(identity, site)
    wish = CompilationRequested(
        job_id=job, blueprint_id=identity, signature=msgspec.to_builtins(site), pipelines=[], requested_by="ada"
    )
    say(log, wish, requested_event_id(job))
    return job


def submit_troublesome(log: EventLog) -> tuple[str, str, str]:
    """Submit what is unsound, does not fit, or takes too long; return the id of the first and the others' jobs."""
    unsound = "ab" * 32
    say(
        log,
        BlueprintSubmitted(
            blueprint_id=unsound,
            name="lora",
            kind="lowrank_weight",
            architecture_ir=canonical_json(LIBRARY["lora"]),
            submitted_by="mallory",
        ),
        derived_id("test", "unsound"),
    )
    slow = parse(canonical_json(LIBRARY["par_attn"]).replace('"id":"par_attn"', '"id":"slow_attn"'))
    submit_sound(log, slow, ADA)
    return unsound, request(log, blueprint_id(LIBRARY["lora"]), CONV), request(log, blueprint_id(slow), ENDLESS)


@pytest.mark.timeout(1500)
def test_the_whole_library_is_compiled_and_judged_although_a_worker_is_killed_and_found_again_on_s3(
    tmp_path: Path,
) -> None:
    with RedisServer(tmp_path / "redis") as server, S3Server() as s3, open_log(server.url) as log:
        bucket = s3.new_bucket()
        settings = {"ESPER_ARTIFACTS": s3.url(bucket), "ESPER_WORK_WALL_S": WORK_S}
        with Crew(tmp_path / "home", server.url, settings) as crew:
            workers = crew.start("tezzeret", "tezzeret", "tezzeret", ttl_s=4)
            submit(log, *LIBRARY)
            unsound, unfit, endless = submit_troublesome(log)
            await_true(lambda: of(log, CompilationLeased), 60, crew.told)
            taken = of(log, CompilationLeased)[0]
            victim = next(one for one in workers if one.name == taken.worker)
            victim.kill()
            crew.start("urabrask", "urabrask", "blueprint-verifier")
            await_true(lambda: all_judged(log), 1000, crew.told)

            leases = require_each_job_once(log)
            assert [lease.worker == victim.name for lease in leases[taken.job_id]] == [True, False]
            repeated = [job for job, one in leases.items() if len(one) > 1]
            assert repeated == [taken.job_id], "work was repeated although no lease was lost"
            failed = {fact.job_id: fact for fact in of(log, CompilationFailed)}
            assert set(failed) == {unfit}
            assert "NCHW" in failed[unfit].message
            assert [fact.blueprint_id for fact in of(log, BlueprintRejected)] == [unsound]

            made = {fact.kernel_id: fact for fact in of(log, KernelCompiled)}
            judged = {fact.kernel_id: fact for fact in of(log, KernelValidated, KernelRejected)}
            assert set(judged) == set(made)
            slow = next(fact for fact in made.values() if fact.job_id == endless)
            assert judged[slow.kernel_id].failed == ["time_limit"]
            assert {fact.blueprint_id for fact in made.values()} >= {blueprint_id(one) for one in LIBRARY.values()}
            statuses = {row["status"] for row in crew.esper("kernel", "list")}
            assert statuses == {"validated", "rejected"}
            log.verify()

        # Started again with nothing local but the public key that is trusted: no cache, no key, no tables.
        keys = tmp_path / "trusted"
        keys.mkdir()
        shutil.copy(tmp_path / "home" / "keys" / "signing.pub", keys)
        shutil.rmtree(tmp_path / "home")
        with open_store(s3.url(bucket)) as store:
            shelf = KernelShelf(store, trusted=load_trusted(keys))
            cache = KernelCache(shelf.get, max_bytes=64 << 20, build=load_module)
            assert {cache.get(one.kernel_id).manifest.blueprint_id for one in made.values()} == {
                one.blueprint_id for one in made.values()
            }
            cache.close()
        before = of(log, KernelCompiled, CompilationLeased)
        with Crew(tmp_path / "fresh", server.url, {**settings, "ESPER_TRUSTED_KEYS": str(keys)}) as crew:
            crew.start("tezzeret", "urabrask")
            await_true(lambda: all(lag == 0 for lag in lags(crew)), 120, crew.told)
            assert {row["status"] for row in crew.esper("kernel", "list")} == statuses
            # What was done is not done again.
            assert of(log, KernelCompiled, CompilationLeased) == before

        # Made anew from nothing but the same blueprints, into a store that has none of them.
        library = {blueprint_id(one) for one in LIBRARY.values()}
        wanted = {one.kernel_id for one in made.values() if one.blueprint_id in library}
        with RedisServer(tmp_path / "other") as other, open_log(other.url) as second:
            again = s3.new_bucket()
            with Crew(tmp_path / "new", other.url, {**settings, "ESPER_ARTIFACTS": s3.url(again)}) as crew:
                submit(second, *LIBRARY)
                crew.start("tezzeret", "tezzeret")
                await_true(lambda: {one.kernel_id for one in of(second, KernelCompiled)} == wanted, 300, crew.told)
                require_each_job_once(second)
            with open_store(s3.url(bucket)) as first, open_store(s3.url(again)) as last:
                digests = [bytes.fromhex(kernel_id) for kernel_id in wanted]
                assert all(first.get(digest) == last.get(digest) for digest in digests)


def lags(crew: Crew) -> list[int | None]:
    """Return how far each handler is behind the log."""
    return [row["lag_events"] for row in crew.esper("handler", "status", "--no-watch")]
