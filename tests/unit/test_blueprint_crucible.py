"""The crucible: it passes what is sound, and each measured check fails on a module made to break it.

That the structural checks can fail is shown over random graphs in ``tests/property/test_blueprint_graphs.py``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
import torch
from broken_graphs import with_layer
from torch import nn

from esper.blueprints.claims import with_claims
from esper.blueprints.ir import Blueprint, SiteSignature, parse
from esper.blueprints.kernels.build import build
from esper.blueprints.kernels.crucible import characterize
from esper.blueprints.kernels.timing import LATENCY_RUNS, baseline_of, peak_memory_bytes
from esper.blueprints.library import load_library
from esper.blueprints.verify import fits

LIBRARY = load_library()
SITES = [
    SiteSignature(kind="linear", rank="NC", channels=24, in_channels=12, positions=(), causal=False),
    SiteSignature(kind="linear", rank="NTC", channels=16, in_channels=12, positions=(6,), causal=True),
    SiteSignature(kind="conv1d", rank="NCL", channels=16, in_channels=4, positions=(9,), causal=False),
    SiteSignature(kind="block", rank="NCHW", channels=16, in_channels=None, positions=(5, 7), causal=False),
    SiteSignature(kind="pair", rank="NC", channels=24, in_channels=12, positions=(), causal=False),
]
CONV = SITES[3]
PAIRS = [(name, site) for name, bp in LIBRARY.items() for site in SITES if fits(bp, site) is None]
LEARNING = {"tail_gradient", "body_gradient", "jump_adam", "jump_sgd"}
FOLDING = {"lowrank_weight", "width"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def residual(*nodes: str, out: str, rank: str = "NC") -> Blueprint:
    """Return a blueprint of nodes in JSON, claims left at zero."""
    document = {
        "ir": 1,
        "id": "probe",
        "kind": "residual",
        "site": {"rank": rank, "causal": False},
        "symbols": {"C": "site.channels"},
        "nodes": [json.loads(node) for node in nodes],
        "out": out,
        "merge": {"op": "add", "gate": "alpha"},
        "claims": {"preserves": "exact@alpha0,exact@birth", "params": 0, "flops": 0},
    }
    return with_claims(parse(json.dumps(document)))


@pytest.mark.parametrize(("name", "site"), PAIRS, ids=[f"{name}-{site.kind}-{site.rank}" for name, site in PAIRS])
def test_every_kernel_of_the_library_passes_every_check_that_applies(name: str, site: SiteSignature) -> None:
    blueprint = LIBRARY[name]
    measured = characterize(build(blueprint, site, seed=11), blueprint, site)
    assert measured.failed == []
    assert not set(measured.checks) & set(measured.not_applicable)
    assert {"birth_identity", "shape", "parameters", "rebuild", "finite_bfloat16", "latency"} <= set(measured.checks)
    if name == "noop":
        assert set(measured.not_applicable) >= LEARNING
    else:
        assert set(measured.checks) >= LEARNING - {"body_gradient"}
        assert measured.numbers["tail_gradient"] > 0
    assert ("causality" in measured.checks) == (blueprint.site.causal and site.rank in {"NTC", "NCL"})
    assert ("fold" in measured.checks) == (blueprint.kind in FOLDING)
    if blueprint.kind in FOLDING:
        assert measured.numbers["fold_difference_float32"] < 1e-5
        assert measured.numbers["fold_difference_float64"] < 1e-12


def test_the_raw_numbers_are_json_and_hold_everything_that_was_measured() -> None:
    measured = characterize(build(LIBRARY["affine"], CONV, seed=0), LIBRARY["affine"], CONV)
    raw = json.loads(measured.raw())
    assert raw["checks"] == measured.checks
    assert raw["numbers"] == measured.numbers
    assert len(raw["latencies_s"]) == len(raw["baseline_latencies_s"]) == LATENCY_RUNS
    assert 0 < measured.latency_p50_s <= measured.latency_p99_s
    assert measured.latency_ratio == pytest.approx(measured.latency_p50_s / measured.baseline_p50_s)
    assert raw["limits"]["jump_adam"] == 0.05
    assert raw["environment"]["threads"] == 1


def test_measuring_twice_gives_the_same_numbers_and_touches_neither_module_nor_global_generator() -> None:
    blueprint = LIBRARY["conv_bottleneck"]
    module = build(blueprint, CONV, seed=3)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = characterize(module, blueprint, CONV)
    second = characterize(module, blueprint, CONV)
    assert (first.checks, first.numbers) == (second.checks, second.numbers)
    assert first.peak_memory_bytes == second.peak_memory_bytes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert all(weight.grad is None for weight in module.parameters())
    assert module.training


def test_nothing_that_is_timed_stands_among_the_numbers() -> None:
    """The numbers of a fact are its identity: they have to be the same when it is said again."""
    measured = characterize(build(LIBRARY["affine"], CONV, seed=0), LIBRARY["affine"], CONV)
    assert not [name for name in measured.numbers if "latency" in name or "memory" in name or name.endswith("_s")]


def test_latencies_come_from_the_timer_that_is_given_and_are_taken_in_turn_with_the_baseline() -> None:
    ticks = iter(range(1000))
    measured = characterize(
        build(LIBRARY["noop"], CONV, seed=0), LIBRARY["noop"], CONV, timer=lambda: float(next(ticks)) / 1000
    )
    assert measured.latencies_s == pytest.approx([1e-3] * len(measured.latencies_s))
    assert measured.baseline_latencies_s == pytest.approx([1e-3] * len(measured.latencies_s))
    assert measured.latency_ratio == pytest.approx(1.0)


def test_a_kernel_that_is_slow_fails_and_is_timed_a_few_times_only() -> None:
    blueprint, site = LIBRARY["noop"], SITES[0]
    assert characterize(build(blueprint, site, seed=0), blueprint, site).failed == []
    measured = characterize(with_layer(build(blueprint, site, seed=0), Sleepy()), blueprint, site)
    assert 5 <= len(measured.latencies_s) < LATENCY_RUNS
    assert measured.failed == ["latency"]


class Overflowing(nn.Module):
    """A layer whose output is beyond what a float holds for inputs of usual size."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h * 3e38 * 3e38


class Sleepy(nn.Module):
    """A layer that takes its time."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        time.sleep(0.03)
        return h


#: Check -> a layer behind a sound branch that has to make it fail.
BREAKERS: dict[str, Callable[[], nn.Module]] = {
    "finite_float32": Overflowing,
    "finite_bfloat16": Overflowing,
    "jump_sgd": lambda: nn.GroupNorm(1, 16),
    "jump_adam": lambda: nn.GroupNorm(1, 16),
    "tail_gradient": nn.ReLU,
    "body_gradient": nn.ReLU,
}


@pytest.mark.parametrize("check", sorted(BREAKERS))
def test_a_check_fails_on_a_module_made_to_break_it(check: str) -> None:
    blueprint = LIBRARY["pw_bottleneck"]
    module = build(blueprint, CONV, seed=4)
    assert characterize(module, blueprint, CONV).checks[check]
    assert not characterize(with_layer(module, BREAKERS[check]()), blueprint, CONV).checks[check]


def test_the_published_hazard_of_a_norm_behind_a_zero_layer_is_measured_as_a_jump() -> None:
    blueprint = LIBRARY["pw_bottleneck"]
    module = build(blueprint, CONV, seed=4)
    measured = characterize(with_layer(module, nn.GroupNorm(1, 16)), blueprint, CONV)
    assert measured.checks["birth_identity"]
    assert measured.numbers["jump_sgd"] > 0.2


LINEAR = '{"id": "%s", "op": "linear", "in": ["%s"], "attr": {"out": "C"}%s}'
TAIL = LINEAR % ("t", "%s", ', "init": "zeros", "role": "tail"')


def test_units_that_no_input_wakes_fail_the_check_for_dead_units() -> None:
    """relu(-softplus(x)) is zero for every x, and the verifier has no way to see it."""
    dead = residual(
        '{"id": "p", "op": "softplus", "in": ["x"]}',
        '{"id": "m", "op": "scale_const", "in": ["p"], "attr": {"value": -1.0}}',
        '{"id": "r", "op": "relu", "in": ["m"]}',
        '{"id": "s", "op": "add", "in": ["r", "p"]}',
        TAIL % "s",
        out="t",
    )
    measured = characterize(build(dead, SITES[0], seed=1), dead, SITES[0])
    assert measured.failed == ["dead_units"]
    assert measured.numbers["dead_units"] == 1.0
    alive = residual('{"id": "r", "op": "relu", "in": ["x"]}', TAIL % "r", out="t")
    assert characterize(build(alive, SITES[0], seed=1), alive, SITES[0]).numbers["dead_units"] == 0.0


def test_units_behind_a_tail_are_zero_at_birth_and_not_dead() -> None:
    quiet = residual(
        LINEAR % ("w", "x", ', "init": "kaiming"'),
        TAIL % "w",
        '{"id": "b", "op": "bias", "in": ["t"], "init": "zeros"}',
        '{"id": "a", "op": "gelu", "in": ["b"]}',
        out="a",
    )
    measured = characterize(build(quiet, SITES[0], seed=1), quiet, SITES[0])
    assert measured.failed == []
    assert "dead_units" in measured.not_applicable


def test_the_baseline_is_a_module_of_the_sites_kind_and_size() -> None:
    names = {}
    for site in SITES:
        names[site.kind, site.rank], call = baseline_of(site)
        sizes = (2, *site.positions, site.in_channels or 16) if site.rank in {"NC", "NTC"} else None
        x = torch.ones(sizes or (2, site.in_channels or 16, *site.positions))
        assert call(x).numel() == 2 * site.channels * max(1, torch.Size(site.positions).numel())
    assert names == {
        ("linear", "NC"): "Linear",
        ("linear", "NTC"): "Linear",
        ("conv1d", "NCL"): "Conv1d of width 3",
        ("block", "NCHW"): "two of Conv2d of width 3 with GELU",
        ("pair", "NC"): "two of Linear with GELU",
    }


def test_peak_memory_counts_the_tensors_of_a_forward_and_backward_pass() -> None:
    """One linear layer keeps its output, the output's gradient and its own two gradients."""
    single = residual(TAIL % "x", out="t")
    site = msgspec.structs.replace(SITES[0], channels=512, in_channels=512)
    module = build(single, site, seed=1)
    found = peak_memory_bytes(module, torch.ones(4, 512))
    weight = 512 * 512 * 4
    assert weight <= found <= 2 * weight + 10 * 4 * 512 * 4
    assert peak_memory_bytes(build(LIBRARY["noop"], site, seed=1), torch.ones(4, 512)) == 4 * 512 * 4


def test_a_number_that_is_not_finite_fails_its_check_and_still_makes_json() -> None:
    blueprint = LIBRARY["pw_bottleneck"]
    measured = characterize(with_layer(build(blueprint, CONV, seed=4), Overflowing()), blueprint, CONV)
    assert "finite_float32" in measured.failed
    json.loads(measured.raw())
