"""Whether a kernel is what the log says of it, and its verdict what its stored measurements say.

Belongs here: one kernel against the facts about it. Does not belong here: the checks of its bytes (``shelf``,
``kernel``), measuring it again (``forge``), or where the facts are read (the caller gives them as its table has them).
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from esper.artifacts.signatures import judge, require_signed
from esper.artifacts.signing import VerifyKey
from esper.artifacts.store import ArtifactStore
from esper.blueprints.forging.measuring import read_measurements
from esper.blueprints.ir import SiteSignature
from esper.blueprints.kernels.kernel import Kernel
from esper.blueprints.kernels.shelf import KernelShelf
from esper.errors import ArtifactError, BlueprintError, EsperError, KernelRefused, SignatureInvalid
from esper.names import KernelStatus

_JUDGED = frozenset({KernelStatus.VALIDATED.value, KernelStatus.REJECTED.value})


class Claimed(msgspec.Struct, frozen=True, kw_only=True):
    """What the log says of a kernel."""

    kernel_id: str
    blueprint_id: str
    status: str
    signature: dict[str, Any]
    symbols: dict[str, int]
    parameters: int
    flops: int
    checks: dict[str, bool] | None
    #: A number that is not finite may be a text or None.
    numbers: dict[str, float | str | None] | None
    failed: list[str] | None
    #: SHA-256 of the raw measurements, in hexadecimal.
    measurements_digest: str | None
    #: Id of the key that signed it when it was made.
    signed_by: str | None


def audit(
    claimed: Claimed, shelf: KernelShelf, store: ArtifactStore, *, trusted: list[VerifyKey] | None = None
) -> list[EsperError]:
    """Return what does not hold of a kernel, or nothing.

    Bytes, digest, signature, document and site are checked, then that the kernel has the costs its fact states, then
    that the measurements behind its verdict are stored, say what the facts say, and bear the verdict out.

    Args:
        claimed: What the log says.
        shelf: Where the kernel is; it may demand signatures.
        store: Where the raw measurements are.
        trusted: Keys whose signatures must fit where there are some, also of a kernel that need not be signed.

    Raises:
        ArtifactStoreUnavailable: The store cannot be reached, so nothing can be said.
    """
    found: list[EsperError] = []
    for check in (_check_kernel, _check_measurements):
        try:
            check(claimed, shelf, store, trusted or [])
        except (ArtifactError, BlueprintError) as error:
            if isinstance(error, ConnectionError):
                raise
            found.append(error)
    return found


def _check_kernel(claimed: Claimed, shelf: KernelShelf, store: ArtifactStore, trusted: list[VerifyKey]) -> None:
    _check_signatures(claimed, store, trusted)
    kernel = shelf.get(claimed.kernel_id, signature=_signature(claimed))
    told: dict[str, Any] = {
        "blueprint": claimed.blueprint_id,
        "symbols": claimed.symbols,
        "parameters": claimed.parameters,
        "FLOPs": claimed.flops,
    }
    for name, true in _numbers_of(kernel).items():
        if told[name] != true:
            raise KernelRefused(
                f"kernel {claimed.kernel_id}: the log says {name} {told[name]}, the kernel {true}",
                hint="the fact is not of this kernel: `esper audit trail` shows who wrote it",
            )


def _check_signatures(claimed: Claimed, store: ArtifactStore, trusted: list[VerifyKey]) -> None:
    """Check that no signature is wrong, and that the one is there that the log tells of."""
    digest = bytes.fromhex(claimed.kernel_id)
    if not store.has(digest):
        return
    judged = judge(store, digest, trusted)
    if judged.bad:
        require_signed(digest, judged)
    if claimed.signed_by is not None and claimed.signed_by not in (*judged.good, *judged.unknown):
        raise SignatureInvalid(
            f"kernel {claimed.kernel_id}: the signature of key {claimed.signed_by}, which the log tells of, is gone",
            hint="it was taken away since, or the store was copied without it",
            digest=claimed.kernel_id,
            reason="unsigned",
        )


def _signature(claimed: Claimed) -> SiteSignature:
    try:
        return msgspec.convert(claimed.signature, SiteSignature)
    except msgspec.ValidationError as error:
        raise KernelRefused(f"kernel {claimed.kernel_id}: the log names no site signature: {error}") from error


def _numbers_of(kernel: Kernel) -> dict[str, Any]:
    manifest = kernel.manifest
    return {
        "blueprint": manifest.blueprint_id,
        "symbols": kernel.symbols,
        "parameters": manifest.parameters,
        "FLOPs": manifest.flops,
    }


def _check_measurements(claimed: Claimed, _: KernelShelf, store: ArtifactStore, __: list[VerifyKey]) -> None:
    if claimed.status not in _JUDGED:
        return
    if claimed.measurements_digest is None:
        raise _unproven(claimed, "no stored measurements are named")
    raw = read_measurements(store.get(bytes.fromhex(claimed.measurements_digest)))
    if raw.checks != (claimed.checks or {}):
        raise _unproven(claimed, "the stored measurements are of other checks than the log says")
    for name, number in (claimed.numbers or {}).items():
        if _finite(number) and raw.numbers.get(name) != number:
            raise _unproven(claimed, f"{name} is {raw.numbers.get(name)} as measured, {number} in the log")
    if raw.failed != sorted(claimed.failed or []):
        raise _unproven(claimed, f"the stored measurements fail {', '.join(raw.failed) or 'nothing'}")
    if not raw.checks:
        raise _unproven(claimed, "the stored measurements hold no check")


def _finite(number: float | str | None) -> bool:
    return isinstance(number, int | float) and math.isfinite(number)


def _unproven(claimed: Claimed, what: str) -> KernelRefused:
    return KernelRefused(
        f"kernel {claimed.kernel_id} is {claimed.status}, but {what}",
        hint="`esper kernel verify --quarantine` takes it out of the offer until it is measured again",
    )
