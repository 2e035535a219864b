"""Seeds as plain data and tensors, for checkpoints.

Belongs here: the form in which seeds are kept and brought back, exactly. Does not belong here: files and digests
(``esper.tolaria``), the host's own tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import torch
from torch import nn

from esper.errors import GrowthError
from esper.events.decision import Schedule
from esper.events.lifecycle import SeedState
from esper.kasmina.blend import AlphaRamp
from esper.kasmina.guard import Fault, Guard
from esper.kasmina.seed import Counterfactual, Seed
from esper.kasmina.site import Site

_VERSION = 1


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One seed as plain data."""

    id: str
    site: str
    blueprint_id: str | None
    kernel_id: str | None
    attached: bool
    reads: str
    schedule: Schedule
    germinated_at: int
    parameters: int
    ramp: dict[str, Any]
    state: SeedState
    entered_at: int
    steps_in_state: int
    decision: int | None
    counterfactual: Counterfactual | None
    fault: Fault | None
    pending_fault: Fault | None
    alpha_told: float


def snapshot(seeds: Mapping[str, Seed]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the seeds as plain data (ready for JSON) and their tensors by name, as copies.

    Args:
        seeds: Every seed of a host, in order of germination.
    """
    tensors: dict[str, torch.Tensor] = {}
    kept = []
    for seed in seeds.values():
        kept.append(
            _Kept(
                id=seed.id,
                site=seed.site.path,
                blueprint_id=seed.blueprint_id,
                kernel_id=seed.kernel_id,
                attached=seed.attached,
                reads=seed.reads,
                schedule=seed.schedule,
                germinated_at=seed.germinated_at,
                parameters=seed.parameters,
                ramp=seed.ramp.state(),
                state=seed.state,
                entered_at=seed.entered_at,
                steps_in_state=seed.steps_in_state,
                decision=seed.decision,
                counterfactual=seed.counterfactual,
                fault=seed.fault,
                pending_fault=seed.guard.fault,
                alpha_told=seed.alpha_told,
            )
        )
        if seed.attached and seed.module is not None:
            tensors[f"{seed.id}/failed"] = seed.guard.failed()
            for name, tensor in seed.module.state_dict().items():
                tensors[f"{seed.id}/module/{name}"] = tensor.detach().clone()
    return {"version": _VERSION, "seeds": msgspec.to_builtins(kept)}, tensors


def restore_seeds(
    meta: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    sites: Mapping[str, Site],
    present: Mapping[str, Seed],
    load_module: Callable[[str], nn.Module],
    device_of: Callable[[Site], torch.device],
) -> dict[str, Seed]:
    """Return the seeds that ``snapshot`` described.

    Args:
        meta: Plain data.
        tensors: Tensors by name.
        sites: The host's sites.
        present: Seeds there are now; an attached one with the same kernel lends its module.
        load_module: Gives the branch of a kernel id.
        device_of: Gives a site's device.

    Raises:
        GrowthError: The data has another version, names a site this host has not, or a branch cannot be loaded.
    """
    if meta.get("version") != _VERSION:
        raise GrowthError(f"growth state has version {meta.get('version')!r}, this Esper reads {_VERSION}")
    return {
        kept.id: _revive(kept, tensors, sites, present.get(kept.id), load_module, device_of)
        for kept in msgspec.convert(meta["seeds"], list[_Kept])
    }


def _revive(
    kept: _Kept,
    tensors: Mapping[str, torch.Tensor],
    sites: Mapping[str, Site],
    present: Seed | None,
    load_module: Callable[[str], nn.Module],
    device_of: Callable[[Site], torch.device],
) -> Seed:
    site = sites.get(kept.site)
    if site is None:
        raise GrowthError(
            f"growth state names site {kept.site!r}, which this host has not",
            hint="restore into the host the state was taken from",
        )
    device = device_of(site)
    alpha = torch.zeros((), dtype=site.alpha_dtype, device=device)
    seed = Seed(
        id=kept.id,
        site=site,
        blueprint_id=kept.blueprint_id,
        kernel_id=kept.kernel_id,
        module=None,
        reads="input" if kept.reads == "input" else "output",
        schedule=kept.schedule,
        germinated_at=kept.germinated_at,
        parameters=kept.parameters,
        ramp=AlphaRamp.from_state(kept.ramp),
        alpha=alpha,
        guard=Guard(device),
        state=kept.state,
        entered_at=kept.entered_at,
        steps_in_state=kept.steps_in_state,
        decision=kept.decision,
        counterfactual=kept.counterfactual,
        fault=kept.fault,
        alpha_told=kept.alpha_told,
    )
    seed.set_alpha(seed.ramp.value)
    seed.guard.fault = kept.pending_fault
    if kept.attached:
        _bring_branch(seed, tensors, present, load_module, device)
    return seed


def _bring_branch(
    seed: Seed,
    tensors: Mapping[str, torch.Tensor],
    present: Seed | None,
    load_module: Callable[[str], nn.Module],
    device: torch.device,
) -> None:
    if present is not None and present.module is not None and present.kernel_id == seed.kernel_id:
        present.guard.release()
        module = present.module
    elif seed.kernel_id is not None:
        module = load_module(seed.kernel_id).to(device)
    else:
        raise GrowthError(f"seed {seed.id!r} has no kernel id to load its branch from")
    prefix = f"{seed.id}/module/"
    module.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    seed.module = module
    seed.freeze(False)
    seed.guard.watch(module)
    seed.freeze(seed.state is SeedState.CULLED)
    failed = tensors[f"{seed.id}/failed"].to(device)
    seed.guard.trace.masked_fill_(failed, float("nan"))
