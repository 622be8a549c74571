"""VeRA: all layers share one random pair A, B, and each trains two vectors.

y = W₀x + Λ_b B Λ_d A x [1], where Λ_b and Λ_d are the diagonal matrices of the vectors
b (out,) and d (r,). A and B are drawn once, for the largest layer, and never trained; a smaller
layer uses the first columns of A and rows of B. b starts at zero, so that nothing changes at
first. A layer trains out + r numbers, where LoRA trains r · (in + out).

PEFT draws the same A and B from the same seed.

Source: [1] Kopiczko et al. 2023, arXiv 2310.11454.
"""

from __future__ import annotations

import math
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


def add_vera(model: Model, config: LoRAConfig, d_initial: float = 0.1, seed: int = 0) -> Model:
    """Freeze ``model`` and give every targeted linear layer the vectors of VeRA.

    ``lora_parameters``, ``disabled``, ``merge``, ``remove_lora`` and ``summary`` work as with
    LoRA. ``save`` writes the plain LoRA of the same update, which is much larger than the vectors.

    Args:
        model: Any module; changed in place.
        config: Its ``r``, ``targets``, ``exclude``, ``dropout``, ``bias`` and ``modules_to_save``
            are used. VeRA has no scaling factor: ``alpha`` is ignored. As A and B are frozen, r
            costs little here, and the paper takes ranks of some hundreds.
        d_initial: Every entry of d at the start; 0.1 as in the paper.
        seed: Of the generator that draws A and B.

    Returns:
        The same object.

    Raises:
        ValueError: What ``add_lora`` refuses, a target that is not linear, a setting that VeRA
            does not use, or ``d_initial`` of 0. The model is unchanged.
    """
    if not math.isfinite(d_initial) or d_initial == 0:
        raise ValueError(
            f"d_initial must be finite and not 0, but is {d_initial!r}; b starts at 0, and with "
            "both at 0 neither has a gradient"
        )
    config, found = plan_linear(model, config, "VeRA", UNUSED)
    modules, targets = found.modules, found.targets
    bases: list[Any] = [modules[path] for path in targets]
    devices = {base.weight.device for base in bases}
    if len(devices) > 1:
        raise ValueError(
            f"the adapted layers are on {len(devices)} devices, and VeRA's A and B can be on one; "
            "add VeRA before the model is spread"
        )
    shapes = [linear_shapes(base, config.r) for base in bases]
    shared = SharedPair(
        d_out=max(b_shape[0] for _, b_shape in shapes),
        d_in=max(a_shape[1] for a_shape, _ in shapes),
        r=config.r,
        seed=seed,
    )
    double = any(base.weight.dtype == torch.float64 for base in bases)
    shared.to(devices.pop(), torch.float64 if double else torch.float32)
    layers: dict[str, LoRALayer] = {
        path: VeRALayer(modules[path], config.r, config.dropout, shared, d_initial)
        for path in targets
    }
    copies = {path: make_copy(modules[path]) for path in found.copies}
    # The plain LoRA that is saved has a scale of 1.
    attach(model, replace(config, alpha=config.r), found, layers, copies)
    return model


class SharedPair(nn.Module):
    """The frozen A (r, in) and B (out, r) of a whole model; every VeRALayer holds the same one."""

    def __init__(self, d_out: int, d_in: int, r: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same on any machine

        def kaiming_uniform(rows: int, columns: int) -> nn.Parameter:
            bound = math.sqrt(6 / columns)
            drawn = torch.empty(rows, columns, dtype=torch.float32)
            drawn.uniform_(-bound, bound, generator=generator)
            return nn.Parameter(drawn, requires_grad=False)

        self.A = kaiming_uniform(r, d_in)
        self.B = kaiming_uniform(d_out, r)


class VeRALayer(LoRALayer):
    """A linear layer with VeRA's update: y = W₀x + bias + b ∘ B (d ∘ A x).

    Shapes: (…, in) → (…, out); A (r, in) and B (out, r) are views of the shared pair, frozen;
    d (r,) and b (out,) train.
    """

    def __init__(
        self, base: nn.Module, r: int, dropout: float, shared: SharedPair, d_initial: float
    ) -> None:
        super().__init__(base, r, alpha=r, scaling=1.0, dropout=dropout)
        self.out_axis = 1 if is_hf_conv1d(base) else 0
        like = self.A
        del self.A, self.B  # those of its own: the properties below take their place
        self.shared = shared
        self.d = nn.Parameter(like.new_full((r,), d_initial))
        self.b = nn.Parameter(like.new_zeros(len(self.B)))

    @property
    def A(self) -> Tensor:  # type: ignore[override]
        """(r, in), sliced at each use, so that moving the model keeps one pair."""
        return self.shared.A[:, : self.shapes(self.base, self.r)[0][1]]

    @property
    def B(self) -> Tensor:  # type: ignore[override]
        """(out, r)."""
        return self.shared.B[: self.shapes(self.base, self.r)[1][0]]

    @staticmethod
    def shapes(base: Any, r: int) -> tuple[Shape, Shape]:
        """A is (r, in), B is (out, r)."""
        return linear_shapes(base, r)

    def low_rank(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        narrow = self.d.to(A.dtype) * F.linear(x, A)  # (…, r)
        return self.b.to(A.dtype) * F.linear(narrow, B)

    def trained(self) -> list[nn.Parameter]:
        """The two vectors."""
        return [self.d, self.b]

    def factors(self) -> tuple[Tensor, Tensor]:
        """Λ_d A and Λ_b B."""
        return self.d[:, None] * self.A, self.b[:, None] * self.B

    def product(self) -> Tensor:
        """Λ_b B Λ_d A, in the shape of ``base.weight``."""
        A, B = self.factors()
        return (B @ A).transpose(0, self.out_axis) * self.scale
