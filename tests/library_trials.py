"""What is demanded of a grafted blueprint: gradient reaches all of it, it helps a frozen host, the loss falls."""

from __future__ import annotations

import statistics

import torch
from torch import nn

from benchmarks.grafting import Place, Trial, Warm, forged
from esper.blueprints.ir import Blueprint
from esper.events.decision import Schedule
from esper.events.lifecycle import SeedState
from esper.tolaria.determinism import seeded
from esper.tolaria.hosts.dense import DenseHost
from esper.tolaria.task import Split
from esper.tolaria.tasks.digits import Digits

#: Batches that a branch is trained on alone, round and round.
FROZEN_BATCHES = 4
ALONE = Schedule(learning="probation", probation_steps=10_000)


class DigitsMlp(Digits):
    """A host of linear layers whose data is there at once."""

    def host(self, seed: int) -> nn.Module:
        with seeded(seed):
            return DenseHost(inputs=64)


def check_gradients_and_contribution(warm: Warm, blueprint: Blueprint, place: Place, *, steps: int) -> None:
    """Train the branch alone: each parameter gets gradient within two steps, and fixed batches are answered better."""
    trial = Trial(warm)
    trial.host.requires_grad_(False)
    size = warm.task.defaults.batch_size
    rows = torch.cat([warm.order.indices(warm.steps + 1 + number) for number in range(FROZEN_BATCHES)])
    fixed = Split(*warm.data.train.take(rows))
    before = trial.loss_of(fixed)
    seed = trial.graft(forged(blueprint, place), place, ALONE)
    assert seed.state is SeedState.TRAINING
    assert trial.loss_of(fixed) == before, "the branch changed the host at birth"
    branch = dict(trial.growth.named_parameters())
    for step in range(steps):
        batch = fixed.take(torch.arange(size) + size * (step % FROZEN_BATCHES))
        if branch:
            trial.learn(*batch)
        if step == 2:
            # The gradient of the third step: it was taken with weights that two steps had moved.
            norms = {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in branch.items()}
            assert all(norm > 0 for norm in norms.values()), f"no gradient reaches {norms}"
    after = trial.loss_of(fixed)
    if branch:
        assert after < before, f"the branch alone: {before:.4f} to {after:.4f}"
    else:
        assert after == before
    assert all(p.grad is None for p in trial.host.parameters())


def check_loss_falls(warm: Warm, blueprint: Blueprint, place: Place, *, steps: int) -> None:
    """Train host and branch together: the train loss falls and the branch has a part in it."""
    trial = Trial(warm)
    seed = trial.graft(forged(blueprint, place), place, Schedule(ramp_steps=steps // 3, settle_steps=10_000))
    losses = trial.train(steps)
    tenth = max(steps // 10, 5)
    start, end = statistics.fmean(losses[:tenth]), statistics.fmean(losses[-tenth:])
    assert end < start, f"the loss went from {start:.4f} to {end:.4f}"
    assert seed.ramp.value == 1.0
    assert seed.fault is None
    rows = torch.cat([warm.order.indices(warm.steps + 1 + number) for number in range(FROZEN_BATCHES)])
    seen = Split(*warm.data.train.take(rows))
    joined = trial.loss_of(seen)
    seed.muted = True
    muted = trial.loss_of(seen)
    if seed.parameters:
        assert joined != muted, "the branch does nothing"
    else:
        assert joined == muted
