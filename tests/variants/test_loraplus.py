"""LoRA+: which learning rate every parameter gets, held to PEFT's choice."""

import copy

import pytest
import torch
from core_help import Toy, ids, toy
from torch import nn

import minilora
from minilora import LoRAConfig, add_lora
from minilora.variants.lora_fa import freeze_A
from minilora.variants.loraplus import loraplus_groups

LR, RATIO, DECAY = 1e-3, 8.0, 0.1

CONFIGS = {
    "linear": {"targets": ["q_proj", "v_proj"]},
    "biases": {"targets": ["q_proj"], "bias": "all"},
    "head and norm": {"targets": ["q_proj"], "modules_to_save": ["norm", "head"]},
    "embedding saved whole": {"targets": ["q_proj"], "modules_to_save": ["embed"]},
    "dora": {"targets": ["q_proj", "up_proj"], "use_dora": True},
    "embedding": {"targets": ["q_proj", "embed"]},
}


def shared_name(name: str) -> str:
    """One name for a parameter of ours and of PEFT's."""
    name = name.removeprefix("base_model.model.").replace(".lora_magnitude_vector.", ".magnitude.")
    name = name.replace(".dora.magnitude", ".magnitude").replace(".modules_to_save.", ".tuned.")
    for old, new in [("lora_embedding_", ""), ("lora_", ""), (".default", ""), (".base_layer", "")]:
        name = name.replace(old, new)
    name = name.replace(".base.", ".")
    part = name.split(".")
    return name.removesuffix(".weight") if part[-2] in ("A", "B", "magnitude") else name


def rates(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    """{name: (learning rate, weight decay)}."""
    names = {p: shared_name(name) for name, p in model.named_parameters()}
    return {
        names[p]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


def ours_and_theirs(config: dict) -> tuple[dict, dict]:
    peft = pytest.importorskip("peft")
    optimizers = pytest.importorskip("peft.optimizers")
    torch.manual_seed(0)
    base = Toy()
    other = peft.get_peft_model(
        copy.deepcopy(base),
        peft.LoraConfig(
            r=2,
            target_modules=config["targets"],
            bias=config.get("bias", "none"),
            modules_to_save=config.get("modules_to_save"),
            use_dora=config.get("use_dora", False),
        ),
    )
    theirs = optimizers.create_loraplus_optimizer(
        other, torch.optim.AdamW, lr=LR, loraplus_lr_ratio=RATIO, loraplus_weight_decay=DECAY
    )
    model = add_lora(base, LoRAConfig(r=2, **config))
    ours = torch.optim.AdamW(loraplus_groups(model, LR, RATIO), weight_decay=DECAY)
    return rates(model, ours), rates(other, theirs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_parameter_gets_the_rate_that_peft_gives_it(config):
    ours, theirs = ours_and_theirs(config)
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.startswith("embed.") and name.endswith(("A", "B")):
            # Where we differ: PEFT trains embeddings at a fixed rate of 1e-6.
            assert (ours[name][0], theirs[name][0]) == (LR * RATIO, 1e-6)
        elif name.endswith("magnitude"):  # decaying a magnitude would pull the weight itself to 0
            assert ours[name] == (LR * RATIO, 0.0) and theirs[name] == (LR * RATIO, DECAY)
        else:
            assert ours[name] == theirs[name], name


def test_the_rates_are_the_papers():
    model = toy(r=2, targets=["q_proj"])
    groups = loraplus_groups(model, lr=2e-4)
    layers = minilora.lora_layers(model).values()
    assert [(g["lr"], len(g["params"])) for g in groups] == [(2e-4, 2), (2e-4 * 16, 2)]
    assert [id(p) for p in groups[0]["params"]] == [id(layer.A) for layer in layers]
    assert [id(p) for p in groups[1]["params"]] == [id(layer.B) for layer in layers]


def test_an_sgd_step_moves_every_parameter_by_its_own_rate():
    model = toy(r=2, targets=["q_proj", "embed"], bias="all", modules_to_save=["head"])
    groups = loraplus_groups(model, lr=0.01, ratio=4)
    before = {p: p.detach().clone() for p in minilora.lora_parameters(model)}
    rate = {p: group["lr"] for group in groups for p in group["params"]}
    assert rate.keys() == before.keys()
    optimizer = torch.optim.SGD(groups)
    model(ids()).square().sum().backward()
    optimizer.step()
    for p, old in before.items():
        assert torch.allclose(p, old - rate[p] * p.grad)
        assert p.grad.abs().sum() > 0


def test_magnitudes_of_a_convolution_are_vectors_too():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    add_lora(model, LoRAConfig(r=2, targets=["0"], use_dora=True))
    vectors = loraplus_groups(model, 1.0, 2.0)[-1]
    assert vectors["weight_decay"] == 0 and vectors["lr"] == 2
    assert [id(p) for p in vectors["params"]] == [id(model[0].dora.magnitude)]


def test_frozen_factors_are_left_out():
    model = freeze_A(toy(r=2, targets=["q_proj"]))
    (group,) = loraplus_groups(model, 1.0)
    assert [id(p) for p in group["params"]] == [
        id(v.B) for v in minilora.lora_layers(model).values()
    ]


@pytest.mark.parametrize("wrong", [{"lr": 0}, {"lr": float("nan")}, {"lr": 1, "ratio": -1}])
def test_rates_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="must be positive and finite"):
        loraplus_groups(toy(r=2, targets=["q_proj"]), **wrong)


def test_a_plain_model_is_refused():
    with pytest.raises(ValueError, match="add_lora"):
        loraplus_groups(Toy(), 1.0)
