"""What decides the bits of a run besides its code and data: flags, seeds, generator states and the machine.

Belongs here: reading these, setting them, giving them back, and comparing two machines. Does not belong here:
versions of packages and git (``esper.tolaria.provenance``) or the order of samples (``esper.tolaria.task``).

Not part of the environment, because they do not change what an operation computes: host names, the kernel's
version, the number of processors (the thread count is set), and the inter-op thread count (eager operations run
one after another).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec
import numpy as np
import torch
from torch import Tensor

from esper.errors import EnvironmentMismatch

#: Uses of randomness that get a stream of their own, so that a graft or a decision never shifts another stream.
SEED_USES = ("host", "data", "order", "growth")

#: Environment variables by which the math libraries choose kernels or split sums.
_MATH_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_MAX_CPU_ISA",
    "KMP_DETERMINISTIC_REDUCTION",
    "MKL_CBWR",
    "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_DYNAMIC",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
)


class Flags(msgspec.Struct, frozen=True, kw_only=True):
    """Process-wide switches of torch that change results; the defaults are what a run uses.

    Attributes:
        threads: Threads inside one operation. Sums are split by it, so it changes the last bits.
        deterministic: Only algorithms that give the same bits each time; others raise.
        fill_uninitialized: New memory is filled, so that a read before a write shows instead of being random.
        matmul_precision: ``highest``, ``high`` or ``medium``, see ``torch.set_float32_matmul_precision``.
        default_dtype: Name of the default floating type, e.g. ``float32``.
        mkldnn_deterministic: The same for oneDNN's kernels.
        cudnn_deterministic: The same for cuDNN's kernels.
        cudnn_benchmark: cuDNN chooses kernels by timing them, which may choose differently next time.
    """

    threads: Annotated[int, msgspec.Meta(ge=1)] = 1
    deterministic: bool = True
    fill_uninitialized: bool = True
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    default_dtype: Literal["float16", "bfloat16", "float32", "float64"] = "float32"
    mkldnn_deterministic: bool = True
    cudnn_deterministic: bool = True
    cudnn_benchmark: bool = False


def current_flags() -> Flags:
    """Return the switches as they are in this process."""
    return Flags(
        threads=torch.get_num_threads(),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        fill_uninitialized=torch._C._get_deterministic_fill_uninitialized_memory(),  # noqa: SLF001
        matmul_precision=cast("Any", torch.get_float32_matmul_precision()),
        default_dtype=cast("Any", str(torch.get_default_dtype()).removeprefix("torch.")),
        mkldnn_deterministic=bool(torch.backends.mkldnn.deterministic),
        cudnn_deterministic=torch.backends.cudnn.deterministic,
        cudnn_benchmark=torch.backends.cudnn.benchmark,
    )


def set_flags(flags: Flags) -> None:
    """Set the switches in this process."""
    torch.set_num_threads(flags.threads)
    torch.use_deterministic_algorithms(flags.deterministic)
    torch._C._set_deterministic_fill_uninitialized_memory(flags.fill_uninitialized)  # noqa: SLF001
    torch.set_float32_matmul_precision(flags.matmul_precision)
    torch.set_default_dtype(getattr(torch, flags.default_dtype))
    torch.backends.mkldnn.deterministic = flags.mkldnn_deterministic  # type: ignore[assignment]
    torch.backends.cudnn.deterministic = flags.cudnn_deterministic
    torch.backends.cudnn.benchmark = flags.cudnn_benchmark
    if flags.deterministic and torch.cuda.is_available():
        # cuBLAS reads it when its first handle is made and is not deterministic without it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def apply(threads: int) -> None:
    """Set the switches that a run of Esper uses.

    Args:
        threads: Threads inside one operation, at least 1.
    """
    set_flags(Flags(threads=threads))


@contextmanager
def using(flags: Flags) -> Iterator[None]:
    """Set the switches for the time of the block, then put the old ones back."""
    before = current_flags()
    set_flags(flags)
    try:
        yield
    finally:
        set_flags(before)


@contextmanager
def applied(recorded: Mapping[str, Any]) -> Iterator[None]:
    """Set the switches of a recorded environment for the time of the block, then put the old ones back.

    Args:
        recorded: What `environment` returned when the run was recorded.

    Raises:
        EnvironmentMismatch: A switch is missing in the record or has no value that can be set here.
    """
    missing = [name for name in Flags.__struct_fields__ if name not in recorded]
    if missing:
        raise EnvironmentMismatch(f"the recorded environment does not tell {', '.join(missing)}")
    try:
        flags = msgspec.convert({name: recorded[name] for name in Flags.__struct_fields__}, Flags)
    except msgspec.ValidationError as error:
        raise EnvironmentMismatch(f"the recorded switches cannot be set here: {error}") from error
    with using(flags):
        yield


def seeds_of(seed: int) -> dict[str, int]:
    """Return the seeds of a run by use: the run's own, and unrelated ones for host, data, order and growth.

    Args:
        seed: What the user gave; the result's ``run``.

    Returns:
        Whole numbers from 0 below 2**53, which JSON readers keep exactly.
    """
    return {"run": seed} | {use: derived_seed(seed, use) for use in SEED_USES}


def derived_seed(seed: int, *cause: str | int) -> int:
    """Return a seed from 0 below 2**53 that depends on a seed and on what it is for, by SHA-256."""
    text = "/".join(str(part) for part in ("esper seed", seed, *cause))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11


def seed_all(seed: int) -> None:
    """Seed the global generators of torch (all devices), numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


#: Plain numbers and tensors of the generators, in two parts that need no pickle to be stored. The tensors are
#: ``torch`` and ``cuda.<n>`` (uint8), ``numpy`` and ``python`` (int64).
RngState = tuple[dict[str, Any], dict[str, Tensor]]


def rng_state() -> RngState:
    """Return a copy of the state of the global generators of torch, numpy and Python."""
    numpy = np.random.get_state(legacy=False)
    version, words, python_gauss = random.getstate()
    plain = {
        "numpy": {
            "bit_generator": numpy["bit_generator"],
            "position": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
        "python": {"version": version, "gauss": python_gauss},
    }
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
        "python": torch.tensor(words, dtype=torch.int64),
    }
    if torch.cuda.is_available():
        tensors |= {f"cuda.{n}": state for n, state in enumerate(torch.cuda.get_rng_state_all())}
    return plain, tensors


def set_rng_state(state: RngState) -> None:
    """Put the global generators of torch, numpy and Python into a state that `rng_state` returned.

    Raises:
        EnvironmentMismatch: The state is of another number of accelerators than there are here.
    """
    plain, tensors = state
    recorded = sum(name.startswith("cuda.") for name in tensors)
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if recorded != here:
        raise EnvironmentMismatch(f"the generator state is of {recorded} CUDA devices, here are {here}")
    torch.set_rng_state(tensors["torch"])
    if here:
        torch.cuda.set_rng_state_all([tensors[f"cuda.{n}"] for n in range(here)])
    numpy, python = plain["numpy"], plain["python"]
    np.random.set_state(
        {
            "bit_generator": numpy["bit_generator"],
            "state": {"key": tensors["numpy"].numpy().astype(np.uint32), "pos": numpy["position"]},
            "has_gauss": numpy["has_gauss"],
            "gauss": numpy["gauss"],
        }
    )
    random.setstate((python["version"], tuple(tensors["python"].tolist()), python["gauss"]))


@contextmanager
def rng_kept() -> Iterator[None]:
    """Put the global generators back after the block, whatever it draws or seeds."""
    before = rng_state()
    try:
        yield
    finally:
        set_rng_state(before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators for the time of the block, then put them back as they were."""
    with rng_kept():
        seed_all(seed)
        yield


def environment() -> dict[str, Any]:
    """Return what of this process, machine and toolchain decides the bits of a result, as plain data.

    The switches stand in it by the names of `Flags`; set them first.
    """
    return {
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "libc": "-".join(part for part in platform.libc_ver() if part),
        "python": f"{platform.python_implementation()} {'.'.join(platform.python_version_tuple()[:2])}",
        "torch": str(torch.__version__),
        "torch_commit": torch.version.git_version,
        "torch_config": hashlib.sha256(torch.__config__.show().encode()).hexdigest(),
        "variables": {name: os.environ[name] for name in _MATH_VARIABLES if name in os.environ},
        "devices": _devices(),
        **msgspec.to_builtins(current_flags()),
    }


def environment_digest(environment: Mapping[str, Any]) -> bytes:
    """Return the 32-byte SHA-256 of an environment's canonical JSON (sorted keys, no spaces, UTF-8)."""
    text = json.dumps(environment, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).digest()


def differences(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return where two environments differ, as ``key: recorded X, here Y`` in the order of the keys."""
    left, right = _flat(recorded), _flat(here)
    return [
        f"{key}: recorded {left.get(key, 'nothing')}, here {right.get(key, 'nothing')}"
        for key in sorted(left.keys() | right.keys())
        if key not in left or key not in right or left[key] != right[key]
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, Mapping):
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, (list, tuple)) else value
    return flat


def _devices() -> list[str]:
    if not torch.cuda.is_available():
        return []
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return [
        f"{torch.cuda.get_device_name(n)} (CUDA {torch.version.cuda}, cuDNN {cudnn})"
        for n in range(torch.cuda.device_count())
    ]


def _processor() -> dict[str, str]:
    """Return architecture, model and, where the system tells it, a digest of the instruction sets."""
    found = {"machine": platform.machine()}
    table = Path("/proc/cpuinfo")
    if not table.exists():
        return found | {"model": platform.processor()}
    # The first processor's block; the math libraries choose kernels by its instruction sets.
    first = table.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    names = ("vendor_id", "model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
    found["model"] = ", ".join(f"{name} {fields[name]}" for name in names if name in fields)
    sets = sorted((fields.get("flags") or fields.get("Features") or "").split())
    return found | {"instruction_sets": hashlib.sha256(" ".join(sets).encode()).hexdigest()}
