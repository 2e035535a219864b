"""Histories of runs as a training process would leave them: lawful, varied, and the same for the same seed.

Belongs here: facts for tests and benchmarks that need volume or odd turns of life without training a network. The
lifecycle table is walked, not restated: a history in which a seed makes an illegal move cannot be built.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import msgspec

from esper.events import Event, Fact
from esper.events.blueprint import BlueprintRejected, BlueprintRetired, BlueprintSubmitted
from esper.events.decision import (
    Action,
    AdaptationCommanded,
    DecisionExecuted,
    DecisionMade,
    DecisionRequested,
    FieldReportFiled,
    MaskedAction,
    Observation,
    RandomDraw,
    Schedule,
    SiteObservation,
)
from esper.events.handler import BacklogHandled, EventParked, EventRetried, EventSkipped
from esper.events.kernel import (
    CompilationFailed,
    CompilationLeased,
    CompilationRequested,
    KernelCharacterized,
    KernelCompiled,
    KernelFormCompiled,
    KernelFormRefused,
    KernelQuarantined,
    KernelRejected,
    KernelTagged,
    KernelValidated,
    MeasurementRequested,
)
from esper.events.lifecycle import SeedState, Trigger, edge
from esper.events.message import MessagePublished
from esper.events.operator import LogRestored, NoteAdded
from esper.events.run import (
    CheckpointSaved,
    EpochCompleted,
    GovernorTripped,
    RolledBack,
    RunFailed,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    TrainingStepCompleted,
)
from esper.events.seed import (
    AlphaMoved,
    CounterfactualMeasured,
    KernelOffer,
    KernelsOffered,
    SeedFaulted,
    SeedFolded,
    SeedHealthMeasured,
    SeedTransitioned,
    SeedTransitionRefused,
    SiteRegistered,
)
from esper.ids import derived_id
from esper.oona.port import ANY, EventLog

BLUEPRINTS = ("res_mlp", "conv_bottleneck", "affine")
#: States a seed passes on its way from germination to evaluation, with who walks.
_UP = (
    (SeedState.GERMINATED, Trigger.COMMANDED),
    (SeedState.LOADING, Trigger.AUTOMATIC),
    (SeedState.GRAFTING, Trigger.AUTOMATIC),
    (SeedState.STABILIZATION, Trigger.GATED),
    (SeedState.EVALUATING, Trigger.GATED),
)


def digest(*parts: object) -> bytes:
    """Return 32 bytes that follow from parts."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).digest()


def blueprint_id(name: str) -> str:
    return digest("blueprint", name).hex()


def kernel_id(name: str, site: str) -> str:
    return digest("kernel", name, site).hex()


def library(sites: int = 4) -> list[Fact]:
    """Return how the blueprints and their kernels came to be, refusals and failures among them."""
    facts: list[Fact] = []
    for name in BLUEPRINTS:
        bid = blueprint_id(name)
        facts.append(
            BlueprintSubmitted(
                blueprint_id=bid,
                name=name,
                kind="residual",
                architecture_ir='{"name":"' + name + '"}',
                submitted_by="karn",
            )
        )
        for place in range(sites):
            facts += _kernel(name, f"body.{place}", valid=not (name == "affine" and place == 0))
    facts.append(
        CompilationFailed(
            blueprint_id=blueprint_id("affine"),
            signature={"kind": "attention"},
            error="BlueprintInvalid",
            message="no rank",
        )
    )
    facts.append(
        BlueprintRejected(
            blueprint_id=digest("unsound").hex(), name=None, reasons=["nodes[2]: unknown operator"], submitted_by="ada"
        )
    )
    facts.append(
        BlueprintSubmitted(
            blueprint_id=blueprint_id("hopeless"),
            name="hopeless",
            kind="residual",
            architecture_ir="{}",
            submitted_by="karn",
        )
    )
    facts.append(
        CompilationFailed(
            blueprint_id=blueprint_id("hopeless"),
            signature={"kind": "linear"},
            error="ShapeError",
            message="3 is not 4",
        )
    )
    facts += _worked("mutant", "body.0")
    facts.append(BlueprintRetired(blueprint_id=blueprint_id("affine"), reason="too weak", actor="operator:ada"))
    return facts


def _worked(name: str, site: str) -> list[Fact]:
    """Return what workers do to a mutated blueprint: two leases, forms, a tag, a quarantine, more measuring."""
    bid, kid, job = blueprint_id(name), kernel_id(name, site), digest("job", name, site).hex()[:32]
    compiled, characterized, validated = _kernel(name, site, valid=True)
    form = {
        "blueprint_id": bid,
        "kernel_id": kid,
        "toolchain": "torch 2.13.0",
        "hardware": "x86_64 AVX2",
        "value_difference": 1e-7,
        "gradient_difference": 2e-7,
        "tolerance": 1e-5,
    }
    made = KernelFormCompiled(
        **form,  # type: ignore[arg-type]
        pipeline="export",
        form_digest=digest("form", kid),
        compile_seconds=1.5,
        size_bytes=4096,
        peak_memory_bytes=None,
        eager_step_s=1e-3,
        form_step_s=9e-4,
        chosen=True,
        signed_by=None,
    )
    refused = KernelFormRefused(**form, pipeline="inductor", reason="unavailable", message="no compiler")  # type: ignore[arg-type]
    wanted = MeasurementRequested(
        blueprint_id=bid, kernel_id=kid, reason="another toolchain", toolchain="torch 3", requested_by="urabrask"
    )
    leases = [
        CompilationLeased(job_id=job, blueprint_id=bid, worker=f"tezzeret-{n}", token=n, attempt=n) for n in (1, 2)
    ]
    return [
        BlueprintSubmitted(
            blueprint_id=bid,
            name=name,
            kind="gate",
            architecture_ir="{}",
            submitted_by="karn",
            parent=blueprint_id("affine"),
            mutation="widen",
            novelty=0.25,
        ),
        CompilationRequested(
            job_id=job, blueprint_id=bid, signature={"kind": "linear"}, pipelines=["export"], requested_by="tolaria"
        ),
        *leases,
        msgspec.structs.replace(compiled, job_id=job, worker="tezzeret-2", hardware="x86_64 AVX2", signed_by="ab12"),
        characterized,
        validated,
        made,
        refused,
        msgspec.structs.replace(made, compile_seconds=2.5),
        KernelTagged(
            blueprint_id=bid,
            kernel_id=kid,
            tags=["fast", "small"],
            thresholds={"fast": 1.5},
            compared_with=7,
            risk=0.25,
            confidence=0.5,
            measurements_digest=digest("measured", kid),
        ),
        KernelQuarantined(
            blueprint_id=bid,
            kernel_id=kid,
            reason="damaged",
            message="other bytes",
            evidence_digest=digest("bad", kid),
            found_by="tolaria",
        ),
        wanted,
        msgspec.structs.replace(characterized, toolchain="torch 3", peak_memory_bytes=1 << 20),
        validated,
        CompilationRequested(
            job_id=job[::-1], blueprint_id=bid, signature={"kind": "norm"}, pipelines=[], requested_by="tolaria"
        ),
        msgspec.structs.replace(leases[0], job_id=job[::-1]),
        CompilationFailed(
            blueprint_id=bid,
            signature={"kind": "norm"},
            error="WorkFailed",
            message="too slow",
            job_id=job[::-1],
            reason="time_limit",
        ),
    ]


def _kernel(name: str, site: str, *, valid: bool) -> list[Fact]:
    bid, kid = blueprint_id(name), kernel_id(name, site)
    facts: list[Fact] = [
        KernelCompiled(
            blueprint_id=bid,
            kernel_id=kid,
            signature={"kind": "linear", "rank": "NC", "channels": 64, "site": site},
            symbols={"C": 64, "r": 4},
            parameters=8320,
            flops=16512,
            size_bytes=33900,
            compile_seconds=0.0123,
            toolchain="torch 2.13.0",
        ),
        KernelCharacterized(
            blueprint_id=bid,
            kernel_id=kid,
            checks={"birth_identity": True, "one_step_jump": valid},
            numbers={"birth_difference": 0.0, "one_step_jump": 0.01 if valid else math.inf},
            measurements_digest=digest("measured", kid),
            latency_p50_s=1e-4,
            latency_p99_s=None,
            measured_seconds=0.5,
        ),
    ]
    if valid:
        facts.append(KernelValidated(blueprint_id=bid, kernel_id=kid, measurements_digest=digest("measured", kid)))
    else:
        facts.append(
            KernelRejected(
                blueprint_id=bid, kernel_id=kid, measurements_digest=digest("measured", kid), failed=["one_step_jump"]
            )
        )
    return facts


@dataclass
class _Seed:
    seed_id: str
    site: str
    name: str
    state: SeedState = SeedState.DORMANT
    germinated: int = 0
    alpha: float = 0.0
    gain: float | None = None
    decision: int | None = None
    #: Where on the way up; the last entry is evaluation.
    stage: int = 0


@dataclass
class _State:
    """All that a checkpoint keeps."""

    step: int = 0
    flops: int = 0
    decision: int = 0
    loss: float = 2.3
    seeds: dict[str, _Seed] = field(default_factory=dict)


def _copy(state: _State) -> _State:
    seeds = {name: _Seed(**vars(seed)) for name, seed in state.seeds.items()}
    return _State(state.step, state.flops, state.decision, state.loss, seeds)


class _Writer:
    """Writes one run's facts; randomness comes from what is written, so that a redone step is the same step."""

    def __init__(self, run_id: str, *, steps: int, per_epoch: int, sites: int, seed: int, probe_every: int) -> None:
        self.run_id, self.steps, self.per_epoch, self.seed = run_id, steps, per_epoch, seed
        self.sites = [f"body.{place}" for place in range(sites)]
        self.probe_every = probe_every
        self.attempt, self.ordinal = 1, 0
        self.facts: list[Fact] = []
        self.state = _State()
        #: Checkpoints: how many facts stood before each, its digest and its state.
        self.saves: list[tuple[int, bytes, _State]] = []

    def emit(self, cls: type[Any], **fields: Any) -> None:
        self.ordinal += 1
        self.facts.append(cls(run_id=self.run_id, attempt=self.attempt, ordinal=self.ordinal, **fields))

    def decide(self, cls: type[Any], **fields: Any) -> None:
        self.facts.append(cls(run_id=self.run_id, attempt=self.attempt, **fields))

    def chance(self, *parts: object) -> random.Random:
        return random.Random("/".join(map(str, (self.seed, *parts))))

    def begin(self) -> None:
        for depth, site in enumerate(self.sites):
            self.emit(
                SiteRegistered,
                site=site,
                kind="linear",
                depth=depth,
                signature={"kind": "linear", "channels": 64, "positions": []},
                parameters=4160,
                flops=8192,
            )
        for site in self.sites:
            offers = [
                KernelOffer(
                    kernel_id=kernel_id(name, site),
                    blueprint_id=blueprint_id(name),
                    name=name,
                    parameters=8320,
                    flops=16512,
                )
                for name in BLUEPRINTS[:2]
            ]
            self.emit(KernelsOffered, site=site, offers=offers)
        self.save()

    def save(self) -> None:
        content = digest("checkpoint", self.run_id, self.state.step, self.attempt)
        self.saves.append((len(self.facts), content, _copy(self.state)))
        self.emit(CheckpointSaved, step=self.state.step, digest=content, size_bytes=123_456 + self.state.step)

    def step(self, *, loss: float | None = None) -> None:
        state = self.state
        state.step += 1
        state.flops += 3 * 64 * 100_000
        state.loss = 0.999 * state.loss + 0.001 * self.chance("loss", state.step).random()
        self.emit(
            TrainingStepCompleted,
            epoch=(state.step - 1) // self.per_epoch,
            step=state.step,
            loss=state.loss if loss is None else loss,
            learning_rate=0.1 / 3,
            samples_digest=digest("samples", state.step)[:16],
            duration_s=0.0021 + 1e-5 * self.attempt,
        )
        if state.step % self.probe_every == 0:
            self.probe()
        if state.step % self.per_epoch == 0 or state.step == self.steps:
            self.end_epoch()

    def probe(self) -> None:
        chance = self.chance("probe", self.state.step)
        for depth, site in enumerate(self.sites):
            present = [seed for seed in self.state.seeds.values() if seed.site == site]
            self.emit(
                SeedHealthMeasured,
                site=site,
                step=self.state.step,
                depth=depth,
                parameters=4160,
                flops=8192,
                gradient_norm=chance.random(),
                zr=chance.random() / 7,
                zr_over_wgrad=None if depth == 0 else chance.random(),
                effective_rank=chance.uniform(1, 64),
                dormant_frac=0.0,
                signal_to_noise=math.nan if depth == 1 else chance.random(),
                activation_variance=chance.random(),
                dead_frac=0.0,
                mean_correlation=None,
                seeds_present=len(present),
                alpha=max((seed.alpha for seed in present), default=0.0),
            )

    def end_epoch(self) -> None:
        state = self.state
        epoch = (state.step - 1) // self.per_epoch
        for seed in state.seeds.values():
            if seed.state in (SeedState.EVALUATING, SeedState.FINE_TUNING):
                self.measure(seed)
            if seed.state is SeedState.GRAFTING:
                seed.alpha = min(1.0, seed.alpha + 0.5)
                self.emit(
                    AlphaMoved, seed_id=seed.seed_id, site=seed.site, step=state.step, alpha=seed.alpha, target=1.0
                )
        self.emit(
            EpochCompleted,
            epoch=epoch,
            step=state.step,
            train_loss=state.loss,
            validation_loss=None if epoch == 1 else state.loss * 1.1,
            validation_accuracy=None if epoch == 1 else 1 - state.loss / 3,
            parameters=20_000 + 8320 * sum(seed.state is not SeedState.DORMANT for seed in state.seeds.values()),
            training_flops=state.flops,
            parameter_digest=digest("parameters", state.step),
            data_digest=digest("data", epoch),
            duration_s=1.5,
        )
        for seed in list(state.seeds.values()):
            self.advance(seed)
        self.choose(epoch)
        self.save()

    def measure(self, seed: _Seed) -> None:
        seed.gain = self.chance("gain", seed.seed_id, self.state.step).uniform(-0.01, 0.05)
        self.emit(
            CounterfactualMeasured,
            seed_id=seed.seed_id,
            site=seed.site,
            step=self.state.step,
            samples=500,
            loss_with=self.state.loss,
            loss_without=self.state.loss + seed.gain,
            gain=seed.gain,
            gain_stderr=0.003,
            batch_norm_reestimated=False,
        )

    def advance(self, seed: _Seed) -> None:
        """Let a seed walk the gated and automatic edges that are open to it."""
        if seed.state in (SeedState.GRAFTING, SeedState.STABILIZATION):
            if seed.alpha < 1.0:
                self.emit(
                    SeedTransitionRefused,
                    seed_id=seed.seed_id,
                    site=seed.site,
                    source=seed.state.value,
                    target=SeedState.STABILIZATION.value,
                    step=self.state.step,
                    gate="alpha_reached",
                    evidence={"alpha": seed.alpha, "target": None},
                    decision=None,
                )
                return
            seed.stage += 1
            self.move(seed, *_UP[seed.stage], reason="gate passed")
        elif seed.state is SeedState.CULLED:
            self.move(seed, SeedState.EMBARGOED, Trigger.GATED, reason="faded")
        elif seed.state is SeedState.EMBARGOED:
            self.move(seed, SeedState.DORMANT, Trigger.GATED, reason="embargo over")

    def move(
        self, seed: _Seed, target: SeedState, trigger: Trigger, *, reason: str, decision: int | None = None
    ) -> None:
        found = edge(seed.state, target)
        assert found is not None, (seed.state, target)
        assert trigger in found.triggers
        self.emit(
            SeedTransitioned,
            seed_id=seed.seed_id,
            site=seed.site,
            source=seed.state.value,
            target=target.value,
            step=self.state.step,
            trigger=trigger.value,
            reason=reason,
            evidence={"alpha": seed.alpha, "gain": seed.gain},
            blueprint_id=blueprint_id(seed.name),
            kernel_id=kernel_id(seed.name, seed.site),
            decision=decision,
            parameters=8320,
        )
        seed.state = target

    def choose(self, epoch: int) -> None:
        """Ask for a decision, make it and carry it out."""
        state = self.state
        state.decision += 1
        number, step = state.decision, state.step
        legal = self.legal()
        chance = self.chance("choice", step)
        weights = [chance.random() for _ in legal]
        chosen = max(range(len(legal)), key=weights.__getitem__)
        action = legal[chosen]
        seen = self.observation(epoch)
        common = {"decision": number}
        self.decide(
            DecisionRequested,
            **common,
            step=step,
            epoch=epoch,
            feature_schema="sites-1",
            observation=seen,
            observation_digest=digest("seen", step),
        )
        self.decide(
            DecisionMade,
            **common,
            policy_id="heuristic",
            policy_digest=digest("policy"),
            mode="live",
            observation_digest=digest("seen", step),
            feature_schema="sites-1",
            legal=legal,
            masked=[MaskedAction(kind="fossilize", site=None, seed_id=None, reason="nothing to keep")],
            probabilities=[weight / sum(weights) for weight in weights],
            chosen=chosen,
            uniform=chance.random(),
            random=RandomDraw(algorithm="philox", key=[self.seed, number], counter=0),
        )
        refused = number % 7 == 3
        if action.kind != "noop":
            self.decide(AdaptationCommanded, **common, action=action)
            if not refused:
                self.execute(action, number)
        reason = "refused: E-GRW-002" if refused else None
        self.decide(DecisionExecuted, **common, step=step, executed=not refused, reason=reason)

    def legal(self) -> list[Action]:
        taken = {seed.site for seed in self.state.seeds.values() if seed.state is not SeedState.DORMANT}
        free = [site for site in self.sites if site not in taken]
        actions = [Action(kind="noop")]
        actions += [
            Action(
                kind="germinate",
                site=site,
                blueprint_id=blueprint_id(name),
                kernel_id=kernel_id(name, site),
                schedule=Schedule(ramp_steps=2 * self.per_epoch),
            )
            for site in free
            for name in BLUEPRINTS[:2]
        ]
        for seed in self.state.seeds.values():
            if seed.state is SeedState.EVALUATING:
                actions += [Action(kind=kind, site=seed.site, seed_id=seed.seed_id) for kind in ("fossilize", "cull")]
        return actions

    def execute(self, action: Action, decision: int) -> None:
        if action.kind == "germinate":
            assert action.site is not None
            name = next(name for name in BLUEPRINTS if blueprint_id(name) == action.blueprint_id)
            seed = _Seed(f"seed-{len(self.state.seeds) + 1}", action.site, name, germinated=self.state.step)
            self.state.seeds[seed.seed_id] = seed
            for target, trigger in _UP[:3]:
                self.move(seed, target, trigger, reason=action.kind, decision=decision)
            seed.stage = 2
            return
        assert action.seed_id is not None
        seed = self.state.seeds[action.seed_id]
        target = SeedState.FOSSILIZED if action.kind == "fossilize" else SeedState.CULLED
        self.move(seed, target, Trigger.COMMANDED, reason=action.kind, decision=decision)
        self.report(seed, target.value)

    def report(self, seed: _Seed, outcome: str) -> None:
        self.decide(
            FieldReportFiled,
            seed_id=seed.seed_id,
            site=seed.site,
            blueprint_id=blueprint_id(seed.name),
            kernel_id=kernel_id(seed.name, seed.site),
            outcome=outcome,
            steps=self.state.step - seed.germinated,
            gain=seed.gain,
            gain_stderr=None if seed.gain is None else 0.003,
        )

    def observation(self, epoch: int) -> Observation:
        chance = self.chance("observation", self.state.step)
        sites = [
            SiteObservation(
                site=site,
                kind="linear",
                depth=depth,
                depth_frac=depth / max(len(self.sites) - 1, 1),
                parameters=4160,
                flops=8192,
                gradient_norm=chance.random(),
                zr=chance.random(),
                zr_over_wgrad=None,
                effective_rank=chance.uniform(1, 64),
                dormant_frac=0.0,
                signal_to_noise=chance.random(),
                activation_variance=chance.random(),
                dead_frac=0.0,
                mean_correlation=None,
                seeds_present=0,
                alpha=0.0,
            )
            for depth, site in enumerate(self.sites)
        ]
        return Observation(
            step=self.state.step,
            total_steps=self.steps,
            epoch=epoch,
            train_loss=self.state.loss,
            validation_loss=None,
            recent_train_losses=[self.state.loss],
            recent_validation_losses=[],
            parameters=20_000,
            initial_parameters=20_000,
            germinated=len(self.state.seeds),
            sites=sites,
            seeds=[],
        )

    def fault(self) -> None:
        """Let the youngest attached seed fail in a forward pass, which culls it."""
        for seed in reversed(self.state.seeds.values()):
            if seed.state in (SeedState.GRAFTING, SeedState.STABILIZATION, SeedState.EVALUATING):
                self.emit(
                    SeedFaulted,
                    seed_id=seed.seed_id,
                    site=seed.site,
                    step=self.state.step,
                    kind="not_finite",
                    message="output holds NaN",
                    traceback_digest=digest("traceback"),
                )
                self.move(seed, SeedState.CULLED, Trigger.AUTOMATIC, reason="fault")
                self.report(seed, "faulted")
                return

    def roll_back(self) -> None:
        """Trip the governor on a loss that is not a number and go back to the last checkpoint."""
        self.emit(
            GovernorTripped,
            step=self.state.step,
            kind="not_finite",
            evidence={"loss": math.nan, "threshold": math.inf},
            suspect_seed_id=None,
        )
        from_step = self.state.step
        self._go_back()
        alive = [seed for seed in self.state.seeds.values() if seed.state is SeedState.GRAFTING]
        culled = alive[-1] if alive else None
        self.emit(
            RolledBack,
            from_step=from_step,
            to_step=self.state.step,
            checkpoint_digest=self.saves[-1][1],
            culled_seed_id=None if culled is None else culled.seed_id,
        )
        if culled is not None:
            self.move(culled, SeedState.ROLLED_BACK, Trigger.AUTOMATIC, reason="suspect")

    def die(self, *, kept: int) -> None:
        """Lose every fact after the first so many, as a killed process does that had not flushed them."""
        self.facts = self.facts[:kept]
        self.saves = [save for save in self.saves if save[0] < kept]
        self.attempt = max(fact.attempt for fact in self.facts if hasattr(fact, "attempt"))
        steps = [fact.step for fact in self.facts if isinstance(fact, TrainingStepCompleted)]
        self.state.step = steps[-1] if steps else 0

    def resume(self, *, reason: str = "killed") -> None:
        """Go on from the last checkpoint as a new process does."""
        redone = self.state.step
        self._go_back()
        content = self.saves[-1][1] if self.saves else b""
        self.emit(
            RunResumed,
            from_step=self.state.step,
            checkpoint_digest=content,
            redone_steps=redone - self.state.step,
            writer="w",
            reason=reason,
            environment_digest=digest("environment"),
        )
        if not self.saves:
            self.begin()

    def _go_back(self) -> None:
        self.state = _copy(self.saves[-1][2]) if self.saves else _State()
        self.attempt += 1
        self.ordinal = 0

    def finish(self) -> None:
        for seed in self.state.seeds.values():
            if seed.state is SeedState.FOSSILIZED:
                self.emit(
                    SeedFolded,
                    seed_id=seed.seed_id,
                    site=seed.site,
                    step=self.state.step,
                    folded_into=seed.site,
                    max_difference=1e-7,
                )
        self.emit(
            RunFinished,
            step=self.state.step,
            test_loss=self.state.loss,
            test_accuracy=0.9,
            parameters=28_320,
            folded_parameters=24_160,
            training_flops=self.state.flops,
            inference_flops=100_000,
            parameter_digest=digest("parameters", "final"),
            duration_s=12.5,
        )


def started(run_id: str, *, steps: int = 100, attempt: int = 1, **fields: Any) -> RunStarted:
    """Return the first fact of a run."""
    values: dict[str, Any] = {
        "task": "digits",
        "entry_point": "digits",
        "host": "Mlp(64)",
        "policy": "heuristic",
        "config": {"batch_size": 64, "optimizer": {"name": "sgd", "learning_rate": 0.1}},
        "config_version": 1,
        "seeds": {"run": 1, "host": 2, "data": 3, "order": 4},
        "total_steps": steps,
        "steps_per_epoch": 10,
        "git_commit": "0" * 40,
        "git_dirty_digest": None,
        "packages": {"torch": "2.13.0", "numpy": "2.1"},
        "environment": {"threads": 1, "deterministic": True},
        "environment_digest": digest("environment"),
        "dataset_digest": digest("digits"),
    }
    return RunStarted(run_id=run_id, attempt=attempt, ordinal=1, **{**values, **fields})


def history(
    run_id: str,
    *,
    steps: int = 100,
    per_epoch: int = 10,
    sites: int = 4,
    seed: int = 0,
    probe_every: int | None = None,
    kills: Iterable[int] = (),
    rollbacks: Iterable[int] = (),
    fault_at: int | None = None,
    pause_at: int | None = None,
    end: str = "finished",
) -> list[Fact]:
    """Return the facts of one run, in order.

    Args:
        run_id: The run.
        steps: Optimiser steps in all.
        per_epoch: Steps of an epoch, which ends with a decision and a checkpoint.
        sites: Places where a seed can be grafted.
        seed: Gives other numbers and choices.
        probe_every: Steps between two probes; an epoch when left out.
        kills: How many facts are durable when the process dies and a new attempt goes on; a death before the first
            checkpoint begins again from nothing.
        rollbacks: Steps whose loss is not a number.
        fault_at: Step at which an attached seed fails.
        pause_at: Step after which the run is paused and resumed.
        end: ``finished``, ``failed`` or ``running``, which is what a dead process leaves.
    """
    writer = _Writer(
        run_id, steps=steps, per_epoch=per_epoch, sites=sites, seed=seed, probe_every=probe_every or per_epoch
    )
    writer.facts.append(started(run_id, steps=steps, steps_per_epoch=per_epoch))
    writer.ordinal = 1
    writer.begin()
    deaths, bad = sorted(kills), sorted(rollbacks)
    while writer.state.step < steps:
        if deaths and len(writer.facts) >= deaths[0]:
            writer.die(kept=deaths.pop(0))
            writer.resume()
            continue
        number = writer.state.step + 1
        trip = bool(bad) and number == bad[0]
        writer.step(loss=math.nan if trip else None)
        if trip:
            bad.pop(0)
            writer.roll_back()
        elif number == fault_at and writer.attempt == 1:
            writer.fault()
        elif number == pause_at:
            pause_at = None
            writer.save()
            writer.emit(RunPaused, step=number, reason="asked to stop")
            writer.resume(reason="asked to go on")
    if end == "finished":
        writer.finish()
    elif end == "failed":
        writer.emit(
            RunFailed, step=writer.state.step, error="HostFailed", message="no more data", traceback_digest=digest("tb")
        )
    return [*writer.facts, NoteAdded(run_id=run_id, actor="operator:ada", text="looks good")]


def events(facts: Iterable[Fact]) -> Iterator[Event]:
    """Give facts the envelopes' fields a writer chooses; ids follow from the place in the iteration and the fact."""
    for place, fact in enumerate(facts):
        yield Event(
            fact=fact,
            event_id=derived_id("builder", fact.stream, place, fact.info.name),
            sender_id="builder",
            trace_id="0" * 32,
        )


def append(log: EventLog, facts: Iterable[Fact], *, batch: int = 512) -> int:
    """Append facts in order, neighbours on one stream together; return how many there were."""
    count, run = 0, log.head().position
    numbered = (
        Event(
            fact=event.fact,
            event_id=derived_id("builder", run, event.event_id.hex()),
            sender_id="builder",
            trace_id="0" * 32,
        )
        for event in events(facts)
    )
    for stream, group in groupby(numbered, key=lambda event: event.fact.stream):
        part = list(group)
        for start in range(0, len(part), batch):
            log.append(part[start : start + batch], stream=stream, expected=ANY)
        count += len(part)
    return count


def troubles() -> list[Fact]:
    """Return facts of handlers that gave up on events, of what people did about it, and of a restored log."""

    def parked(position: int, parking: int) -> EventParked:
        return EventParked(
            handler="mirror",
            position=position,
            event_id=derived_id("event", position),
            event_type="NoteAdded",
            event_stream="operator/run-0001",
            event_version=position,
            parking=parking,
            attempts=5,
            member="host-1",
            cause="ValueError",
            message="no such run",
            traceback_digest=digest("traceback", position) if parking == 1 else None,
        )

    about = {"handler": "mirror", "actor": "operator:ada", "reason": "looked at it"}
    return [
        parked(3, 1),
        parked(4, 1),
        EventRetried(position=3, parking=1, **about),
        parked(3, 2),
        EventSkipped(position=4, parking=1, **about),
        EventRetried(position=3, parking=2, **about),
        BacklogHandled(handler="mirror", position=4, parking=1, through=9),
        BacklogHandled(handler="mirror", position=3, parking=2, through=11),
        parked(7, 1),
        MessagePublished(topic="a.topic", message_id="m-1", trace="t-1", published_at=1, payload={"loss": math.nan}),
        LogRestored(
            namespace="main", generation=2, through=12, chain=digest("chain"), actor="operator:ada", reason="disk lost"
        ),
    ]


def realistic(*, scale: int = 1) -> list[Fact]:
    """Return a library and runs with every turn of life: kills, rollbacks, a fault, a pause, failure, death."""
    facts = library()
    steps = 100 * scale
    facts += history("run-0001", steps=steps, seed=1)
    undisturbed = history("run-0002", steps=steps, seed=2)
    decided = [place for place, fact in enumerate(undisturbed, 1) if isinstance(fact, DecisionExecuted)]
    # Between a decision and the checkpoint after it, where most is taken back, and in the middle of an epoch.
    facts += history("run-0002", steps=steps, seed=2, kills=(decided[2], decided[5] + 9))
    facts += history("run-0003", steps=steps, seed=3, rollbacks=(25, 47), fault_at=35)
    facts += history("run-0004", steps=steps // 2, seed=4, pause_at=24, end="failed")
    facts += history("run-0005", steps=40, seed=6, kills=(60,), rollbacks=(33,), end="running")
    facts += history("run-0006", steps=30, sites=2, seed=5, kills=(7,))
    facts += troubles()
    return facts
