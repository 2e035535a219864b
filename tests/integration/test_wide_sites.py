"""A seed at a wide site learns at its own share of the host's rate, in the run and in what the run keeps."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_tasks import train_tiny
from training import place

from esper.artifacts import ArtifactStore
from esper.events.run import CheckpointSaved
from esper.tolaria.checkpoint import decode


def groups(store: ArtifactStore, saved: CheckpointSaved) -> list[dict[str, Any]]:
    """Return the settings of each parameter group in a checkpoint."""
    return [group["settings"] for group in decode(store.get(saved.digest)).meta["optimizer"]["groups"]]


@pytest.mark.parametrize(("task", "share"), [("Tiny", 1.0), ("Wide", 0.5)])
def test_a_seeds_group_learns_at_the_share_of_its_width(task: str, share: float) -> None:
    where = place()
    train_tiny(where.log, where.store, task)
    grown = [found for saved in where.of(CheckpointSaved) if len(found := groups(where.store, saved)) > 1]
    assert grown
    for host, *seeds in grown:
        for seed in seeds:
            assert seed["esper_base_lr"] == host["esper_base_lr"] * share
