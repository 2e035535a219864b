"""What a run brings ahead, what it waits for, what it holds, and whom it tells of a bad kernel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from slow_kernels import SITE, Slow, ids, kernels, settled

from esper.blueprints.kernels.kernel import decode_kernel
from esper.errors import (
    ArtifactDamaged,
    ArtifactError,
    ArtifactStoreUnavailable,
    EsperError,
    KernelRefused,
    LogUnavailable,
    SignatureInvalid,
)
from esper.events.decision import Action, AdaptationCommanded, DecisionExecuted
from esper.tamiyo import KernelOption, make_policy
from esper.tolaria.outcomes import as_recorded, outcomes_of, refusal_reason
from esper.tolaria.supply import KernelSupply


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def supply(slow: Slow) -> Iterator[KernelSupply]:
    with KernelSupply(slow) as made:
        yield made


def option(kernel_id: str, name: str = "res_mlp") -> KernelOption:
    parameters = decode_kernel(kernels()[kernel_id]).manifest.parameters
    return KernelOption(kernel_id=kernel_id, blueprint_id="b", name=name, parameters=parameters, flops=1)


def site_of(kernel_id: str) -> Any:
    return decode_kernel(kernels()[kernel_id]).signature


# --- ahead


def test_kernels_are_brought_smallest_first_where_the_policy_leans_to_none(slow: Slow, supply: KernelSupply) -> None:
    a, b, c = ids()[:3]
    supply.expect({"x": [option(c), option(a)], "y": [option(b), option(a)]}, make_policy("random"))
    settled(supply.cache)
    assert slow.asked == [a, b, c]


def test_kernels_are_brought_in_the_order_the_policy_leans_to(slow: Slow, supply: KernelSupply) -> None:
    a, b, c, d = ids()[:4]
    offered = {"x": [option(a, "lora"), option(c)], "y": [option(b, "lora"), option(d)]}
    supply.expect(offered, make_policy("earliest-site", kernels=offered))
    settled(supply.cache)
    assert slow.asked == [c, d, a, b], "the best of each site first"


def test_a_policy_that_never_grows_brings_nothing(slow: Slow, supply: KernelSupply) -> None:
    supply.expect({"x": [option(ids()[0])]}, make_policy("off"))
    assert supply.cache.idle()
    assert slow.asked == []


# --- taking


def test_a_kernel_that_was_brought_ahead_is_taken_from_memory_with_a_branch_of_its_own(
    slow: Slow, supply: KernelSupply
) -> None:
    wanted = ids()[0]
    supply.cache.prefetch([wanted])
    settled(supply.cache)
    taken = [supply.take(wanted, site_of(wanted), decision=number) for number in (1, 2)]
    assert [one.source for one in taken] == ["cache", "cache"]
    assert taken[0].branch is not taken[1].branch
    assert slow.asked == [wanted]


def test_a_branch_in_place_of_the_one_that_was_taken_is_made_from_the_step_after_on(
    slow: Slow, supply: KernelSupply
) -> None:
    wanted = ids()[0]
    supply.cache.prefetch([wanted])
    settled(supply.cache)
    supply.take(wanted, site_of(wanted), decision=1)
    supply.hold([wanted])
    settled(supply.cache)
    assert supply.cache.branch(wanted) is None
    supply.hold([wanted])
    settled(supply.cache)
    assert supply.cache.branch(wanted) is not None
    assert slow.asked == [wanted]


def test_a_kernel_that_is_late_is_waited_for_and_the_stall_told() -> None:
    slow = Slow()
    slow.fault = lambda kernel_id: time.sleep(0.05)
    with KernelSupply(slow, max_bytes=0) as supply:
        taken = supply.take(ids()[0], site_of(ids()[0]), decision=1)
    assert taken.source == "store"
    assert 0.05 <= taken.stall_s < 30


def test_a_kernel_for_another_site_is_refused_and_says_what_differs(supply: KernelSupply) -> None:
    wanted = ids()[0]
    other = msgspec.structs.replace(SITE, channels=99)
    with pytest.raises(KernelRefused, match=r"its channels is 8, the site's is 99") as refused:
        supply.take(wanted, other, decision=1)
    assert refused.value.attributes["reason"] == "wrong_site"


def test_kernels_of_attached_seeds_are_held(slow: Slow) -> None:
    a, b, c = ids()[:3]
    room = sum(len(kernels()[one]) for one in (a, b))
    with KernelSupply(slow, max_bytes=room) as supply:
        supply.branch(a)
        supply.hold([a])
        supply.branch(b)
        supply.branch(c)
        settled(supply.cache)
        assert a in supply.cache
        supply.hold([b])
        supply.branch(c)
        supply.branch(ids()[3])
        settled(supply.cache)
        assert a not in supply.cache


# --- bad ones


def told() -> tuple[list[str], Any]:
    names: list[str] = []
    return names, lambda kernel_id, error: names.append(f"{kernel_id} {type(error).__name__}")


@pytest.mark.parametrize(
    ("error", "to_blame"),
    [
        (ArtifactDamaged("x"), True),
        (SignatureInvalid("x", reason="unsigned"), True),
        (SignatureInvalid("x", reason="unknown_key"), False),
        (KernelRefused("x"), True),
        (ArtifactError("the disk cannot be read"), False),
        (ArtifactStoreUnavailable("x"), False),
        (as_recorded("refused: E-ART-003 x"), False),
    ],
)
def test_only_a_kernel_that_is_to_blame_is_put_aside(slow: Slow, error: EsperError, *, to_blame: bool) -> None:
    names, put_aside = told()
    with KernelSupply(slow, put_aside=put_aside) as supply:
        supply.refuse("k", error)
    assert names == ([f"k {type(error).__name__}"] if to_blame else [])


def test_a_bad_kernel_is_told_of_once_the_log_is_back(slow: Slow) -> None:
    names, put_aside = told()
    away = True

    def unless_away(kernel_id: str, error: EsperError) -> None:
        if away:
            raise LogUnavailable("the log is away")
        put_aside(kernel_id, error)

    with KernelSupply(slow, put_aside=unless_away) as supply:
        supply.refuse("k", ArtifactDamaged("x"))
        supply.settle()
        assert names == []
        away = False
        supply.settle()
        supply.settle()
        assert names == ["k ArtifactDamaged"]


# --- what the log knows already


def decided(number: int, reason: str | None, kind: str = "germinate") -> list[Any]:
    common: dict[str, Any] = {"run_id": "r", "attempt": 1, "decision": number}
    return [
        AdaptationCommanded(**common, action=Action(kind=kind, site="s", kernel_id="k")),
        DecisionExecuted(**common, step=number, executed=reason is None, reason=reason),
    ]


def test_a_refusal_is_read_as_it_was_written() -> None:
    error = ArtifactDamaged("artifact ab has 3 bytes\nwith digest cd")
    again = as_recorded(refusal_reason(error))
    assert type(again) is ArtifactDamaged
    assert refusal_reason(again) == refusal_reason(error)


def test_outcomes_tell_of_kernels_alone_and_in_order() -> None:
    damaged = refusal_reason(ArtifactDamaged("x"))
    facts = [
        *decided(1, None),
        *decided(2, None, "cull"),
        *decided(3, damaged),
        *decided(4, "refused: E-GRW-002 the site is occupied"),
        decided(5, None)[0],
        *decided(3, None),
    ]
    assert outcomes_of(facts) == [(1, None), (3, damaged), (4, None), (3, None)]


def test_what_the_log_knows_comes_first_and_then_the_store_is_asked(slow: Slow) -> None:
    wanted = ids()[0]
    damaged = refusal_reason(ArtifactDamaged("it was damaged"))
    with KernelSupply(slow, outcomes=[None, damaged]) as supply:
        site = site_of(wanted)
        supply.take(wanted, site, decision=None)
        supply.take(wanted, site, decision=1)
        with pytest.raises(ArtifactDamaged, match="it was damaged"):
            supply.take(wanted, site, decision=2)
        supply.take(wanted, site, decision=3)
