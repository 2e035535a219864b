"""The reactions of Urabrask: a kernel was compiled, or somebody asked for a measurement.

Belongs here: the way from an event to an examination, and giving it up when the lease or the process ends. Does not
belong here: the examination (``esper.blueprints.forging.examiner``).

What is repeated changes nothing: the ids of verdicts follow from kernel and toolchain, so that several members, a run
that measures for itself and an event that comes twice end in one verdict.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from esper.artifacts.store import ArtifactStore
from esper.blueprints.bench.workbench import Limits, Workbench
from esper.blueprints.forging.examiner import Examiner, request_measurement
from esper.blueprints.forging.history import histories
from esper.blueprints.forging.jobs import toolchain
from esper.blueprints.forging.population import Population
from esper.blueprints.forging.scribe import Scribe
from esper.blueprints.kernels.shelf import KernelShelf, quarantine_reason
from esper.errors import EsperError, LeaseLost, NotFound, WorkFailed
from esper.events import Envelope
from esper.events.kernel import KernelCompiled, MeasurementRequested
from esper.handlers.runtime.handler import Context
from esper.ids import new_trace_id
from esper.logs import get_logger
from esper.names import TopicNames
from esper.oona.port import EventLog

_NAME = "urabrask"
_SENDER = f"handler:{_NAME}"


class Urabrask:
    """Measures kernels in a child process and says what they are worth."""

    name = _NAME
    topics: Collection[str] = (TopicNames.COMPILATION_KERNEL_READY,)

    def __init__(
        self,
        log: EventLog,
        shelf_of: Callable[[ArtifactStore], KernelShelf] = KernelShelf,
        *,
        limits: Limits | None = None,
        bench: Workbench | None = None,
    ) -> None:
        """Get ready; the child starts with the first kernel.

        Args:
            log: The log that events come from and verdicts go to.
            shelf_of: Returns an artifact store as one for kernels, with the keys that sign and are trusted.
            limits: Of one measurement.
            bench: Where kernels are measured; a child of its own, which is closed with it, when left out.
        """
        self._log = log
        self._shelf_of = shelf_of
        self._own = bench is None
        self._bench = bench or Workbench(limits)
        self._kept: tuple[ArtifactStore, KernelShelf, Population] | None = None

    async def handle(self, envelope: Envelope, context: Context) -> None:
        """Examine the kernel of one event; the work is done off the event loop.

        Raises:
            NotFound: A measurement was asked for of a kernel that was never compiled.
            LeaseLost: Another member owns the kernel's stream now.
            ArtifactError: The kernel cannot be had, and it is not the kernel that is to blame.
        """
        fact = context.fact
        if not isinstance(fact, KernelCompiled | MeasurementRequested):
            return
        try:
            await asyncio.to_thread(self._examine, fact, envelope, context)
        except WorkFailed as error:
            if not context.still_owner():
                raise LeaseLost(f"{_NAME} no longer owns {envelope.stream}", name=envelope.stream, owner="") from error
            if error.reason == "stopped" and context.stopping.is_set():
                # The process ends: the event goes back untried, and counts as no attempt.
                raise asyncio.CancelledError from error
            raise

    def close(self) -> None:
        """End the child."""
        if self._own:
            self._bench.close()

    def request_outdated(self) -> int:
        """Ask for a measurement of every kernel that was last judged with another toolchain; return how many."""
        scribe = Scribe(self._log, sender_id=_SENDER, trace_id=new_trace_id())
        return sum(
            request_measurement(kernel, "another toolchain", scribe)
            for history in histories(self._log)
            for kernel in history.kernels.values()
            if kernel.verdict is not None and kernel.current(toolchain()) is None and not history.retired
        )

    def _examine(self, fact: KernelCompiled | MeasurementRequested, envelope: Envelope, context: Context) -> None:
        def guard() -> None:
            if not context.still_owner():
                raise LeaseLost(f"{_NAME} no longer owns {envelope.stream}", name=envelope.stream, owner="")

        scribe = Scribe(self._log, sender_id=_SENDER, trace_id=envelope.trace_id, guard=guard)
        examiner = self._examiner(context.store, scribe)
        compiled = self._compiled(examiner, fact)
        state = examiner.state(compiled)
        asked = isinstance(fact, MeasurementRequested) and state.wanted
        if state.current(toolchain()) is not None and not asked:
            if state.verdict is not None and state.verdict.validated and state.tagged is None:
                examiner.tag()  # whoever judged it died before that
            return
        try:
            judged = examiner.measure(compiled, stop=lambda: context.stopping.is_set() or not context.still_owner())
        except EsperError as error:
            if quarantine_reason(error) is None:
                raise
            get_logger(_NAME).warning("quarantined", kernel=compiled.kernel_id, cause=error.message)
            return
        failed = judged.measurements.failed
        get_logger(_NAME).info("judged", kernel=compiled.kernel_id, validated=judged.validated, failed=failed)
        examiner.tag()

    def _compiled(self, examiner: Examiner, fact: KernelCompiled | MeasurementRequested) -> KernelCompiled:
        if isinstance(fact, KernelCompiled):
            return fact
        compiled = examiner.known(fact.blueprint_id, fact.kernel_id)
        if compiled is None:
            raise NotFound(f"kernel {fact.kernel_id} is to be measured and was never compiled on this log")
        return compiled

    def _examiner(self, store: ArtifactStore, scribe: Scribe) -> Examiner:
        if self._kept is None or self._kept[0] is not store:
            self._kept = (store, self._shelf_of(store), Population(self._log, store))
        _, shelf, population = self._kept
        return Examiner(self._log, store, shelf, self._bench, scribe, population=population)
