"""Tasks of the workbench for blueprints that misbehave, as their names say.

No sound blueprint can be made to fork or to take hours at will, so these stand for those that would. What behaves gets
a made-up result. No torch, so that a child that was killed is soon replaced.
"""

from __future__ import annotations

import json
import os
import re
import time

from esper.blueprints.bench.task import Task
from esper.errors import KernelRefused
from tests.hostile_tasks import allocate_bit_by_bit, leave_a_grandchild

#: The name of a blueprint stands in its document, and so in a kernel.
_NAME = re.compile(rb"(never_ends|takes_memory|forks|dies|raises|is_refused|yields_nan)_in_(compile|measure)")


def misbehave(payload: bytes, when: bytes) -> str | None:
    """Do what a blueprint's name says, e.g. ``never_ends_in_measure``; return the rest."""
    found = _NAME.search(payload)
    if found is None or found[2] != when:
        return None
    what = found[1].decode()
    match what:
        case "never_ends":
            time.sleep(600)
        case "takes_memory":
            allocate_bit_by_bit(b"")
        case "forks":
            leave_a_grandchild(b"")
        case "dies":
            os._exit(9)
        case "raises":
            raise ArithmeticError("nobody expected this")
        case "is_refused":
            raise KernelRefused("the kernel would be too large")
    return what


def compile_kernel(payload: bytes) -> bytes:
    misbehave(payload, b"compile")
    return b""


def measure_kernel(payload: bytes) -> bytes:
    finite = misbehave(payload, b"measure") != "yields_nan"
    jump = 0.01 if finite else "nan"
    return json.dumps({"checks": {"finite_float32": finite}, "numbers": {"jump_adam": jump}}).encode()


TASKS = {"compile": Task(compile_kernel), "measure": Task(measure_kernel)}
