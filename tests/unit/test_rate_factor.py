"""How fast a seed learns next to its host: expected from the graph, and kept by its group."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import nn

from esper.blueprints.cost import ADAM_RATE, FIRST_STEP_FRAC, LEAST_FACTOR, rate_factor
from esper.blueprints.ir import SiteSignature
from esper.blueprints.kernels.build import build
from esper.blueprints.kernels.crucible import characterize
from esper.blueprints.library import load_library
from esper.blueprints.moments import KNOWN, first_step
from esper.blueprints.ops import OPS
from esper.blueprints.verify import fits, verify
from esper.tolaria.optim import GrowingOptimizer, make_optimizer
from esper.tolaria.schedule import ScheduleSettings

LIBRARY = load_library()
#: What was in the library before there were factors.
FIRST = [
    "affine",
    "conv_bottleneck",
    "conv_bottleneck_1d",
    "dw_sep",
    "dw_sep_1d",
    "lora",
    "noop",
    "pw_bottleneck",
    "pw_bottleneck_1d",
    "res_mlp",
    "se",
    "token_conv",
]
LAYOUTS = {"NC": ("linear", ()), "NTC": ("linear", (6,)), "NCL": ("conv1d", (9,)), "NCHW": ("conv2d", (5, 7))}


def sites(channels: int) -> list[SiteSignature]:
    return [
        SiteSignature(kind=kind, rank=rank, channels=channels, in_channels=channels, positions=size, causal=False)
        for rank, (kind, size) in LAYOUTS.items()
    ]


def placed(names: list[str], channels: int) -> list[tuple[str, SiteSignature]]:
    return [(name, site) for name in names for site in sites(channels) if fits(LIBRARY[name], site) is None]


def test_every_operator_has_its_rule() -> None:
    assert set(OPS) == KNOWN


@pytest.mark.parametrize("channels", [4, 8, 16, 32, 64, 128])
def test_at_small_sites_the_first_library_learns_as_fast_as_the_host(channels: int) -> None:
    """So the numbers of runs recorded before do not change."""
    factors = {(name, site.rank): rate_factor(LIBRARY[name], site) for name, site in placed(FIRST, channels)}
    assert len(factors) > 15
    assert set(factors.values()) == {1.0}


@pytest.mark.parametrize("name", ["res_mlp", "lora"])
def test_the_factor_falls_with_the_width_and_lets_wide_sites_pass(name: str) -> None:
    site = sites(16)[0]
    factors = []
    for channels in (128, 512, 1024, 2048):
        wide = msgspec.structs.replace(site, channels=channels, in_channels=channels)
        factors.append(rate_factor(LIBRARY[name], wide))
    assert factors == sorted(factors, reverse=True)
    assert (factors[0], factors[-1] < 0.5) == (1.0, True)
    wide = msgspec.structs.replace(site, channels=1024, in_channels=1024)
    measured = characterize(build(LIBRARY[name], wide, seed=7), LIBRARY[name], wide)
    assert measured.failed == []
    # Without the factor the same step would have been over the limit.
    assert measured.numbers["jump_adam"] / measured.numbers["rate_factor"] > 0.05


@pytest.mark.parametrize("channels", [16, 128])
def test_the_expected_first_step_is_near_the_measured_one(channels: int) -> None:
    for name, site in placed([name for name in FIRST if name != "noop"], channels):
        blueprint = LIBRARY[name]
        measured = characterize(build(blueprint, site, seed=7), blueprint, site)
        expected = ADAM_RATE * first_step(verify(blueprint, site), site).adam
        found = measured.numbers["jump_adam"] / measured.numbers["rate_factor"]
        assert 0.4 < found / expected < 1.6, (name, site.rank, found, expected)


def test_the_factor_is_a_power_of_two_no_lower_than_the_least() -> None:
    site = SiteSignature(kind="block", rank="NTC", channels=2048, in_channels=None, positions=(4,), causal=False)
    factor = rate_factor(LIBRARY["token_conv"], site)
    assert factor in [2.0**-power for power in range(9)]
    assert LEAST_FACTOR <= factor < 1
    assert ADAM_RATE * first_step(verify(LIBRARY["token_conv"], site), site).adam * factor <= FIRST_STEP_FRAC


def grown(factor: float) -> tuple[nn.Linear, GrowingOptimizer]:
    torch.manual_seed(0)
    host, seed = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = GrowingOptimizer(make_optimizer("adam", host.parameters(), 0.1), ScheduleSettings(), 100)
    optimizer.add("seed-1", list(seed.parameters()), 0, rate_factor=factor)
    return seed, optimizer


def test_a_group_learns_at_its_share_of_the_hosts_rate_through_warm_up_and_cool_down() -> None:
    (_, whole), (_, quarter) = grown(1.0), grown(0.25)
    for step in (1, 50, 75, 99):
        assert whole.set_rates(step) == quarter.set_rates(step)
        rates = [optimizer.optimizer.param_groups[1]["lr"] for optimizer in (whole, quarter)]
        assert rates[1] == rates[0] * 0.25 > 0


def test_a_checkpoint_keeps_the_share_and_one_of_1_leaves_no_trace_in_it() -> None:
    seed, optimizer = grown(0.25)
    meta, tensors = optimizer.capture()
    _, other = grown(1.0)
    other.restore(meta, tensors, {"seed-1": list(seed.parameters())})
    other.set_rates(100)
    optimizer.set_rates(100)
    assert other.optimizer.param_groups[1]["lr"] == optimizer.optimizer.param_groups[1]["lr"]
    _, plain = grown(1.0)
    settings = plain.capture()[0]["groups"][1]["settings"]
    assert settings["esper_base_lr"] == plain.base_lr
    assert set(settings) - set(plain.capture()[0]["groups"][0]["settings"]) == {"esper_seed", "esper_started_at"}
