"""PiSSA, MiLoRA and OLoRA: a part of W₀ is trained, and W₀ itself is never lost."""

import copy
import pickle

import pytest
import torch
from core_help import Tied, Toy, bits, close, ids, refuses, shake, unchanged
from torch import nn

import minilora
from minilora import LoRAConfig, add_lora, initializers

INITS = ["pissa", "olora", "milora"]
every = pytest.mark.parametrize("init", INITS)


def config(init: str, **more) -> LoRAConfig:
    return LoRAConfig(r=3, alpha=5, targets=["q_proj", "up_proj"], init=init, **more)


def weights(model: nn.Module) -> dict:
    return {n.replace(".base.", "."): bits(p) for n, p in model.named_parameters()}


@every
@pytest.mark.parametrize("scaling", ["standard", "rslora"])
def test_the_model_computes_at_first_what_it_did(init, scaling):
    torch.manual_seed(0)
    model, x = Toy(), ids()
    before = model(x)
    add_lora(model, config(init, scaling=scaling))
    assert close(model(x), before, 1e-5)
    layer = model.blocks[0].up_proj
    assert layer.B.abs().max() > 0.01 and layer.A.abs().max() > 0.01


def test_pissa_takes_out_the_best_approximation():
    W = torch.randn(9, 6, dtype=torch.float64)
    A, B = initializers.pissa(W, 2, 0.7)
    U, S, Vh = torch.linalg.svd(W)
    assert torch.allclose(0.7 * B @ A, (U[:, :2] * S[:2]) @ Vh[:2])
    assert torch.allclose(A @ A.T, torch.diag(S[:2] / 0.7))  # the scale is shared equally
    assert torch.allclose(B.T @ B, torch.diag(S[:2] / 0.7))
    rest = torch.linalg.svdvals(W - 0.7 * B @ A)
    assert torch.allclose(rest, torch.cat([S[2:], torch.zeros(2, dtype=W.dtype)]), atol=1e-12)


def test_milora_takes_out_the_smallest_part():
    W = torch.randn(6, 9, dtype=torch.float64)
    A, B = initializers.milora(W, 2, 0.7)
    S = torch.linalg.svdvals(W)
    assert torch.allclose(torch.linalg.svdvals(0.7 * B @ A)[:2], S[-2:])
    assert torch.allclose(torch.linalg.svdvals(W - 0.7 * B @ A)[:4], S[:4])


def test_olora_begins_with_orthonormal_columns():
    W = torch.randn(9, 6, dtype=torch.float64)
    A, B = initializers.olora(W, 4, 2.0)
    assert torch.allclose(B.T @ B, torch.eye(4, dtype=W.dtype))
    assert torch.allclose(A.tril(-1), torch.zeros_like(A))
    whole_A, whole_B = initializers.olora(W, 6, 2.0)
    assert torch.allclose(whole_B @ whole_A, W)


@every
def test_the_original_weights_come_back_to_the_bit(init):
    torch.manual_seed(0)
    model, x = Toy(), ids()
    before, y = weights(model), model(x)
    shake(add_lora(model, config(init)))
    assert not close(model(x), y, 1e-2)
    with minilora.disabled(model):
        assert bits(model(x)) == bits(y)
    minilora.merge(model)
    with minilora.disabled(model):
        assert bits(model(x)) == bits(y)
    minilora.unmerge(model)
    minilora.merge(model, keep_base=False)  # W₀ is kept all the same: only the residual is not
    minilora.remove_lora(model)
    assert weights(model) == before
    assert bits(model(x)) == bits(y)


@every
def test_merged_is_restored_to_the_bit_and_equals_the_unmerged(init):
    model, x = shake(add_lora(Toy(), config(init))), ids()
    y = model(x)
    with unchanged(model), minilora.merged(model):
        assert close(model(x), y, 1e-5)
    kept = minilora.remove_lora(copy.deepcopy(model), keep_update=True)
    assert close(kept(x), y, 1e-5)
    assert bits(pickle.loads(pickle.dumps(model))(x)) == bits(y)


@every
@pytest.mark.parametrize("scaling", ["standard", "rslora"])
def test_the_folder_holds_the_difference_to_the_original(init, scaling, tmp_path):
    torch.manual_seed(0)
    base = Toy()
    more = {"rank_pattern": {"0.q_proj": 2}, "alpha_pattern": {"up_proj": 3}, "scaling": scaling}
    model = shake(add_lora(copy.deepcopy(base), config(init, **more)))
    minilora.save(model, tmp_path)
    again, x = minilora.load(base, tmp_path), ids()
    assert close(again(x), model(x), 1e-5)
    layer = again.blocks[0].up_proj
    assert layer.r == 6 and layer.start is None
    assert again.blocks[0].q_proj.r == 4
    assert layer.scale == pytest.approx(model.blocks[0].up_proj.scale)


def test_loading_onto_a_pissa_model_starts_from_the_original_weights(tmp_path):
    torch.manual_seed(0)
    base, x = Toy(), ids()
    minilora.save(shake(add_lora(copy.deepcopy(base), config("default"))), tmp_path)
    wanted = minilora.load(copy.deepcopy(base), tmp_path)
    model = minilora.load(shake(add_lora(base, config("pissa"))), tmp_path)
    assert bits(model(x)) == bits(wanted(x))


@every
def test_gradients_flow_into_both_factors_from_the_first_step(init):
    model = add_lora(Toy(), config(init))
    model(ids()).sum().backward()
    layer = model.blocks[0].q_proj
    assert layer.A.grad.abs().max() > 0 and layer.B.grad.abs().max() > 0
    assert layer.weight.grad is None


def test_half_precision_weights_are_decomposed_in_float32():
    model = nn.Sequential(nn.Linear(8, 6)).to(torch.bfloat16)
    W = model[0].weight.detach().float()
    layer = add_lora(model, LoRAConfig(r=2, alpha=2, targets=["0"], init="pissa"))[0]
    assert layer.A.dtype == torch.float32
    assert layer.weight.dtype == torch.bfloat16
    assert torch.allclose(layer.weight + layer.product(), W, atol=0.01)


@every
def test_refusals_change_nothing(init):
    model = Toy()
    too_large = LoRAConfig(r=9, targets=["q_proj"], init=init)
    refuses(model, lambda: add_lora(model, too_large), "r of at most 8", "(8, 8)", "r is 9")
    embedding = LoRAConfig(r=2, targets=["q_proj", "embed"], init=init)
    refuses(model, lambda: add_lora(model, embedding), "fits linear layers", "Embedding")
    tied = Tied()
    shared = LoRAConfig(r=2, targets=["head"], init=init)
    refuses(tied, lambda: add_lora(tied, shared), "'head'", "'embed' uses too", init)
    adapted = add_lora(Toy(), config(init))
    refuses(adapted, lambda: minilora.set_strength(adapted, 0.5), init, "load it again")
    minilora.set_strength(adapted, 1)


def test_a_computed_weight_is_refused():
    model = nn.ModuleDict({"q": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))})
    one = LoRAConfig(r=2, targets=["q"], init="pissa")
    refuses(model, lambda: add_lora(model, one), "computed", "init='default'")


# --- the same as PEFT's -------------------------------------------------------------------------


def peft_model(model: nn.Module, init: str, **more):
    peft = pytest.importorskip("peft")
    settings = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "up_proj"], **more}
    return peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=init, **settings))


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_factors_and_residual_are_pefts(init, rslora):
    torch.manual_seed(0)
    base = Toy()
    other = peft_model(copy.deepcopy(base), init, use_rslora=rslora).base_model.model
    ours = add_lora(base, config(init, scaling="rslora" if rslora else "standard"))
    for path, layer in minilora.lora_layers(ours).items():
        theirs = other.get_submodule(path)
        assert bits(layer.A) == bits(theirs.lora_A["default"].weight)
        assert bits(layer.B) == bits(theirs.lora_B["default"].weight)
        assert bits(layer.weight) == bits(theirs.base_layer.weight)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_folders_travel_both_ways(init, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base, x = Toy(), ids()
    other = peft_model(copy.deepcopy(base), init)
    other.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        for name, p in other.named_parameters():
            if "lora_" in name:
                p.add_(torch.randn_like(p) * 0.3)
    other.save_pretrained(tmp_path / "trained")  # A and B alone: the residual is found again
    ours = minilora.load(copy.deepcopy(base), tmp_path / "trained")
    with minilora.textbook():
        assert bits(ours(x)) == bits(other(x))

    minilora.save(ours, tmp_path / "ours")  # rank 6, for the original weights
    plain = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "ours"))
    assert close(plain(x), other(x), 1e-5)

    start = str(tmp_path / "start")  # PEFT's own conversion to the same thing
    other.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=start)
    converted = minilora.load(copy.deepcopy(base), tmp_path / "converted")
    assert close(converted(x), other(x), 1e-5)
