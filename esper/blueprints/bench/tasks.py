"""The closed table of what the workbench's child can do.

Belongs here: the tasks, from bytes to bytes, with nothing but those bytes to work on: no log, no store, no key. Does
not belong here: the process around them (``child``) and what they do in earnest (``build``, ``crucible``, ``forms``).
"""

from __future__ import annotations

import msgspec

from esper.blueprints.bench.task import Task
from esper.blueprints.bench.wire import Compiled, CompileRequest
from esper.blueprints.ir import parse
from esper.blueprints.kernels.build import build
from esper.blueprints.kernels.crucible import characterize
from esper.blueprints.kernels.forms import form_kernel
from esper.blueprints.kernels.kernel import decode_kernel, encode_kernel, kernel_seed, load_module
from esper.blueprints.verify import verify


def compile_kernel(payload: bytes) -> bytes:
    """Build a blueprint at a site; ``CompileRequest`` in, ``Compiled`` out.

    Raises:
        BlueprintInvalid: The blueprint breaks a rule or does not fit the site.
        KernelRefused: The kernel would be too large.
    """
    wanted = msgspec.msgpack.decode(payload, type=CompileRequest)
    blueprint = parse(wanted.ir)
    found = verify(blueprint, wanted.signature)
    module = build(blueprint, wanted.signature, seed=kernel_seed(blueprint, wanted.signature))
    data = encode_kernel(blueprint, wanted.signature, module)
    return msgspec.msgpack.encode(
        Compiled(kernel=data, symbols=found.symbols, parameters=found.parameters or 0, flops=found.flops or 0)
    )


def measure_kernel(payload: bytes) -> bytes:
    """Measure a kernel; its bytes in, raw measurements as JSON out.

    Raises:
        KernelRefused: The bytes are no kernel.
        BlueprintInvalid: The blueprint inside breaks a rule.
    """
    kernel = decode_kernel(payload)
    return characterize(load_module(kernel), kernel.blueprint, kernel.signature).raw()


TASKS: dict[str, Task] = {
    "compile": Task(compile_kernel),
    "measure": Task(measure_kernel),
    # Inductor runs the machine's C++ compiler.
    "form": Task(form_kernel, may_start_processes=True),
}
