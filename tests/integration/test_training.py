"""Short real runs from first step to last: what is recorded, what grows, what is refused."""

from __future__ import annotations

import math
from collections import Counter

import msgspec
import pytest
import torch
from torch import Tensor, nn

from esper.errors import Diverged, HostFailed
from esper.events.decision import DecisionExecuted, DecisionMade, DecisionRequested
from esper.events.run import (
    CheckpointSaved,
    EpochCompleted,
    GovernorTripped,
    RolledBack,
    RunFailed,
    RunFinished,
    RunStarted,
    TrainingStepCompleted,
)
from esper.events.seed import AlphaMoved, CounterfactualMeasured, SeedHealthMeasured, SeedTransitioned, SiteRegistered
from esper.oona.port import iterate
from esper.projections.open import open_tables
from esper.projections.runner import Projector
from esper.projections.trail import audit_trail
from esper.tolaria.launch import start
from esper.tolaria.tasks.digits import Digits
from replay.session import verify
from tests.training import SHORT, Place, place, record


@pytest.fixture(scope="module")
def grown() -> tuple[Place, str]:
    """One grown run that the tests of this module only read."""
    where = place()
    return where, record(where, policy="earliest-site").run_id


def test_every_step_is_a_fact_in_order(grown: tuple[Place, str]) -> None:
    steps = grown[0].of(TrainingStepCompleted)
    assert [fact.step for fact in steps] == list(range(1, SHORT.total_steps + 1))
    assert all(math.isfinite(fact.loss) and len(fact.samples_digest) == 16 for fact in steps)


def test_the_run_tells_what_is_needed_to_run_it_again(grown: tuple[Place, str]) -> None:
    (started,) = grown[0].of(RunStarted)
    assert started.entry_point == "digits"
    assert started.config["policy"] == "earliest-site"
    assert started.environment["threads"] == 1
    assert started.packages["torch"] == torch.__version__
    assert len(started.dataset_digest) == 32


def test_ordinals_are_gapless_and_versions_follow_them(grown: tuple[Place, str]) -> None:
    where, run_id = grown
    envelopes = where.log.read_stream(f"run/{run_id}", limit=5000)
    assert [envelope.version for envelope in envelopes] == list(range(1, len(envelopes) + 1))
    facts = [fact for fact in where.facts() if fact.stream == f"run/{run_id}"]
    assert [fact.ordinal for fact in facts] == list(range(1, len(facts) + 1))  # type: ignore[attr-defined]


def test_a_seed_is_grafted_measured_and_fossilised(grown: tuple[Place, str]) -> None:
    where, _ = grown
    states = [fact.target for fact in where.of(SeedTransitioned) if fact.seed_id == "seed-1"]
    assert states == ["germinated", "loading", "grafting", "stabilization", "evaluating", "fossilized"]
    assert where.of(AlphaMoved)[-1].alpha == 1.0
    assert where.of(CounterfactualMeasured)[0].samples > 100


def test_every_site_is_registered_and_probed(grown: tuple[Place, str]) -> None:
    where, _ = grown
    sites = {fact.site for fact in where.of(SiteRegistered)}
    probed = Counter(fact.site for fact in where.of(SeedHealthMeasured))
    assert sites
    assert set(probed) == sites
    assert set(probed.values()) == {SHORT.total_steps // SHORT.probe_every}


def test_the_audit_trail_tells_every_fact_of_a_real_run_but_single_steps_and_probes(grown: tuple[Place, str]) -> None:
    where, run_id = grown
    untold = {"TrainingStepCompleted", "SeedHealthMeasured", "AlphaMoved"}
    told = [e for e in iterate(where.log) if e.stream in {f"run/{run_id}", f"decision/{run_id}"}]
    engine = open_tables("sqlite://")
    Projector(where.log, engine).catch_up()
    with engine.connect() as tables:
        trail = audit_trail(tables, run_id)
    engine.dispose()
    assert [(entry.position, entry.type) for entry in trail] == [
        (e.position, e.type) for e in told if e.type not in untold
    ]
    assert {"KernelLoaded", "CounterfactualMeasured", "FieldReportFiled"} <= {entry.type for entry in trail}
    assert all(entry.sentence and "None" not in entry.sentence for entry in trail)


def test_every_decision_carries_its_full_distribution(grown: tuple[Place, str]) -> None:
    where, _ = grown
    made = where.of(DecisionMade)
    assert len(made) == len(where.of(DecisionRequested)) == len(where.of(DecisionExecuted))
    assert [fact.decision for fact in made] == list(range(1, len(made) + 1))
    for fact in made:
        assert len(fact.probabilities) == len(fact.legal)
        assert sum(fact.probabilities) == pytest.approx(1.0, abs=1e-12)
        assert fact.probabilities[fact.chosen] > 0


def test_growth_shows_in_parameters_and_flops(grown: tuple[Place, str]) -> None:
    where, _ = grown
    epochs = where.of(EpochCompleted)
    assert epochs[-1].parameters > epochs[0].parameters
    assert epochs[-1].training_flops > epochs[0].training_flops > 0
    (finished,) = where.of(RunFinished)
    assert finished.parameters == epochs[-1].parameters
    assert 0 <= finished.test_accuracy <= 1


def test_the_last_quarter_is_free_of_growth(grown: tuple[Place, str]) -> None:
    germinated = [fact for fact in grown[0].of(SeedTransitioned) if fact.target == "germinated"]
    assert germinated
    assert max(fact.step for fact in germinated) <= 0.75 * SHORT.total_steps


@pytest.mark.parametrize("policy", ["off", "random", "schedule", "heuristic"])
def test_each_rung_of_the_ladder_runs_and_verifies(policy: str) -> None:
    where = place()
    run_id = record(where, policy=policy, total_steps=240).run_id
    assert verify(where.log, where.store, run_id).finished
    germinated = [fact for fact in where.of(SeedTransitioned) if fact.target == "germinated"]
    assert bool(germinated) is (policy != "off")


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    digests = []
    for seed in (0, 0, 1):
        where = place()
        record(where, seed=seed, total_steps=60)
        digests.append(where.of(RunFinished)[0].parameter_digest)
    assert digests[0] == digests[1] != digests[2]


def test_probation_freezes_the_host_and_verifies() -> None:
    where = place()
    graft = msgspec.structs.replace(SHORT.graft, learning="probation", probation_steps=40)
    run_id = record(where, policy="earliest-site", graft=graft, total_steps=240).run_id
    states = [fact.target for fact in where.of(SeedTransitioned) if fact.seed_id == "seed-1"]
    assert states[:4] == ["germinated", "loading", "training", "grafting"]
    assert verify(where.log, where.store, run_id).finished


class RaisingHost(nn.Module):
    """A host that raises in its hundredth forward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls == 100:
            raise RuntimeError("the host gave way")
        result: Tensor = self.inner(x)
        return result


class Raising(Digits):
    """Digits on a host that raises."""

    def host(self, seed: int) -> nn.Module:
        return RaisingHost(super().host(seed))


class Exploding(Digits):
    """Digits whose loss is not finite as soon as any seed has come to half strength."""

    limit = 0.5

    def host(self, seed: int) -> nn.Module:
        self.built = super().host(seed)
        return self.built

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        grown = any(module._forward_hooks for module in self.built.modules())
        loss = super().loss(outputs, targets)
        return loss * float("nan") if grown and self.built.training and torch.is_grad_enabled() else loss


def test_a_host_that_raises_is_recorded_as_failed_and_nothing_is_lost() -> None:
    where = place()
    with pytest.raises(HostFailed, match="the host gave way"):
        record(where, "tests.integration.test_training:Raising", policy="off")
    (failed,) = where.of(RunFailed)
    assert failed.error == "RuntimeError"
    steps = where.of(TrainingStepCompleted)
    assert steps[-1].step == failed.step > 0
    assert where.of(CheckpointSaved)[-1].step <= failed.step


def test_a_loss_that_is_not_finite_rolls_back_and_culls_the_suspect() -> None:
    where = place()
    with pytest.raises(Diverged, match=r"rollbacks were made already|no graft is to blame"):
        record(where, "tests.integration.test_training:Exploding", policy="earliest-site", probe_every=1000)
    tripped, rolled = where.of(GovernorTripped), where.of(RolledBack)
    assert tripped[0].kind == "not_finite"
    assert rolled[0].culled_seed_id == tripped[0].suspect_seed_id == "seed-1"
    moves = [(fact.seed_id, fact.target) for fact in where.of(SeedTransitioned)]
    assert ("seed-1", "rolled_back") in moves
    after = [fact for fact in where.of(TrainingStepCompleted) if fact.attempt == 2]
    assert after
    assert after[0].step == rolled[0].to_step + 1
    assert isinstance(where.of(RunFailed)[0], RunFailed)


def test_start_with_an_unknown_policy_records_nothing() -> None:
    where = place()
    with pytest.raises(ValueError, match="no policy 'clever'"):
        start("digits", type(SHORT)(policy="clever"), log=where.log, store=where.store)
    assert where.log.head().position == 0
