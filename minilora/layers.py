"""The adapted layers: the original module as ``base``, and a low-rank update beside it.

Shapes, for rank r, are those of PEFT:

    layer        base.weight     A            B          delta()
    Linear       (out, in)       (r, in)      (out, r)   (out, in)  = scale · B A
    Embedding    (vocab, dim)    (r, vocab)   (dim, r)   (vocab, dim) = scale · (B A)ᵀ
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

_textbook_depth = 0


@contextmanager
def textbook() -> Iterator[None]:
    """Compute every adapted layer by the formula of the paper, ``base(x) + scale · B(A(x))``.

    Outside this context a layer takes a faster form of the same sum where it is safe. The two
    differ by rounding: by at most 1e-5 of the largest output. Inside it, outputs and gradients
    equal those of PEFT to the last bit, also for float32 adapters on a half-precision base,
    where the input is then computed with (and kept) in float32. Nests; restores after an error.
    """
    global _textbook_depth
    _textbook_depth += 1
    try:
        yield
    finally:
        _textbook_depth -= 1


class LoRALayer(nn.Module):
    """What the adapted layers share: the base, the factors A and B, and whether they count.

    Attributes:
        base: The original module, untouched and frozen.
        A, B: The trainable factors (shapes above).
        r: Rank. ``alpha``: as configured. ``dropout``: probability, in training only.
        scale: Factor of the update: alpha / r or alpha / sqrt(r), times ``strength``.
        merged: Whether ``base.weight`` holds the update at the moment.
    """

    base: nn.Module
    A: nn.Parameter
    B: nn.Parameter

    def __init__(
        self, base: nn.Module, r: int, alpha: float, scaling: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.base = base
        self.r, self.alpha, self.scaling, self.dropout = r, alpha, scaling, dropout
        self.strength = 1.0
        self.off = 0  # how many `disabled` contexts are open
        self.merged = False
        self._kept: list[Tensor] = []  # W₀ while merged; in a list, so not in state_dict

        weight = self.weight
        # Half precision is too coarse to add up small steps, so its adapters are float32.
        half = weight.dtype in (torch.float16, torch.bfloat16)
        dtype = torch.float32 if half else weight.dtype
        a_shape, b_shape = self.shapes(base, r)
        self.A = nn.Parameter(torch.empty(a_shape, dtype=dtype, device=weight.device))
        self.B = nn.Parameter(torch.empty(b_shape, dtype=dtype, device=weight.device))

    @staticmethod
    def shapes(base: Any, r: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The shapes of A and B for ``base`` at rank r."""
        raise NotImplementedError

    def initialize(self, init: str | Callable[[LoRALayer], None]) -> None:
        """Fill A and B as ``LoRAConfig.init`` says. A callable's result is checked for shape."""
        shapes = self.A.shape, self.B.shape
        with torch.no_grad():
            self._default_init(gaussian=init == "gaussian")
            if callable(init):
                init(self)
        if (self.A.shape, self.B.shape) != shapes:
            raise ValueError(
                f"init changed the shapes of A and B from {tuple(shapes[0])} and "
                f"{tuple(shapes[1])} to {tuple(self.A.shape)} and {tuple(self.B.shape)}; "
                "fill them in place, for example layer.A.normal_()"
            )

    def _default_init(self, gaussian: bool) -> None:
        raise NotImplementedError

    def delta(self) -> Tensor:
        """The update that the adapter adds to ``base.weight``, in the weight's own shape."""
        raise NotImplementedError

    @property
    def scale(self) -> float:
        return self.scaling * self.strength

    def __getattr__(self, name: str) -> Any:
        # Code that reads `layer.weight` or `layer.in_features` must find what the base has.
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = self.__dict__.get("_modules", {}).get("base")
            if base is None or name.startswith("_"):
                raise
            return getattr(base, name)

    def extra_repr(self) -> str:
        state = ", merged" if self.merged else ", disabled" if self.off else ""
        return f"r={self.r}, alpha={self.alpha}, scale={self.scale:g}{state}"


class LoRALinear(LoRALayer):
    """A linear layer with a low-rank update: y = W₀x + b + scale · B A x [1].

    Shapes: (…, in) → (…, out). Source: [1] Hu et al. 2021, arXiv 2106.09685, equation 3.
    """

    base: nn.Linear

    @staticmethod
    def shapes(base: nn.Linear, r: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """A is (r, in), B is (out, r)."""
        return (r, base.in_features), (base.out_features, r)

    def _default_init(self, gaussian: bool) -> None:
        if gaussian:
            nn.init.normal_(self.A, std=1 / self.r)
        else:
            bound = max(1, self.base.in_features) ** -0.5
            nn.init.uniform_(self.A, -bound, bound)
        nn.init.zeros_(self.B)

    def delta(self) -> Tensor:
        """scale · B A, of shape (out, in)."""
        return (self.B @ self.A) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        if self.off or self.merged:
            y: Tensor = self.base(x)
            return y
        return self._fast(x) if self._fast_is_safe(x) else self._textbook(x)

    def _textbook(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        x, A, B = self._same_dtype(x)
        x = F.dropout(x, self.dropout, self.training)
        return (y + F.linear(F.linear(x, A), B) * self.scale).to(y.dtype)

    def _fast(self, x: Tensor) -> Tensor:
        # The base's output is fresh, so the update can be added into it: no second tensor of its
        # size. Scaling the narrow (N, r) product costs less than scaling the wide (N, out) one.
        flat = x.reshape(-1, x.shape[-1])  # (N, in)
        y = F.linear(flat, self.base.weight, self.base.bias)  # (N, out)
        narrow = F.dropout(flat, self.dropout, self.training) @ self.A.T  # (N, r)
        y.addmm_(narrow * self.scale, self.B.T)
        return y.view(*x.shape[:-1], y.shape[-1])

    def _fast_is_safe(self, x: Tensor) -> bool:
        if _textbook_depth or torch.compiler.is_compiling():
            return False
        base = self.base
        return (
            type(base) is nn.Linear
            and type(x) is Tensor
            and not x.is_nested
            and x.dim() > 1
            and x.numel() > 0
            and x.dtype == base.weight.dtype == self.A.dtype
            and not torch._C._is_any_autocast_enabled()
            and not _has_hooks(base)
            and not torch._C._are_functorch_transforms_active()
        )

    def _same_dtype(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Casting the small factors down spares a float32 copy of x in every layer.
        if _textbook_depth:
            return x.to(self.A.dtype), self.A, self.B
        return x, self.A.to(x.dtype), self.B.to(x.dtype)


class LoRAEmbedding(LoRALayer):
    """An embedding with a low-rank update: row i is W₀[i] + scale · B A[:, i].

    Shapes: integers (…) → (…, dim). A starts at zero and B is random, the other way round than
    in a linear layer, so that looking up a token costs one column of A.
    """

    base: nn.Embedding

    @staticmethod
    def shapes(base: nn.Embedding, r: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """A is (r, vocab), B is (dim, r)."""
        return (r, base.num_embeddings), (base.embedding_dim, r)

    def _default_init(self, gaussian: bool) -> None:
        nn.init.zeros_(self.A)
        nn.init.normal_(self.B)

    def delta(self) -> Tensor:
        """scale · (B A)ᵀ, of shape (vocab, dim)."""
        return (self.B @ self.A).T * self.scale

    def forward(self, ids: Tensor) -> Tensor:
        """Integers (…) → (…, dim)."""
        y: Tensor = self.base(ids)
        if self.off or self.merged:
            return y
        by_count = self.base.scale_grad_by_freq
        A = F.embedding(ids, self.A.T, self.base.padding_idx, scale_grad_by_freq=by_count)  # (…, r)
        return (y + (A @ self.B.T) * self.scale).to(y.dtype)


class TrainedCopy(nn.Module):
    """A module of ``modules_to_save``: the original as ``base`` and a copy that is trained.

    Shapes: those of the module. ``off`` counts open ``disabled`` contexts, as in LoRALayer.
    """

    base: nn.Module
    tuned: nn.Module

    def __init__(self, base: nn.Module, tuned: nn.Module) -> None:
        super().__init__()
        self.base, self.tuned = base, tuned
        self.off = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (self.base if self.off else self.tuned)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get("_modules", {})
            if "tuned" not in modules or name.startswith("_"):
                raise
            return getattr(modules["base" if self.off else "tuned"], name)


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__  # replaced on the instance, as offloading does
        or _has_any_global_hook()
    )
