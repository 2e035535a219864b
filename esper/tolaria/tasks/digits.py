"""Task `digits`: the 1,797 scanned 8x8 digits that come with scikit-learn, and an eight-channel host."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esper.errors import DependencyUnavailable
from esper.tolaria.determinism import seeded
from esper.tolaria.hosts.image import ImageHost
from esper.tolaria.task import Classification, Split, TaskData, TaskDefaults

#: Share of each class for training and for validation; the rest is for the test.
TRAIN_FRAC, VALIDATION_FRAC = 0.55, 0.20


class Digits(Classification):
    """Ten classes of grey 8x8 images, split three ways with every class in the same shares."""

    name = "digits"
    defaults = TaskDefaults(steps=2000, batch_size=64, learning_rate=1e-2, steps_per_epoch=50)

    def data(self, seed: int) -> TaskData:
        """Return the splits that a data seed gives, scaled by mean and deviation of the training images.

        Raises:
            DependencyUnavailable: scikit-learn is not installed.
        """
        images, classes = _load()
        train, validation, test = _stratified(classes, seed)
        mean, deviation = images[train].mean(), images[train].std()
        scaled = (images - mean) / deviation
        return TaskData(
            Split(scaled[train], classes[train]),
            Split(scaled[validation], classes[validation]),
            Split(scaled[test], classes[test]),
        )

    def host(self, seed: int) -> nn.Module:
        """Return a new `ImageHost` of two layers with eight channels."""
        with seeded(seed):
            return ImageHost()


def _load() -> tuple[Tensor, Tensor]:
    """Return images, float32 ``[1797, 1, 8, 8]`` from 0 to 16, and classes, int64 ``[1797]``."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise DependencyUnavailable(
            "task digits reads its images from scikit-learn, which is not installed",
            hint="pip install 'esper[train]'",
        ) from error
    table = load_digits()
    images = torch.tensor(table.images, dtype=torch.float32).unsqueeze(1)
    return images, torch.tensor(table.target, dtype=torch.int64)


def _stratified(classes: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sample numbers of the three splits, each ascending, every class in the same shares."""
    generator = torch.Generator().manual_seed(seed)
    parts: tuple[list[Tensor], ...] = ([], [], [])
    for number in range(int(classes.max()) + 1):
        members = (classes == number).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=generator)]
        first = round(TRAIN_FRAC * len(members))
        second = round((TRAIN_FRAC + VALIDATION_FRAC) * len(members))
        for part, chosen in zip(parts, members.tensor_split((first, second)), strict=True):
            part.append(chosen)
    train, validation, test = (torch.cat(part).sort().values for part in parts)
    return train, validation, test
