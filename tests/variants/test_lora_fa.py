"""LoRA-FA: A stays, B trains, and the layer's input is not kept."""

import copy

import pytest
import torch
from core_help import Toy, bits, ids, refuses, shake, toy
from torch import Tensor, nn

import minilora
from minilora import LoRAConfig, add_lora
from minilora.variants.adalora import add_adalora
from minilora.variants.lora_fa import freeze_A


def test_an_optimizer_moves_b_and_leaves_a_to_the_bit():
    model = toy(r=2, targets=["q_proj", "up_proj"], bias="lora_only")
    optimizer = torch.optim.AdamW(minilora.lora_parameters(model), lr=0.1, weight_decay=0.5)
    model(ids()).square().sum().backward()
    optimizer.step()  # now the optimizer has a momentum for A, and A has a gradient
    freeze_A(model)
    before = {p: bits(p) for p in minilora.lora_parameters(model)}
    for _ in range(3):
        optimizer.step()  # without a new gradient: the old one must not count either
        optimizer.zero_grad()
        model(ids()).square().sum().backward()
    frozen = {layer.A for layer in minilora.lora_layers(model).values()}
    assert len(frozen) == 4
    for p, old in before.items():
        assert (bits(p) == old) == (p in frozen)


def saved_bytes(run, rows: int) -> int:
    """Bytes of the distinct activations, tensors of ``rows`` rows, kept for the backward pass."""
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        if t.shape[0] == rows:
            kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = run()
    total = sum(t.untyped_storage().nbytes() for t in kept.values())
    y.sum().backward()
    return total


@pytest.mark.parametrize("textbook", [False, True])
def test_the_input_is_not_kept(textbook):
    n, d, r, depth = 64, 32, 4, 3
    model = nn.Sequential(*[nn.Linear(d, d) for _ in range(depth)])
    shake(add_lora(model, LoRAConfig(r=r, targets=["0", "1", "2"])))
    x = torch.randn(n, d, requires_grad=True)

    def run() -> Tensor:
        if not textbook:
            return model(x)
        with minilora.textbook():
            return model(x)

    assert saved_bytes(run, n) == depth * n * (d + r) * 4  # x and A x in every layer
    freeze_A(model)
    assert saved_bytes(run, n) == depth * n * r * 4  # A x alone


def test_outputs_and_the_gradient_of_b_are_those_of_lora():
    model = toy(r=3, targets=["q_proj", "up_proj"])
    other = freeze_A(copy.deepcopy(model))
    x = ids()
    y, z = model(x), other(x)
    assert bits(y) == bits(z)
    y.sin().sum().backward()
    z.sin().sum().backward()
    for path, layer in minilora.lora_layers(model).items():
        twin = minilora.lora_layers(other)[path]
        assert torch.equal(layer.B.grad, twin.B.grad)
        assert layer.A.grad is not None and twin.A.grad is None


def test_the_update_moves_by_a_projection_of_the_full_gradient():
    layer = freeze_A(
        add_lora(nn.Sequential(nn.Linear(6, 5)), LoRAConfig(r=2, alpha=6, targets=["0"]))
    )[0]
    x = torch.randn(7, 6)
    weight = layer.base.weight.detach().clone().requires_grad_()
    nn.functional.linear(x, weight, layer.base.bias).square().sum().backward()
    layer(x).square().sum().backward()
    before = layer.delta().detach()
    torch.optim.SGD([layer.B], lr=0.01).step()
    moved = layer.delta() - before
    expected = -0.01 * layer.scale**2 * weight.grad @ layer.A.T @ layer.A
    assert torch.allclose(moved, expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_peft_freezes_the_same_and_corrects_the_gradient_of_b():
    peft = pytest.importorskip("peft")
    optimizers = pytest.importorskip("peft.optimizers")
    torch.manual_seed(0)
    base = Toy()
    other = peft.get_peft_model(
        copy.deepcopy(base),
        peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "v_proj"]),
    )
    optimizer = optimizers.create_lorafa_optimizer(other, r=2, lora_alpha=6, lr=0.1)
    model = add_lora(base, LoRAConfig(r=2, alpha=6, targets=["q_proj", "v_proj"]))
    theirs = {name: p for name, p in other.named_parameters() if "lora_" in name}
    layers = minilora.lora_layers(model)
    for path, layer in layers.items():
        with torch.no_grad():
            layer.A.copy_(theirs[f"base_model.model.{path}.lora_A.default.weight"])
    freeze_A(model)
    x = ids()
    with minilora.textbook():
        model(x).square().sum().backward()
    other(x).square().sum().backward()
    optimizer.step()
    for path, layer in layers.items():
        A = theirs[f"base_model.model.{path}.lora_A.default.weight"]
        B = theirs[f"base_model.model.{path}.lora_B.default.weight"]
        assert A.requires_grad == layer.A.requires_grad == False  # noqa: E712
        assert torch.equal(B.grad, layer.B.grad)
        # PEFT's first step follows not this gradient but G_B (A Aᵀ)⁻¹ / scale², in bfloat16.
        state = optimizer.state[f"base_model.model.{path}.lora"]
        followed = state["exp_avg_B"] / (1 - 0.9)
        corrected = layer.B.grad @ torch.linalg.inv(A @ A.T) / layer.scale**2
        assert torch.allclose(followed, corrected, rtol=0.02, atol=0.02 * corrected.abs().max())
        # The correction makes the step of ΔW the projection of the full gradient onto A's rows.
        rows = torch.linalg.qr(A.T).Q  # (in, r), orthonormal
        G = torch.linalg.lstsq(A.T @ A, (layer.B.grad @ A).T / layer.scale).solution.T
        assert torch.allclose(layer.scale * corrected @ A, G @ rows @ rows.T, atol=1e-3)


def test_an_embedding_is_refused():
    model = toy(r=2, targets=["q_proj", "embed"])
    refuses(model, lambda: freeze_A(model), "'embed'", "begins at zero", "exclude")


def test_other_variants_and_plain_models_are_refused():
    model = add_adalora(Toy(), LoRAConfig(r=2, targets=["q_proj"]))
    refuses(model, lambda: freeze_A(model), "AdaLoRALayer")
    refuses(Toy(), lambda: freeze_A(Toy()), "add_lora")


def test_the_adapter_is_saved_merged_and_removed_as_ever(tmp_path):
    plain = Toy()
    model = freeze_A(shake(add_lora(copy.deepcopy(plain), LoRAConfig(r=2, targets=["q_proj"]))))
    x = ids()
    y = model(x)
    minilora.save(model, tmp_path)
    assert torch.allclose(minilora.load(copy.deepcopy(plain), tmp_path)(x), y)
    with minilora.merged(model):
        assert torch.allclose(model(x), y, atol=1e-5)
    assert bits(minilora.remove_lora(model)(x)) == bits(plain(x))
    assert all(p.requires_grad for p in model.parameters())


def test_summary_counts_what_still_trains():
    model = add_lora(Toy(), LoRAConfig(r=2, targets=["q_proj"]))
    before = minilora.summary(model).trainable
    freeze_A(model)
    assert minilora.summary(model).trainable == before // 2
    assert [row[4] for row in minilora.summary(model).rows] == [16, 16]


def test_an_A_that_began_as_a_part_of_the_weight_is_refused():
    model = add_lora(Toy(), LoRAConfig(r=2, targets=["q_proj"], init="pissa"))
    refuses(model, lambda: freeze_A(model), "part of the weight", "init='default'")
