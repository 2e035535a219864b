"""The half of the crucible that trains: does a kernel learn, gently, with all of its units, and stay finite?

Belongs here: gradients, the jump of the first step, dead units, finiteness. Does not belong here: the structural checks
(``structure``) or anything that is not the same whenever it is measured (``timing``).

The checks train towards a random target with the loss mean((h + delta - target)^2), at the rate the branch will learn
at: a usual one times the blueprint's own factor (``cost.rate_factor``). The limit on jumps: a sound zero tail moves by
about the learning rate in its first Adam step whatever the gradient, while a norm behind a zero layer throws the branch
to a quarter of |h| in one plain gradient step; 5 % of |h| stands between the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import fx, nn

from esper.blueprints.cost import ADAM_RATE, SGD_RATE, rate_factor
from esper.blueprints.ir import Blueprint, SiteSignature
from esper.blueprints.kernels.build import DTYPES, canonical, example_input, output_shape
from esper.blueprints.kernels.structure import Findings, Weights, awakened, run
from esper.blueprints.moments import SAMPLES

JUMP_LIMIT = 0.05
#: Largest share of one layer's units that may answer to no input.
DEAD_LIMIT = 0.25
#: A unit that moves less than this share of what its layer's inputs move does not answer.
DEAD_RESPONSE = 1e-6
#: Samples a unit is given to answer to: a unit that a coin decides for each of them is missed by none.
DEAD_SAMPLES = 64
_PROBE_ELEMENTS = 2**20
_ACTIVATIONS = frozenset({F.relu, F.gelu, F.silu, torch.tanh, torch.sigmoid, F.softplus})
_SUMS = frozenset({torch.add, torch.sub, torch.cat})
_LEARNING = ("tail_gradient", "body_gradient", "jump_adam", "jump_sgd")


def check_trials(
    found: Findings, module: fx.GraphModule, blueprint: Blueprint, signature: SiteSignature, *, seed: int
) -> None:
    """Train copies of a module's weights for a step or two and add what was found.

    Args:
        found: With the structural checks done.
        module: At birth; left as it is.
        blueprint: What it was built from.
        signature: Where it was resolved.
        seed: Of inputs and targets; the global generator is not touched.
    """
    generator = torch.Generator().manual_seed(seed)
    x = example_input(signature, blueprint.kind, generator, samples=SAMPLES)
    h = torch.randn(output_shape(signature, SAMPLES), generator=generator).to(x.dtype)
    target = torch.randn(h.shape, generator=generator).to(x.dtype)
    nodes = canonical(blueprint, signature).nodes
    tails = frozenset(node.id for node in nodes if node.role == "tail")
    zero_born = tails | {node.id for node in nodes if node.op == "bias"}
    factor = rate_factor(blueprint, signature)
    found.numbers["rate_factor"] = factor
    if next(module.parameters(), None) is None:
        found.not_applicable |= dict.fromkeys(_LEARNING, "the kernel has no parameters")
    elif not found.checks["shape"]:
        found.not_applicable |= dict.fromkeys(_LEARNING, "the output does not have the site's shape")
    else:
        trial = _Trial(module, x, h, target)
        _check_learning(found, trial, tails, factor)
        _check_jump(found, trial, "jump_sgd", torch.optim.SGD(trial.weights(), lr=SGD_RATE * factor))
    _check_units(found, module, zero_born, _probes(signature, blueprint.kind, generator))
    _check_finite(found, module, x, generator)


class _Trial(msgspec.Struct, frozen=True):
    """One batch of random numbers to train copies of a module's weights on."""

    module: nn.Module
    x: torch.Tensor
    h: torch.Tensor
    target: torch.Tensor

    def weights(self) -> list[torch.Tensor]:
        """Return copies of the weights that will be trained."""
        return [weight.detach().clone().requires_grad_() for weight in self.module.parameters()]

    def delta(self, weights: list[torch.Tensor]) -> torch.Tensor:
        names = [name for name, _ in self.module.named_parameters()]
        return run(self.module, dict(zip(names, weights, strict=True)), self.x)

    def backward(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        loss = (self.h + self.delta(optimizer.param_groups[0]["params"]) - self.target).float().square().mean()
        loss.backward()  # type: ignore[no-untyped-call]


def _check_learning(found: Findings, trial: _Trial, tails: frozenset[str], factor: float) -> None:
    """Take two Adam steps: the tail has a gradient before the first, the body after the second."""
    optimizer = torch.optim.Adam(trial.weights(), lr=ADAM_RATE * factor)
    weights: list[torch.Tensor] = optimizer.param_groups[0]["params"]
    in_tail = [name.split(".")[0] in tails for name, _ in trial.module.named_parameters()]
    trial.backward(optimizer)
    least = min(_norm(weight) for weight, tail in zip(weights, in_tail, strict=True) if tail)
    found.checks["tail_gradient"] = least > 0
    found.numbers["tail_gradient"] = least
    optimizer.step()
    _judge_jump(found, trial, "jump_adam", weights)
    if all(in_tail):
        found.not_applicable["body_gradient"] = "all of the kernel's parameters are in its tail"
        return
    trial.backward(optimizer)
    optimizer.step()
    trial.backward(optimizer)
    least = min(_norm(weight) for weight, tail in zip(weights, in_tail, strict=True) if not tail)
    found.checks["body_gradient"] = least > 0
    found.numbers["body_gradient"] = least


def _norm(weight: torch.Tensor) -> float:
    """Return the norm of a weight's gradient; 0 where none arrived or it is not finite."""
    norm = float(weight.grad.float().norm()) if weight.grad is not None else 0.0
    return norm if norm < float("inf") else 0.0


def _check_jump(found: Findings, trial: _Trial, name: str, optimizer: torch.optim.Optimizer) -> None:
    trial.backward(optimizer)
    optimizer.step()
    _judge_jump(found, trial, name, optimizer.param_groups[0]["params"])


def _judge_jump(found: Findings, trial: _Trial, name: str, weights: list[torch.Tensor]) -> None:
    with torch.no_grad():
        jump = float(trial.delta(weights).float().norm() / trial.h.float().norm())
    found.checks[name] = jump < JUMP_LIMIT
    found.numbers[name] = jump


def _probes(signature: SiteSignature, kind: str, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield samples to answer to, so many at once as memory allows."""
    one = example_input(signature, kind, generator, samples=1).numel()
    samples = max(1, min(DEAD_SAMPLES, _PROBE_ELEMENTS // one))
    for _ in range(0, DEAD_SAMPLES, samples):
        yield example_input(signature, kind, generator, samples=samples)


def _check_units(
    found: Findings, module: fx.GraphModule, zero_born: frozenset[str], probes: Iterator[torch.Tensor]
) -> None:
    """Find hidden units whose activation gives the same whatever comes in.

    Units behind a tail are left out: they are zero at birth by design.
    """
    hidden = _hidden(module, zero_born)
    if not hidden:
        found.not_applicable["dead_units"] = "the kernel has no activation before its tail"
        return
    watch = _Watch(module, hidden)
    with torch.no_grad():
        for x in probes:
            watch.run(x)
    share = max(watch.dead_share(node) for node in hidden)
    found.checks["dead_units"] = share <= DEAD_LIMIT
    found.numbers["dead_units"] = share


def _hidden(module: fx.GraphModule, zero_born: frozenset[str]) -> list[fx.Node]:
    """Return the activations of values that are not zero at birth."""
    zero: set[fx.Node] = set()
    hidden = []
    for node in module.graph.nodes:
        own = node.op in {"call_module", "get_attr"} and str(node.target).split(".")[0] in zero_born
        # A zero is lost in a sum with something alive, as on the stream of a layer, and in nothing else.
        spreads = all if node.target in _SUMS else any
        sources = [source in zero for source in node.all_input_nodes]
        if own or node.target is torch.zeros_like or (sources and spreads(sources)):
            zero.add(node)
        elif node.op == "call_function" and node.target in _ACTIVATIONS:
            hidden.append(node)
    return hidden


class _Watch(fx.Interpreter):
    """Runs a module and keeps the least and greatest value of each hidden unit, and of its input."""

    def __init__(self, module: fx.GraphModule, hidden: list[fx.Node]) -> None:
        super().__init__(module)
        self._hidden = set(hidden)
        self._ranges: dict[tuple[fx.Node, str], tuple[torch.Tensor, torch.Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if n in self._hidden:
            self._note(n, "in", self.env[n.all_input_nodes[0]])
            self._note(n, "out", out)
        return out

    def _note(self, node: fx.Node, side: str, values: torch.Tensor) -> None:
        low, high = values.amin(0), values.amax(0)
        if (node, side) in self._ranges:
            before = self._ranges[node, side]
            low, high = torch.minimum(low, before[0]), torch.maximum(high, before[1])
        self._ranges[node, side] = low, high

    def dead_share(self, node: fx.Node) -> float:
        """Return the share of a layer's units, position by position, that do not answer."""
        moved = {side: (high - low).float() for side in ("in", "out") for low, high in [self._ranges[node, side]]}
        return float((moved["out"] <= DEAD_RESPONSE * moved["in"].max()).float().mean())


def _check_finite(found: Findings, module: fx.GraphModule, x: torch.Tensor, generator: torch.Generator) -> None:
    """Run weights that are awake forward and backward, on usual and on large inputs."""
    awake = awakened(module, generator)
    for name in ("float32", "bfloat16"):
        finite = True
        for factor in (1.0, 30.0):
            weights: Weights = {key: value.to(DTYPES[name], copy=True).requires_grad_() for key, value in awake.items()}
            value = (x * factor).to(DTYPES[name]).requires_grad_()
            out = run(module, weights, value)
            finite = finite and bool(torch.isfinite(out).all())
            if out.requires_grad:
                out.float().sum().backward()  # type: ignore[no-untyped-call]
                grads = [value.grad, *(weight.grad for weight in weights.values())]
                finite = finite and all(bool(torch.isfinite(g).all()) for g in grads if g is not None)
        found.checks[f"finite_{name}"] = finite
