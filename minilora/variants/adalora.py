"""AdaLoRA: the rank goes to the layers where it matters.

ΔW = scale · P Λ Q with a diagonal Λ [1]: the form of an SVD, whose r triplets (a column
of P, an entry of Λ, a row of Q) can be dropped one by one. A penalty keeps P and Q near orthogonal.
All layers start with more triplets than they are to keep. In training each triplet gets a score,
and the worst ones, over all layers, have their entry of Λ set to zero. The optimizer may move it
away from zero again, so that a triplet can come back until the last allocation::

    config = LoRAConfig(r=12, alpha=12, targets="all-linear")
    add_adalora(model, config)
    allocator = RankAllocator(model, final_rank=8, total_steps=1000, warmup=100, final_steps=300)
    for step in range(1000):
        loss = loss_of(model) + 0.1 * orthogonal_penalty(model)
        loss.backward()
        optimizer.step()
        allocator.update_and_allocate(step)
        optimizer.zero_grad()

Where the paper and its authors' program differ, the program is followed, as in PEFT: the penalty
is the mean over all P and Q of ‖PᵀP − I‖, where the paper has a sum of squares, because the
weights in use for it (0.1 there, 0.5 in PEFT) go with this form; and scores take the parameters
after the optimizer's step, where the paper takes them before. One thing differs from both: they
multiply by alpha / (r + 1e-5), and we by alpha / r, as LoRA does.

Source: [1] Zhang et al. 2023, arXiv 2303.10512.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilora.adapt import attach, make_copy
from minilora.config import LoRAConfig
from minilora.initializers import initialize
from minilora.layers import LoRALayer, Shape, is_hf_conv1d
from minilora.state import Model, adaptation, lora_layers
from minilora.variants.linear_targets import linear_shapes, plan_linear


class AdaLoRALayer(LoRALayer):
    """A linear layer with the update scale · P Λ Q.

    Shapes: (…, in) → (…, out). P is ``B`` (out, r), Q is ``A`` (r, in), and the diagonal of Λ is
    ``Lambda`` (r,); all three train.
    """

    def __init__(
        self, base: nn.Module, r: int, alpha: float, scaling: float, dropout: float
    ) -> None:
        super().__init__(base, r, alpha, scaling, dropout)
        self.out_axis = 1 if is_hf_conv1d(base) else 0
        self.Lambda = nn.Parameter(self.A.new_empty(r))

    @staticmethod
    def shapes(base: Any, r: int) -> tuple[Shape, Shape]:
        """Q is (r, in), P is (out, r)."""
        return linear_shapes(base, r)

    def reset(self, gaussian: bool) -> None:
        nn.init.normal_(self.A, std=0.02)
        nn.init.normal_(self.B, std=0.02)
        nn.init.zeros_(self.Lambda)

    def low_rank(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return F.linear(F.linear(x, A * self.Lambda.to(A.dtype)[:, None]), B)

    def trained(self) -> list[nn.Parameter]:
        """Q, Λ and P."""
        return [self.A, self.Lambda, self.B]

    def factors(self) -> tuple[Tensor, Tensor]:
        """Λ Q and P; the rows of dropped triplets are zero."""
        return self.A * self.Lambda[:, None], self.B

    def product(self) -> Tensor:
        """scale · P Λ Q, in the shape of ``base.weight``."""
        A, B = self.factors()
        return (B @ A).transpose(0, self.out_axis) * self.scale


def add_adalora(model: Model, config: LoRAConfig) -> Model:
    """Freeze ``model`` and give every targeted linear layer an update P Λ Q.

    ``lora_parameters``, ``disabled``, ``merge``, ``remove_lora`` and ``summary`` work as with
    LoRA; ``save`` writes the plain LoRA of the same update, at the rank it began with.

    Args:
        model: Any module; changed in place.
        config: ``r`` is the rank at the start, which the paper takes half as large again as the
            rank to be reached. Linear layers only; ``init`` and ``use_dora`` are not used.

    Returns:
        The same object. Λ starts at zero, so that nothing changes at first.

    Raises:
        ValueError: What ``add_lora`` refuses, a target that is not linear, or a setting that
            AdaLoRA does not use. The model is unchanged.
    """
    config, found = plan_linear(model, config, "AdaLoRA", ("init", "use_dora"))
    layers: dict[str, LoRALayer] = {}
    for path in found.targets:
        r, alpha, scale = config.rank_for(path), config.alpha_for(path), config.scale_for(path)
        layers[path] = AdaLoRALayer(found.modules[path], r, alpha, scale, config.dropout)
        initialize(layers[path], "default")
    copies = {path: make_copy(found.modules[path]) for path in found.copies}
    attach(model, config, found, layers, copies)
    return model


def adalora_layers(model: nn.Module) -> dict[str, AdaLoRALayer]:
    """{path: layer}.

    Raises:
        ValueError: The model has none.
    """
    adaptation(model)
    found = {k: v for k, v in lora_layers(model).items() if isinstance(v, AdaLoRALayer)}
    if not found:
        raise ValueError("the model's adapter is not AdaLoRA; add it with add_adalora")
    return found


def orthogonal_penalty(model: nn.Module) -> Tensor:
    """The mean of ‖PᵀP − I‖ and ‖QQᵀ − I‖ over the layers, in Frobenius norm: a scalar.

    To be added to the loss, times a weight such as 0.1. Source: [1], see above.
    """
    norms: list[Tensor] = []
    for layer in adalora_layers(model).values():
        eye = torch.eye(layer.r, dtype=layer.A.dtype, device=layer.A.device)
        norms.append(torch.linalg.norm(layer.B.T @ layer.B - eye))
        norms.append(torch.linalg.norm(layer.A @ layer.A.T - eye))
    return torch.stack([norm.to(norms[0].device) for norm in norms]).mean()


class RankAllocator:
    """Scores the triplets of all layers and keeps as many of the best as the budget allows.

    Args:
        model: A model with AdaLoRA.
        final_rank: Triplets for each layer at the end, on average.
        total_steps: Steps of the whole training.
        warmup: Steps at the start without dropping anything.
        final_steps: Steps at the end with the choice settled; at least 1.
        interval: Steps from one allocation to the next.
        beta1, beta2: Smoothing of the sensitivity and of its uncertainty, in (0, 1).

    Attributes:
        kept: {path: booleans (r,)}, True for the triplets of the last allocation.

    Raises:
        ValueError: The settings leave no steps between ``warmup`` and ``final_steps``, or
            ``final_rank`` is larger than the ranks at the start.
    """

    def __init__(
        self,
        model: nn.Module,
        final_rank: int,
        total_steps: int,
        warmup: int = 0,
        final_steps: int = 1,
        interval: int = 1,
        beta1: float = 0.85,
        beta2: float = 0.85,
    ) -> None:
        self.layers = adalora_layers(model)
        self.initial = sum(layer.r for layer in self.layers.values())
        self.final = final_rank * len(self.layers)
        self.warmup, self.settled = warmup, total_steps - final_steps
        self.interval, self.beta1, self.beta2 = interval, beta1, beta2
        if final_rank < 1 or self.final > self.initial:
            raise ValueError(
                f"final_rank must be from 1 to the rank at the start, on average "
                f"{self.initial / len(self.layers):g}, but is {final_rank}"
            )
        if not 0 <= warmup < self.settled < total_steps:
            raise ValueError(
                f"warmup={warmup} and final_steps={final_steps} of total_steps={total_steps} "
                "leave no steps to drop triplets in, or none after it"
            )
        if interval < 1 or not (0 < beta1 < 1 and 0 < beta2 < 1):
            raise ValueError(
                "interval must be at least 1, and beta1 and beta2 between 0 and 1, but they are "
                f"{interval}, {beta1} and {beta2}"
            )
        trained = [p for layer in self.layers.values() for p in layer.trained()]
        # Both are averages over steps, with an entry for every entry of the parameter.
        self.sensitivity = {p: torch.zeros_like(p, requires_grad=False) for p in trained}
        self.uncertainty = {p: torch.zeros_like(p, requires_grad=False) for p in trained}
        self.kept: dict[str, Tensor] = {}

    def update_and_allocate(self, step: int) -> int:
        """Call it after ``optimizer.step()`` and before ``zero_grad()``, at every step.

        Args:
            step: The number of the step, from 0.

        Returns:
            The budget: how many triplets may be kept in all.
        """
        budget = self.budget(step)
        if step < self.settled:
            self._observe()
            if step % self.interval:
                return budget
        # Without new observations the last choice is made again and again, and so is settled.
        self.kept = self._best(budget)
        with torch.no_grad():
            for path, layer in self.layers.items():
                layer.Lambda.masked_fill_(~self.kept[path], 0)
        return budget

    def budget(self, step: int) -> int:
        """How many triplets may be kept at a step: all, then fewer along a cubic, then the final
        number [1]."""
        if step <= self.warmup:
            return self.initial
        if step >= self.settled:
            return self.final
        left = 1 - (step - self.warmup) / (self.settled - self.warmup)
        return int((self.initial - self.final) * left**3 + self.final)

    def scores(self) -> dict[str, Tensor]:
        """{path: (r,)}: the importance of every triplet [1].

        That of its entry of Λ, and the mean over its column of P and over its row of Q.
        """

        def entries(p: nn.Parameter) -> Tensor:
            return self.sensitivity[p] * self.uncertainty[p]

        return {
            path: entries(layer.Lambda) + (entries(layer.A).mean(1) + entries(layer.B).mean(0))
            for path, layer in self.layers.items()
        }

    def ranks(self) -> dict[str, int]:
        """{path: number of triplets whose entry of Λ is not zero}: all zero before training."""
        return {path: int(layer.Lambda.count_nonzero()) for path, layer in self.layers.items()}

    @torch.no_grad()
    def _observe(self) -> None:
        """|w · ∂L/∂w|, its average, and the average distance from that."""
        gradients = {p: p.grad for p in self.sensitivity if p.grad is not None}
        if len(gradients) < len(self.sensitivity):
            raise ValueError(
                "a parameter of the adapter has no gradient; call update_and_allocate after "
                "backward and before zero_grad"
            )
        if not all(gradient.isfinite().all() for gradient in gradients.values()):
            return  # a step that a GradScaler leaves out is no observation
        for p, average in self.sensitivity.items():
            now = (p * gradients[p]).abs()
            average.copy_(self.beta1 * average + (1 - self.beta1) * now)
            unsure = self.uncertainty[p]
            unsure.copy_(self.beta2 * unsure + (1 - self.beta2) * (now - average).abs())

    def _best(self, budget: int) -> dict[str, Tensor]:
        scores = self.scores()
        device = next(iter(scores.values())).device
        ranked = torch.cat([s.to(device) for s in scores.values()]).argsort(descending=True)
        keep = torch.zeros(self.initial, dtype=torch.bool, device=device)
        keep[ranked[:budget]] = True
        sizes = [len(s) for s in scores.values()]
        return {
            path: part.to(s.device)
            for (path, s), part in zip(scores.items(), keep.split(sizes), strict=True)
        }
