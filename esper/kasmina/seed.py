"""A seed: one branch grafted at a site, with its place in life.

Belongs here: what a seed is and how its branch joins the host's output. Does not belong here: moving it through life
(``esper.kasmina.growth``) or judging a move (``esper.kasmina.gates``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import torch
from torch import nn

from esper.events.decision import Schedule
from esper.events.lifecycle import ATTACHED, LEARNING, SeedState
from esper.kasmina.blend import AlphaRamp
from esper.kasmina.guard import Fault, Guard
from esper.kasmina.site import Site

Reads = Literal["output", "input"]


class Counterfactual(msgspec.Struct, frozen=True, kw_only=True):
    """What held-out data would lose without a seed, as last measured."""

    step: int
    samples: int
    loss_with: float
    loss_without: float
    #: Mean of the paired differences, without minus with: positive means the seed helps.
    gain: float
    gain_stderr: float
    batch_norm_reestimated: bool
    #: Alpha at which it was measured.
    alpha: float


@dataclass(eq=False, kw_only=True)
class Seed:
    """One seed. Its branch adds ``alpha * f(.)`` to the site's output; alpha lives on the site's device."""

    id: str
    site: Site
    blueprint_id: str | None
    kernel_id: str | None
    #: The branch; None once it is detached.
    module: nn.Module | None
    #: What the branch reads: the site's output so far, or the site module's first input.
    reads: Reads
    schedule: Schedule
    germinated_at: int
    parameters: int
    ramp: AlphaRamp
    alpha: torch.Tensor
    guard: Guard
    state: SeedState = SeedState.DORMANT
    entered_at: int = 0
    steps_in_state: int = 0
    #: Number of the decision that germinated it.
    decision: int | None = None
    counterfactual: Counterfactual | None = None
    #: The fault for which the seed was put aside, once it was collected.
    fault: Fault | None = None
    #: Left out of the forward pass for a measurement.
    muted: bool = False
    #: Alpha as last told in a fact.
    alpha_told: float = 0.0

    @property
    def attached(self) -> bool:
        """Return whether the branch is part of the forward pass."""
        return self.module is not None and self.state in ATTACHED

    @property
    def learning(self) -> bool:
        """Return whether the branch's parameters are to be trained."""
        return self.attached and self.state in LEARNING and not self.quarantined

    @property
    def quarantined(self) -> bool:
        """Return whether the host's output is used because the seed failed (as far as the host side knows)."""
        return self.fault is not None or self.guard.fault is not None

    def set_alpha(self, value: float) -> None:
        """Write alpha to the device."""
        self.alpha.fill_(value)

    def freeze(self, frozen: bool) -> None:
        """Stop or let the branch's parameters learn."""
        for parameter in () if self.module is None else self.module.parameters():
            parameter.requires_grad_(not frozen)
            if frozen:
                parameter.grad = None

    def blend(self, h: torch.Tensor, given: Any) -> torch.Tensor:
        """Return ``h + alpha * f(source)``, or ``h`` itself where the seed does not count.

        The host's own path has slope 1 whatever alpha is, so a ramp never starves the layers before the site.

        Args:
            h: The site's output so far.
            given: The site module's first input.
        """
        if self.module is None or self.muted or self.quarantined:
            return h
        if self.module.training != self.site.module.training:
            self.module.train(self.site.module.training)
        source = given if self.reads == "input" else h
        if self.schedule.isolate and isinstance(source, torch.Tensor):
            source = source.detach()
        joined = self.guard.blend(self.module, source, h, self.alpha)
        return h if joined is None else joined
