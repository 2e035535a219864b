"""The forward hooks that join seeds to a host, one per site that carries any; a pair of layers has two.

Belongs here: putting hooks on and off and applying a site's seeds. Does not belong here: one seed's branch
(``esper.kasmina.seed``) or the hooks that only look (``survey``, ``probe``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from esper.kasmina.seed import Seed
from esper.kasmina.site import Site


class SiteHook:
    """The one forward hook of a site: applies its seeds in order of attachment, each on the result before it."""

    def __init__(self, site: Site, seeds: list[Seed]) -> None:
        self._site, self._seeds = site, seeds
        self._given: Any = None

    def note_input(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what the first layer of a pair is given, until the second one has run."""
        self._given = self._first(args, kwargs)

    def _first(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        where = self._site.input_from
        if isinstance(where, int):
            return args[where] if where < len(args) else None
        return kwargs.get(where)

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Return the site's output with its seeds' branches added, or None to leave it as it is."""
        head = output[0] if isinstance(output, tuple) else output
        if self._site.reads_at is None:
            given = self._first(args, kwargs)
        else:
            given, self._given = self._given, None
        result = head
        for seed in self._seeds:
            result = seed.blend(result, given)
        if result is head:
            return None
        if not isinstance(output, tuple):
            return result
        rest = (result, *output[1:])
        return type(output)._make(rest) if hasattr(output, "_make") else rest


class Hooks:
    """Every hook that seeds have on one host."""

    def __init__(self) -> None:
        self._handles: dict[str, list[RemovableHandle]] = {}
        self._nested: dict[nn.TransformerEncoder, bool] = {}

    def fit(self, site: Site, attached: Sequence[Seed]) -> None:
        """Make a site's hook fit its seeds: one hook with seeds, none without.

        Args:
            site: The site.
            attached: Every attached seed of the host, in order of attachment.
        """
        self.drop(site.path)
        seeds = [seed for seed in attached if seed.site is site]
        if seeds:
            self._handles[site.path] = _hooked(site, SiteHook(site, seeds))
        self._set_nested(site.encoder, any(seed.site.encoder is site.encoder for seed in attached))

    def drop(self, path: str) -> None:
        """Take a site's hook off, if it has one."""
        for handle in self._handles.pop(path, ()):
            handle.remove()

    def drop_all(self, kept: Sequence[Seed]) -> None:
        """Take every hook off; encoders of layers with seeds that were built in go on without nested tensors."""
        for path in list(self._handles):
            self.drop(path)
        for encoder in list(self._nested):
            self._set_nested(encoder, any(seed.site.encoder is encoder for seed in kept))

    def _set_nested(self, encoder: nn.TransformerEncoder | None, grown: bool) -> None:
        """Keep an encoder from feeding nested tensors to layers that carry seeds; put it back afterwards."""
        if encoder is None:
            return
        if grown and encoder not in self._nested:
            self._nested[encoder] = encoder.use_nested_tensor
            encoder.use_nested_tensor = False
        elif not grown and encoder in self._nested:
            encoder.use_nested_tensor = self._nested.pop(encoder)


def _hooked(site: Site, hook: SiteHook) -> list[RemovableHandle]:
    """Put a site's hook on. A pair's runs before the one of its second layer: new units belong to that layer."""
    if site.reads_at is None:
        return [site.module.register_forward_hook(hook, with_kwargs=True)]
    return [
        site.reads_at.register_forward_pre_hook(hook.note_input, with_kwargs=True),
        site.module.register_forward_hook(hook, with_kwargs=True, prepend=True),
    ]
