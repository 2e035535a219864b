"""A narrow host of linear layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from esper.tolaria.hosts.sequence import LENGTH


class DenseHost(nn.Module):
    """Linear layers with ReLU between them; it does not know that neighbouring numbers belong together.

    Args:
        widths: Units of the hidden layers.
        inputs: Numbers of one sample.
        classes: Number of logits.
    """

    def __init__(self, widths: Sequence[int] = (16, 16), inputs: int = LENGTH, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential()
        width = inputs
        for number, following in enumerate(widths, 1):
            self.body.add_module(f"linear{number}", nn.Linear(width, following))
            self.body.add_module(f"act{number}", nn.ReLU())
            width = following
        self.head = nn.Linear(width, classes)

    def forward(self, x_NCL: Tensor) -> Tensor:  # noqa: N803 (the suffix names the axes)
        """Return logits ``[N, classes]`` for samples of any layout."""
        logits: Tensor = self.head(self.body(x_NCL.flatten(1)))
        return logits
