"""A small causal transformer for bytes."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

#: Positions the host is built for, and the values a byte has.
LENGTH = 64
BYTES = 256

# Axes: N samples, T positions, D the width of the stream, H heads, K the width of a head, V byte values.


class Attention(nn.Module):
    """Causal self-attention: one linear layer for queries, keys and values, one for what the heads found.

    Args:
        width: Width of the stream.
        heads: Number of heads; divides the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_NTD: Tensor) -> Tensor:  # noqa: N803 (the suffix names the axes)
        """Return what each position takes from itself and earlier ones, ``[N, T, D]``."""
        samples, length, width = x_NTD.shape
        heads = self.qkv(x_NTD).view(samples, length, 3, self.heads, width // self.heads)
        q_NHTK, k_NHTK, v_NHTK = heads.permute(2, 0, 3, 1, 4).unbind(0)  # noqa: N806
        found = F.scaled_dot_product_attention(q_NHTK, k_NHTK, v_NHTK, is_causal=True)
        mixed: Tensor = self.out(found.transpose(1, 2).reshape(samples, length, width))
        return mixed


class Block(nn.Module):
    """Attention and a two-layer network, each behind a norm and added to the stream.

    Args:
        width: Width of the stream.
        heads: Heads of the attention.
        hidden: Units of the two-layer network.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("up", nn.Linear(width, hidden))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("down", nn.Linear(hidden, width))

    def forward(self, x_NTD: Tensor) -> Tensor:  # noqa: N803
        """Return the stream behind the block, ``[N, T, D]``."""
        x_NTD = x_NTD + self.attention(self.norm1(x_NTD))  # noqa: N806
        stream: Tensor = x_NTD + self.mlp(self.norm2(x_NTD))
        return stream


class TextHost(nn.Module):
    """A transformer with norms before its parts, learned positions and no dropout.

    Args:
        width: Width of the stream.
        layers: Number of blocks.
        heads: Heads of each attention.
        hidden: Units of each block's two-layer network.
        length: Most positions it can be given.
    """

    def __init__(
        self, width: int = 64, layers: int = 2, heads: int = 4, hidden: int = 64, length: int = LENGTH
    ) -> None:
        super().__init__()
        self.bytes = nn.Embedding(BYTES, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, BYTES)
        for table in (self.bytes, self.places):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, x_NT: Tensor) -> Tensor:  # noqa: N803
        """Return logits of the byte that follows each position, ``[N, T, 256]``, for bytes int64 ``[N, T]``."""
        stream = self.bytes(x_NT) + self.places.weight[: x_NT.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(stream)))
        return logits
