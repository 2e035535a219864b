"""Watch training passes at every site and gather the rows that the gauges need.

Belongs here: the probe's hooks and the subsample. Does not belong here: the formulas (``esper.kasmina.gauges``).
Nothing waits for the device until ``measure``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from esper.errors import GrowthError
from esper.events.seed import SeedHealthMeasured
from esper.kasmina.gauges import Gauges, measure
from esper.kasmina.seed import Seed
from esper.kasmina.site import Site, first_tensor

#: Share of the rows to step over; an irrational stride spreads the rows over samples and positions alike.
_GOLDEN = 0.6180339887498949


class Probe:
    """Watches the sites of a host in the training passes run inside ``with``. Made by ``Growth.probe``.

    The loss must be the mean over samples, neither scaled nor clipped before ``measure``. Several passes add up until
    each site has its rows; passes without gradients are not watched.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        attached: Callable[[str], list[Seed]],
        emit: Callable[..., None],
        rows: int,
    ) -> None:
        self._sites, self._attached, self._emit, self._rows = sites, attached, emit, rows
        self._handles: list[RemovableHandle] = []
        self._seen: dict[str, list[tuple[torch.Tensor, list[torch.Tensor]]]] = {s.path: [] for s in sites}

    def __enter__(self) -> Self:
        """Put the hooks on; they run after the seeds' hooks and see what the host sees."""
        for site in self._sites:
            self._handles.append(site.observed.register_forward_hook(self._watcher(site)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def measure(self, step: int) -> dict[str, Gauges]:
        """Return the gauges of each site and tell them as facts, in order of depth.

        Call it after the backward pass and before the gradients are cleared or clipped.

        Args:
            step: Optimiser steps done.
        """
        if not self._sites:
            raise GrowthError("there are no sites to measure", hint="see Growth.skipped")
        results = {}
        for site in self._sites:
            gauges = self._gauges(site)
            seeds = self._attached(site.path)
            self._emit(
                SeedHealthMeasured,
                site=site.path,
                step=step,
                depth=site.depth,
                parameters=site.parameters,
                flops=site.flops,
                seeds_present=len(seeds),
                alpha=max((seed.ramp.value for seed in seeds), default=0.0),
                **{name: getattr(gauges, name) for name in Gauges.__struct_fields__},
            )
            results[site.path] = gauges
        return results

    def _gauges(self, site: Site) -> Gauges:
        passes = self._seen[site.path]
        complete = [(h, gradient[0]) for h, gradient in passes if gradient]
        if complete:
            h_mc = torch.cat([h for h, _ in complete]).double().cpu()
            g_mc = torch.cat([g for _, g in complete]).double().cpu()
            return measure(site.path, h_mc, g_mc, site.positions, _weight_gradient(site.observed))
        h_rows = torch.cat([h for h, _ in passes]).double().cpu() if passes else None
        return measure(site.path, h_rows, None, site.positions, None)

    def _watcher(self, site: Site) -> Callable[..., None]:
        def look(_module: nn.Module, _args: Any, output: Any) -> None:
            h = first_tensor(output)
            seen = self._seen[site.path]
            have = sum(rows.shape[0] for rows, _ in seen)
            if h is None or not torch.is_grad_enabled() or have >= self._rows:
                return
            gradients: list[torch.Tensor] = []
            samples = h.shape[0] / site.rows_per_sample
            with torch.no_grad():
                seen.append((_subsample(h.detach(), site.signature.rank, self._rows - have), gradients))

            def look_back(gradient: torch.Tensor) -> None:
                rows = _subsample(gradient, site.signature.rank, self._rows - have)
                gradients[:] = [rows * samples]

            if h.requires_grad:
                h.register_hook(look_back)  # type: ignore[no-untyped-call]

        return look


def _subsample(h: torch.Tensor, rank: str, limit: int) -> torch.Tensor:
    """Return up to ``limit`` rows of an activation as a fresh [m, C] tensor, the same rows for the same shape."""
    if rank in {"NC", "NTC"}:
        rows_rc = h.reshape(-1, h.shape[-1])
        return rows_rc[_rows(rows_rc.shape[0], limit, h.device)]
    h_ncp = h.flatten(2)
    positions = h_ncp.shape[2]
    index = _rows(h_ncp.shape[0] * positions, limit, h.device)
    return h_ncp[index // positions, :, index % positions]


@lru_cache(maxsize=256)
def _rows(total: int, limit: int, device: torch.device) -> torch.Tensor:
    """Return the rows to keep: all, or every s-th modulo the total, with s free of common factors with the total."""
    if total <= limit:
        return torch.arange(total, device=device)
    stride = max(1, round(_GOLDEN * total))
    while math.gcd(stride, total) != 1:
        stride += 1
    return (torch.arange(limit, device=device) * stride) % total


def _weight_gradient(module: nn.Module) -> float | None:
    gradients = [parameter.grad for parameter in module.parameters()]
    present = [gradient for gradient in gradients if gradient is not None]
    if not present or len(present) != len(gradients):
        return None
    return sum(gradient.double().square().sum().item() for gradient in present)
