"""NF4 against its definition, against bitsandbytes, and as the base of an adapter."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from core_help import Toy, bits, ids, refuses, shake, unchanged
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

import minilora
from minilora import LoRAConfig
from minilora.quantize import (
    ABSMAX_LEVELS,
    NF4_LEVELS,
    NF4_OFFSET,
    LinearNF4,
    NF4Tensor,
    dequantize_linears,
    dequantize_nf4,
    dynamic_levels,
    fp4_levels,
    nf4_bytes,
    nf4_levels,
    normal_float_levels,
    pack,
    quantize_linears,
    quantize_nf4,
    round_to_levels,
    uniform_levels,
    unpack,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def relative_error(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def nf4_linears(model: nn.Module) -> list[LinearNF4]:
    return [m for m in model.modules() if isinstance(m, LinearNF4)]


def packed_layer(d_in: int = 32, d_out: int = 16, bias: bool = True, **kwargs: Any) -> LinearNF4:
    linear = nn.Linear(d_in, d_out, bias=bias, dtype=kwargs.pop("dtype", None))
    return LinearNF4.from_linear(linear, **kwargs)


def plain_twin(layer: LinearNF4) -> nn.Linear:
    """An nn.Linear with the same computed weight and the same values in its bias."""
    has_bias = layer.bias is not None
    twin = nn.Linear(layer.in_features, layer.out_features, bias=has_bias, dtype=layer.dtype)
    with torch.no_grad():
        twin.weight.copy_(layer.weight)
        if has_bias:
            twin.bias.copy_(layer.bias)
    return twin


# --- the levels -----------------------------------------------------------------------------


def test_derived_levels_are_the_published_ones() -> None:
    derived = nf4_levels()
    assert derived.dtype == NF4_LEVELS.dtype == torch.float32
    # One unit in the last place at 1: quantiles may differ by that from machine to machine.
    torch.testing.assert_close(derived, NF4_LEVELS, rtol=0, atol=2**-23)
    assert derived[0] == -1 and derived[7] == 0 and derived[-1] == 1


def test_the_offset_leaves_out_half_a_fifteenth_and_half_a_sixteenth_on_average() -> None:
    exact = nf4_levels(1 - (1 / 30 + 1 / 32) / 2)
    torch.testing.assert_close(exact, NF4_LEVELS, rtol=0, atol=1e-6)
    for offset in (0.5, 1.0, float("nan")):
        with pytest.raises(ValueError, match="between 0.5 and 1"):
            nf4_levels(offset)


def test_each_level_stands_for_about_the_same_share_of_a_bell_curve() -> None:
    # Level 1 lies at the offset's quantile of the normal distribution that the levels come from.
    largest = torch.special.ndtri(torch.tensor(0.9677083, dtype=torch.float64))

    def shares(levels: Tensor) -> Tensor:
        middles = (levels[1:] + levels[:-1]).double() / 2 * largest
        below = torch.special.ndtr(middles)
        return torch.cat([below[:1], below.diff(), 1 - below[-1:]])

    nf4, uniform = shares(NF4_LEVELS), shares(uniform_levels(16))
    assert nf4.min() > 0.055 and nf4.max() < 0.072  # 1/16 is 0.0625
    assert uniform.min() < 0.03 and uniform.max() > 0.09
    # Divided by the largest of 64, the numbers are narrower, and the outer levels are rarer.
    codes = unpack(quantize_nf4(torch.randn(4096, 64)).codes, 4096 * 64)
    used = torch.bincount(codes.int(), minlength=16) / len(codes)
    assert used[0] == pytest.approx(0.018, abs=0.002) and used[-1] == pytest.approx(
        0.017, abs=0.002
    )
    assert used.max() == pytest.approx(0.093, abs=0.002)


def test_dynamic_levels_are_sorted_different_and_reach_down_to_small_numbers() -> None:
    levels = dynamic_levels()
    assert torch.equal(levels, ABSMAX_LEVELS) and levels.shape == (256,)
    assert (levels.diff() > 0).all()
    assert levels[127] == 0 and levels[-1] == 1
    torch.testing.assert_close(levels[:127], -levels[128:255].flip(0), rtol=0, atol=0)
    # Recorded from bitsandbytes 0.50.2, create_dynamic_map().
    recorded = {0: -0.9929687976837158, 1: -0.9789062738418579, 64: -0.0985937491059303}
    recorded |= {126: -5.499999815583578e-07, 128: 5.499999815583578e-07, 254: 0.9929687976837158}
    for place, value in recorded.items():
        assert levels[place].item() == pytest.approx(value, rel=2e-7)


# --- codes ----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 15), max_size=70))
def test_packing_is_undone(codes: list[int]) -> None:
    tensor = torch.tensor(codes, dtype=torch.uint8)
    packed = pack(tensor)
    assert packed.dtype == torch.uint8 and len(packed) == (len(codes) + 1) // 2
    assert torch.equal(unpack(packed, len(codes)), tensor)


def test_the_first_code_lies_in_the_high_half() -> None:
    codes = torch.tensor([1, 2, 15, 0, 9], dtype=torch.uint8)
    assert pack(codes).tolist() == [0x12, 0xF0, 0x97]  # 7 is zero, and fills up
    with pytest.raises(ValueError, match="0 to 15"):
        pack(torch.tensor([16], dtype=torch.uint8))
    with pytest.raises(ValueError, match="uint8"):
        pack(torch.tensor([1]))


@st.composite
def weights(draw: st.DrawFn) -> tuple[Tensor, int]:
    shape = draw(st.sampled_from([(1,), (2,), (7,), (64,), (65,), (3, 43), (5, 13, 2), (16, 80)]))
    torch.manual_seed(draw(st.integers(0, 10_000)))
    weight = torch.randn(shape) * draw(st.sampled_from([1e-6, 1.0, 1e4]))
    if draw(st.booleans()):
        weight.view(-1)[: draw(st.integers(1, 70))] = 0
    return weight.to(draw(st.sampled_from([*DTYPES, torch.float64]))), draw(st.integers(2, 130))


@given(weights(), st.booleans())
def test_the_nearest_level_is_chosen_and_the_bytes_are_as_predicted(
    case: tuple[Tensor, int], double: bool
) -> None:
    weight, block = case
    quantized = quantize_nf4(weight, block, double)
    single = quantize_nf4(weight, block, double=False)
    codes = unpack(quantized.codes, weight.numel())
    values = weight.flatten().float()
    for start in range(0, len(values), block):
        part, absmax = values[start : start + block], single.absmax[start // block]
        assert absmax == part.abs().max()
        # Brute force: no level is nearer than the chosen one, but for a rounding of the quotient.
        distance = (part[:, None] - absmax * NF4_LEVELS).abs()
        chosen = distance.gather(1, codes[start : start + block].long()[:, None])[:, 0]
        assert (chosen <= distance.min(1).values + 2e-7 * absmax).all()
    assert quantized.nbytes == nf4_bytes(weight.numel(), block, double)
    back = dequantize_nf4(quantized)
    assert back.shape == weight.shape and back.dtype == weight.dtype
    assert torch.equal(back[weight == 0], weight[weight == 0])  # zero stays exactly zero


@given(weights())
def test_quantizing_twice_changes_nothing(case: tuple[Tensor, int]) -> None:
    weight, block = case
    once = dequantize_nf4(quantize_nf4(weight.float(), block, double=False))
    assert torch.equal(dequantize_nf4(quantize_nf4(once, block, double=False)), once)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double", [False, True])
def test_zeros_subnormals_and_one_block_of_both(dtype: torch.dtype, double: bool) -> None:
    weight = torch.zeros(3, 64, dtype=dtype)
    weight[1] = torch.linspace(-2, 2, 64)
    back = dequantize_nf4(quantize_nf4(weight, 64, double))
    assert (back[0] == 0).all() and (back[2] == 0).all() and back[1].abs().max() > 1.9
    tiny = torch.full((64,), 1e-40)
    assert (dequantize_nf4(quantize_nf4(tiny, 64, double)) == 0).all()


def test_double_quantization_rounds_each_absmax_to_the_nearest_of_256_levels() -> None:
    weight = torch.randn(300, 64) * torch.rand(300, 1)
    single, double = quantize_nf4(weight, double=False), quantize_nf4(weight)
    assert double.absmax_mean is not None and double.absmax_scale is not None
    assert torch.equal(single.codes, double.codes)
    centred = single.absmax - double.absmax_mean
    assert double.absmax_mean == single.absmax.mean()
    for part, codes, scale in zip(
        centred.split(256), double.absmax.split(256), double.absmax_scale, strict=True
    ):
        assert scale == part.abs().max()
        distance = (part[:, None] - scale * ABSMAX_LEVELS).abs()
        chosen = distance.gather(1, codes.long()[:, None])[:, 0]
        assert (chosen <= distance.min(1).values + 2e-7 * scale).all()
    assert 0 < relative_error(dequantize_nf4(double), dequantize_nf4(single)) < 0.01


def test_nf4_fits_a_bell_curve_better_than_evenly_spaced_levels() -> None:
    torch.manual_seed(1)
    weight = torch.randn(2048, 128)
    nf4 = relative_error(round_to_levels(weight, NF4_LEVELS), weight)
    uniform = relative_error(round_to_levels(weight, uniform_levels(16)), weight)
    int4 = relative_error(round_to_levels(weight, uniform_levels(15)), weight)
    assert nf4 == pytest.approx(0.0920, abs=0.0005)
    assert uniform == pytest.approx(0.1005, abs=0.0005)
    assert int4 == pytest.approx(0.1077, abs=0.0005)
    packed = dequantize_nf4(quantize_nf4(weight, double=False))
    assert torch.equal(round_to_levels(weight, NF4_LEVELS), packed)
    # On evenly spread weights the order is the other way round.
    flat = torch.rand(2048, 128) * 2 - 1
    nf4 = relative_error(round_to_levels(flat, NF4_LEVELS), flat)
    assert relative_error(round_to_levels(flat, uniform_levels(16)), flat) < nf4


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_precision_comes_back_as_the_rounded_float32_result(dtype: torch.dtype) -> None:
    weight = torch.randn(24, 40).to(dtype)
    back, full = dequantize_nf4(quantize_nf4(weight)), dequantize_nf4(quantize_nf4(weight.float()))
    assert back.dtype == dtype and torch.equal(back, full.to(dtype))


def test_a_weight_that_is_not_contiguous_is_read_in_its_own_order() -> None:
    weight = torch.randn(48, 40)
    turned = dequantize_nf4(quantize_nf4(weight.T))
    assert torch.equal(turned, dequantize_nf4(quantize_nf4(weight.T.contiguous())))
    assert not torch.equal(turned, dequantize_nf4(quantize_nf4(weight)).T)


@pytest.mark.parametrize(
    ("weight", "block", "error", "words"),
    [
        (torch.ones(4), 1, ValueError, "at least 2"),
        (torch.ones(4), 0, ValueError, "at least 2"),
        (torch.ones(4), -64, ValueError, "at least 2"),
        (torch.ones(4), 64.0, TypeError, "whole number"),
        (torch.ones(4), True, TypeError, "whole number"),
        (torch.ones(4, dtype=torch.int8), 64, TypeError, "torch.int8"),
        (torch.ones(4, dtype=torch.complex64), 64, TypeError, "complex64"),
        ([1.0], 64, TypeError, "list"),
        (torch.ones(0, 3), 64, ValueError, r"\(0, 3\)"),
        (torch.tensor([1.0, float("nan")]), 64, ValueError, "1 of 2"),
        (torch.tensor([float("inf"), -float("inf"), 0]), 64, ValueError, "2 of 3"),
        (torch.tensor([1e300], dtype=torch.float64), 64, ValueError, "infinite in float32"),
    ],
)
def test_what_cannot_be_quantized_is_refused(
    weight: Any, block: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        quantize_nf4(weight, block)
    with pytest.raises(error, match=words):
        round_to_levels(weight, NF4_LEVELS, block)


def test_what_is_no_table_of_levels_is_refused() -> None:
    weight = torch.ones(4)
    unsorted, wide = torch.tensor([0.0, -1, 1]), torch.tensor([-2.0, 2])
    for levels, words in [(unsorted, "sorted"), (wide, r"\[-1, 1\]"), (torch.zeros(1), "2 to 256")]:
        with pytest.raises(ValueError, match=words):
            round_to_levels(weight, levels)
    for count in (1, 257, 2.0, True):
        with pytest.raises(ValueError, match="from 2 to 256"):
            uniform_levels(count)
    for numel, block in [(0, 64), (5, 1)]:
        with pytest.raises(ValueError, match="at least"):
            nf4_bytes(numel, block)


# --- bitsandbytes ---------------------------------------------------------------------------


def golden_weight() -> Tensor:
    """(3, 130), exact in float32; 390 numbers are 6 blocks of 64 and a short one."""
    i = torch.arange(390)
    return ((i * 37 % 101 - 50) * (1 + i // 64) / 64).view(3, 130)


def test_golden_numbers() -> None:
    # Recorded from bitsandbytes 0.50.2 on a CPU: quantize_4bit and dequantize_4bit, "nf4".
    single, double = (quantize_nf4(golden_weight(), double=d) for d in (False, True))
    assert double.absmax_mean is not None and double.absmax_scale is not None
    for quantized in (single, double):
        assert quantized.codes[:12].tolist() == [4, 193, 110, 41, 243, 176, 93, 23, 226, 159, 60, 5]
        assert quantized.codes.sum() == 24164
    assert single.absmax.tolist() == [0.78125, 1.5625, 2.34375, 3.125, 3.90625, 4.6875, 5.03125]
    assert double.absmax.tolist() == [0, 24, 48, 165, 210, 234, 245]
    assert double.absmax_scale.tolist() == [2.28125] and double.absmax_mean == 3.0625
    back = dequantize_nf4(single)
    assert back[0, :4].tolist() == [
        -0.78125,
        -0.2222198247909546,
        0.34430456161499023,
        -0.5439006090164185,
    ]
    assert back[2, -4:].tolist() == [
        -0.9296413064002991,
        2.8306667804718018,
        -3.5027201175689697,
        0,
    ]
    back = dequantize_nf4(double)
    assert back[0, :4].tolist() == [
        -0.7972900867462158,
        -0.22678229212760925,
        0.3513735830783844,
        -0.5550675988197327,
    ]
    assert back[2, -4:].tolist() == [-0.9310712814331055, 2.8350210189819336, -3.508107900619507, 0]


def bitsandbytes_functional() -> Any:
    return pytest.importorskip("bitsandbytes.functional")


def test_tables_equal_those_of_bitsandbytes() -> None:
    theirs = bitsandbytes_functional()
    assert torch.equal(NF4_LEVELS, theirs.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(ABSMAX_LEVELS, theirs.create_dynamic_map())


# Rows are a multiple of the block long, or odd: with others (48 numbers in blocks of 64) the
# AVX-512 code of bitsandbytes 0.50.2 takes constants of the wrong block.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(
    ("shape", "block"), [((256, 192), 64), ((128, 512), 256), ((33, 7), 64), ((5, 1025), 32)]
)
def test_bytes_and_values_equal_those_of_bitsandbytes(
    dtype: torch.dtype, double: bool, shape: tuple[int, int], block: int
) -> None:
    theirs = bitsandbytes_functional()
    weight = (torch.randn(shape) * 3).to(dtype)
    packed, state = theirs.quantize_4bit(weight, None, None, block, double, "nf4")
    ours = quantize_nf4(weight, block, double)
    assert torch.equal(ours.codes, packed.flatten())
    absmax, scale, mean = state.absmax, None, None
    if double:
        scale, mean = state.state2.absmax, state.offset
        assert bits(ours.absmax_scale) == bits(scale) and bits(ours.absmax_mean) == bits(mean)
        # Their CPU code finds the 8-bit code in a table of 2¹⁶ steps of 2⁻¹⁵, and so may take a
        # level that is farther than the nearest by up to one step. Nothing else may differ.
        single = quantize_nf4(weight, block, double=False).absmax
        largest = scale.repeat_interleave(256)[: len(single)]
        differs = (ours.absmax != absmax) & (largest > 0)
        place = ((single - mean) / largest)[differs]
        nearest, taken = (ABSMAX_LEVELS[c[differs].int()] for c in (ours.absmax, absmax))
        farther = (place - taken).abs() - (place - nearest).abs()
        assert (farther >= 0).all() and (farther <= 2**-15).all()
        assert differs.sum() <= 0.03 * len(differs)
    else:
        assert bits(ours.absmax) == bits(absmax)
    # From their bytes we compute their values, to the bit.
    same = NF4Tensor(packed.flatten(), absmax, scale, mean, weight.shape, dtype, block)
    assert torch.equal(dequantize_nf4(same), theirs.dequantize_4bit(packed, state))


# --- the layer ------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(32,), (0, 32), (5, 32), (2, 3, 32)])
def test_outputs_and_gradients_equal_those_through_the_computed_weight(
    shape: tuple[int, ...], bias: bool
) -> None:
    layer = packed_layer(bias=bias)
    twin = plain_twin(layer)
    x = torch.randn(shape, requires_grad=True)
    y, expected = layer(x), twin(x)
    assert torch.equal(y, expected)
    up = torch.randn_like(y)
    (grad,), (wanted,) = (torch.autograd.grad(o, x, up, retain_graph=True) for o in (y, expected))
    torch.testing.assert_close(grad, wanted, rtol=1e-6, atol=1e-6)
    if bias:
        y.backward(up)
        expected.backward(up)
        torch.testing.assert_close(layer.bias.grad, twin.bias.grad, rtol=1e-6, atol=1e-6)


def test_first_and_second_derivatives_are_right() -> None:
    layer = packed_layer(6, 4, dtype=torch.float64)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, bias: layer(x), (x, layer.bias))
    assert torch.autograd.gradgradcheck(lambda x: layer(x).pow(2), (x,))


def test_autocast_computes_in_the_lower_type_as_for_a_plain_layer() -> None:
    layer = packed_layer()
    twin = plain_twin(layer)
    x = torch.randn(4, 32, requires_grad=True)
    grads = []
    for module in (layer, twin):
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
        assert y.dtype == torch.bfloat16
        grads.append(torch.autograd.grad(y.float().pow(2).sum(), x)[0])
    assert grads[0].dtype == torch.float32 and torch.equal(*grads)


def test_an_input_of_another_type_is_refused_as_by_a_plain_layer() -> None:
    with pytest.raises(RuntimeError, match="dtype"):
        packed_layer(dtype=torch.bfloat16)(torch.randn(2, 32))


class Saved:
    """Bytes that autograd keeps for the backward pass, each storage once."""

    def __enter__(self) -> Saved:
        self.tensors: dict[int, Tensor] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda t: t)
        self.hooks.__enter__()
        return self

    def _note(self, t: Tensor) -> Tensor:
        self.tensors[t.untyped_storage().data_ptr()] = t
        return t

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)

    @property
    def nbytes(self) -> int:
        return sum(t.untyped_storage().nbytes() for t in self.tensors.values())


def floats_of_size(numel: int) -> int:
    gc.collect()
    found = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
    return sum(t.is_floating_point() and t.numel() >= numel for t in found)


def test_the_backward_pass_keeps_the_packed_weight_alone() -> None:
    layer = packed_layer(256, 128)
    x = torch.randn(3, 256, requires_grad=True)
    numel = 256 * 128
    before = floats_of_size(numel)
    with Saved() as saved:
        y = layer(x)
    assert saved.nbytes == layer.quantized.nbytes == nf4_bytes(numel)
    assert floats_of_size(numel) == before  # nor does it hang anywhere else in the graph
    with Saved() as naive:
        z = F.linear(x, layer.weight, layer.bias)
    assert naive.nbytes >= 4 * numel  # what the hooks see when the weight is kept
    assert floats_of_size(numel) > before
    assert torch.equal(y, z)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("d_in", "d_out", "block"), [(64, 64, 64), (33, 7, 64), (100, 30, 32)])
def test_the_buffers_hold_the_predicted_bytes(
    d_in: int, d_out: int, block: int, double: bool
) -> None:
    layer = packed_layer(d_in, d_out, block=block, double=double)
    held = sum(b.nbytes for b in layer.buffers())
    assert held == layer.quantized.nbytes == nf4_bytes(d_in * d_out, block, double)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


def test_bytes_per_parameter_of_a_large_layer() -> None:
    numel = 4096 * 4096
    assert nf4_bytes(numel, double=False) / numel == 0.5625
    assert nf4_bytes(numel) / numel == pytest.approx(0.5 + 1 / 64 + 4 / (64 * 256), abs=1e-6)


def test_it_is_a_linear_layer_with_a_computed_weight() -> None:
    linear = nn.Linear(48, 16).eval()
    layer = LinearNF4.from_linear(linear, block=32, double=False)
    assert isinstance(layer, nn.Linear) and not layer.training
    assert (layer.in_features, layer.out_features) == (48, 16)
    assert torch.equal(layer.weight, dequantize_nf4(quantize_nf4(linear.weight, 32, False)))
    assert layer.bias is linear.bias and not layer.weight.requires_grad
    shown = repr(layer)
    for part in ("LinearNF4", "in_features=48", "out_features=16", "bias=True", "block=32"):
        assert part in shown
    assert "double=False" in shown and "torch.float32" in shown
    with pytest.raises(AttributeError, match="computed"):
        layer.weight = torch.zeros(16, 48)
    with pytest.raises(TypeError, match="frozen"):
        layer.reset_parameters()


def test_only_a_plain_linear_layer_is_taken() -> None:
    class Mine(nn.Linear):
        pass

    with pytest.raises(TypeError, match="Mine"):
        LinearNF4.from_linear(Mine(4, 4))
    with pytest.raises(ValueError, match="already"):
        LinearNF4.from_linear(packed_layer())
    pruned = nn.Linear(4, 4)
    prune.random_unstructured(pruned, "weight", 0.5)
    with pytest.raises(ValueError, match="pruning"):
        LinearNF4.from_linear(pruned)
    with pytest.raises(ValueError, match=r"\(out, in\)"):
        LinearNF4(quantize_nf4(torch.ones(2, 2, 2)))


@pytest.mark.parametrize("double", [False, True])
def test_to_changes_the_computed_type_and_no_stored_bit(double: bool) -> None:
    layer = packed_layer(double=double)
    stored = [bits(b) for b in layer.buffers()]
    full = layer.weight
    nn.ModuleList([layer]).to(torch.bfloat16)
    assert layer.weight.dtype == layer.bias.dtype == torch.bfloat16
    assert layer(torch.randn(2, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert [bits(b) for b in layer.buffers()] == stored
    layer.double()
    assert layer.weight.dtype == torch.float64
    layer.to(torch.float32)
    assert torch.equal(layer.weight, full) and [bits(b) for b in layer.buffers()] == stored
    layer.half().to("cpu").share_memory()
    assert layer.dtype == torch.float16 and [bits(b) for b in layer.buffers()] == stored
    moved = layer.to("meta")
    assert {b.device.type for b in moved.buffers()} == {"meta"} and moved.dtype == torch.float16


@pytest.mark.parametrize("double", [False, True])
def test_state_dict_and_deepcopy(double: bool) -> None:
    layer, other = packed_layer(double=double), packed_layer(double=double)
    assert not torch.equal(layer.weight, other.weight)
    twin = copy.deepcopy(layer)
    other.load_state_dict(layer.state_dict())
    for copied in (twin, other):
        assert torch.equal(copied.weight, layer.weight) and torch.equal(copied.bias, layer.bias)
        assert [bits(b) for b in copied.buffers()] == [bits(b) for b in layer.buffers()]
    assert twin.codes.data_ptr() != layer.codes.data_ptr()
    names = {"codes", "absmax", "bias"} | ({"absmax_scale", "absmax_mean"} if double else set())
    assert set(layer.state_dict()) == names
    with pytest.raises(RuntimeError, match="absmax_scale"):
        packed_layer(double=not double).load_state_dict(layer.state_dict())


def test_many_adapters_on_one_packed_base_under_vmap() -> None:
    layer = packed_layer(8, 6)
    xs, As = torch.randn(3, 5, 8), torch.randn(3, 8, 8)

    def loss(A: Tensor, x: Tensor) -> Tensor:
        return layer(x @ A).pow(2).sum()

    grads = torch.func.vmap(torch.func.grad(loss))(As, xs)
    one_by_one = [torch.func.grad(loss)(A, x) for A, x in zip(As, xs, strict=True)]
    torch.testing.assert_close(grads, torch.stack(one_by_one))


# --- whole models ---------------------------------------------------------------------------


def test_all_linears_but_the_head_are_replaced_in_place() -> None:
    model = Toy(d=16)
    plain = copy.deepcopy(model)
    bias = model.blocks[0].q_proj.bias
    seen: list[str] = []
    model.blocks[0].q_proj.register_forward_hook(lambda *_: seen.append("fired"))
    assert quantize_linears(model.eval()) is model
    assert len(nf4_linears(model)) == 8 and type(model.head) is nn.Linear
    assert model.blocks[0].q_proj.bias is bias and not model.blocks[0].q_proj.training
    x = ids()
    assert 0 < relative_error(model(x), plain(x)) < 0.2
    assert seen == ["fired"]


def test_targets_and_exclude_pick() -> None:
    model = quantize_linears(Toy(), targets=["q_proj", "v_proj"], exclude="blocks.1.*", block=32)
    packed = [path for path, m in model.named_modules() if isinstance(m, LinearNF4)]
    assert packed == ["blocks.0.q_proj", "blocks.0.v_proj"]
    assert {m.block for m in nf4_linears(model)} == {32}
    assert quantize_linears(Toy(), targets=nn.Linear).head.in_features == 8


def test_a_layer_in_two_places_stays_one_layer() -> None:
    shared = nn.Linear(8, 8)
    model = quantize_linears(nn.Sequential(shared, nn.Tanh(), shared))
    assert isinstance(model[0], LinearNF4) and model[0] is model[2]


def test_what_cannot_be_replaced_is_refused_and_nothing_changes() -> None:
    adapted = minilora.add_lora(Toy(), LoRAConfig(r=2, alpha=4, targets=["q_proj"]))
    refuses(adapted, lambda: quantize_linears(adapted), "before add_lora")
    model = Toy()
    refuses(model, lambda: quantize_linears(model, targets=["p_proj"]), "p_proj")
    refuses(model, lambda: quantize_linears(model, targets=["embed"]), "Embedding", error=TypeError)
    refuses(model, lambda: quantize_linears(model, block=0), "at least 2")
    refuses(model, lambda: dequantize_linears(model), "no LinearNF4")
    with torch.no_grad():
        model.blocks[1].up_proj.weight[0, 0] = float("nan")
    refuses(model, lambda: quantize_linears(model), "'blocks.1.up_proj'", "1 of 128")
    quantize_linears(model, targets=["q_proj"])
    refuses(model, lambda: quantize_linears(model, targets=["q_proj"]), "already")
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    refuses(tied, lambda: quantize_linears(tied), "shares its weight", "'1'")
    alone = packed_layer()
    with pytest.raises(ValueError, match="inside it"):
        dequantize_linears(alone)


def test_dequantizing_leaves_plain_frozen_layers_with_the_same_values() -> None:
    model = quantize_linears(Toy().eval(), block=32)
    x = ids()
    with torch.no_grad():
        before = model(x)
        weight = model.blocks[0].up_proj.weight
        assert dequantize_linears(model) is model
        assert not nf4_linears(model)
        layer = model.blocks[0].up_proj
        assert type(layer) is nn.Linear and torch.equal(layer.weight, weight)
        assert isinstance(layer.weight, nn.Parameter) and not layer.weight.requires_grad
        assert not layer.training and layer.bias.requires_grad
        assert torch.equal(model(x), before)


# --- under an adapter -----------------------------------------------------------------------


def adapted_toy(dtype: torch.dtype = torch.float32, **config: Any) -> Toy:
    torch.manual_seed(3)
    model = quantize_linears(Toy(d=16).to(dtype))
    settings = {"r": 4, "alpha": 8, "targets": "all-linear"} | config
    return minilora.add_lora(model, LoRAConfig(**settings))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_trains_on_a_packed_base(dtype: torch.dtype) -> None:
    model = adapted_toy(dtype)
    quantized = copy.deepcopy(model)
    stored = [bits(b) for b in model.buffers()]
    x = ids(8, 5)
    wanted = x % 3
    optimizer = torch.optim.AdamW(minilora.lora_parameters(model), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(model(x).float().flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(layer.A.dtype == torch.float32 for layer in minilora.lora_layers(model).values())
    assert [bits(b) for b in model.buffers()] == stored  # the base did not move
    with torch.no_grad(), minilora.disabled(model):
        assert torch.equal(model(x), minilora.remove_lora(quantized)(x))


def test_gradients_of_an_adapter_equal_those_on_the_dequantized_base() -> None:
    model = shake(adapted_toy())
    plain = dequantize_linears(copy.deepcopy(model))
    grads = []
    for m in (model, plain):
        with minilora.textbook():
            m(ids(4, 3) * 0 + 2).pow(2).sum().backward()
        grads.append([p.grad for p in minilora.lora_parameters(m)])
    for ours, theirs in zip(*grads, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_an_adapted_model_keeps_no_weight_in_full_for_the_backward() -> None:
    model = adapted_toy()
    up = model.blocks[0].up_proj.base  # (32, 16): no activation of two tokens is as large
    with Saved() as saved:
        model(ids(1, 2)).sum()
    sizes = {t.numel() for t in saved.tensors.values() if t.is_floating_point()}
    assert max(sizes) < up.in_features * up.out_features


def test_an_adapter_on_a_packed_base_is_saved_and_loaded(tmp_path: Any) -> None:
    model = shake(adapted_toy())
    fresh = adapted_toy()
    minilora.save(model, tmp_path)
    minilora.load(fresh, tmp_path)
    x = ids()
    with torch.no_grad():
        assert torch.equal(fresh(x), model(x))


def test_merging_is_refused_until_the_base_is_dequantized() -> None:
    model = shake(adapted_toy())
    x = ids()
    refuses(model, lambda: minilora.merge(model), "computed")
    with torch.no_grad():
        before = model(x)
        dequantize_linears(model)
        torch.testing.assert_close(model(x), before)
        with minilora.merged(model):
            torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
        minilora.merge(model)
        minilora.remove_lora(model, keep_update=True)
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    assert type(model.blocks[0].q_proj) is nn.Linear


def test_removing_the_adapter_leaves_the_packed_base() -> None:
    torch.manual_seed(3)
    model = quantize_linears(Toy(d=16))
    with unchanged(model):
        minilora.add_lora(model, LoRAConfig(r=2, alpha=4, targets=["q_proj", "up_proj"]))
        shake(model)
        minilora.remove_lora(model)


def test_summary_counts_the_weights_that_the_codes_stand_for():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    before = minilora.count_parameters(model)
    quantize_linears(model, targets=["0", "2"])
    assert minilora.count_parameters(model) == before
    minilora.add_lora(model, minilora.LoRAConfig(r=2, targets=["0"]))
    assert minilora.summary(model).total == before + 2 * (8 + 8)


def test_a_packed_layer_cannot_be_trained_whole():
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "head": nn.Sequential(nn.Linear(8, 4))})
    quantize_linears(model, targets=["head.0"])
    config = LoRAConfig(r=2, targets=["a"], modules_to_save=["head"])
    refuses(model, lambda: minilora.add_lora(model, config), "'head'", "quantized")


# --- other levels ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_normal_floats_are_made_as_nf4_is(bits: int) -> None:
    levels = normal_float_levels(bits)
    assert levels.shape == (2**bits,) and levels.dtype == torch.float32
    assert (levels.diff() > 0).all() and levels[0] == -1 and levels[-1] == 1
    assert levels[2 ** (bits - 1) - 1] == 0


def test_four_bits_of_normal_float_are_nf4() -> None:
    torch.testing.assert_close(normal_float_levels(4), NF4_LEVELS, rtol=0, atol=1e-6)
    assert torch.equal(normal_float_levels(4, NF4_OFFSET), nf4_levels())


def test_two_bits_by_hand() -> None:
    """Quantiles at the offset and half way to one half, by the rule and as LoftQ has it."""
    for offset in (1 - (1 / 6 + 1 / 8) / 2, NF4_OFFSET):
        middle = torch.special.ndtri(torch.tensor((offset + 0.5) / 2, dtype=torch.float64))
        largest = torch.special.ndtri(torch.tensor(offset, dtype=torch.float64))
        expected = torch.tensor([-1, 0, float(middle / largest), 1])
        torch.testing.assert_close(normal_float_levels(2, offset), expected, rtol=0, atol=1e-6)
    assert torch.equal(normal_float_levels(2), normal_float_levels(2, 1 - (1 / 6 + 1 / 8) / 2))


@pytest.mark.parametrize("bits", [1, 9, 2.5, "4", True])
def test_other_numbers_of_bits_are_refused(bits: Any) -> None:
    with pytest.raises(ValueError, match="whole number from 2 to 8"):
        normal_float_levels(bits)


def test_fp4_are_all_numbers_of_its_bits() -> None:
    """Sign, two bits of exponent with a bias of 1, one bit of fraction; exponent 0 is subnormal."""
    found = set()
    for code in range(16):
        sign, exponent, fraction = code >> 3, code >> 1 & 3, code & 1
        size = fraction / 2 if exponent == 0 else 2 ** (exponent - 1) * (1 + fraction / 2)
        found.add((-1) ** sign * size / 6)
    expected = torch.tensor(sorted(found), dtype=torch.float32)
    torch.testing.assert_close(fp4_levels(), expected, rtol=0, atol=1e-7)


def test_fp4_of_bitsandbytes_differs_in_one_level() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    theirs = functional.get_4bit_type("fp4", device="cpu").abs().unique()
    mine = fp4_levels().abs().unique()
    differing = (theirs - mine).abs() > 1e-6
    assert differing.tolist() == [False, True, *[False] * 6]
    assert theirs[1].item() == pytest.approx(1 / 192, rel=1e-4)
