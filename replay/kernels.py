"""The kernels of a run that is executed again: those that it loaded then, and no judgement of those it could not have.

Belongs here: which kernels a replay brings, and obeying what the log says of those that were refused. Does not belong
here: comparing facts (``replay.session``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from esper.events.seed import KernelLoaded
from esper.tamiyo import KernelOption, Policy
from esper.tolaria.outcomes import outcomes_of
from esper.tolaria.supply import FetchKernel, KernelSupply
from replay.history import History


class RecordedSupply(KernelSupply):
    """Gives the kernels of a history. Bad ones are reported to nobody: nothing is written."""

    def __init__(self, history: History, fetch: FetchKernel) -> None:
        """Follow a history.

        Args:
            history: The run's facts.
            fetch: Gives a kernel by id, checked.
        """
        super().__init__(fetch, outcomes=[why for _, why in outcomes_of(one.fact for one in history.path)])
        loaded = [one.fact.kernel_id for one in history.path if isinstance(one.fact, KernelLoaded)]
        self._loaded = list(dict.fromkeys(loaded))

    def expect(self, kernels: Mapping[str, Sequence[KernelOption]], policy: Policy) -> None:
        """Begin to bring the kernels that were loaded then; it is known which."""
        del kernels, policy
        self.cache.prefetch(self._loaded)
