"""A small GPT: what the book predicts the bytes of, and trains language with.

Blocks with the normalisation first, six linear layers with biases, fused attention to earlier
tokens, GELU between width and four times the width, learnt positions, no dropout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from minilora.lab.transformer import check_sizes


@dataclass(frozen=True)
class DecoderConfig:
    """The sizes of a `Decoder`. ``context`` is the number of tokens that it has positions for."""

    width: int = 512
    layers: int = 4
    heads: int = 8
    vocab: int = 4096
    context: int = 128

    def __post_init__(self) -> None:
        check_sizes(self, ("width", "layers", "heads", "vocab", "context"))

    @property
    def matrices(self) -> int:
        """Numbers in the matrices that tokens are multiplied with, the P of the FLOPs."""
        return 12 * self.width**2 * self.layers + self.vocab * self.width

    @property
    def parameters(self) -> int:
        """All numbers, those of embedding, positions, biases and normalisations included."""
        vectors = 13 * self.layers + 2 + self.context + self.vocab
        return self.matrices + vectors * self.width


class DecoderBlock(nn.Module):
    """Attention to earlier tokens, then feed-forward: (N, T, width) → the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.o_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.up_proj, self.down_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) → (N, T, width)."""
        inner = self.norm1(x)
        q, k, v = (
            proj(inner).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # each (N, heads, T, width / heads)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(mixed.transpose(1, 2).flatten(2))
        return x + self.down_proj(F.gelu(self.up_proj(self.norm2(x))))


class Decoder(nn.Module):
    """Token numbers in, scores of the next token out: (N, T) → (N, T, vocab)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.positions = nn.Parameter(0.02 * torch.randn(config.context, config.width))
        self.blocks = nn.ModuleList(
            DecoderBlock(config.width, config.heads) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab, bias=False)

    def forward(self, ids: Tensor, checkpointing: bool = False) -> Tensor:
        """(N, T) → (N, T, vocab)."""
        return self.read(self.embed(ids), checkpointing)

    def embed(self, ids: Tensor) -> Tensor:
        """(N, T) → (N, T, width)."""
        x: Tensor = self.embedding(ids) + self.positions[: ids.shape[1]]
        return x

    def read(self, x: Tensor, checkpointing: bool = False) -> Tensor:
        """(N, T, width) → (N, T, vocab). With ``checkpointing`` a block keeps its input only."""
        for block in self.blocks:
            if checkpointing:
                # There is no dropout, so the state of the random numbers need not be kept.
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x)
        scores: Tensor = self.head(self.norm(x))
        return scores
