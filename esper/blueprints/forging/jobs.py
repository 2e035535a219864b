"""Names of the forge's work: ids that follow from what is done, and what it is done with.

Belongs here: ids of jobs and of the facts about them, and the words for toolchain and hardware. Whoever does a piece of
work, a run, Tezzeret, Urabrask or a person, uses these ids, so that nothing is said twice. Does not belong here: the
work (``forge``, ``esper.handlers``). Torch is not imported.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import re
from pathlib import Path

import msgspec

from esper.blueprints.ir import SiteSignature
from esper.ids import derived_id, sha256

#: How often a kernel that was found bad is made again. One that is bad each time is not made bad by its bytes: its
#: makers and its users look into different stores, say.
MOST_REMADE = 3
#: Vector extensions that math libraries choose their code by, the best first; as /proc/cpuinfo spells them.
_VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "sve": "SVE", "asimd": "NEON"}


def job_id(blueprint_id: str, signature: SiteSignature) -> str:
    """Return the id of the job that makes a blueprint's kernel at a site: 32 hexadecimal digits."""
    site = sha256(msgspec.msgpack.encode(signature)).hex()
    return derived_id("job", blueprint_id, site).hex()


def submitted_event_id(blueprint_id: str) -> bytes:
    """Return the event id of a blueprint's submission."""
    return derived_id("blueprint", blueprint_id, "submitted")


def requested_event_id(job_id: str) -> bytes:
    """Return the event id of a request for a job, whoever asks."""
    return derived_id("job", job_id, "requested")


def leased_event_id(job_id: str, token: int) -> bytes:
    """Return the event id of the word that a worker took a job under a fencing token."""
    return derived_id("job", job_id, "leased", token)


def compiled_event_id(kernel_id: str) -> bytes:
    """Return the event id of a kernel's KernelCompiled: there is one, whoever compiled it and however often."""
    return derived_id("kernel", kernel_id, "compiled")


def failed_event_id(job_id: str) -> bytes:
    """Return the event id of a job's CompilationFailed."""
    return derived_id("job", job_id, "failed")


def measurement_event_id(kernel_id: str, toolchain: str, rounds: int = 0) -> bytes:
    """Return the event id of the request to measure a kernel with a toolchain; arguments as for a verdict."""
    return _of_kernel(kernel_id, "measurement", toolchain, rounds)


def characterized_event_id(kernel_id: str, toolchain: str, rounds: int = 0) -> bytes:
    """Return the event id of what was measured of a kernel with a toolchain; arguments as for a verdict."""
    return _of_kernel(kernel_id, "characterized", toolchain, rounds)


def verdict_event_id(kernel_id: str, toolchain: str, rounds: int = 0) -> bytes:
    """Return the event id of a kernel's one verdict with a toolchain, validated or rejected.

    Args:
        kernel_id: The kernel.
        toolchain: As ``toolchain`` gives it.
        rounds: How often it was found bad, or a measurement was asked for, before: each time asks for a new verdict.
    """
    return _of_kernel(kernel_id, "verdict", toolchain, rounds)


def tagged_event_id(kernel_id: str, measurements_digest: bytes, *, early: bool) -> bytes:
    """Return the event id of the tags that follow from measurements.

    Args:
        kernel_id: The kernel.
        measurements_digest: Digest of its raw measurements.
        early: Whether there were too few kernels to compare with; once there are enough, it is tagged once more.
    """
    return derived_id("kernel", kernel_id, "tagged", measurements_digest.hex(), "early" if early else "compared")


def quarantined_event_id(kernel_id: str, quarantines: int) -> bytes:
    """Return the event id of a kernel's quarantine after so many earlier ones, so that one fault is one fact."""
    return derived_id("kernel", kernel_id, "quarantined", str(quarantines))


def form_event_id(kernel_id: str, pipeline: str, outcome: str, earlier: int = 0) -> bytes:
    """Return the event id of what became of a kernel's compiled form with the toolchain and hardware of here.

    Args:
        kernel_id: The kernel.
        pipeline: export or inductor.
        outcome: ``compiled``, or why it was refused: a machine that gets a compiler may say so after all.
        earlier: Forms of the same kind that were compiled before and cannot be had any more.
    """
    again = (f"after {earlier}",) if earlier else ()
    return derived_id("kernel", kernel_id, "form", pipeline, toolchain(), hardware(), outcome, *again)


@functools.cache
def toolchain() -> str:
    """Return what kernels are compiled and measured with here, e.g. ``torch 2.13.0+cpu``."""
    return f"torch {importlib.metadata.version('torch')}"


@functools.cache
def hardware() -> str:
    """Return processor and vector extension, e.g. ``AMD EPYC 7B13, AVX2``; neither host nor user is named."""
    try:
        table = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    return _processor(table) or platform.machine()


def _processor(table: str) -> str:
    """Return the words for the first processor of a /proc/cpuinfo."""
    lines = (line.partition(":") for line in table.split("\n\n", 1)[0].splitlines())
    fields = {key.strip(): value.strip() for key, _, value in lines}
    model = re.sub(r"\s+", " ", fields.get("model name") or fields.get("CPU part") or platform.machine())
    features = set((fields.get("flags") or fields.get("Features") or "").split())
    vector = next((name for flag, name in _VECTORS.items() if flag in features), None)
    return model if vector is None else f"{model}, {vector}"


def _of_kernel(kernel_id: str, what: str, toolchain: str, rounds: int) -> bytes:
    """Return an id of a kernel and a toolchain; the first one does not name a round."""
    again = (f"after {rounds}",) if rounds else ()
    return derived_id("kernel", kernel_id, what, toolchain, *again)
