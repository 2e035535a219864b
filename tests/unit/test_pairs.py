"""Pairs of linear layers: found by what flows between them, widened by a branch, folded into the two weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from growing import Facts, branch, loss_of, new_units
from torch import nn

from esper.errors import GrowthError, IllegalTransition, SiteUnsupported
from esper.events.decision import Schedule
from esper.events.lifecycle import SeedState
from esper.events.seed import SeedFolded
from esper.kasmina import Growth, attach
from esper.kasmina.fold import detach

FULL = Schedule(ramp_steps=0)


class Functional(nn.Module):
    """Two linear layers whose activation is a function in the code, with a third layer behind."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor], *, bias: bool = True) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(5, 8, bias=bias), nn.Linear(8, 6, bias=bias), nn.Linear(6, 3)
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.down(self.between(self.up(x)))))


def grown(host: nn.Module, x: torch.Tensor, *, facts: Facts | None = None) -> Growth:
    return attach(host, (x,), emit=facts)


def keep(growth: Growth, path: str, module: nn.Module, seed_id: str, reads: str = "input") -> None:
    seed = growth.germinate(path, module, seed_id=seed_id, step=0, schedule=FULL, reads=reads)
    seed.state = SeedState.FOSSILIZED


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "tanh", "sigmoid", "softplus"])
def test_a_pair_is_known_by_its_activation_whether_module_or_function(name: str) -> None:
    torch.manual_seed(0)
    function = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}.get(name) or getattr(F, name)
    growth = grown(Functional(function), torch.randn(4, 5))
    pairs = {path: site for path, site in growth.sites.items() if "+" in path}
    assert {path: site.kind for path, site in pairs.items()} == {"up+down": f"pair_{name}", "down+head": "pair_relu"}
    site = pairs["up+down"]
    assert (site.signature.in_channels, site.signature.channels, site.signature.rank) == (5, 6, "NC")
    assert site.depth == growth.sites["down"].depth
    assert growth.sites["up"].depth == 0, "a pair takes no place in the order of the layers"


@pytest.mark.parametrize(
    "between",
    [
        lambda h: h,
        lambda h: torch.relu(h) * 2.0,
        lambda h: F.gelu(h, approximate="tanh"),
        lambda h: torch.relu(h - h.mean(1, keepdim=True)),
        lambda h: torch.relu(h.detach().flip(1)),
    ],
    ids=["nothing", "scaled", "another gelu", "a norm before it", "turned round"],
)
def test_layers_with_anything_else_between_them_are_no_pair(between: Callable[[torch.Tensor], torch.Tensor]) -> None:
    torch.manual_seed(0)
    growth = grown(Functional(between), torch.randn(4, 5))
    assert "up+down" not in growth.sites
    with pytest.raises(SiteUnsupported, match="no activation alone"):
        attach(Functional(between), (torch.randn(4, 5),), sites=["up+down"])


def test_a_layer_whose_weight_is_used_twice_is_in_no_pair() -> None:
    host = Functional(torch.relu)
    host.tied = nn.Linear(5, 8)
    host.tied.weight = host.up.weight
    assert "up+down" not in grown(host, torch.randn(4, 5)).sites


def test_only_the_pairs_that_are_named_are_offered() -> None:
    growth = attach(Functional(torch.relu), (torch.randn(4, 5),), sites=["up+down", "up"])
    assert sorted(growth.sites) == ["up", "up+down"]


def test_new_units_change_nothing_at_birth_and_learn_from_the_first_step() -> None:
    torch.manual_seed(0)
    host, x = Functional(torch.relu), torch.randn(8, 5)
    before = host(x)
    growth = grown(host, x)
    module = new_units(5, 6, 4, F.relu, zero=True)
    growth.germinate("up+down", module, seed_id="s", step=0, schedule=FULL, reads="input")
    assert torch.equal(host(x), before)
    loss_of(host, x).backward()
    assert module.get_submodule("n2").weight.grad.abs().sum() > 0


def test_a_seed_at_a_pair_reads_the_input_of_this_pass_and_keeps_none_of_it() -> None:
    torch.manual_seed(0)
    host, x = Functional(torch.relu), torch.randn(8, 5)
    growth = grown(host, x)
    keep(growth, "up+down", new_units(5, 6, 4, F.relu), "s")
    first, second = host(x), host(x + 1.0)
    assert torch.equal(host(x), first)
    assert not torch.equal(first, second)
    hook = next(iter(host.down._forward_hooks.values()))
    assert hook._given is None


@pytest.mark.parametrize("reads", ["input", "output"])
def test_a_branch_of_another_form_is_refused_at_a_pair(reads: str) -> None:
    growth = grown(Functional(torch.relu), torch.randn(4, 5))
    other = nn.Linear(5, 6, bias=False) if reads == "input" else branch(growth.sites["down"])
    with pytest.raises(IllegalTransition):
        growth.germinate("up+down", other, seed_id="s", step=0, schedule=FULL, reads=reads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_folded_units_stand_in_the_two_weights_and_compute_the_same(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    host, x = Functional(F.gelu, bias=bias).to(dtype), torch.randn(8, 5).to(dtype)
    facts = Facts()
    growth = grown(host, x, facts=facts)
    keep(growth, "up+down", new_units(5, 6, 4, F.gelu).to(dtype), "a")
    keep(growth, "up+down", new_units(5, 6, 3, F.gelu).to(dtype), "b")
    keep(growth, "down+head", new_units(8, 3, 2, F.relu).to(dtype), "c")
    keep(growth, "up", branch(growth.sites["up"], zero=False, dtype=dtype), "d", reads="output")
    keep(growth, "down", branch(growth.sites["down"], zero=False, dtype=dtype), "e", reads="output")
    with torch.no_grad():
        before = host(x)
    plain = detach(growth, step=1)
    with torch.no_grad():
        after = plain(x)
    assert (after - before).abs().max() <= (1e-5 if dtype is torch.float32 else 1e-12) * before.abs().max()
    assert (host.up.out_features, host.down.in_features, host.down.out_features, host.head.in_features) == (
        15,
        15,
        8,
        8,
    )
    folded = {fact["seed_id"]: fact["folded_into"] for fact in facts.of(SeedFolded)}
    assert folded == {"a": "up+down", "b": "up+down", "c": "down+head", "d": None, "e": None}
    loss_of(plain.train(), x).backward()
    assert host.up.weight.grad[8:].abs().sum() > 0


def test_a_host_that_cannot_be_widened_as_it_should_is_put_back() -> None:
    torch.manual_seed(0)
    host, x = Functional(torch.relu), torch.randn(8, 5)
    growth = grown(host, x)
    keep(growth, "up+down", new_units(5, 6, 4, F.gelu), "another activation than the host's")
    state = copy.deepcopy(host.state_dict())
    with torch.no_grad():
        before = host(x)
    with pytest.raises(GrowthError, match="differs"):
        detach(growth, step=1)
    assert all(torch.equal(a, b) for a, b in zip(host.state_dict().values(), state.values(), strict=True))
    with torch.no_grad():
        assert torch.equal(host(x), before)
