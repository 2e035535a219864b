"""What held-out data would lose now without a seed.

Belongs here: leave-one-out and re-estimating batch norm. Does not belong here: which data, which loss
(the caller's ``evaluate``), or what follows from it. This is dependence now, not what growth gained: only a forked
control run measures that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from esper.errors import GrowthError
from esper.events.seed import CounterfactualMeasured
from esper.kasmina.growth import Growth
from esper.kasmina.seed import Counterfactual, Seed
from esper.kasmina.untouched import same_host, same_random_numbers

Evaluate = Callable[[nn.Module], torch.Tensor]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def leave_one_out(
    growth: Growth,
    seed: Seed | str,
    evaluate: Evaluate,
    *,
    step: int,
    reestimate: Callable[[nn.Module], None] | None = None,
) -> Counterfactual:
    """Measure a seed's worth on held-out data, keep it for the seed's gate and tell it as a fact.

    The host is evaluated with the seed as it is and with its branch left out, both from the same random numbers, in
    eval mode and without gradients; modes, buffers and random numbers are put back exactly.

    Args:
        growth: The growing host.
        seed: An attached seed or its id.
        evaluate: Gives the held-out losses, one per sample, in the same order each time: shape [n].
        step: Optimiser steps done.
        reestimate: Runs training batches through the host to estimate batch-norm statistics anew (see
            ``reestimate_batch_norm``); used for the host without the seed if it has batch norm.

    Raises:
        GrowthError: The seed is not in the forward pass, or the losses are not one per sample.
    """
    seed = growth.seed(seed) if isinstance(seed, str) else seed
    if not seed.attached:
        raise GrowthError(f"seed {seed.id!r} is {seed.state}: it is not in the forward pass")
    losses_with = _losses(growth, evaluate, [], None)
    again = reestimate if has_batch_norm(growth.model) else None
    losses_without = _losses(growth, evaluate, [seed], again)
    if losses_with.shape != losses_without.shape:
        raise GrowthError(f"evaluate gave {len(losses_with)} losses, then {len(losses_without)}")
    difference = losses_without - losses_with
    samples = difference.numel()
    measured = Counterfactual(
        step=step,
        samples=samples,
        loss_with=losses_with.mean().item(),
        loss_without=losses_without.mean().item(),
        gain=difference.mean().item(),
        gain_stderr=difference.std().item() / math.sqrt(samples) if samples > 1 else math.nan,
        batch_norm_reestimated=again is not None,
        alpha=seed.ramp.value,
    )
    seed.counterfactual = measured
    growth.tell(
        CounterfactualMeasured,
        seed_id=seed.id,
        site=seed.site.path,
        step=step,
        samples=samples,
        loss_with=measured.loss_with,
        loss_without=measured.loss_without,
        gain=measured.gain,
        gain_stderr=measured.gain_stderr,
        batch_norm_reestimated=measured.batch_norm_reestimated,
    )
    return measured


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether a host keeps running batch-norm statistics."""
    return any(isinstance(m, _BATCH_NORMS) and m.track_running_stats for m in model.modules())


def reestimate_batch_norm(model: nn.Module, batches: Iterable[tuple[Any, ...]]) -> None:
    """Estimate a host's batch-norm statistics anew, as plain means over batches; only its running buffers change.

    Args:
        model: The host; its modes are put back.
        batches: Positional arguments of one forward pass each; 20 to 50 training batches are enough.
    """
    norms = [m for m in model.modules() if isinstance(m, _BATCH_NORMS) and m.track_running_stats]
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    try:
        model.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None
        with torch.no_grad():
            for batch in batches:
                model(*batch)
    finally:
        for module, training in modes:
            module.training = training
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def muted(seeds: Sequence[Seed]) -> Iterator[None]:
    """Leave seeds out of the forward pass for a while: their alpha counts as 0."""
    before = [seed.muted for seed in seeds]
    for seed in seeds:
        seed.muted = True
    try:
        yield
    finally:
        for seed, was in zip(seeds, before, strict=True):
            seed.muted = was


def _losses(
    growth: Growth,
    evaluate: Evaluate,
    absent: Sequence[Seed],
    reestimate: Callable[[nn.Module], None] | None,
) -> torch.Tensor:
    with same_random_numbers(), same_host(growth.model), muted(absent):
        if reestimate is not None:
            reestimate(growth.model)
        growth.model.eval()
        with same_random_numbers(), torch.no_grad():
            losses = evaluate(growth.model)
    if losses.dim() != 1 or losses.numel() == 0:
        raise GrowthError(
            f"evaluate gave a tensor of shape {tuple(losses.shape)}", hint="return one loss per sample: [n]"
        )
    return losses.detach().double().cpu()
