from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from growing import FAST, HOSTS, Facts, branch, grads, loss_of, make, reads_of
from torch import nn

from esper.errors import GrowthError, IllegalTransition, NotFound, SiteUnsupported
from esper.events.decision import Schedule
from esper.events.seed import SeedTransitionRefused, SiteRegistered
from esper.kasmina import attach

FULL = Schedule(ramp_steps=0)


def train_passes(model: nn.Module, x: torch.Tensor, steps: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, x)
        loss.backward()
        seen += [loss.detach(), *grads(model).values()]
        optimizer.step()
    model.eval()
    with torch.no_grad():
        seen.append(model(x))
    model.train()
    return seen


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("name", HOSTS)
def test_dormant_host_is_bit_exact_in_outputs_gradients_parameters_and_keys(name: str, lazy: bool) -> None:
    plain, x = make(name)
    host = copy.deepcopy(plain)
    growth = attach(host, None if lazy else (x,))
    assert list(host.state_dict()) == list(plain.state_dict())
    assert sum(p.numel() for p in host.parameters()) == sum(p.numel() for p in plain.parameters())
    for a, b in zip(train_passes(host, x), train_passes(plain, x), strict=True):
        assert torch.equal(a, b)
    assert growth.sites
    for a, b in zip(host.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for module in host.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("name", HOSTS)
def test_discovery_leaves_modes_buffers_and_random_numbers_as_they_were(name: str) -> None:
    host, x = make(name)
    host.train()
    next(host.children()).eval()
    modes = [m.training for m in host.modules()]
    buffers = [b.clone() for b in host.buffers()]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    attach(host, (x,))
    assert [m.training for m in host.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(host.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_lazy_discovery_finds_what_example_inputs_find() -> None:
    for name in HOSTS:
        host, x = make(name)
        facts = Facts()
        lazy = attach(host, emit=facts)
        assert not lazy.discovered
        with torch.no_grad():
            host.eval()(x)
        assert not lazy.discovered, "an eval pass without gradients is not watched"
        host.train()(x)
        now = attach(make(name)[0], (x,))
        assert [(s.path, s.depth, s.signature, s.flops) for s in lazy.sites.values()] == [
            (s.path, s.depth, s.signature, s.flops) for s in now.sites.values()
        ]
        assert lazy.forward_flops == now.forward_flops
        assert [f["site"] for f in facts.of(SiteRegistered)] == list(lazy.sites)


def test_lazy_discovery_survives_a_host_that_raises() -> None:
    host, x = make("mlp")
    growth = attach(host)
    with pytest.raises(RuntimeError):
        host(torch.randn(2, 99))
    assert not growth.discovered
    assert not host[0]._forward_hooks
    host(x)
    assert growth.discovered


def test_sites_carry_signature_depth_parameters_and_flops() -> None:
    host, x = make("cnn")
    growth = attach(host, (x,))
    assert list(growth.sites) == ["0", "1", "3"]
    conv = growth.sites["3"]
    assert (conv.kind, conv.depth, conv.parameters) == ("conv2d", 2, 6 * 4 * 9 + 4)
    assert conv.signature.rank == "NCHW"
    assert (conv.signature.channels, conv.signature.in_channels, conv.signature.positions) == (4, 6, (4, 4))
    assert conv.flops == 2 * 4 * 16 * 6 * 9
    norm = 5 * 6 * 36
    assert growth.forward_flops == 2 * 6 * 36 * 9 + norm + conv.flops + 2 * 64 * 3


def test_attention_flops_count_projections_and_scores() -> None:
    host, x = make("transformer")
    growth = attach(host, (x,))
    tokens, width = 5, 16
    assert growth.sites["attention"].flops == 4 * 2 * tokens * width * width + 2 * 2 * tokens * tokens * width
    block = growth.sites["body.layers.0"]
    inner = growth.sites["attention"].flops + 2 * 2 * tokens * width * 32 + 2 * 5 * tokens * width
    assert (block.kind, block.flops) == ("block", inner)


def test_modules_inside_fast_paths_and_the_last_layer_are_skipped_with_a_reason() -> None:
    host, x = make("transformer")
    growth = attach(host, (x,))
    assert list(growth.sites) == ["embed", "body.layers.0", "body.layers.1", "attention", "norm"]
    assert "may run without calling it" in growth.skipped["body.layers.0.linear1"]
    assert "last layer" in growth.skipped["head"]


def test_last_layer_is_offered_when_named() -> None:
    host, x = make("mlp")
    assert list(attach(host, (x,), sites=["4"]).sites) == ["4"]


class Sharing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never, self.once = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.once(self.twice(torch.relu(self.twice(x)))) * 2


def test_shared_and_unused_modules_are_not_offered() -> None:
    growth = attach(Sharing(), (torch.randn(2, 4),))
    assert list(growth.sites) == ["once"]
    assert growth.skipped["twice"] == "it was called 2 times"
    assert growth.skipped["never"] == "it was not called"


@pytest.mark.parametrize("wanted", ["nowhere", "never", "twice"])
def test_naming_a_site_that_is_none_raises(wanted: str) -> None:
    with pytest.raises(SiteUnsupported, match=wanted):
        attach(Sharing(), (torch.randn(2, 4),), sites=[wanted])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_modules_are_refused_and_a_compiled_part_is_left_alone() -> None:
    scripted = torch.jit.script(nn.Linear(4, 4))
    with pytest.raises(SiteUnsupported, match="scripted"):
        attach(nn.Sequential(scripted, nn.Linear(4, 4), nn.ReLU()), (torch.randn(2, 4),))
    named = attach(nn.Sequential(scripted, nn.Linear(4, 4), nn.ReLU()), (torch.randn(2, 4),), sites=["1"])
    assert list(named.sites) == ["1"]
    block = nn.Sequential(nn.Linear(4, 4))
    block.compile(backend="eager")
    host = nn.Sequential(block, nn.Linear(4, 4), nn.ReLU())
    growth = attach(host, (torch.randn(2, 4),))
    assert list(growth.sites) == ["1"]
    assert "cannot be hooked" in growth.skipped["0.0"]
    with pytest.raises(SiteUnsupported, match="compiled"):
        attach(torch.compile(nn.Linear(4, 4), backend="eager"), (torch.randn(2, 4),))


@pytest.mark.parametrize("name", HOSTS)
def test_an_active_seed_changes_the_eval_output_at_every_site_offered(name: str) -> None:
    host, x = make(name)
    host.eval()
    with torch.no_grad():
        before = host(x)
        for path in attach(host, (x,)).sites:
            growth = attach(host, (x,))
            torch.manual_seed(1)
            site = growth.sites[path]
            module = branch(site, zero=False)
            growth.germinate(path, module, seed_id="s", step=0, schedule=FULL, reads=reads_of(site))
            assert not torch.allclose(host(x), before, atol=1e-4), path
            growth.close()
            assert torch.equal(host(x), before)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_seed_reaches_the_output_when_the_encoder_would_use_nested_tensors() -> None:
    host, x = make("transformer")
    host.eval()
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[:, 3:] = True
    growth = attach(host, (x, mask))
    seed_site = growth.sites["body.layers.0"]
    growth.germinate("body.layers.0", branch(seed_site, zero=False), seed_id="s", step=0, schedule=FULL)
    assert host.body.use_nested_tensor is False
    with torch.no_grad():
        grown = host(x, mask)
        growth.command("cull", "s", step=1)
        for step in range(1, 60):
            growth.tick(step)
        assert not torch.allclose(grown, host(x, mask), atol=1e-4)
    assert growth.collect_faults(60) == []
    assert host.body.use_nested_tensor is True


@pytest.mark.parametrize("name", HOSTS)
def test_upstream_gradient_at_birth_does_not_depend_on_alpha(name: str) -> None:
    plain, x = make(name)
    host = copy.deepcopy(plain)
    growth = attach(host, (x,))
    for path, site in growth.sites.items():
        growth.germinate(path, branch(site), seed_id=path, step=0, reads=reads_of(site))
    torch.manual_seed(5)
    loss_of(plain, x).backward()
    expected = grads(plain)
    for alpha in (0.0, 0.3, 0.7, 1.0):
        for seed in growth.seeds.values():
            seed.set_alpha(alpha)
        host.zero_grad()
        torch.manual_seed(5)
        loss_of(host, x).backward()
        got = grads(host)
        assert got.keys() == expected.keys()
        for key in expected:
            assert torch.equal(got[key], expected[key]), (alpha, key)


def test_isolated_seed_with_a_random_tail_leaves_the_path_to_the_host_whole() -> None:
    # The gradient at h is what the layers after the site send, whatever alpha is: slope 1, never 1 - alpha.
    host, x = make("mlp")
    growth = attach(host, (x,))
    schedule = Schedule(isolate=True)
    seed = growth.germinate("0", branch(growth.sites["0"], zero=False), seed_id="s", step=0, schedule=schedule)
    after = {}
    for alpha in (0.0, 0.3, 0.7, 1.0):
        seed.set_alpha(alpha)
        h = host[0](x)
        host[0].zero_grad()
        h.backward(torch.ones_like(h))
        after[alpha] = host[0].weight.grad.clone()
    assert all(torch.equal(after[0.0], g) for g in after.values())
    assert after[0.0].abs().sum() > 0


def test_branch_in_a_zero_tail_seed_learns_at_alpha_one() -> None:
    host, x = make("mlp")
    growth = attach(host, (x,))
    growth.germinate("0", branch(growth.sites["0"]), seed_id="s", step=0, schedule=FULL)
    loss_of(host, x).backward()
    named = dict(growth.named_parameters())
    assert named["s.2.weight"].grad.abs().sum() > 0
    assert list(growth.state_dict()) == list(named)
    assert "s.2.weight" not in host.state_dict()


def test_several_seeds_on_one_site_apply_in_order_each_on_the_last() -> None:
    host, x = make("mlp")
    growth = attach(host, (x,))
    f = branch(growth.sites["0"], zero=False)
    g = branch(growth.sites["0"], zero=False)
    quick = Schedule(ramp_steps=0, settle_steps=0)
    with torch.no_grad():
        h = host[0](x)
        growth.germinate("0", f, seed_id="f", step=0, schedule=quick)
        fossilize(growth, "f")
        growth.germinate("0", g, seed_id="g", step=9, schedule=FULL)
        expected = (h + f(h)) + g(h + f(h))
        assert torch.equal(host[0](x), expected)


def fossilize(growth, seed_id: str) -> None:
    from esper.kasmina.seed import Counterfactual

    step = 1
    while growth.seed(seed_id).state.value != "evaluating":
        growth.tick(step)
        step += 1
        assert step < 1000
    growth.seed(seed_id).counterfactual = Counterfactual(
        step=step,
        samples=4,
        loss_with=1.0,
        loss_without=2.0,
        gain=1.0,
        gain_stderr=0.1,
        batch_norm_reestimated=False,
        alpha=1.0,
    )
    growth.command("fossilize", seed_id, step=step)


def test_closed_sites_say_why_and_refuse_with_a_fact() -> None:
    host, x = make("mlp")
    facts = Facts()
    growth = attach(host, (x,), emit=facts)
    growth.germinate("0", branch(growth.sites["0"]), seed_id="a", step=0, schedule=FAST)
    assert growth.free_sites(0)["0"].reason == "occupied"
    assert growth.free_sites(0)["2"].free
    with pytest.raises(IllegalTransition):
        growth.germinate("0", branch(growth.sites["0"]), seed_id="b", step=0)
    growth.command("cull", "a", step=1)
    growth.tick(2)
    growth.tick(3)
    assert growth.free_sites(4)["0"].reason == "embargoed"
    assert growth.free_sites(4)["0"].opens_in == 1
    for step in (4, 5, 6):
        growth.tick(step)
    assert growth.free_sites(6)["0"].free
    growth.germinate(
        "0", branch(growth.sites["0"]), seed_id="c", step=6, schedule=Schedule(ramp_steps=0, settle_steps=0)
    )
    fossilize(growth, "c")
    assert growth.free_sites(20)["0"].reason == "full"
    with pytest.raises(IllegalTransition):
        growth.germinate("0", branch(growth.sites["0"]), seed_id="d", step=20)
    with pytest.raises(IllegalTransition):
        growth.germinate("2", branch(growth.sites["2"]), seed_id="a", step=20)
    assert [f["gate"] for f in facts.of(SeedTransitionRefused)] == ["site_free", "site_free", "lifecycle"]
    with pytest.raises(NotFound):
        growth.germinate("9", branch(growth.sites["2"]), seed_id="z", step=20)


def test_a_branch_that_does_not_fit_is_refused_by_the_gate() -> None:
    host, x = make("cnn")
    facts = Facts()
    growth = attach(host, (x,), emit=facts)
    modules = [nn.Conv2d(6, 6, 3), nn.Conv2d(5, 6, 1), nn.Flatten()]
    before = torch.get_rng_state()
    for module in modules:
        with pytest.raises(IllegalTransition):
            growth.germinate("0", module, seed_id="s", step=0)
    refused = facts.of(SeedTransitionRefused)
    assert [f["gate"] for f in refused] == ["kernel_fits"] * 3
    assert [f["evidence"]["runs"] for f in refused] == [1.0, 0.0, 1.0]
    assert not growth.seeds
    assert torch.equal(torch.get_rng_state(), before)


def test_tuple_outputs_keep_their_other_elements() -> None:
    host, x = make("transformer")
    growth = attach(host, (x,))
    attention, h = host.attention, torch.randn(6, 5, 16)
    with torch.no_grad():
        plain, weights = attention(h, h, h)
        growth.germinate("attention", branch(growth.sites["attention"], zero=False), seed_id="s", step=0, schedule=FULL)
        grown, same = attention(h, h, h)
    assert torch.equal(weights, same)
    assert not torch.allclose(plain, grown)


def test_unknown_sites_block_a_probe() -> None:
    host, _ = make("mlp")
    with pytest.raises(GrowthError, match="not known yet"):
        attach(host).probe()
