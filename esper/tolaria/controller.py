"""Decision points: what training shows the policy, what the policy answers, and what becomes of it.

Belongs here: building the observation, asking, drawing, recording and carrying out one action. Which action is wise
is the policy's affair (``esper.tamiyo``); how it is done to the host is Kasmina's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import msgspec

from esper.errors import ArtifactError, ArtifactStoreUnavailable, BlueprintError, GrowthError
from esper.events.decision import (
    Action,
    AdaptationCommanded,
    DecisionExecuted,
    DecisionMade,
    DecisionRequested,
    FieldReportFiled,
    Observation,
    SeedObservation,
    SiteObservation,
)
from esper.events.lifecycle import SeedState
from esper.events.seed import KernelLoaded
from esper.kasmina import Growth, Seed
from esper.kasmina.gauges import Gauges
from esper.kasmina.life import Command
from esper.tamiyo import (
    FEATURE_SCHEMA,
    KernelOption,
    Policy,
    draw,
    legal_actions,
    observation_digest,
)
from esper.tolaria.config import RunConfig
from esper.tolaria.outcomes import refusal_reason
from esper.tolaria.sink import FactSink
from esper.tolaria.supply import KernelSupply

#: Makes a run's policy once its kernels by site are known.
MakePolicy = Callable[[Mapping[str, Sequence[KernelOption]]], Policy]

#: Kinds of kernel that read the site's input; the others read its output.
_READ_INPUT = frozenset({"lowrank_weight", "width"})

#: Epochs of losses that an observation carries.
_RECENT = 8


class Controller:
    """Takes one decision at each decision point of a run."""

    def __init__(
        self,
        growth: Growth,
        make_policy: MakePolicy,
        sink: FactSink,
        supply: KernelSupply,
        *,
        config: RunConfig,
        run_seed: int,
    ) -> None:
        """Bind a policy to a run's growth.

        Args:
            growth: Seeds and sites of the host.
            make_policy: Makes what decides, once the kernels are known.
            sink: Where the facts go.
            supply: Gives kernels, in time and checked.
            config: Limits of growth and how new seeds join the host.
            run_seed: Key of the decisions' random draws.
        """
        self.growth = growth
        self.kernels: dict[str, list[KernelOption]] = {}
        self._make_policy = make_policy
        self._policy: Policy = make_policy({})
        self._sink = sink
        self._supply = supply
        #: Kernels that could not be had; they are offered no more.
        self._withdrawn: list[str] = []
        self._config = config
        self._run_seed = run_seed
        self._decision = 0
        self._germinated_at: int | None = None
        self._recent_train: list[float] = []
        self._recent_validation: list[float] = []
        self._health: dict[str, dict[str, Any]] = {}

    def offer(self, kernels: Mapping[str, Sequence[KernelOption]]) -> None:
        """Fix the kernels that decisions may choose from, in the order of sites, and begin to bring them."""
        self.kernels = {path: list(kernels[path]) for path in self.growth.sites if kernels.get(path)}
        self._policy = self._make_policy(self.kernels)
        self._supply.expect(self.kernels, self._policy)

    def note_health(self, measured: Mapping[str, Gauges]) -> None:
        """Keep the latest telemetry of each site for the next observation."""
        for path, gauges in measured.items():
            self._health[path] = msgspec.structs.asdict(gauges)

    def note_epoch(self, train_loss: float, validation_loss: float | None) -> None:
        """Keep an epoch's losses for the next observations."""
        self._recent_train = [*self._recent_train, train_loss][-_RECENT:]
        if validation_loss is not None:
            self._recent_validation = [*self._recent_validation, validation_loss][-_RECENT:]

    def decide(self, observation: Observation) -> Action:
        """Ask the policy, draw, record everything and carry the action out.

        Args:
            observation: What the policy sees.

        Returns:
            The action that was chosen; whether it was executed is a fact.
        """
        self._decision += 1
        digest = observation_digest(observation)
        self._sink.emit(
            DecisionRequested,
            decision=self._decision,
            step=observation.step,
            epoch=observation.epoch,
            feature_schema=FEATURE_SCHEMA,
            observation=observation,
            observation_digest=digest,
        )
        legal, masked = legal_actions(
            observation,
            self._on_offer(),
            self._closed(observation.step),
            self._config.limits,
            self._config.graft,
            last_germination_step=self._germinated_at,
        )
        probabilities = self._policy.decide(observation, legal)
        chosen, uniform, random = draw(probabilities, self._run_seed, self._decision)
        self._sink.emit(
            DecisionMade,
            decision=self._decision,
            policy_id=self._policy.policy_id,
            policy_digest=self._policy.digest,
            mode="live",
            observation_digest=digest,
            feature_schema=FEATURE_SCHEMA,
            legal=legal,
            masked=masked,
            probabilities=probabilities,
            chosen=chosen,
            uniform=uniform,
            random=random,
        )
        action = legal[chosen]
        if action.kind != "noop":
            self._sink.emit(AdaptationCommanded, decision=self._decision, action=action)
        reason = self._execute(action, observation.step)
        self._sink.emit(
            DecisionExecuted,
            decision=self._decision,
            step=observation.step,
            executed=reason is None,
            reason=reason,
        )
        return action

    def _execute(self, action: Action, step: int) -> str | None:
        """Carry an action out; return why not where it was refused."""
        try:
            if action.kind == "germinate":
                self.germinate(action, step, self._decision)
            elif action.seed_id is not None:
                command = cast("Command", action.kind)
                self.growth.command(command, action.seed_id, step=step, decision=self._decision)
                if command != "advance":
                    self.report(self.growth.seeds[action.seed_id], step)
        except ArtifactStoreUnavailable:
            # Another time the store answers, so a refusal could not be replayed: the run stops and can be resumed.
            raise
        except (BlueprintError, ArtifactError) as error:
            # Whatever the reason: a replay knows that it could not be had, and must offer what the run offered.
            self._withdrawn.append(str(action.kernel_id))
            self._supply.refuse(str(action.kernel_id), error)
            return refusal_reason(error)
        except GrowthError as error:
            return refusal_reason(error)
        return None

    def _closed(self, step: int) -> dict[str, str]:
        """Return the sites that take no seed now, with the reason."""
        return {path: one.reason for path, one in self.growth.free_sites(step).items() if one.reason is not None}

    def germinate(self, action: Action, step: int, decision: int | None) -> Seed:
        """Graft a kernel at a site.

        Raises:
            ArtifactError: The kernel cannot be had.
            BlueprintError: The kernel is none, or one for another site.
            GrowthError: The site takes no seed.
        """
        if action.site is None or action.kernel_id is None:
            raise GrowthError(f"an action that germinates names a site and a kernel, this one does not: {action}")
        site = self.growth.sites.get(action.site)
        signature = None if site is None else site.signature
        taken = self._supply.take(action.kernel_id, signature, decision=decision)
        self._germinated_at = step
        seed_id = f"seed-{len(self.growth.seeds) + 1}"
        self._sink.emit(
            KernelLoaded,
            seed_id=seed_id,
            site=action.site,
            kernel_id=action.kernel_id,
            step=step,
            source=taken.source,
            stall_s=taken.stall_s,
        )
        return self.growth.germinate(
            action.site,
            taken.branch,
            seed_id=seed_id,
            blueprint_id=action.blueprint_id,
            kernel_id=action.kernel_id,
            reads="input" if taken.kernel.manifest.kind in _READ_INPUT else "output",
            schedule=action.schedule or self._config.graft,
            step=step,
            decision=decision,
            shared=decision is None,
        )

    def _on_offer(self) -> dict[str, list[KernelOption]]:
        """Return the kernels that can be chosen now."""
        return {
            path: [option for option in options if option.kernel_id not in self._withdrawn]
            for path, options in self.kernels.items()
        }

    def flops_of(self, seed: Seed) -> int:
        """Return the forward FLOPs that a seed adds for one sample, as its kernel was offered."""
        offered = self.kernels.get(seed.site.path, [])
        return next((option.flops for option in offered if option.kernel_id == seed.kernel_id), 0)

    def report(self, seed: Seed, step: int) -> None:
        """File how a seed came to its end."""
        measured = seed.counterfactual
        if seed.fault is not None:
            outcome = "faulted"
        else:
            outcome = "fossilized" if seed.state is SeedState.FOSSILIZED else "culled"
        self._sink.emit(
            FieldReportFiled,
            seed_id=seed.id,
            site=seed.site.path,
            blueprint_id=seed.blueprint_id,
            kernel_id=seed.kernel_id,
            outcome=outcome,
            steps=step - seed.germinated_at,
            gain=None if measured is None else measured.gain,
            gain_stderr=None if measured is None else measured.gain_stderr,
        )

    def observe(
        self, *, step: int, total_steps: int, epoch: int, parameters: int, initial_parameters: int
    ) -> Observation:
        """Return what the policy sees now."""
        deepest = max((site.depth for site in self.growth.sites.values()), default=0)
        return Observation(
            step=step,
            total_steps=total_steps,
            epoch=epoch,
            train_loss=self._recent_train[-1],
            validation_loss=self._recent_validation[-1] if self._recent_validation else None,
            recent_train_losses=list(self._recent_train),
            recent_validation_losses=list(self._recent_validation),
            parameters=parameters,
            initial_parameters=initial_parameters,
            germinated=len(self.growth.seeds),
            sites=[self._site(path, deepest) for path in self.growth.sites],
            seeds=[_seen(seed) for seed in self.growth.seeds.values()],
        )

    def _site(self, path: str, deepest: int) -> SiteObservation:
        site = self.growth.sites[path]
        measured = self._health.get(path) or dict.fromkeys(Gauges.__struct_fields__)
        seeds = self.growth.attached(path)
        return SiteObservation(
            site=path,
            kind=site.kind,
            depth=site.depth,
            depth_frac=site.depth / deepest if deepest else 0.0,
            parameters=site.parameters,
            flops=site.flops,
            seeds_present=len(seeds),
            alpha=max((seed.ramp.value for seed in seeds), default=0.0),
            **measured,
        )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as plain data."""
        state = {
            "decision": self._decision,
            "germinated_at": self._germinated_at,
            "recent_train": self._recent_train,
            "recent_validation": self._recent_validation,
            "health": self._health,
        }
        # Left out where there are none, so that checkpoints of runs without bad kernels keep their bytes.
        return {**state, "withdrawn": self._withdrawn} if self._withdrawn else state

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what ``state`` returned."""
        self._decision = state["decision"]
        self._germinated_at = state["germinated_at"]
        self._recent_train = list(state["recent_train"])
        self._recent_validation = list(state["recent_validation"])
        self._health = dict(state["health"])
        # What was withdrawn since the checkpoint stays so in a rollback: the kernel is no better for it.
        self._withdrawn = [*dict.fromkeys([*self._withdrawn, *state.get("withdrawn", [])])]


def _seen(seed: Seed) -> SeedObservation:
    measured = seed.counterfactual
    return SeedObservation(
        seed_id=seed.id,
        site=seed.site.path,
        blueprint_id=seed.blueprint_id or "",
        kernel_id=seed.kernel_id or "",
        state=seed.state.value,
        alpha=seed.ramp.value,
        steps_in_state=seed.steps_in_state,
        parameters=seed.parameters,
        gain=None if measured is None else measured.gain,
        gain_stderr=None if measured is None else measured.gain_stderr,
    )
