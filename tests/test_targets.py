"""Which layers a config means, and the refusals that name what was found instead."""

import pytest
import torch
from core_help import Tied, Toy, refuses, toy
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

import minilora
from minilora import LoRAConfig
from minilora.targets import exactly, find_targets, original_modules

LINEARS = ["q_proj", "v_proj", "up_proj", "down_proj"]


def found(model: nn.Module, targets, **config) -> list[str]:
    return find_targets(model, LoRAConfig(targets=targets, **config))


def in_blocks(*names: str) -> list[str]:
    return [f"blocks.{i}.{name}" for i in (0, 1) for name in names]


def test_list_of_suffixes_and_of_whole_paths():
    assert found(Toy(), ["q_proj"]) == in_blocks("q_proj")
    assert found(Toy(), ["v_proj", "q_proj"]) == in_blocks("q_proj", "v_proj")
    assert found(Toy(), ["blocks.1.q_proj"]) == ["blocks.1.q_proj"]
    assert found(Toy(), ["0.q_proj", "embed"]) == ["embed", "blocks.0.q_proj"]
    assert found(Toy(), ("head",)) == ["head"]


def test_a_suffix_ends_at_a_dot():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Linear(2, 2)
            self.my_q = nn.Linear(2, 2)

    assert found(Odd(), ["q"]) == ["q"]


def test_string_is_a_regex_for_the_whole_path():
    assert found(Toy(), r"blocks\.0\.(q|v)_proj") == ["blocks.0.q_proj", "blocks.0.v_proj"]
    assert found(Toy(), r".*_proj") == in_blocks(*LINEARS)
    with pytest.raises(ValueError, match="matches nothing"):
        found(Toy(), "q_proj")  # a part of the path is not the whole
    with pytest.raises(ValueError, match="matches nothing"):
        found(Toy(), "blocks.0.q_pro")


def test_all_linear_leaves_the_head_out():
    assert found(Toy(), "all-linear") == in_blocks(*LINEARS)
    plain = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert found(plain, "all-linear") == ["0", "1"]


def test_all_linear_asks_the_model_for_its_head():
    class Named(Toy):
        def get_output_embeddings(self):
            return self.blocks[1].down_proj

    expected = [*in_blocks(*LINEARS)[:-1], "head"]
    model = Named()
    assert found(model, "all-linear") == expected
    minilora.add_lora(model, LoRAConfig(targets=["head", "down_proj"]))
    assert found(model, "all-linear") == expected  # the head is recognised under its adapter


def test_all_linear_leaves_out_what_is_trained_whole_and_attention_projections():
    config = {"modules_to_save": ["blocks.0", "blocks.1.up_proj"]}
    kept = [f"blocks.1.{n}" for n in ("q_proj", "v_proj", "down_proj")]
    assert found(Toy(), "all-linear", **config) == kept
    layer = nn.TransformerEncoderLayer(4, 2, 8)
    assert found(layer, "all-linear") == ["linear1", "linear2"]


def test_type_and_callable():
    assert found(Toy(), nn.Embedding) == ["embed"]
    assert found(Toy(), nn.Linear) == [*in_blocks(*LINEARS), "head"]
    wide = found(Toy(), lambda path, m: isinstance(m, nn.Linear) and m.out_features == 16)
    assert wide == in_blocks("up_proj")
    assert found(Toy(), lambda path, m: path == "embed") == ["embed"]


@pytest.mark.parametrize(
    "exclude",
    [
        ["blocks.0.q_proj", "head"],
        r"blocks\.0\.q_proj|head",
        lambda path, m: path in ("blocks.0.q_proj", "head"),
    ],
)
def test_exclude_takes_the_same_forms(exclude):
    left = [p for p in in_blocks(*LINEARS) if p != "blocks.0.q_proj"]
    assert found(Toy(), nn.Linear, exclude=exclude) == left


def test_exclude_by_type():
    assert found(Toy(), ["embed", "q_proj"], exclude=nn.Embedding) == in_blocks("q_proj")
    assert found(Toy(), nn.Linear, exclude="all-linear") == ["head"]


def test_shared_module_has_one_path():
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": nn.Sequential(shared, shared), "b": nn.Sequential(shared)})
    assert list(original_modules(model)) == ["", "a", "a.0", "b"]
    assert found(model, nn.Linear) == ["a.0"]


def test_adapted_model_is_seen_as_it_was():
    before = list(original_modules(Toy()))
    model = toy(targets=["q_proj", "embed"], modules_to_save=["head"])
    assert list(original_modules(model)) == before
    assert found(model, nn.Linear) == found(Toy(), nn.Linear)


def test_exactly():
    model = Toy()
    modules = original_modules(model)
    assert exactly(["blocks.0.q_proj"], modules) == ["blocks.0.q_proj"]
    inner = nn.ModuleDict(
        {"head": nn.Linear(2, 2), "top": nn.ModuleDict({"head": nn.Linear(2, 2)})}
    )
    only = exactly(["head"], original_modules(inner))
    assert found(inner, only) == ["head"]
    assert found(inner, ["head"]) == ["head", "top.head"]


# --- refusals: each says what was wrong, what was found and what to do ------------------------


def no(model: nn.Module, *words: str, **config) -> str:
    return refuses(model, lambda: minilora.add_lora(model, LoRAConfig(**config)), *words)


def test_nothing_matches():
    no(Toy(), "matches nothing", "'nope.*'", "can be adapted", "'q_proj'", targets="nope.*")
    no(Toy(), "matches nothing", "'embed'", targets=nn.LSTM)
    no(Toy(), "matches nothing", targets=lambda path, m: False)
    no(nn.Sequential(nn.ReLU()), "no linear layer, embedding or convolution", targets="all-linear")
    no(nn.Linear(2, 2), "single layer", "nn.Sequential", targets="all-linear")
    no(nn.Linear(2, 2), "nn.Sequential", targets=nn.Linear)


def test_a_named_target_that_matches_nothing_names_near_misses():
    no(Toy(), "targets names 'q_porj'", "close to it: 'q_proj'", targets=["v_proj", "q_porj"])
    no(Toy(), "'block.0.q_proj'", "'blocks.0.q_proj'", targets=["block.0.q_proj"])
    no(Toy(), "'xyz'", "can be adapted end with", "'up_proj'", targets=["xyz"])
    no(Toy(), "exclude names 'haed'", "'head'", targets=nn.Linear, exclude=["haed"])
    no(
        Toy(),
        "modules_to_save names 'heda'",
        "'head'",
        targets=["q_proj"],
        modules_to_save=["heda"],
    )


def test_patterns_that_fit_no_adapted_layer():
    no(
        Toy(),
        "rank_pattern",
        "'v_proj'",
        "blocks.0.q_proj",
        targets=["q_proj"],
        rank_pattern={"v_proj": 2},
    )
    no(Toy(), "alpha_pattern", "'k'", "are adapted", targets=["q_proj"], alpha_pattern={"k": 2})


def test_everything_excluded():
    no(Toy(), "exclude", "every layer", "q_proj", targets=["q_proj"], exclude=["q_proj"])


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.Conv3d(2, 2, 1), "Conv3d"),
        (nn.ConvTranspose2d(2, 2, 1), "ConvTranspose2d"),
        (nn.LayerNorm(2), "LayerNorm"),
        (nn.Sequential(nn.Linear(2, 2)), "Sequential"),
        (nn.EmbeddingBag(3, 2), "EmbeddingBag"),
        (nn.LSTM(2, 2), "LSTM"),
    ],
)
def test_other_layer_types(module, name):
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": module})
    no(model, f"'b', a {name}", "linear layers, embeddings and", "exclude", targets=["a", "b"])


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), ["groups=2"]),
        (nn.Conv2d(4, 4, 3, dilation=(1, 2)), ["dilation=(1, 2)"]),
        (nn.Conv1d(4, 4, 3, dilation=2), ["dilation=(2,)"]),
        (nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"), ["padding_mode='circular'"]),
    ],
)
def test_convolutions_that_the_file_format_cannot_tell_apart(module, words):
    no(nn.ModuleDict({"b": module}), "'b'", *words, targets=["b"])


def test_a_convolution_with_a_forward_of_its_own_is_refused():
    class Standardized(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight / self.weight.std(), self.bias)

    words = ["'b' is a Standardized", "forward of its own"]
    no(nn.ModuleDict({"b": Standardized(2, 2, 1)}), *words, targets=["b"])


def test_another_conv1d_than_that_of_transformers_is_refused():
    class Conv1D(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 2))

    no(nn.ModuleDict({"c_attn": Conv1D()}), "'c_attn', a Conv1D", targets=["c_attn"])


def test_multihead_attention_is_refused():
    model = nn.TransformerEncoderLayer(4, 2, 8)
    no(
        model,
        "'self_attn.out_proj'",
        "nn.MultiheadAttention",
        "pass the",
        "exclude",
        targets=["out_proj"],
    )
    no(model, "nn.MultiheadAttention", targets=nn.Linear)
    minilora.add_lora(model, LoRAConfig(targets=nn.Linear, exclude=["out_proj"]))


def test_embeddings_that_cannot_be_adapted():
    class Offset(nn.Embedding):  # as transformers' learned positions
        def forward(self, ids):
            return super().forward(ids + 2)

    no(
        nn.ModuleDict({"e": nn.Embedding(3, 2, max_norm=1.0)}),
        "max_norm=1.0",
        "None",
        targets=["e"],
    )
    no(nn.ModuleDict({"e": Offset(5, 2)}), "'e'", "Offset", "forward of its own", targets=["e"])


def test_weights_that_are_not_floats_or_not_there():
    model = nn.ModuleDict({"a": nn.Linear(2, 2)})
    model["a"].weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    no(model, "torch.int8", "floats", targets=["a"])
    lazy = nn.ModuleDict({"a": nn.LazyLinear(2)})
    with pytest.raises(ValueError, match="no shape yet; call the model once"):
        minilora.add_lora(lazy, LoRAConfig(targets=["a"]))


def test_modules_to_save_may_not_overlap():
    no(
        Toy(),
        "'head' is in both",
        "trained whole",
        targets=["head", "q_proj"],
        modules_to_save=["head"],
    )
    no(Toy(), "'blocks.0'", "'blocks.0.q_proj'", targets=["q_proj"], modules_to_save=["blocks.0"])
    nested = ["blocks", "blocks.0"]
    no(Toy(), "'blocks'", "'blocks.0'", targets=["embed"], modules_to_save=nested)


def test_adding_twice():
    model = toy(targets=["q_proj"])
    no(model, "already", "remove_lora", "keep_update=True", targets=["v_proj"])
    outer = nn.Sequential(model)
    no(outer, "already", targets=["v_proj"])


def test_not_a_config():
    model = Toy()
    refuses(
        model,
        lambda: minilora.add_lora(model, {"r": 8}),
        "needs a LoRAConfig, but got dict",
        error=TypeError,
    )


def test_what_the_callables_raise_comes_through():
    model = Toy()

    def broken(*args):
        raise KeyError("mine")

    for config in (
        LoRAConfig(targets=broken),
        LoRAConfig(targets=["q_proj"], exclude=broken),
        LoRAConfig(targets=["q_proj"], init=broken),
    ):
        refuses(model, lambda c=config: minilora.add_lora(model, c), "mine", error=KeyError)
    huge = LoRAConfig(targets=["q_proj", "v_proj"], rank_pattern={"1.v_proj": 10**17})
    refuses(model, lambda: minilora.add_lora(model, huge), error=RuntimeError)


def test_parametrized_layers_are_found():
    model = nn.ModuleDict({"a": nn.Linear(2, 2)})
    register_parametrization(model["a"], "weight", nn.Identity())
    assert found(model, ["a"]) == ["a"]
    assert found(Tied(), ["head", "embed"]) == ["embed", "head"]


@pytest.mark.parametrize(
    ("exclude", "words"),
    [
        (["norm"], ["exclude=['norm'] takes nothing out"]),
        (["q_proj", "head"], ["exclude=['head'] takes nothing out"]),
        (["blocks"], ["takes nothing out", "contains 'blocks.0.q_proj'"]),
        ("blocks", ["exclude='blocks' takes nothing out", "contains 'blocks.0.q_proj'"]),
        (".*porj", ["takes nothing out"]),
        (nn.Conv2d, ["takes nothing out"]),
        (lambda path, module: False, ["takes nothing out"]),
    ],
)
def test_an_exclude_that_takes_nothing_out_is_refused(exclude, words):
    no(Toy(), *words, targets=["q_proj", "v_proj"], exclude=exclude)


def test_an_empty_exclude_is_none():
    assert LoRAConfig(exclude=[]).exclude is None


def test_a_name_given_as_a_string_is_explained():
    no(Toy(), "whole path", "['q_proj']", targets="q_proj")
    no(Toy(), "did you mean 'all-linear'", targets="all_linear")
