"""How the factors of an adapter turn towards the first full gradient, under gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import minilora


@dataclass
class Turning:
    """What was seen after ``steps`` of gradient descent, the mean over all adapted layers.

    Attributes:
        A: Share of the sum of squares of A that lies in the gradient's leading right directions,
            as many as the rank. ``B``: likewise in its leading left directions.
        learnt: Like ``A``, of what A has changed by since the start. ``grown``: the norm of that
            change beside the norm of the start.
        loss: The training loss.
    """

    steps: list[int] = field(default_factory=list)
    A: list[float] = field(default_factory=list)
    B: list[float] = field(default_factory=list)
    learnt: list[float] = field(default_factory=list)
    grown: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)


def share_inside(M: Tensor, directions: Tensor) -> float:
    """Share of the sum of squares of M (n, k) in the span of orthonormal columns (n, r)."""
    return float((directions.T @ M).square().sum() / M.square().sum())


def first_step(G: Tensor, A: Tensor) -> Tensor:
    """The direction of the first change of the weight, −G Aᵀ A, with B at zero: (out, in)."""
    return -G @ A.T @ A


def cosine(X: Tensor, Y: Tensor) -> float:
    """That of two matrices, as if they were vectors."""
    return float((X * Y).sum() / (X.norm() * Y.norm()))


def turning(
    model: nn.Module,
    gradients: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    *,
    lr: float,
    steps: int,
    every: int = 1,
) -> Turning:
    """Train an adapter in place by plain gradient descent on all examples, and look at it.

    ``gradients`` are those of the plain model's weights, {path: (out, in)}. It is looked at after
    the second step, from which on neither B nor what A has learnt is zero, and after each ``every``
    steps.
    """
    layers = minilora.lora_layers(model)
    starts = {path: layer.A.detach().clone() for path, layer in layers.items()}
    sides = {path: torch.linalg.svd(gradients[path], full_matrices=False) for path in layers}
    trained = [p for p in model.parameters() if p.requires_grad]
    seen = Turning()
    for step in range(1, steps + 1):
        loss = F.cross_entropy(model(x), y)
        found = torch.autograd.grad(loss, trained)
        with torch.no_grad():
            for p, grad in zip(trained, found, strict=True):
                p.sub_(grad, alpha=lr)
        if step == 2 or step % every == 0:
            shares = []
            for path, layer in layers.items():
                U, _, Vh = sides[path]
                A, B = layer.A.detach(), layer.B.detach()
                r = layer.r
                change, right = A - starts[path], Vh[:r].T
                share = share_inside(A.T, right), share_inside(B, U[:, :r])
                grown = float(change.norm() / starts[path].norm())
                shares.append((*share, share_inside(change.T, right), grown))
            seen.steps.append(step)
            means = map(float, np.mean(shares, axis=0))
            for what, mean in zip((seen.A, seen.B, seen.learnt, seen.grown), means, strict=True):
                what.append(mean)
            seen.loss.append(loss.item())
    return seen
