"""Facts of sites and seeds: what was found, how seeds moved through life, what was measured."""

from __future__ import annotations

from typing import Any

import msgspec

from esper.events.base import RunFact, fact
from esper.names import TopicNames

_SEEDS = TopicNames.TELEMETRY_SEED_HEALTH


@fact(_SEEDS, stream="run", key="run_id")
class SiteRegistered(RunFact, frozen=True, kw_only=True):
    """A place in the host was found where a seed can be grafted."""

    #: Path of the module in the host, e.g. ``body.2``.
    site: str
    #: linear, conv1d, conv2d, attention, norm or block.
    kind: str
    #: Place in the order of execution, from 0.
    depth: int
    #: Site signature, as ``esper.blueprints.ir.SiteSignature`` plain data.
    signature: dict[str, Any]
    #: Parameters of the site's own module.
    parameters: int
    #: Forward FLOPs of the site's own module for one sample.
    flops: int


class KernelOffer(msgspec.Struct, frozen=True, kw_only=True):
    """One validated kernel that fits a site."""

    kernel_id: str
    blueprint_id: str
    #: The blueprint's own name.
    name: str
    parameters: int
    #: Forward FLOPs for one sample.
    flops: int


@fact(_SEEDS, stream="run", key="run_id")
class KernelsOffered(RunFact, frozen=True, kw_only=True):
    """The kernels a run may graft at one site, fixed when the run starts."""

    site: str
    offers: list[KernelOffer]


@fact(_SEEDS, stream="run", key="run_id", volatile=("source", "stall_s"))
class KernelLoaded(RunFact, frozen=True, kw_only=True):
    """The kernel of a decision was at hand and checked, at the step boundary where its seed is attached."""

    seed_id: str
    site: str
    kernel_id: str
    step: int
    #: ``cache`` where it was ready, ``store`` where training waited for it.
    source: str
    #: Seconds that training waited for the kernel.
    stall_s: float


@fact(_SEEDS, stream="run", key="run_id")
class SeedTransitioned(RunFact, frozen=True, kw_only=True):
    """A seed moved from one life state to another."""

    seed_id: str
    site: str
    source: str
    target: str
    step: int
    #: automatic, gated or commanded.
    trigger: str
    reason: str
    #: Numbers a gate was passed with.
    evidence: dict[str, float | None]
    blueprint_id: str | None
    kernel_id: str | None
    #: Number of the decision that commanded it.
    decision: int | None
    #: Parameters of the seed.
    parameters: int


@fact(_SEEDS, stream="run", key="run_id")
class SeedTransitionRefused(RunFact, frozen=True, kw_only=True):
    """A gate or the lifecycle refused a move."""

    seed_id: str
    site: str
    source: str
    target: str
    step: int
    #: Name of the gate, or ``lifecycle`` where there is no such edge.
    gate: str
    #: What the gate saw; None stands for not measured, which never passes.
    evidence: dict[str, float | None]
    decision: int | None


@fact(_SEEDS, stream="run", key="run_id")
class AlphaMoved(RunFact, frozen=True, kw_only=True):
    """A seed's blending strength, noted at the end of each epoch in which it moved."""

    seed_id: str
    site: str
    step: int
    alpha: float
    target: float


@fact(_SEEDS, stream="run", key="run_id")
class SeedHealthMeasured(RunFact, frozen=True, kw_only=True):
    """Telemetry of one site at one probe; None where a quantity was not measured."""

    site: str
    step: int
    depth: int
    parameters: int
    flops: int
    #: Mean squared norm of the per-sample loss gradient at the site.
    gradient_norm: float | None
    #: Whitened residual score: loss decrease that new units could give beyond the consumer's linear layer.
    zr: float | None
    #: zr over the squared gradient norm of the site's own weights.
    zr_over_wgrad: float | None
    effective_rank: float | None
    #: Share of units with almost no activation (ReDo, tau 0.025).
    dormant_frac: float | None
    #: Squared mean gradient over its variance.
    signal_to_noise: float | None
    activation_variance: float | None
    #: Share of units never active on the probe.
    dead_frac: float | None
    #: Mean absolute pairwise correlation of units.
    mean_correlation: float | None
    seeds_present: int
    #: Largest alpha of the site's seeds; 0 without any.
    alpha: float


@fact(_SEEDS, stream="run", key="run_id")
class CounterfactualMeasured(RunFact, frozen=True, kw_only=True):
    """What held-out data would lose now without one seed (leave-one-out, alpha to zero)."""

    seed_id: str
    site: str
    step: int
    #: Held-out samples, paired.
    samples: int
    loss_with: float
    loss_without: float
    #: Mean of the paired differences, without minus with: positive means the seed helps.
    gain: float
    gain_stderr: float
    #: Whether batch-norm statistics were estimated again for the host without the seed.
    batch_norm_reestimated: bool


@fact(_SEEDS, stream="run", key="run_id")
class SeedFaulted(RunFact, frozen=True, kw_only=True):
    """A seed failed in a forward pass; the host's own output was used and the seed is quarantined."""

    seed_id: str
    site: str
    step: int
    #: exception, not_finite or wrong_shape.
    kind: str
    message: str
    #: SHA-256 of the traceback text; None where there is none.
    traceback_digest: bytes | None


@fact(_SEEDS, stream="run", key="run_id")
class SeedFolded(RunFact, frozen=True, kw_only=True):
    """A fossilised seed's alpha, and where possible its weights, were folded for export."""

    seed_id: str
    site: str
    step: int
    #: Path of the module it was folded into; None where the branch stays.
    folded_into: str | None
    #: Largest absolute difference of the outputs before and after, on the probe batch.
    max_difference: float
