"""A job: a blueprint at a site, and what the blueprint's stream says of it.

Belongs here: reading a stream for one job. Does not belong here: doing it (``handler``), or what the stream says of
kernels (``esper.blueprints.forging.history``).
"""

from __future__ import annotations

from typing import Any

import msgspec

from esper.blueprints.forging.history import BlueprintHistory, KernelHistory
from esper.blueprints.forging.jobs import job_id
from esper.blueprints.ir import SiteSignature
from esper.events import fact_of
from esper.events.blueprint import BlueprintSubmitted
from esper.events.kernel import CompilationLeased, CompilationRequested
from esper.oona.port import EventLog, iterate_stream


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel that is to be made."""

    blueprint_id: str
    signature: SiteSignature

    @property
    def job_id(self) -> str:
        """Return its id, which follows from both."""
        return job_id(self.blueprint_id, self.signature)

    @property
    def site(self) -> dict[str, Any]:
        """Return the signature as plain data, as facts have it."""
        plain: dict[str, Any] = msgspec.to_builtins(self.signature)
        return plain


class Stream(msgspec.Struct, kw_only=True):
    """What a blueprint's stream says."""

    history: BlueprintHistory
    #: The last submission; None where there is none.
    submitted: BlueprintSubmitted | None = None
    #: Version in the stream of the first request for each job, by job id.
    requests: dict[str, int] = {}
    #: Leases of each job, by job id.
    leases: dict[str, list[CompilationLeased]] = {}

    @property
    def version(self) -> int:
        """Return the version of the stream that was read."""
        return self.history.version

    def kernel_of(self, job: Job) -> KernelHistory | None:
        """Return the kernel that was made of a job, by whomever."""
        return self.history.kernel_at(job.signature)

    def is_over(self, job: Job) -> bool:
        """Tell whether a job came to something: a kernel, or a failure."""
        return self.kernel_of(job) is not None or self.history.has_failed(job.signature)


def read_stream_of(log: EventLog, blueprint_id: str) -> Stream:
    """Read a blueprint's stream to its end."""
    stream = Stream(history=BlueprintHistory(blueprint_id=blueprint_id))
    for envelope in iterate_stream(log, f"blueprint/{blueprint_id}"):
        fact = fact_of(envelope)
        stream.history.version = envelope.version
        stream.history.note(fact, envelope.event_id)
        if isinstance(fact, BlueprintSubmitted):
            stream.submitted = fact
        elif isinstance(fact, CompilationRequested):
            stream.requests.setdefault(fact.job_id, envelope.version)
        elif isinstance(fact, CompilationLeased):
            stream.leases.setdefault(fact.job_id, []).append(fact)
    return stream
