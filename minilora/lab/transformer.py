"""A small vision transformer, written to be read.

One picture becomes a row of patches, a few identical blocks let the patches look at each other,
and a linear layer reads the answer off. Every matrix that a block multiplies by is an
``nn.Linear`` of its own, with the names that language models use (``q_proj`` … ``down_proj``), so
that an adapter can be put on any of them. Attention is two matrix products and a softmax, with
no fused kernel, so that its weights can be looked at.

Sources: Vaswani et al. (2017), arXiv 1706.03762; Dosovitskiy et al. (2020), arXiv 2010.11929.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: The six linear layers of a block, in the order in which data meets them.
BLOCK_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


def check_sizes(config: Any, names: Sequence[str]) -> None:
    """Refuse a size under 1, and a width that its heads cannot share out."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, but is {getattr(config, name)}")
    if config.width % config.heads:
        raise ValueError(
            f"a width of {config.width} cannot be shared out over {config.heads} heads: "
            "choose a number of heads that divides the width"
        )


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of a :class:`TransformerClassifier`.

    image_size is (height, width) in pixels and patch_size the side of a square patch; width is the
    length of every token, and the feed-forward part is ``ffn_factor`` times as wide.
    """

    image_size: tuple[int, int] = (8, 8)
    patch_size: int = 2
    channels: int = 1
    classes: int = 10
    width: int = 48
    layers: int = 3
    heads: int = 4
    ffn_factor: int = 4

    def __post_init__(self) -> None:
        sizes = ("patch_size", "channels", "classes", "width", "layers", "heads", "ffn_factor")
        check_sizes(self, sizes)
        if any(side < 1 or side % self.patch_size for side in self.image_size):
            raise ValueError(
                f"patches of {self.patch_size} pixels do not tile a picture of {self.image_size}: "
                "choose a patch_size that divides its height and its width"
            )

    @property
    def patches(self) -> int:
        """How many patches a picture has."""
        height, width = self.image_size
        return (height // self.patch_size) * (width // self.patch_size)


class Attention(nn.Module):
    """Multi-head self-attention: (N, T, width) → (N, T, width).

    With ``first`` given, only so many of the first tokens look at the others, and come out.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """(N, T, width) → (N, T, width), or (N, first, width)."""
        v = self._split(self.v_proj(x))  # (N, heads, T, d)
        mixed = self.weights(x, first) @ v  # (N, heads, T, d)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))  # (N, T, width)

    def weights(self, x: Tensor, first: int | None = None) -> Tensor:
        """How much each token looks at each: (N, T, width) → (N, heads, T, T), rows sum to 1."""
        looking = x[:, :first].contiguous()  # in one piece: a matrix product takes it whole
        q = self._split(self.q_proj(looking))  # (N, heads, T, d)
        k = self._split(self.k_proj(x))  # (N, heads, T, d)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # (N, heads, T, T)
        return scores.softmax(dim=-1)

    def _split(self, x: Tensor) -> Tensor:
        """(N, T, width) → (N, heads, T, width / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between, for each token alone: (N, T, width) → the same."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, hidden)
        self.down_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) → (N, T, width)."""
        return self.down_proj(F.gelu(self.up_proj(x)))


class Block(nn.Module):
    """Attention, then feed-forward, each added to what came in: (N, T, width) → the same."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.ffn_factor * config.width)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """(N, T, width) → (N, T, width); with ``first``, so many of the first tokens alone."""
        x = x[:, :first] + self.attention(self.norm1(x), first)
        return x + self.feed_forward(self.norm2(x))


class TransformerClassifier(nn.Module):
    """A picture in, a score for each class out: (N, C, H, W) → (N, classes).

    The scores are logits: a softmax turns them into probabilities. The first token belongs to no
    patch; it is a learned vector that gathers, block by block, what the head needs to know. The
    head reads that token alone, so the last block computes no other.
    """

    def __init__(self, config: TransformerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TransformerConfig()
        self.patch_embedding = nn.Linear(config.channels * config.patch_size**2, config.width)
        self.class_token = nn.Parameter(0.02 * torch.randn(config.width))
        self.positions = nn.Parameter(0.02 * torch.randn(1 + config.patches, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, classes)."""
        tokens = self.embed(x)  # (N, 1 + patches, width)
        *before, last = self.blocks
        for block in before:
            tokens = block(tokens)
        tokens = last(tokens, first=1)  # (N, 1, width)
        return self.head(self.norm(tokens[:, 0]))  # (N, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Pictures to tokens, the class token first: (N, C, H, W) → (N, 1 + patches, width)."""
        expected = (self.config.channels, *self.config.image_size)
        if x.ndim != 4 or tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"pictures must have shape (N, {', '.join(map(str, expected))}), "
                f"but they have shape {tuple(x.shape)}"
            )
        p = self.config.patch_size
        x = x.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # (N, C, H/p, p, W/p, p)
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (N, patches, C·p·p)
        tokens = self.patch_embedding(x)  # (N, patches, width)
        first = self.class_token.expand(tokens.shape[0], 1, -1)  # (N, 1, width)
        return torch.cat([first, tokens], dim=1) + self.positions

    @torch.no_grad()
    def attention_maps(self, x: Tensor) -> Tensor:
        """What every token looks at: (N, C, H, W) → (layers, N, heads, T, T), T = 1 + patches.

        ``maps[..., 0, 1:]`` is where the class token looks: one number for each patch, row by row
        of the picture.
        """
        tokens, maps = self.embed(x), []
        for block in self.blocks:
            assert isinstance(block, Block)
            maps.append(block.attention.weights(block.norm1(tokens)))
            tokens = block(tokens)
        return torch.stack(maps)
