"""The handle on a growing host: its sites, its parameters, and grafting a branch.

Belongs here: finding sites, germinating, and what a trainer keeps and measures. Does not belong here: the other moves
of a seed (``esper.kasmina.life``), who decides (``esper.tamiyo``), optimisers and rollback (``esper.tolaria``).

The host is never rewritten. A site without a seed carries no hook, so a dormant host is the host; a site with seeds
carries one forward hook, and the seeds' parameters live in this handle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from esper.errors import GrowthError, NotFound
from esper.events.decision import Schedule
from esper.events.lifecycle import LIVING, SeedState, Trigger
from esper.events.seed import SiteRegistered
from esper.kasmina import gates
from esper.kasmina.blend import AlphaRamp
from esper.kasmina.guard import Guard
from esper.kasmina.hooks import Hooks
from esper.kasmina.life import Emit, Life
from esper.kasmina.probe import Probe
from esper.kasmina.seed import Reads, Seed
from esper.kasmina.site import Site
from esper.kasmina.snapshot import restore_seeds, snapshot
from esper.kasmina.survey import Survey
from esper.kasmina.untouched import copied, no_fast_paths, same_host, same_random_numbers


class Availability(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a site takes a new seed."""

    free: bool
    #: occupied, embargoed or full; None where it is free.
    reason: str | None = None
    #: Steps until an embargo ends, where that is the reason.
    opens_in: int | None = None


class Growth(Life):
    """Everything that grows in one host. Made by ``attach``."""

    def __init__(
        self,
        model: nn.Module,
        *,
        sites: Sequence[str] | None,
        emit: Emit | None,
        causal: bool | None,
        max_per_site: int,
    ) -> None:
        super().__init__(emit)
        self.model = model
        #: Sites by path, in the order of execution; empty until a forward pass was seen.
        self.sites: dict[str, Site] = {}
        #: Modules that are not offered though one might look for them there, with the reason.
        self.skipped: dict[str, str] = {}
        #: Forward FLOPs of the host's own modules for one sample; a training step costs three times as much.
        self.forward_flops = 0
        self.max_per_site = max_per_site
        #: A probe batch: what ``attach`` was given, else a copy of what the first training pass was given.
        self.example_inputs: tuple[Any, ...] | None = None
        self.example_kwargs: dict[str, Any] = {}
        self._survey: Survey | None = Survey(model, sites, causal)
        self._waiting: list[RemovableHandle] = []
        self._hooks = Hooks()

    @property
    def discovered(self) -> bool:
        """Return whether the sites are known."""
        return self._survey is None

    def discover(self, example_inputs: tuple[Any, ...] | None) -> None:
        """Find the sites: now with example inputs, else in the first forward pass that trains."""
        survey = self._survey
        if survey is None:
            raise GrowthError("the sites of this host are already known")
        if example_inputs is None:
            self._waiting = [
                self.model.register_forward_pre_hook(self._before_first, with_kwargs=True),
                self.model.register_forward_hook(self._after_first, with_kwargs=True, always_call=True),
            ]
            return
        self.example_inputs, example_inputs = copied(example_inputs), copied(example_inputs)
        with same_random_numbers(), same_host(self.model), no_fast_paths(), torch.no_grad():
            self.model.eval()
            survey.watch(example_inputs, {})
            try:
                output = self.model(*example_inputs)
                self._found(survey, output)
            finally:
                survey.stop()

    def _before_first(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # In eval mode without gradients PyTorch takes fast paths that any hook switches off: watching there would
        # change what the host computes.
        learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in model.parameters())
        if self._survey is not None and (model.training or learns):
            self._survey.watch(args, kwargs)
            self.example_inputs, self.example_kwargs = copied((args, kwargs))

    def _after_first(self, _m: nn.Module, _a: tuple[Any, ...], _k: dict[str, Any], output: Any) -> None:
        if self._survey is None or not self._survey.watching:
            return
        if output is None:  # the host raised: nothing was learnt, the next pass is watched
            self._survey.stop()
            return
        for handle in self._waiting:
            handle.remove()
        self._found(self._survey, output)

    def _found(self, survey: Survey, output: Any) -> None:
        found = survey.findings(output)
        self._survey = None
        self.sites, self.skipped, self.forward_flops = found.sites, found.skipped, found.forward_flops
        for site in self.sites.values():
            self._emit(
                SiteRegistered,
                site=site.path,
                kind=site.kind,
                depth=site.depth,
                signature=msgspec.to_builtins(site.signature),
                parameters=site.parameters,
                flops=site.flops,
            )

    def free_sites(self, step: int) -> dict[str, Availability]:
        """Return for each site, in order of depth, whether it takes a new seed at a step, and if not why."""
        return {path: self._availability(path, step) for path in self.sites}

    def _availability(self, path: str, step: int) -> Availability:
        here = [seed for seed in self.seeds.values() if seed.site.path == path]
        for seed in here:
            if seed.state is SeedState.EMBARGOED:
                left = seed.entered_at + seed.schedule.embargo_steps - step
                return Availability(free=False, reason="embargoed", opens_in=max(0, left))
            if seed.state in LIVING:
                return Availability(free=False, reason="occupied")
        if len(here) >= self.max_per_site:
            return Availability(free=False, reason="full")
        return Availability(free=True)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield ``<seed id>.<name>`` and parameter of each attached seed."""
        for seed in self.attached():
            if seed.module is not None:
                for name, parameter in seed.module.named_parameters():
                    yield f"{seed.id}.{name}", parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of each attached seed."""
        for _, parameter in self.named_parameters():
            yield parameter

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the tensors of each attached seed's branch under ``<seed id>.<name>``."""
        return {
            f"{seed.id}.{name}": tensor
            for seed in self.attached()
            if seed.module is not None
            for name, tensor in seed.module.state_dict().items()
        }

    @property
    def host_frozen(self) -> bool:
        """Return whether the host must stand still, because a seed is on probation."""
        return any(seed.state is SeedState.TRAINING and seed.learning for seed in self.seeds.values())

    def germinate(
        self,
        site: str,
        module: nn.Module,
        *,
        seed_id: str,
        step: int,
        blueprint_id: str | None = None,
        kernel_id: str | None = None,
        reads: Reads = "output",
        schedule: Schedule | None = None,
        decision: int | None = None,
        parameters: int | None = None,
        shared: bool = False,
    ) -> Seed:
        """Graft a branch at a site and walk it to GRAFTING, or to TRAINING on probation.

        On probation alpha is 1 from the start: the zero tail keeps the host's output as it was.

        Args:
            site: Path of the site.
            module: The branch, with a zero tail; it is moved to the site's device.
            seed_id: Name of the seed, new in this run.
            step: Optimiser steps done.
            blueprint_id: What the branch was built from.
            kernel_id: The kernel it was loaded from; a checkpoint needs it to load the branch again.
            reads: ``output`` for residual branches, ``input`` for low-rank changes of the site's weight.
            schedule: The seed's timetable.
            decision: Number of the decision that commands it.
            parameters: Parameters to name in the facts; counted when left out.
            shared: Whether the site may have other seeds under way, as when a whole architecture is built at once.

        Raises:
            NotFound: There is no such site.
            IllegalTransition: The id is taken, the site is closed or the branch does not fit; told as a fact.
        """
        self._require_open()
        place = self.sites.get(site)
        if place is None:
            why = self.skipped.get(site, "no such module was seen as a site")
            raise NotFound(f"no site {site!r}: {why}", hint=f"sites: {', '.join(self.sites) or 'none yet'}")
        if seed_id in self.seeds:
            self._refuse(self.seeds[seed_id], SeedState.GERMINATED, step, "lifecycle", {}, decision)
        device = _device_of(place.module, self.model)
        seed = Seed(
            id=seed_id,
            site=place,
            blueprint_id=blueprint_id,
            kernel_id=kernel_id,
            module=module.to(device),
            reads=reads,
            schedule=schedule or Schedule(),
            germinated_at=step,
            parameters=sum(p.numel() for p in module.parameters()) if parameters is None else parameters,
            ramp=AlphaRamp(schedule.curve if schedule else "linear"),
            alpha=torch.zeros((), dtype=place.alpha_dtype, device=device),
            guard=Guard(device),
            decision=decision,
        )
        available = Availability(free=True) if shared else self._availability(site, step)
        if available.reason is not None:
            evidence: dict[str, float | None] = {available.reason: 1.0}
            self._refuse(seed, SeedState.GERMINATED, step, "site_free", evidence, decision)
        fit = gates.kernel_fits(place, module, reads, device)
        if not fit.passed:
            self._refuse(seed, SeedState.GERMINATED, step, "kernel_fits", fit.evidence, decision)
        self.seeds[seed_id] = seed
        reason = "a kernel was chosen for the site"
        commanded, automatic = Trigger.COMMANDED, Trigger.AUTOMATIC
        self._move(seed, SeedState.GERMINATED, commanded, reason, step, fit.evidence, decision)
        self._move(seed, SeedState.LOADING, automatic, "the kernel was fetched and checked", step, {}, decision)
        seed.guard.watch(module)
        if seed.schedule.learning == "probation":
            seed.ramp.aim(1.0, 0)
            reason, target = "attached with the host frozen", SeedState.TRAINING
        else:
            seed.ramp.aim(1.0, seed.schedule.ramp_steps)
            reason, target = "attached at alpha 0", SeedState.GRAFTING
        self._move(seed, target, automatic, reason, step, {"alpha": seed.ramp.value}, decision)
        seed.set_alpha(seed.ramp.value)
        self._hooks.fit(place, self.attached())
        return seed

    def probe(self, rows: int = 512) -> Probe:
        """Return a probe: a context in which one training pass is watched at every site.

        Args:
            rows: Rows (samples times positions) kept per site.

        Raises:
            GrowthError: The sites are not known yet.
        """
        if not self.discovered:
            raise GrowthError("the sites of this host are not known yet", hint="run one training pass first")
        return Probe(list(self.sites.values()), self.attached, self._emit, rows)

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return everything a checkpoint needs: plain data, and tensors by name (copies)."""
        return snapshot(self.seeds)

    def restore(
        self,
        meta: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        load_module: Callable[[str], nn.Module],
    ) -> None:
        """Bring back what ``state`` described, in this process or another.

        A seed that is attached here with the same kernel keeps its module and parameters, which are written in place;
        other seeds get new ones. No fact is told: the trainer tells the resumption or the rollback.

        Args:
            meta: Plain data of ``state``.
            tensors: Tensors of ``state``.
            load_module: Gives the branch of a kernel id.

        Raises:
            GrowthError: The state belongs to another host, or a branch has no kernel id to load it from.
        """
        self._require_open()
        if not self.discovered:
            raise GrowthError("the sites of this host are not known yet", hint="attach with example_inputs")
        restored = restore_seeds(
            meta, tensors, self.sites, self.seeds, load_module, lambda site: _device_of(site.module, self.model)
        )
        for seed in self.seeds.values():
            if seed not in restored.values():
                seed.guard.release()
        self.seeds = restored
        for site in self.sites.values():
            self._hooks.fit(site, self.attached())

    def close(self, kept: Sequence[Seed] = ()) -> None:
        """Take every hook off the host for good; part of ``detach``.

        Args:
            kept: Seeds that were built into the host.
        """
        self._require_open()
        for seed in self.attached():
            seed.guard.release()
        self._hooks.drop_all(kept)
        for handle in self._waiting:
            handle.remove()
        if self._survey is not None:
            self._survey.stop()
        self._closed = True

    def _detach(self, seed: Seed) -> None:
        seed.guard.release()
        seed.module = None
        seed.ramp.aim(0.0, 0)
        seed.set_alpha(0.0)
        self._hooks.fit(seed.site, self.attached())


def _device_of(module: nn.Module, model: nn.Module) -> torch.device:
    for owner in (module, model):
        for tensor in (*owner.parameters(), *owner.buffers()):
            return tensor.device
    return torch.device("cpu")
