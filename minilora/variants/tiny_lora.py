"""TinyLoRA: a whole model is adapted by a handful of numbers.

y = W₀x + U Σ R V ᵀx with R = Σᵢ vᵢ Pᵢ. U, Σ and V are the leading r pieces of W₀ and stay, as in
LoRA-XS [1], which trains R itself, r² numbers a layer. Here R is a sum of fixed random matrices
Pᵢ (r, r), and all adapted layers share the numbers vᵢ that are trained [2], so that there can be
as few as one. They start at zero: at first nothing changes.

Sources: [1] Bałazy et al. 2024, arXiv 2405.17604; [2] Morris et al. 2026, arXiv 2602.04118.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilora.adapt import attach, make_copy
from minilora.config import LoRAConfig
from minilora.layers import LoRALayer, Shape, is_hf_conv1d
from minilora.state import Model
from minilora.variants.linear_targets import linear_shapes, plan_linear

UNUSED = ("scaling", "init", "rank_pattern", "alpha_pattern", "use_dora")


def add_tiny_lora(model: Model, config: LoRAConfig, numbers: int = 13, seed: int = 0) -> Model:
    """Freeze ``model`` and let ``numbers`` trained numbers change every targeted linear layer.

    ``lora_parameters`` gives the one vector of them; ``disabled``, ``merge`` and ``remove_lora``
    work as with LoRA. ``save`` writes the plain LoRA of the same update, which is much larger.
    ``summary`` lists the shared vector with every layer.

    Args:
        model: Any module; changed in place.
        config: Its ``r``, ``targets``, ``exclude``, ``dropout``, ``bias`` and ``modules_to_save``
            are used. There is no scaling factor: ``alpha`` is ignored.
        numbers: How many numbers are trained. More than r² times the number of layers bring no
            further directions.
        seed: Of the generator that draws the random matrices.

    Returns:
        The same object.

    Raises:
        ValueError: What ``add_lora`` refuses, a target that is not linear or has fewer than r
            singular values, a setting that is not used, or no numbers. The model is unchanged.
    """
    if not isinstance(numbers, int) or numbers < 1:
        raise ValueError(f"numbers must be a whole number from 1 on, but is {numbers!r}")
    config, found = plan_linear(model, config, "TinyLoRA", UNUSED)
    bases: dict[str, Any] = {path: found.modules[path] for path in found.targets}
    for path, base in bases.items():
        if config.r > min(base.weight.shape):
            raise ValueError(
                f"r={config.r} is more than the {min(base.weight.shape)} singular values of "
                f"{path!r}: choose a smaller r, or list it in exclude"
            )
        if base.weight.device != next(iter(bases.values())).weight.device:
            raise ValueError(
                "the adapted layers are on several devices, and the shared numbers can be on one; "
                "add TinyLoRA before the model is spread"
            )
    vector = SharedVector(numbers, next(iter(bases.values())).weight)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same on any machine
    layers: dict[str, LoRALayer] = {
        path: TinyLoRALayer(base, config.r, config.dropout, vector, generator)
        for path, base in bases.items()
    }
    copies = {path: make_copy(found.modules[path]) for path in found.copies}
    attach(model, replace(config, alpha=config.r), found, layers, copies)
    return model


class SharedVector(nn.Module):
    """The trained numbers v (numbers,) of a whole model; every TinyLoRALayer holds the same one."""

    def __init__(self, numbers: int, like: Tensor) -> None:
        super().__init__()
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.v = nn.Parameter(torch.zeros(numbers, dtype=dtype, device=like.device))


class TinyLoRALayer(LoRALayer):
    """A linear layer with TinyLoRA's update: (…, in) → (…, out).

    A = Vᵀ (r, in) is frozen; B = U Σ R (out, r) is computed from the shared numbers.
    """

    narrow: Tensor
    wide: Tensor
    P: Tensor

    def __init__(
        self,
        base: nn.Module,
        r: int,
        dropout: float,
        shared: SharedVector,
        generator: torch.Generator,
    ) -> None:
        super().__init__(base, r, alpha=r, scaling=1.0, dropout=dropout)
        self.out_axis = 1 if is_hf_conv1d(base) else 0
        del self.A, self.B  # those of its own: the properties below take their place
        self.shared = shared
        v = shared.v
        weight = self.base.weight.detach().transpose(0, self.out_axis).to(v.dtype)  # (out, in)
        U, S, Vt = torch.linalg.svd(weight, full_matrices=False)
        drawn = torch.randn(len(v), r, r, generator=generator, dtype=torch.float32) / r
        self.register_buffer("narrow", Vt[:r].contiguous())
        self.register_buffer("wide", (U[:, :r] * S[:r]).contiguous())
        self.register_buffer("P", drawn.to(v.device, v.dtype))

    @property
    def A(self) -> Tensor:  # type: ignore[override]
        """The leading right singular vectors of W₀, of shape (r, in)."""
        return self.narrow

    @property
    def B(self) -> Tensor:  # type: ignore[override]
        """U Σ R, of shape (out, r)."""
        return self.wide @ torch.tensordot(self.shared.v, self.P, dims=1)

    @staticmethod
    def shapes(base: Any, r: int) -> tuple[Shape, Shape]:
        """A is (r, in), B is (out, r)."""
        return linear_shapes(base, r)

    def low_rank(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return F.linear(F.linear(x, A), B)

    def trained(self) -> list[nn.Parameter]:
        """The shared numbers."""
        return [self.shared.v]

    def product(self) -> Tensor:
        """U Σ R Vᵀ, in the shape of ``base.weight``."""
        return (self.B @ self.A).transpose(0, self.out_axis) * self.scale
