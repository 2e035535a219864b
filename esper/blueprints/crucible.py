"""The crucible: measure a kernel before anyone may graft it.

Belongs here: the checks that train a copy for a step or two, finiteness, latency, and all findings as one record.
Does not belong here: the structural checks (``structure``) or what becomes of a kernel (``forge``).

The checks train towards a random target with the loss mean((h + delta - target)^2). The limit on jumps: a sound zero
tail moves by about the learning rate in its first Adam step whatever the gradient, while a norm behind a zero layer
throws the branch to a quarter of |h| in one plain gradient step; 5 % of |h| stands between the two.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable

import msgspec
import torch
from torch import fx, nn

from esper.blueprints.build import DTYPES, canonical, example_input, output_shape
from esper.blueprints.ir import Blueprint, SiteSignature
from esper.blueprints.kernel import kernel_seed
from esper.blueprints.structure import SAMPLES, Findings, awakened, check_structure

JUMP_LIMIT = 0.05
ADAM_RATE = 1e-3
SGD_RATE = 1e-2
LATENCY_RUNS = 30
_WARM_UP_RUNS = 3
_LEARNING = ("tail_gradient", "body_gradient", "jump_adam", "jump_sgd")


class Measurements(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured of one kernel."""

    #: Check -> passed. Only what was checked stands here.
    checks: dict[str, bool]
    #: The numbers behind the checks; the same whenever the same kernel is measured in the same environment.
    numbers: dict[str, float]
    #: Check -> why it does not apply to this kernel.
    not_applicable: dict[str, str]
    #: Seconds of each forward pass of ``SAMPLES`` samples.
    latencies_s: list[float]
    latency_p50_s: float
    latency_p99_s: float
    environment: dict[str, str | int]

    @property
    def failed(self) -> list[str]:
        """Return the names of the checks that failed, sorted."""
        return sorted(name for name, passed in self.checks.items() if not passed)

    def raw(self) -> bytes:
        """Return everything as JSON, keys sorted; a number that is not finite is written as a string."""
        plain = msgspec.to_builtins(self)
        plain["numbers"] = {
            name: value if abs(value) < float("inf") else repr(value) for name, value in self.numbers.items()
        }
        return json.dumps(plain, sort_keys=True, allow_nan=False, indent=1).encode()


def characterize(
    module: fx.GraphModule,
    blueprint: Blueprint,
    signature: SiteSignature,
    *,
    timer: Callable[[], float] = time.perf_counter,
) -> Measurements:
    """Measure a kernel's module at birth; module and global generator are left as they are.

    Args:
        module: As ``build.build`` or ``kernel.load_module`` gives it.
        blueprint: What it was built from.
        signature: Where it was resolved.
        timer: Seconds from any origin.
    """
    seed = kernel_seed(blueprint, signature) ^ 1
    found = check_structure(module, blueprint, signature, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    x = example_input(signature, blueprint.kind, generator, samples=SAMPLES)
    h = torch.randn(output_shape(signature, SAMPLES), generator=generator).to(x.dtype)
    target = torch.randn(h.shape, generator=generator).to(x.dtype)
    if next(module.parameters(), None) is None:
        found.not_applicable |= dict.fromkeys(_LEARNING, "the kernel has no parameters")
    elif not found.checks["shape"]:
        found.not_applicable |= dict.fromkeys(_LEARNING, "the output does not have the site's shape")
    else:
        trial = _Trial(x, h, target)
        _check_gradients(found, module, trial, _tail_names(blueprint, signature))
        _check_jump(found, module, trial, "jump_adam", lambda ps: torch.optim.Adam(ps, lr=ADAM_RATE))
        _check_jump(found, module, trial, "jump_sgd", lambda ps: torch.optim.SGD(ps, lr=SGD_RATE))
    _check_finite(found, module, x, generator)
    latencies = _latencies(module, x, timer)
    return Measurements(
        checks=found.checks,
        numbers=found.numbers,
        not_applicable=found.not_applicable,
        latencies_s=latencies,
        latency_p50_s=statistics.median(latencies),
        latency_p99_s=statistics.quantiles(latencies, n=100, method="inclusive")[98],
        environment={
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "device": "cpu",
            "samples": SAMPLES,
        },
    )


class _Trial(msgspec.Struct, frozen=True):
    """One batch of random numbers to train a copy on."""

    x: torch.Tensor
    h: torch.Tensor
    target: torch.Tensor

    def backward(self, module: nn.Module) -> None:
        loss = (self.h + module(self.x) - self.target).float().square().mean()
        loss.backward()


def _tail_names(blueprint: Blueprint, signature: SiteSignature) -> frozenset[str]:
    """Return the names of the submodules that are zero at birth."""
    return frozenset(node.id for node in canonical(blueprint, signature).nodes if node.role == "tail")


def _check_gradients(found: Findings, module: nn.Module, trial: _Trial, tails: frozenset[str]) -> None:
    trained = copy.deepcopy(module)
    weights = {name: weight for name, weight in trained.named_parameters() if weight.requires_grad}
    tail = {name: weight for name, weight in weights.items() if name.split(".")[0] in tails}
    body = {name: weight for name, weight in weights.items() if name not in tail}
    optimizer = torch.optim.Adam(weights.values(), lr=ADAM_RATE)
    trial.backward(trained)
    least = min(_norm(weight) for weight in tail.values())
    found.checks["tail_gradient"] = least > 0
    found.numbers["tail_gradient"] = least
    if not body:
        found.not_applicable["body_gradient"] = "all of the kernel's parameters are in its tail"
        return
    for _ in range(2):
        optimizer.step()
        optimizer.zero_grad()
        trial.backward(trained)
    least = min(_norm(weight) for weight in body.values())
    found.checks["body_gradient"] = least > 0
    found.numbers["body_gradient"] = least


def _norm(weight: torch.Tensor) -> float:
    """Return the norm of a weight's gradient; 0 where none arrived or it is not finite."""
    norm = float(weight.grad.float().norm()) if weight.grad is not None else 0.0
    return norm if norm < float("inf") else 0.0


def _check_jump(
    found: Findings,
    module: nn.Module,
    trial: _Trial,
    name: str,
    optimizer_of: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
) -> None:
    trained = copy.deepcopy(module)
    optimizer = optimizer_of(list(trained.parameters()))
    trial.backward(trained)
    optimizer.step()
    with torch.no_grad():
        jump = float(trained(trial.x).float().norm() / trial.h.float().norm())
    found.checks[name] = jump < JUMP_LIMIT
    found.numbers[name] = jump


def _check_finite(found: Findings, module: fx.GraphModule, x: torch.Tensor, generator: torch.Generator) -> None:
    """Run moved copies forward and backward on usual and on large inputs."""
    awake = awakened(module, generator)
    for name in ("float32", "bfloat16"):
        moved = copy.deepcopy(awake).to(DTYPES[name])
        finite = True
        for factor in (1.0, 30.0):
            value = (x * factor).to(DTYPES[name]).requires_grad_()
            out = moved(value)
            finite = finite and bool(torch.isfinite(out).all())
            if out.requires_grad:
                out.float().sum().backward()
                grads = [value.grad, *(weight.grad for weight in moved.parameters())]
                finite = finite and all(bool(torch.isfinite(g).all()) for g in grads if g is not None)
        found.checks[f"finite_{name}"] = finite


def _latencies(module: nn.Module, x: torch.Tensor, timer: Callable[[], float]) -> list[float]:
    latencies = []
    with torch.no_grad():
        for _ in range(_WARM_UP_RUNS):
            module(x)
        for _ in range(LATENCY_RUNS):
            start = timer()
            module(x)
            latencies.append(timer() - start)
    return latencies
