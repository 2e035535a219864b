"""What must be true before a seed may walk a gated edge.

Belongs here: one function per gate named in the lifecycle table, each with the numbers it saw. Does not belong here:
the table (``esper.events.lifecycle``) or measuring the numbers. What was not measured never passes.
"""

from __future__ import annotations

import math

import msgspec
import torch
from torch import nn

from esper.kasmina.seed import Reads, Seed
from esper.kasmina.site import Site
from esper.kasmina.widen import is_width


class Verdict(msgspec.Struct, frozen=True):
    """What a gate decided and on what evidence."""

    passed: bool
    evidence: dict[str, float | None]


def kernel_fits(site: Site, module: nn.Module, reads: Reads, device: torch.device) -> Verdict:
    """Judge by a probe of two rows of ones whether a branch runs at a site and gives the site's shape.

    Args:
        site: Where it is to be grafted.
        module: The branch, on the site's device.
        reads: What it reads.
        device: The site's device.
    """
    if site.reads_at is not None:
        wrong_place = reads != "input" or not is_width(module)
    else:
        wrong_place = reads == "input" and site.kind not in {"linear", "conv1d", "conv2d"}
    shape = site.output_shape if reads == "output" else site.input_shape
    probe = torch.ones((2, *shape), dtype=getattr(torch, site.signature.dtype), device=device)
    training = module.training
    try:
        with torch.no_grad():
            delta = None if wrong_place else module.eval()(probe)
    except Exception:  # a kernel's own code may raise anything; that it does is the evidence
        delta = None
    finally:
        module.train(training)
    fits = isinstance(delta, torch.Tensor) and delta.shape[1:] == site.output_shape and delta.shape[0] == 2
    finite = fits and delta is not None and bool(torch.isfinite(delta).all())
    evidence: dict[str, float | None] = {
        "runs": float(delta is not None),
        "shape_equal": float(fits),
        "finite": float(finite),
    }
    return Verdict(finite, evidence)


def probation_done(seed: Seed) -> Verdict:
    """Judge whether the steps with the host frozen are over."""
    return _long_enough(seed, seed.schedule.probation_steps)


def alpha_reached(seed: Seed) -> Verdict:
    """Judge whether alpha has arrived at 1."""
    return Verdict(seed.ramp.value == 1.0, {"alpha": seed.ramp.value, "target": 1.0})


def settled(seed: Seed) -> Verdict:
    """Judge whether the seed has been at full alpha long enough."""
    return _long_enough(seed, seed.schedule.settle_steps)


def counterfactual_measured(seed: Seed) -> Verdict:
    """Judge whether a counterfactual was measured at full alpha; whether it is good is the policy's business."""
    measured = seed.counterfactual
    if measured is None:
        return Verdict(False, {"gain": None, "gain_stderr": None, "samples": None, "alpha": None})
    evidence: dict[str, float | None] = {
        "gain": measured.gain,
        "gain_stderr": measured.gain_stderr,
        "samples": float(measured.samples),
        "alpha": measured.alpha,
    }
    known = math.isfinite(measured.gain) and math.isfinite(measured.gain_stderr)
    return Verdict(known and measured.alpha == 1.0 and not seed.quarantined, evidence)


def faded(seed: Seed) -> Verdict:
    """Judge whether alpha has come down to 0."""
    return Verdict(seed.ramp.value == 0.0, {"alpha": seed.ramp.value, "target": 0.0})


def embargo_over(seed: Seed) -> Verdict:
    """Judge whether the site has been closed long enough."""
    return _long_enough(seed, seed.schedule.embargo_steps)


def _long_enough(seed: Seed, required: int) -> Verdict:
    evidence: dict[str, float | None] = {"steps": float(seed.steps_in_state), "required": float(required)}
    return Verdict(seed.steps_in_state >= required, evidence)
