"""The table of linear layers: held against the models, and against what adapters do there."""

from __future__ import annotations

import pytest
import torch

import minilora
from minilora import LoRAConfig
from minilora.lab import anatomy

pytest.importorskip("transformers")
every = pytest.mark.parametrize("name", anatomy.MODELS)


def found(name: str) -> dict[str, anatomy.Place]:
    return {
        one.name: one for one in anatomy.places(anatomy.build(name), anatomy.example_input(name))
    }


def test_llama_mistral_and_qwen_share_their_names():
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}
    for name in ("LLaMA", "Mistral", "Qwen3"):
        assert set(found(name)) == names
        assert all(one.called and not one.turned for one in found(name).values())


def test_gpt2_is_turned_and_fused():
    gpt2 = found("GPT-2")
    assert {name for name, one in gpt2.items() if one.turned} == {"c_attn", "c_proj", "c_fc"}
    assert gpt2["c_attn"].shape == (32, 96)
    assert found("Phi-3")["qkv_proj"].shape == (64, 32)


def test_experts_are_parameters_with_three_axes():
    mixtral = found("Mixtral")
    assert {name for name, one in mixtral.items() if one.parameter} == {"gate_up_proj", "down_proj"}
    assert mixtral["down_proj"].shape == (4, 32, 64)
    with pytest.raises(ValueError, match="which is a parameter of"):
        minilora.add_lora(anatomy.build("Mixtral"), LoRAConfig(targets=["gate_up_proj"]))


@every
def test_what_is_never_called_is_what_an_adapter_does_nothing_to(name):
    """An adapter with factors that are not zero: does the output move?"""
    # WavLM in double precision, where a small effect and rounding lie far apart.
    exact = torch.float64 if name == "WavLM" else torch.float32
    inputs = anatomy.example_input(name)
    inputs = {k: v.to(exact) if v.is_floating_point() else v for k, v in inputs.items()}
    layers = [one for one in found(name).values() if not one.parameter]
    for one in layers:
        model = anatomy.build(name).to(exact)
        with torch.no_grad():
            before = model(**inputs).logits
            config = LoRAConfig(r=2, targets=[one.example])
            layer = minilora.lora_layers(minilora.add_lora(model, config))[one.example]
            layer.A.normal_()
            layer.B.normal_()
            moved = bool(
                (model(**inputs).logits - before).abs().max()
                > (1e-5 if exact == torch.float32 else 1e-9)
            )
        assert moved == one.called, one
        logits = model(**inputs).logits
        if logits.requires_grad:
            logits.sin().sum().backward()
        trains = layer.B.grad is not None and bool(layer.B.grad.any())
        assert trains == one.called, one


def test_the_layers_that_are_never_called():
    dead = {
        (name, p) for name in anatomy.MODELS for p, one in found(name).items() if not one.called
    }
    assert dead == {
        ("Mamba", "dt_proj"),
        *(("WavLM", p) for p in ("q_proj", "k_proj", "v_proj", "out_proj")),
    }


@every
def test_the_model_is_left_as_it_was(name):
    model = anatomy.build(name)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    anatomy.places(model, anatomy.example_input(name))
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    assert not [hook for hook in hooks if isinstance(hook, anatomy._Seen)]  # WavLM has its own
    again = anatomy.build(name).state_dict()
    assert all(torch.equal(t, state[n]) for n, t in again.items())


def test_the_table_says_all_of_it():
    text = anatomy.table(["GPT-2", "WavLM", "Mixtral"])
    assert "(in, out)" in text and "never called" in text and "a 3-D parameter" in text
    assert text.splitlines()[0] == "GPT-2" and "LLaMA" not in text
    with pytest.raises(ValueError, match="no model 'GPT-5'; there are BERT"):
        anatomy.build("GPT-5")


def test_a_model_of_ones_own_is_described_as_the_small_ones_are():
    described = anatomy.describe(anatomy.build("LLaMA"), anatomy.example_input("LLaMA"))
    assert anatomy.table(["LLaMA"]) == f"LLaMA\n{described}"


@every
def test_what_adapters_reach_adds_up_to_the_model(name):
    model, one = anatomy.build(name), anatomy.reach(name)
    counted = one.acted + one.idle + one.experts + one.rest
    assert counted == sum(p.numel() for p in model.parameters())
    listed = dict.fromkeys(("idle", "experts"), 0)
    for place in found(name).values():
        size = place.count * torch.Size(place.shape).numel()
        listed["idle"] += size * (not place.called)
        listed["experts"] += size * place.parameter
    assert (one.idle, one.experts) == (listed["idle"], listed["experts"])
    assert one.acted > 0 and one.rest > 0


def test_adapters_pass_most_of_a_mixture_of_experts_by():
    mixtral, llama = anatomy.reach("Mixtral"), anatomy.reach("LLaMA")
    whole = mixtral.acted + mixtral.experts + mixtral.rest
    assert mixtral.experts > 0.7 * whole and llama.experts == llama.idle == 0
