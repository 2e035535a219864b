"""Tolaria: the training loop, checkpoints, governor and rollback. Sole writer of host parameters."""

from __future__ import annotations

from esper.tolaria.api import Run, run
from esper.tolaria.launch import Trained, resume, start

__all__ = ["Run", "Trained", "resume", "run", "start"]
