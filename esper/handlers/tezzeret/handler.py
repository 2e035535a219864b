"""The reactions of Tezzeret: a blueprint was submitted, a kernel was asked for, a kernel was found bad.

Belongs here: the way from an event to a kernel on the shelf and the fact of it, each job once. Does not belong here:
which kernels are wanted (``wanted``), the child processes (``benches``), or the life of the worker (``worker``).

A worker that holds the lease of a blueprint's stream does the stream's jobs, one after another; it says so in
``CompilationLeased`` before it begins. A verdict is appended only at the version of the stream that was read and had
none, so that a worker that was asleep for too long changes nothing. All results are in the log and the store: a worker
that takes over begins with what is there.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import NamedTuple

import msgspec

from esper.artifacts.store import ArtifactStore
from esper.blueprints.bench.wire import Compiled, CompileRequest
from esper.blueprints.bench.workbench import Done, Limits
from esper.blueprints.forging.jobs import (
    MOST_REMADE,
    compiled_event_id,
    failed_event_id,
    hardware,
    leased_event_id,
    requested_event_id,
    toolchain,
)
from esper.blueprints.ir import SiteSignature, parse
from esper.blueprints.kernels.shelf import KernelShelf
from esper.errors import BlueprintInvalid, ConcurrencyConflict, KernelRefused, LeaseLost, WorkFailed
from esper.events import Envelope, Fact
from esper.events.blueprint import BlueprintSubmitted
from esper.events.kernel import (
    CompilationFailed,
    CompilationLeased,
    CompilationRequested,
    KernelCompiled,
    KernelQuarantined,
    MeasurementRequested,
)
from esper.handlers.blueprint_verifier import faults
from esper.handlers.runtime.handler import Context
from esper.handlers.tezzeret.benches import Benches
from esper.handlers.tezzeret.forms import make_forms
from esper.handlers.tezzeret.job import Job, Stream, read_stream_of
from esper.handlers.tezzeret.wanted import KnownSites, wanted_sites
from esper.logs import get_logger
from esper.metrics import JOB_SECONDS, JOBS, JOBS_ACTIVE
from esper.names import TopicNames
from esper.oona.port import EventLog

NAME = "tezzeret"
_SENDER = f"handler:{NAME}"
#: Kernels that are kept while the store or the log takes no more, for each bench.
_KEPT_FOR_BENCH = 2


class Tally(msgspec.Struct):
    """What one worker did."""

    active: int = 0
    compiled: int = 0
    failed: int = 0


class _Made(NamedTuple):
    """A kernel that a bench made."""

    done: Done
    compiled: Compiled


class Tezzeret:
    """Compiles submitted blueprints in child processes."""

    name = NAME
    topics: Collection[str] = (TopicNames.COMPILATION_BLUEPRINT_SUBMITTED, TopicNames.COMPILATION_KERNEL_READY)

    def __init__(
        self,
        log: EventLog,
        shelf_of: Callable[[ArtifactStore], KernelShelf] = KernelShelf,
        *,
        member: str = NAME,
        jobs: int = 1,
        limits: Limits | None = None,
        benches: Benches | None = None,
        pipelines: Collection[str] = (),
        tally: Tally | None = None,
    ) -> None:
        """Get ready; child processes start with the first jobs.

        Args:
            log: The log that events come from and facts go to.
            shelf_of: Returns an artifact store as one for kernels, with the keys that sign and are trusted.
            member: Name of this worker, as facts tell it.
            jobs: How many kernels are compiled at the same time; a child process for each.
            limits: Of one compilation.
            benches: Where the work is done; benches of its own, which are closed with it, when left out.
            pipelines: Compiled forms to make of each kernel, besides those that a request asks for.
            tally: Counts what is done.
        """
        self._log = log
        self._shelf_of = shelf_of
        self._member = member
        self._own = benches is None
        self._benches = benches or Benches(jobs, limits)
        self._pipelines = tuple(pipelines)
        self._sites = KnownSites(log)
        self._shelf: tuple[ArtifactStore, KernelShelf] | None = None
        self.tally = tally or Tally()
        #: What was made and could not be kept or told yet, by job id: the store or the log was away.
        self._unsaid: OrderedDict[str, _Made] = OrderedDict()
        self._most_unsaid = _KEPT_FOR_BENCH * jobs

    async def handle(self, envelope: Envelope, context: Context) -> None:
        """React to one event; whatever computes or waits does so off the event loop.

        Raises:
            LeaseLost: Another worker owns the blueprint's stream now.
            ArtifactError: The store takes no kernels.
            DependencyUnavailable: No child process can be started.
        """
        match context.fact:
            case BlueprintSubmitted() as fact:
                await self._submitted(fact, envelope, context)
            case CompilationRequested() as fact:
                await self._requested(fact, envelope, context)
            case KernelQuarantined() as fact:
                await self._quarantined(fact, context)
            case _:
                pass  # the topics have facts of others too, and our own

    def close(self) -> None:
        """End the child processes."""
        if self._own:
            self._benches.close()

    async def _submitted(self, fact: BlueprintSubmitted, envelope: Envelope, context: Context) -> None:
        """Ask for the kernels of a blueprint that joined the library."""
        jobs = await asyncio.to_thread(self._jobs_of, fact)
        stream = await asyncio.to_thread(read_stream_of, self._log, fact.blueprint_id)
        for job in jobs:
            if stream.is_over(job) or stream.history.retired:
                continue
            if stream.requests.get(job.job_id, envelope.version) < envelope.version:
                # It was asked for before the blueprint was retired, and nobody asks twice. It is back.
                await self._make(job, context)
                continue
            wish = CompilationRequested(
                job_id=job.job_id,
                blueprint_id=job.blueprint_id,
                signature=job.site,
                pipelines=[],
                requested_by=_SENDER,
            )
            await context.emit_as(requested_event_id(job.job_id), wish)

    def _jobs_of(self, fact: BlueprintSubmitted) -> list[Job]:
        if faults(fact):
            return []  # the handler `blueprint-verifier` says so
        sites = wanted_sites(parse(fact.architecture_ir), self._sites.all())
        return [Job(blueprint_id=fact.blueprint_id, signature=site) for site in sites]

    async def _requested(self, fact: CompilationRequested, envelope: Envelope, context: Context) -> None:
        """Make a kernel that somebody wants."""
        try:
            job = Job(blueprint_id=fact.blueprint_id, signature=msgspec.convert(fact.signature, SiteSignature))
        except msgspec.ValidationError as error:
            await self._refuse(fact, f"the signature is none of a site: {error}", context)
            return
        if job.job_id != fact.job_id:
            await self._refuse(fact, f"the job of that blueprint at that site has the id {job.job_id}", context)
            return
        await self._make(job, context)
        wanted = [*fact.pipelines, *self._pipelines]
        await self._form(msgspec.structs.replace(fact, pipelines=wanted), job, envelope, context)

    async def _form(self, fact: CompilationRequested, job: Job, envelope: Envelope, context: Context) -> None:
        """Make the compiled forms that a request asks for, if there is a kernel."""
        stream = await asyncio.to_thread(read_stream_of, self._log, job.blueprint_id) if fact.pipelines else None
        kernel = None if stream is None else stream.kernel_of(job)
        if stream is None or kernel is None or kernel.in_quarantine or stream.history.retired:
            return
        try:
            await make_forms(
                fact,
                kernel.compiled,
                log=self._log,
                shelf=self._shelf_at(context),
                benches=self._benches,
                context=context,
                sender_id=_SENDER,
                trace_id=envelope.trace_id,
            )
        except WorkFailed as error:
            self._give_up_if_stopped(error, context)
            raise

    async def _refuse(self, fact: CompilationRequested, message: str, context: Context) -> None:
        failure = CompilationFailed(
            blueprint_id=fact.blueprint_id,
            signature=fact.signature,
            error="CompilationRequested",
            message=message,
            job_id=fact.job_id,
            reason="error",
        )
        await context.emit_as(failed_event_id(fact.job_id), failure)

    async def _quarantined(self, fact: KernelQuarantined, context: Context) -> None:
        """Make a kernel again that was found bad; it has the same bytes, and is to be measured again."""
        stream = await asyncio.to_thread(read_stream_of, self._log, fact.blueprint_id)
        kernel = stream.history.kernels.get(fact.kernel_id)
        if kernel is None or not kernel.in_quarantine or stream.history.retired:
            return  # it was judged again since
        if kernel.quarantines > MOST_REMADE:
            get_logger(NAME).error("stays in quarantine", kernel=fact.kernel_id, quarantines=kernel.quarantines)
            return
        try:
            job = Job(blueprint_id=fact.blueprint_id, signature=kernel.signature())
            document = await asyncio.to_thread(_document, stream)
            made = await self._compiled(job, document, context)
            kernel_id = await self._keep(made, context)
        except (BlueprintInvalid, KernelRefused, WorkFailed) as error:
            self._give_up_if_stopped(error, context)
            get_logger(NAME).error("cannot be made again", kernel=fact.kernel_id, cause=error.message)
            return
        self._unsaid.pop(job.job_id, None)
        if kernel_id != fact.kernel_id:
            # What the log says of the kernel's site is not true, so that nobody can make it.
            get_logger(NAME).error("cannot be made again", kernel=fact.kernel_id, cause="its site makes another kernel")
            return
        wish = MeasurementRequested(
            blueprint_id=fact.blueprint_id,
            kernel_id=fact.kernel_id,
            reason="made again",
            toolchain=toolchain(),
            requested_by=_SENDER,
        )
        await context.emit(wish)

    async def _make(self, job: Job, context: Context) -> None:
        """Do a job, unless it came to something already."""
        stream = await asyncio.to_thread(read_stream_of, self._log, job.blueprint_id)
        kernel = stream.kernel_of(job)
        if stream.history.retired or stream.history.has_failed(job.signature):
            return
        if kernel is not None:
            there = await asyncio.to_thread(self._shelf_at(context).has, kernel.compiled.kernel_id)
            if there or kernel.in_quarantine:
                return
        elif not await self._lease(job, stream, context):
            return
        try:
            document = await asyncio.to_thread(_document, stream)
            made = await self._compiled(job, document, context)
            kernel_id = await self._keep(made, context)
        except (BlueprintInvalid, KernelRefused, WorkFailed) as error:
            self._give_up_if_stopped(error, context)
            await self._say_failed(job, error, context)
        else:
            await self._say_compiled(job, kernel_id, made, context)
        self._unsaid.pop(job.job_id, None)

    async def _lease(self, job: Job, stream: Stream, context: Context) -> bool:
        """Say that this worker does a job; tell whether it is still to be done."""
        while not stream.is_over(job):
            leases = stream.leases.get(job.job_id, [])
            if any(lease.token == context.token for lease in leases):
                return True  # an earlier try under the same lease
            fact = CompilationLeased(
                job_id=job.job_id,
                blueprint_id=job.blueprint_id,
                worker=self._member,
                token=context.token,
                attempt=len(leases) + 1,
            )
            try:
                await context.emit_as(leased_event_id(job.job_id, context.token), fact, expected=stream.version)
            except ConcurrencyConflict:
                stream = await asyncio.to_thread(read_stream_of, self._log, job.blueprint_id)
            else:
                return True
        return False

    async def _compiled(self, job: Job, document: str, context: Context) -> _Made:
        """Compile at a bench; what was made before and could not be kept is not made again."""
        if (made := self._unsaid.get(job.job_id)) is not None:
            return made
        request = msgspec.msgpack.encode(CompileRequest(ir=document, signature=job.signature))
        self.tally.active += 1
        JOBS_ACTIVE.labels(NAME).inc()
        try:
            done = await self._benches.run("compile", request, stop=lambda: not context.still_owner())
        finally:
            self.tally.active -= 1
            JOBS_ACTIVE.labels(NAME).dec()
        JOB_SECONDS.labels(NAME).observe(done.wall_s)
        made = _Made(done, msgspec.msgpack.decode(done.result, type=Compiled))
        self._unsaid[job.job_id] = made
        while len(self._unsaid) > self._most_unsaid:
            self._unsaid.popitem(last=False)
        return made

    async def _keep(self, made: _Made, context: Context) -> str:
        return await asyncio.to_thread(self._shelf_at(context).put, made.compiled.kernel)

    async def _say_compiled(self, job: Job, kernel_id: str, made: _Made, context: Context) -> None:
        fact = KernelCompiled(
            blueprint_id=job.blueprint_id,
            kernel_id=kernel_id,
            signature=job.site,
            symbols=made.compiled.symbols,
            parameters=made.compiled.parameters,
            flops=made.compiled.flops,
            size_bytes=len(made.compiled.kernel),
            compile_seconds=made.done.wall_s,
            toolchain=toolchain(),
            job_id=job.job_id,
            worker=self._member,
            peak_memory_bytes=made.done.peak_memory_bytes,
            hardware=hardware(),
            signed_by=self._shelf_at(context).signed_by,
        )
        if await self._conclude(job, fact, compiled_event_id(kernel_id), context):
            self.tally.compiled += 1
            JOBS.labels(NAME, "compiled").inc()

    async def _say_failed(
        self, job: Job, error: BlueprintInvalid | KernelRefused | WorkFailed, context: Context
    ) -> None:
        fact = CompilationFailed(
            blueprint_id=job.blueprint_id,
            signature=job.site,
            error=type(error).__name__,
            message=error.message,
            job_id=job.job_id,
            reason=error.reason if isinstance(error, WorkFailed) else "error",
        )
        get_logger(NAME).warning("failed", job=job.job_id, reason=fact.reason, cause=error.message)
        if await self._conclude(job, fact, failed_event_id(job.job_id), context):
            self.tally.failed += 1
            JOBS.labels(NAME, "failed").inc()

    async def _conclude(self, job: Job, fact: Fact, event_id: bytes, context: Context) -> bool:
        """Append what a job came to, unless it came to something before; tell whether it is ours that stands."""
        while True:
            stream = await asyncio.to_thread(read_stream_of, self._log, job.blueprint_id)
            if stream.is_over(job):
                return False
            try:
                await context.emit_as(event_id, fact, expected=stream.version)
            except ConcurrencyConflict:
                continue  # somebody said something; it may be about this job
            return True

    def _give_up_if_stopped(self, error: Exception, context: Context) -> None:
        """Raise what gives an event back untried, where it was not the blueprint that ended the work.

        Raises:
            LeaseLost: The stream is another worker's.
            asyncio.CancelledError: The process ends.
            WorkFailed: The bench was closed.
        """
        if not isinstance(error, WorkFailed) or error.reason not in ("stopped", "died"):
            return
        if not context.still_owner():
            raise LeaseLost(f"{self._member} lost its lease while it compiled", name=NAME, owner="") from error
        if context.stopping.is_set():
            # Whoever ends a service may end its children too: that a child died says nothing then.
            raise asyncio.CancelledError from error
        if error.reason == "stopped":
            raise error

    def _shelf_at(self, context: Context) -> KernelShelf:
        if self._shelf is None or self._shelf[0] is not context.store:
            self._shelf = (context.store, self._shelf_of(context.store))
        return self._shelf[1]


def _document(stream: Stream) -> str:
    """Return the document that a stream's blueprint was submitted as.

    Raises:
        BlueprintInvalid: There is none, or it is not the blueprint that it says it is.
    """
    if stream.submitted is None:
        raise BlueprintInvalid(f"blueprint {stream.history.blueprint_id[:80]} was never submitted")
    if found := faults(stream.submitted):
        raise BlueprintInvalid(found[0])
    return stream.submitted.architecture_ir
