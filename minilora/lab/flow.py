"""A small image generator, written to be read: a transformer that turns noise into pictures.

It is trained by *flow matching*. Between a picture of pure noise (time 0) and a real picture (time
1) lies a straight line, and the network learns to say, at any point on the way, in which direction
and how fast to go on: the *velocity*, picture − noise. To draw, it begins with noise and follows
its own velocities in small steps (`sample`).

The blocks are those of `minilora.lab.transformer`, with one addition. Time and class are not tokens
of their own: a linear layer, ``modulation``, turns them into shifts, scales and gates for each
block, as in the transformers that large image generators are made of (*adaLN*).

Sources: Lipman et al. (2022), arXiv 2210.02747; Peebles and Xie (2022), arXiv 2212.09748; Ho and
Salimans (2022), arXiv 2207.12598.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minilora.lab.training import (
    Diverged,
    batches,
    flush_denormals,
    learning_rate,
    progress_bar,
)
from minilora.lab.transformer import Attention, FeedForward, check_sizes

#: The linear layers of a block, by what they do.
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("up_proj", "down_proj")
MODULATION = ("modulation",)


@dataclass(frozen=True)
class FlowConfig:
    """The sizes of a `FlowTransformer`: pictures ``side`` wide and high, patches ``patch``.

    A class more than ``classes`` stands for "no class": see `FlowTransformer.null`.
    """

    side: int = 16
    patch: int = 4
    classes: int = 10
    width: int = 96
    layers: int = 4
    heads: int = 4

    def __post_init__(self) -> None:
        check_sizes(self, ("side", "patch", "classes", "width", "layers", "heads"))
        if self.side % self.patch:
            raise ValueError(
                f"patches of {self.patch} do not tile a picture {self.side} wide: choose a patch "
                "that divides the side"
            )
        if self.width % 2:
            raise ValueError(f"width must be even, for pairs of waves, but is {self.width}")


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(N, T, width), (N, width), (N, width) → (N, T, width)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class FlowBlock(nn.Module):
    """A block that is told time and class: (N, T, width), (N, width) → (N, T, width)."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.attention = Attention(config.width, config.heads)
        self.feed_forward = FeedForward(config.width, 4 * config.width)
        self.modulation = nn.Linear(config.width, 6 * config.width)
        nn.init.zeros_(self.modulation.weight)  # at first a block passes on what comes in
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """(N, T, width), (N, width) → (N, T, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(told).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attention(modulate(self.norm(x), shift1, scale1))
        return x + gate2[:, None] * self.feed_forward(modulate(self.norm(x), shift2, scale2))


class FlowTransformer(nn.Module):
    """Pictures on the way, times and classes in, velocities out: (N, 1, H, W) → the same.

    Pictures have ink from −1 (paper) to 1. ``null`` is the number of the class "no class".
    """

    def __init__(self, config: FlowConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FlowConfig()
        self.null = config.classes
        dots, patches = config.patch**2, (config.side // config.patch) ** 2
        self.patch_embedding = nn.Linear(dots, config.width)
        self.positions = nn.Parameter(0.02 * torch.randn(patches, config.width))
        self.time_in = nn.Linear(config.width, config.width)
        self.time_out = nn.Linear(config.width, config.width)
        self.class_embedding = nn.Embedding(config.classes + 1, config.width)
        self.blocks = nn.ModuleList(FlowBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.modulation = nn.Linear(config.width, 2 * config.width)
        self.head = nn.Linear(config.width, dots)
        for layer in (self.modulation, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """(N, 1, H, W), times (N,) from 0 to 1, classes (N,) → velocities (N, 1, H, W)."""
        side = self.config.side
        if x.ndim != 4 or tuple(x.shape[1:]) != (1, side, side):
            raise ValueError(
                f"pictures must have shape (N, 1, {side}, {side}), not {tuple(x.shape)}"
            )
        told = F.silu(self.time(t) + self.class_embedding(y))  # (N, width)
        tokens = self.patch_embedding(self.cut(x)) + self.positions  # (N, T, width)
        for block in self.blocks:
            tokens = block(tokens, told)
        shift, scale = self.modulation(told).chunk(2, dim=1)
        return self.paste(self.head(modulate(self.norm(tokens), shift, scale)))

    def time(self, t: Tensor) -> Tensor:
        """Times as waves of many lengths, then two layers: (N,) → (N, width)."""
        half = self.config.width // 2
        turns = torch.exp(torch.linspace(0, math.log(200), half, device=t.device))  # (half,)
        angle = t[:, None] * turns  # (N, half)
        waves = torch.cat([angle.sin(), angle.cos()], dim=1)  # (N, width)
        return self.time_out(F.silu(self.time_in(waves)))

    def cut(self, x: Tensor) -> Tensor:
        """Pictures to patches, row by row: (N, 1, H, W) → (N, T, patch²)."""
        p = self.config.patch
        x = x.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # (N, 1, H/p, p, W/p, p)
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def paste(self, patches: Tensor) -> Tensor:
        """The way back: (N, T, patch²) → (N, 1, H, W)."""
        p, across = self.config.patch, self.config.side // self.config.patch
        x = patches.unflatten(1, (across, across)).unflatten(3, (p, p))  # (N, H/p, W/p, p, p)
        return x.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)[:, None]


def flow_loss(model: FlowTransformer, x: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The mean squared error of the velocities.

    Pictures x (N, 1, H, W) with ink from 0 to 1, classes (N,), times (N,), noise like x.
    """
    pictures = 2 * x - 1
    at = t[:, None, None, None]
    on_the_way = (1 - at) * noise + at * pictures
    return F.mse_loss(model(on_the_way, t, y), pictures - noise)


@torch.no_grad()
@flush_denormals()
def held_out_loss(model: FlowTransformer, x: Tensor, y: Tensor, seed: int = 0) -> float:
    """The loss on pictures x (N, 1, H, W) that were not trained on, at four times each.

    Times and noise are the same for every model that is asked with the same pictures and seed.
    """
    generator = torch.Generator().manual_seed(seed)
    times = (torch.arange(4) + 0.5) / 4
    losses = []
    for t in times:
        noise = torch.randn(x.shape, generator=generator)
        losses.append(flow_loss(model, x, y, t.expand(len(y)), noise).item())
    return sum(losses) / len(losses)


@flush_denormals()
def fit_flow(
    model: FlowTransformer,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    lr: float,
    parameters: Iterable[nn.Parameter] | None = None,
    batch_size: int = 32,
    drop: float = 0.0,
    weight_decay: float = 0.0,
    seed: int = 0,
    progress: bool | None = None,
) -> list[float]:
    """Train in place with AdamW on pictures x (N, 1, H, W), ink from 0 to 1, and classes y (N,).

    The loss of every step is returned. A share of ``drop`` of the classes, chosen anew at every
    step, is replaced by "no class". ``seed`` settles the order, the times, the noise and what is
    dropped. The schedule is that of `minilora.lab.training.fit`.

    Raises:
        ValueError: Nothing requires a gradient.
        Diverged: The loss is no longer finite.
    """
    candidates = model.parameters() if parameters is None else parameters
    trained = [p for p in candidates if p.requires_grad]
    if not trained:
        raise ValueError("nothing to train: no parameter requires a gradient")
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay, fused=True)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for step, rows in enumerate(
        progress_bar(batches(len(y), batch_size, steps, seed), steps, progress)
    ):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr, "cosine", steps // 10)
        t = torch.rand(len(rows), generator=generator)
        noise = torch.randn(x[rows].shape, generator=generator)
        without = torch.rand(len(rows), generator=generator) < drop
        classes = torch.where(without, model.null, y[rows])
        loss = flow_loss(model, x[rows], classes, t, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise Diverged(
                f"the loss is {losses[-1]} at step {step + 1} of {steps} with a learning rate of "
                f"{lr:g}: try a third of it"
            )
    return losses


@torch.no_grad()
@flush_denormals()
def sample(
    model: FlowTransformer, y: Tensor, *, steps: int = 16, seed: int = 0, guidance: float = 1.0
) -> Tensor:
    """Draw a picture for each class of y (N,): (N, 1, H, W), ink from 0 to 1.

    The seed settles the noise: with the same one, the pictures of two models are relatives. With a
    ``guidance`` w other than 1 the velocity is v(no class) + w · (v(class) − v(no class)).
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but is {steps}")
    side = model.config.side
    x = torch.randn((len(y), 1, side, side), generator=torch.Generator().manual_seed(seed))
    for step in range(steps):
        t = torch.full((len(y),), step / steps)
        velocity = model(x, t, y)
        if guidance != 1:
            without = model(x, t, torch.full_like(y, model.null))
            velocity = without + guidance * (velocity - without)
        x = x + velocity / steps
    return ((x + 1) / 2).clamp(0, 1)
