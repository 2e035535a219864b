"""Facts of kernels: a blueprint resolved at a site signature, compiled, measured, validated or rejected."""

from __future__ import annotations

from typing import Any

from esper.events.base import Fact, fact
from esper.names import TopicNames

_READY = TopicNames.COMPILATION_KERNEL_READY
_CHARACTERIZED = TopicNames.VALIDATION_KERNEL_CHARACTERIZED


@fact(_READY, stream="blueprint", key="blueprint_id", volatile=("compile_seconds",))
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


@fact(_READY, stream="blueprint", key="blueprint_id")
class CompilationFailed(Fact, frozen=True, kw_only=True):
    """A blueprint could not be built for a site signature."""

    blueprint_id: str
    signature: dict[str, Any]
    error: str
    message: str


@fact(
    _CHARACTERIZED,
    stream="blueprint",
    key="blueprint_id",
    volatile=("measurements_digest", "latency_p50_s", "latency_p99_s", "measured_seconds"),
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
