"""The step after a kernel: the compiled forms that a request asks for.

Belongs here: which forms are made for a request, and giving them up with the lease. Does not belong here: making and
telling them (``esper.blueprints.forging.forming``), or the kernel (``handler``).
"""

from __future__ import annotations

from collections.abc import Callable

from esper.blueprints.bench.workbench import Workbench
from esper.blueprints.forging.forming import Formed, FormMaker
from esper.blueprints.forging.scribe import Scribe
from esper.blueprints.kernels.shelf import KernelShelf
from esper.errors import ArtifactError, KernelRefused, LeaseLost
from esper.events.kernel import CompilationRequested, KernelCompiled
from esper.handlers.runtime.handler import Context
from esper.handlers.tezzeret.benches import Benches
from esper.logs import get_logger
from esper.oona.port import EventLog

#: Value of the setting ``work_forms`` -> pipelines.
FORMS: dict[str, tuple[str, ...]] = {
    "none": (),
    "export": ("export",),
    "inductor": ("inductor",),
    "both": ("export", "inductor"),
}
#: The kernel itself: nothing is to be made.
_EAGER = "eager"


async def make_forms(
    fact: CompilationRequested,
    compiled: KernelCompiled,
    *,
    log: EventLog,
    shelf: KernelShelf,
    benches: Benches,
    context: Context,
    sender_id: str,
    trace_id: str,
) -> None:
    """Make the forms of a kernel that a request asks for; a bad one says nothing against the kernel.

    Raises:
        LeaseLost: The blueprint's stream is another worker's now.
        WorkFailed: The work was stopped.
        ArtifactStoreUnavailable: The store cannot be reached.
        DependencyUnavailable: No child process can be started.
    """

    def guard() -> None:
        if not context.still_owner():
            raise LeaseLost(f"{sender_id} no longer owns {compiled.stream}", name=compiled.stream, owner="")

    scribe = Scribe(log, sender_id=sender_id, trace_id=trace_id, guard=guard)
    for pipeline in dict.fromkeys(fact.pipelines):
        if pipeline == _EAGER:
            continue

        def work(bench: Workbench, stop: Callable[[], bool], pipeline: str = pipeline) -> Formed:
            maker = FormMaker(log, context.store, shelf, bench, scribe)
            return maker.make(compiled, pipeline, again=False, stop=stop)

        try:
            form = await benches.lend(work, stop=lambda: context.stopping.is_set() or not context.still_owner())
        except (ArtifactError, KernelRefused) as error:
            if isinstance(error, ConnectionError):
                raise
            # The kernel's own bytes do not hold: whoever measures it says so, and it is made again.
            get_logger("tezzeret").error("no form", kernel=compiled.kernel_id, pipeline=pipeline, cause=error.message)
            return
        outcome = getattr(form, "reason", "compiled")
        get_logger("tezzeret").info("formed", job=fact.job_id, pipeline=pipeline, outcome=outcome)
