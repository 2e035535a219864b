"""Which kernel to take at a site: an order of preference by blueprint name.

Belongs here: names and sizes of the kernels behind legal actions, and their ranking. Does not belong here: which site
or when.

A legal action carries ids only. Policies that care for names are therefore made with the kernels of the run
(``make_policy(..., kernels=...)``), the same mapping that ``legal_actions`` takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import zip_longest

from esper.errors import NotFound
from esper.events.decision import Action
from esper.tamiyo.legal import ActionKind, KernelOption

#: What is tried first where it fits: convolutions where there are positions, then dense branches, then low rank.
DEFAULT_PREFERENCE = ("conv_bottleneck*", "res_mlp*", "pw_bottleneck*", "lora*")


class KernelChoice:
    """Ranks the germinations that are legal at each site."""

    def __init__(self, kernels: Mapping[str, Sequence[KernelOption]], preference: Sequence[str]) -> None:
        """Bind the run's kernels to an order of preference.

        Args:
            kernels: Kernels by site path.
            preference: Name patterns (``*`` and ``?``), best first. Within a pattern the smaller kernel comes first;
                what matches none comes last, smallest first, kernels without parameters at the very end.
        """
        self._offered = list(kernels.values())
        self._options = {option.kernel_id: option for options in self._offered for option in options}
        self._preference = tuple(preference)

    def option(self, action: Action) -> KernelOption:
        """Return the kernel of a germination.

        Raises:
            NotFound: The policy was not made with this kernel.
        """
        found = self._options.get(action.kernel_id or "")
        if found is None:
            raise NotFound(
                f"the policy does not know kernel {action.kernel_id} that is legal at site {action.site}",
                hint="give make_policy the same kernels as legal_actions",
            )
        return found

    def by_site(self, legal: Sequence[Action]) -> dict[str, list[int]]:
        """Return the legal germinations of each site, sites in canonical order, best kernel first.

        Returns:
            Site path to indices in the legal list; sites where nothing can be germinated are left out.
        """
        found: dict[str, list[int]] = {}
        for index, action in enumerate(legal):
            if action.kind == ActionKind.GERMINATE and action.site is not None:
                found.setdefault(action.site, []).append(index)
        return {site: self._ranked(indices, legal) for site, indices in found.items()}

    def likely(self) -> list[str]:
        """Return every kernel, likeliest first: the best of each site in the order of sites, then the second best."""
        ranked = [sorted(options, key=self._rank) for options in self._offered]
        rounds = zip_longest(*ranked)
        return list(dict.fromkeys(option.kernel_id for one in rounds for option in one if option is not None))

    def _ranked(self, indices: Iterable[int], legal: Sequence[Action]) -> list[int]:
        return sorted(indices, key=lambda index: self._rank(self.option(legal[index])))

    def _rank(self, option: KernelOption) -> tuple[int, bool, int, str, str]:
        place = next(
            (place for place, pattern in enumerate(self._preference) if fnmatchcase(option.name, pattern)),
            len(self._preference),
        )
        return place, option.parameters == 0, option.parameters, option.name, option.kernel_id
