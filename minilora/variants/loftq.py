"""LoftQ: an adapter on a rounded base that begins where it makes up for the rounding.

The usual start has B = 0, so that training begins at the rounded weight Q and not at the weight W
that was pretrained. LoftQ [1] looks for a Q that can be stored and factors A, B with

    W ≈ Q + scale · B A          W, Q: (out, in)   A: (r, in)   B: (out, r)

by taking turns: Q is W less the product so far, rounded, and scale · BA is the best rank-r
approximation of what then is missing, W − Q, from its singular value decomposition. With one step
Q is W rounded, as without LoftQ, and the start alone differs.

    config = LoRAConfig(r=16, alpha=16, targets=["q_proj", "v_proj"])
    config = loftq.quantize_linears(model, config)      # NF4, and the start that goes with it
    minilora.add_lora(model, config)

The adapter belongs to its Q. With more than one step that is not the Q that W by itself rounds to,
so the quantized model has to be kept beside the adapter. The factor in front of BA is taken into
account here; PEFT 0.21.2 and the authors' program leave it out, and the start that they compute is
right where alpha / r is 1 [2].

Source: [1] Li et al. 2023, arXiv 2310.08659, algorithm 1. [2] ``peft.utils.loftq_utils``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from minilora import quantize
from minilora.config import LoRAConfig
from minilora.layers import LoRALayer
from minilora.targets import find_targets, original_modules, tied_weights

#: A weight (out, in) as it comes back from its stored form, in the same shape.
Rounding = Callable[[Tensor], Tensor]


class LoftQStart:
    """Fills A and B of the layers of one rounded model: what ``LoRAConfig(init=…)`` calls.

    A layer is known by the values of its rounded weight, so that the start fits copies of the model
    and nothing else. ``factors`` are [(Q, left (out, r), right (r, in)), …], where
    W ≈ Q + left · right.
    """

    def __init__(self, factors: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        self.factors = factors
        digest = hashlib.sha256()
        for tensors in factors:
            for tensor in tensors:
                digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
        # A name by its contents, so that a sweep's file can tell one start from another.
        self.__qualname__ = f"LoftQStart.{digest.hexdigest()[:16]}"

    def __repr__(self) -> str:
        return self.__qualname__

    def __call__(self, layer: LoRALayer) -> None:
        """Fill A and B.

        Raises:
            ValueError: The layer's weight is none of those that were rounded, or its rank another.
        """
        weight = layer.base.weight
        fitting = (
            (left, right)
            for Q, left, right in self.factors
            if Q.shape == weight.shape and torch.equal(Q.to(weight), weight)
        )
        left, right = next(fitting, (None, None))
        if left is None or right is None:
            raise ValueError(
                "this start was made for other weights: give add_lora the model that "
                "loftq.quantize_linears or loftq.round_linears has changed, as it left it"
            )
        if left.shape[1] != layer.r:
            raise ValueError(
                f"this start has rank {left.shape[1]} for a layer of rank {layer.r}: call loftq "
                "with the configuration that you give to add_lora"
            )
        root = layer.scale**0.5
        layer.A.copy_(right / root)
        layer.B.copy_(left / root)


def loftq(W: Tensor, r: int, rounded: Rounding, steps: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Q, left and right with W ≈ Q + left · right, by ``steps`` turns of rounding and cutting.

    Args:
        W: (out, in). ``r``: the rank, at most min(out, in).
        rounded: What storing does to a weight, for example
            ``lambda T: round_to_levels(T, NF4_LEVELS)``.
        steps: With 1, Q is ``rounded(W)``. Later steps lower the error less and less, and need not
            lower it at all.

    Returns:
        Q of shape (out, in), left (out, r) and right (r, in), which share the singular values.

    Raises:
        ValueError: ``steps`` is less than 1, or r does not fit.
    """
    Q = rounded(_to_round(W, r, rounded, steps))
    return Q, *_best_factors(W - Q, r)


def _to_round(W: Tensor, r: int, rounded: Rounding, steps: int) -> Tensor:
    """What the last of the steps rounds: W less the product that the steps before have found."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but is {steps}")
    if not 1 <= r <= min(W.shape):
        raise ValueError(
            f"r must be between 1 and {min(W.shape)} for a weight of shape {tuple(W.shape)}, "
            f"but is {r}"
        )
    T = W
    for _ in range(steps - 1):
        left, right = _best_factors(W - rounded(T), r)
        T = W - left @ right
    return T


def _best_factors(E: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """(out, r) and (r, in), whose product is the best approximation of E at that rank."""
    U, S, Vh = torch.linalg.svd(E, full_matrices=False)
    root = S[:r].sqrt()
    return U[:, :r] * root, root[:, None] * Vh[:r]


def quantize_linears(
    model: nn.Module, config: LoRAConfig, block: int = 64, double: bool = True, steps: int = 5
) -> LoRAConfig:
    """Store in NF4 what ``config`` targets, and return it with the start that makes up for it.

    Args:
        model: Without an adapter; changed in place, as by `minilora.quantize.quantize_linears`.
        config: That of the adapter to come. Its ``init`` is replaced.
        block, double: As in `minilora.quantize.quantize_nf4`. ``steps``: as in `loftq`.

    Raises:
        TypeError, ValueError: What `minilora.quantize.quantize_linears` or `loftq` raises. The
            model is unchanged.
    """

    def rounded(T: Tensor) -> Tensor:
        return quantize.dequantize_nf4(quantize.quantize_nf4(T, block, double))

    def store(linears: dict[str, nn.Linear], targets: dict[str, Tensor]) -> None:
        before = {path: linear.weight.data for path, linear in linears.items()}
        try:
            for path, linear in linears.items():
                linear.weight.data = targets[path].to(linear.weight.dtype)
            quantize.quantize_linears(model, config.targets, config.exclude, block, double)
        except BaseException:
            for path, linear in linears.items():
                linear.weight.data = before[path]
            raise

    return _begun(model, config, rounded, steps, store)


def round_linears(
    model: nn.Module, config: LoRAConfig, rounded: Rounding, steps: int = 5
) -> LoRAConfig:
    """As `quantize_linears`, but the weights stay ordinary ones, with rounded values in them.

    It saves no memory. It is there to try formats that have no layer of their own.
    """

    def store(linears: dict[str, nn.Linear], targets: dict[str, Tensor]) -> None:
        for path, linear in linears.items():
            linear.weight.copy_(rounded(targets[path]))

    return _begun(model, config, rounded, steps, store)


@torch.no_grad()
def _begun(
    model: nn.Module,
    config: LoRAConfig,
    rounded: Rounding,
    steps: int,
    store: Callable[[dict[str, nn.Linear], dict[str, Tensor]], None],
) -> LoRAConfig:
    """``store`` puts what is to be rounded last in place of the weights."""
    linears: dict[str, nn.Linear] = {}
    for path in find_targets(model, config):
        layer = model.get_submodule(path)
        if type(layer) is not nn.Linear:
            raise TypeError(
                f"{path!r} is a {type(layer).__name__}, and LoftQ is for an nn.Linear that is not "
                "quantized yet; narrow targets or list it in exclude"
            )
        linears[path] = layer
    for path, others in tied_weights(original_modules(model), linears).items():
        raise ValueError(
            f"{path!r} shares its weight with {', '.join(map(repr, others))}, which would be "
            "rounded too and has no adapter to make up for it; list it in exclude"
        )
    weights = {path: one.weight.detach().float().clone() for path, one in linears.items()}
    targets = {
        path: _to_round(W, config.rank_for(path), rounded, steps) for path, W in weights.items()
    }
    store(linears, targets)
    factors = []
    for path, W in weights.items():
        Q = cast(nn.Linear, model.get_submodule(path)).weight.detach().clone()
        factors.append((Q, *_best_factors(W - Q.float(), config.rank_for(path))))
    return replace(config, init=LoftQStart(factors))
