"""Find the sites of a host by watching one forward pass.

Belongs here: the temporary hooks that watch, and the reasons why a module is not offered. Does not belong here:
running the pass (``esper.kasmina.growth``). The hooks only look: they return nothing and are gone afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree
from torch.utils.hooks import RemovableHandle

from esper.blueprints.ir import SiteSignature
from esper.errors import SiteUnsupported
from esper.kasmina.flops import module_flops
from esper.kasmina.pair import JOINT, Layer, Pair, find_pairs
from esper.kasmina.site import FUSED, Site, first_input, first_tensor, is_opaque, kind_of, signature_of


@dataclass(slots=True)
class _Sighting:
    """What was seen of one module in the pass."""

    calls: int = 0
    flops: int = 0
    order: int = -1
    given: Any = None
    given_from: int | str = 0
    output: Any = None


@dataclass(slots=True)
class Findings:
    """What one survey found."""

    sites: dict[str, Site] = field(default_factory=dict)
    #: Path of each module that could have been a site, with the reason why it is not offered.
    skipped: dict[str, str] = field(default_factory=dict)
    #: Forward FLOPs of the whole host for one sample.
    forward_flops: int = 0


class Survey:
    """Watches one forward pass of a host."""

    def __init__(self, model: nn.Module, wanted: Sequence[str] | None, causal: bool | None) -> None:
        """Look over the host's modules.

        Args:
            model: The host.
            wanted: Paths of the only sites to offer; None offers all that fit but the host's last layer.
            causal: See ``esper.kasmina.site.signature_of``.

        Raises:
            SiteUnsupported: The host is scripted or compiled as a whole, a scripted part is not set aside by
                ``wanted``, or a wanted path is no module that can carry a seed.
        """
        self._model, self._wanted, self._causal = model, wanted, causal
        self._seen: dict[str, _Sighting] = {}
        self._handles: list[RemovableHandle] = []
        self._clock = 0
        self._modules, self._closed = _look_over(model, wanted is None)
        _check_wanted(wanted or (), self._modules, self._closed)
        self._batch = 0
        self._given: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def watch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Put the watching hooks on, just before the host is called with these arguments."""
        self.stop()
        self._seen = {path: _Sighting() for path in self._modules}
        self._clock = 0
        self._batch = _batch_size(args, kwargs)
        self._given = (args, kwargs)
        for path, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._watcher(path), with_kwargs=True))

    @property
    def watching(self) -> bool:
        """Return whether the watching hooks are on."""
        return bool(self._handles)

    def stop(self) -> None:
        """Take the watching hooks off and forget the tensors seen."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen = {}
        self._given = ((), {})

    def findings(self, model_output: Any) -> Findings:
        """Return what was found, and stop watching.

        Args:
            model_output: What the host returned; a site whose output it is, is the host's last layer.

        Raises:
            SiteUnsupported: A wanted site is not one.
        """
        found = Findings(skipped=dict(self._closed))
        last = {_storage(leaf) for leaf in _pytree.tree_leaves(model_output) if isinstance(leaf, torch.Tensor)}
        candidates: list[tuple[int, str, SiteSignature]] = []
        for path, sighting in self._seen.items():
            if path in self._closed or kind_of(self._modules[path]) is None:
                continue
            signature = self._judge(path, sighting, last)
            if isinstance(signature, str):
                found.skipped[path] = signature
            else:
                candidates.append((sighting.order, path, signature))
        for depth, (_, path, signature) in enumerate(sorted(candidates, key=lambda candidate: candidate[0])):
            found.sites[path] = self._site(path, depth, signature)
        self._add_pairs(found)
        whole = module_flops(self._model, *self._given, model_output)
        found.forward_flops = (whole + sum(sighting.flops for sighting in self._seen.values())) // self._batch
        found.skipped = {path: found.skipped[path] for path in sorted(found.skipped)}
        self.stop()
        for path in self._wanted or ():
            if path not in found.sites:
                why = found.skipped.get(path, "no activation alone stands between the two layers")
                raise SiteUnsupported(f"module {path!r} cannot carry a seed: {why}", hint="see Growth.skipped")
        return found

    def _add_pairs(self, found: Findings) -> None:
        """Add the pairs of layers that can be widened; each is as deep as its second layer."""
        order = {path: sighting.order for path, sighting in self._seen.items()}
        layers = {
            path: Layer(module, sighting.given, sighting.output)
            for path, sighting in sorted(self._seen.items(), key=lambda seen: seen[1].order)
            if isinstance(module := self._modules[path], nn.Linear) and path not in self._closed
            if sighting.calls == 1 and isinstance(sighting.given, torch.Tensor)
        }
        for pair in find_pairs(layers, self._model):
            if self._wanted is not None and pair.path not in self._wanted:
                continue
            layer = layers[pair.second]
            if layer.output.dim() < 2 or layer.output.shape[0] % self._batch:
                continue
            given = layers[pair.first].given
            signature = signature_of(layer.module, pair.kind, given, layer.output, self._causal)
            if isinstance(signature, str):
                found.skipped[pair.path] = signature
                continue
            depth = sum(order[path] < order[pair.second] for path in found.sites if JOINT not in path)
            found.sites[pair.path] = self._pair(pair, depth, signature)

    def _pair(self, pair: Pair, depth: int, signature: SiteSignature) -> Site:
        first, second = self._site(pair.first, depth, signature), self._site(pair.second, depth, signature)
        return replace(
            second,
            path=pair.path,
            parameters=first.parameters + second.parameters,
            flops=first.flops + second.flops,
            input_shape=first.input_shape,
            input_from=first.input_from,
            reads_at=first.module,
        )

    def _watcher(self, path: str) -> Any:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            sighting = self._seen[path]
            sighting.calls += 1
            sighting.flops += module_flops(module, args, kwargs, output)
            sighting.order = self._clock
            self._clock += 1
            if kind_of(module) is not None:
                sighting.given_from, sighting.given = first_input(args, kwargs)
                sighting.output = output

        return look

    def _judge(self, path: str, sighting: _Sighting, last: set[int]) -> SiteSignature | str:
        """Return a module's signature as a site, or the reason why it is not offered."""
        if self._wanted is not None and path not in self._wanted:
            return "it was not asked for"
        if sighting.calls != 1:
            return "it was not called" if sighting.calls == 0 else f"it was called {sighting.calls} times"
        output = first_tensor(sighting.output)
        if output is None:
            return "its output is not a tensor"
        if self._wanted is None and _storage(output) in last:
            return "it is the host's last layer; name it in sites= to offer it"
        if output.dim() == 0 or output.shape[0] % self._batch:
            return "its leading axis is not the batch"
        module = self._modules[path]
        return signature_of(module, str(kind_of(module)), sighting.given, output, self._causal)

    def _site(self, path: str, depth: int, signature: SiteSignature) -> Site:
        sighting, module = self._seen[path], self._modules[path]
        output = sighting.output
        head = output[0] if isinstance(output, tuple) else output
        inside = [s.flops for p, s in self._seen.items() if p == path or p.startswith(f"{path}.")]
        return Site(
            path=path,
            kind=signature.kind,
            depth=depth,
            signature=signature,
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            flops=sum(inside) // self._batch,
            module=module,
            input_shape=tuple(sighting.given.shape[1:]),
            output_shape=tuple(head.shape[1:]),
            tuple_length=len(output) if isinstance(output, tuple) else 0,
            input_from=sighting.given_from,
            rows_per_sample=head.shape[0] // self._batch,
            encoder=_encoder_of(self._model, path),
        )


def _look_over(model: nn.Module, strict: bool) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return the modules that can be watched, and those that are no site with the reason."""
    if (whole := is_opaque(model)) is not None:
        raise SiteUnsupported(
            f"the host is {whole}: a seed inside it would be ignored",
            hint="attach to the plain module first; compile its blocks, or script what `detach` returns",
        )
    watched: dict[str, nn.Module] = {}
    closed: dict[str, str] = {}
    opaque: list[str] = []
    fused: list[str] = []
    for path, module in model.named_modules():
        if (owner := _owner(path, opaque)) is not None:
            closed[path] = f"it is inside {owner!r}, whose inside cannot be hooked"
            continue
        if (why := is_opaque(module)) is not None:
            if strict and isinstance(module, torch.jit.ScriptModule):
                raise SiteUnsupported(
                    f"module {path!r} is {why}: its inside cannot be watched",
                    hint="name the sites to offer with sites=",
                )
            closed[path] = f"it is {why}"
            opaque.append(path)
            continue
        if path != "":
            watched[path] = module
        if (owner := _owner(path, fused)) is not None and kind_of(module) is not None:
            closed[path] = f"it is inside {owner!r}, which may run without calling it"
        if isinstance(module, FUSED):
            fused.append(path)
    if kind_of(model) is not None:
        closed[""] = "it is the whole host"
    return watched, closed


def _check_wanted(wanted: Sequence[str], watched: Mapping[str, nn.Module], closed: Mapping[str, str]) -> None:
    for path in (part for name in wanted for part in name.split(JOINT)):
        if path not in watched and path not in closed:
            named = ", ".join(watched) or "none that could carry a seed"
            raise SiteUnsupported(f"the host has no module {path!r}", hint=f"it has: {named}")
        if path in closed or kind_of(watched[path]) is None:
            reason = closed.get(path) or f"{type(watched[path]).__name__} is no kind of site"
            raise SiteUnsupported(f"module {path!r} cannot carry a seed: {reason}")


def _owner(path: str, owners: Sequence[str]) -> str | None:
    return next((owner for owner in owners if owner == "" or path.startswith(f"{owner}.")), None)


def _batch_size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    for leaf in _pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, torch.Tensor) and leaf.dim() > 0:
            return max(1, int(leaf.shape[0]))
    return 1


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _encoder_of(model: nn.Module, path: str) -> nn.TransformerEncoder | None:
    """Return the innermost encoder above a path that may turn its input into nested tensors."""
    parts = path.split(".")
    for length in range(len(parts) - 1, -1, -1):
        above = model.get_submodule(".".join(parts[:length]))
        if isinstance(above, nn.TransformerEncoder):
            return above
    return None
