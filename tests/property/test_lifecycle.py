from __future__ import annotations

import json

import pytest
import torch
from growing import Facts, Failing, loss_of, make
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esper.errors import GrowthError, IllegalTransition
from esper.events.decision import Schedule
from esper.events.lifecycle import ATTACHED, LIVING, SeedState, Trigger, edge
from esper.events.seed import SeedFaulted, SeedTransitioned, SeedTransitionRefused
from esper.kasmina import Growth, attach
from esper.kasmina.counterfactual import leave_one_out

SITES = ["0", "2"]

germinate = st.tuples(
    st.just("germinate"), st.sampled_from(SITES), st.integers(0, 3), st.sampled_from(["joint", "probation"])
)
tick = st.tuples(st.just("tick"), st.integers(1, 6))
command = st.tuples(st.sampled_from(["advance", "cull", "fossilize"]), st.integers(0, 3))
measure = st.tuples(st.just("measure"), st.integers(0, 3))
fault = st.tuples(st.just("fault"), st.integers(0, 3), st.sampled_from(["raises", "nan"]))
roll_back = st.tuples(st.just("roll_back"), st.integers(0, 3))
restore = st.tuples(st.just("restore"))
moves = st.lists(st.one_of(germinate, tick, tick, command, command, measure, fault, roll_back, restore), max_size=40)


class World:
    """A real host with real seeds, driven by commands; counts its own attempts."""

    def __init__(self) -> None:
        self.host, self.x = make("mlp")
        self.facts = Facts()
        self.growth: Growth = attach(self.host, (self.x,), emit=self.facts)
        self.step = 0
        self.attempts = 0

    def germinate(self, site: str, number: int, learning: str) -> None:
        schedule = Schedule(
            ramp_steps=3, settle_steps=2, fade_steps=2, embargo_steps=3, probation_steps=2, learning=learning
        )
        self.attempts += 1
        try:
            self.growth.germinate(
                site, Failing(8), seed_id=f"s{number}", step=self.step, schedule=schedule, kernel_id="k"
            )
        except IllegalTransition:
            assert self.facts.all[-1][0] is SeedTransitionRefused

    def tick(self, count: int) -> None:
        for _ in range(count):
            self.step += 1
            loss_of(self.host, self.x).backward()
            self.growth.collect_faults(self.step)
            self.growth.tick(self.step)

    def command(self, kind: str, number: int) -> None:
        if f"s{number}" not in self.growth.seeds:
            return
        self.attempts += 1
        before = len(self.facts.all)
        try:
            self.growth.command(kind, f"s{number}", step=self.step)
        except IllegalTransition:
            assert self.facts.all[-1][0] is SeedTransitionRefused
        assert len(self.facts.all) == before + 1, "one attempt is one fact"

    def measure(self, number: int) -> None:
        seed = self.growth.seeds.get(f"s{number}")
        if seed is not None and seed.attached:
            target = torch.arange(16) % 3
            losses = lambda m: torch.nn.functional.cross_entropy(m(self.x), target, reduction="none")  # noqa: E731
            leave_one_out(self.growth, seed, losses, step=self.step)

    def fault(self, number: int, how: str) -> None:
        seed = self.growth.seeds.get(f"s{number}")
        if seed is not None and seed.attached:
            seed.module.how = how

    def roll_back(self, number: int) -> None:
        if f"s{number}" not in self.growth.seeds:
            return
        try:
            self.growth.roll_back(f"s{number}", step=self.step)
        except IllegalTransition:
            assert self.facts.all[-1][0] is SeedTransitionRefused

    def restore(self) -> None:
        meta, tensors = self.growth.state()
        for seed in list(self.growth.seeds.values()):
            if seed.attached:
                seed.kernel_id = "other"
        hows = {s.id: s.module.how for s in self.growth.attached()}
        self.growth.restore(json.loads(json.dumps(meta)), tensors, lambda kernel_id: Failing(8))
        for seed in self.growth.attached():
            seed.module.how = hows[seed.id]
        again_meta, again = self.growth.state()
        assert again_meta == meta
        assert again.keys() == tensors.keys()
        assert all(torch.equal(again[k].nan_to_num(), tensors[k].nan_to_num()) for k in again)

    def check(self) -> None:
        states = {}
        gates_passed = 0
        for fact, fields in self.facts.all:
            if fact is SeedTransitioned:
                source, target = SeedState(fields["source"]), SeedState(fields["target"])
                legal = edge(source, target)
                assert legal is not None
                assert Trigger(fields["trigger"]) in legal.triggers
                assert states.get(fields["seed_id"], SeedState.DORMANT) is source
                states[fields["seed_id"]] = target
                if target is SeedState.FOSSILIZED:
                    gates_passed += 1
                    assert None not in fields["evidence"].values()
                    assert fields["evidence"]["alpha"] == 1.0
        for seed in self.growth.seeds.values():
            assert seed.state is states[seed.id]
            assert (seed.module is not None) == (seed.state in ATTACHED)
            assert 0.0 <= seed.ramp.value <= 1.0
            assert seed.alpha.item() == pytest.approx(seed.ramp.value)
            if seed.state is SeedState.FOSSILIZED:
                assert seed.ramp.value == 1.0
            if seed.state in {SeedState.EMBARGOED, SeedState.DORMANT}:
                assert seed.ramp.value == 0.0
            frozen = seed.module is not None and not any(p.requires_grad for p in seed.module.parameters())
            assert frozen == (seed.state is SeedState.CULLED)
        for path in SITES:
            here = [s for s in self.growth.seeds.values() if s.site.path == path]
            assert len(here) <= self.growth.max_per_site
            assert sum(s.state in LIVING for s in here) <= 1
            attached = any(s.attached for s in here)
            assert len(self.host.get_submodule(path)._forward_hooks) == (1 if attached else 0)
        assert self.host(self.x).isfinite().all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(moves)
def test_no_sequence_of_commands_reaches_an_illegal_state(sequence: list[tuple]) -> None:
    world = World()
    for name, *arguments in sequence:
        if name in {"advance", "cull", "fossilize"}:
            world.command(name, *arguments)
        else:
            getattr(world, name)(*arguments)
        world.check()


def walk(world: World, number: int = 0) -> None:
    world.germinate("0", number, "joint")
    world.tick(6)


def test_a_whole_life_walks_the_table_and_tells_every_move() -> None:
    world = World()
    walk(world)
    assert world.growth.seeds["s0"].state is SeedState.EVALUATING
    world.command("advance", 0)
    world.command("fossilize", 0)
    world.measure(0)
    world.command("fossilize", 0)
    world.command("cull", 0)
    world.check()
    told = [(f["source"], f["target"]) for f in world.facts.of(SeedTransitioned)]
    assert told == [
        ("dormant", "germinated"),
        ("germinated", "loading"),
        ("loading", "grafting"),
        ("grafting", "stabilization"),
        ("stabilization", "evaluating"),
        ("evaluating", "fine_tuning"),
        ("fine_tuning", "fossilized"),
    ]
    refused = [(f["gate"], f["source"], f["target"]) for f in world.facts.of(SeedTransitionRefused)]
    assert refused == [
        ("counterfactual_measured", "fine_tuning", "fossilized"),
        ("lifecycle", "fossilized", "culled"),
    ]
    assert world.facts.of(SeedTransitionRefused)[0]["evidence"]["gain"] is None


def test_a_counterfactual_measured_on_the_way_up_does_not_pass() -> None:
    world = World()
    world.germinate("0", 0, "joint")
    world.tick(1)
    world.measure(0)
    world.tick(5)
    world.command("fossilize", 0)
    (refused,) = world.facts.of(SeedTransitionRefused)
    assert refused["evidence"]["alpha"] == pytest.approx(1 / 3)


def test_probation_holds_the_host_at_full_alpha_and_then_goes_on() -> None:
    world = World()
    world.germinate("0", 0, "probation")
    assert world.growth.host_frozen
    assert world.growth.seeds["s0"].alpha.item() == 1.0
    world.tick(2)
    assert not world.growth.host_frozen
    assert world.growth.seeds["s0"].state is SeedState.GRAFTING
    world.tick(3)
    assert world.growth.seeds["s0"].state is SeedState.EVALUATING


def test_a_culled_seed_fades_frozen_and_frees_its_site_after_the_embargo() -> None:
    world = World()
    walk(world)
    world.command("cull", 0)
    seed = world.growth.seeds["s0"]
    world.tick(1)
    assert (seed.state, seed.alpha.item()) == (SeedState.CULLED, 0.5)
    assert not seed.learning
    world.tick(1)
    assert seed.state is SeedState.EMBARGOED
    world.tick(3)
    assert seed.state is SeedState.DORMANT
    assert world.growth.free_sites(world.step)["0"].free


def test_the_newest_living_seed_is_the_suspect_and_a_younger_one_than_the_restore_keeps_its_site_closed() -> None:
    world = World()
    assert world.growth.suspect() is None
    walk(world, 0)
    meta, tensors = world.growth.state()
    world.germinate("2", 1, "joint")
    world.tick(2)
    suspect = world.growth.suspect()
    assert suspect is world.growth.seeds["s1"]
    world.growth.restore(meta, tensors, lambda kernel_id: Failing(8))
    assert list(world.growth.seeds) == ["s0"]
    assert not world.host[2]._forward_hooks
    world.growth.roll_back(suspect, step=6)
    assert world.growth.free_sites(6)["2"].reason == "embargoed"
    last = [(f["source"], f["target"]) for f in world.facts.of(SeedTransitioned)][-2:]
    assert last == [("grafting", "rolled_back"), ("rolled_back", "embargoed")]


def test_a_restored_growth_goes_on_bit_for_bit() -> None:
    torch.manual_seed(0)
    first, second = World(), World()
    walk(first)
    first.germinate("2", 1, "joint")
    first.tick(1)
    meta, tensors = first.growth.state()
    second.host.load_state_dict(first.host.state_dict())
    second.growth.restore(json.loads(json.dumps(meta)), tensors, lambda kernel_id: Failing(8))
    second.step = first.step
    for _ in range(8):
        assert torch.equal(first.host(first.x), second.host(second.x))
        first.tick(1)
        second.tick(1)
    assert first.growth.state()[0] == second.growth.state()[0]


def test_a_state_of_another_host_is_refused() -> None:
    world = World()
    walk(world)
    meta, tensors = world.growth.state()
    host, x = make("cnn")
    growth = attach(host, (x,), sites=["3"])
    with pytest.raises(GrowthError, match="has not"):
        growth.restore(meta, tensors, lambda kernel_id: Failing(8))
    with pytest.raises(GrowthError, match="version"):
        world.growth.restore({**meta, "version": 99}, tensors, lambda kernel_id: Failing(8))


def test_a_fault_is_an_attempt_like_any_other() -> None:
    world = World()
    walk(world)
    world.fault(0, "raises")
    world.tick(1)
    assert len(world.facts.of(SeedFaulted)) == 1
    world.check()
