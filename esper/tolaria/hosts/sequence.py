"""A narrow convolutional host for one-dimensional signals."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

#: Length of the signals the head is built for, and what three halvings leave of it.
LENGTH = 40
_LEFT = 5


class SequenceHost(nn.Module):
    """Four one-dimensional convolutions with ReLU and a linear layer over all channels and positions.

    Args:
        channels: Output channels of the four convolutions; the first three halve the length.
        classes: Number of logits.
    """

    #: Paths of the convolutions, from input to output.
    CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4")

    def __init__(self, channels: Sequence[int] = (8, 8, 8, 8), classes: int = 10) -> None:
        super().__init__()
        first, second, third, fourth = channels
        self.conv1 = nn.Conv1d(1, first, 5, stride=2, padding=2)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv1d(first, second, 3, stride=2, padding=1)
        self.act2 = nn.ReLU()
        self.conv3 = nn.Conv1d(second, third, 3, stride=2, padding=1)
        self.act3 = nn.ReLU()
        self.conv4 = nn.Conv1d(third, fourth, 3, padding=1)
        self.act4 = nn.ReLU()
        self.head = nn.Linear(fourth * _LEFT, classes)

    def forward(self, x_NCL: Tensor) -> Tensor:  # noqa: N803 (the suffix names the axes)
        """Return logits ``[N, classes]`` for signals ``[N, 1, 40]``."""
        hidden = self.act1(self.conv1(x_NCL))
        hidden = self.act2(self.conv2(hidden))
        hidden = self.act3(self.conv3(hidden))
        hidden = self.act4(self.conv4(hidden))
        logits: Tensor = self.head(hidden.flatten(1))
        return logits
