"""Adding, looking, switching, merging and removing: the contract line by line."""

import copy
import inspect
import pickle

import pytest
import torch
from core_help import (
    HOOKS,
    Net,
    Tied,
    Toy,
    bits,
    cases,
    close,
    ids,
    refuses,
    shake,
    snapshot,
    toy,
    unchanged,
)
from hypothesis import given, settings
from torch import nn
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.checkpoint import checkpoint

import minilora
from minilora import LoRAConfig, add_lora, disabled, merged
from minilora.accounting import merge_losses
from minilora.layers import LoRAEmbedding, LoRALinear, TrainedCopy

EVERYTHING = {
    "targets": ["q_proj", "v_proj", "embed"],
    "r": 3,
    "alpha": 5,
    "bias": "all",
    "modules_to_save": ["head"],
}


# --- add_lora -------------------------------------------------------------------------------


def test_add_lora_returns_the_same_object_with_its_paths_and_type():
    model = Toy()
    q, before = model.blocks[0].q_proj, dict(model.named_parameters())
    assert add_lora(model, LoRAConfig(targets=["q_proj", "embed"])) is model
    assert type(model) is Toy
    assert type(model.blocks[0].q_proj) is LoRALinear
    assert type(model.embed) is LoRAEmbedding
    assert model.get_submodule("blocks.0.q_proj").base is q
    assert type(model.blocks[0].v_proj) is nn.Linear
    assert all(any(p is q for q in model.parameters()) for p in before.values())


def test_add_lora_freezes_the_base_and_trains_the_adapter_only():
    model = add_lora(Toy(), LoRAConfig(targets=["q_proj"]))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"blocks.{i}.q_proj.{f}" for i in (0, 1) for f in "AB"}


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        ("none", set()),
        ("lora_only", {"blocks.0.q_proj.base.bias", "blocks.1.q_proj.base.bias"}),
        (
            "all",
            {
                f"blocks.{i}.{n}.bias"
                for i in (0, 1)
                for n in ("up_proj", "down_proj", "q_proj.base")
            }
            | {"norm.bias", "head.bias"},
        ),
    ],
)
def test_bias_modes(bias, expected):
    model = add_lora(Toy(), LoRAConfig(targets=["q_proj", "v_proj"], bias=bias))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n in trained if n.endswith("bias")} == expected


def test_lora_parameters_are_exactly_what_requires_grad():
    for bias in ("none", "all", "lora_only"):
        model = toy(**{**EVERYTHING, "bias": bias})
        given = minilora.lora_parameters(model)
        assert type(given) is list
        assert len(set(map(id, given))) == len(given)
        assert {id(p) for p in given} == {id(p) for p in model.parameters() if p.requires_grad}


def test_rank_and_alpha_patterns_reach_the_layers():
    config = LoRAConfig(
        r=4,
        alpha=8,
        targets=["q_proj", "v_proj"],
        rank_pattern={"v_proj": 2},
        alpha_pattern={r"1\..*": 3},
    )
    layers = minilora.lora_layers(add_lora(Toy(), config))
    got = {path: (layer.r, layer.A.shape[0], layer.scale) for path, layer in layers.items()}
    assert got == {
        "blocks.0.q_proj": (4, 4, 2.0),
        "blocks.0.v_proj": (2, 2, 4.0),
        "blocks.1.q_proj": (4, 4, 0.75),
        "blocks.1.v_proj": (2, 2, 1.5),
    }


def test_dropout_and_init_reach_the_layers():
    model = add_lora(Toy(), LoRAConfig(targets=["q_proj"], dropout=0.25, init="gaussian"))
    layer = model.blocks[0].q_proj
    assert layer.dropout == 0.25
    assert layer.A.abs().max() > 8**-0.5 / 4
    model = add_lora(Toy(), LoRAConfig(targets=["q_proj"], init=lambda layer: layer.B.fill_(2.0)))
    assert torch.equal(model.blocks[1].q_proj.B, torch.full((8, 8), 2.0))


def test_training_flag_is_kept():
    model = Toy().eval()
    model.blocks[1].train()
    add_lora(model, LoRAConfig(**EVERYTHING))
    assert not model.blocks[0].q_proj.training
    assert model.blocks[1].q_proj.training
    assert not model.head.training


@settings(max_examples=30)
@given(cases(dtypes=(torch.float32, torch.float64, torch.bfloat16)))
def test_zero_change_at_the_start(case):
    model, config, x = case
    before = model(x)
    add_lora(model, config)
    assert torch.equal(model(x), before)
    with minilora.textbook():
        assert torch.equal(model(x), before)


@settings(max_examples=20)
@given(cases())
def test_training_touches_the_adapter_only(case):
    model, config, x = case
    original = {id(p): (p, bits(p)) for p in model.parameters()}
    add_lora(model, config)
    trained = minilora.lora_parameters(model)
    before = [bits(p) for p in trained]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (model(x) - 1).square().sum().backward()
        optimizer.step()
    ours = {id(p) for p in trained}
    for key, (p, old) in original.items():
        assert key in ours or bits(p) == old
        assert key in ours or p.grad is None
    assert any(bits(p) != old for p, old in zip(trained, before, strict=True))


@settings(max_examples=25)
@given(cases(dtypes=(torch.float64,)))
def test_rank_of_the_update_is_at_most_r(case):
    model, config, _ = case
    shake(add_lora(model, config))
    for layer in minilora.lora_layers(model).values():
        assert layer.delta().shape == layer.weight.shape
        assert torch.linalg.matrix_rank(layer.delta()) <= layer.r


def test_gradients_flow_where_they_should():
    model = add_lora(Toy(), LoRAConfig(targets=["q_proj", "embed"]))
    model(torch.arange(11)[None]).square().sum().backward()
    layer, table = model.blocks[0].q_proj, model.embed
    assert layer.B.grad.abs().max() > 0  # at the start B is zero, so A has no gradient yet,
    assert layer.A.grad.abs().max() == 0
    assert table.A.grad.abs().max() > 0  # and an embedding has it the other way round
    assert table.B.grad.abs().max() == 0


def test_hooks_on_the_original_fire_once():
    model, calls = Toy(), []
    for name in ("q_proj", "v_proj"):
        getattr(model.blocks[0], name).register_forward_hook(lambda *a: calls.append("linear"))
    model.head.register_forward_pre_hook(lambda *a: calls.append("head"))
    model.embed.register_forward_hook(lambda *a: calls.append("embed"))
    add_lora(model, LoRAConfig(targets=["q_proj", "embed"], modules_to_save=["head"]))
    for context in (disabled(model), merged(model), torch.no_grad()):
        calls.clear()
        with context:
            model(ids())
        assert sorted(calls) == ["embed", "head", "linear", "linear"]


def test_shared_module_is_adapted_at_both_places():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = self.first

        def forward(self, x):
            return self.second(self.first(x))

    model = Twice()
    inner = model.first
    add_lora(model, LoRAConfig(targets=["first"], r=2))
    assert model.first is model.second
    assert len(minilora.lora_parameters(model)) == 2
    shake(model)
    x = torch.randn(3, 4)
    y = model(x)
    with merged(model):
        assert close(model(x), y, 1e-4)
    minilora.remove_lora(model)
    assert model.first is inner
    assert model.second is inner


# --- disabled -------------------------------------------------------------------------------


def test_disabled_is_the_original_model():
    x, plain = ids(), toy()
    before = plain(x)
    model = shake(add_lora(plain, LoRAConfig(**EVERYTHING)))
    after = model(x)
    assert not torch.equal(after, before)
    with disabled(model) as inside:
        assert inside is model
        assert torch.equal(model(x), before)
        with disabled(model):
            assert torch.equal(model(x), before)
        assert torch.equal(model(x), before)
    assert torch.equal(model(x), after)


def test_disabled_restores_after_errors():
    model = toy(**EVERYTHING)
    with unchanged(model):
        with pytest.raises(KeyError), disabled(model):
            raise KeyError
        with pytest.raises(KeyError), disabled(model), disabled(model):
            raise KeyError


def test_disabled_while_merged():
    x, plain = ids(), toy()
    before = plain(x)
    model = shake(add_lora(plain, LoRAConfig(**EVERYTHING)))
    minilora.merge(model)
    after = model(x)
    with unchanged(model), disabled(model):
        assert torch.equal(model(x), before)
        with disabled(model):
            assert torch.equal(model(x), before)
    assert torch.equal(model(x), after)
    minilora.unmerge(model)


def test_disabled_while_merged_and_untied():
    model, x = Tied(), ids()
    before = model(x)
    shake(add_lora(model, LoRAConfig(targets=["head", "proj"])))
    with merged(model, untie=True):
        after = model(x)
        with unchanged(model), disabled(model):
            assert torch.equal(model(x), before)
        assert torch.equal(model(x), after)


def test_disabled_without_the_kept_weights_is_refused():
    model = toy(targets=["q_proj"])
    minilora.merge(model, keep_base=False)
    refuses(model, lambda: disabled(model).__enter__(), "keep_base=False", "load the base")


def test_shared_bias_survives_disabled():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].bias = model[0].bias
    shake(add_lora(model, LoRAConfig(targets=["0", "1"], bias="all")))
    with unchanged(model), disabled(model):
        pass


def test_biases_survive_a_change_of_type_inside_disabled():
    model = toy(**EVERYTHING)
    x = ids()
    y = model(x)
    with disabled(model):
        model.double()
    assert model(x).dtype == torch.float64
    assert close(model(x), y.double(), 1e-4)


@pytest.mark.parametrize("name", ["merge", "unmerge", "remove_lora", "save", "load", "merged"])
def test_not_inside_disabled(name, tmp_path):
    model = toy(**EVERYTHING)
    minilora.save(model, tmp_path / "a")
    if name == "unmerge":
        minilora.merge(model)
    where = [tmp_path / "a"] if name in ("save", "load") else []

    def call():
        result = getattr(minilora, name)(model, *where)
        return result.__enter__() if name == "merged" else result

    with disabled(model):
        called = "merge" if name == "merged" else name
        refuses(model, call, f"{called} was called inside disabled(model)", "outside")


# --- set_strength ---------------------------------------------------------------------------


def test_set_strength():
    model = toy(targets=["q_proj", "embed"])
    x = ids()
    full = model(x)
    with disabled(model):
        none = model(x)
    assert minilora.set_strength(model, 0) is model
    assert torch.equal(model(x), none)
    minilora.set_strength(model, 0.5)
    assert {layer.scale for layer in minilora.lora_layers(model).values()} == {0.5}
    assert not torch.equal(model(x), full)
    minilora.set_strength(model, 2)  # replaces, does not multiply again
    assert {layer.scale for layer in minilora.lora_layers(model).values()} == {2.0}
    with merged(model):
        strong = model(x)
    assert close(model(x), strong, 1e-4)
    minilora.set_strength(model, 1)
    assert torch.equal(model(x), full)


def test_set_strength_refuses():
    model = toy(targets=["q_proj"])
    for bad in (float("nan"), float("inf")):
        refuses(model, lambda b=bad: minilora.set_strength(model, b), "finite", str(bad))
    for bad in (True, "1", None):
        call = lambda b=bad: minilora.set_strength(model, b)  # noqa: E731
        refuses(model, call, "strength must be a number", repr(bad), error=TypeError)
    minilora.merge(model)
    refuses(model, lambda: minilora.set_strength(model, 0.5), "not merged", "unmerge")


# --- merge, unmerge, merged -----------------------------------------------------------------


@settings(max_examples=40)
@given(cases())
def test_merge_equals_unmerged_and_comes_back_to_the_bit(case):
    model, config, x = case
    shake(add_lora(model, config))
    y, before = model(x), snapshot(model)
    weights = {p: bits(m.weight) for p, m in minilora.lora_layers(model).items()}
    expected = {p: m.weight + m.delta() for p, m in minilora.lora_layers(model).items()}
    assert minilora.merge(model) is model
    tolerance = 1e-4 if y.dtype == torch.float32 else 1e-12
    assert torch.allclose(model(x), y, rtol=tolerance, atol=tolerance)
    for path, layer in minilora.lora_layers(model).items():
        assert torch.equal(layer.weight, expected[path])
    assert minilora.unmerge(model) is model
    assert snapshot(model) == before
    assert {p: bits(m.weight) for p, m in minilora.lora_layers(model).items()} == weights
    assert torch.equal(model(x), y)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_merge_in_half_precision_rounds_once_and_comes_back(half):
    model = shake(add_lora(Toy().to(half), LoRAConfig(targets=["q_proj", "embed"])))
    layer = model.blocks[0].q_proj
    exact = layer.weight.double() + layer.delta().double()
    with unchanged(model), merged(model):
        assert layer.weight.dtype == half
        assert (layer.weight.double() - exact).abs().max() <= 2e-3 * exact.abs().max() * (
            1 if half is torch.float16 else 8
        )


def test_merged_restores_after_errors_and_under_inference_mode():
    model, x = toy(**EVERYTHING), ids()
    with unchanged(model):
        with pytest.raises(KeyError), merged(model):
            raise KeyError
        with torch.inference_mode(), merged(model) as inside:
            assert inside is model
            inside(x)
        with merged(model):
            minilora.unmerge(model)  # by hand, early
    model(x).sum().backward()  # no inference tensor is left behind
    with torch.inference_mode():
        minilora.merge(model, keep_base=False)
    assert not model.blocks[0].q_proj.weight.is_inference()


@pytest.mark.parametrize("model", [toy(**EVERYTHING), Tied()], ids=["plain", "tied"])
def test_kept_weights_stay_out_of_state_dict(model):
    if isinstance(model, Tied):
        add_lora(model, LoRAConfig(targets=["head", "proj"]))
    keys, names = set(model.state_dict()), {n for n, _ in model.named_parameters()}
    layers = minilora.lora_layers(model).values()
    minilora.merge(model, untie=True)
    assert set(model.state_dict()) == keys
    assert {n for n, _ in model.named_parameters()} - names <= {"head.base.weight"}
    assert all(layer.aside.unmerged is not None for layer in layers)
    minilora.unmerge(model)
    assert all(layer.aside.unmerged is None for layer in layers)


def test_keep_base_false_keeps_nothing_and_refuses_to_unmerge():
    model, x = toy(targets=["q_proj"]), ids()
    y = model(x)
    minilora.merge(model, keep_base=False)
    assert close(model(x), y, 1e-4)
    assert model.blocks[0].q_proj.aside.unmerged is None
    for call in (minilora.unmerge, minilora.remove_lora):
        refuses(model, lambda c=call: c(model), "keep_base=False", "gone", "load the base model")
    minilora.remove_lora(model, keep_update=True)
    assert close(model(x), y, 1e-4)


def test_merge_refuses():
    model = toy(targets=["q_proj", "v_proj"])
    refuses(model, lambda: minilora.unmerge(model), "not merged", "nothing to unmerge")
    minilora.merge(model)
    refuses(model, lambda: minilora.merge(model), "merge", "not merged", "unmerge")
    minilora.unmerge(model)
    with torch.no_grad():
        model.blocks[1].v_proj.A[0, 0] = float("nan")
    for keep in (True, False):
        call = lambda k=keep: minilora.merge(model, keep_base=k)  # noqa: E731
        refuses(model, call, "'blocks.1.v_proj'", "NaN or infinity", "learning rate")
    half = shake(add_lora(Toy().half(), LoRAConfig(targets=["q_proj", "v_proj"])))
    with torch.no_grad():
        half.blocks[1].v_proj.B.fill_(3e4)  # finite, but not in float16
    refuses(half, lambda: minilora.merge(half), "'blocks.1.v_proj'", "torch.float16")


def test_merging_a_computed_weight_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    register_parametrization(model[1], "weight", nn.Tanh())
    shake(add_lora(model, LoRAConfig(targets=nn.Linear)))
    refuses(model, lambda: minilora.merge(model), "'1'", "computed", "parametrization")


def test_adapters_beside_a_tied_weight_compute_the_formula_and_train():
    model, x = Tied(), ids()
    shake(add_lora(model, LoRAConfig(targets=["head", "embed"])))
    W = model.embed.base.weight
    hidden = model.proj((W + model.embed.delta())[x])
    assert close(model(x), hidden @ (W + model.head.delta()).T, 1e-5)
    model(x).sin().sum().backward()
    assert all(p.grad.any() for p in minilora.lora_parameters(model))
    assert W.grad is None and model.head.base.weight is W


def test_tied_weights_are_refused_then_untied_then_tied_again():
    model, x = Tied(), ids()
    shake(add_lora(model, LoRAConfig(targets=["head", "proj"])))
    y = model(x)
    refuses(model, lambda: minilora.merge(model), "'head'", "'embed'", "shared", "untie=True")
    refuses(model, lambda: merged(model).__enter__(), "untie=True")
    refuses(model, lambda: minilora.remove_lora(model, keep_update=True), "untie=True")
    with unchanged(model):
        minilora.merge(model, untie=True)
        assert model.head.weight is not model.embed.weight
        assert close(model(x), y, 1e-4)
        minilora.unmerge(model)
        assert model.head.weight is model.embed.weight
    with unchanged(model), merged(model, untie=True):
        assert close(model(x), y, 1e-4)
    model = Tied()
    shake(add_lora(model, LoRAConfig(targets=["head", "embed"])))
    y = model(x)
    with unchanged(model), merged(model, untie=True):
        assert model.head.weight is not model.embed.weight
        assert close(model(x), y, 1e-4)
    assert model.head.weight is model.embed.weight


def test_a_weight_that_merging_unties_is_as_frozen_as_the_one_it_replaces():
    model = Tied()
    shake(add_lora(model, LoRAConfig(targets=["head"])))
    minilora.merge(model, untie=True)
    assert not model.head.weight.requires_grad
    assert not model.embed.weight.requires_grad


def test_tied_to_an_adapted_layer_is_tied_too():
    model = Tied()
    add_lora(model, LoRAConfig(targets=["embed"]))
    refuses(model, lambda: minilora.merge(model), "'embed'", "'head'")


def test_merge_is_undone_when_it_fails_half_way(monkeypatch):
    model = toy(targets=["q_proj", "v_proj"])
    calls = []
    new_weight = LoRALinear.new_weight

    def failing(layer):
        calls.append(layer)
        if len(calls) > 6:  # four for the check, then in the middle of writing
            raise MemoryError("full")
        return new_weight(layer)

    monkeypatch.setattr(LoRALinear, "new_weight", failing)
    refuses(model, lambda: minilora.merge(model), "full", error=MemoryError)
    assert len(calls) == 7


def test_kept_weights_follow_a_change_of_type():
    model = toy(targets=["q_proj"])
    before = model.blocks[0].q_proj.weight.detach().clone()
    minilora.merge(model)
    model.double()
    minilora.unmerge(model)
    assert model.blocks[0].q_proj.weight.dtype == torch.float64
    assert torch.equal(model.blocks[0].q_proj.weight, before.double())


def test_merging_warns_where_rounding_takes_most_of_the_update():
    model = add_lora(Toy().to(torch.bfloat16), LoRAConfig(targets=["q_proj", "v_proj"], r=2))
    with torch.no_grad():
        for layer in minilora.lora_layers(model).values():
            layer.B.normal_(std=1e-5 if layer.bias is not None else 1.0)
    losses = merge_losses(model)
    assert all((loss > 0.9) == path.endswith("q_proj") for path, loss in losses.items())
    with pytest.warns(UserWarning, match=r"bfloat16.*2 of 4 layers.*q_proj'.*float32 copy") as seen:
        minilora.merge(model)
    assert seen[0].filename == __file__
    minilora.unmerge(model)


def test_merge_losses_are_the_share_of_the_update_that_is_missing():
    model = toy(targets=["q_proj", "embed"]).to(torch.bfloat16)
    losses = merge_losses(model)
    for path, layer in minilora.lora_layers(model).items():
        with merged(model):
            got = layer.weight.detach().clone()
        missing = (got - layer.weight) - layer.delta()
        assert losses[path] == pytest.approx(float(missing.norm() / layer.delta().norm()), rel=1e-6)
        assert 0 < losses[path] < 0.1
    assert max(merge_losses(toy(targets=["q_proj"])).values()) < 1e-5
    refuses(model, lambda: merge_losses(Toy()), "no adapter")


def test_merging_in_float32_or_of_a_new_adapter_does_not_warn(recwarn):
    minilora.merge(toy(targets=["q_proj"]))
    minilora.merge(add_lora(Toy().to(torch.bfloat16), LoRAConfig(targets=["q_proj"])))
    assert not recwarn.list


# --- remove_lora ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["plain", "merged", "tied", "strength"])
def test_remove_lora_gives_back_the_very_same_objects(how):
    model = Tied() if how == "tied" else Toy()
    config = {"targets": ["head", "proj"]} if how == "tied" else EVERYTHING
    for p in list(model.parameters())[::2]:
        p.requires_grad_(False)
    with unchanged(model):
        shake(add_lora(model, LoRAConfig(**config)))
        if how in ("merged", "tied"):
            minilora.merge(model, untie=how == "tied")
        if how == "strength":
            minilora.set_strength(model, 0.5)
        assert minilora.remove_lora(model) is model
    assert minilora.lora_layers(model) == {}
    add_lora(model, LoRAConfig(**config))  # and it can be adapted again


@settings(max_examples=25)
@given(cases(dtypes=(torch.float32, torch.bfloat16)))
def test_remove_lora_restores_random_models_to_the_bit(case):
    model, config, x = case
    y = model(x)
    with unchanged(model):
        shake(add_lora(model, config))
        minilora.remove_lora(model)
    assert torch.equal(model(x), y)


@pytest.mark.parametrize("merge_first", [False, True])
def test_remove_lora_with_the_update_kept(merge_first):
    model, x = Toy(), ids()
    modules = {n: m for n, m in model.named_modules() if n != "head"}
    model.head.weight.requires_grad_(False)
    shake(add_lora(model, LoRAConfig(**EVERYTHING)))
    y = model(x)
    if merge_first:
        minilora.merge(model)
    minilora.remove_lora(model, keep_update=True)
    assert close(model(x), y, 1e-4)
    assert type(model.head) is nn.Linear
    after = {n: m for n, m in model.named_modules() if n != "head"}
    assert after == modules  # plain layers, and the same ones
    assert not model.head.weight.requires_grad
    assert all(p.requires_grad for n, p in model.named_parameters() if n != "head.weight")
    assert "_minilora" not in vars(model)


def test_remove_lora_with_the_update_kept_and_untied():
    model, x = Tied(), ids()
    model.embed.weight.requires_grad_(False)
    shake(add_lora(model, LoRAConfig(targets=["head", "proj"])))
    y = model(x)
    minilora.remove_lora(model, keep_update=True, untie=True)
    assert close(model(x), y, 1e-4)
    assert not model.head.weight.requires_grad  # as the shared weight it was
    assert model.proj.weight.requires_grad


# --- modules_to_save ------------------------------------------------------------------------


def test_modules_to_save_train_a_copy_and_keep_paths():
    model = toy(**EVERYTHING)
    wrapper = model.head
    assert type(wrapper) is TrainedCopy
    assert model.get_submodule("head").weight is wrapper.tuned.weight
    assert not wrapper.base.weight.requires_grad
    assert wrapper.tuned.weight.requires_grad
    assert not torch.equal(wrapper.tuned.weight, wrapper.base.weight)
    assert wrapper.out_features == 3
    with disabled(model):
        assert model.head.weight is wrapper.base.weight
    with pytest.raises(AttributeError):
        _ = wrapper.no_such_thing


def test_copies_of_frozen_modules_train():
    model = Toy().requires_grad_(False)
    add_lora(model, LoRAConfig(targets=["q_proj"], modules_to_save=["head"]))
    assert all(p.requires_grad for p in model.head.tuned.parameters())
    minilora.remove_lora(model, keep_update=True)
    assert not any(p.requires_grad for p in model.parameters())


def test_modules_to_save_by_suffix_and_whole_blocks():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Linear(3, 3)
            self.a = nn.ModuleDict({"head": nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))})

        def forward(self, x):
            return self.a["head"](self.q(x))

    model = Heads()
    add_lora(model, LoRAConfig(targets=["q"], modules_to_save=["head"], bias="all"))
    assert type(model.a["head"]) is TrainedCopy
    assert len(minilora.lora_parameters(model)) == 2 + 1 + 4
    x, before = torch.randn(5, 3), bits(model.a["head"].base[1].running_mean)
    model(x)
    assert bits(model.a["head"].base[1].running_mean) == before
    assert model.get_submodule("a.head.0").weight is model.a["head"].tuned[0].weight


# --- PyTorch's own transformer --------------------------------------------------------------


def encoder(**kw) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **kw)
    return nn.TransformerEncoder(layer, 2).eval()


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("targets", [["linear1", "linear2"], ["layers.1.linear2"]])
def test_encoder_fast_path_does_not_pass_the_adapter_by(norm_first, padded, targets):
    model, x = encoder(norm_first=norm_first), torch.randn(3, 5, 8)
    pad = torch.zeros(3, 5, dtype=torch.bool)
    pad[0, 3:] = True
    kw = {"src_key_padding_mask": pad} if padded else {}
    real = ~pad if padded else torch.ones_like(pad)
    with torch.no_grad():
        before = model(x, **kw)
    with unchanged(model):
        add_lora(model, LoRAConfig(targets=targets))
        with torch.no_grad():
            assert torch.allclose(model(x, **kw)[real], before[real], atol=1e-5)
        shake(model)
        with torch.no_grad():
            fast = model(x, **kw)
        slow = model(x, **kw)
        assert torch.allclose(fast, slow, atol=1e-5)
        assert not torch.allclose(fast[real], before[real], atol=1e-2)
        with torch.no_grad(), disabled(model):
            assert torch.allclose(model(x, **kw)[real], before[real], atol=1e-5)
        with torch.no_grad(), merged(model):
            assert torch.allclose(model(x, **kw)[real], slow[real], atol=1e-4)
        minilora.remove_lora(model)
    with torch.no_grad():
        assert torch.equal(model(x, **kw), before)


def test_encoder_layer_alone_and_copied():
    layer = encoder().layers[0]
    add_lora(layer, LoRAConfig(targets=["linear1"]))
    shake(layer)
    twin = copy.deepcopy(layer)
    x = torch.randn(2, 4, 8)
    with torch.no_grad():
        assert torch.allclose(twin(x), layer(x))
    assert torch.allclose(twin(x), layer(x))
    minilora.remove_lora(twin)
    assert not any(getattr(m, hooks) for m in twin.modules() for hooks in HOOKS)


def test_encoders_that_are_not_adapted_keep_their_fast_path():
    model = nn.ModuleDict({"a": encoder(), "b": nn.Linear(2, 2)})
    add_lora(model, LoRAConfig(targets=["b"]))
    assert model["a"].use_nested_tensor
    assert not model["a"].layers[0]._forward_pre_hooks


# --- copies, pickles, types -----------------------------------------------------------------


@pytest.mark.parametrize("state", ["plain", "merged"])
def test_deepcopy_and_pickle(state):
    shapes = lambda path, m: path.endswith(("q_proj", "embed"))  # noqa: E731
    model = Toy()
    config = {"targets": shapes, "bias": "all", "modules_to_save": ["head"]}
    shake(add_lora(model, LoRAConfig(**config, init=lambda layer: None)))
    if state == "merged":
        minilora.merge(model)
    x = ids()
    y = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), y)
        shake(twin)
        assert torch.equal(model(x), y)  # nothing is shared
        ours = {id(p) for p in minilora.lora_parameters(model)}
        assert not ours & {id(p) for p in minilora.lora_parameters(twin)}
        minilora.remove_lora(twin)
        with disabled(model):
            assert torch.equal(twin(x), model(x))


def test_types_and_callables_become_paths():
    x = ids()
    for targets in (nn.Embedding, lambda path, m: path == "embed"):
        model = toy(targets=targets)
        assert vars(model)["_minilora"].config.targets == ("embed",)
        assert torch.equal(model(x), toy(targets=["embed"])(x))
    model = toy(targets=["embed", "head"], exclude=nn.Linear)
    assert vars(model)["_minilora"].config.targets == ("embed",)
    assert vars(model)["_minilora"].config.exclude is None


def test_state_dict_round_trip():
    model, other = toy(**EVERYTHING), toy(seed=5, **EVERYTHING)
    x = ids()
    assert not torch.equal(model(x), other(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x))


def test_to_another_type():
    model = toy(**EVERYTHING)
    x = ids()
    y = model(x)
    model.double()
    assert model(x).dtype == torch.float64
    assert close(model(x), y.double(), 1e-4)
    with disabled(model):
        assert model(x).dtype == torch.float64
    model.to(torch.bfloat16)
    assert model(x).dtype == torch.bfloat16
    model.float()
    model(x).sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    model = shake(add_lora(nn.Sequential(nn.Linear(4, 4)), LoRAConfig(targets=["0"])))
    x = torch.randn(3, 4, requires_grad=True)
    parameters = minilora.lora_parameters(model)
    plain = torch.autograd.grad(model(x).sin().sum(), parameters)
    checkpoint(model, x, use_reentrant=reentrant).sin().sum().backward()
    for p, gradient in zip(parameters, plain, strict=True):
        assert torch.equal(p.grad, gradient)


# --- without an adapter ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["lora_parameters", "summary", "disabled", "merge", "unmerge", "merged", "remove_lora"],
)
def test_without_an_adapter(name):
    function = getattr(minilora, name)

    def run(model):
        result = function(model)
        if inspect.isgeneratorfunction(getattr(function, "__wrapped__", None)):
            result.__enter__()

    model = Toy()
    refuses(model, lambda: run(model), "has no adapter", "add_lora")
    model = toy(targets=["q_proj"])
    refuses(model, lambda: run(model.blocks), "not the module that add_lora was given")
    outer = nn.Sequential(model)
    refuses(outer, lambda: run(outer), "not the module that add_lora was given", "pass that one")


def test_set_strength_and_files_without_an_adapter(tmp_path):
    model = Toy()
    refuses(model, lambda: minilora.set_strength(model, 1), "has no adapter")
    refuses(model, lambda: minilora.save(model, tmp_path / "x"), "has no adapter")
    assert not (tmp_path / "x").exists()
    assert minilora.lora_layers(model) == {}


def test_lora_layers_by_path_in_order():
    model = toy(targets=["embed", "v_proj"])
    layers = minilora.lora_layers(model)
    assert list(layers) == ["embed", "blocks.0.v_proj", "blocks.1.v_proj"]
    assert layers["embed"] is model.embed


def test_a_small_network_learns():
    torch.manual_seed(0)
    model = Net([8, 8, 4], True, torch.float32)
    x, target = torch.randint(0, 7, (64,)), torch.randn(7, 4).tanh()
    add_lora(model, LoRAConfig(r=4, targets="all-linear", bias="all"))
    optimizer = torch.optim.Adam(minilora.lora_parameters(model), 0.02)
    losses = []
    for _ in range(60):
        loss = (model(x) - target[x]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
