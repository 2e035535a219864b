"""What stands between a run and its kernels: they are brought ahead, waited for, handed over, or put aside.

Belongs here: when a kernel is wanted, how long training waited for it, and what becomes of one that is bad. Does not
belong here: keeping kernels in memory (``esper.kasmina.cache``), checking them (``fetch``), choosing among them
(``esper.tamiyo``) or grafting (``controller``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Self

from torch import nn

from esper.blueprints.cost import rate_factor
from esper.blueprints.ir import SiteSignature
from esper.blueprints.kernels.kernel import Kernel, load_module
from esper.blueprints.kernels.shelf import quarantine_reason
from esper.errors import EsperError, KernelRefused, LogUnavailable
from esper.kasmina.cache import KernelCache
from esper.logs import get_logger
from esper.metrics import KERNEL_STALL_SECONDS
from esper.tamiyo import Foresighted, KernelOption, Policy
from esper.tolaria.outcomes import as_recorded

#: Bytes of kernels that a run keeps in memory unless told otherwise.
CACHE_BYTES = 256 << 20

#: Gives a kernel by id, checked; raises NotFound, an ArtifactError or a BlueprintError.
FetchKernel = Callable[[str], Kernel]

#: Says that a kernel is bad, so that it is offered no more.
PutAside = Callable[[str, EsperError], object]


class Taken(NamedTuple):
    """A kernel at the step boundary where it is grafted."""

    kernel: Kernel
    #: Its module, for the one who took it.
    branch: nn.Module
    #: ``cache`` where the kernel was in memory, ``store`` where training waited for it.
    source: str
    #: Seconds from asking to having the module.
    stall_s: float


class KernelSupply:
    """The kernels of one run."""

    def __init__(
        self,
        fetch: FetchKernel,
        *,
        max_bytes: int = CACHE_BYTES,
        put_aside: PutAside | None = None,
        outcomes: Iterable[str | None] = (),
    ) -> None:
        """Bring nothing yet.

        Args:
            fetch: Gives a kernel by id, checked; called on threads of the cache.
            max_bytes: Most bytes of kernels to keep in memory.
            put_aside: Told of each kernel that a decision chose and that is bad; None tells nobody.
            outcomes: What became of the first kernels that decisions choose, where the log knows it already: why it
                could not be had, or None where it could. What is done again then comes to the same.
        """
        self._outcomes = iter(outcomes)
        self.cache = KernelCache(fetch, max_bytes=max_bytes, build=load_module)
        self._put_aside = put_aside
        #: Bad kernels that the log could not be told of yet.
        self._untold: dict[str, EsperError] = {}
        self._held: frozenset[str] = frozenset()
        #: Kernels whose branch was taken, so that another is to be made.
        self._taken: list[str] = []

    def expect(self, kernels: Mapping[str, Sequence[KernelOption]], policy: Policy) -> None:
        """Begin to bring kernels that are on offer: in the order the policy leans to, else smallest first.

        Args:
            kernels: Kernels on offer by site.
            policy: What will choose.
        """
        if isinstance(policy, Foresighted):
            self.cache.prefetch(policy.likely())
            return
        options = {option.kernel_id: option for offered in kernels.values() for option in offered}
        smallest = sorted(options.values(), key=lambda option: (option.parameters, option.kernel_id))
        self.cache.prefetch(option.kernel_id for option in smallest)

    def take(self, kernel_id: str, site: SiteSignature | None, *, decision: int | None) -> Taken:
        """Return a kernel and a fresh module of it, waiting for it if it is late.

        Args:
            kernel_id: The kernel.
            site: Where it is to be grafted; None where the host has no such site, which is told at the graft.
            decision: Number of the decision that chose it; None where it is born with the host.

        Raises:
            ArtifactError: The kernel is missing or damaged, its signature does not hold, or the store is away.
            BlueprintError: The bytes are no kernel, or it is one for another site.
        """
        refusal = None if decision is None else next(self._outcomes, None)
        if refusal is not None:
            raise as_recorded(refusal)
        began = time.perf_counter()
        source = "cache" if kernel_id in self.cache else "store"
        kernel = self.cache.get(kernel_id)
        if site is not None and kernel.signature != site:
            raise KernelRefused(
                f"kernel {kernel_id} was made for another site: {_differences(kernel.signature, site)}",
                hint="kernels fit sites of the same kind, layout, sizes and dtype",
                reason="wrong_site",
            )
        branch = self._branch(kernel)
        stall_s = time.perf_counter() - began
        KERNEL_STALL_SECONDS.observe(stall_s)
        return Taken(kernel, branch, source, stall_s)

    def branch(self, kernel_id: str) -> nn.Module:
        """Return a fresh module of a kernel whose weights come from a checkpoint; raises as ``take`` does."""
        return self._branch(self.cache.get(kernel_id))

    def _branch(self, kernel: Kernel) -> nn.Module:
        self._taken.append(kernel.kernel_id)
        return self.cache.branch(kernel.kernel_id) or load_module(kernel)

    def rate_factor(self, kernel_id: str) -> float:
        """Return how fast a kernel's seed learns next to its host; raises as ``take`` does."""
        kernel = self.cache.get(kernel_id)
        return rate_factor(kernel.blueprint, kernel.signature)

    def hold(self, kernel_ids: Iterable[str]) -> None:
        """Keep the kernels of the seeds that are attached now, for a rollback; let those of earlier ones go.

        Called after each step. New branches in place of those that were taken are made from the step after on.
        """
        wanted = frozenset(kernel_ids)
        if wanted == self._held:
            if self._taken:
                self.cache.prefetch(self._taken)
                self._taken.clear()
            return
        for kernel_id in wanted - self._held:
            self.cache.pin(kernel_id)
        for kernel_id in self._held - wanted:
            self.cache.unpin(kernel_id)
        self._held = wanted

    def refuse(self, kernel_id: str, error: EsperError) -> None:
        """Put a kernel aside that could not be had, if it is the kernel that is to blame."""
        if quarantine_reason(error) is not None and not error.attributes.get("recorded"):
            self._untold[kernel_id] = error
            self.settle()

    def settle(self) -> None:
        """Tell of bad kernels that could not be told of yet; those that still cannot be wait for the next call."""
        for kernel_id, error in list(self._untold.items()):
            try:
                if self._put_aside is not None:
                    self._put_aside(kernel_id, error)
            except LogUnavailable:
                return  # training goes on without its log, and so does this
            del self._untold[kernel_id]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads and let the kernels go."""
        self.settle()
        if self._untold:
            get_logger("tolaria").warning("bad kernels could not be put aside", kernels=sorted(self._untold))
        self.cache.close()


def _differences(made_for: SiteSignature, site: SiteSignature) -> str:
    told = (
        f"its {name} is {ours!r}, the site's is {theirs!r}"
        for name in SiteSignature.__struct_fields__
        if (ours := getattr(made_for, name)) != (theirs := getattr(site, name))
    )
    return "; ".join(told)
