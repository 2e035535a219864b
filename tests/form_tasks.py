"""Pipelines that make forms which are wrong, each in its own way, for a workbench; and the real ``inductor``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from esper.blueprints.bench.task import Task
from esper.blueprints.kernels.forms import PIPELINES, Pipeline, form_with
from esper.blueprints.kernels.kernel import Kernel, load_module


def _changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Pipeline:
    def load(kernel: Kernel, body: bytes) -> nn.Module:
        module = load_module(kernel)
        module.register_forward_hook(lambda _, __, out: change(out))
        return module

    return Pipeline(make=lambda kernel, x: b"", load=load)


#: What becomes of the output.
WRONG: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "constant": lambda out: out * 1.0001,
    "gradient": lambda out: out.detach() + 0.9999 * (out - out.detach()),
    "number": lambda out: out * torch.nan,
    "shape": lambda out: out[:-1],
}


def form(payload: bytes) -> bytes:
    """Make a form that is wrong as the name of its pipeline says."""
    return form_with({name: _changed(change) for name, change in WRONG.items()} | PIPELINES, payload)


TASKS = {"form": Task(form, may_start_processes=True)}
