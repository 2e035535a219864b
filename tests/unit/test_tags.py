"""Tags, risk and confidence: given stored numbers, these judgements."""

from __future__ import annotations

import pytest

from esper.blueprints.forging.measuring import RawMeasurements, read_measurements
from esper.blueprints.forging.population import used_of, values_of
from esper.blueprints.forging.tags import FULL_RUNS, LEAST_COMPARED, TAGS, Numbers, confidence, judge, risk, thresholds
from esper.blueprints.ir import SiteSignature
from esper.errors import ArtifactDamaged

LINEAR = SiteSignature(kind="linear", rank="NTC", channels=16, in_channels=8, positions=(5,), causal=False)


def numbers(
    kernel_id: str,
    *,
    site: str = "linear NC",
    used: dict[str, float] | None = None,
    runs: int = FULL_RUNS,
    **values: float,
) -> Numbers:
    return Numbers(kernel_id=kernel_id, site=site, values=values, used=used or {}, runs=runs)


def test_few_kernels_are_held_against_the_stated_thresholds() -> None:
    bootstrap = TAGS["fast"].bootstrap
    kernels = [numbers(str(n), latency_ratio=bootstrap * 2) for n in range(LEAST_COMPARED - 2)]
    fast = judge(numbers("fast", latency_ratio=bootstrap * 0.99), kernels)
    assert fast.tags == ["fast"]
    assert fast.thresholds == {"fast": bootstrap}
    assert fast.compared_with == LEAST_COMPARED - 1
    assert judge(numbers("usual", latency_ratio=bootstrap), kernels).tags == []


def test_enough_kernels_are_held_against_their_own_quartiles() -> None:
    kernels = [numbers(str(n), latency_ratio=100.0 + n, tail_gradient=float(n)) for n in range(LEAST_COMPARED + 1)]
    judged = [judge(kernel, kernels) for kernel in kernels]
    assert [one.tags for one in judged] == [["fast"]] * 2 + [[]] * 5 + [["quick_to_learn"]] * 2
    assert judged[0].thresholds == {"fast": 102.0, "quick_to_learn": 6.0}
    assert {one.compared_with for one in judged} == {LEAST_COMPARED + 1}


def test_where_all_are_alike_none_stands_out() -> None:
    kernels = [numbers(str(n), latency_ratio=1e-9) for n in range(LEAST_COMPARED)]
    assert judge(kernels[0], kernels).tags == []


def test_only_kernels_of_the_same_kind_of_site_are_compared_and_none_twice() -> None:
    others = [numbers(str(n), site="conv2d NCHW", latency_ratio=float(n)) for n in range(20)]
    kernel = numbers("one", latency_ratio=3.0)
    judged = judge(kernel, [*others, kernel, kernel])
    assert judged.compared_with == 1
    assert judged.thresholds == {"fast": TAGS["fast"].bootstrap}


def test_a_number_that_does_not_apply_gives_no_tag_and_less_confidence() -> None:
    full = {rule.number: 0.0 for rule in TAGS.values()}
    assert "small" in judge(numbers("all", **full), []).tags
    without = judge(numbers("some", latency_ratio=0.1), [])
    assert without.tags == ["fast"]
    assert without.confidence < judge(numbers("all", **full), []).confidence


def test_risk_is_the_largest_share_of_a_limit_that_was_used() -> None:
    assert risk({}) == 0.0
    assert risk({"jump_adam": 0.2, "dead_units": 0.7}) == 0.7
    assert risk({"jump_adam": 1.3}) == 1.0
    assert risk({"jump_adam": -1.0}) == 0.0


def test_confidence_grows_with_what_was_measured_and_among_how_many() -> None:
    assert confidence(measured=len(TAGS), runs=FULL_RUNS, compared_with=LEAST_COMPARED) == 0.5
    assert confidence(measured=0, runs=FULL_RUNS, compared_with=100) == 0.0
    assert confidence(measured=len(TAGS), runs=0, compared_with=100) == 0.0
    assert confidence(measured=len(TAGS), runs=FULL_RUNS * 9, compared_with=24) == 0.75


def test_thresholds_are_for_every_tag() -> None:
    assert thresholds([]) == {name: rule.bootstrap for name, rule in TAGS.items()}


def test_numbers_that_grow_with_the_site_are_taken_per_channel_and_per_value() -> None:
    raw = RawMeasurements(
        checks={},
        numbers={"jump_adam": 0.01, "jump_sgd": 0.02, "tail_gradient": "inf"},
        latency_ratio=2.0,
        peak_memory_bytes=6400,
        environment={"samples": 4},
    )
    assert values_of(raw, LINEAR, parameters=32, flops=160) == {
        "latency_ratio": 2.0,
        "parameters_per_channel": 2.0,
        "flops_per_value": 2.0,
        "memory_per_value": 20.0,
        "jump": 0.02,
    }


def test_the_share_of_each_limit_is_told_and_that_of_latency_from_both_its_limits() -> None:
    raw = RawMeasurements(
        checks={},
        numbers={"jump_adam": 0.0125, "jump_sgd": "nan", "dead_units": 0.25},
        limits={
            "jump_adam": 0.05,
            "jump_sgd": 0.05,
            "dead_units": 0.25,
            "latency_ratio": 64.0,
            "latency_overhead_s": 2e-3,
        },
        latency_p50_s=1e-3,
        baseline_p50_s=1e-3 / 32,
    )
    assert used_of(raw) == {
        "jump_adam": 0.25,
        "jump_sgd": float("inf"),
        "dead_units": 1.0,
        "latency": 0.25,
    }


def test_measurements_of_before_are_read_and_what_is_none_is_refused() -> None:
    old = read_measurements(b'{"checks": {"shape": true, "jump_sgd": false}, "numbers": {"jump_sgd": "inf"}}')
    assert (old.failed, old.values(), old.latency_ratio) == (["jump_sgd"], {"jump_sgd": float("inf")}, None)
    for bad in (b"", b"[]", b'{"checks": 3}', b'{"checks": {}, "numbers": {"jump": "much"}}', b"\xff"):
        with pytest.raises(ArtifactDamaged):
            read_measurements(bad)
