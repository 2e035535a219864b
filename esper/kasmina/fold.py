"""Let a grown host go as a plain module that runs without Esper.

Belongs here: folding low-rank growth into weights, placing the branches that stay, and the check that the host still
computes the same. Does not belong here: new hidden units (``widen``), or files (the caller saves the module).

A branch that stays becomes a submodule ``growth_<n>`` of its site's module and is added by a ``torch.fx`` forward hook
made of torch's own parts. So every key of the host's ``state_dict`` stays as it was, code that reads attributes of the
site's module goes on working (``nn.TransformerEncoder`` reads those of its first layer), and the module pickles.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils import _pytree

from esper.blueprints.kernels.build import folded_weight
from esper.errors import GrowthError
from esper.events.lifecycle import SeedState
from esper.events.seed import SeedFolded
from esper.kasmina.counterfactual import muted
from esper.kasmina.growth import Growth
from esper.kasmina.seed import Seed
from esper.kasmina.site import Site
from esper.kasmina.untouched import copied, same_host, same_random_numbers
from esper.kasmina.widen import widen

#: Largest difference allowed, relative to the largest output, by dtype of the output.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}

Undo = Callable[[], None]

#: Positional and named arguments of one forward pass.
Call = tuple[tuple[Any, ...], dict[str, Any]]


def detach(growth: Growth, example_inputs: tuple[Any, ...] | None = None, *, step: int) -> nn.Module:
    """Take Esper off a host for good and return the host with its fossilised growth built in.

    Seeds that are not fossilised, and fossilised ones that failed, are dropped: they leave no trace. The host is
    changed in place; if the check fails it is put back as it was and can go on growing.

    Args:
        growth: The handle; it is closed afterwards.
        example_inputs: A probe batch, positional; the handle's own when left out.
        step: Optimiser steps done.

    Raises:
        GrowthError: The host was detached before, there is growth to fold and no probe batch, or the folded host does
            not compute the same.
    """
    growth.collect_faults(step)
    fossils = [s for s in growth.attached() if s.state is SeedState.FOSSILIZED and not s.quarantined]
    others = [seed for seed in growth.attached() if seed not in fossils]
    if fossils:
        kwargs = growth.example_kwargs if example_inputs is None else {}
        inputs = growth.example_inputs if example_inputs is None else example_inputs
        if inputs is None:
            raise GrowthError("there is growth to fold and no probe batch", hint="pass example_inputs to detach")
        with muted(others):
            _fold_all(growth, fossils, (inputs, kwargs), step)
    growth.close(kept=fossils)
    return growth.model


def _fold_all(growth: Growth, fossils: list[Seed], probe: Call, step: int) -> None:
    """Fold site by site, so that a difference is known by its site; undo everything if one is too large."""
    undo: list[Undo] = []
    done: list[Seed] = []
    reference = _outputs(growth.model, probe)
    places: list[tuple[Seed, str | None, float]] = []
    try:
        widened = _Widened(
            first={seed.site.reads_at for seed in fossils if seed.site.reads_at is not None},
            second={seed.site.module for seed in fossils if seed.site.reads_at is not None},
        )
        for here in _groups(growth.sites, fossils):
            into = [_fold(growth.model, seed, here[:index], widened, undo) for index, seed in enumerate(here)]
            done += here
            with muted(done):
                difference = _difference(reference, _outputs(growth.model, probe), here[0].site.path)
            places += [(seed, place, difference) for seed, place in zip(here, into, strict=True)]
    except BaseException:
        for put_back in reversed(undo):
            put_back()
        raise
    for seed, place, difference in places:
        growth.tell(
            SeedFolded,
            seed_id=seed.id,
            site=seed.site.path,
            step=step,
            folded_into=place,
            max_difference=difference,
        )


def _groups(sites: Mapping[str, Site], fossils: list[Seed]) -> list[list[Seed]]:
    """Return the seeds in the order of folding, those together that are folded before the next check.

    Pairs come last, since what else stands at a pair's layers is built in while they have the sizes it was made for,
    and together, since a layer between two pairs changes for both.
    """
    single = [[seed for seed in fossils if seed.site is site] for site in sites.values() if site.reads_at is None]
    pairs = [seed for seed in fossils if seed.site.reads_at is not None]
    return [group for group in (*single, pairs) if group]


class _Widened(NamedTuple):
    """The layers of pairs that are widened last of all."""

    #: Their outputs get more channels.
    first: set[nn.Module]
    #: Their inputs do.
    second: set[nn.Module]

    def reaches(self, seed: Seed) -> bool:
        """Tell whether a branch that stays will be given more channels than it was made for."""
        return seed.site.module in (self.second if seed.reads == "input" else self.first)


def _fold(model: nn.Module, seed: Seed, before: list[Seed], widened: _Widened, undo: list[Undo]) -> str | None:
    """Build one seed into the host and return the path it was folded into, None where its branch stays."""
    if seed.ramp.value != 1.0 or seed.module is None:
        raise GrowthError(f"fossilised seed {seed.id!r} has alpha {seed.ramp.value}, not 1")
    if seed.site.reads_at is not None:
        undo.append(widen(seed.site.reads_at, seed.site.module, seed.module))
        return seed.site.path
    change = _weight_change(model, seed, before)
    if change is None:
        undo.append(_place(seed, seed.module, narrow=widened.reaches(seed)))
        return None
    weight = seed.site.module.weight
    if not isinstance(weight, nn.Parameter):
        raise GrowthError(f"site {seed.site.path!r} has no weight to fold into")
    old = weight.detach().clone()

    def put_back() -> None:
        with torch.no_grad():
            weight.copy_(old)

    undo.append(put_back)
    with torch.no_grad():
        weight.copy_(old.double() + change)
    return seed.site.path


def _weight_change(model: nn.Module, seed: Seed, before: list[Seed]) -> torch.Tensor | None:
    """Return the float64 change of the site's weight that does what the seed does, or None where there is none.

    A branch that reads the output before it in order would see a changed output; a weight used elsewhere too, or
    computed from other tensors, is not the site's alone.
    """
    module = seed.site.module
    if seed.module is None or seed.reads != "input" or not isinstance(module, nn.Linear):
        return None
    if any(other.reads == "output" for other in before):
        return None
    uses = [p for _, p in model.named_parameters(remove_duplicate=False) if p is module.weight]
    if len(uses) != 1:
        return None
    branch = copy.deepcopy(seed.module).double()
    change = folded_weight(branch, seed.site.signature)
    width = module.in_features
    # Two rows that no bias, no norm and no activation would map linearly.
    rows = torch.linspace(-3.0, 5.0, 2 * width, dtype=torch.float64, device=change.device).reshape(2, width)
    with torch.no_grad():
        given = rows if seed.site.signature.rank == "NC" else rows[None]
        direct = branch(given).reshape(2, -1)
    return change if torch.allclose(direct, rows @ change.T, rtol=1e-9, atol=1e-12) else None


def _place(seed: Seed, branch: nn.Module, *, narrow: bool) -> Undo:
    """Make a branch a submodule of its site's module, added to the output by a hook; return how to undo it."""
    module = seed.site.module
    name = f"growth_{sum(name.startswith('growth_') for name, _ in module.named_children())}"
    handle = module.register_forward_hook(_adder(seed, branch, narrow=narrow), with_kwargs=True)
    module.add_module(name, branch)

    def put_back() -> None:
        handle.remove()
        delattr(module, name)

    return put_back


def _adder(seed: Seed, branch: nn.Module, *, narrow: bool) -> fx.GraphModule:
    """Return ``(module, args, kwargs, output) -> output with the branch added``, as a module that pickles.

    Args:
        seed: Whose branch it is.
        branch: What is added.
        narrow: Let the branch see and change only as many channels as it was made for, the first ones.
    """
    site = seed.site
    graph = fx.Graph()
    _, host_args, host_kwargs, output = (
        graph.placeholder(name) for name in ("host", "host_args", "host_kwargs", "output")
    )
    head = graph.call_function(operator.getitem, (output, 0)) if site.tuple_length else output
    if seed.reads == "input":
        carrier = host_args if isinstance(site.input_from, int) else host_kwargs
        source = graph.call_function(operator.getitem, (carrier, site.input_from))
    else:
        source = head
    if narrow:
        channels = site.signature.channels if seed.reads == "output" else site.input_shape[-1]
        source = graph.call_function(torch.narrow, (source, -1, 0, channels))
    delta = graph.call_module("branch", (source,))
    if narrow:
        width = graph.call_method("size", (head, -1))
        missing = graph.call_function(operator.sub, (width, graph.call_method("size", (delta, -1))))
        delta = graph.call_function(F.pad, (delta, (0, missing)))
    result: Any = graph.call_function(operator.add, (head, delta))
    if site.tuple_length:
        rest = [graph.call_function(operator.getitem, (output, i)) for i in range(1, site.tuple_length)]
        result = (result, *rest)
    graph.output(result)
    return fx.GraphModule({"branch": branch}, graph, class_name="GrowthAdder")


def _outputs(model: nn.Module, probe: Call) -> list[torch.Tensor]:
    with same_random_numbers(), same_host(model), torch.no_grad():
        model.eval()
        args, kwargs = copied(probe)
        leaves = _pytree.tree_leaves(model(*args, **kwargs))
    return [x.detach().clone() for x in leaves if isinstance(x, torch.Tensor) and x.is_floating_point()]


def _difference(before: list[torch.Tensor], after: list[torch.Tensor], path: str) -> float:
    """Return the largest absolute difference of a host's outputs."""
    largest = 0.0
    for old, new in zip(before, after, strict=True):
        difference = (old.double() - new.double()).abs().max().item() if old.numel() else 0.0
        scale = old.double().abs().max().item() if old.numel() else 0.0
        allowed = TOLERANCE.get(old.dtype, 1e-5) * max(scale, torch.finfo(old.dtype).tiny)
        if not difference <= allowed:
            raise GrowthError(
                f"the host folded at {path!r} differs by {difference:.3g}, more than {allowed:.3g}",
                hint="the host was put back as it was",
            )
        largest = max(largest, difference)
    return largest
