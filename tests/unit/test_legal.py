"""What may be done at a decision, and the reasons for the rest."""

from __future__ import annotations

import itertools
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.errors import ConfigError
from esper.events.decision import Observation, Schedule, SeedObservation, SiteObservation
from esper.events.lifecycle import LIVING, SeedState, Trigger, require
from esper.tamiyo import FEATURE_SCHEMA, GrowthLimits, legal_actions, observation_digest, target_of
from esper.tamiyo.observe import schema_of
from tests.tamiyo_worlds import NAMES, PATHS, all_kernels, observation, option, seed, site

GRAFT = Schedule(ramp_steps=123)


def germinations(seen, *, kernels=None, closed=None, limits=None, **named):
    legal, masked = legal_actions(
        seen, all_kernels() if kernels is None else kernels, closed or {}, limits or GrowthLimits(), GRAFT, **named
    )
    reasons = {one.site: one.reason for one in masked if one.kind == "germinate"}
    return [action for action in legal if action.kind == "germinate"], reasons


def moves(seen) -> tuple[set[tuple[str, str]], dict[tuple[str, str], str]]:
    legal, masked = legal_actions(seen, {}, {}, GrowthLimits(), GRAFT)
    return (
        {(action.kind, action.seed_id) for action in legal if action.seed_id},
        {(one.kind, one.seed_id): one.reason for one in masked if one.seed_id},
    )


def test_noop_is_always_first_and_alone_where_nothing_is_possible():
    legal, masked = legal_actions(observation(), {}, {}, GrowthLimits(), GRAFT)
    assert [action.kind for action in legal] == ["noop"]
    assert [(one.site, one.reason) for one in masked] == [(path, "no_kernel") for path in PATHS]


def test_legal_list_has_the_canonical_order():
    sites = [site("b", 1, 2), site("a", 1, 2), site("z", 0, 2), site("busy", 2, 2)]
    seeds = [seed(s, "busy", "evaluating", gain=0.1, stderr=0.01) for s in ("seed-2", "seed-1")]
    legal, _ = legal_actions(
        observation(sites=sites, seeds=seeds), all_kernels(("a", "b", "z", "busy")), {}, GrowthLimits(), GRAFT
    )
    expected = [("noop", None, None)]
    expected += [("germinate", path, f"kernel-{name}-{path}") for path in ("z", "a", "b") for name in sorted(NAMES)]
    assert [(a.kind, a.site, a.kernel_id) for a in legal[:16]] == expected
    assert [(a.kind, a.seed_id) for a in legal[16:]] == list(
        itertools.product(("advance", "cull", "fossilize"), ("seed-1", "seed-2"))
    )


def test_order_does_not_depend_on_the_order_of_what_is_given():
    seen = observation(
        seeds=[seed("seed-1", "head", "evaluating", gain=1.0, stderr=0.1), seed("seed-2", "x", "training")]
    )
    turned = msgspec.structs.replace(seen, sites=seen.sites[::-1], seeds=seen.seeds[::-1])
    kernels = {path: options[::-1] for path, options in reversed(all_kernels().items())}
    assert legal_actions(turned, kernels, {}, GrowthLimits(), GRAFT) == legal_actions(
        seen, all_kernels(), {}, GrowthLimits(), GRAFT
    )


def test_germination_carries_ids_and_schedule():
    actions, _ = germinations(observation(), kernels={"head": [option("lora", "head")]})
    assert [(a.site, a.kernel_id, a.blueprint_id, a.schedule) for a in actions] == [
        ("head", "kernel-lora-head", "blueprint-lora", GRAFT)
    ]


@pytest.mark.parametrize(("step", "reason"), [(1499, None), (1500, "growth_over"), (2000, "growth_over")])
def test_last_quarter_of_the_steps_is_free_of_germinations(step, reason):
    actions, reasons = germinations(observation(step=step))
    assert bool(actions) == (reason is None)
    assert reasons == (dict.fromkeys(PATHS, reason) if reason else {})


def test_growth_free_end_still_allows_to_keep_and_to_cull():
    seen = observation(step=1900, seeds=[seed("seed-1", "head", "evaluating", gain=0.1, stderr=0.01)])
    assert {("fossilize", "seed-1"), ("cull", "seed-1")} <= moves(seen)[0]


def test_seed_budget_counts_every_germination_of_the_run():
    assert germinations(observation(germinated=5))[0]
    assert germinations(observation(germinated=6)) == ([], dict.fromkeys(PATHS, "seeds_spent"))


def test_parameter_budget_masks_kernels_that_are_too_large():
    limits = GrowthLimits(max_growth_frac=0.25)
    actions, reasons = germinations(observation(), limits=limits)
    assert {a.kernel_id.split("-")[1] for a in actions} == {"affine", "lora", "noop", "pw_bottleneck_1d"}
    assert reasons == {}
    only_large = {path: [option("conv_bottleneck_1d", path)] for path in PATHS}
    assert germinations(observation(), kernels=only_large, limits=limits)[1] == dict.fromkeys(PATHS, "budget_spent")


def test_parameters_of_a_seed_not_yet_attached_are_spoken_for():
    only = {"body.1": [option("conv_bottleneck_1d", "body.1")]}
    limits = GrowthLimits(max_growth_frac=0.5)
    waiting = [seed("seed-1", "head", "loading", parameters=300)]
    assert germinations(observation(seeds=waiting), kernels=only, limits=limits)[1]["body.1"] == "budget_spent"
    there = [seed("seed-1", "head", "grafting", parameters=300)]
    assert germinations(observation(seeds=there), kernels=only, limits=limits)[0]


def test_gap_between_germinations_is_kept():
    limits = GrowthLimits(min_gap_steps=200)
    seen = observation(step=500, germinated=1)
    assert germinations(seen, limits=limits, last_germination_step=301)[1] == dict.fromkeys(PATHS, "too_soon")
    assert germinations(seen, limits=limits, last_germination_step=300)[0]
    assert germinations(observation(), limits=limits)[0]
    with pytest.raises(ConfigError, match="last germination"):
        germinations(seen, limits=limits)


def test_closed_site_carries_the_reason_it_was_closed_with():
    actions, reasons = germinations(observation(), closed={"body.1": "quarantined"})
    assert reasons == {"body.1": "quarantined"}
    assert {a.site for a in actions} == set(PATHS) - {"body.1"}


@pytest.mark.parametrize("state", list(SeedState))
def test_site_is_closed_exactly_while_a_seed_lives_there(state):
    actions, reasons = germinations(observation(seeds=[seed("seed-1", "head", state.value)]))
    ending = {"culled", "cancelled", "embargoed", "rolled_back"}
    expected = None if state not in LIVING else "embargoed" if state in ending else "occupied"
    assert reasons.get("head") == expected
    assert any(a.site == "head" for a in actions) == (expected is None)


@pytest.mark.parametrize("state", list(SeedState))
def test_every_seed_move_is_legal_by_the_lifecycle_or_masked_with_a_reason(state):
    legal, masked = moves(observation(seeds=[seed("seed-1", "head", state.value, gain=0.1, stderr=0.01)]))
    for kind, _ in legal:
        require(state, target_of(kind, state), Trigger.COMMANDED)
    kinds = {kind for kind, _ in legal} | {kind for kind, _ in masked}
    assert not {kind for kind, _ in legal} & {kind for kind, _ in masked}
    assert kinds == ({"advance", "cull", "fossilize"} if state in LIVING else set())


def test_moves_of_each_state_are_as_the_table_says():
    allowed = {
        state: {kind for kind in ("advance", "cull", "fossilize") if target_of(kind, state)}
        for state in map(str, SeedState)
    }
    assert {state: kinds for state, kinds in allowed.items() if kinds} == {
        "germinated": {"cull"},
        "loading": {"cull"},
        "training": {"cull"},
        "grafting": {"cull"},
        "stabilization": {"cull"},
        "evaluating": {"advance", "cull", "fossilize"},
        "fine_tuning": {"cull", "fossilize"},
    }
    assert target_of("cull", "loading") is SeedState.CANCELLED
    assert target_of("cull", "grafting") is SeedState.CULLED


@pytest.mark.parametrize(("gain", "stderr"), [(None, None), (0.1, None), (None, 0.1), (math.nan, 0.1), (0.1, math.inf)])
def test_seed_without_a_measured_gain_cannot_be_fossilised(gain, stderr):
    legal, masked = moves(observation(seeds=[seed("seed-1", "head", "evaluating", gain=gain, stderr=stderr)]))
    assert ("fossilize", "seed-1") not in legal
    assert masked["fossilize", "seed-1"] == "not_measured"


def test_reasons_of_masked_moves_are_stable():
    _, masked = moves(observation(seeds=[seed("seed-1", "head", "grafting"), seed("seed-2", "body.0", "embargoed")]))
    assert masked == {
        ("advance", "seed-1"): "not_evaluating",
        ("fossilize", "seed-1"): "not_evaluating",
        ("advance", "seed-2"): "ending",
        ("cull", "seed-2"): "ending",
        ("fossilize", "seed-2"): "ending",
    }


@given(
    st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from(list(SeedState))), max_size=6),
    st.integers(1, 2000),
    st.integers(0, 8),
    st.dictionaries(st.sampled_from(PATHS), st.just("quarantined")),
)
def test_each_site_and_living_seed_is_either_legal_or_masked(states, step, germinated, closed):
    seeds = [seed(f"seed-{n}", path, state.value) for n, (path, state) in enumerate(states)]
    legal, masked = legal_actions(
        observation(step=step, germinated=germinated, seeds=seeds), all_kernels(), closed, GrowthLimits(), GRAFT
    )
    possible = {(a.kind, a.site, a.seed_id) for a in legal[1:]}
    impossible = [(m.kind, m.site, m.seed_id) for m in masked]
    assert len(impossible) == len(set(impossible))
    assert not possible & set(impossible)
    wanted = {("germinate", path, None) for path in PATHS}
    wanted |= {
        (kind, s.site, s.seed_id)
        for s in seeds
        if SeedState(s.state) in LIVING
        for kind in ("advance", "cull", "fossilize")
    }
    assert possible | set(impossible) == wanted


@pytest.mark.parametrize(
    "wrong",
    [{"max_seeds": -1}, {"min_gap_steps": -1}, {"growth_end_frac": 1.1}, {"max_growth_frac": math.nan}],
)
def test_limits_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        GrowthLimits(**wrong)


def test_observation_digest_changes_with_any_bit_and_survives_the_codec():
    seen = observation()
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(seen), type=Observation)
    assert observation_digest(again) == observation_digest(seen)
    assert len(observation_digest(seen)) == 32
    nudged = msgspec.structs.replace(seen, train_loss=math.nextafter(seen.train_loss, 2.0))
    assert observation_digest(nudged) != observation_digest(seen)


def test_feature_schema_changes_with_the_fields_and_their_order():
    one = msgspec.defstruct("Observation", [("a", int), ("b", int)])
    turned = msgspec.defstruct("Observation", [("b", int), ("a", int)])
    more = msgspec.defstruct("Observation", [("a", int), ("b", int), ("c", int)])
    assert len({schema_of(one), schema_of(turned), schema_of(more), FEATURE_SCHEMA}) == 4
    assert schema_of(Observation, SiteObservation, SeedObservation) == FEATURE_SCHEMA
