"""The structural half of the crucible: what the static verifier promises, seen to hold on the built module.

Belongs here: birth identity, shape, parameters, train equals eval, rebuild, batch permutation, causality, folding.
Does not belong here: anything that trains (``trials``) or takes time (``timing``). A check that does not apply to a
kernel is left out of the checks and named with its reason: it is never passed by default.

Legend: h is the site's output, x the branch's input, delta the branch's output; N samples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import fx, nn
from torch.func import functional_call

from esper.blueprints.ir import Blueprint, SiteSignature
from esper.blueprints.kernels.build import DTYPES, canonical, example_input, folded_weight, output_shape
from esper.blueprints.kernels.kernel import decode_kernel, encode_kernel, load_module
from esper.blueprints.kinds import KINDS
from esper.blueprints.moments import SAMPLES
from esper.errors import KernelRefused

#: Relative difference that other summation orders may cause.
TOLERANCES: dict[torch.dtype, float] = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}
_SEQUENCES = {"NTC": 1, "NCL": 2}

#: A module's weights by name.
Weights = dict[str, torch.Tensor]


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
        _check_birth(found, module, x, x if KINDS[blueprint.kind].reads == "output" else h)
        _check_parameters(found, module, blueprint, signature)
        _check_rebuild(found, module, blueprint, signature, x)
        awake = awakened(module, generator)
        reference = run(module, awake, x)
        _check_modes(found, module, awake, x)
        _check_permutation(found, module, awake, x, reference)
        _check_causality(found, module, awake, blueprint, signature, x, reference)
        _check_fold(found, module, awake, blueprint, signature, x)
    return found


def awakened(module: nn.Module, generator: torch.Generator) -> Weights:
    """Return a module's weights, each moved off its initial value as training would do."""
    moved = {}
    for name, weight in module.named_parameters():
        fan_in = weight[0].numel() if weight.dim() > 1 else 4
        noise = torch.rand(weight.shape, generator=generator) * 2 - 1
        moved[name] = weight.detach() + (noise / fan_in**0.5).to(weight.dtype)
    return moved


def run(module: nn.Module, weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """Return what a module computes with other weights than its own."""
    out: torch.Tensor = functional_call(module, weights, (x,))
    return out


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
    found.checks["parameters"] = counted == canonical(blueprint, signature).parameters
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
    # With zero tails both give zero whatever the rest is: the comparison needs weights that are awake.
    weights = awakened(again, torch.Generator().manual_seed(0))
    same = torch.equal(module(x), again(x)) and torch.equal(run(module, weights, x), run(again, weights, x))
    found.checks["rebuild"] = same_bytes and same
    found.numbers["size_bytes"] = float(len(data))


def _check_modes(found: Findings, module: nn.Module, awake: Weights, x: torch.Tensor) -> None:
    modes = {part: part.training for part in module.modules()}
    try:
        training = run(module.train(), awake, x)
        evaluating = run(module.eval(), awake, x)
    finally:
        for part, mode in modes.items():
            part.training = mode
    found.checks["train_equals_eval"] = torch.equal(training, evaluating)


def _check_permutation(
    found: Findings, module: nn.Module, awake: Weights, x: torch.Tensor, reference: torch.Tensor
) -> None:
    # Fewer samples in another order: neither its place nor its company may matter to a sample.
    order = torch.arange(len(x) - 1, -1, -2)
    difference = largest_difference(reference[order], run(module, awake, x[order]))
    found.checks["batch_permutation"] = difference <= TOLERANCES[x.dtype]
    found.numbers["batch_permutation_difference"] = difference


def _check_causality(
    found: Findings,
    module: nn.Module,
    awake: Weights,
    blueprint: Blueprint,
    signature: SiteSignature,
    x: torch.Tensor,
    reference: torch.Tensor,
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
    difference = largest_difference(
        reference.narrow(axis, 0, cut),
        run(module, awake, later).narrow(axis, 0, cut),
    )
    found.checks["causality"] = difference <= TOLERANCES[x.dtype]
    found.numbers["causality_difference"] = difference


def _check_fold(
    found: Findings,
    module: fx.GraphModule,
    awake: Weights,
    blueprint: Blueprint,
    signature: SiteSignature,
    x: torch.Tensor,
) -> None:
    """Compare host plus branch with a host that took the branch into its weights, in float32 and float64."""
    fold = {"lowrank_weight": _folded, "width": _widened}.get(blueprint.kind)
    if fold is None:
        found.not_applicable["fold"] = "a branch of this kind stays a module of its own"
        return
    if not found.checks["shape"] or not found.checks["rebuild"]:
        found.checks["fold"] = False  # what is not this kernel has no weights to fold
        return
    passed = True
    for dtype in (torch.float32, torch.float64):
        grown = copy.deepcopy(module)
        grown.load_state_dict(awake)
        before, after = fold(grown.to(dtype), signature, x.to(dtype))
        difference = largest_difference(before, after)
        passed = passed and difference <= TOLERANCES[dtype]
        found.numbers[f"fold_difference_{str(dtype).removeprefix('torch.')}"] = difference
    found.checks["fold"] = passed


def _host(out: int, inputs: int, like: torch.Tensor) -> torch.Tensor:
    """Return a host's weight [out, in], the same for the same sizes."""
    drawn = torch.randn((out, inputs), generator=torch.Generator().manual_seed(out * inputs))
    return drawn.to(like.dtype) / math.sqrt(inputs)


def _folded(grown: nn.Module, signature: SiteSignature, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weight = _host(signature.channels, x.shape[-1], x)
    return x @ weight.T + grown(x), x @ (weight + folded_weight(grown, signature)).T


def _activation(grown: fx.GraphModule) -> Callable[..., Any]:
    """Return the only function that a ``width`` branch calls."""
    found: Callable[..., Any] = next(node.target for node in grown.graph.nodes if node.op == "call_function")
    return found


def _widened(grown: fx.GraphModule, signature: SiteSignature, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the new units beside the hidden units of a pair of layers, as a larger first and second weight."""
    inner, outer = (part for part in grown.children() if isinstance(part, nn.Linear))
    act: Callable[[torch.Tensor], torch.Tensor] = _activation(grown)
    hidden = signature.channels + 1
    first, second = _host(hidden, x.shape[-1], x), _host(signature.channels, hidden, x)
    bias = first.new_zeros(hidden)
    new_bias = first.new_zeros(inner.out_features) if inner.bias is None else inner.bias
    before = act(x @ first.T + bias) @ second.T + grown(x)
    wide = act(x @ torch.cat([first, inner.weight]).T + torch.cat([bias, new_bias]))
    return before, wide @ torch.cat([second, outer.weight], dim=1).T
