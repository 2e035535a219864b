"""What held-out data say of a run at the end of an epoch, and what asking them costs.

Belongs here: validation, leaving each judged seed out in turn, and the FLOPs of forward passes. Does not belong here:
how a seed is left out (``esper.kasmina.counterfactual``) or the samples themselves (``trainer``, or a user's own loop).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from esper.events.lifecycle import SeedState
from esper.kasmina import Growth, Seed
from esper.kasmina.counterfactual import leave_one_out
from esper.tolaria.evaluation import Evaluate, Evaluation, undisturbed
from esper.tolaria.savepoints import Progress


class HeldOut:
    """Asks held-out data, and counts what that costs as training."""

    def __init__(
        self,
        progress: Progress,
        growth: Growth,
        flops_of: Callable[[Seed], int],
        *,
        evaluate: Evaluate | None,
        reestimate: Callable[[nn.Module], None] | None,
    ) -> None:
        """Ask nothing yet.

        Args:
            progress: The run's counters; FLOPs spent here are added to them.
            growth: The host with its seeds.
            flops_of: Gives the forward FLOPs a seed adds for one sample.
            evaluate: Losses of validation data; without it nothing is ever measured.
            reestimate: Estimates the host's batch-norm statistics again.
        """
        self._progress = progress
        self._growth = growth
        self._flops_of = flops_of
        self._evaluate = evaluate
        self._reestimate = reestimate

    def forward_flops(self, seeds: Iterable[Seed] | None = None) -> int:
        """Return the forward FLOPs of one sample with some seeds, or with all that are attached."""
        counted = self._growth.attached() if seeds is None else seeds
        return self._growth.forward_flops + sum(self._flops_of(seed) for seed in counted)

    def validate(self) -> Evaluation | None:
        """Return the losses of validation data, or None where there are none."""
        if self._evaluate is None:
            return None
        evaluation = undisturbed(self._growth.model, self._evaluate)
        self._progress.training_flops += evaluation.losses.numel() * self.forward_flops()
        return evaluation

    def measure_seeds(self, *, last: bool) -> None:
        """Leave each seed that is being judged out for a moment and keep what that costs.

        Args:
            last: Whether the run is at its end. Seeds born with the host are kept without a judgement; one
                measurement, then, opens their gate.
        """
        evaluate = self._evaluate
        if evaluate is None:
            return
        for seed in self._growth.seeds.values():
            wanted = seed.decision is not None or last
            if wanted and seed.state in (SeedState.EVALUATING, SeedState.FINE_TUNING):
                measured = leave_one_out(
                    self._growth,
                    seed,
                    lambda model: evaluate(model).losses,
                    step=self._progress.step,
                    reestimate=self._reestimate,
                )
                self._progress.training_flops += 2 * measured.samples * self.forward_flops()
