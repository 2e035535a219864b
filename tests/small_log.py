"""A small log that a short run could have left, made of real facts, for tests of what reads a log."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from esper.clock import ManualClock
from esper.events import Event, Fact
from esper.events.blueprint import BlueprintSubmitted
from esper.events.decision import (
    Action,
    AdaptationCommanded,
    DecisionExecuted,
    DecisionMade,
    DecisionRequested,
    FieldReportFiled,
    Observation,
    RandomDraw,
    Schedule,
)
from esper.events.kernel import KernelCharacterized, KernelCompiled, KernelValidated
from esper.events.run import EpochCompleted, RunFinished, RunStarted, TrainingStepCompleted
from esper.events.seed import KernelOffer, KernelsOffered, SeedTransitioned, SiteRegistered
from esper.ids import derived_id
from esper.oona import ANY, EventLog, open_log

OLDER, NEWER = "run-0001", "run-0002"
BLUEPRINT, KERNEL = "b1" * 32, "c2" * 32
SEED_ID = "seed-1"
SITE = "body.2"


def write_small_log(path: Path) -> int:
    """Write two runs, the newer one with a grafted seed, and return the position of the head."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clock = ManualClock()
    log = open_log(f"sqlite:///{path}", clock=clock)
    try:
        for fact in (*_forge_facts(), *_run_facts(OLDER, steps=2), *_run_facts(NEWER, steps=4, grown=True)):
            clock.advance(1_000)
            _append(log, fact)
        return log.head().position
    finally:
        log.close()


def _append(log: EventLog, fact: Fact) -> None:
    event_id = derived_id("small-log", type(fact).__name__, repr(fact))
    log.append(
        [Event(fact=fact, event_id=event_id, sender_id="tolaria", trace_id="ab" * 16)],
        stream=fact.stream,
        expected=ANY,
    )


def _forge_facts() -> list[Fact]:
    measured = bytes(32)
    return [
        BlueprintSubmitted(
            blueprint_id=BLUEPRINT, name="res_mlp", kind="residual", architecture_ir="{}", submitted_by="library"
        ),
        KernelCompiled(
            blueprint_id=BLUEPRINT,
            kernel_id=KERNEL,
            signature={"kind": "linear", "channels": 8},
            symbols={"C": 8},
            parameters=72,
            flops=144,
            size_bytes=1000,
            compile_seconds=0.01,
            toolchain="torch 2.13.0",
        ),
        KernelCharacterized(
            blueprint_id=BLUEPRINT,
            kernel_id=KERNEL,
            checks={"birth_identity": True},
            numbers={"birth_identity": 0.0},
            measurements_digest=measured,
            latency_p50_s=None,
            latency_p99_s=None,
            measured_seconds=0.02,
        ),
        KernelValidated(blueprint_id=BLUEPRINT, kernel_id=KERNEL, measurements_digest=measured),
    ]


class _Numbered:
    """Gives each fact of a run its ordinal."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._next: defaultdict[int, int] = defaultdict(lambda: 1)

    def __call__(self, fact_type: type[Fact], /, **fields: Any) -> Fact:
        ordinal = self._next[1]
        self._next[1] += 1
        return fact_type(run_id=self._run_id, attempt=1, ordinal=ordinal, **fields)


def _run_facts(run_id: str, *, steps: int, grown: bool = False) -> list[Fact]:
    made = _Numbered(run_id)
    facts = [
        made(
            RunStarted,
            task="digits",
            entry_point="digits",
            host="Mlp(8)",
            policy="heuristic" if grown else "off",
            config={"seed": 3},
            config_version=1,
            seeds={"run": 3},
            total_steps=steps,
            steps_per_epoch=2,
            git_commit=None,
            git_dirty_digest=None,
            packages={"torch": "2.13.0"},
            environment={"threads": 1},
            environment_digest=bytes(32),
            dataset_digest=bytes(32),
        ),
        made(
            SiteRegistered,
            site=SITE,
            kind="linear",
            depth=0,
            signature={"kind": "linear", "channels": 8},
            parameters=72,
            flops=144,
        ),
    ]
    if grown:
        offer = KernelOffer(kernel_id=KERNEL, blueprint_id=BLUEPRINT, name="res_mlp", parameters=72, flops=144)
        facts.append(made(KernelsOffered, site=SITE, offers=[offer]))
    for step in range(1, steps + 1):
        if grown and step == 3:
            facts += _graft(run_id, made)
        epoch = (step - 1) // 2
        facts.append(
            made(
                TrainingStepCompleted,
                epoch=epoch,
                step=step,
                loss=1.0 / step,
                learning_rate=1e-3,
                samples_digest=bytes(16),
                duration_s=0.001,
            )
        )
        if step % 2 == 0:
            facts.append(
                made(
                    EpochCompleted,
                    epoch=epoch,
                    step=step,
                    train_loss=1.0 / step,
                    validation_loss=1.1 / step,
                    validation_accuracy=0.5 + step / 100,
                    parameters=100,
                    training_flops=1000 * step,
                    parameter_digest=bytes(32),
                    data_digest=bytes(32),
                    duration_s=0.01,
                )
            )
    facts.append(
        made(
            RunFinished,
            step=steps,
            test_loss=0.4,
            test_accuracy=0.9 if grown else 0.8,
            parameters=172 if grown else 100,
            folded_parameters=172 if grown else 100,
            training_flops=1000 * steps,
            inference_flops=288,
            parameter_digest=bytes(32),
            duration_s=0.1,
        )
    )
    return facts


def _graft(run_id: str, made: _Numbered) -> list[Fact]:
    observation = Observation(
        step=2,
        total_steps=4,
        epoch=1,
        train_loss=0.5,
        validation_loss=0.55,
        recent_train_losses=[0.5],
        recent_validation_losses=[0.55],
        parameters=100,
        initial_parameters=100,
        germinated=0,
        sites=[],
        seeds=[],
    )
    noop, germinate = _actions()
    common = {"run_id": run_id, "attempt": 1, "decision": 1}
    return [
        DecisionRequested(
            **common,
            step=2,
            epoch=1,
            feature_schema="site-1",
            observation=observation,
            observation_digest=bytes(32),
        ),
        DecisionMade(
            **common,
            policy_id="heuristic",
            policy_digest=bytes(32),
            mode="live",
            observation_digest=bytes(32),
            feature_schema="site-1",
            legal=[noop, germinate],
            masked=[],
            probabilities=[0.25, 0.75],
            chosen=1,
            uniform=0.6,
            random=RandomDraw(algorithm="philox", key=[1, 2], counter=1),
        ),
        AdaptationCommanded(**common, action=germinate),
        DecisionExecuted(**common, step=2, executed=True, reason=None),
        made(
            SeedTransitioned,
            seed_id=SEED_ID,
            site=SITE,
            source="dormant",
            target="germinated",
            step=2,
            trigger="commanded",
            reason="policy",
            evidence={},
            blueprint_id=BLUEPRINT,
            kernel_id=KERNEL,
            decision=1,
            parameters=72,
        ),
        FieldReportFiled(
            run_id=run_id,
            attempt=1,
            seed_id=SEED_ID,
            site=SITE,
            blueprint_id=BLUEPRINT,
            kernel_id=KERNEL,
            outcome="culled",
            steps=10,
            gain=None,
            gain_stderr=None,
        ),
    ]


def _actions() -> tuple[Action, Action]:
    germinate = Action(kind="germinate", site=SITE, blueprint_id=BLUEPRINT, kernel_id=KERNEL, schedule=Schedule())
    return Action(kind="noop"), germinate
