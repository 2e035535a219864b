"""Compiled forms of a kernel: made by ``torch.export`` or ``torch.compile``, held against the kernel, loaded again.

Belongs here: what needs torch. Does not belong here: the child process in which forms are made (``bench``), who signs
and who is told (``forming``), or the kernel (``kernel``): it is what replays, and a form is only ever held against it.

``torch.export.load`` and ``torch.compiler.load_cache_artifacts`` may run what they read. ``load_form`` is therefore for
bytes whose digest and signature were checked; ``forming.fetch_form`` does that.
"""

from __future__ import annotations

import contextlib
import io
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
import torch
from torch import nn

from esper.blueprints.bench.wire import FormDocument, FormMade, FormRequest
from esper.blueprints.forging.jobs import toolchain
from esper.blueprints.kernels.build import example_input
from esper.blueprints.kernels.kernel import Kernel, decode_kernel, load_module
from esper.blueprints.kernels.structure import TOLERANCES, Weights, awakened
from esper.errors import KernelRefused

FORMAT = 1
#: Forward and backward passes of which the median is taken, eager and compiled in turn.
_RUNS = 21
_LEAST_RUNS = 5
_BUDGET_S = 1.0
_HINT = "make the form again: `esper kernel compile`"


class Pipeline(NamedTuple):
    """A way to make forms."""

    #: Return the body of a form's bytes.
    make: Callable[[Kernel, torch.Tensor], bytes]
    #: Return a module from a body that is trusted; its weights are the kernel's.
    load: Callable[[Kernel, bytes], nn.Module]
    #: Return why it does not work on this machine; None where it does.
    missing: Callable[[], str | None] = lambda: None
    #: Return a place to make a form in where nothing is left of those made before.
    apart: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext


def form_kernel(payload: bytes) -> bytes:
    """Make a form; ``FormRequest`` in, ``FormMade`` out.

    Raises:
        KernelRefused: The bytes are no kernel, or no pipeline has that name.
        BlueprintInvalid: The blueprint inside breaks a rule.
    """
    return form_with(PIPELINES, payload)


def form_with(pipelines: dict[str, Pipeline], payload: bytes) -> bytes:
    """Make a form by one of several pipelines; see ``form_kernel``."""
    wanted = msgspec.msgpack.decode(payload, type=FormRequest)
    kernel = decode_kernel(wanted.kernel)
    pipeline = _pipeline(pipelines, wanted.pipeline)
    missing = pipeline.missing()
    if missing is not None:
        return msgspec.msgpack.encode(FormMade(refusal="unavailable", message=missing))
    generator = torch.Generator().manual_seed(0)
    x = example_input(kernel.signature, kernel.blueprint.kind, generator, samples=wanted.batch)
    with pipeline.apart():
        began_s = time.perf_counter()
        body = pipeline.make(kernel, x)
        compile_s = time.perf_counter() - began_s
        # What is judged is what its bytes give to whoever loads them.
        form = pipeline.load(kernel, body)
        judged = _judge(load_module(kernel), form, x, generator)
    made = msgspec.structs.replace(judged, compile_s=compile_s)
    if made.refusal is None:
        made = msgspec.structs.replace(made, form=_document(kernel, wanted, body))
    return msgspec.msgpack.encode(made)


def load_form(kernel: Kernel, pipeline: str, data: bytes) -> nn.Module:
    """Return a fresh module that computes by a form, with the kernel's initial weights, which can be trained.

    One by inductor compiles when it is first called; what the form brings saves most of that where batch size,
    toolchain and C++ compiler are those it was made with, and it computes all the same where they are not.

    Args:
        kernel: The kernel, checked.
        pipeline: export or inductor.
        data: A form's bytes, whose digest and signature have been checked; see ``forming.fetch_form``.

    Raises:
        KernelRefused: They are no form of this kernel by this pipeline and the toolchain that is installed.
    """
    try:
        document = msgspec.msgpack.decode(data, type=FormDocument)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KernelRefused(f"the bytes are no form of a kernel: {error}", hint=_HINT) from error
    found = (document.format, document.kernel_id, document.pipeline, document.toolchain)
    wanted = (FORMAT, kernel.kernel_id, pipeline, toolchain())
    if found != wanted:
        raise KernelRefused(
            f"the form is format {found[0]} of kernel {found[1][:12]} by {found[2]} with {found[3]}; wanted is format "
            f"{wanted[0]} of {wanted[1][:12]} by {wanted[2]} with {wanted[3]}",
            hint=_HINT,
        )
    return _pipeline(PIPELINES, pipeline).load(kernel, document.body)


def _document(kernel: Kernel, wanted: FormRequest, body: bytes) -> bytes:
    return msgspec.msgpack.encode(
        FormDocument(
            format=FORMAT,
            kernel_id=kernel.kernel_id,
            pipeline=wanted.pipeline,
            toolchain=toolchain(),
            batch=wanted.batch,
            body=body,
        )
    )


def _pipeline(pipelines: dict[str, Pipeline], name: str) -> Pipeline:
    if name not in pipelines:
        raise KernelRefused(f"there is no pipeline {name[:40]!r}", hint=f"one of {', '.join(pipelines)}")
    return pipelines[name]


def _judge(eager: nn.Module, form: nn.Module, x: torch.Tensor, generator: torch.Generator) -> FormMade:
    """Hold a form against the kernel, and time both if they agree."""
    # At birth the output is zero and so are most gradients: any two forms would agree.
    awake = awakened(eager, generator)
    for module in (eager, form):
        module.load_state_dict(awake, strict=True)
    value, gradient = _differences(eager, form, x, generator)
    tolerance = TOLERANCES[x.dtype]
    # Not "beyond": what is not a number is not within.
    agrees = value <= tolerance and gradient <= tolerance
    eager_s, form_s = _times(eager, form, x) if agrees else (0.0, 0.0)
    told = f"values differ by {value:.3g} and gradients by {gradient:.3g} of the largest, {tolerance:g} is allowed"
    return FormMade(
        refusal=None if agrees else "differs",
        message="" if agrees else told,
        value_difference=value if math.isfinite(value) else None,
        gradient_difference=gradient if math.isfinite(gradient) else None,
        tolerance=tolerance,
        eager_step_s=eager_s,
        form_step_s=form_s,
    )


def _differences(eager: nn.Module, form: nn.Module, x: torch.Tensor, generator: torch.Generator) -> tuple[float, float]:
    """Return how far values and gradients are apart, relative to the largest value and the largest gradient."""
    value, gradients = _step(eager, x)
    other, others = _step(form, x)
    if other.shape != value.shape or other.dtype != value.dtype or set(others) != set(gradients):
        return math.inf, math.inf
    # Each output counts differently, so that errors in gradients do not cancel in a sum.
    weighing = torch.randn(value.shape, generator=generator).to(value.dtype)
    value, gradients = _step(eager, x, weighing)
    other, others = _step(form, x, weighing)
    return _apart({"": value}, {"": other}), _apart(gradients, others)


def _step(module: nn.Module, x: torch.Tensor, weighing: torch.Tensor | None = None) -> tuple[torch.Tensor, Weights]:
    """Return the value of a forward pass and the gradients of the input and every weight, 0 where there is none."""
    module.zero_grad(set_to_none=True)
    given = x.detach().clone().requires_grad_()
    value: torch.Tensor = module(given)
    torch.autograd.backward(value, torch.ones_like(value) if weighing is None else weighing)
    taken = {"input": given, **dict(module.named_parameters())}
    return value.detach(), {
        name: torch.zeros_like(one) if one.grad is None else one.grad for name, one in taken.items()
    }


def _apart(first: Weights, second: Weights) -> float:
    """Return the largest difference over the largest value; of all together, as some gradients are all but zero."""
    scale = max(float(one.abs().max()) for one in first.values())
    apart = torch.tensor([float((first[name] - second[name]).abs().max()) for name in first], dtype=torch.float64)
    difference = float(apart.max())  # NaN where any is
    return difference / scale if scale else difference


def _times(eager: nn.Module, form: nn.Module, x: torch.Tensor) -> tuple[float, float]:
    """Return the median seconds of a forward and backward pass, taken in turn so that both meet the same machine."""
    seconds: tuple[list[float], list[float]] = ([], [])
    began_s = time.perf_counter()
    for run in range(_RUNS):
        if run >= _LEAST_RUNS and time.perf_counter() - began_s > _BUDGET_S:
            break
        for module, taken in zip((eager, form), seconds, strict=True):
            start_s = time.perf_counter()
            _step(module, x)
            taken.append(time.perf_counter() - start_s)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _export(kernel: Kernel, x: torch.Tensor) -> bytes:
    """Export for any number of samples."""
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(load_module(kernel), (x,), dynamic_shapes=shapes)
    written = io.BytesIO()
    torch.export.save(program, written)
    return written.getvalue()


def _load_export(kernel: Kernel, body: bytes) -> nn.Module:
    module = torch.export.load(io.BytesIO(body)).module()
    # Whatever weights stand in the form: the kernel's are the ones that were measured.
    module.load_state_dict(kernel.tensors, strict=True)
    return module


@contextlib.contextmanager
def _fresh_caches() -> Iterator[None]:
    """Use nothing that was compiled before, so that seconds and artifacts are those of one kernel alone."""
    from torch._inductor import config
    from torch._inductor.utils import fresh_cache
    from torch.compiler._cache import CacheArtifactManager

    torch.compiler.reset()
    # One compiler at a time, started from here: a pool of processes would outlive the job.
    with fresh_cache(), config.patch(compile_threads=1), CacheArtifactManager.with_fresh_cache():
        yield
    torch.compiler.reset()


def _inductor(kernel: Kernel, x: torch.Tensor) -> bytes:
    """Compile a forward and a backward pass for so many samples, and return what the compiler keeps of that.

    The batch size is a constant: with a variable one, the caches of another process do not find what this one made.
    """
    _step(_compiled(kernel), x)
    kept = torch.compiler.save_cache_artifacts()
    if kept is None:
        raise RuntimeError("the compiler keeps nothing of what it made")
    torch.compiler.reset()
    return kept[0]


def _load_inductor(kernel: Kernel, body: bytes) -> nn.Module:
    if torch.compiler.load_cache_artifacts(body) is None:
        raise KernelRefused("the form holds nothing of what a compiler made", hint=_HINT)
    return _compiled(kernel)


def _compiled(kernel: Kernel) -> nn.Module:
    module = load_module(kernel)
    module.compile(dynamic=False, fullgraph=True)
    return module


def _no_compiler() -> str | None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "inductor needs a C++ compiler: install g++, or name one in the environment variable CXX"
    return None


#: Ways to make a form; eager is the kernel itself.
PIPELINES: dict[str, Pipeline] = {
    "export": Pipeline(_export, _load_export),
    "inductor": Pipeline(_inductor, _load_inductor, _no_compiler, _fresh_caches),
}
