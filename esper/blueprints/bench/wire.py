"""What goes over the pipes between the workbench and its child: a length, then msgpack; never pickle.

Belongs here: the messages, those of tasks included, and their framing. Does not belong here: who reads and writes them
(``process``, ``child``).
"""

from __future__ import annotations

import msgspec

from esper.blueprints.ir import SiteSignature

#: Bytes before each message that tell its length.
HEADER_BYTES = 8
#: Largest message: a kernel has at most 192 MiB, its form a few times that.
MAX_MESSAGE_BYTES = 1 << 30
#: Name of the environment variable by which processes that a child left behind are known.
MARK = "WORKBENCH_MARK"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One job."""

    task: str
    payload: bytes
    cpu_s: float
    #: Most memory above what the child holds now.
    memory_bytes: int


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job has no result."""

    #: BlueprintInvalid or KernelRefused, which are raised again as such; memory_limit, forked or error.
    kind: str
    message: str
    hint: str = ""
    #: Attributes of the error, as text.
    attributes: dict[str, str] = {}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a job; the first answer, without a result, says that the child is ready."""

    result: bytes | None = None
    failure: Failure | None = None
    cpu_s: float = 0.0
    #: Most memory held above what the child held before the job; None where the system does not tell.
    peak_memory_bytes: int | None = None
    #: Whether the job left something in the child (a thread, memory), so that it should serve no other job.
    spoiled: bool = False


class CompileRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be compiled."""

    #: The document, canonical or not.
    ir: str
    signature: SiteSignature


class Compiled(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel and what it is."""

    kernel: bytes
    symbols: dict[str, int]
    parameters: int
    #: Forward FLOPs of one sample.
    flops: int


class FormRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which form of a kernel is to be made."""

    #: The kernel's bytes.
    kernel: bytes
    pipeline: str
    #: Samples it is made for and timed with.
    batch: int


class FormDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A form as bytes, a msgpack map. All but the body may be read before its signature was checked."""

    format: int
    kernel_id: str
    pipeline: str
    toolchain: str
    #: Samples it was made for; a form by inductor is for these alone.
    batch: int
    body: bytes


class FormMade(msgspec.Struct, frozen=True, kw_only=True):
    """A form and what was found of it; without the form where it is refused."""

    form: bytes | None = None
    #: differs or unavailable.
    refusal: str | None = None
    message: str = ""
    compile_s: float = 0.0
    #: None where it is not finite, or nothing was compared.
    value_difference: float | None = None
    gradient_difference: float | None = None
    tolerance: float | None = None
    #: Median seconds of a forward and backward pass.
    eager_step_s: float = 0.0
    form_step_s: float = 0.0


def framed(message: Request | Answer) -> bytes:
    """Return a message as it is written."""
    data = msgspec.msgpack.encode(message)
    return len(data).to_bytes(HEADER_BYTES) + data
