"""Full state as bytes: plain data and tensors, nothing executable.

Belongs here: the byte form of a checkpoint and what is read from host and optimiser. What goes into one is put
together by the session. The bytes are a function of the state alone, so equal digests mean equal state.

Form: msgpack array ``[magic, version, meta, tensors]`` where meta is a plain map and tensors a safetensors blob.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple, Protocol

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from esper.errors import CheckpointDamaged

_MAGIC = "esper-checkpoint"
_VERSION = 1


class State(NamedTuple):
    """Everything a run needs to go on: plain data and tensors by name."""

    meta: dict[str, Any]
    tensors: dict[str, Tensor]


class CheckpointStore(Protocol):
    """Where checkpoint bytes are kept: an artifact store, or a stand-in that keeps nothing for good."""

    def put(self, data: bytes) -> bytes:
        """Keep bytes and return their SHA-256."""
        ...

    def get(self, digest: bytes) -> bytes:
        """Return the bytes of a digest."""
        ...


def encode(state: State) -> bytes:
    """Return the checkpoint bytes of a state."""
    tensors = {name: _portable(tensor) for name, tensor in sorted(state.tensors.items())}
    return msgspec.msgpack.encode([_MAGIC, _VERSION, state.meta, save(tensors)])


def decode(data: bytes) -> State:
    """Return the state of checkpoint bytes.

    Raises:
        CheckpointDamaged: The bytes are not a checkpoint of this version.
    """
    try:
        magic, version, meta, blob = msgspec.msgpack.decode(data, type=tuple[str, int, dict[str, Any], bytes])
        if magic != _MAGIC or version != _VERSION:
            raise CheckpointDamaged(
                f"not a checkpoint this Esper reads: {magic!r} version {version}",
                hint="use the Esper version that recorded the run",
            )
        return State(meta, load(blob))
    except (msgspec.DecodeError, msgspec.ValidationError, SafetensorError) as error:
        raise CheckpointDamaged(f"checkpoint bytes cannot be read: {error}") from error


def capture_module(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return every parameter and buffer of a module under a prefix, buffers that are not saved by torch included."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {f"{prefix}{name}": tensor for name, tensor in named}


def restore_module(module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    """Copy captured tensors back in place.

    Raises:
        CheckpointDamaged: A tensor is missing or has another shape.
    """
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            stored = tensors.get(f"{prefix}{name}")
            if stored is None or stored.shape != tensor.shape:
                found = "missing" if stored is None else f"of shape {tuple(stored.shape)}"
                raise CheckpointDamaged(
                    f"{prefix}{name} should have shape {tuple(tensor.shape)} but is {found} in the checkpoint",
                    hint="the model is not the one the run was recorded with",
                )
            tensor.copy_(stored)


def tensor_digest(named: dict[str, Tensor]) -> bytes:
    """Return the SHA-256 over names, shapes, types and bytes of tensors, in order of name."""
    total = hashlib.sha256()
    for name in sorted(named):
        tensor = named[name].detach().cpu().contiguous()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.digest()


def _portable(tensor: Tensor) -> Tensor:
    # A copy of its own memory: safetensors refuses tensors that share storage.
    return tensor.detach().to("cpu", copy=True).contiguous()
