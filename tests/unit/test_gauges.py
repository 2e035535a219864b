from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from growing import HOSTS, Facts, branch, grads, loss_of, make
from torch import nn

from esper.events.decision import Schedule
from esper.events.seed import SeedHealthMeasured
from esper.kasmina import attach
from esper.kasmina.gauges import PROBE_FEATURES, RIDGE, random_probe


def by_hand(path: str, h: np.ndarray, g: np.ndarray, positions: int, wgrad: float) -> dict[str, float]:
    """Compute every gauge with NumPy from the definitions, h and g being [m, C]."""
    rows, channels = h.shape
    phi = np.maximum(h @ random_probe(path, channels).numpy().T, 0.0)
    a = np.concatenate([h, np.ones((rows, 1))], 1)
    gram = a.T @ a / rows
    b = np.linalg.solve(gram + RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)), a.T @ phi / rows)
    perp = phi - a @ b
    c = g.T @ perp / rows
    s = perp.T @ perp / rows
    s_inverse = np.linalg.inv(s + RIDGE * np.trace(s) / len(s) * np.eye(len(s)))
    zr = positions * np.trace(c @ s_inverse @ c.T)
    eigenvalues = np.linalg.eigvalsh(np.cov(h.T)).clip(0)
    share = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    activity = np.abs(h).mean(0)
    varying = h[:, h.std(0) > 0]
    correlation = np.abs(np.corrcoef(varying.T))
    units = varying.shape[1]
    return {
        "gradient_norm": positions * (g**2).sum(1).mean(),
        "zr": zr,
        "zr_over_wgrad": zr / wgrad,
        "effective_rank": math.exp(-(share * np.log(share)).sum()),
        "dormant_frac": (activity <= 0.025 * activity.mean()).mean(),
        "signal_to_noise": (g.mean(0) ** 2).sum() / g.var(0).sum(),
        "activation_variance": h.var(0).mean(),
        "dead_frac": (h.max(0) <= 0).mean(),
        "mean_correlation": (correlation.sum() - units) / (units * (units - 1)),
    }


def per_sample_gradient(host: nn.Module, module: nn.Module, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray, float]:
    """Return rows of h and of each sample's own loss gradient, found without the probe, one sample at a time."""
    kept: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _m, _a, out: kept.append(out))
    target = torch.arange(len(x)) % 3
    out = host(x)
    losses = torch.nn.functional.cross_entropy(out, target, reduction="none")
    (g,) = torch.autograd.grad(losses.sum(), kept[0], retain_graph=True)
    weights = torch.autograd.grad(losses.mean(), list(module.parameters()))
    handle.remove()
    wgrad = sum(w.square().sum().item() for w in weights)

    def rows(t: torch.Tensor) -> np.ndarray:
        t = t.detach() if t.dim() < 4 else t.detach().permute(0, 2, 3, 1)
        return t.reshape(-1, t.shape[-1]).numpy()

    return rows(kept[0]), rows(g), wgrad


@pytest.mark.parametrize(
    ("name", "path", "positions"), [("mlp", "0", 1), ("cnn", "3", 16), ("transformer", "embed", 5)]
)
def test_gauges_equal_a_direct_numpy_computation(name: str, path: str, positions: int) -> None:
    host, x = make(name, torch.float64)
    host.eval()
    x = torch.randn(64, *x.shape[1:], dtype=torch.float64)
    growth = attach(host, (x,))
    with growth.probe(rows=10_000) as probe:
        loss_of(host, x).backward()
    got = probe.measure(1)[path]
    h, g, wgrad = per_sample_gradient(host, host.get_submodule(path), x)
    expected = by_hand(path, h, g, positions, wgrad)
    for key, value in expected.items():
        assert getattr(got, key) == pytest.approx(value, rel=1e-6, abs=1e-12), key
    assert 0.0 < got.zr <= got.gradient_norm * (1 + 1e-9)


def test_the_subsample_is_the_same_each_time_and_uses_no_random_numbers() -> None:
    host, x = make("cnn")
    growth = attach(host.eval(), (x,))
    results = []
    for _ in range(2):
        host.zero_grad()
        before = torch.get_rng_state()
        with growth.probe(rows=100) as probe:
            loss_of(host, x).backward()
        results.append(probe.measure(1))
        assert torch.equal(torch.get_rng_state(), before)
    assert results[0] == results[1]


def test_the_subsample_estimates_the_whole() -> None:
    host, _ = make("cnn", torch.float64)
    x = torch.randn(256, 1, 8, 8, dtype=torch.float64)
    growth = attach(host.eval(), (x,))
    got = []
    for rows in (512, 100_000):
        host.zero_grad()
        with growth.probe(rows=rows) as probe:
            loss_of(host, x).backward()
        got.append(probe.measure(1)["0"])
    # zr of m rows lies above that of all rows by what 32 features fit by chance: about 32 / m of the gradient norm.
    assert got[1].zr <= got[0].zr <= got[1].zr + 2 * PROBE_FEATURES / 512 * got[0].gradient_norm
    for key in ("gradient_norm", "effective_rank", "activation_variance", "mean_correlation"):
        assert getattr(got[0], key) == pytest.approx(getattr(got[1], key), rel=0.35), key


@pytest.mark.parametrize("name", HOSTS)
def test_a_probe_changes_neither_loss_nor_gradients(name: str) -> None:
    plain, x = make(name)
    host = copy.deepcopy(plain)
    growth = attach(host, (x,))
    torch.manual_seed(2)
    loss_of(plain, x).backward()
    torch.manual_seed(2)
    with growth.probe():
        loss_of(host, x).backward()
    for key, gradient in grads(plain).items():
        assert torch.equal(grads(host)[key], gradient)
    assert not any(m._forward_hooks for m in host.modules())


def test_health_is_told_for_each_site_in_order_with_its_seeds() -> None:
    host, x = make("mlp")
    facts = Facts()
    growth = attach(host, (x,), emit=facts)
    growth.germinate("2", branch(growth.sites["2"]), seed_id="s", step=0, schedule=Schedule(ramp_steps=4))
    growth.tick(1)
    with growth.probe() as probe:
        loss_of(host, x).backward()
    measured = probe.measure(7)
    told = facts.of(SeedHealthMeasured)
    assert [(f["site"], f["step"], f["depth"], f["seeds_present"], f["alpha"]) for f in told] == [
        ("0", 7, 0, 0, 0.0),
        ("2", 7, 1, 1, 0.25),
        ("0+2", 7, 1, 0, 0.0),
        ("2+4", 7, 2, 0, 0.0),
    ]
    assert told[0]["gradient_norm"] == measured["0"].gradient_norm


def test_what_was_not_measured_is_none() -> None:
    host, x = make("mlp")
    growth = attach(host, (x[:4],))
    with growth.probe() as probe, torch.no_grad():
        host(x)
    assert all(getattr(probe.measure(1)["0"], name) is None for name in ("gradient_norm", "effective_rank", "zr"))
    with growth.probe() as probe:
        host(x)
    only_forward = probe.measure(1)["0"]
    assert only_forward.gradient_norm is None
    assert only_forward.effective_rank is not None
    with growth.probe() as probe:
        loss_of(host, x[:4]).backward()
    few = probe.measure(1)["0"]
    assert few.gradient_norm is not None
    assert few.zr is None, "4 rows cannot tell what a layer of 8 units leaves over"
    host[0].weight.data.fill_(float("nan"))
    with growth.probe() as probe:
        loss_of(host, x).backward()
    broken = probe.measure(1)["0"]
    assert all(getattr(broken, name) is None for name in broken.__struct_fields__ if name != "dead_frac")
    assert broken.dead_frac is None


def test_several_passes_fill_the_rows_one_batch_cannot() -> None:
    host, x = make("mlp", torch.float64)
    x = torch.randn(64, 5, dtype=torch.float64)
    growth = attach(host, (x,))
    with growth.probe() as probe:
        for part in x.split(16):
            target = torch.arange(16) % 3
            torch.nn.functional.cross_entropy(host(part), target).backward()
    whole = copy.deepcopy(host)
    other = attach(whole, (x,))
    with other.probe() as one:
        target = torch.arange(64) % 16 % 3
        torch.nn.functional.cross_entropy(whole(x), target).backward()
    assert probe.measure(1)["0"].zr == pytest.approx(one.measure(1)["0"].zr, rel=1e-9)


def test_dead_and_dormant_units_are_counted() -> None:
    host, x = make("mlp")
    with torch.no_grad():
        host[0].weight[:2] = 0.0
        host[0].bias[:2] = -0.001
    growth = attach(host, (x,))
    with growth.probe() as probe:
        loss_of(host, x).backward()
    gauges = probe.measure(1)["0"]
    assert gauges.dormant_frac == 2 / 8
    assert gauges.dead_frac >= 2 / 8
    assert random_probe("0", 8).shape == (PROBE_FEATURES, 8)
    assert not torch.equal(random_probe("0", 8), random_probe("2", 8))
