"""What happens to a run when its artifact store on S3 goes away under it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import S3Server

from esper.artifacts.content import ContentStore
from esper.artifacts.s3 import S3Shelf
from esper.artifacts.s3_client import connect, parse_s3_url
from esper.errors import ArtifactStoreUnavailable
from esper.events.decision import DecisionExecuted
from esper.events.run import RunFailed, RunFinished
from esper.events.seed import SeedTransitioned
from esper.oona import open_log
from replay.session import verify
from tests.tiny_tasks import TINY, train_tiny
from tests.training import Place, go_on


@pytest.fixture
def where(tmp_path: Path, s3: S3Server) -> Iterator[Place]:
    """A log and a store on S3 that is asked once, with one undisturbed run, ``whole``."""
    s3_place = parse_s3_url(s3.url(s3.new_bucket()))
    with (
        open_log(f"sqlite:///{tmp_path}/log.db") as log,
        ContentStore(S3Shelf(s3_place, connect(s3_place, attempts=1))) as store,
    ):
        train_tiny(log, store, run_id="whole")
        yield Place(log, store)


def of(where: Place, run_id: str, cls: type) -> list[Any]:
    return [fact for fact in where.of(cls) if fact.run_id == run_id]


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_run_whose_store_is_away_fails_and_goes_on_to_the_same_bits(where: Place, s3: S3Server, method: str) -> None:
    """GET: what a checkpoint would be put beside cannot be read. PUT: the checkpoint cannot be kept."""
    grafted = [fact.step for fact in of(where, "whole", SeedTransitioned) if fact.target == "germinated"][-1]

    def outage(session: Any) -> None:
        if session.step_count == grafted - TINY.steps_per_epoch:
            s3.fault("status", status=503, code="SlowDown", times=-1, method=method)

    with pytest.raises(ArtifactStoreUnavailable, match="SlowDown"):
        train_tiny(*where, run_id="cut off", on_epoch=outage)
    (failed,) = of(where, "cut off", RunFailed)
    assert failed.error == "ArtifactStoreUnavailable"
    # Nothing was decided otherwise because the store was away.
    assert all(fact.executed for fact in of(where, "cut off", DecisionExecuted))
    s3.heal()
    assert failed.step == grafted
    assert not verify(where.log, where.store, "cut off").finished
    go_on(where, "cut off")
    verdict = verify(where.log, where.store, "cut off")
    assert (verdict.steps, verdict.finished) == (TINY.total_steps, True)
    (whole,), (finished,) = of(where, "whole", RunFinished), of(where, "cut off", RunFinished)
    assert finished.parameter_digest == whole.parameter_digest
    where.log.verify()


def test_a_store_that_is_asked_again_and_again_leaves_the_runs_random_numbers_alone(s3: S3Server) -> None:
    place = parse_s3_url(s3.url(s3.new_bucket()))
    with ContentStore(S3Shelf(place, connect(place, attempts=3))) as store:
        random.seed(7)
        expected = random.getstate()
        s3.fault("status", status=503, code="SlowDown", times=2, method="PUT")
        assert store.get(store.put(b"bytes")) == b"bytes"
        assert random.getstate() == expected
