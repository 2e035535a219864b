"""The steps of the epoch in progress: their losses on the way from the device, their facts and their totals."""

from __future__ import annotations

import hashlib
import math
import time
from typing import NamedTuple

import torch
from torch import Tensor

from esper.events.run import TrainingStepCompleted
from esper.tolaria.losses import LossBuffer
from esper.tolaria.sink import FactSink

#: Where the chain of an epoch's sample digests begins.
_NO_DATA = hashlib.sha256(b"").digest()


class Pending(NamedTuple):
    """A step whose loss may still be on the device."""

    step: int
    learning_rate: float
    samples_digest: bytes | None
    duration_s: float


class StepLedger:
    """Notes steps as they are taken and tells their facts in order."""

    def __init__(self, device: torch.device, steps_per_epoch: int, sink: FactSink, drain_every: int | None) -> None:
        """Start an epoch.

        Args:
            device: Where the losses are computed.
            steps_per_epoch: Steps of an epoch.
            sink: Where the facts go.
            drain_every: Steps between two readings of the losses; what suits the device when left out.
        """
        self._steps_per_epoch = steps_per_epoch
        self._sink = sink
        self._buffer = LossBuffer(device, drain_every)
        self._pending: list[Pending] = []
        self._losses: list[float] = []
        self._data_digest = _NO_DATA
        self._step_began = time.perf_counter()

    @property
    def full(self) -> bool:
        """Tell whether the losses must be read before the next step; on a processor after each."""
        return self._buffer.full

    def note(self, step: int, learning_rate: float, loss: Tensor, samples_digest: bytes | None) -> None:
        """Note a step that was taken, without waiting for the device."""
        now = time.perf_counter()
        # In this order, so that an interrupt in between leaves no step without its loss.
        self._buffer.add(loss)
        self._pending.append(Pending(step, learning_rate, samples_digest, now - self._step_began))
        self._step_began = now

    def drain(self) -> list[tuple[int, float]]:
        """Emit the facts of the steps noted since the last call and return their numbers and losses."""
        told = []
        for pending, value in zip(self._pending, self._buffer.drain(), strict=False):
            self._sink.emit(
                TrainingStepCompleted,
                epoch=(pending.step - 1) // self._steps_per_epoch,
                step=pending.step,
                loss=value,
                learning_rate=pending.learning_rate,
                samples_digest=pending.samples_digest,
                duration_s=pending.duration_s,
            )
            self._losses.append(value)
            self._data_digest = hashlib.sha256(self._data_digest + (pending.samples_digest or b"")).digest()
            told.append((pending.step, value))
        self._pending.clear()
        return told

    def totals(self) -> tuple[float, bytes]:
        """Return the mean loss of the epoch's steps so far and the chained digest of their samples."""
        return math.fsum(self._losses) / len(self._losses), self._data_digest

    def begin_epoch(self) -> None:
        """Forget the steps noted so far; those not told yet were taken back."""
        self._pending.clear()
        self._buffer.drain()
        self._losses = []
        self._data_digest = _NO_DATA
