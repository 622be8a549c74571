"""Four bits a weight: NF4 with double quantization, and a frozen linear layer that stores it.

A weight is cut into blocks, in the order in which its numbers lie in memory. Each block is divided
by its largest magnitude, its *absmax*, and each quotient is rounded to the nearest of 16 levels:

    weight (out, in) → codes (out · in,), integers 0 to 15, two to a byte
                     → absmax (blocks,), one float32 a block

Double quantization treats the absmax constants, of which their mean is subtracted, in the same way
once more: blocks of 256, and 256 levels instead of 16. That takes the cost of a weight from 4.5 to
4.127 bits. Source: Dettmers et al. 2023, QLoRA, arXiv 2305.14314, section 3. Codes and constants
are buffers of the layer: they move with the model, are in its ``state_dict``, and do not train.

Bytes and values are those of bitsandbytes, but for three details. A block whose numbers are all
subnormal (below 1.2e-38) becomes zero. A number in the very middle between two levels, to within
its rounding, may go the other way in a last block that is short. And each absmax takes the nearest
of the 256 levels here, where the CPU code of bitsandbytes 0.50.2 looks it up in a table of 65,536
steps, and about once in 600 takes a level that is farther by up to 3.1e-5 of the largest.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilora.adapt import replace_modules
from minilora.config import LoRAConfig, Targets
from minilora.state import Model, is_adapted
from minilora.targets import find_targets, original_modules, tied_weights

# --- the levels -----------------------------------------------------------------------------

# The probability that is left beyond the outermost levels, so that none lies at infinity, is the
# mean of half a fifteenth and half a sixteenth: 1 − (1/30 + 1/32) / 2.
NF4_OFFSET = 0.9677083

# As published with bitsandbytes. `nf4_levels` shows where they come from; the constants stand here
# because a quantile's last bit may differ between machines, and stored codes must not.
NF4_LEVELS = torch.tensor(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    dtype=torch.float32,
    device="cpu",
)  # fmt: skip
NF4_ZERO = 7  # the code of 0.0


def _line(first: float, last: float, count: int) -> Tensor:
    """Evenly spaced numbers in float32 on the CPU, whatever this process has for defaults."""
    return torch.linspace(first, last, count, dtype=torch.float32, device="cpu")


def nf4_levels(offset: float = NF4_OFFSET) -> Tensor:
    """The 16 levels of NF4, derived: sorted, float32, shape (16,), from -1 to 1, with an exact 0.

    Each level is a quantile of the standard normal distribution: 8 from ``offset`` down to one
    half, 7 such on the negative side, and zero, all divided by the largest. So each level is the
    nearest for about the same share of that distribution, 5.6 to 7.1 percent. Blocks of 64 normal
    numbers, each divided by its absmax, are narrower and use the outer levels less: 1.7 percent
    against 9.3 in the middle [2].

    Args:
        offset: The probability below the largest level, between 0.5 and 1.

    Raises:
        ValueError: ``offset`` is not between 0.5 and 1.

    Source: [1] Dettmers et al. 2023, arXiv 2305.14314, equation 4; the quantiles are not quite that
    equation's but those of bitsandbytes, evenly spaced between ``offset`` and one half. [2] On the
    difference that absmax makes: Yoshida 2023, arXiv 2306.06965.
    """
    return normal_float_levels(4, offset)


def normal_float_levels(bits: int, offset: float | None = None) -> Tensor:
    """The levels of a normal float of ``bits`` bits, NF2, NF3 …: float32, shape (2^bits,).

    As `nf4_levels`, with half as many quantiles above zero as there are levels, and one fewer below
    it. ``offset`` is, if left out, what NF4's rule gives for so many levels: 1 less the mean of
    half a share of 2^bits − 1 and of 2^bits. LoftQ [1] takes NF4's offset for all, which puts the
    levels of NF2 and NF3 nearer to zero.

    Raises:
        ValueError: ``bits`` is not from 2 to 8, or ``offset`` is not between 0.5 and 1.

    Source: Dettmers et al. 2023, arXiv 2305.14314; [1] Li et al. 2023, arXiv 2310.08659.
    """
    if bits not in range(2, 9):
        raise ValueError(f"bits must be a whole number from 2 to 8, but is {bits!r}")
    half = 2 ** (bits - 1)
    offset = 1 - (1 / (4 * half - 2) + 1 / (4 * half)) / 2 if offset is None else offset
    if not 0.5 < offset < 1:
        raise ValueError(f"offset is a probability between 0.5 and 1, but is {offset}")
    # float32 probabilities, because the published constants were computed from such. One half
    # itself would be a second zero.
    sides = [_line(offset, 0.5, count + 1)[:-1].double() for count in (half - 1, half)]
    below, above = map(torch.special.ndtri, sides)
    levels = torch.cat([-below, _line(0, 0, 1), above]).sort().values.float()
    return levels / levels[-1]


def fp4_levels() -> Tensor:
    """The 15 levels of FP4 (E2M1), divided by the largest, 6: float32, shape (15,).

    A sign, two bits of exponent and one of fraction give 0, 0.5, 1, 1.5, 2, 3, 4 and 6, with either
    sign; two of the 16 codes are zero. The format that bitsandbytes calls FP4 differs in one level:
    its smallest is 1/192 of the largest, and not 1/12.

    Source: Open Compute Project, Microscaling Formats (MX) Specification 1.0, 2023, section 5.3.3.
    """
    positive = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    both = [-x for x in positive[:0:-1]] + positive
    return torch.tensor(both, dtype=torch.float32, device="cpu") / 6


def dynamic_levels() -> Tensor:
    """The 256 levels that absmax constants are rounded to: sorted, float32, shape (256,).

    An 8-bit number with sign, decimal exponent and fraction: for each exponent e from -6 to 0, the
    interval from 0.1·10^e to 10^e is cut into 2^(e+6) equal parts, and their middles are levels, as
    are their negatives; then 0 and 1. Small numbers keep fewer digits, and vanish below 3e-7.

    Source: Dettmers 2016, arXiv 1511.04561; used so in arXiv 2110.02861, and by bitsandbytes.
    """
    positive = []
    for e in range(-6, 1):
        edges = _line(0.1, 1, 2 ** (e + 6) + 1)
        positive.append((edges[:-1] + edges[1:]) / 2 * 10**e)
    levels = torch.cat(positive)  # (127,)
    return torch.cat([-levels, levels.new_tensor([0.0, 1.0]), levels]).sort().values


ABSMAX_LEVELS = dynamic_levels()
ABSMAX_BLOCK = 256


def uniform_levels(count: int = 16) -> Tensor:
    """``count`` evenly spaced levels from -1 to 1, float32, shape (count,): to compare NF4 with.

    16 use all codes but have no zero; 15 are symmetric int4, -7/7 to 7/7. Raises ValueError for
    a ``count`` that is not between 2 and 256.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 2 <= count <= 256:
        raise ValueError(f"count must be a whole number from 2 to 256, but is {count!r}")
    return _line(-1, 1, count)


# --- rounding to levels ---------------------------------------------------------------------


def nearest_levels(values: Tensor, levels: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Round each block of ``values`` to its absmax times the nearest level.

    (n,) float32 → codes (n,) uint8, the indices of the levels, and absmax (⌈n/block⌉,) float32.
    ``levels`` are sorted, from -1 to 1. In the middle between two, the lower one is taken.
    """
    n = len(values)
    blocks = F.pad(values, (0, -n % block)).view(-1, block)
    absmax = blocks.abs().amax(1)
    # One over a subnormal number may be infinite, and 0 · ∞ would be NaN.
    usable = absmax >= torch.finfo(torch.float32).tiny
    factor = 1 / torch.where(usable, absmax, 1.0)
    middles = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(blocks * factor[:, None], middles, out_int32=True)
    return codes.to(torch.uint8).view(-1)[:n], absmax


def level_values(codes: Tensor, levels: Tensor, absmax: Tensor, block: int) -> Tensor:
    """The way back: codes (n,) uint8 and absmax (⌈n/block⌉,) → values (n,) float32."""
    values = levels.index_select(0, codes.int())  # several times faster than levels[codes]
    whole = len(values) // block * block
    values[:whole].view(-1, block).mul_(absmax[: whole // block, None])
    if whole < len(values):
        values[whole:].mul_(absmax[-1])
    return values


def round_to_levels(weight: Tensor, levels: Tensor, block: int = 64) -> Tensor:
    """``weight`` as it comes back from blockwise quantization to any table of levels.

    Shape and dtype are those of ``weight``. ``levels``, at most 256, are sorted, from -1 to 1: for
    example ``NF4_LEVELS`` or ``uniform_levels(16)``. Raises what ``quantize_nf4`` raises, and
    ValueError for levels that are not such a table.
    """
    if levels.dim() != 1 or not 2 <= len(levels) <= 256 or not (levels.diff() > 0).all():
        raise ValueError("levels must be 2 to 256 different numbers, sorted")
    if levels.abs().max() > 1:
        raise ValueError(f"levels must lie in [-1, 1], but reach from {levels[0]} to {levels[-1]}")
    values = _checked(weight, block)
    levels = levels.to(values)
    codes, absmax = nearest_levels(values, levels, block)
    return level_values(codes, levels, absmax, block).view(weight.shape).to(weight.dtype)


def pack(codes: Tensor) -> Tensor:
    """Two codes of 4 bits to a byte, the first in the high half: (n,) uint8 → (⌈n/2⌉,) uint8.

    An odd n is filled up with the code of zero. Raises ValueError for a code above 15.
    """
    if codes.dtype != torch.uint8 or (codes.numel() and codes.max() > 15):
        raise ValueError("pack needs codes from 0 to 15, as uint8")
    first, second = F.pad(codes, (0, len(codes) % 2), value=NF4_ZERO).view(-1, 2).unbind(1)
    return first << 4 | second


def unpack(packed: Tensor, n: int) -> Tensor:
    """The way back: (⌈n/2⌉,) uint8 → (n,) uint8, each from 0 to 15."""
    return torch.stack([packed >> 4, packed & 15], 1).view(-1)[:n]


# --- NF4 ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class NF4Tensor:
    """A tensor of ``shape`` in NF4, n numbers in m = ⌈n/block⌉ blocks.

    Attributes:
        codes: (⌈n/2⌉,) uint8, two codes a byte, the first in the high half.
        absmax: (m,) float32; with double quantization (m,) uint8, codes of ``ABSMAX_LEVELS``.
        absmax_scale: (⌈m/256⌉,) float32, the largest magnitude of each 256 of the absmax
            constants, less their mean. None without double quantization.
        absmax_mean: () float32. None without double quantization.
        shape: That of the tensor that was quantized, and that comes back. ``dtype``: likewise.
        block: Numbers that share one absmax.
    """

    codes: Tensor
    absmax: Tensor
    absmax_scale: Tensor | None
    absmax_mean: Tensor | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    block: int

    @property
    def double(self) -> bool:
        return self.absmax_scale is not None

    @property
    def nbytes(self) -> int:
        """Bytes that the four tensors hold, as ``nf4_bytes`` predicts them."""
        tensors = (self.codes, self.absmax, self.absmax_scale, self.absmax_mean)
        return sum(t.nbytes for t in tensors if t is not None)


@torch.no_grad()
def quantize_nf4(weight: Tensor, block: int = 64, double: bool = True) -> NF4Tensor:
    """Quantize ``weight``, of any shape, to NF4.

    Args:
        weight: Floating-point; the computation is in float32.
        block: Numbers that share one absmax; the last block may be shorter. The larger it is, the
            fewer bytes and the larger the error.
        double: Quantize the absmax constants too.

    Returns:
        The packed tensor, on the device of ``weight``; ``dequantize_nf4`` gives the values.

    Raises:
        TypeError: ``weight`` is no floating-point tensor, or ``block`` no whole number.
        ValueError: ``weight`` is empty or holds NaN or infinity, or ``block`` is less than 2.

    Source: Dettmers et al. 2023, arXiv 2305.14314, section 3.
    """
    values = _checked(weight, block)
    nf4, absmax_levels = _levels_on(values.device)
    codes, absmax = nearest_levels(values, nf4, block)
    scale = mean = None
    if double:
        mean = absmax.mean()
        absmax, scale = nearest_levels(absmax - mean, absmax_levels, ABSMAX_BLOCK)
    return NF4Tensor(pack(codes), absmax, scale, mean, tuple(weight.shape), weight.dtype, block)


@torch.no_grad()
def dequantize_nf4(quantized: NF4Tensor) -> Tensor:
    """The values that ``quantized`` stands for: its shape, its dtype, on its device."""
    nf4, absmax_levels = _levels_on(quantized.codes.device)
    absmax = quantized.absmax
    if quantized.absmax_scale is not None and quantized.absmax_mean is not None:
        absmax = level_values(absmax, absmax_levels, quantized.absmax_scale, ABSMAX_BLOCK)
        absmax += quantized.absmax_mean
    codes = unpack(quantized.codes, math.prod(quantized.shape))
    values = level_values(codes, nf4, absmax, quantized.block)
    return values.view(quantized.shape).to(quantized.dtype)


def nf4_bytes(numel: int, block: int = 64, double: bool = True) -> int:
    """Bytes that ``numel`` numbers take in NF4.

    About 0.5625 a number in blocks of 64, and 0.5159 with double quantization. Raises what
    ``quantize_nf4`` raises for ``block``, and ValueError for ``numel`` < 1.
    """
    _check_block(block)
    if numel < 1:
        raise ValueError(f"numel must be at least 1, but is {numel}")
    codes, blocks = -(-numel // 2), -(-numel // block)
    if not double:
        return codes + 4 * blocks
    return codes + blocks + 4 * -(-blocks // ABSMAX_BLOCK) + 4


def _levels_on(device: torch.device) -> tuple[Tensor, Tensor]:
    return (NF4_LEVELS, ABSMAX_LEVELS) if device.type == "cpu" else _copied_levels(device)


@functools.cache
def _copied_levels(device: torch.device) -> tuple[Tensor, Tensor]:
    # Copied once, so that a layer on a GPU does not wait for two small copies at every call.
    with torch.inference_mode(False):
        return NF4_LEVELS.to(device), ABSMAX_LEVELS.to(device)


def _checked(weight: Tensor, block: int) -> Tensor:
    """``weight`` as (n,) float32, if it can be quantized."""
    _check_block(block)
    if not isinstance(weight, Tensor):
        raise TypeError(f"only a tensor can be quantized, but this is a {type(weight).__name__}")
    if not weight.is_floating_point():
        raise TypeError(
            f"only floating-point numbers can be quantized, but these are {weight.dtype}; "
            "is the weight quantized already?"
        )
    if weight.numel() == 0:
        raise ValueError(f"there is nothing to quantize: the shape is {tuple(weight.shape)}")
    values = weight.detach().reshape(-1).float()
    broken = int((~values.isfinite()).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(values)} numbers are NaN or infinite in float32, and would spoil "
            "their whole block; look for the step of training that broke them"
        )
    return values


def _check_block(block: int) -> None:
    if isinstance(block, bool) or not isinstance(block, int):
        raise TypeError(f"block must be a whole number, but is {block!r}")
    if block < 2:
        raise ValueError(
            f"block must be at least 2, but is {block}: each block stores one number in full; "
            "64 is usual"
        )


# --- the layer ------------------------------------------------------------------------------


class _PackedLinear(torch.autograd.Function):
    """y = x Wᵀ + b, which unpacks W once forward and once more backward.

    ``F.linear`` would keep W, in full, until the backward pass: for a whole model, the memory that
    quantization saved. Here only the packed tensors are kept, and those exist anyway. As W is
    frozen, x is not kept either.
    """

    generate_vmap_rule = True  # for torch.func: many adapters on one base in one pass

    @staticmethod
    def forward(
        x: Tensor,
        bias: Tensor | None,
        codes: Tensor,
        absmax: Tensor,
        scale: Tensor | None,
        mean: Tensor | None,
        shape: tuple[int, int],
        dtype: torch.dtype,
        block: int,
    ) -> Tensor:
        weight = dequantize_nf4(NF4Tensor(codes, absmax, scale, mean, shape, dtype, block))
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, *tensors, shape, dtype, block = inputs
        ctx.save_for_backward(*tensors)
        ctx.rest = shape, dtype, block

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            weight = dequantize_nf4(NF4Tensor(*ctx.saved_tensors, *ctx.rest))
            grad_x = grad @ weight.to(grad.dtype)  # under autocast, grad is of the lower type
        if ctx.needs_input_grad[1]:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
        return grad_x, grad_bias, *[None] * 7


class LinearNF4(nn.Linear):
    """A frozen linear layer whose weight is stored in NF4: y = x Wᵀ + b, (…, in) → (…, out).

    It is an ``nn.Linear`` to whoever asks, but has no parameter ``weight``: the weight is computed
    whenever it is read, and writing into what was read changes nothing. The codes never train; the
    bias is an ordinary parameter. ``to(dtype)`` changes the type of the computed weight and of the
    bias, and no stored bit of the weight.

    Attributes:
        codes: A buffer, as ``absmax``, ``absmax_scale`` and ``absmax_mean`` are; see ``NF4Tensor``.
        dtype: Type of the computed weight.
        block: Numbers that share one absmax.

    Source: Dettmers et al. 2023, arXiv 2305.14314, equation 5, without its adapter.
    """

    codes: Tensor
    absmax: Tensor
    absmax_scale: Tensor | None
    absmax_mean: Tensor | None

    def __init__(self, quantized: NF4Tensor, bias: nn.Parameter | None = None) -> None:
        if len(quantized.shape) != 2:
            raise ValueError(
                f"a linear layer needs a weight of shape (out, in), not {quantized.shape}"
            )
        nn.Module.__init__(self)  # nn.Linear's own would allocate the weight in full
        self.out_features, self.in_features = quantized.shape
        self.dtype, self.block = quantized.dtype, quantized.block
        for name in ("codes", "absmax", "absmax_scale", "absmax_mean"):
            self.register_buffer(name, getattr(quantized, name))
        self.register_parameter("bias", bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, block: int = 64, double: bool = True) -> LinearNF4:
        """A quantized form of ``linear``, which is left as it is; both share the bias.

        Raises:
            TypeError, ValueError: ``linear`` is not exactly an ``nn.Linear`` with a parameter as
                its weight, or what ``quantize_nf4`` raises.
        """
        if isinstance(linear, LinearNF4):
            raise ValueError("the layer is quantized already")
        if type(linear) is not nn.Linear:
            raise TypeError(
                f"only an nn.Linear can be replaced, but this is a {type(linear).__name__}, which "
                "may compute something else"
            )
        if linear._parameters.get("weight") is None or "forward" in vars(linear):
            raise ValueError(
                "the layer's weight is computed, or its forward was replaced (by pruning, weight "
                "norm or offloading); undo that first"
            )
        layer = cls(quantize_nf4(linear.weight, block, double), linear.bias)
        layer.training = linear.training
        return layer

    @property
    def quantized(self) -> NF4Tensor:
        """The stored tensors, not copied."""
        tensors = self.codes, self.absmax, self.absmax_scale, self.absmax_mean
        return NF4Tensor(*tensors, (self.out_features, self.in_features), self.dtype, self.block)

    @property
    def packed_parameters(self) -> int:
        """How many numbers the codes stand for; ``summary`` counts them as the weight."""
        return self.out_features * self.in_features

    @property
    def weight(self) -> Tensor:
        """(out, in), computed anew at each reading."""
        return dequantize_nf4(self.quantized)

    @weight.setter
    def weight(self, value: Tensor) -> None:
        raise AttributeError(
            "the weight of a LinearNF4 is computed from its codes; to change it, call "
            "minilora.quantize.dequantize_linears(model) first"
        )

    def reset_parameters(self) -> None:
        """Refused: it would fill a copy of the weight, and the layer would stay as it is."""
        raise TypeError("a LinearNF4 is frozen and cannot be initialized; quantize a new nn.Linear")

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out). x has the type ``dtype``, or autocast is on."""
        q = self.quantized
        tensors = q.codes, q.absmax, q.absmax_scale, q.absmax_mean
        y: Tensor = _PackedLinear.apply(x, self.bias, *tensors, q.shape, q.dtype, q.block)
        return y

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LinearNF4:
        # What .to(), .half() and .cuda() call. The float32 constants are part of the stored
        # number: rounded to bfloat16 once, they would stay so for good.
        names = [n for n, b in self._buffers.items() if b is not None and b.is_floating_point()]
        exact = {name: self._buffers[name] for name in names}
        like = fn(torch.empty(0, dtype=self.dtype, device=self.codes.device))
        super()._apply(fn, recurse)
        for name, before in exact.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        self.dtype = like.dtype
        return self

    def extra_repr(self) -> str:
        double = self.absmax_scale is not None
        return f"{super().extra_repr()}, block={self.block}, double={double}, dtype={self.dtype}"


# --- whole models ---------------------------------------------------------------------------


def quantize_linears(
    model: Model,
    targets: Targets = "all-linear",
    exclude: Targets | None = None,
    block: int = 64,
    double: bool = True,
) -> Model:
    """Put a ``LinearNF4`` in the place of every ``nn.Linear`` that ``targets`` names.

    Args:
        model: Without an adapter; changed in place. ``add_lora`` follows.
        targets, exclude: As in ``LoRAConfig``. The default leaves the output head as it is.
        block, double: As in ``quantize_nf4``.

    Returns:
        The same object, for chaining.

    Raises:
        TypeError, ValueError: The model has an adapter, nothing matches, or a match is not an
            ``nn.Linear``, shares its weight with another layer or cannot be quantized. The model
            is unchanged.
    """
    if is_adapted(model):
        raise ValueError(
            "the model has an adapter, which was made for the weights as they are; call "
            "quantize_linears before add_lora"
        )
    _check_block(block)
    modules = original_modules(model)
    paths = find_targets(model, LoRAConfig(targets=targets, exclude=exclude))
    tied = tied_weights(modules, paths)
    pairs: list[tuple[nn.Module, nn.Module]] = []
    for path in paths:
        linear = modules[path]
        if not isinstance(linear, nn.Linear):
            raise TypeError(
                f"{path!r} is a {type(linear).__name__}, and only nn.Linear is quantized; narrow "
                "targets or list it in exclude"
            )
        if path in tied:
            raise ValueError(
                f"{path!r} shares its weight with {', '.join(map(repr, tied[path]))}, which would "
                "go on with the weight in full, so nothing would be saved; list it in exclude"
            )
        try:
            pairs.append((linear, LinearNF4.from_linear(linear, block, double)))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path!r} cannot be quantized: {error}") from None
    _replace(model, pairs)
    return model


def dequantize_linears(model: Model) -> Model:
    """Put an ``nn.Linear`` in the place of every ``LinearNF4``, also under an adapter.

    The weights are the quantized ones, in the layers' dtype, and frozen; what quantization lost
    stays lost. After it, ``minilora.merge`` can write an update into them.

    Returns:
        The same object, for chaining.

    Raises:
        ValueError: There is no ``LinearNF4`` inside the model.
    """
    pairs: list[tuple[nn.Module, nn.Module]] = []
    for module in model.modules():
        if isinstance(module, LinearNF4) and module is not model:
            # On "meta" nothing is allocated, and nothing random is drawn, for a weight to be.
            size = module.in_features, module.out_features
            linear = nn.Linear(*size, bias=False, device="meta")
            linear.weight = nn.Parameter(module.weight, requires_grad=False)
            linear.bias = module.bias
            linear.training = module.training
            pairs.append((module, linear))
    if not pairs:
        raise ValueError("the model has no LinearNF4 inside it, so there is nothing to dequantize")
    _replace(model, pairs)
    return model


def _replace(model: nn.Module, pairs: list[tuple[nn.Module, nn.Module]]) -> None:
    """Put ``new`` wherever ``old`` stands, and let the hooks on ``old`` fire on ``new``."""
    for old, new in pairs:
        for name, value in vars(old).items():
            if name.startswith(("_forward_", "_backward_", "_is_full_backward_hook")):
                vars(new)[name] = value
    replace_modules(model, pairs)
