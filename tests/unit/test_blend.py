from __future__ import annotations

import json
import math

import msgspec
import pytest
import torch
from growing import FAST, Facts, branch, make

from esper.events.decision import Schedule
from esper.events.seed import AlphaMoved
from esper.kasmina import attach
from esper.kasmina.blend import AlphaRamp, Mode, curve_at


@pytest.mark.parametrize("curve", ["linear", "cosine", "sigmoid"])
def test_ramp_rises_from_zero_and_lands_on_its_target_exactly(curve: str) -> None:
    ramp = AlphaRamp(curve)
    ramp.aim(1.0, 7)
    values = [ramp.tick() for _ in range(7)]
    assert values == sorted(values)
    assert 0.0 < values[0] < values[-2] < 1.0
    assert values[-1] == 1.0
    assert ramp.tick() == 1.0
    assert ramp.mode is Mode.HOLD


def test_curves_have_the_shapes_they_are_named_for() -> None:
    assert curve_at("linear", 0.25) == 0.25
    assert curve_at("cosine", 0.25) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)
    for curve in ("cosine", "sigmoid"):
        assert curve_at(curve, 0.0) == pytest.approx(0.0, abs=1e-15)
        assert curve_at(curve, 0.5) == pytest.approx(0.5)
        assert curve_at(curve, 1.0) == pytest.approx(1.0)
    assert curve_at("sigmoid", 0.1) < curve_at("cosine", 0.1) < 0.1


def test_ramp_turns_round_from_where_it_is() -> None:
    ramp = AlphaRamp()
    ramp.aim(1.0, 4)
    ramp.tick()
    ramp.tick()
    assert ramp.mode is Mode.UP
    ramp.aim(0.0, 2)
    assert ramp.mode is Mode.DOWN
    assert [ramp.tick(), ramp.tick(), ramp.tick()] == [0.25, 0.0, 0.0]


def test_ramp_comes_back_from_plain_data_and_goes_on_the_same() -> None:
    ramp = AlphaRamp("sigmoid")
    ramp.aim(1.0, 9)
    ramp.tick()
    again = AlphaRamp.from_state(json.loads(json.dumps(ramp.state())))
    assert [ramp.tick() for _ in range(9)] == [again.tick() for _ in range(9)]


@pytest.mark.parametrize("wrong", [{"ramp_steps": -1}, {"fade_steps": 1.5}, {"curve": "step"}, {"learning": "ste"}])
def test_schedule_refuses_what_is_no_timetable(wrong: dict) -> None:
    with pytest.raises(msgspec.ValidationError, match=next(iter(wrong))):
        msgspec.convert(wrong, Schedule)


def test_output_is_host_plus_alpha_times_branch_through_the_whole_ramp() -> None:
    host, x = make("mlp", torch.float64)
    growth = attach(host, (x,))
    f = branch(growth.sites["0"], zero=False, dtype=torch.float64)
    with torch.no_grad():
        h = host[0](x)
        growth.germinate("0", f, seed_id="s", step=0, schedule=FAST)
        seen = []
        for step in range(1, 6):
            growth.tick(step)
            seen.append(growth.seeds["s"].alpha.item())
            assert torch.equal(host[0](x), h + growth.seeds["s"].alpha * f(h))
    assert seen == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_alpha_moves_are_told_once_per_move() -> None:
    host, x = make("mlp")
    facts = Facts()
    growth = attach(host, (x,), emit=facts)
    growth.germinate("0", branch(growth.sites["0"]), seed_id="s", step=0, schedule=FAST)
    assert growth.moved_alphas(0) == []
    growth.tick(1)
    growth.tick(2)
    assert growth.moved_alphas(2) == ["s"]
    assert growth.moved_alphas(2) == []
    growth.command("cull", "s", step=2)
    growth.tick(3)
    growth.tick(4)
    assert growth.moved_alphas(4) == ["s"]
    assert [(f["alpha"], f["target"]) for f in facts.of(AlphaMoved)] == [(0.5, 1.0), (0.0, 0.0)]


def test_alpha_does_not_change_the_dtype_of_a_bfloat16_host() -> None:
    host, x = make("mlp", torch.bfloat16)
    growth = attach(host, (x,))
    f = branch(growth.sites["0"], zero=False, dtype=torch.bfloat16)
    growth.germinate("0", f, seed_id="s", step=0, schedule=Schedule(ramp_steps=0))
    assert host(x).dtype is torch.bfloat16
    assert growth.collect_faults(1) == []


def test_autocast_branch_joins_in_the_hosts_dtype() -> None:
    host, x = make("transformer")
    growth = attach(host, (x,))
    f = branch(growth.sites["norm"], zero=False)
    growth.germinate("norm", f, seed_id="s", step=0, schedule=Schedule(ramp_steps=0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        host(x).sum().backward()
    assert growth.collect_faults(1) == []
    assert f[2].weight.grad.dtype is torch.float32
