"""The adapted layers: their formula, their fast form, and when it must not be used."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from core_help import bits, close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, parametrize

import minilora
from minilora import LoRAConfig
from minilora.initializers import initialize
from minilora.layers import LoRAConv, LoRAEmbedding, LoRAHFConv1D, LoRALayer, LoRALinear


def linear(d_in=6, d_out=5, r=3, bias=True, dtype=torch.float32, scaling=0.7, **kw) -> LoRALinear:
    """A LoRALinear with both factors random and its base frozen."""
    base = nn.Linear(d_in, d_out, bias=bias, dtype=dtype).requires_grad_(False)
    layer = LoRALinear(base, r, 1.0, scaling, **kw)
    initialize(layer, "default")
    nn.init.normal_(layer.B)
    return layer


def embedding(vocab=9, dim=4, r=3, dtype=torch.float32, **kw) -> LoRAEmbedding:
    base = nn.Embedding(vocab, dim, dtype=dtype, **kw).requires_grad_(False)
    layer = LoRAEmbedding(base, r, 1.0, 0.7)
    initialize(layer, "default")
    nn.init.normal_(layer.A)
    return layer


def conv(dtype=torch.float32, cls=nn.Conv2d, **kw) -> LoRAConv:
    base = cls(3, 4, kw.pop("kernel", 3), dtype=dtype, **kw).requires_grad_(False)
    layer = LoRAConv(base, 2, 1.0, 0.7)
    initialize(layer, "default")
    nn.init.normal_(layer.B)
    return layer


def hf_conv1d(dtype=torch.float32, d_in=6, d_out=5, **kw) -> LoRAHFConv1D:
    base = pytest.importorskip("transformers.pytorch_utils").Conv1D(d_out, d_in)
    layer = LoRAHFConv1D(base.to(dtype).requires_grad_(False), 2, 1.0, 0.7, **kw)
    initialize(layer, "default")
    nn.init.normal_(layer.B)
    return layer


class Spy(LoRALinear):
    """Notes which form was used."""

    def _fast(self, x: Tensor) -> Tensor:
        self.used = "fast"
        return super()._fast(x)

    def _textbook(self, x: Tensor) -> Tensor:
        self.used = "textbook"
        return super()._textbook(x)


def form(layer: LoRALinear, x: Tensor) -> str:
    """The form that ``layer`` takes for ``x``; the value must be the formula's either way."""
    layer.__class__ = Spy
    y = layer(x)
    assert y.shape == (*x.shape[:-1], layer.out_features)
    return layer.used


# --- the formula ----------------------------------------------------------------------------


def test_shapes_are_pefts():
    layer = linear(d_in=6, d_out=5, r=3)
    assert (layer.A.shape, layer.B.shape, layer.delta().shape) == ((3, 6), (5, 3), (5, 6))
    table = embedding(vocab=9, dim=4, r=3)
    assert (table.A.shape, table.B.shape, table.delta().shape) == ((3, 9), (4, 3), (9, 4))


def test_linear_is_the_papers_formula():
    layer, x = linear(dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)
    by_hand = torch.stack(
        [layer.weight @ row + layer.bias + 0.7 * (layer.B @ (layer.A @ row)) for row in x[0]]
    )
    assert torch.allclose(layer(x)[0], by_hand, rtol=1e-12)
    assert torch.allclose(layer.delta(), 0.7 * layer.B @ layer.A, rtol=1e-12)
    assert torch.allclose(layer(x), F.linear(x, layer.weight + layer.delta(), layer.bias))


def test_embedding_is_a_lookup_in_the_updated_table():
    layer, ids = embedding(dtype=torch.float64), torch.randint(0, 9, (2, 5))
    by_hand = layer.weight[ids[0, 0]] + 0.7 * layer.B @ layer.A[:, ids[0, 0]]
    assert torch.allclose(layer(ids)[0, 0], by_hand, rtol=1e-12)
    assert torch.allclose(layer(ids), F.embedding(ids, layer.weight + layer.delta()))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (conv(), (2, 3, 7, 8)),
        (conv(kernel=(1, 3), stride=2, padding=1, bias=False), (2, 3, 7, 8)),
        (conv(padding="same"), (3, 7, 8)),  # without a batch
        (conv(cls=nn.Conv1d, kernel=2), (2, 3, 7)),
        (conv(cls=nn.Conv1d, kernel=1), (3, 7)),
    ],
)
def test_convolution_equals_one_with_the_updated_weight(layer, shape):
    x = torch.randn(shape)
    wanted = layer.base._conv_forward(x, layer.weight + layer.delta(), layer.bias)
    assert layer(x).shape == wanted.shape
    assert close(layer(x), wanted, 1e-5)
    assert not close(layer(x), layer.base(x), 1e-2)
    # delta() entry by entry: output o, input i, and every place in the kernel
    by_hand = torch.einsum("or,ri...->oi...", layer.B.flatten(1), layer.A) * 0.7
    assert close(layer.delta(), by_hand, 1e-5)


def test_hugging_face_conv1d_has_its_weight_the_other_way_round():
    layer, x = hf_conv1d(d_in=5, d_out=5), torch.randn(2, 4, 5)  # square: a swap would go unseen
    wanted = x @ layer.weight + layer.bias + x @ layer.A.T @ layer.B.T * 0.7
    assert close(layer(x), wanted)
    assert close(x @ (layer.weight + layer.delta()) + layer.bias, wanted)
    with minilora.textbook():
        assert close(layer(x), wanted)
    assert layer.A.shape == (2, 5) and layer.nf == 5


def test_default_init_of_a_convolution_is_that_of_nn_conv2d():
    layer = LoRAConv(nn.Conv2d(100, 9, 3), 64, 1, 1.0)
    initialize(layer, "default")
    bound = (100 * 9) ** -0.5
    assert 0.99 * bound < layer.A.abs().max() <= bound
    assert torch.equal(layer.B, torch.zeros(9, 64, 1, 1))


def test_default_init():
    """Linear: A uniform in ±1/√d_in, B zero. Embedding: A zero, B standard normal [PEFT]."""
    layer = LoRALinear(nn.Linear(100, 50), 64, 1, 1.0)
    initialize(layer, "default")
    assert torch.equal(layer.B, torch.zeros(50, 64))
    assert 0.09 < layer.A.abs().max() <= 0.1
    assert abs(layer.A.std() - 0.1 / 3**0.5) < 0.003
    table = LoRAEmbedding(nn.Embedding(100, 50), 64, 1, 1.0)
    initialize(table, "default")
    assert torch.equal(table.A, torch.zeros(64, 100))
    assert abs(table.B.std() - 1) < 0.05


def test_gaussian_init_has_standard_deviation_one_over_r():
    layer = LoRALinear(nn.Linear(400, 50), 16, 1, 1.0)
    initialize(layer, "gaussian")
    assert abs(layer.A.std() - 1 / 16) < 0.003
    assert layer.A.abs().max() > 2.5 / 16  # not uniform
    assert torch.equal(layer.B, torch.zeros(50, 16))


def test_init_callable_fills_in_place_and_may_not_reshape():
    def ones(layer: LoRALayer) -> None:
        layer.A.fill_(1)

    layer = linear()
    initialize(layer, ones)
    assert torch.equal(layer.A, torch.ones(3, 6))
    assert torch.equal(layer.B, torch.zeros(5, 3))  # the default still fills what it leaves

    def reshape(layer: LoRALayer) -> None:
        layer.A = nn.Parameter(torch.zeros(2, 6))

    with pytest.raises(ValueError, match=r"\(3, 6\).*\(2, 6\).*in place"):
        initialize(layer, reshape)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_adapters_of_half_precision_bases_are_float32(half):
    assert linear(dtype=half).A.dtype == linear(dtype=half).B.dtype == torch.float32
    assert embedding(dtype=half).A.dtype == torch.float32
    assert linear(dtype=half)(torch.randn(2, 6, dtype=half)).dtype == half
    assert embedding(dtype=half)(torch.tensor([1, 2])).dtype == half
    assert linear(dtype=torch.float64).A.dtype == torch.float64


def test_forwards_what_others_read_from_the_base():
    layer = linear()
    assert layer.weight is layer.base.weight
    assert layer.bias is layer.base.bias
    assert (layer.in_features, layer.out_features) == (6, 5)
    assert layer.weight.dtype == torch.float32  # as T5 reads wo.weight.dtype
    table = embedding()
    assert (table.num_embeddings, table.embedding_dim, table.padding_idx) == (9, 4, None)
    assert linear(bias=False).bias is None
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = layer.no_such_thing
    with pytest.raises(AttributeError):
        _ = layer._private
    layer.base.mark = layer.base._mark = 7
    assert layer.mark == 7
    assert not hasattr(layer, "_mark")  # what is private to the base stays with it
    assert "r=3" in repr(layer)
    assert "scale=0.7" in repr(layer)


def test_zero_sized_layers():
    assert linear(d_in=0)(torch.randn(3, 0)).shape == (3, 5)
    assert linear(d_out=0)(torch.randn(3, 6)).shape == (3, 0)


def test_embedding_keeps_padding_and_frequency_gradients():
    ids = torch.tensor([[1, 1, 1, 0, 0, 2]])
    for kw in ({}, {"padding_idx": 0}, {"scale_grad_by_freq": True}):
        layer = embedding(dtype=torch.float64, **kw)
        layer(ids).sum().backward()
        table = nn.Embedding(9, 3, dtype=torch.float64, **kw)
        with torch.no_grad():
            table.weight.copy_(layer.A.T)
        ((table(ids) @ layer.B.detach().T) * 0.7).sum().backward()
        assert torch.allclose(layer.A.grad.T, table.weight.grad)


# --- the fast form equals the textbook's ----------------------------------------------------


@settings(max_examples=60)
@given(
    seed=st.integers(0, 9999),
    shape=st.lists(st.integers(0, 4), min_size=0, max_size=3),
    d_in=st.integers(1, 20),
    d_out=st.integers(1, 20),
    r=st.integers(1, 8),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    scaling=st.sampled_from([1.0, 0.7, 3.3, 1e-3]),
    sliced=st.booleans(),
)
def test_fast_equals_textbook(seed, shape, d_in, d_out, r, bias, dtype, scaling, sliced):
    torch.manual_seed(seed)
    layer = linear(d_in, d_out, r, bias, dtype, scaling)
    x = torch.randn(*shape, d_in, dtype=dtype)
    if sliced:  # not contiguous
        x = torch.randn(*shape, 2 * d_in, dtype=dtype)[..., ::2]
    results = []
    for use in (minilora.textbook(), nullcontext()):
        leaf = x.detach().requires_grad_()
        with use:
            y = layer(leaf)
        grads = torch.autograd.grad(y.sin().sum(), [leaf, layer.A, layer.B])
        results.append([y, *grads])
    for slow, fast in zip(*results, strict=True):
        assert slow.shape == fast.shape
        assert close(fast, slow)


def test_fast_form_is_used_where_it_is_safe():
    layer = linear()
    assert form(layer, torch.randn(4, 6)) == "fast"
    assert form(layer, torch.randn(2, 3, 4, 6)) == "fast"
    assert form(layer, torch.randn(6, 4).T) == "fast"
    assert form(linear(bias=False), torch.randn(4, 6)) == "fast"
    assert form(linear(dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)) == "fast"
    with torch.inference_mode():
        assert form(layer, torch.randn(4, 6)) == "fast"
    with torch.no_grad():
        assert form(layer, torch.randn(4, 6)) == "fast"


def test_textbook_context_forces_nests_and_restores():
    layer, x = linear(), torch.randn(4, 6)
    with minilora.textbook():
        with minilora.textbook():
            assert form(layer, x) == "textbook"
        assert form(layer, x) == "textbook"
    assert form(layer, x) == "fast"
    with pytest.raises(KeyError), minilora.textbook():
        raise KeyError
    assert form(layer, x) == "fast"


class Labelled(Tensor):
    pass


class Doubling(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def expected(layer: LoRALinear, x: Tensor) -> Tensor:
    return layer.base(x) + (x @ layer.A.T @ layer.B.T) * layer.scale


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_fast_form_on_half_precision_casts_the_factors_and_keeps_x_as_it_is(half):
    layer, x = linear(64, 48, 4, dtype=half), torch.randn(100, 64, dtype=half)
    assert form(layer, x) == "fast"
    x.requires_grad_()
    layer(x).float().sin().sum().backward()
    assert layer.A.grad.dtype == layer.B.grad.dtype == torch.float32
    exact = x.detach().double() @ (layer.weight.double() + layer.delta().double()).T
    exact = exact + layer.bias.double()
    assert (layer(x).double() - exact).norm() < torch.finfo(half).eps * exact.norm()


def test_textbook_for_awkward_inputs():
    layer = linear()
    for x in (torch.randn(6), torch.randn(0, 6), torch.randn(2, 0, 6)):
        assert form(layer, x) == "textbook"
        assert torch.allclose(layer(x), expected(layer, x), atol=1e-6)
    half = linear(dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="dtype"):  # what the base itself says
        half(torch.randn(4, 6))
    assert form(layer, torch.randn(4, 6).as_subclass(Labelled)) == "textbook"
    meta = linear().to("meta")
    assert meta(torch.randn(4, 6, device="meta")).shape == (4, 5)
    rows = [torch.randn(2, 6), torch.randn(3, 6)]
    for layout in (torch.jagged, torch.strided):
        nested = torch.nested.nested_tensor(rows, layout=layout)
        with torch.no_grad():
            assert torch.allclose(layer(nested).unbind()[1], layer(rows[1]), atol=1e-6)
    with pytest.raises(RuntimeError):
        layer(torch.randn(4, 5))


def test_textbook_under_autocast():
    layer, x = linear(), torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert form(layer, x) == "textbook"
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert close(y.float(), layer(x), 3e-2)
    y.float().sum().backward()
    assert layer.A.grad.dtype == torch.float32


def test_textbook_for_other_bases():
    x = torch.randn(4, 6)
    layer = LoRALinear(Doubling(6, 5), 2, 1, 1.0)
    initialize(layer, "default")
    nn.init.normal_(layer.B)
    assert form(layer, x) == "textbook"
    assert torch.equal(layer(x), expected(layer, x))
    layer = linear()
    layer.base.forward = lambda x: torch.zeros(*x.shape[:-1], 5)  # as offloading libraries do
    assert form(layer, x) == "textbook"
    assert torch.allclose(layer(x), (x @ layer.A.T @ layer.B.T) * 0.7)


def test_textbook_for_parametrized_bases():
    class Negate(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return -w

    layer, x = linear(), torch.randn(4, 6)
    before = layer.base(x) - layer.bias
    parametrize.register_parametrization(layer.base, "weight", Negate())
    assert form(layer, x) == "textbook"
    assert torch.allclose(layer.base(x) - layer.bias, -before)
    assert torch.equal(layer(x), expected(layer, x))
    spectral = LoRALinear(parametrizations.spectral_norm(nn.Linear(6, 5)).eval(), 2, 1, 1.0)
    initialize(spectral, "default")
    assert form(spectral, x) == "textbook"


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_on_the_base_fire_once(kind):
    layer, calls = linear(), []
    handle = getattr(layer.base, f"register_{kind}_hook")(lambda *a: calls.append(1))
    x = torch.randn(4, 6, requires_grad=True)
    assert form(layer, x) == "textbook"
    calls.clear()
    y = layer(x)
    y.sum().backward()
    assert len(calls) == 1
    assert torch.allclose(y, expected(linear_without_hooks(layer), x), atol=1e-6)
    handle.remove()
    assert form(layer, x) == "fast"


def linear_without_hooks(layer: LoRALinear) -> LoRALinear:
    twin = linear()
    twin.load_state_dict(layer.state_dict())
    return twin


def test_hooks_that_change_the_output_count():
    layer, x = linear(), torch.randn(4, 6)
    plain = layer(x)
    layer.base.register_forward_hook(lambda m, a, y: y + 1)
    assert torch.allclose(layer(x), plain + 1, atol=1e-5)


def test_global_hooks_see_the_base_once():
    layer, seen = linear(), []
    handle = register_module_forward_hook(lambda m, a, y: seen.append(m))
    try:
        assert form(layer, torch.randn(4, 6)) == "textbook"
    finally:
        handle.remove()
    assert sum(m is layer.base for m in seen) == 1


def test_functorch_transforms():
    layer = linear(dtype=torch.float64)
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    assert torch.allclose(torch.vmap(layer)(x), layer(x))
    stacked = {"A": torch.randn(2, 3, 6, dtype=torch.float64)}  # two adapters over one base

    def run(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,)).sum()

    many = torch.vmap(torch.func.grad(run), in_dims=(0, None))(stacked, x)["A"]
    one = torch.func.grad(run)({"A": stacked["A"][1]}, x)["A"]
    assert torch.allclose(many[1], one)
    value, tangent = torch.func.jvp(layer, (x,), (x,))
    assert torch.allclose(tangent, value - layer.bias)  # the layer is affine
    J = torch.func.jacrev(layer)(x[0, :1])[0, :, 0]
    assert torch.allclose(J, layer.weight + layer.delta())


def test_forward_mode_and_vectorized_jacobians_outside_functorch():
    layer, x = linear(dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        y = layer(torch.autograd.forward_ad.make_dual(x, x))
        value, tangent = torch.autograd.forward_ad.unpack_dual(y)
    assert torch.allclose(tangent, value - layer.bias)
    J = torch.autograd.functional.jacobian(layer, x, vectorize=True)
    assert torch.allclose(J[0, :, 0], layer.weight + layer.delta())


@pytest.mark.parametrize("make", [linear, embedding, conv, hf_conv1d])
def test_gradcheck_and_gradgradcheck(make):
    layer = make(dtype=torch.float64)
    if make is embedding:
        inputs = (torch.tensor([[1, 3], [3, 0]]),)
    else:
        shape = (1, 3, 4, 4) if make is conv else (2, 2, 6)
        inputs = (torch.randn(shape, dtype=torch.float64, requires_grad=True),)

    def run(x, A, B):
        return torch.func.functional_call(layer, {"A": A, "B": B}, (x,))

    def direct(x, A, B):  # the fast form, with the parameters swapped in by hand
        layer._parameters.update(A=A, B=B)
        return layer(x).sin()

    leaves = [p.detach().clone().requires_grad_() for p in (layer.A, layer.B)]
    for function in (run, direct):
        assert torch.autograd.gradcheck(function, (*inputs, *leaves))
        assert torch.autograd.gradgradcheck(function, (*inputs, *leaves))


def test_output_may_be_changed_in_place():
    layer, x = linear(), torch.randn(4, 6, requires_grad=True)
    y = layer(x).relu_()
    (gradient,) = torch.autograd.grad(y.sum(), x)
    with minilora.textbook():
        (reference,) = torch.autograd.grad(layer(x).relu().sum(), x)
    assert close(gradient, reference)


def test_input_is_not_changed():
    layer, x = linear(), torch.randn(4, 6)
    before = bits(x)
    layer(x)
    assert bits(x) == before


def test_compile_takes_the_textbook_form_in_one_graph():
    layer, x = linear(), torch.randn(4, 6)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    y = compiled(x)
    assert close(y, layer(x))
    y.sum().backward()
    reference = copy.deepcopy(layer)
    reference.zero_grad()
    reference(x).sum().backward()
    assert close(layer.A.grad, reference.A.grad)
    with minilora.textbook():
        assert close(compiled(x), layer(x))
    layer.__class__ = Spy
    torch.compile(layer, backend="eager")(x)
    assert layer.used == "textbook"


# --- dropout, memory ------------------------------------------------------------------------


def test_dropout_only_in_training_and_only_on_the_update():
    layer, x = linear(dropout=0.5), torch.ones(2000, 6)
    assert form(layer.eval(), x) == "fast"
    assert torch.equal(layer(x)[0], layer(x)[1])
    with minilora.textbook():
        assert torch.equal(layer(x)[0], layer(x)[1])
    layer.train()
    y = layer(x)
    assert not torch.equal(y[0], y[1])
    mean = y.mean(0)  # dropout scales what it keeps, so the mean stays
    assert torch.allclose(mean, layer.eval()(x)[0], atol=0.2)
    layer.train()
    nn.init.zeros_(layer.B)
    assert torch.equal(layer(x), layer.base(x))
    for context in (minilora.textbook(), torch.no_grad()):
        with context:
            torch.manual_seed(3)
            a = layer(x)
            torch.manual_seed(3)
            assert torch.equal(a, layer(x))


def saved_tensors(run) -> list[Tensor]:
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run()
    return saved


def test_bf16_base_keeps_no_float32_copy_of_x():
    layers = [linear(64, 64, 2, dtype=torch.bfloat16) for _ in range(3)]
    x = torch.randn(128, 64, dtype=torch.bfloat16)
    saved = saved_tensors(lambda: sum(layer(x) for layer in layers))
    wide = [t for t in saved if t.numel() >= x.numel()]
    assert wide  # A's gradient needs x itself,
    assert {t.dtype for t in wide} == {torch.bfloat16}
    assert {t.untyped_storage().data_ptr() for t in wide} == {x.untyped_storage().data_ptr()}


def test_fast_form_saves_one_shared_x_and_narrow_tensors():
    layers = [linear(64, 64, 2) for _ in range(3)]
    x = torch.randn(128, 64)
    saved = saved_tensors(lambda: [layer(x) for layer in layers])
    wide = [t for t in saved if t.numel() >= x.numel()]
    assert {t.untyped_storage().data_ptr() for t in wide} == {x.untyped_storage().data_ptr()}


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_update_is_close_to_the_exact_one(half):
    layer = linear(32, 16, 4, dtype=half)
    x = torch.randn(8, 32, dtype=half)
    exact = x.double() @ (layer.weight + layer.delta()).double().T + layer.bias.double()
    y = layer(x)
    assert y.dtype == half
    assert close(y.double(), exact, 2e-2)
    y.sum().backward()
    assert layer.A.grad.dtype == torch.float32
    with minilora.textbook():
        assert close(layer(x).double(), exact, 1e-2)


def test_textbook_on_half_precision_rounds_the_sum_once():
    """As PEFT: the update is computed in float32, added, and only the sum is rounded."""
    layer, x = linear(dtype=torch.bfloat16), torch.randn(4, 6, dtype=torch.bfloat16)
    with minilora.textbook():
        update = F.linear(F.linear(x.float(), layer.A), layer.B) * 0.7
        assert torch.equal(layer(x), (layer.base(x) + update).bfloat16())
    table, ids = embedding(dtype=torch.bfloat16), torch.randint(0, 9, (4, 5))
    update = F.embedding(ids, table.A.T) @ table.B.T * 0.7
    assert torch.equal(table(ids), (table.base(ids) + update).bfloat16())


def test_strength_off_and_merged_flags():
    layer, x = linear(), torch.randn(4, 6)
    layer.strength = 2.0
    assert layer.scale == 1.4
    assert close(layer(x) - layer.base(x), 1.4 * x @ layer.A.T @ layer.B.T, 1e-4)
    layer.off = 1
    assert torch.equal(layer(x), layer.base(x))
    assert "disabled" in repr(layer)
    layer.off, layer.merged = 0, True
    assert torch.equal(layer(x), layer.base(x))
    assert "merged" in repr(layer)
    table, ids = embedding(), torch.randint(0, 9, (4, 5))
    for flag in ("off", "merged"):
        setattr(table, flag, 1)
        assert torch.equal(table(ids), table.base(ids))
        setattr(table, flag, 0)
    assert not torch.equal(table(ids), table.base(ids))


def test_textbook_takes_effect_inside_a_model():
    model = minilora.add_lora(nn.Sequential(nn.Linear(64, 64)), LoRAConfig(targets=["0"], alpha=3))
    nn.init.normal_(model[0].B)
    x = torch.randn(50, 64)
    with minilora.textbook():
        y = model(x)
    layer = model[0]
    by_hand = layer.base(x) + F.linear(F.linear(x, layer.A), layer.B) * layer.scale
    assert torch.equal(y, by_hand)
