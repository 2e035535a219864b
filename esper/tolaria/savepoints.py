"""The points a run can go on from: its full state kept in a store, and the way back to the last one.

Belongs here: saving, resuming and rolling back, and the counters that go with the state. Does not belong here: what the
state is made of (``fullstate``), its bytes (``checkpoint``), telling that training went wrong (``governor``).
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

from esper.errors import Diverged
from esper.events.run import CheckpointSaved, GovernorTripped, RolledBack
from esper.kasmina import Growth
from esper.logs import get_logger
from esper.tolaria import checkpoint
from esper.tolaria.checkpoint import CheckpointStore
from esper.tolaria.fullstate import FullState
from esper.tolaria.governor import Governor, Trip
from esper.tolaria.sink import FactSink


@dataclass
class Progress:
    """How far a run has come, as a checkpoint keeps it."""

    #: Optimiser steps taken.
    step: int = 0
    training_flops: int = 0
    rollbacks: int = 0


class Savepoints:
    """Keeps a run's full state and brings it back."""

    def __init__(
        self,
        progress: Progress,
        state: FullState,
        growth: Growth,
        governor: Governor,
        *,
        store: CheckpointStore,
        sink: FactSink,
        rewinds: bool,
    ) -> None:
        """Save nothing yet.

        Args:
            progress: The run's counters, written here when it goes back.
            state: The parts whose state is kept.
            growth: Where the graft under suspicion is.
            governor: Tells the most rollbacks, and is told of each.
            store: Where checkpoints go.
            sink: Where facts go.
            rewinds: Whether the loop can go back to an earlier step after a rollback.
        """
        self._progress = progress
        self._state = state
        self._growth = growth
        self._governor = governor
        self._store = store
        self._sink = sink
        self._rewinds = rewinds
        self._digest: bytes | None = None
        self._messages = get_logger("tolaria")

    def save(self) -> None:
        """Store the full state and record where."""
        data = checkpoint.encode(self._state.capture(asdict(self._progress)))
        self._digest = self._store.put(data)
        self._sink.emit(CheckpointSaved, step=self._progress.step, digest=self._digest, size_bytes=len(data))
        self._sink.barrier()

    def resume(self, data: bytes) -> None:
        """Go on from checkpoint bytes.

        Raises:
            CheckpointDamaged: The bytes do not fit this run.
        """
        self._restore(checkpoint.decode(data), rewind=True)
        self._digest = hashlib.sha256(data).digest()

    def roll_back(self, trip: Trip) -> None:
        """Restore the last checkpoint as a new attempt and cull the graft under suspicion.

        Raises:
            Diverged: There is no graft to blame, or too many rollbacks were made.
        """
        suspect = self._growth.suspect()
        from_step, flops, made = self._progress.step, self._progress.training_flops, self._progress.rollbacks + 1
        self._sink.emit(
            GovernorTripped,
            step=from_step,
            kind=trip.kind,
            evidence=trip.evidence,
            suspect_seed_id=None if suspect is None else suspect.id,
        )
        if suspect is None or made > self._governor.settings.max_rollbacks or self._digest is None:
            raise Diverged(
                f"training went wrong at step {from_step} ({trip.kind}: {trip.evidence}) and "
                + ("no graft is to blame" if suspect is None else f"{made - 1} rollbacks were made already"),
                hint="lower the learning rate; `esper run report` shows the losses before it",
            )
        self._messages.warning(
            "rolling back", step=from_step, kind=trip.kind, evidence=trip.evidence, suspect=suspect.id
        )
        state = checkpoint.decode(self._store.get(self._digest))
        self._restore(state, rewind=self._rewinds)
        self._progress.rollbacks, self._progress.training_flops = made, flops
        self._sink.next_attempt()
        self._sink.emit(
            RolledBack,
            from_step=from_step,
            to_step=state.meta["step"],
            checkpoint_digest=self._digest,
            culled_seed_id=suspect.id,
        )
        self._growth.roll_back(suspect, step=self._progress.step)
        self._governor.note_change(self._progress.step)

    def _restore(self, state: checkpoint.State, *, rewind: bool) -> None:
        self._state.restore(state, random=rewind)
        if rewind:
            self._progress.step = state.meta["step"]
        self._progress.training_flops = state.meta["training_flops"]
        self._progress.rollbacks = state.meta["rollbacks"]
