"""A narrow convolutional host for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class ImageHost(nn.Module):
    """3x3 convolutions with GELU, a mean over the positions, and a linear layer.

    GELU and not ReLU: in a narrow layer a ReLU that dies takes a good part of it along, and accuracy then depends on
    the initial weights more than on anything else.

    Args:
        channels: Output channels of the convolutions; each after the first halves height and width.
        classes: Number of logits.
    """

    def __init__(self, channels: Sequence[int] = (8, 8), classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential()
        width = 1
        for number, following in enumerate(channels, 1):
            stride = 1 if number == 1 else 2
            self.body.add_module(f"conv{number}", nn.Conv2d(width, following, 3, stride=stride, padding=1))
            self.body.add_module(f"act{number}", nn.GELU())
            width = following
        self.head = nn.Linear(width, classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:  # noqa: N803 (the suffix names the axes)
        """Return logits ``[N, classes]`` for images ``[N, 1, H, W]``."""
        hidden = self.body(x_NCHW)
        logits: Tensor = self.head(hidden.mean(dim=(2, 3)))
        return logits
