"""Run a host for a look without leaving a trace in it.

Belongs here: saving and putting back what a forward pass may change besides parameters. Does not belong here:
checkpoints (``esper.tolaria``).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import numpy
import torch
from torch import nn
from torch.utils import _pytree

T = TypeVar("T")


def copied(arguments: T) -> T:
    """Return arguments of a forward pass with every tensor in them copied, since a host may write into its inputs."""
    return cast("T", _pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), arguments))


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Put every global random generator back as it was: Python's, NumPy's, PyTorch's on each device."""
    python, legacy, cpu = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(legacy)
        torch.set_rng_state(cpu)
        if devices:
            torch.cuda.set_rng_state_all(devices)


@contextmanager
def same_host(model: nn.Module) -> Iterator[None]:
    """Put back each module's train or eval mode and each buffer, bit for bit and in place.

    Args:
        model: The host.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                buffer.copy_(value)
                # A forward pass may have put another tensor in the buffer's place.
                setattr(module, name, buffer)


@contextmanager
def no_fast_paths() -> Iterator[None]:
    """Keep attention layers from bypassing their inner modules, and encoders from using nested tensors."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
