"""Tags, risk and confidence over any numbers: bounded, monotone, and the same in whatever order kernels come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from esper.blueprints.forging.tags import LEAST_COMPARED, TAGS, Numbers, confidence, judge, risk

VALUE = st.floats(0, 1e12)
VALUES = st.dictionaries(st.sampled_from(sorted(rule.number for rule in TAGS.values())), VALUE)
USED = st.dictionaries(st.sampled_from(["jump_adam", "dead_units", "latency"]), st.floats(-1, 1e6))


@st.composite
def kernels(draw: st.DrawFn) -> list[Numbers]:
    count = draw(st.integers(1, LEAST_COMPARED + 4))
    return [
        Numbers(
            kernel_id=str(n),
            site=draw(st.sampled_from(["linear NC", "conv2d NCHW"])),
            values=draw(VALUES),
            used=draw(USED),
            runs=draw(st.integers(0, 100)),
        )
        for n in range(count)
    ]


@given(kernels(), st.randoms())
def test_a_judgement_is_bounded_and_does_not_depend_on_the_order_of_the_others(
    population: list[Numbers], random: object
) -> None:
    kernel = population[0]
    judged = judge(kernel, population)
    assert 0 <= judged.risk <= 1
    assert 0 <= judged.confidence < 1
    assert judged.tags == sorted(set(judged.tags))
    assert set(judged.tags) <= set(judged.thresholds) <= set(TAGS)
    shuffled = list(population)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert judge(kernel, shuffled) == judged


@given(kernels(), st.sampled_from(sorted(TAGS)), VALUE)
def test_a_tag_that_is_earned_is_kept_by_a_better_number(population: list[Numbers], tag: str, change: float) -> None:
    rule, kernel = TAGS[tag], population[0]
    if tag not in judge(kernel, population).tags:
        return
    value = kernel.values[rule.number]
    better = min(value, change) if rule.little else max(value, change)
    improved = Numbers(
        kernel_id=kernel.kernel_id,
        site=kernel.site,
        values={**kernel.values, rule.number: better},
        used=kernel.used,
        runs=kernel.runs,
    )
    others = [one for one in population if one.kernel_id != kernel.kernel_id]
    assert tag in judge(improved, others).tags


@given(USED, st.floats(0, 1e6))
def test_risk_never_falls_when_more_of_a_limit_is_used(used: dict[str, float], more: float) -> None:
    for name, share in used.items():
        assert risk({**used, name: share + more}) >= risk(used)


@given(st.integers(0, len(TAGS)), st.integers(0, 60), st.integers(1, 10_000))
def test_confidence_never_falls_with_more_of_anything(measured: int, runs: int, compared_with: int) -> None:
    now = confidence(measured=measured, runs=runs, compared_with=compared_with)
    assert confidence(measured=measured, runs=runs + 1, compared_with=compared_with) >= now
    assert confidence(measured=measured, runs=runs, compared_with=compared_with + 1) >= now
    if measured < len(TAGS):
        assert confidence(measured=measured + 1, runs=runs, compared_with=compared_with) >= now
