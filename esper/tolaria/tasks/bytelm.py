"""Task `bytelm`: foretell the next byte of Python's own standard library, and a small transformer for it.

Belongs here: windows of the sources, and their split. Does not belong here: finding the files
(``esper.tolaria.tasks.sources``). Losses are in nats per byte; divided by ln 2 = 0.6931 they are bits per byte.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper.errors import DependencyUnavailable
from esper.tolaria.determinism import seeded
from esper.tolaria.hosts.text import LENGTH, TextHost
from esper.tolaria.task import Split, TaskData, TaskDefaults
from esper.tolaria.tasks.sources import read_sources

#: Windows of each split. Validation is small, since a run goes over it at each epoch and for each seed.
TRAIN, VALIDATION, TEST = 20_000, 512, 2_048
#: Share of the files for training and for validation; the rest is for the test.
TRAIN_FRAC, VALIDATION_FRAC = 0.7, 0.1


class Bytelm:
    """Windows of 64 bytes, split by file, so that no line of a test file was seen in training."""

    name = "bytelm"
    defaults = TaskDefaults(steps=800, batch_size=32, learning_rate=5e-3, steps_per_epoch=40)

    def data(self, seed: int) -> TaskData:
        """Return the splits that a data seed gives: which files go where, and which windows of them are used.

        They depend on the sources of the Python that runs, which the digest covers. The last four seeds are kept in
        memory for this process; do not write into the tensors.

        Raises:
            DependencyUnavailable: This Python has no sources on disk, or too few.
        """
        return _windows(seed)

    def host(self, seed: int) -> nn.Module:
        """Return a new `TextHost` of two layers with a stream of 64 numbers."""
        with seeded(seed):
            return TextHost()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of each window, in nats per byte.

        Args:
            outputs: Logits ``[N, T, 256]``.
            targets: Bytes, int64 ``[N, T]``.
        """
        return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(dim=1)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return where the likeliest byte is the right one, bool ``[N, T]``."""
        return outputs.argmax(dim=2) == targets


@lru_cache(maxsize=4)
def _windows(seed: int) -> TaskData:
    sources = read_sources()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(sources.files), generator=generator)
    cuts = (round(TRAIN_FRAC * len(order)), round((TRAIN_FRAC + VALIDATION_FRAC) * len(order)))
    splits = []
    for files, wanted in zip(order.tensor_split(cuts), (TRAIN, VALIDATION, TEST), strict=True):
        every = torch.cat([_cut(sources.files[index]) for index in sorted(files.tolist())])
        if len(every) < wanted:
            raise DependencyUnavailable(
                f"task bytelm needs {wanted} windows of this Python's sources, {len(every)} are there",
                hint="use a Python that came with the sources of its standard library",
            )
        chosen = torch.randperm(len(every), generator=generator)[:wanted].sort().values
        windows = every[chosen].to(torch.int64)
        splits.append(Split(windows[:, :-1].contiguous(), windows[:, 1:].contiguous()))
    train, validation, test = splits
    return TaskData(train, validation, test, source=sources.digest)


def _cut(data: bytes) -> Tensor:
    """Return a file's windows, uint8 ``[n, LENGTH + 1]``: each begins with the last byte of the one before."""
    if len(data) <= LENGTH:
        return torch.empty(0, LENGTH + 1, dtype=torch.uint8)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).unfold(0, LENGTH + 1, LENGTH)
