from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from growing import HOSTS, Facts, Lora, branch, loss_of, make, reads_of
from torch import nn

from esper.blueprints.kernels.build import build
from esper.blueprints.library import load_library
from esper.errors import GrowthError
from esper.events.decision import Schedule
from esper.events.lifecycle import SeedState
from esper.events.seed import SeedFolded
from esper.kasmina import Growth, attach
from esper.kasmina.fold import detach

FULL = Schedule(ramp_steps=0)


def graft(growth: Growth, path: str, module: nn.Module, seed_id: str, reads: str = "output") -> None:
    """Graft a branch and take it to the end of its life as a kept one."""
    seed = growth.germinate(path, module, seed_id=seed_id, step=0, schedule=FULL, reads=reads)
    seed.state = SeedState.FOSSILIZED


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", HOSTS)
def test_the_detached_host_computes_what_the_grown_host_did(name: str, dtype: torch.dtype) -> None:
    host, x = make(name, dtype)
    facts = Facts()
    keys, modules = list(host.state_dict()), [type(m) for m in host.modules()]
    growth = attach(host, (x,), emit=facts)
    for path, site in growth.sites.items():
        torch.manual_seed(1)
        graft(growth, path, branch(site, zero=False, dtype=dtype), path, reads_of(site))
    host.eval()
    with torch.no_grad():
        before = host(x)
    plain = detach(growth, step=5)
    assert plain is host
    with torch.no_grad():
        after = plain(x)
    assert (after - before).abs().max() <= (1e-5 if dtype is torch.float32 else 1e-12) * before.abs().max()
    told = facts.of(SeedFolded)
    assert sorted(f["seed_id"] for f in told) == sorted(growth.sites)
    assert all(f["folded_into"] == (f["site"] if "+" in f["site"] else None) and f["step"] == 5 for f in told)
    grown_keys = list(plain.state_dict())
    added = {"2.bias"} if name == "mlp" else set()  # new units bring a bias to a layer that had none
    assert [key for key in grown_keys if "growth_" not in key and key not in added] == keys
    assert len([type(m) for m in plain.modules()]) > len(modules)
    loss_of(plain.train(), x).backward()
    assert all(p.grad is not None for n, p in plain.named_parameters() if "growth_" in n and "body" not in n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_low_rank_growth_folds_into_the_weight_and_leaves_no_module(dtype: torch.dtype) -> None:
    host, x = make("mlp", dtype)
    facts = Facts()
    growth = attach(host, (x,), emit=facts)
    library = load_library()
    module = build(library["lora"], growth.sites["2"].signature, seed=3)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    graft(growth, "2", module, "s", reads="input")
    keys, count = list(host.state_dict()), sum(p.numel() for p in host.parameters())
    with torch.no_grad():
        before = host(x)
    plain = detach(growth, step=5)
    assert list(plain.state_dict()) == keys
    assert sum(p.numel() for p in plain.parameters()) == count
    assert not any(m._forward_hooks for m in plain.modules())
    (told,) = facts.of(SeedFolded)
    assert told["folded_into"] == "2"
    assert told["max_difference"] <= (1e-5 if dtype is torch.float32 else 1e-12) * before.abs().max().item()
    assert torch.allclose(plain(x), before, rtol=1e-5, atol=1e-6)


def test_every_residual_blueprint_of_the_library_survives_detach() -> None:
    from esper.blueprints.verify import fits

    tried = set()
    for name in HOSTS:
        for blueprint in load_library().values():
            host, x = make(name)
            growth = attach(host, (x,))
            for path, site in growth.sites.items():
                if blueprint.kind == "residual" and fits(blueprint, site.signature) is None:
                    module = build(blueprint, site.signature, seed=1)
                    for parameter in module.parameters():
                        nn.init.normal_(parameter, std=0.3)
                    graft(growth, path, module, path)
                    tried.add(blueprint.id)
            host.eval()
            with torch.no_grad():
                before = host(x)
                assert torch.allclose(detach(growth, step=1)(x), before, rtol=1e-5, atol=1e-6)
    assert {"affine", "res_mlp", "pw_bottleneck", "conv_bottleneck"} <= tried


@pytest.mark.parametrize("order", ["lora_first", "residual_first"])
def test_a_low_rank_seed_folds_only_where_no_branch_before_it_reads_the_output(order: str) -> None:
    host, x = make("mlp", torch.float64)
    facts = Facts()
    growth = attach(host, (x,), emit=facts)
    lora, residual = Lora(5, 8).double(), branch(growth.sites["0"], zero=False, dtype=torch.float64)
    if order == "lora_first":
        graft(growth, "0", lora, "lora", reads="input")
        graft(growth, "0", residual, "residual")
    else:
        graft(growth, "0", residual, "residual")
        graft(growth, "0", lora, "lora", reads="input")
    with torch.no_grad():
        before = host(x)
        plain = detach(growth, step=1)
        assert torch.allclose(plain(x), before, rtol=1e-12)
    into = {f["seed_id"]: f["folded_into"] for f in facts.of(SeedFolded)}
    assert into == {"lora": "0" if order == "lora_first" else None, "residual": None}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(torch.relu(self.first(x))))


@pytest.mark.parametrize("case", ["tied", "not_linear"])
def test_a_low_rank_seed_stays_a_branch_where_folding_would_change_something_else(case: str) -> None:
    torch.manual_seed(0)
    host, x = (Tied() if case == "tied" else make("mlp")[0]), torch.randn(16, 4 if case == "tied" else 5)
    facts = Facts()
    growth = attach(host, (x,), emit=facts)
    site = next(iter(growth.sites))
    given, out = (4, 4) if case == "tied" else (5, 8)
    module = Lora(given, out) if case == "tied" else nn.Sequential(nn.Linear(given, out), nn.Tanh())
    graft(growth, site, module, "s", reads="input")
    with torch.no_grad():
        before = host(x)
        assert torch.allclose(detach(growth, step=1)(x), before, atol=1e-6)
    assert facts.of(SeedFolded)[0]["folded_into"] is None


def test_seeds_that_are_not_fossilised_leave_no_trace() -> None:
    host, x = make("transformer")
    plain = copy.deepcopy(host).eval()
    growth = attach(host, (x,))
    for path, site in growth.sites.items():
        growth.germinate(path, branch(site, zero=False), seed_id=path, step=0, schedule=FULL)
    detached = detach(growth, step=1)
    assert list(detached.state_dict()) == list(plain.state_dict())
    assert detached.body.use_nested_tensor is True
    with torch.no_grad():
        assert torch.equal(detached.eval()(x), plain(x))


def test_a_second_detach_and_later_growth_are_errors() -> None:
    host, x = make("mlp")
    growth = attach(host, (x,))
    detach(growth, step=1)
    for attempt in (
        lambda: detach(growth, step=2),
        lambda: growth.tick(2),
        lambda: growth.germinate("0", branch(growth.sites["0"]), seed_id="s", step=2),
    ):
        with pytest.raises(GrowthError, match="detached"):
            attempt()


def test_fold_without_a_probe_batch_is_refused_and_the_host_goes_on() -> None:
    host, x = make("mlp")
    growth = attach(host)
    host(x)
    graft(growth, "0", branch(growth.sites["0"], zero=False), "s")
    growth.example_inputs = None  # given back, to free its memory
    with pytest.raises(GrowthError, match="probe batch"):
        detach(growth, step=1)
    assert growth.attached()
    detach(growth, (x,), step=1)


def test_a_fold_that_does_not_compute_the_same_is_undone() -> None:
    host, x = make("mlp")
    growth = attach(host, (x,))
    graft(growth, "0", branch(growth.sites["0"], zero=False), "residual")

    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(8, 8)
            self.calls = 0

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.line(h) * self.calls

    graft(growth, "2", Moody(), "moody")
    keys, weight = list(host.state_dict()), host[0].weight.clone()
    with pytest.raises(GrowthError, match="differs"):
        detach(growth, step=1)
    assert list(host.state_dict()) == keys
    assert torch.equal(host[0].weight, weight)
    assert len(growth.attached()) == 2
    assert not growth.seeds["residual"].muted


def test_a_failed_fossil_is_left_out() -> None:
    host, x = make("mlp")
    plain = copy.deepcopy(host)
    growth = attach(host, (x,))
    graft(growth, "0", branch(growth.sites["0"], zero=False), "s")
    with torch.no_grad():
        growth.seeds["s"].module[0].weight.fill_(float("nan"))
        host(x)
        assert torch.equal(detach(growth, step=1)(x), plain(x))


def test_a_copy_of_the_detached_host_trains_its_own_growth() -> None:
    host, x = make("mlp")
    growth = attach(host, (x,))
    graft(growth, "0", branch(growth.sites["0"], zero=False), "s")
    plain = detach(growth, step=1)
    other = copy.deepcopy(plain)
    with torch.no_grad():
        kept = plain(x)
        other[0].growth_0[2].weight.zero_()
        other[0].growth_0[2].bias.zero_()
        assert torch.equal(plain(x), kept)
        assert not torch.allclose(other(x), kept)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_the_saved_host_runs_where_esper_is_not_installed(name: str, tmp_path: Path) -> None:
    host, x = make(name)
    growth = attach(host, (x,))
    library = load_library()
    for path, blueprint in (("0", "res_mlp"), ("2", "lora")) if name == "mlp" else (("0", "conv_bottleneck"),):
        module = build(library[blueprint], growth.sites[path].signature, seed=2)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
        graft(growth, path, module, path, reads="input" if blueprint == "lora" else "output")
    plain = detach(growth, step=1).eval()
    torch.save((plain, x, plain(x).detach()), tmp_path / "model.pt")
    code = (
        "import sys; sys.modules['esper'] = None\n"
        "import torch\n"
        "model, x, expected = torch.load(sys.argv[1], weights_only=False)\n"
        "assert torch.allclose(model(x), expected, atol=1e-6)\n"
        "grown = [p for n, p in model.named_parameters() if 'growth_' in n]\n"
        "with torch.no_grad():\n"
        "    [p.mul_(2.0) for p in grown]\n"
        "assert not torch.allclose(model(x), expected, atol=1e-3), 'the hook must use the parameters of the model'\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.pt")], check=True, timeout=120, cwd=tmp_path)
