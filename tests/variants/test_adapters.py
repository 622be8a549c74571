"""Serial adapters: in after the named layers, near the identity, and out without a trace."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from core_help import Toy, bits, close, ids, refuses, snapshot, toy
from torch import nn

from minilora.variants import freezing
from minilora.variants.adapters import Bottleneck, add_adapters, remove_adapters
from minilora.variants.bitfit import add_bitfit

SHAKEN = 0.5


def adapted(model: nn.Module | None = None, **options) -> tuple[nn.Module, list[nn.Parameter]]:
    torch.manual_seed(0)
    model = Toy() if model is None else model
    options.setdefault("targets", ["v_proj", "down_proj"])
    parameters = add_adapters(model, **options)
    with torch.no_grad():
        for p in parameters:
            p.add_(torch.randn_like(p) * SHAKEN)
    return model, parameters


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_outputs_by_hand(activation):
    model, _ = adapted(nn.Sequential(nn.Linear(3, 4)), targets=["0"], activation=activation)
    x = torch.randn(2, 5, 3)
    a = model[0].adapter
    h = F.linear(x, model[0].weight, model[0].bias)
    narrow = getattr(F, activation)(h @ a.down.weight.T + a.down.bias)
    assert torch.allclose(model(x), h + narrow @ a.up.weight.T + a.up.bias, atol=1e-6)


def test_an_adapter_begins_near_the_identity():
    torch.manual_seed(0)
    base = Toy()
    x = ids(4, 5)
    y = base(x)
    model = copy.deepcopy(base)
    add_adapters(model, ["v_proj", "down_proj"])
    assert close(model(x), y, 0.01) and bits(model(x)) != bits(y)
    for module in model.modules():
        if isinstance(module, Bottleneck):
            assert 0 < module.up.weight.abs().max() <= 0.02 and (module.up.bias == 0).all()
            assert 0 < module.down.weight.abs().max() <= 0.02 and (module.down.bias == 0).all()


def test_what_trains():
    model, parameters = adapted(bottleneck=3, modules=["norm", "head"])
    adapters = [p for n, p in model.named_parameters() if ".adapter." in n]
    assert sum(p.numel() for p in adapters) == 4 * (2 * 3 * 8 + 8 + 3)  # 2md + d + m each
    expected = [*adapters, *model.norm.parameters(), *model.head.parameters()]
    assert [id(p) for p in parameters] == [id(p) for p in expected]
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in expected}
    model(ids()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)


def test_an_adapter_takes_the_mode_of_its_layer():
    model, _ = adapted(Toy().eval())
    assert not any(module.training for module in model.modules())


def test_the_base_keeps_its_objects_and_keys():
    base = Toy()
    keys, modules = set(base.state_dict()), dict(base.named_modules())
    model, _ = adapted(base)
    assert {k for k in model.state_dict() if ".adapter." not in k} == keys
    assert all(model.get_submodule(path) is module for path, module in modules.items())
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    x = ids()
    assert [bits(m(x)) for m in copies] == [bits(model(x))] * 2
    remove_adapters(copies[0])
    assert copies[0].state_dict().keys() == keys and len(model.state_dict()) > len(keys)


def test_removal_leaves_no_trace():
    torch.manual_seed(0)
    base = Toy()
    base.norm.weight.requires_grad_(False)
    base.blocks[0].v_proj.register_forward_hook(_double)  # somebody else's hook
    before = snapshot(base)
    x = ids()
    y = base(x)
    model, _ = adapted(base, modules=["norm", "head"])
    assert not close(model(x), y, 0.01)
    assert remove_adapters(model) is model
    assert bits(model(x)) == bits(y)
    assert snapshot(model) == before


def _double(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    return 2 * output


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    model, x = Toy(), ids()
    optimizer = torch.optim.AdamW(add_adapters(model, ["down_proj"], bottleneck=4), lr=0.02)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_embeddings_and_conv1d_of_hugging_face():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model, _ = adapted(
        nn.Sequential(nn.Embedding(7, 4), conv1d(6, 4)), targets=["0", "1"], bottleneck=2
    )
    assert model[0].adapter.up.out_features == 4 and model[1].adapter.up.out_features == 6
    x = torch.randint(0, 7, (2, 3))
    h = model[0].adapter(F.embedding(x, model[0].weight))
    assert close(model(x), model[1].adapter(h @ model[1].weight + model[1].bias))


def test_half_precision_bases_get_float32_adapters():
    model, parameters = adapted(Toy().bfloat16())
    assert {p.dtype for p in parameters} == {torch.float32}
    assert model(ids()).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mask", [False, True])
def test_pytorchs_encoder_takes_the_adapter_in_eval_too(mask):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    assert encoder.use_nested_tensor
    model, _ = adapted(encoder, targets=["linear2"])
    assert not encoder.use_nested_tensor
    x = torch.randn(2, 5, 8)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if mask else None
    with torch.no_grad():
        trained = model.train()(x, src_key_padding_mask=padding)
        evaluated = model.eval()(x, src_key_padding_mask=padding)
    kept = slice(None) if padding is None else ~padding
    assert torch.allclose(trained[kept], evaluated[kept], atol=1e-5)
    remove_adapters(model)
    assert encoder.use_nested_tensor


def test_targets_in_every_form_and_exclude():
    def ends_with_q(path: str, module: nn.Module) -> bool:
        return path.endswith("q_proj")

    for targets in (["q_proj"], r".*\.q_proj", ends_with_q):
        model, _ = adapted(targets=targets, exclude=["blocks.0.q_proj"])
        found = [path for path, m in model.named_modules() if isinstance(m, Bottleneck)]
        assert found == ["blocks.1.q_proj.adapter"]


def test_refusals():
    model = Toy()
    refuses(model, lambda: add_adapters(model, ["q_prj"]), "'q_prj'", "q_proj")
    refuses(model, lambda: add_adapters(model, ["q_proj"], bottleneck=0), "bottleneck")
    refuses(model, lambda: add_adapters(model, ["q_proj"], activation="tanh"), "gelu", "relu")
    refuses(model, lambda: add_adapters(model, ["q_proj"], modules=["hed"]), "'head'")
    refuses(model, lambda: remove_adapters(model), "nothing to undo")
    conv = nn.Sequential(nn.Conv1d(2, 2, 1))
    refuses(conv, lambda: add_adapters(conv, ["0"]), "Conv1d")
    lora = toy(r=2, targets=["q_proj"])
    refuses(lora, lambda: add_adapters(lora, ["v_proj"]), "remove_lora")
    attention = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2)})
    refuses(attention, lambda: add_adapters(attention, ["out_proj"]), "MultiheadAttention")
    add_adapters(model, ["q_proj"])
    refuses(model, lambda: add_adapters(model, ["v_proj"]), "already", "remove_adapters")
    refuses(model, lambda: freezing.restore(model), "remove_adapters")
    other = Toy()
    add_bitfit(other)
    refuses(other, lambda: remove_adapters(other), "freezing.restore")
