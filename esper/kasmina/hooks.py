"""The forward hooks that join seeds to a host, one per site that carries any.

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

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Return the site's output with its seeds' branches added, or None to leave it as it is."""
        head = output[0] if isinstance(output, tuple) else output
        where = self._site.input_from
        given = (args[where] if where < len(args) else None) if isinstance(where, int) else kwargs.get(where)
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
        self._handles: dict[str, RemovableHandle] = {}
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
            hook = SiteHook(site, seeds)
            self._handles[site.path] = site.module.register_forward_hook(hook, with_kwargs=True)
        self._set_nested(site.encoder, any(seed.site.encoder is site.encoder for seed in attached))

    def drop(self, path: str) -> None:
        """Take a site's hook off, if it has one."""
        if path in self._handles:
            self._handles.pop(path).remove()

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
