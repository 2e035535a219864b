"""The ladder of policies: what each rung does, and that every answer is a distribution."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.errors import ConfigError, NotFound, PolicyInvalid, UnknownSetting
from esper.events.decision import Action, Observation, Schedule, SeedObservation
from esper.events.lifecycle import SeedState
from esper.tamiyo import (
    POLICY_NAMES,
    GrowthLimits,
    Policy,
    draw,
    legal_actions,
    make_policy,
    require_distribution,
    target_of,
)
from tests.tamiyo_worlds import PATHS, all_kernels, observation, option, seed, site

GROWING = ("schedule", "earliest-site", "heuristic")
DECISIONS = 20
STEPS_EACH = 100

#: State a seed goes to by itself, and the decisions it takes to get there: about what ramp and settling take.
BY_ITSELF = {
    "loading": ("grafting", 1),
    "grafting": ("stabilization", 3),
    "stabilization": ("evaluating", 1),
    "culled": ("embargoed", 1),
    "embargoed": ("dormant", 5),
}


class World:
    """A run without a host: seeds live by the lifecycle, their gains are given."""

    def __init__(self, gain: float, paths: tuple[str, ...] = PATHS) -> None:
        self.paths = paths
        self.kernels = all_kernels(paths)
        self.gain = gain
        self.seeds: list[SeedObservation] = []
        self.taken: list[Action] = []

    def observe(self, decision: int) -> Observation:
        deepest = len(self.paths) - 1
        here = [s.site for s in self.seeds if s.state not in ("dormant", "embargoed")]
        return observation(
            step=decision * STEPS_EACH,
            total_steps=DECISIONS * STEPS_EACH,
            seeds=list(self.seeds),
            train_loss=1.5 * math.exp(-decision / 8) + 0.2,
            validation=tuple(1.6 * math.exp(-d / 8) + 0.3 for d in range(max(1, decision - 7), decision + 1)),
            sites=[site(p, d, deepest, seeds_present=here.count(p)) for d, p in enumerate(self.paths)],
        )

    def live(self) -> None:
        """Let a decision's worth of steps pass."""
        for n, one in enumerate(self.seeds):
            steps = one.steps_in_state + STEPS_EACH
            after, needed = BY_ITSELF.get(one.state, (one.state, math.inf))
            state, steps = (after, 0) if steps >= needed * STEPS_EACH else (one.state, steps)
            judged = state in ("evaluating", "fine_tuning")
            self.seeds[n] = msgspec.structs.replace(
                one,
                state=state,
                steps_in_state=steps,
                gain=self.gain if judged else None,
                gain_stderr=0.01 if judged else None,
            )

    def obey(self, action: Action) -> None:
        self.taken.append(action)
        if action.kind == "germinate":
            self.seeds.append(seed(f"seed-{len(self.seeds) + 1}", action.site, "loading", steps=0))
        elif action.seed_id is not None:
            n = next(n for n, s in enumerate(self.seeds) if s.seed_id == action.seed_id)
            target = target_of(action.kind, self.seeds[n].state)
            self.seeds[n] = msgspec.structs.replace(self.seeds[n], state=target.value, steps_in_state=0)

    def run(self, policy: Policy, run_seed: int = 0) -> list[str]:
        """Take all decisions and return the kinds of action taken."""
        for decision in range(1, DECISIONS + 1):
            self.live()
            seen = self.observe(decision)
            legal, _ = legal_actions(seen, self.kernels, {}, GrowthLimits(), Schedule())
            probabilities = policy.decide(seen, legal)
            require_distribution(probabilities, len(legal))
            self.obey(legal[draw(probabilities, run_seed, decision)[0]])
        return [action.kind for action in self.taken]


def made(name: str, paths: tuple[str, ...] = PATHS, **settings) -> Policy:
    return make_policy(name, settings, kernels=all_kernels(paths))


def answer(name: str, seen: Observation, **settings) -> dict[tuple, float]:
    """Return the probabilities above 0, by kind and site or seed."""
    legal, _ = legal_actions(seen, all_kernels(), {}, GrowthLimits(), Schedule())
    probabilities = made(name, **settings).decide(seen, legal)
    require_distribution(probabilities, len(legal))
    return {
        (action.kind, action.seed_id or action.kernel_id): p
        for action, p in zip(legal, probabilities, strict=True)
        if p > 0.0
    }


def site_mass(given: dict[tuple, float], path: str) -> float:
    return math.fsum(p for (kind, name), p in given.items() if kind == "germinate" and name.endswith(f"-{path}"))


# --- whole runs


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("paths", [PATHS, PATHS[:2], PATHS[:1]])
def test_normal_run_germinates_at_least_two_seeds_and_fossilises_one(name, paths):
    for run_seed in range(25):
        kinds = World(gain=0.1, paths=paths).run(made(name, paths), run_seed)
        assert kinds.count("germinate") >= 2
        assert kinds.count("fossilize") >= 1


def test_off_never_does_anything():
    assert set(World(gain=0.1).run(made("off"))) == {"noop"}


def test_schedule_goes_from_site_to_site_in_depth_order():
    world = World(gain=0.1)
    world.run(made("schedule"))
    assert [a.site for a in world.taken if a.kind == "germinate"] == list(PATHS)


def test_fixed_times_are_kept():
    world = World(gain=0.1)
    kinds = world.run(made("schedule", at=[0.1, 0.3]))
    assert [n for n, kind in enumerate(kinds, 1) if kind == "germinate"] == [2, 6]


def test_earliest_site_takes_the_first_free_site_and_comes_back_to_it():
    world = World(gain=0.1)
    world.run(made("earliest-site", at=[0.1, 0.15, 0.7]))
    assert [a.site for a in world.taken if a.kind == "germinate"] == ["body.0", "body.1", "body.0"]


@pytest.mark.parametrize("name", ["schedule", "earliest-site"])
def test_fixed_policies_fossilise_at_the_first_chance_and_cull_none(name):
    world = World(gain=-0.5)
    kinds = world.run(made(name))
    assert "cull" not in kinds
    assert "advance" not in kinds
    assert kinds.count("fossilize") == 4


def test_heuristic_culls_seeds_that_harm_and_keeps_none():
    kinds = [kind for run_seed in range(10) for kind in World(gain=-0.5).run(made("heuristic"), run_seed)]
    assert "fossilize" not in kinds
    assert kinds.count("cull") > 10


def test_same_seed_gives_the_same_run_and_another_seed_another():
    runs = []
    for run_seed in (1, 1, 2):
        world = World(gain=0.1)
        world.run(made("heuristic"), run_seed)
        runs.append(world.taken)
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


# --- single decisions


def test_random_spreads_what_noop_leaves_evenly():
    given = answer("random", observation())
    assert given.pop(("noop", None)) == 0.5
    assert list(given.values()) == pytest.approx([0.5 / 20] * 20, abs=1e-15)


def test_random_does_nothing_for_certain_where_nothing_else_is_legal():
    assert answer("random", observation(step=2000)) == {("noop", None): 1.0}


@pytest.mark.parametrize("noop_frac", [0.0, 1.0])
def test_random_keeps_the_share_of_noop_it_is_given(noop_frac):
    assert answer("random", observation(), noop_frac=noop_frac).get(("noop", None), 0.0) == noop_frac


def test_missed_time_is_made_up_for():
    assert answer("schedule", observation(step=900, germinated=2)) == {
        ("germinate", "kernel-conv_bottleneck_1d-body.2"): 1.0
    }
    assert answer("schedule", observation(step=500, germinated=2)) == {("noop", None): 1.0}


def test_round_robin_skips_a_site_that_is_taken():
    seen = observation(step=900, seeds=[seed("seed-1", "body.1", "grafting")])
    assert answer("schedule", seen) == {("germinate", "kernel-conv_bottleneck_1d-body.2"): 1.0}


@pytest.mark.parametrize(
    ("blueprint", "name"),
    [(["lora"], "lora"), (["dw_*", "pw_*"], "pw_bottleneck_1d"), (["*"], "affine"), (["unheard_of"], "affine")],
)
def test_blueprint_setting_orders_the_kernels_and_falls_back_to_the_smallest_that_can_learn(blueprint, name):
    assert answer("earliest-site", observation(), blueprint=blueprint) == {("germinate", f"kernel-{name}-body.0"): 1.0}


def test_kernel_without_parameters_is_taken_only_where_there_is_no_other():
    kernels = {"head": [option("noop", "head")]}
    legal, _ = legal_actions(observation(), kernels, {}, GrowthLimits(), Schedule())
    assert make_policy("schedule", kernels=kernels).decide(observation(), legal) == [0.0, 1.0]
    assert make_policy("heuristic", kernels=kernels).decide(observation(), legal) == [1.0, 0.0]


def test_heuristic_prefers_early_sites_at_equal_telemetry():
    given = answer("heuristic", observation())
    masses = [site_mass(given, path) for path in PATHS]
    assert masses == sorted(masses, reverse=True)
    assert sum(masses) > 0.5


def test_heuristic_follows_the_residual_score_where_it_is_clear():
    flat = [site(path, depth, 3) for depth, path in enumerate(PATHS)]
    rich = [*flat[:3], site("head", 3, 3, zr=50.0)]
    without, with_it = (site_mass(answer("heuristic", observation(sites=s)), "head") for s in (flat, rich))
    assert with_it > 3 * without


def test_heuristic_ranks_a_site_that_was_not_measured_by_depth_alone():
    sites = [site(path, depth, 3, zr=None) for depth, path in enumerate(PATHS)]
    given = answer("heuristic", observation(sites=sites))
    masses = [site_mass(given, path) for path in PATHS]
    assert masses == sorted(masses, reverse=True)
    assert len(set(masses)) == 4


@pytest.mark.parametrize(
    "without_headroom",
    [
        {"train_loss": 0.001},
        {"train_loss": math.nan},
        {"validation": (1.0, 0.5, 0.7, 0.8)},
        {"sites": [site(path, depth, 3, zr=0.0) for depth, path in enumerate(PATHS)]},
        {"seeds": [seed("seed-1", "body.0", "grafting"), seed("seed-2", "body.1", "loading")]},
    ],
)
def test_heuristic_does_not_germinate_without_headroom(without_headroom):
    assert {kind for kind, _ in answer("heuristic", observation(**without_headroom))} == {"noop"}


@pytest.mark.parametrize(
    ("gain", "stderr", "steps", "move"),
    [
        (0.1, 0.05, 100, "fossilize"),
        (0.1, 0.05, 900, "fossilize"),
        (0.1, 0.07, 100, "advance"),
        (-0.1, 0.05, 100, "cull"),
        (-0.01, 0.05, 100, "advance"),
        (-0.01, 0.05, 401, "cull"),
        (None, None, 100, "advance"),
        (None, None, 401, "cull"),
    ],
)
def test_heuristic_judges_an_evaluated_seed_by_its_gain(gain, stderr, steps, move):
    seen = observation(step=1900, seeds=[seed("seed-1", "head", "evaluating", gain=gain, stderr=stderr, steps=steps)])
    given = answer("heuristic", seen)
    assert set(given) == {("noop", None), (move, "seed-1")}
    assert (given[move, "seed-1"] > 0.5) == (move in ("fossilize", "cull"))


def test_heuristic_leaves_seeds_alone_that_are_not_yet_evaluated():
    seen = observation(step=1900, seeds=[seed("seed-1", "head", "grafting", gain=-1.0, stderr=0.1, steps=5000)])
    assert answer("heuristic", seen) == {("noop", None): 1.0}


def test_heuristic_keeps_its_floor_with_many_sites():
    paths = tuple(f"body.{n}" for n in range(200))
    sites = [site(path, depth, 199) for depth, path in enumerate(paths)]
    seen = observation(sites=sites)
    legal, _ = legal_actions(seen, all_kernels(paths), {}, GrowthLimits(), Schedule())
    probabilities = made("heuristic", paths).decide(seen, legal)
    candidates = [p for p in probabilities if p > 0.0]
    assert len(candidates) == 50
    assert min(candidates) >= 0.01


ODD = st.one_of(
    st.none(), st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([0.0, -1.0, 1e-300, 1e300, 5e-324])
)
SEEDS = st.lists(
    st.tuples(st.sampled_from(PATHS), st.sampled_from(list(SeedState)), ODD, ODD, st.integers(0, 5000)), max_size=8
)


@given(
    st.sampled_from(POLICY_NAMES),
    st.tuples(ODD, ODD, ODD, ODD),
    SEEDS,
    st.integers(1, 2000),
    st.floats(),
    st.lists(st.floats(), max_size=8),
)
def test_every_policy_answers_anything_with_a_distribution_and_repeats_it(
    name, scores, seeds, step, train_loss, validation
):
    seen = observation(
        step=step,
        train_loss=train_loss,
        validation=tuple(validation),
        sites=[site(path, depth, 3, zr=zr) for depth, (path, zr) in enumerate(zip(PATHS, scores, strict=True))],
        seeds=[
            seed(f"seed-{n}", path, state.value, gain=gain, stderr=stderr, steps=steps)
            for n, (path, state, gain, stderr, steps) in enumerate(seeds)
        ],
        germinated=min(len(seeds), 3),
    )
    legal, _ = legal_actions(seen, all_kernels(), {}, GrowthLimits(), Schedule())
    first, second = made(name).decide(seen, legal), made(name).decide(seen, legal)
    require_distribution(first, len(legal))
    assert first == second
    if name == "heuristic":
        assert all(p == 0.0 or p >= 0.01 for p in first)


# --- identity and settings


def test_digest_depends_on_name_and_settings_alone():
    digests = {make_policy(name).digest for name in POLICY_NAMES}
    assert len(digests) == len(POLICY_NAMES)
    assert all(len(digest) == 32 for digest in digests)
    assert made("schedule").digest == make_policy("schedule", {"at": [0.1, 0.2, 0.3, 0.4]}).digest
    assert made("schedule", at=[0.2]).digest != made("schedule").digest


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_policy_id_is_its_name(name):
    assert make_policy(name).policy_id == name


def test_unknown_policy_is_refused_with_the_names():
    with pytest.raises(ConfigError) as caught:
        make_policy("greedy")
    assert all(name in caught.value.hint for name in POLICY_NAMES)


def test_unknown_setting_is_refused_with_the_known_ones():
    with pytest.raises(UnknownSetting, match="nop_frac") as caught:
        make_policy("random", {"nop_frac": 0.1})
    assert "noop_frac" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("random", {"noop_frac": 1.5}),
        ("random", {"noop_frac": "often"}),
        ("schedule", {"at": [0.4, 0.2]}),
        ("schedule", {"at": [1.2]}),
        ("earliest-site", {"blueprint": []}),
        ("heuristic", {"floor": 0.0}),
        ("heuristic", {"floor": 0.4}),
        ("heuristic", {"temperature": 0.0}),
        ("heuristic", {"germinate_weight": -1.0}),
        ("heuristic", {"kernels_per_site": 0}),
        ("heuristic", {"best_kernel_frac": 0.0}),
        ("heuristic", {"depth_weight": math.inf}),
        ("heuristic", {"blueprint": []}),
    ],
)
def test_setting_out_of_range_is_refused(name, settings):
    with pytest.raises(ConfigError):
        make_policy(name, settings)


def test_kernel_the_policy_was_not_made_with_is_named():
    legal, _ = legal_actions(observation(), all_kernels(), {}, GrowthLimits(), Schedule())
    with pytest.raises(NotFound, match="kernel-"):
        make_policy("schedule").decide(observation(), legal)


def test_distribution_of_the_wrong_length_is_refused():
    with pytest.raises(PolicyInvalid, match="2 probabilities for 3"):
        require_distribution([0.5, 0.5], 3)
