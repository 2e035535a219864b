"""A kernel as bytes: a blueprint resolved at a site with its initial weights.

Belongs here: writing, reading and checking those bytes. Does not belong here: storing them (``forge``) or measuring
(``crucible``). The bytes are a msgpack map of manifest, canonical document, signature, symbols and safetensors:
nothing in them is executed when they are read, and the same kernel has the same bytes on every machine.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import fx

from esper.blueprints.canonical import blueprint_id, canonical_json
from esper.blueprints.ir import Blueprint, SiteSignature, parse
from esper.blueprints.kernels.build import assemble, canonical
from esper.errors import KernelRefused

FORMAT = 1
MAX_BYTES = 192 * 1024 * 1024


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a kernel is, for a reader that does not build it."""

    format: int
    blueprint_id: str
    #: The blueprint's own name.
    name: str
    kind: str
    parameters: int
    #: Forward FLOPs of one sample.
    flops: int


class _Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The msgpack map, as written."""

    manifest: Manifest
    ir: str
    signature: SiteSignature
    symbols: dict[str, int]
    tensors: bytes


class Kernel(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel read from bytes, every part checked."""

    #: SHA-256 of the bytes, 64 hexadecimal digits.
    kernel_id: str
    manifest: Manifest
    blueprint: Blueprint
    signature: SiteSignature
    symbols: dict[str, int]
    #: Initial weights by name, e.g. ``n0.weight``.
    tensors: dict[str, Any]


def kernel_id(data: bytes) -> str:
    """Return the SHA-256 of a kernel's bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def kernel_seed(blueprint: Blueprint, signature: SiteSignature) -> int:
    """Return the seed of a kernel's weights: 63 bits that depend on the blueprint and the site alone."""
    cause = blueprint_id(blueprint).encode() + msgspec.msgpack.encode(signature)
    return int.from_bytes(hashlib.sha256(cause).digest()[:8], "big") >> 1


def encode_kernel(blueprint: Blueprint, signature: SiteSignature, module: fx.GraphModule) -> bytes:
    """Return the bytes of a kernel.

    Args:
        blueprint: What the module was built from.
        signature: Where it was resolved.
        module: As ``build.build`` gives it.

    Raises:
        BlueprintInvalid: The blueprint breaks a rule or does not fit the site.
        KernelRefused: The module is not one of this blueprint, or too large.
    """
    found = canonical(blueprint, signature)
    tensors = {name: value.detach().contiguous() for name, value in module.state_dict().items()}
    _check_tensors(found.blueprint, signature, tensors)
    document = _Document(
        manifest=_manifest(blueprint, found.parameters or 0, found.flops or 0),
        ir=canonical_json(blueprint),
        signature=signature,
        symbols=found.symbols,
        tensors=safetensors.torch.save(tensors),
    )
    data = msgspec.msgpack.encode(document)
    if len(data) > MAX_BYTES:
        raise KernelRefused(f"the kernel has {len(data)} bytes, {MAX_BYTES} are allowed")
    return data


def decode_kernel(data: bytes) -> Kernel:
    """Return the kernel in bytes from an unknown hand.

    Raises:
        KernelRefused: The bytes are no kernel, or one part of them does not agree with another.
        BlueprintInvalid: The blueprint inside breaks a rule or does not fit the signature inside.
    """
    if len(data) > MAX_BYTES:
        raise KernelRefused(f"the kernel has {len(data)} bytes, {MAX_BYTES} are allowed")
    try:
        document = msgspec.msgpack.decode(data, type=_Document)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise KernelRefused(f"the bytes are no kernel: {error}", hint="fetch the kernel again") from error
    if document.manifest.format != FORMAT:
        raise KernelRefused(f"the kernel has format {document.manifest.format}, this Esper reads {FORMAT}")
    found = canonical(parse(document.ir), document.signature)
    if canonical_json(found.blueprint) != document.ir:
        raise KernelRefused("the kernel's blueprint is not in canonical form")
    if document.manifest != _manifest(found.blueprint, found.parameters or 0, found.flops or 0):
        raise KernelRefused("the kernel's manifest does not describe its blueprint")
    if document.symbols != found.symbols:
        raise KernelRefused(f"the kernel's symbols are {document.symbols}, its site gives {found.symbols}")
    try:
        tensors = safetensors.torch.load(document.tensors)
    except safetensors.SafetensorError as error:
        raise KernelRefused(f"the kernel's tensors cannot be read: {error}") from error
    _check_tensors(found.blueprint, document.signature, tensors)
    return Kernel(
        kernel_id=kernel_id(data),
        manifest=document.manifest,
        blueprint=found.blueprint,
        signature=document.signature,
        symbols=document.symbols,
        tensors=tensors,
    )


def load_module(kernel: Kernel) -> fx.GraphModule:
    """Return a fresh module with the kernel's initial weights; later training does not reach the kernel."""
    module = assemble(kernel.blueprint, kernel.signature, device="cpu")
    module.load_state_dict(kernel.tensors, strict=True)
    return module


def _manifest(blueprint: Blueprint, parameters: int, flops: int) -> Manifest:
    return Manifest(
        format=FORMAT,
        blueprint_id=blueprint_id(blueprint),
        name=blueprint.id,
        kind=blueprint.kind,
        parameters=parameters,
        flops=flops,
    )


@functools.lru_cache(maxsize=64)
def _wanted(document: str, signature: SiteSignature) -> dict[str, torch.Tensor]:
    """Return tensors without memory, of the shapes and types that a kernel's have."""
    return dict(assemble(parse(document), signature, device="meta").state_dict())


def _check_tensors(blueprint: Blueprint, signature: SiteSignature, tensors: dict[str, torch.Tensor]) -> None:
    wanted = _wanted(canonical_json(blueprint), signature)
    if set(tensors) != set(wanted):
        raise KernelRefused(f"tensors are {sorted(tensors)[:8]}, the blueprint has {sorted(wanted)[:8]}")
    for name, value in tensors.items():
        if (value.shape, value.dtype) != (wanted[name].shape, wanted[name].dtype):
            raise KernelRefused(f"tensor {name} is {tuple(value.shape)} {value.dtype}, not as the blueprint says")
        if not bool(torch.isfinite(value).all()):
            raise KernelRefused(f"tensor {name} holds a value that is not finite")
