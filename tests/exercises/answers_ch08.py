"""Right and wrong answers to chapter 8's check of a budget, which looks into a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import minilora
from minilora import LoRAConfig

Function = Callable[..., Any]
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


def adapters(targets=("v_proj", "up_proj", "down_proj"), r=2, alpha=2, **more):
    def answer(model):
        config = LoRAConfig(r=r, alpha=alpha, targets=targets, **more)
        return minilora.add_lora(model, config)

    return answer


def training(part, on=True):
    """The right adapters, and part of the model turned on or off."""

    def answer(model):
        part(adapters()(model)).requires_grad_(on)
        return model

    return answer


def only_head(model):
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    return model


def both_random(layer):
    layer.A.normal_()
    layer.B.normal_()


RIGHT: dict[str, Function] = {"budget": adapters()}

WRONG: list[tuple[str, Function, str]] = [
    ("budget", adapters(EVERY), "5,184 parameters would be trained, 1,184 more"),
    ("budget", adapters(["q_proj"]), "Only 576 parameters"),
    ("budget", lambda model: model, "There is no adapter"),
    ("budget", only_head, "There is no adapter"),
    ("budget", lambda model: adapters()(model) and None, "return nothing"),
    ("budget", lambda model: LoRAConfig(r=2, alpha=2, targets=["q_proj"]), "found LoRAConfig"),
    ("budget", training(lambda model: model.head), "The head is trained"),
    ("budget", adapters(EVERY, 1, modules_to_save=["head"]), "The head is trained"),
    ("budget", training(lambda model: model.class_token), "class_token is trained"),
    ("budget", adapters(bias="lora_only"), "proj.base.bias is trained"),
    ("budget", training(lambda model: model), "The base is not frozen"),
    ("budget", training(lambda model: model, on=False), "Nothing would be trained"),
    ("budget", adapters(init=both_random), "does not start where the base stands"),
]
