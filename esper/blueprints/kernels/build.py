"""From a blueprint to a module: a ``torch.fx.GraphModule`` made of torch's own parts only.

Belongs here: putting the operators together and drawing initial weights. Does not belong here: the operators
(``operators``), bytes (``kernel``) or judgement (``crucible``). The module pickles and runs where Esper is not
installed. Its submodules are named after the canonical form (``n0``, ``n1``, ...), so that names chosen by an author
never meet attributes of ``nn.Module``.
"""

from __future__ import annotations

import functools

import msgspec
import torch
from torch import fx, nn

from esper.blueprints.canonical import canonical_json
from esper.blueprints.ir import INPUT, Blueprint, Node, SiteSignature, parse
from esper.blueprints.kernels.operators import Canvas, Use
from esper.blueprints.kinds import KINDS
from esper.blueprints.ops import CHANNELS_LAST, OPS
from esper.blueprints.polynomial import Polynomial
from esper.blueprints.verify import Verified, verify
from esper.errors import KernelRefused

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
}
_NORMS = frozenset({"layernorm", "rmsnorm", "groupnorm"})


def build(blueprint: Blueprint, signature: SiteSignature, *, seed: int) -> fx.GraphModule:
    """Return the module that computes delta, with freshly drawn weights.

    Delta is what is added to the site's output at alpha 1, whatever the kind (``kinds``). The input is the site's
    output, or for ``lowrank_weight`` and ``width`` the site module's own input.

    Args:
        blueprint: As ``ir.parse`` gives it.
        signature: The site to resolve it at.
        seed: Seed of the weights; the global generator is not touched.

    Raises:
        BlueprintInvalid: The blueprint breaks a rule or does not fit the site.
    """
    module = assemble(blueprint, signature, device="cpu")
    _draw(module, canonical(blueprint, signature), torch.Generator().manual_seed(seed))
    return module


def canonical(blueprint: Blueprint, signature: SiteSignature) -> Verified:
    """Return the blueprint in its canonical form, verified at a site."""
    return _canonical(canonical_json(blueprint), signature)


@functools.lru_cache(maxsize=64)
def _canonical(document: str, signature: SiteSignature) -> Verified:
    """Building, writing, reading and measuring a kernel each ask for the same one."""
    return verify(parse(document), signature)


def assemble(blueprint: Blueprint, signature: SiteSignature, *, device: str) -> fx.GraphModule:
    """Return the module with weights that are not set; on the device ``meta`` it takes no memory."""
    found = canonical(blueprint, signature)
    flow = found.flows[signature.rank]
    canvas = Canvas(DTYPES[signature.dtype], device)
    values = {INPUT: canvas.entry}
    deltas: dict[str, fx.Node] = {}
    for node in found.nodes:
        if node.id in found.stream:
            _join(canvas, found, node, values, deltas)
            continue
        call = flow.calls[node.id]
        use = Use(
            id=node.id,
            op=node.op,
            inputs=[values[source] for source in node.inputs],
            attr={
                key: value.evaluate(found.sizes) if isinstance(value, Polynomial) else value
                for key, value in call.attr.items()
            },
            channels=call.first.channels.evaluate(found.sizes),
            rank=call.first.rank,
            site_rank=signature.rank,
        )
        values[node.id] = canvas.draw(use)
    out = found.blueprint.out
    delta = deltas[out] if found.stream else values[out]
    if found.blueprint.kind == "gate":
        delta = canvas.graph.call_function(torch.mul, (canvas.entry, delta))
    canvas.graph.output(delta)
    canvas.graph.lint()
    return fx.GraphModule(canvas.root, canvas.graph, class_name="Branch")


def _join(canvas: Canvas, found: Verified, node: Node, values: dict[str, fx.Node], deltas: dict[str, fx.Node]) -> None:
    """Add a branch to the stream of a layer: to the sum of branches, and to x where somebody reads the stream there."""
    joint = found.stream[node.id]
    delta = values[joint.branch]
    if joint.stream != INPUT:
        delta = canvas.graph.call_function(torch.add, (deltas[joint.stream], delta))
    deltas[node.id] = delta
    if any(node.id in reader.inputs for reader in found.nodes if reader.id not in found.stream):
        values[node.id] = canvas.graph.call_function(torch.add, (canvas.entry, delta))


def _draw(module: fx.GraphModule, found: Verified, generator: torch.Generator) -> None:
    """Set every weight, node after node. Uniform numbers only: they are the same on every processor."""
    with torch.no_grad():
        for node in found.nodes:
            if not OPS[node.op].inits and node.op not in _NORMS:
                continue
            weights = dict(module.get_submodule(node.id).named_parameters())
            for name, weight in sorted(weights.items()):
                if name == "bias" or node.init == "zeros":
                    weight.zero_()
                elif node.init == "kaiming":
                    drawn = torch.empty(weight.shape, dtype=torch.float32)
                    nn.init.kaiming_uniform_(drawn, nonlinearity="relu", generator=generator)
                    weight.copy_(drawn)
                else:
                    weight.fill_(1.0)


def folded_weight(module: nn.Module, signature: SiteSignature) -> torch.Tensor:
    """Return the matrix [out, in] that a ``lowrank_weight`` branch adds to its site's weight at alpha 1.

    Such a branch is linear and bias-free (rule ``not_foldable``), so the identity matrix reads it off.
    """
    if signature.in_channels is None:
        raise KernelRefused("only a branch of a linear site folds into a weight", hint="keep the branch instead")
    weight = next(module.parameters())
    rows = torch.eye(signature.in_channels, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        # One leading axis more for NTC: the rows are then tokens of one sample.
        out: torch.Tensor = module(rows if signature.rank == "NC" else rows[None])
    return out.reshape(signature.in_channels, -1).T.contiguous()


def example_input(signature: SiteSignature, kind: str, generator: torch.Generator, *, samples: int) -> torch.Tensor:
    """Return standard normal numbers in the shape a branch of that kind takes at a site."""
    drawn = torch.randn(input_shape(signature, kind, samples), generator=generator)
    return drawn.to(DTYPES[signature.dtype])


def input_shape(signature: SiteSignature, kind: str, samples: int) -> tuple[int, ...]:
    """Return the shape of a branch's input, the batch first."""
    channels = signature.in_channels if KINDS[kind].reads == "input" else signature.channels
    return _shape(msgspec.structs.replace(signature, channels=channels or signature.channels), samples)


def output_shape(signature: SiteSignature, samples: int) -> tuple[int, ...]:
    """Return the shape of the site's output, the batch first."""
    return _shape(signature, samples)


def _shape(signature: SiteSignature, samples: int) -> tuple[int, ...]:
    if signature.rank in CHANNELS_LAST:
        return (samples, *signature.positions, signature.channels)
    return (samples, signature.channels, *signature.positions)
