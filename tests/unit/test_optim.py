"""Groups follow the seeds, and the host's moments never notice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from esper.errors import CheckpointDamaged
from esper.tolaria.optim import GrowingOptimizer, make_optimizer
from esper.tolaria.schedule import ScheduleSettings


def grown(kind: str = "adam") -> tuple[nn.Linear, nn.Linear, GrowingOptimizer]:
    torch.manual_seed(0)
    host, seed = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = GrowingOptimizer(make_optimizer(kind, host.parameters(), 0.1), ScheduleSettings(), 100)
    return host, seed, optimizer


def take(host: nn.Linear, seed: nn.Linear, optimizer: GrowingOptimizer, step: int) -> None:
    optimizer.set_rates(step)
    optimizer.optimizer.zero_grad()
    x = torch.arange(6.0).reshape(2, 3) * step
    (host(x) + seed(x)).square().mean().backward()
    optimizer.optimizer.step()


def test_adding_and_removing_a_seed_leaves_the_hosts_moments_alone() -> None:
    host, seed, optimizer = grown()
    take(host, seed, optimizer, 1)
    before = {k: v.clone() for k, v in optimizer.optimizer.state[host.weight].items()}
    optimizer.add("seed-1", list(seed.parameters()), 1)
    optimizer.remove("seed-1")
    after = optimizer.optimizer.state[host.weight]
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert seed.weight not in optimizer.optimizer.state
    assert optimizer.seeds() == []


def test_the_second_of_two_seeds_of_the_same_shape_can_be_removed() -> None:
    _, seed, optimizer = grown()
    other = nn.Linear(3, 2)
    optimizer.add("seed-1", list(seed.parameters()), 0)
    optimizer.add("seed-2", list(other.parameters()), 0)
    optimizer.remove("seed-2")
    assert optimizer.seeds() == ["seed-1"]


def test_a_new_group_warms_up_while_the_host_keeps_its_rate() -> None:
    _, seed, optimizer = grown()
    optimizer.add("seed-1", list(seed.parameters()), 10)
    optimizer.set_rates(11)
    host_rate, seed_rate = (group["lr"] for group in optimizer.optimizer.param_groups)
    assert host_rate == 0.1
    assert seed_rate == pytest.approx(0.001)
    optimizer.set_rates(60)
    assert optimizer.optimizer.param_groups[1]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_captured_state_goes_on_exactly_as_the_original(kind: str) -> None:
    host, seed, optimizer = grown(kind)
    optimizer.add("seed-1", list(seed.parameters()), 0)
    for step in (1, 2, 3):
        take(host, seed, optimizer, step)
    meta, tensors = optimizer.capture()
    other_host, other_seed, other = grown(kind)
    other_host.load_state_dict(host.state_dict())
    other_seed.load_state_dict(seed.state_dict())
    other.restore(meta, {k: v.clone() for k, v in tensors.items()}, {"seed-1": list(other_seed.parameters())})
    for step in (4, 5, 6):
        take(host, seed, optimizer, step)
        take(other_host, other_seed, other, step)
    assert torch.equal(host.weight, other_host.weight)
    assert torch.equal(seed.weight, other_seed.weight)


def test_state_of_another_optimizer_is_refused() -> None:
    _, _, optimizer = grown("adam")
    meta, tensors = optimizer.capture()
    _, _, other = grown("sgd")
    with pytest.raises(CheckpointDamaged, match="holds Adam state, the optimiser is SGD"):
        other.restore(meta, tensors, {})
