"""The structural half of the crucible: what the static verifier promises, seen to hold on the built module.

Belongs here: birth identity, shape, parameters, train equals eval, rebuild, batch permutation, causality, folding.
Does not belong here: anything that trains or takes time (``crucible``). A check that does not apply to a kernel is
left out of the checks and named with its reason: it is never passed by default.

Legend: h is the site's output, x the branch's input, delta the branch's output; N samples.
"""

from __future__ import annotations

import copy

import msgspec
import torch
from torch import fx, nn

from esper.blueprints.build import DTYPES, example_input, folded_weight, output_shape
from esper.blueprints.ir import Blueprint, SiteSignature
from esper.blueprints.kernel import decode_kernel, encode_kernel, load_module
from esper.blueprints.verify import verify
from esper.errors import KernelRefused

SAMPLES = 4
#: Relative difference that other summation orders may cause.
TOLERANCES: dict[torch.dtype, float] = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}
_SEQUENCES = {"NTC": 1, "NCL": 2}


class Findings(msgspec.Struct):
    """What a set of checks came to."""

    checks: dict[str, bool] = {}
    numbers: dict[str, float] = {}
    #: Check -> why it does not apply to this kernel.
    not_applicable: dict[str, str] = {}


def check_structure(module: fx.GraphModule, blueprint: Blueprint, signature: SiteSignature, *, seed: int) -> Findings:
    """Run the structural checks.

    Args:
        module: As ``build.build`` gives it, at birth; left as it is.
        blueprint: What it was built from.
        signature: Where it was resolved.
        seed: Of the inputs; the global generator is not touched.
    """
    found = Findings()
    generator = torch.Generator().manual_seed(seed)
    x = example_input(signature, blueprint.kind, generator, samples=SAMPLES)
    h = torch.randn(output_shape(signature, SAMPLES), generator=generator).to(DTYPES[signature.dtype])
    with torch.no_grad():
        _check_birth(found, module, x, h)
        _check_parameters(found, module, blueprint, signature)
        _check_rebuild(found, module, blueprint, signature, x)
        awake = awakened(module, generator)
        _check_modes(found, awake, x)
        _check_permutation(found, awake, x)
        _check_causality(found, awake, blueprint, signature, x)
        if found.checks["shape"]:
            _check_fold(found, awake, blueprint, signature, x)
    return found


def awakened(module: fx.GraphModule, generator: torch.Generator) -> fx.GraphModule:
    """Return a copy whose every weight is moved off its initial value, as training would do."""
    copied = copy.deepcopy(module)
    with torch.no_grad():
        for weight in copied.parameters():
            fan_in = weight[0].numel() if weight.dim() > 1 else 4
            noise = torch.rand(weight.shape, generator=generator) * 2 - 1
            weight.add_((noise / fan_in**0.5).to(weight.dtype))
    return copied


def largest_difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the largest difference over the largest value; 0 where both are all zero."""
    scale = float(first.abs().max())
    difference = float((first - second).abs().max())
    return difference / scale if scale else difference


def _check_birth(found: Findings, module: nn.Module, x: torch.Tensor, h: torch.Tensor) -> None:
    delta = module(x)
    alike = delta.shape == h.shape and delta.dtype == h.dtype
    found.checks["shape"] = alike
    found.checks["birth_identity"] = alike and all(torch.equal(h + alpha * delta, h) for alpha in (0.0, 0.5, 1.0))
    found.numbers["birth_delta"] = float(delta.abs().max())


def _check_parameters(found: Findings, module: nn.Module, blueprint: Blueprint, signature: SiteSignature) -> None:
    counted = sum(weight.numel() for weight in module.parameters())
    found.checks["parameters"] = counted == verify(blueprint, signature).parameters
    found.numbers["parameters"] = float(counted)


def _check_rebuild(
    found: Findings, module: fx.GraphModule, blueprint: Blueprint, signature: SiteSignature, x: torch.Tensor
) -> None:
    try:
        data = encode_kernel(blueprint, signature, module)
    except KernelRefused:
        # The module does not have the blueprint's own weights: it cannot be this kernel.
        found.checks["rebuild"] = False
        return
    kernel = decode_kernel(data)
    again = load_module(kernel)
    same_bytes = encode_kernel(kernel.blueprint, signature, again) == data
    found.checks["rebuild"] = same_bytes and torch.equal(module(x), again(x))
    found.numbers["size_bytes"] = float(len(data))


def _check_modes(found: Findings, awake: nn.Module, x: torch.Tensor) -> None:
    training = awake.train()(x)
    evaluating = awake.eval()(x)
    found.checks["train_equals_eval"] = torch.equal(training, evaluating)


def _check_permutation(found: Findings, awake: nn.Module, x: torch.Tensor) -> None:
    order = torch.arange(len(x) - 1, -1, -1)
    difference = largest_difference(awake(x)[order], awake(x[order]))
    found.checks["batch_permutation"] = difference <= TOLERANCES[x.dtype]
    found.numbers["batch_permutation_difference"] = difference


def _check_causality(
    found: Findings, awake: nn.Module, blueprint: Blueprint, signature: SiteSignature, x: torch.Tensor
) -> None:
    if not blueprint.site.causal:
        found.not_applicable["causality"] = "the blueprint does not claim it; it is offered at no causal site"
        return
    if signature.rank not in _SEQUENCES or signature.positions[0] < 2:
        found.not_applicable["causality"] = "the site has no order of positions"
        return
    axis = _SEQUENCES[signature.rank]
    cut = signature.positions[0] // 2
    later = x.clone()
    later.narrow(axis, cut, signature.positions[0] - cut).neg_().add_(1.0)
    difference = largest_difference(awake(x).narrow(axis, 0, cut), awake(later).narrow(axis, 0, cut))
    found.checks["causality"] = difference <= TOLERANCES[x.dtype]
    found.numbers["causality_difference"] = difference


def _check_fold(
    found: Findings, awake: nn.Module, blueprint: Blueprint, signature: SiteSignature, x: torch.Tensor
) -> None:
    if blueprint.kind != "lowrank_weight":
        found.not_applicable["fold"] = "only a lowrank_weight blueprint folds into its host's weight"
        return
    difference = largest_difference(awake(x), x @ folded_weight(awake, signature).T)
    found.checks["fold"] = difference <= TOLERANCES[x.dtype]
    found.numbers["fold_difference"] = difference
