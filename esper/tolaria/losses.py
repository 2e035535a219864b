"""Step losses on their way from the device to the log.

On a processor each loss is read at once. On an accelerator reading a loss would wait for the device, so losses are
gathered in a buffer there and read together every so often, in order; nothing else of a step needs the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Steps gathered before the device is asked, on an accelerator.
DRAIN_EVERY = 50


class LossBuffer:
    """Gathers losses in order; ``full`` says when to drain."""

    def __init__(self, device: torch.device, capacity: int | None = None) -> None:
        """Make a buffer.

        Args:
            device: Where the losses are computed.
            capacity: Steps gathered before a drain; when left out one on a processor, where reading costs nothing,
                and ``DRAIN_EVERY`` on an accelerator.
        """
        self._capacity = capacity or (1 if device.type == "cpu" else DRAIN_EVERY)
        self._values = torch.zeros(self._capacity, dtype=torch.float64, device=device)
        self._count = 0

    @property
    def full(self) -> bool:
        """Tell whether the buffer must be drained before the next loss."""
        return self._count >= self._capacity

    def __len__(self) -> int:
        return self._count

    def add(self, loss: Tensor) -> None:
        """Note one loss (0-dim) without waiting for the device."""
        self._values[self._count].copy_(loss.detach())
        self._count += 1

    def drain(self) -> list[float]:
        """Return the gathered losses, oldest first, and empty the buffer; waits for the device once."""
        values: list[float] = self._values[: self._count].tolist()
        self._count = 0
        return values
