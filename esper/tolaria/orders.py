"""Kernels that a run has made elsewhere: it asks for them at its start, and waits for the workers' verdicts.

Belongs here: asking, waiting, and what a run is offered when all verdicts are in. Does not belong here: making kernels
in the run's own process (``esper.blueprints.forging.forge``), or the workers (``esper.handlers``).

What comes out is what the run would have made itself, in the same order: kernels follow from blueprint and site alone,
and what is offered is recorded as a fact. A run never starts with less because its workers were slow.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from esper.blueprints.canonical import blueprint_id
from esper.blueprints.forging.examiner import request_measurement
from esper.blueprints.forging.forge import Forge, KernelRef
from esper.blueprints.forging.history import BlueprintHistory, KernelHistory, history_of
from esper.blueprints.forging.jobs import MOST_REMADE, job_id, requested_event_id, toolchain
from esper.blueprints.forging.scribe import Scribe
from esper.blueprints.forging.submission import Author, submit_sound
from esper.blueprints.ir import Blueprint, SiteSignature
from esper.blueprints.kernels.shelf import KernelShelf, quarantine_reason
from esper.blueprints.verify import fits, verify
from esper.errors import EsperError, LogUnavailable, TrainingError
from esper.events.kernel import CompilationRequested
from esper.names import TopicNames
from esper.oona.port import EventLog, iterate

_TOPICS = (
    TopicNames.COMPILATION_BLUEPRINT_SUBMITTED,
    TopicNames.COMPILATION_KERNEL_READY,
    TopicNames.VALIDATION_KERNEL_CHARACTERIZED,
)
_TURN_S = 0.5
#: How many jobs without a verdict an error names.
_NAMED = 3


class Workers(msgspec.Struct, frozen=True, kw_only=True):
    """That a run's kernels are made by workers.

    Attributes:
        wait_s: How long to wait for them.
        progress: Called with (jobs that have a verdict, jobs in all) when that changes.
    """

    wait_s: float = 600.0
    progress: Callable[[int, int], None] | None = None


class OrderStopped(Exception):
    """The run was asked to stop while it waited for its kernels; never leaves ``esper.tolaria``."""


class _Item(NamedTuple):
    """A blueprint that is wanted at a site."""

    blueprint: Blueprint
    blueprint_id: str
    signature: SiteSignature

    @property
    def told(self) -> str:
        site = self.signature
        return f"{self.blueprint.id} at {site.kind} {site.rank} {site.channels}"


class Order:
    """The kernels one run asks for; stands where a ``Forge`` would make them."""

    def __init__(
        self,
        log: EventLog,
        shelf: KernelShelf,
        forge: Forge,
        workers: Workers,
        *,
        sender_id: str,
        trace_id: str,
        stop: Callable[[], bool] = lambda: False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask for nothing yet.

        Args:
            log: Where wishes go and verdicts come from.
            shelf: The store as one for kernels; what is offered is checked there.
            forge: Told of kernels that do not hold.
            workers: How long to wait, and whom to tell.
            sender_id: Who asks.
            trace_id: 32 hexadecimal digits.
            stop: Asked all the while whether to stop waiting.
            monotonic: Gives seconds that never go back.
        """
        self._log = log
        self._shelf = shelf
        self._forge = forge
        self._workers = workers
        self._stop = stop
        self._scribe = Scribe(log, sender_id=sender_id, trace_id=trace_id)
        self._author = Author(sender_id, sender_id, trace_id)
        self._monotonic = monotonic
        self._histories: dict[str, BlueprintHistory] = {}
        self._read_to = 0

    def ensure(self, signatures: Sequence[SiteSignature], blueprints: Sequence[Blueprint]) -> list[KernelRef]:
        """Ask for a kernel of every blueprint at every signature it fits, and wait until each has a verdict.

        Args:
            signatures: Sites to serve; equal ones are served once.
            blueprints: Blueprints to consider.

        Returns:
            References to the validated ones, as ``Forge.ensure`` returns them.

        Raises:
            TrainingError: Some have no verdict in time; the message says how far they came.
            BlueprintInvalid: A blueprint breaks a static rule.
            SignatureInvalid: A kernel is signed by a worker whose key is not trusted here.
            OrderStopped: It was asked to stop.
        """
        items = self._ask(list(dict.fromkeys(signatures)), blueprints)
        self._wait(items)
        found = ((item, self._offered(item)) for item in items)
        return [_reference(item, kernel) for item, kernel in found if kernel is not None]

    def _ask(self, sites: list[SiteSignature], blueprints: Sequence[Blueprint]) -> list[_Item]:
        """Submit what is new, and ask for what nobody made; returns what there is to wait for, by site first."""
        self._read_to = self._log.end()
        items: dict[tuple[int, str], _Item] = {}
        unique = {blueprint_id(blueprint): blueprint for blueprint in blueprints}
        for identity, blueprint in unique.items():
            verify(blueprint)
            places = [at for at, site in enumerate(sites) if fits(blueprint, site) is None]
            history = history_of(self._log, identity)
            if history.retired or not places:
                continue
            if history.submitted is None:
                submit_sound(self._log, blueprint, self._author)
                history = history_of(self._log, identity)
            self._histories[identity] = history
            for at in places:
                item = items[at, identity] = _Item(blueprint, identity, sites[at])
                if history.kernel_at(sites[at]) is None and not history.has_failed(sites[at]):
                    self._request(item, history)
        return [items[key] for key in ((at, name) for at in range(len(sites)) for name in unique) if key in items]

    def _request(self, item: _Item, history: BlueprintHistory) -> None:
        job = job_id(item.blueprint_id, item.signature)
        wish = CompilationRequested(
            job_id=job,
            blueprint_id=item.blueprint_id,
            signature=msgspec.to_builtins(item.signature),
            pipelines=[],
            requested_by=self._scribe.sender_id,
        )
        self._scribe.append([(wish, requested_event_id(job))], history.submitted)

    def _wait(self, items: list[_Item]) -> None:
        """Wait until every item has a verdict, and every validated kernel can be had."""
        until_s = self._monotonic() + self._workers.wait_s
        waiting, told = items, -1
        while True:
            left_s = until_s - self._monotonic()
            try:
                self._follow()
                waiting = [item for item in items if self._is_open(item)]
                if told != len(waiting) and self._workers.progress is not None:
                    told = len(waiting)
                    self._workers.progress(len(items) - told, len(items))
                if not waiting:
                    if self._all_hold(items):
                        return
                    continue  # what does not hold is in quarantine now, and made again
                if left_s > 0:
                    self._log.wait(self._read_to, min(left_s, _TURN_S))
            except LogUnavailable:
                # A server that is away for a moment is no reason to give up what was asked for.
                if left_s <= 0:
                    raise
                time.sleep(min(left_s, _TURN_S))
            if self._stop():
                raise OrderStopped
            if left_s <= 0:
                raise self._late(waiting, items)

    def _follow(self) -> None:
        """Read the streams anew in which something happened."""
        end = self._log.end()
        if end <= self._read_to:
            return
        page = iterate(self._log, self._read_to, topics=_TOPICS, until=end)
        changed = {envelope.stream.removeprefix("blueprint/") for envelope in page}
        for identity in changed & self._histories.keys():
            self._histories[identity] = history_of(self._log, identity)
        self._read_to = end

    def _is_open(self, item: _Item) -> bool:
        """Tell whether a verdict is still to come; asks for a measurement that is out of date."""
        history = self._histories[item.blueprint_id]
        kernel = history.kernel_at(item.signature)
        if history.retired or (kernel is None and history.has_failed(item.signature)):
            return False
        if kernel is None:
            return True
        if kernel.in_quarantine:
            return kernel.quarantines <= MOST_REMADE
        if kernel.verdict is not None and kernel.current(toolchain()) is None:
            request_measurement(kernel, "another toolchain", self._scribe)
        return kernel.current(toolchain()) is None

    def _offered(self, item: _Item) -> KernelHistory | None:
        history = self._histories[item.blueprint_id]
        kernel = history.kernel_at(item.signature)
        verdict = None if kernel is None else kernel.current(toolchain())
        return kernel if verdict is not None and verdict.validated and not history.retired else None

    def _all_hold(self, items: list[_Item]) -> bool:
        """Tell whether every validated kernel can be taken from the shelf; what is bad goes into quarantine."""
        hold = True
        for item in items:
            kernel = self._offered(item)
            if kernel is None:
                continue
            try:
                self._shelf.get(kernel.compiled.kernel_id, signature=item.signature)
            except EsperError as error:
                if quarantine_reason(error) is None:
                    raise
                self._forge.quarantine(kernel.compiled.kernel_id, error)
                hold = False
        return hold

    def _late(self, waiting: list[_Item], items: list[_Item]) -> TrainingError:
        stages = Counter(self._stage(item) for item in waiting)
        told = ", ".join(f"{count} {stage}" for stage, count in sorted(stages.items()))
        some = "; ".join(item.told for item in waiting[:_NAMED])
        more = f" and {len(waiting) - _NAMED} more" if len(waiting) > _NAMED else ""
        return TrainingError(
            f"{len(waiting)} of {len(items)} kernels have no verdict after {self._workers.wait_s:g} s ({told}): "
            f"{some}{more}",
            hint="see `esper handler status`; run `esper handler start tezzeret` and `esper handler start urabrask`, "
            "then go on with `esper train --resume`, or set forge = here",
        )

    def _stage(self, item: _Item) -> str:
        kernel = self._histories[item.blueprint_id].kernel_at(item.signature)
        if kernel is None:
            return "not compiled"
        return "in quarantine" if kernel.in_quarantine else "not measured"


def _reference(item: _Item, kernel: KernelHistory) -> KernelRef:
    return KernelRef(
        kernel_id=kernel.compiled.kernel_id,
        blueprint_id=item.blueprint_id,
        name=item.blueprint.id,
        kind=item.blueprint.kind,
        signature=item.signature,
        parameters=kernel.compiled.parameters,
        flops=kernel.compiled.flops,
    )
