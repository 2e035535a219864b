"""Task `mnist1d`: digits drawn as one-dimensional signals, generated afresh for each data seed."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import nn

from esper.errors import DependencyUnavailable
from esper.tolaria.determinism import rng_kept, seeded
from esper.tolaria.hosts.sequence import SequenceHost
from esper.tolaria.task import Classification, Split, TaskData, TaskDefaults

TRAIN, VALIDATION, TEST = 4_000, 2_000, 10_000


class Mnist1d(Classification):
    """Ten classes of signals of length 40; the large fresh test set keeps its own noise below half a point."""

    name = "mnist1d"
    defaults = TaskDefaults(steps=4000, batch_size=100, learning_rate=1e-2, steps_per_epoch=100)

    def data(self, seed: int) -> TaskData:
        """Return the signals that a data seed generates, scaled by mean and deviation of the training signals.

        Generating takes some seconds. The last four seeds are kept in memory for this process and nowhere else;
        do not write into the tensors.

        Raises:
            DependencyUnavailable: The package mnist1d is not installed.
        """
        return _generated(seed)

    def host(self, seed: int) -> nn.Module:
        """Return a new `SequenceHost` with eight channels a layer."""
        with seeded(seed):
            return SequenceHost()


@lru_cache(maxsize=4)
def _generated(seed: int) -> TaskData:
    # The package imports its plotting library and seeds the global generators; a run's own streams go on undisturbed.
    with rng_kept():
        try:
            from mnist1d.data import get_dataset_args, make_dataset
        except ModuleNotFoundError as error:
            raise DependencyUnavailable(
                f"task mnist1d needs the module {error.name!r}, which is not installed",
                hint="pip install 'esper[train]'",
            ) from error
        settings = get_dataset_args()
        settings.num_samples = TRAIN + VALIDATION + TEST
        settings.seed = seed % 2**32
        made = make_dataset(settings)
    signals = torch.from_numpy(np.concatenate((made["x"], made["x_test"]))).unsqueeze(1)
    classes = torch.from_numpy(np.concatenate((made["y"], made["y_test"]))).to(torch.int64)
    # The generator scales by all samples together. Scaling again by the training signals alone takes that back, since
    # both are linear, so nothing of the test signals is in the training data.
    mean, deviation = signals[:TRAIN].mean(), signals[:TRAIN].std()
    scaled = ((signals - mean) / deviation).to(torch.float32)
    cuts = (TRAIN, TRAIN + VALIDATION)
    splits = zip(scaled.tensor_split(cuts), classes.tensor_split(cuts), strict=True)
    train, validation, test = (Split(inputs.clone(), targets.clone()) for inputs, targets in splits)
    return TaskData(train, validation, test)
