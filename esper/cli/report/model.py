"""What a run report shows, as plain structs: the contract between reading a run and drawing it.

Belongs here: the shape of the page's contents. Does not belong here: where they come from (``data``) or how they
look (``charts``, ``lanes`` and the template).
"""

from __future__ import annotations

from typing import Any

import msgspec

from esper.events.lifecycle import SeedState

#: (step, value); a value that is not finite is kept, and drawn as a gap.
Points = list[tuple[float, float]]


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """One run in the comparison: the reported run first, then those it is compared with."""

    #: grown, no-growth, from-scratch or other; decides the colour.
    role: str
    #: What people read, e.g. ``same host, no growth``.
    label: str
    run_id: str
    status: str
    steps: int
    test_accuracy: float | None = None
    test_loss: float | None = None
    #: Parameters of the exported network, after folding; as they are now while the run goes on.
    parameters: int | None = None
    training_flops: int | None = None
    #: Forward FLOPs of one sample.
    inference_flops: int | None = None
    seconds: float | None = None
    train_loss: Points = []
    validation_loss: Points = []
    validation_accuracy: Points = []
    parameters_over_time: Points = []
    flops_over_time: Points = []


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of steps that a seed spent in one life state."""

    state: str
    first: int
    last: int
    reason: str


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """The life of one seed."""

    seed_id: str
    site: str
    #: Name of the blueprint, or the short form of its id where the name is not known.
    blueprint: str
    blueprint_id: str
    parameters: int
    spans: list[Span]
    alpha: Points

    @property
    def outcome(self) -> str:
        """Return the last state of the seed itself; an embargo is its site's."""
        own = [span.state for span in self.spans if span.state != SeedState.EMBARGOED]
        return own[-1] if own else "unknown"


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One legal action and the probability the policy gave it."""

    label: str
    probability: float
    chosen: bool


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One decision: what was chosen, out of what, and what became of it."""

    number: int
    step: int
    epoch: int
    #: noop, germinate, advance, cull or fossilize.
    kind: str
    label: str
    seed_id: str | None
    #: Likeliest actions, most probable first; the chosen one is always among them.
    choices: list[Choice]
    legal: int
    masked: int
    #: None where the log does not say.
    executed: bool | None
    outcome: str


class Gain(msgspec.Struct, frozen=True, kw_only=True):
    """One leave-one-out measurement of a seed."""

    seed_id: str
    site: str
    blueprint: str
    step: int
    samples: int
    gain: float
    stderr: float


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """Telemetry of one site."""

    site: str
    kind: str
    depth: int
    parameters: int
    zr: Points
    #: Steps at which a seed germinated here.
    germinated: list[int]
    #: Latest probe: quantity -> value, None where it was not measured.
    latest: dict[str, float | None]


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """Something that interrupted the run: a rollback, a resumption, a fault, a tripped governor."""

    step: int
    kind: str
    text: str


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What a person wrote down about the run."""

    actor: str
    text: str
    #: Microseconds since the Unix epoch, UTC.
    at: int


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """Where the facts of the report stand in the log."""

    first: int
    last: int
    head: int
    #: Chain hash of the log at its head, hexadecimal.
    head_hash: str
    facts: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything on the page."""

    run_id: str
    task: str
    policy: str
    host: str
    status: str
    #: Error class and message of a failed run; reason of a paused one.
    status_reason: str | None
    #: Microseconds since the Unix epoch, UTC.
    started_at: int
    last_at: int
    steps: int
    total_steps: int
    steps_per_epoch: int
    attempts: int
    redone_steps: int
    initial_parameters: int | None
    arms: list[Arm]
    lanes: list[Lane]
    decisions: list[Decision]
    gains: list[Gain]
    sites: list[Site]
    moments: list[Moment]
    notes: list[Note]
    position: Position
    seeds: dict[str, int]
    config: dict[str, Any]
    packages: dict[str, str]
    environment: dict[str, Any]
    environment_digest: str
    dataset_digest: str | None
    git_commit: str | None
    git_dirty_digest: str | None
    #: Run this one was made to be compared with, if any.
    compare_to: str | None
    parent_run_id: str | None
    parent_position: int | None

    @property
    def grown(self) -> Arm:
        """Return the reported run itself."""
        return self.arms[0]
