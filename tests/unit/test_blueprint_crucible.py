"""The crucible: it passes what is sound, and each check fails on a module made to break it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import msgspec
import pytest
import torch
from torch import fx, nn

from esper.blueprints.build import build
from esper.blueprints.crucible import LATENCY_RUNS, characterize
from esper.blueprints.ir import Blueprint, SiteSignature
from esper.blueprints.library import load_library
from esper.blueprints.verify import fits

LIBRARY = load_library()
SITES = [
    SiteSignature(kind="linear", rank="NC", channels=24, in_channels=12, positions=(), causal=False),
    SiteSignature(kind="linear", rank="NTC", channels=16, in_channels=12, positions=(6,), causal=True),
    SiteSignature(kind="conv1d", rank="NCL", channels=16, in_channels=4, positions=(9,), causal=False),
    SiteSignature(kind="block", rank="NCHW", channels=16, in_channels=None, positions=(5, 7), causal=False),
]
CONV = SITES[3]
PAIRS = [(name, site) for name, bp in LIBRARY.items() for site in SITES if fits(bp, site) is None]
LEARNING = {"tail_gradient", "body_gradient", "jump_adam", "jump_sgd"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("name", "site"), PAIRS, ids=[f"{name}-{site.rank}" for name, site in PAIRS])
def test_every_kernel_of_the_library_passes_every_check_that_applies(name: str, site: SiteSignature) -> None:
    blueprint = LIBRARY[name]
    measured = characterize(build(blueprint, site, seed=11), blueprint, site)
    assert measured.failed == []
    assert not set(measured.checks) & set(measured.not_applicable)
    assert {"birth_identity", "shape", "parameters", "rebuild", "finite_bfloat16"} <= set(measured.checks)
    if name == "noop":
        assert set(measured.not_applicable) >= LEARNING
    elif name != "lora":
        assert set(measured.checks) >= LEARNING - {"body_gradient"}
        assert measured.numbers["tail_gradient"] > 0
    assert ("causality" in measured.checks) == (blueprint.site.causal and site.rank in {"NTC", "NCL"})
    assert ("fold" in measured.checks) == (name == "lora")


def test_the_raw_numbers_are_json_and_hold_everything_that_was_measured() -> None:
    measured = characterize(build(LIBRARY["affine"], CONV, seed=0), LIBRARY["affine"], CONV)
    raw = json.loads(measured.raw())
    assert raw["checks"] == measured.checks
    assert raw["numbers"] == measured.numbers
    assert len(raw["latencies_s"]) == LATENCY_RUNS
    assert 0 < measured.latency_p50_s <= measured.latency_p99_s
    assert raw["environment"]["threads"] == 1


def test_measuring_twice_gives_the_same_numbers_and_touches_neither_module_nor_global_generator() -> None:
    blueprint = LIBRARY["conv_bottleneck"]
    module = build(blueprint, CONV, seed=3)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = characterize(module, blueprint, CONV)
    second = characterize(module, blueprint, CONV)
    assert (first.checks, first.numbers) == (second.checks, second.numbers)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert all(weight.grad is None for weight in module.parameters())


def test_latencies_come_from_the_timer_that_is_given() -> None:
    ticks = iter(range(1000))
    measured = characterize(
        build(LIBRARY["noop"], CONV, seed=0), LIBRARY["noop"], CONV, timer=lambda: float(next(ticks))
    )
    assert measured.latencies_s == [1.0] * LATENCY_RUNS


class Shuffled(nn.Module):
    """A layer that depends on a sample's place in the batch."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h * torch.arange(1.0, len(h) + 1).reshape(-1, 1, 1, 1).to(h.dtype)


class ByMode(nn.Module):
    """A layer that behaves differently in training."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h * 2 if self.training else h


class Later(nn.Module):
    """A layer that lets a position see the next one."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return torch.roll(h, -1, dims=-1)


class Overflowing(nn.Module):
    """A layer whose output is beyond what a float holds for inputs of usual size."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h * 3e38 * 3e38


class Offset(nn.Module):
    """A layer that is not zero at birth."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h + 1e-6


def with_layer(blueprint: Blueprint, site: SiteSignature, layer: nn.Module) -> fx.GraphModule:
    """Return a built module with a further layer behind its output, which the verifier would have refused."""
    module = build(blueprint, site, seed=4)
    module.add_module("broken", layer)
    out = next(node for node in module.graph.nodes if node.op == "output")
    with module.graph.inserting_before(out):
        out.args = (module.graph.call_module("broken", (out.args[0],)),)
    module.recompile()
    return module


#: Check -> a layer behind a sound branch that has to make it fail.
BREAKERS: dict[str, Callable[[], nn.Module]] = {
    "birth_identity": Offset,
    "batch_permutation": Shuffled,
    "train_equals_eval": ByMode,
    "finite_float32": Overflowing,
    "jump_sgd": lambda: nn.GroupNorm(1, 16),
    "jump_adam": lambda: nn.GroupNorm(1, 16),
    "tail_gradient": nn.ReLU,
    "body_gradient": nn.ReLU,
    "parameters": lambda: nn.GroupNorm(1, 16),
    "rebuild": lambda: nn.GroupNorm(1, 16),
    "shape": lambda: nn.AvgPool2d(3, stride=1),
}


@pytest.mark.parametrize("check", sorted(BREAKERS))
def test_a_check_fails_on_a_module_made_to_break_it(check: str) -> None:
    blueprint = LIBRARY["pw_bottleneck"]
    broken = with_layer(blueprint, CONV, BREAKERS[check]())
    sound = characterize(build(blueprint, CONV, seed=4), blueprint, CONV)
    assert sound.checks[check]
    assert not characterize(broken, blueprint, CONV).checks[check]


def test_the_published_hazard_of_a_norm_behind_a_zero_layer_is_measured_as_a_jump() -> None:
    blueprint = LIBRARY["pw_bottleneck"]
    measured = characterize(with_layer(blueprint, CONV, nn.GroupNorm(1, 16)), blueprint, CONV)
    assert measured.checks["birth_identity"]
    assert measured.numbers["jump_sgd"] > 0.2


def test_a_branch_that_sees_later_positions_fails_the_causal_check() -> None:
    blueprint = LIBRARY["pw_bottleneck_1d"]
    site = msgspec.structs.replace(SITES[2], causal=True)
    assert characterize(build(blueprint, site, seed=4), blueprint, site).checks["causality"]
    assert not characterize(with_layer(blueprint, site, Later()), blueprint, site).checks["causality"]


def test_a_number_that_is_not_finite_fails_its_check_and_still_makes_json() -> None:
    blueprint = LIBRARY["pw_bottleneck"]
    measured = characterize(with_layer(blueprint, CONV, Overflowing()), blueprint, CONV)
    assert "finite_float32" in measured.failed
    json.loads(measured.raw())
