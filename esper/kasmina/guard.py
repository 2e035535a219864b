"""Keep a failing branch out of the host, in the forward and in the backward pass.

Belongs here: what stands between a seed's module and the host's tensors. Does not belong here: what happens to a
seed that failed (``esper.kasmina.growth``). Everything is chosen on the device; nothing here waits for it.

A branch that is not selected still sends gradients back, and 0 times NaN is NaN. So the gradient is cleaned where
it leaves the branch: at the branch's input and at its parameters.
"""

from __future__ import annotations

import hashlib
import traceback
from typing import Any

import msgspec
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """How a seed failed."""

    #: exception, not_finite or wrong_shape.
    kind: str
    message: str
    #: SHA-256 of the traceback text; None where there is none.
    traceback_digest: bytes | None = None


class Guard:
    """Watches one seed's branch and notes on the device that it gave NaN or Inf."""

    def __init__(self, device: torch.device) -> None:
        #: 0 as long as everything was finite; NaN ever after. One number, so that a check is a sum and an addition.
        self.trace = torch.zeros((), device=device)
        #: First fault seen on the host side (exception, wrong shape).
        self.fault: Fault | None = None
        self._host_gradient_bad = torch.zeros((), dtype=torch.bool, device=device)
        self._handles: list[RemovableHandle] = []

    def watch(self, module: nn.Module) -> None:
        """Clean the gradients of a module's parameters from now on, until ``release``."""
        for parameter in module.parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_hook(self.clean))  # type: ignore[no-untyped-call]

    def release(self) -> None:
        """Take the hooks off the parameters."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def failed(self) -> torch.Tensor:
        """Return on the device whether anything was not finite: a bool of no dimensions."""
        return torch.isfinite(self.trace).logical_not_()

    def blend(
        self, module: nn.Module, source: torch.Tensor, h: torch.Tensor, alpha: torch.Tensor
    ) -> torch.Tensor | None:
        """Return ``h + alpha * module(source)``, bit-equal to h where that is not finite; None where it failed.

        Args:
            module: The branch.
            source: What it reads.
            h: What its output is added to; gives the shape and dtype.
            alpha: Strength, no dimensions, on h's device.
        """
        try:
            delta = module(_Enter.apply(source, self))  # type: ignore[no-untyped-call]
        except Exception as error:  # a seed's own code may raise anything; the host must go on
            self.note(error)
            return None
        if not isinstance(delta, torch.Tensor) or delta.shape != h.shape or delta.device != h.device:
            got = f"{tuple(delta.shape)} on {delta.device}" if isinstance(delta, torch.Tensor) else type(delta)
            self.fault = Fault(
                kind="wrong_shape", message=f"the host has {tuple(h.shape)} on {h.device}, the seed gave {got}"
            )
            return None
        joined: torch.Tensor = _Join.apply(h, delta.to(h.dtype), alpha, self)  # type: ignore[no-untyped-call]
        return joined

    def note(self, error: Exception) -> None:
        """Note an exception raised by the branch; the first one counts."""
        text = "".join(traceback.format_exception(error))
        self.fault = self.fault or Fault(
            kind="exception",
            message=f"{type(error).__name__}: {error}",
            traceback_digest=hashlib.sha256(text.encode()).digest(),
        )

    def see(self, values: torch.Tensor) -> None:
        """Note whether values are finite: 0 times their sum is 0 then, and NaN else."""
        self.trace.add_(values.sum(), alpha=0)

    def see_host_gradient(self, gradient: torch.Tensor) -> None:
        """Note whether the gradient that comes from the host is itself broken; that is not the seed's fault."""
        self._host_gradient_bad = torch.isfinite(gradient.sum()).logical_not_()

    def clean(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return a gradient made inside the branch with NaN and Inf set to zero, and note them."""
        self.see(gradient.sum().masked_fill(self._host_gradient_bad, 0.0))
        return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)


class _Enter(torch.autograd.Function):
    """Identity on the way in; cleans the gradient that leaves the branch towards the host."""

    @staticmethod
    def forward(ctx: Any, source: torch.Tensor, guard: Guard) -> torch.Tensor:
        ctx.guard = guard
        return source.view_as(source)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.guard.clean(gradients[0]), None


class _Join(torch.autograd.Function):
    """Adds a branch to the host's output where everything was finite; the host's gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, h: torch.Tensor, delta: torch.Tensor, alpha: torch.Tensor, guard: Guard) -> torch.Tensor:
        guard.see(delta)
        usable = torch.isfinite(guard.trace)
        ctx.guard, ctx.factor = guard, alpha.masked_fill(~usable, 0.0)
        return torch.where(usable, h + alpha * delta, h)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        (gradient,) = gradients
        ctx.guard.see_host_gradient(gradient)
        return gradient, gradient * ctx.factor, None, None
