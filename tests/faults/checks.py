"""What became of the batches that ``writers`` appended: lost, doubled, out of order, or half there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from esper.events import fact_of
from esper.events.operator import NoteAdded
from esper.oona.port import EventLog, iterate
from faults.writers import event_id


class Told(NamedTuple):
    """One receipt a writer noted."""

    writer: str
    #: The writer's number of the first fact.
    sequence: int
    size: int
    first: int
    last: int
    version: int
    #: Version of the stream that the writer asked for.
    expected: int


class Outcome(NamedTuple):
    """What a log holds of what was acknowledged; counts of facts."""

    acknowledged: int
    #: Acknowledged, but not at the position of their receipt.
    lost: int
    #: More than once in the log.
    doubled: int
    #: Not where position, version and the writer's own order put them.
    out_of_order: int
    #: Of a batch that is not whole.
    half: int
    head: int

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.doubled or self.out_of_order or self.half)


def told_by(path: Path) -> list[Told]:
    """Return the receipts of a writer's file; a line without its end was not noted."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [told(path.stem, line) for line in lines]


def told(writer: str, line: str) -> Told:
    """Return the receipt of a line."""
    return Told(writer, *map(int, line.split()))


def examine(log: EventLog, receipts: list[Told]) -> Outcome:
    """Hold a log against the receipts its writers noted."""
    at: dict[int, bytes] = {}
    seen: Counter[bytes] = Counter()
    versions: Counter[str] = Counter()
    reached: Counter[str] = Counter()
    open_batch: dict[str, tuple[int, int]] = {}
    out_of_order = half = 0
    for number, envelope in enumerate(iterate(log), start=1):
        at[envelope.position] = envelope.event_id
        seen[envelope.event_id] += 1
        versions[envelope.stream] += 1
        fact = fact_of(envelope)
        assert isinstance(fact, NoteAdded)
        sequence, place, size = map(int, fact.text.split(" ")[:3])
        placed = envelope.position == number and envelope.version == versions[envelope.stream]
        out_of_order += not (placed and sequence + place == reached[fact.actor])
        reached[fact.actor] = sequence + place + 1
        # The facts of a batch stand side by side: another's batch may not begin before this one is whole.
        half += open_batch.pop(fact.actor, (sequence, 0)) != (sequence, place) or bool(open_batch)
        if place + 1 < size:
            open_batch[fact.actor] = (sequence, place + 1)
    half += sum(place for _, place in open_batch.values())
    lost = sum(
        at.get(one.first + place) != event_id(one.writer, one.sequence + place)
        for one in receipts
        for place in range(one.size)
    )
    return Outcome(
        acknowledged=sum(one.size for one in receipts),
        lost=lost,
        doubled=sum(count - 1 for count in seen.values()),
        out_of_order=out_of_order,
        half=half,
        head=log.end(),
    )
