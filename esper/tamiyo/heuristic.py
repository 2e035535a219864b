"""The rung that judges: telemetry and counterfactuals weighed into a stochastic choice.

Belongs here: the default policy. Its choice is random inside an exact set of candidates, each with at least
``floor`` probability and everything else with exactly 0, because only a randomised log can be evaluated later.

Who is a candidate:

* NOOP, always;
* of each evaluated seed one move: FOSSILIZE where ``gain - keep_z * stderr > 0``; else CULL where
  ``gain + stderr < 0`` or it has been evaluated for too long; else ADVANCE (more joint training);
* germinations, where the losses and the residual score show headroom and few seeds are under way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from esper.errors import ConfigError
from esper.events.decision import Action, Observation, SeedObservation, SiteObservation
from esper.events.lifecycle import LIVING, SeedState
from esper.tamiyo.kernel_choice import DEFAULT_PREFERENCE, KernelChoice
from esper.tamiyo.legal import ActionKind, is_measured
from esper.tamiyo.policy import mixture, rule_digest

#: Share of the probability that floors may take together; candidates beyond it are dropped, worst sites first.
_FLOOR_SHARE = 0.5

#: Bound on the log ratio of one site's score to the others', so that one odd probe cannot decide alone.
_SCORE_BOUND = 3.0

_ENDING = frozenset({SeedState.CULLED, SeedState.CANCELLED, SeedState.EMBARGOED, SeedState.ROLLED_BACK})
_UNDER_WAY = LIVING - _ENDING
_JUDGED = frozenset({SeedState.EVALUATING, SeedState.FINE_TUNING})


class HeuristicSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Weights and thresholds of the judgement. Class weights are relative to NOOP's 1."""

    #: Least probability of each candidate.
    floor: float = 0.01
    germinate_weight: float = 3.0
    fossilize_weight: float = 12.0
    cull_weight: float = 6.0
    advance_weight: float = 1.0
    #: Standard errors that a gain must be above 0 to be kept; 1.64 is 95 % one-sided.
    keep_z: float = 1.64
    #: Share of the run's steps after which an evaluated seed is too old.
    patience_frac: float = 0.2
    #: Seeds that may be under way at the same time.
    max_under_way: int = 2
    #: Train loss, in units of the loss, below which nothing is left to gain.
    min_train_loss: float = 0.01
    #: Share by which validation loss may have risen above its recent best before growth stops.
    overfit_frac: float = 0.1
    #: Weight of log zr per FLOP.
    zr_weight: float = 1.0
    #: Weight of nearness to the input.
    depth_weight: float = 2.0
    #: Penalty for each seed that a site has already.
    crowd_weight: float = 0.7
    #: Temperature of the softmax over sites.
    temperature: float = 0.5
    #: Share of a site's weight that its best kernel takes; the other kernels share the rest.
    best_kernel_frac: float = 0.7
    #: Kernels tried at each site.
    kernels_per_site: int = 2
    #: Blueprint name patterns, best first.
    blueprint: tuple[str, ...] = DEFAULT_PREFERENCE

    def __post_init__(self) -> None:
        """Check the ranges."""
        weights = (self.germinate_weight, self.fossilize_weight, self.cull_weight, self.advance_weight)
        if not all(0.0 < value < math.inf for value in (*weights, self.temperature)):
            raise ConfigError(f"class weights {weights} and temperature {self.temperature} must be positive and finite")
        if not 0.0 < self.floor <= _FLOOR_SHARE / 4:
            raise ConfigError(f"floor must be above 0 and at most {_FLOOR_SHARE / 4}, not {self.floor}")
        if not 0.0 < self.best_kernel_frac <= 1.0:
            raise ConfigError(f"best_kernel_frac must be above 0 and at most 1, not {self.best_kernel_frac}")
        if self.kernels_per_site < 1 or self.max_under_way < 1:
            raise ConfigError("kernels_per_site and max_under_way must be at least 1")
        others = (
            self.keep_z, self.patience_frac, self.min_train_loss, self.overfit_frac,
            self.zr_weight, self.depth_weight, self.crowd_weight,
        )  # fmt: skip
        if not all(math.isfinite(value) for value in others):
            raise ConfigError(f"the thresholds and score weights must be finite, not {others}")
        if not self.blueprint:
            raise ConfigError("blueprint must name at least one pattern", hint="use ['*'] for the smallest of all")


class Heuristic:
    """Weighs candidates and mixes them with a floor."""

    policy_id = "heuristic"

    def __init__(self, settings: HeuristicSettings, choice: KernelChoice) -> None:
        """Make the policy.

        Args:
            settings: Weights and thresholds.
            choice: The run's kernels in order of preference.
        """
        self.digest = rule_digest(self.policy_id, 1, settings)
        self._settings = settings
        self._choice = choice

    def decide(self, observation: Observation, legal: Sequence[Action]) -> list[float]:
        """Return at least the floor for each candidate and 0 for everything else."""
        moves = self._seed_weights(observation, legal)
        # In the last decisions a seed is judged for certain: one that is not kept by then is lost to the model.
        weights = {**moves} if moves and _closing(observation) else {0: 1.0, **moves}
        if self.has_headroom(observation):
            weights.update(self._site_weights(observation, legal))
        most = int(_FLOOR_SHARE / self._settings.floor)
        kept = dict(list(weights.items())[:most])
        return mixture(kept, len(legal), self._settings.floor)

    def likely(self) -> list[str]:
        """Return the kernels in the order of preference."""
        return self._choice.likely()

    def has_headroom(self, observation: Observation) -> bool:
        """Tell whether another seed can be expected to help.

        What is left of the train loss predicts the gain of a graft, its slope does not; a validation loss that climbs
        from its best says that capacity is not what is missing.
        """
        s = self._settings
        under_way = sum(SeedState(seed.state) in _UNDER_WAY for seed in observation.seeds)
        if under_way >= s.max_under_way or not observation.train_loss > s.min_train_loss:
            return False
        validation = _finite(observation.recent_validation_losses)
        if len(validation) >= 3:
            # The better of two, not their mean: while the loss falls fast the mean lies above the best by itself.
            best, latest = min(validation), min(validation[-2:])
            if latest > best + s.overfit_frac * abs(best):
                return False
        residual = _finite(site.zr for site in observation.sites)
        return not residual or max(residual) > 0.0

    def _seed_weights(self, observation: Observation, legal: Sequence[Action]) -> dict[int, float]:
        """Return the one move of each evaluated seed that is not NOOP, where it is legal."""
        s = self._settings
        weight = {
            ActionKind.FOSSILIZE: s.fossilize_weight,
            ActionKind.CULL: s.cull_weight,
            ActionKind.ADVANCE: s.advance_weight,
        }
        verdicts = {
            seed.seed_id: self._verdict(seed, observation)
            for seed in observation.seeds
            if SeedState(seed.state) in _JUDGED
        }
        return {
            index: weight[verdicts[action.seed_id]]
            for index, action in enumerate(legal)
            if action.seed_id is not None and verdicts.get(action.seed_id) == action.kind
        }

    def _verdict(self, seed: SeedObservation, observation: Observation) -> ActionKind:
        """Return the move an evaluated seed deserves."""
        if _closing(observation):
            helps = is_measured(seed) and seed.gain is not None and seed.gain > 0.0
            return ActionKind.FOSSILIZE if helps else ActionKind.CULL
        too_old = seed.steps_in_state > self._settings.patience_frac * observation.total_steps
        if is_measured(seed) and seed.gain is not None and seed.gain_stderr is not None:
            if seed.gain - self._settings.keep_z * seed.gain_stderr > 0.0:
                return ActionKind.FOSSILIZE
            if seed.gain + seed.gain_stderr < 0.0:
                return ActionKind.CULL
        return ActionKind.CULL if too_old else ActionKind.ADVANCE

    def _site_weights(self, observation: Observation, legal: Sequence[Action]) -> dict[int, float]:
        """Spread the germination weight over sites by softmax and over each site's kernels; best site first."""
        s = self._settings
        growing = {
            site: [index for index in indices if self._choice.option(legal[index]).parameters > 0]
            for site, indices in self._choice.by_site(legal).items()
        }
        free = [site for site in observation.sites if growing.get(site.site)]
        if not free:
            return {}
        residual = _centred(
            [_log_ratio(site.zr, self._choice.option(legal[growing[site.site][0]]).flops) for site in free]
        )
        scores = [
            s.zr_weight * zr - s.depth_weight * site.depth_frac - s.crowd_weight * site.seeds_present
            for site, zr in zip(free, residual, strict=True)
        ]
        top = max(scores)
        raw = [math.exp((score - top) / s.temperature) for score in scores]
        total = math.fsum(raw)
        weights: dict[int, float] = {}
        for site, mass in sorted(zip(free, raw, strict=True), key=lambda pair: (-pair[1], _place(pair[0]))):
            best, *others = growing[site.site][: s.kernels_per_site]
            share = s.germinate_weight * mass / total
            weights[best] = share * (s.best_kernel_frac if others else 1.0)
            for index in others:
                weights[index] = share * (1.0 - s.best_kernel_frac) / len(others)
        return weights


def _place(site: SiteObservation) -> tuple[int, str]:
    return site.depth, site.site


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _log_ratio(zr: float | None, flops: int) -> float | None:
    """Return the log of zr per FLOP; None where zr was not measured, -inf where nothing is left to gain."""
    if zr is None or not math.isfinite(zr):
        return None
    return math.log(zr) - math.log(max(flops, 1)) if zr > 0.0 else -math.inf


def _centred(values: Sequence[float | None]) -> list[float]:
    """Return values minus their mean, bounded; one that was not measured counts as the mean, which says nothing."""
    known = _finite(values)
    mean = sum(known) / len(known) if known else 0.0
    return [0.0 if value is None else max(-_SCORE_BOUND, min(_SCORE_BOUND, value - mean)) for value in values]


def _closing(observation: Observation) -> bool:
    """Tell whether no more than as many decisions are left as seeds wait for their judgement."""
    waiting = sum(SeedState(seed.state) in _UNDER_WAY for seed in observation.seeds)
    between = observation.step // (observation.epoch + 1)
    return observation.step + waiting * between > observation.total_steps
