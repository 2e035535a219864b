from __future__ import annotations

import math

import pytest
import torch
from growing import Facts, branch, make
from torch import nn

from esper.errors import GrowthError
from esper.events.decision import Schedule
from esper.events.seed import CounterfactualMeasured
from esper.kasmina import attach
from esper.kasmina.counterfactual import leave_one_out, reestimate_batch_norm

FULL = Schedule(ramp_steps=0)


def held_out(x: torch.Tensor):
    target = torch.arange(len(x)) % 3

    def evaluate(model: nn.Module) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(x), target, reduction="none")

    return evaluate


def test_leave_one_out_is_the_paired_difference_of_the_losses() -> None:
    host, x = make("mlp", torch.float64)
    facts = Facts()
    growth = attach(host, (x,), emit=facts)
    evaluate = held_out(x)
    without = evaluate(host).detach()
    f = branch(growth.sites["0"], zero=False, dtype=torch.float64)
    seed = growth.germinate("0", f, seed_id="s", step=0, schedule=FULL)
    with_seed = evaluate(host).detach()
    measured = leave_one_out(growth, "s", evaluate, step=9)
    difference = without - with_seed
    assert measured.gain == pytest.approx(difference.mean().item(), rel=1e-12)
    assert measured.gain_stderr == pytest.approx(difference.std().item() / math.sqrt(16), rel=1e-12)
    assert (measured.loss_with, measured.loss_without) == (with_seed.mean().item(), without.mean().item())
    assert (measured.samples, measured.step, measured.batch_norm_reestimated) == (16, 9, False)
    assert seed.counterfactual is measured
    assert facts.of(CounterfactualMeasured)[0]["gain"] == measured.gain
    assert torch.equal(evaluate(host), with_seed)


def test_the_host_is_left_as_it_was_even_when_evaluate_raises() -> None:
    host, x = make("cnn")
    growth = attach(host, (x,))
    seed = growth.germinate("0", branch(growth.sites["0"], zero=False), seed_id="s", step=0, schedule=FULL)
    host.train()
    buffers = [b.clone() for b in host.buffers()]
    state = torch.get_rng_state()

    def breaks(model: nn.Module) -> torch.Tensor:
        torch.rand(3)
        model.train()
        model(x)
        raise ValueError("no data")

    with pytest.raises(ValueError, match="no data"):
        leave_one_out(growth, seed, breaks, step=1)
    assert host.training
    assert not seed.muted
    assert all(torch.equal(a, b) for a, b in zip(host.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_batch_norm_statistics_are_estimated_again_without_the_seed_and_put_back() -> None:
    host, x = make("cnn")
    growth = attach(host, (x,))
    growth.germinate("0", branch(growth.sites["0"], zero=False), seed_id="s", step=0, schedule=FULL)
    host.train()
    for _ in range(60):
        host(x)
    buffers = [b.clone() for b in host.buffers()]
    seen: list[torch.Tensor] = []

    def evaluate(model: nn.Module) -> torch.Tensor:
        seen.append(model[1].running_mean.clone())
        return held_out(x)(model)

    measured = leave_one_out(
        growth, "s", evaluate, step=1, reestimate=lambda model: reestimate_batch_norm(model, [(x,)])
    )
    assert measured.batch_norm_reestimated
    assert torch.equal(seen[0], buffers[0])
    growth.seeds["s"].muted = True
    fresh = host[0](x).mean((0, 2, 3))
    assert torch.allclose(seen[1], fresh, atol=1e-6)
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(host.buffers(), buffers, strict=True))


def test_reestimation_is_the_plain_mean_over_batches_and_keeps_momentum() -> None:
    host, x = make("cnn")
    host.train()
    batches = [(x[:4],), (x[4:],)]
    reestimate_batch_norm(host, batches)
    expected = torch.stack([host[0](b).mean((0, 2, 3)) for (b,) in batches]).mean(0)
    assert torch.allclose(host[1].running_mean, expected, atol=1e-6)
    assert host[1].momentum == 0.1
    assert host.training
    assert host[1].training


def test_losses_must_be_one_per_sample_and_the_seed_attached() -> None:
    host, x = make("mlp")
    growth = attach(host, (x,))
    seed = growth.germinate("0", branch(growth.sites["0"]), seed_id="s", step=0, schedule=FULL)
    with pytest.raises(GrowthError, match="shape"):
        leave_one_out(growth, seed, lambda model: model(x).mean(), step=1)
    growth.roll_back(seed, step=1)
    with pytest.raises(GrowthError, match="not in the forward pass"):
        leave_one_out(growth, seed, held_out(x), step=1)


def test_a_single_sample_has_no_standard_error() -> None:
    host, x = make("mlp")
    growth = attach(host, (x,))
    seed = growth.germinate("0", branch(growth.sites["0"]), seed_id="s", step=0, schedule=FULL)
    assert math.isnan(leave_one_out(growth, seed, held_out(x[:1]), step=1).gain_stderr)
