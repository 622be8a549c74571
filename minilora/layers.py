"""The adapted layers: the original module as ``base``, and a low-rank update beside it.

Shapes, for rank r and a kernel of k (× k) weights, are those of PEFT:

    layer        base.weight      A               B             delta()
    Linear       (out, in)        (r, in)         (out, r)      scale · B A
    HFConv1D     (in, out)        (r, in)         (out, r)      scale · (B A)ᵀ
    Embedding    (vocab, dim)     (r, vocab)      (dim, r)      scale · (B A)ᵀ
    Conv         (out, in, k, k)  (r, in, k, k)   (out, r, 1, 1)  scale · B A, over r
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as _modes

from minilora.bypass import read_weight

Shape = tuple[int, ...]


class Reweighting(Protocol):
    """What may take the place of W₀ + scale · B A in a layer: DoRA, in `minilora.dora`."""

    magnitude: nn.Parameter

    def __call__(self, layer: LoRALayer, x: Tensor) -> Tensor: ...

    def weight(self, layer: LoRALayer) -> Tensor: ...


_textbook_depth = 0


@contextmanager
def textbook() -> Iterator[None]:
    """Compute every adapted layer by the formula of the paper, ``base(x) + scale · B(A(x))``.

    Outside this context a layer takes a faster form of the same sum where it is safe. The two
    differ by rounding: in float32 by at most 1e-5 of the largest output. Inside it, outputs and
    gradients equal those of PEFT to the last bit, also for float32 adapters on a half-precision
    base, where the input is then computed with (and kept) in float32. Nests; restores after an
    error.
    """
    global _textbook_depth
    _textbook_depth += 1
    try:
        yield
    finally:
        _textbook_depth -= 1


def is_sharded(tensor: object) -> bool:
    """Whether this process holds only a part of the tensor, as under FSDP: a DTensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """The tensor; one that is sharded is gathered, which every process must join in."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def is_coarse(dtype: torch.dtype) -> bool:
    """Whether small steps would be lost in this type, so that what trains must be float32."""
    return dtype.is_floating_point and dtype.itemsize < 4


def full_precision(weight: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast, which would round a product that is to be written down."""
    return nullcontext() if weight.is_meta else torch.autocast(weight.device.type, enabled=False)


def in_textbook() -> bool:
    """Whether a ``textbook`` context is open."""
    return _textbook_depth > 0


def own_or_of_base(layer: nn.Module, name: str) -> Any:
    """A layer's attribute, for its ``__getattr__``: what it lacks is looked up in its ``base``.

    Code that reads ``layer.weight`` or ``layer.in_features`` must find what the base has.
    """
    try:
        return nn.Module.__getattr__(layer, name)
    except AttributeError:
        base = layer.__dict__.get("_modules", {}).get("base")
        if base is None or name.startswith("_"):
            raise
        return getattr(base, name)


@dataclass
class Aside:
    """Weights that a layer has put aside; a plain object, so that ``state_dict`` leaves them out.

    Attributes:
        original: W₀, where ``base.weight`` began without a part of it (PiSSA, OLoRA, MiLoRA).
        unmerged: What ``base.weight`` held before ``merge``, unless it was not kept.
    """

    original: Tensor | None = None
    unmerged: Tensor | None = None


class LoRALayer(nn.Module):
    """What the adapted layers share: the base, the factors A and B, and whether they count.

    Attributes:
        base: The original module, frozen.
        A, B: The trainable factors (shapes above).
        r: Rank. ``alpha``: as configured. ``dropout``: probability, in training only.
        scale: Factor of the update: alpha / r or alpha / sqrt(r), times ``strength``.
        merged: Whether ``base.weight`` holds the update at the moment.
        start: Copies of A and B as they began, where they began as a part of W₀ (PiSSA, OLoRA).
            ``base.weight`` then holds W₀ without that part.
        aside: The weights that ``disabled``, ``unmerge`` and ``remove_lora`` put back.
        dora: The magnitudes of a weight-decomposed layer, or None.
    """

    out_axis = 0  # which axis of base.weight counts the outputs
    base: Any
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
        self.start: tuple[Tensor, Tensor] | None = None
        self.dora: Reweighting | None = None
        self.aside = Aside()
        self.bypassed: str | None = None  # where the weight was read instead of the layer called

        weight = base.weight
        assert isinstance(weight, Tensor)
        dtype = torch.float32 if is_coarse(weight.dtype) else weight.dtype
        a_shape, b_shape = self.shapes(base, r)
        self.A = nn.Parameter(torch.empty(a_shape, dtype=dtype, device=weight.device))
        self.B = nn.Parameter(torch.empty(b_shape, dtype=dtype, device=weight.device))

    # What a type of layer defines:

    @staticmethod
    def shapes(base: Any, r: int) -> tuple[Shape, Shape]:
        """The shapes of A and B for ``base`` at rank r."""
        raise NotImplementedError

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """What a base with this weight and bias computes from x."""
        raise NotImplementedError

    def low_rank(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """B A x, without the scale."""
        raise NotImplementedError

    # What they share:

    @property
    def scale(self) -> float:
        return self.scaling * self.strength

    def reset(self, gaussian: bool) -> None:
        if gaussian:
            nn.init.normal_(self.A, std=1 / self.r)
        else:
            bound = max(1, self.A[0].numel()) ** -0.5
            nn.init.uniform_(self.A, -bound, bound)
        nn.init.zeros_(self.B)

    def trained(self) -> list[nn.Parameter]:
        """The adapter's parameters: A and B, and with DoRA the magnitudes."""
        return [self.A, self.B] + ([self.dora.magnitude] if self.dora is not None else [])

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the plain LoRA that adds the same update to the original W₀.

        Without the scale: the update is ``scale`` · B A. To save factors of your own, fill
        ``layer.A.data`` and ``layer.B.data`` in their shapes, with B divided by ``layer.scale``
        where B A is to be the whole update, and call ``minilora.save``.
        """
        if self.start is None:
            return self.A, self.B
        A, B = (start.to(self.A.device, self.A.dtype) for start in self.start)
        return torch.cat([whole(self.A), A]), torch.cat([whole(self.B), -B], dim=1)

    def product(self) -> Tensor:
        """scale · B A, in the shape of ``base.weight``.

        Beside it: ``delta()`` is the whole update, with DoRA's magnitudes where there are any, and
        the same as this where there are none; ``new_weight()`` is ``base.weight`` + ``delta()``.
        """
        return self.multiply(self.A, self.B) * self.scale

    @classmethod
    def multiply(cls, A: Tensor, B: Tensor) -> Tensor:
        """B A, in the shape of ``base.weight``."""
        BA = (B.flatten(1) @ A.flatten(1)).view(len(B), *A.shape[1:])
        return BA.transpose(0, cls.out_axis)

    def new_weight(self) -> Tensor:
        """The weight with the update in it, before it is rounded to the weight's own type."""
        if self.dora is not None:
            return self.dora.weight(self)
        update = self.product()
        return self.plain_weight(update.dtype) + update

    def delta(self) -> Tensor:
        """The update that the adapter adds to ``base.weight``, in the weight's own shape."""
        if self.dora is None:
            return self.product()
        new = self.dora.weight(self)
        return new - self.plain_weight(new.dtype)

    def plain_weight(self, dtype: torch.dtype) -> Tensor:
        """``base.weight``, for a sum with numbers of this type: no sum is defined in float8."""
        weight: Tensor = self.base.weight
        return weight.to(dtype) if weight.dtype.itemsize == 1 else weight

    def exchange(self, new: Tensor) -> Tensor:
        """Put ``new`` in the place of ``base.weight`` and return what was there."""
        old = self.base.weight
        if isinstance(new, nn.Parameter):  # a shared weight is exchanged whole
            self.base.weight = new
            return old
        kept = old.data
        # Exchanging the tensor behind a parameter keeps every other hold on the parameter.
        old.data = new.to(old.device, old.dtype)
        return kept

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        if self.off or self.merged:
            y: Tensor = self.base(x)
            return y
        if self.dora is not None:
            return self.dora(self, x)
        if self._is_short(x) or not self._fast_is_safe(x):
            return self._textbook(x)
        return self._fast(x)

    def _textbook(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        x, A, B = self.same_dtype(x)
        return (y + self.low_rank(self.drop(x), A, B) * self.scale).to(y.dtype)

    def _fast(self, x: Tensor) -> Tensor:
        # The base's output is fresh, so the update can be added into it: no second tensor of its
        # size. Scaling the narrow (N, r) product costs less than scaling the wide (N, out) one,
        # and from a contiguous Bᵀ autograd computes B's gradient in the order that is quick.
        _, A, B = self.same_dtype(x)
        flat = x.reshape(-1, x.shape[-1])  # (N, in)
        y = self.apply_weight(flat, self.base.weight, self.base.bias)  # (N, out)
        narrow = self.drop(flat) @ A.T  # (N, r)
        y.addmm_(narrow * self.scale, B.T.contiguous())
        return y.view(*x.shape[:-1], y.shape[-1])

    def _fast_is_safe(self, x: Tensor) -> bool:
        if _textbook_depth or torch.compiler.is_compiling():
            return False
        base = self.base
        return (
            self._base_is_plain()
            and type(x) is Tensor
            and not x.is_nested
            and x.dim() > 1
            and x.numel() > 0
            and x.dtype == base.weight.dtype
            and not torch._C._is_any_autocast_enabled()
            and not _has_hooks(base)
            and not torch._C._are_functorch_transforms_active()
            and not _outputs_are_kept()
        )

    def _base_is_plain(self) -> bool:
        return False

    def drop(self, x: Tensor) -> Tensor:
        """The adapter's input, in training with dropout."""
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def same_dtype(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, A and B in one type, so that they can be multiplied."""
        # Casting the small factors down spares a float32 copy of x in every layer.
        if _textbook_depth or self._is_short(x):
            return x.to(self.A.dtype), self.A, self.B
        return x, self.A.to(x.dtype), self.B.to(x.dtype)

    def _is_short(self, x: Tensor) -> bool:
        """Whether x, not to be kept, is smaller than A: then x is what is cheap to cast."""
        if torch.is_grad_enabled() or x.dtype == self.A.dtype or not x.is_floating_point():
            return False
        return x.numel() <= self.A.numel()

    def __getattr__(self, name: str) -> Any:
        value = own_or_of_base(self, name)
        return read_weight(value, self._note_read) if name == "weight" else value

    def _note_read(self, place: str) -> None:
        self.bypassed = self.bypassed or place

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # A checkpoint of the plain model names what is now `base.weight` by its old name.
        for name in ("weight", "bias"):
            old, new = f"{prefix}{name}", f"{prefix}base.{name}"
            if old in state_dict and new not in state_dict:
                if self.start is not None:
                    rest[-1].append(
                        f"{old} is a weight of the plain model, of which this adapter has taken a "
                        "part; load the base's weights before add_lora"
                    )
                state_dict[new] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        state = ", merged" if self.merged else ", disabled" if self.off else ""
        return f"r={self.r}, alpha={self.alpha}, scale={self.scale:g}{state}"


class LoRALinear(LoRALayer):
    """A linear layer with a low-rank update: y = W₀x + b + scale · B A x [1].

    Shapes: (…, in) → (…, out). Source: [1] Hu et al. 2021, arXiv 2106.09685, equation 3.
    """

    base: nn.Linear

    @staticmethod
    def shapes(base: nn.Linear, r: int) -> tuple[Shape, Shape]:
        """A is (r, in), B is (out, r)."""
        return (r, base.in_features), (base.out_features, r)

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """(…, in) → (…, out): x Wᵀ + b."""
        return F.linear(x, weight, bias)

    def low_rank(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return F.linear(F.linear(x, A), B)

    def _base_is_plain(self) -> bool:
        return type(self.base) is nn.Linear


class LoRAHFConv1D(LoRALayer):
    """A Hugging Face ``Conv1D`` with a low-rank update: y = W₀ᵀx + b + scale · B A x.

    It is a linear layer whose weight is (in, out); GPT-2 is built of them.
    Shapes: (…, in) → (…, out).
    """

    out_axis = 1

    @staticmethod
    def shapes(base: Any, r: int) -> tuple[Shape, Shape]:
        """A is (r, in), B is (out, r)."""
        d_in, d_out = base.weight.shape
        return (r, d_in), (d_out, r)

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """(…, in) → (…, out): x W + b."""
        return F.linear(x, weight.T, bias)

    def low_rank(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return F.linear(F.linear(x, A), B)

    def _base_is_plain(self) -> bool:
        return is_hf_conv1d(self.base)


def is_hf_conv1d(module: nn.Module) -> bool:
    """Whether ``module`` is a ``Conv1D`` of transformers, which is not imported to find out."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


class LoRAConv(LoRALayer):
    """An ``nn.Conv1d`` or ``nn.Conv2d``: a convolution to r channels, then one by 1 to the outputs.

    Shapes: (N, in, …) → (N, out, …), or without N. The first convolution, A, has the base's
    kernel, stride and padding; the second, B, mixes channels only.
    """

    base: nn.Conv1d | nn.Conv2d

    @staticmethod
    def shapes(base: nn.Conv1d | nn.Conv2d, r: int) -> tuple[Shape, Shape]:
        """A is (r, in, k, k), B is (out, r, 1, 1); for Conv1d with one k and one 1."""
        return (r, *base.weight.shape[1:]), (base.out_channels, r, *[1] * len(base.kernel_size))

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """(N, in, …) → (N, out, …)."""
        return self.base._conv_forward(x, weight, bias)

    def low_rank(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """(N, in, …) → (N, out, …)."""
        convolve = F.conv1d if B.dim() == 3 else F.conv2d
        return convolve(self.apply_weight(x, A), B)


class LoRAEmbedding(LoRALayer):
    """An embedding with a low-rank update: row i is W₀[i] + scale · B A[:, i].

    Shapes: integers (…) → (…, dim). A starts at zero and B is random, the other way round than
    in a linear layer, so that looking up a token costs one column of A.
    """

    out_axis = 1
    base: nn.Embedding

    @staticmethod
    def shapes(base: nn.Embedding, r: int) -> tuple[Shape, Shape]:
        """A is (r, vocab), B is (dim, r)."""
        return (r, base.num_embeddings), (base.embedding_dim, r)

    def reset(self, gaussian: bool) -> None:
        nn.init.zeros_(self.A)
        nn.init.normal_(self.B)

    def low_rank(self, ids: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """Integers (…) → (…, dim)."""
        by_count = self.base.scale_grad_by_freq
        columns = F.embedding(ids, A.T, self.base.padding_idx, scale_grad_by_freq=by_count)
        return columns @ B.T  # (…, r) → (…, dim)

    def drop(self, ids: Tensor) -> Tensor:
        """Tokens cannot be zeroed in part: no dropout."""
        return ids

    def same_dtype(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Integers select, and are not multiplied."""
        return ids, self.A, self.B


def layer_type(module: nn.Module) -> type[LoRALayer] | None:
    """The adapted form that fits ``module``, if there is one."""
    if isinstance(module, nn.Linear):
        return LoRALinear
    if isinstance(module, nn.Embedding):
        return LoRAEmbedding
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return LoRAConv
    return LoRAHFConv1D if is_hf_conv1d(module) else None


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
            if "tuned" not in modules or name.startswith("__") or name == "_hf_hook":
                raise
            return getattr(modules["base" if self.off else "tuned"], name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # A checkpoint of the plain model: the original's values, and the copy begins with them.
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key.removeprefix(prefix)
            if not name.startswith(("base.", "tuned.")):
                tensor = state_dict.pop(key)
                for part in ("base", "tuned"):
                    state_dict.setdefault(f"{prefix}{part}.{name}", tensor)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _outputs_are_kept() -> bool:
    """Whether selective activation checkpointing keeps outputs, which must not change then."""
    if not torch._C._len_torch_dispatch_stack():
        return False
    return any(type(mode).__module__ == "torch.utils.checkpoint" for mode in _modes())


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__  # replaced on the instance, as offloading does
        or _has_any_global_hook()
    )
