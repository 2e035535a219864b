"""Facts of kernels: a blueprint resolved at a site signature, compiled, measured, validated or rejected.

Kernels and the jobs that make them live in their blueprint's stream. A job is a blueprint at a site signature; its id
follows from both, so that asking twice is asking once.
"""

from __future__ import annotations

from typing import Any

from esper.events.base import Fact, fact
from esper.names import TopicNames

_BLUEPRINTS = TopicNames.COMPILATION_BLUEPRINT_SUBMITTED
_READY = TopicNames.COMPILATION_KERNEL_READY
_CHARACTERIZED = TopicNames.VALIDATION_KERNEL_CHARACTERIZED


@fact(_BLUEPRINTS, stream="blueprint", key="blueprint_id")
class CompilationRequested(Fact, frozen=True, kw_only=True):
    """A kernel of a blueprint is wanted at a site."""

    #: 32 hexadecimal digits that follow from blueprint and signature.
    job_id: str
    blueprint_id: str
    #: Site signature, as plain data.
    signature: dict[str, Any]
    #: Compiled forms wanted beside the kernel itself: ``export``, ``inductor``.
    pipelines: list[str]
    requested_by: str


@fact(_BLUEPRINTS, stream="blueprint", key="blueprint_id")
class CompilationLeased(Fact, frozen=True, kw_only=True):
    """A worker took a job. A second one for the same job means that the first worker lost its lease."""

    job_id: str
    blueprint_id: str
    worker: str
    #: Fencing token of the lease; it grows with every change of owner.
    token: int
    #: Which try at the job this is, from 1.
    attempt: int


@fact(
    _READY,
    stream="blueprint",
    key="blueprint_id",
    schema=2,
    volatile=("compile_seconds", "toolchain", "job_id", "worker", "peak_memory_bytes", "hardware", "signed_by"),
)
class KernelCompiled(Fact, frozen=True, kw_only=True):
    """A kernel was built and stored."""

    blueprint_id: str
    #: SHA-256 of the kernel artifact, 64 hexadecimal digits.
    kernel_id: str
    #: Site signature it fits, as plain data.
    signature: dict[str, Any]
    #: Values of the blueprint's symbols at that site.
    symbols: dict[str, int]
    parameters: int
    #: Forward FLOPs for one sample.
    flops: int
    size_bytes: int
    compile_seconds: float
    toolchain: str
    #: Job it was made for; None where a run made it for itself.
    job_id: str | None = None
    worker: str | None = None
    #: Most memory the compiling process held above what it began with.
    peak_memory_bytes: int | None = None
    hardware: str | None = None
    #: Id of the key that signed the artifact.
    signed_by: str | None = None


@fact(_READY, stream="blueprint", key="blueprint_id", schema=2, volatile=("job_id", "message"))
class CompilationFailed(Fact, frozen=True, kw_only=True):
    """A blueprint could not be built for a site signature."""

    blueprint_id: str
    signature: dict[str, Any]
    error: str
    message: str
    job_id: str | None = None
    #: What stopped it: error, time_limit, memory_limit, died or forked.
    reason: str | None = None


@fact(
    _READY,
    stream="blueprint",
    key="blueprint_id",
    volatile=(
        "form_digest",
        "compile_seconds",
        "size_bytes",
        "peak_memory_bytes",
        "value_difference",
        "gradient_difference",
        "eager_step_s",
        "form_step_s",
        "chosen",
        "signed_by",
    ),
)
class KernelFormCompiled(Fact, frozen=True, kw_only=True):
    """A compiled form of a kernel was made and agrees with the eager one in values and gradients."""

    blueprint_id: str
    kernel_id: str
    #: export or inductor.
    pipeline: str
    #: SHA-256 of the form's artifact.
    form_digest: bytes
    toolchain: str
    hardware: str
    compile_seconds: float
    size_bytes: int
    peak_memory_bytes: int | None
    #: Largest difference to the eager form, relative to its largest value.
    value_difference: float
    gradient_difference: float
    tolerance: float
    #: Median seconds of a forward and backward pass, eager and compiled, measured in turn.
    eager_step_s: float
    form_step_s: float
    #: Whether it was measured to be faster, so that it is used.
    chosen: bool
    signed_by: str | None


@fact(_READY, stream="blueprint", key="blueprint_id", volatile=("message", "value_difference", "gradient_difference"))
class KernelFormRefused(Fact, frozen=True, kw_only=True):
    """A compiled form of a kernel could not be made, or does not compute what the eager one does."""

    blueprint_id: str
    kernel_id: str
    pipeline: str
    toolchain: str
    hardware: str
    #: differs, error, time_limit, memory_limit, died or unavailable.
    reason: str
    message: str
    value_difference: float | None
    gradient_difference: float | None
    tolerance: float | None


@fact(_READY, stream="blueprint", key="blueprint_id")
class MeasurementRequested(Fact, frozen=True, kw_only=True):
    """A kernel is to be measured, or measured again."""

    blueprint_id: str
    kernel_id: str
    #: Why, e.g. ``another toolchain``.
    reason: str
    toolchain: str
    requested_by: str


@fact(_READY, stream="blueprint", key="blueprint_id", volatile=("message", "evidence_digest", "found_by"))
class KernelQuarantined(Fact, frozen=True, kw_only=True):
    """A kernel's stored bytes or signature do not hold: it is offered no more until it is made and measured again."""

    blueprint_id: str
    kernel_id: str
    #: damaged, missing, unsigned, wrong_signature, wrong_site or not_a_kernel.
    reason: str
    message: str
    #: SHA-256 of what was found instead, kept in the store; None where nothing was found.
    evidence_digest: bytes | None
    found_by: str


@fact(
    _CHARACTERIZED,
    stream="blueprint",
    key="blueprint_id",
    schema=2,
    volatile=("measurements_digest", "latency_p50_s", "latency_p99_s", "measured_seconds", "peak_memory_bytes"),
)
class KernelCharacterized(Fact, frozen=True, kw_only=True):
    """The crucible measured a kernel; raw numbers are kept as an artifact."""

    blueprint_id: str
    kernel_id: str
    #: Check name -> passed.
    checks: dict[str, bool]
    #: Check name -> the number behind it.
    numbers: dict[str, float]
    #: SHA-256 of the raw measurements artifact (JSON).
    measurements_digest: bytes
    latency_p50_s: float | None
    latency_p99_s: float | None
    measured_seconds: float
    #: What it was measured with, e.g. ``torch 2.13.0+cpu``.
    toolchain: str | None = None
    hardware: str | None = None
    peak_memory_bytes: int | None = None


@fact(_CHARACTERIZED, stream="blueprint", key="blueprint_id", volatile=("measurements_digest",))
class KernelValidated(Fact, frozen=True, kw_only=True):
    """A kernel passed every check; points to the raw measurements that show it."""

    blueprint_id: str
    kernel_id: str
    measurements_digest: bytes


@fact(_CHARACTERIZED, stream="blueprint", key="blueprint_id", volatile=("measurements_digest",))
class KernelRejected(Fact, frozen=True, kw_only=True):
    """A kernel failed at least one check."""

    blueprint_id: str
    kernel_id: str
    measurements_digest: bytes
    #: Names of the checks that failed.
    failed: list[str]


@fact(_CHARACTERIZED, stream="blueprint", key="blueprint_id")
class KernelTagged(Fact, frozen=True, kw_only=True):
    """What a kernel's stored numbers say beside those of the others at the same kind of site."""

    blueprint_id: str
    kernel_id: str
    #: E.g. ``fast``, ``small``, ``quick_to_learn``; sorted.
    tags: list[str]
    #: Threshold each tag was judged by; where too few kernels were measured, the stated one of the beginning.
    thresholds: dict[str, float]
    #: Validated kernels the percentiles are over, this one included.
    compared_with: int
    #: 0 (far from every limit) to 1 (at a limit), from the stored numbers.
    risk: float
    #: 0 to 1: how much was measured, and among how many.
    confidence: float
    #: Measurements the judgement is from.
    measurements_digest: bytes
