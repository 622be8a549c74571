"""Where the linear layers of well-known models are, read off the models themselves.

Each model is built small and random from its config, so that nothing is downloaded, and run once
with a hook on every layer. What the hooks did not see is not called: its weight is read by other
code, and an adapter on it would train nothing. Needs `transformers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minilora import LoRAConfig, add_lora, lora_layers

VOCAB, WIDTH, BLOCKS = 50, 32, 2


@dataclass(frozen=True)
class Place:
    """Layers of one name: what an adapter would meet there.

    Attributes:
        name: The end of their paths, as a config's ``targets`` take it.
        example: The path of one of them.
        shape: That of its weight.
        turned: Whether the weight is (in, out), as in GPT-2, and not (out, in).
        called: Whether the model calls them; if not, an adapter there does nothing.
        parameter: Whether it is no layer at all, but a tensor of three axes: experts, one above
            the other.
        count: How many of them the small model has.
    """

    name: str
    example: str
    shape: tuple[int, ...]
    turned: bool = False
    called: bool = True
    parameter: bool = False
    count: int = 1


def _ids() -> Tensor:
    return torch.randint(3, VOCAB, (2, 7), generator=torch.Generator().manual_seed(0))


def _decoder(name: str, more: dict[str, Any] | None = None) -> nn.Module:
    """A model with LLaMA's names for its sizes."""
    import transformers

    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **(more or {}),
    )
    return getattr(transformers, f"{name}ForCausalLM")(config)


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH}
    sizes |= {"num_hidden_layers": BLOCKS, "num_attention_heads": 4, "num_labels": 3}
    return BertForSequenceClassification(
        BertConfig(vocab_size=VOCAB, max_position_embeddings=32, **sizes)
    )


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {"n_embd": WIDTH, "n_layer": BLOCKS, "n_head": 4, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, bos_token_id=1, eos_token_id=2, **sizes))


def _t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes: dict[str, Any] = {
        "d_model": WIDTH,
        "d_kv": 8,
        "d_ff": 2 * WIDTH,
        "num_layers": BLOCKS,
        "num_heads": 4,
    }
    sizes |= {"vocab_size": VOCAB, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(**sizes))


def _mamba() -> nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "state_size": 4}
    return MambaForCausalLM(MambaConfig(vocab_size=VOCAB, pad_token_id=0, **sizes))


def _wavlm() -> nn.Module:
    from transformers import WavLMConfig, WavLMForSequenceClassification

    return WavLMForSequenceClassification(
        WavLMConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=BLOCKS,
            num_attention_heads=4,
            conv_dim=(16, 16),
            conv_stride=(5, 4),
            conv_kernel=(10, 8),
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=4,
            classifier_proj_size=16,
        )
    )


#: {name: how a small one is built}, in the order of the table.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "BERT": _bert,
    "GPT-2": _gpt2,
    "T5": _t5,
    "LLaMA": partial(_decoder, "Llama"),
    "Mistral": partial(_decoder, "Mistral"),
    "Qwen3": partial(_decoder, "Qwen3", {"head_dim": 8}),
    "Phi-3": partial(_decoder, "Phi3"),
    "Mixtral": partial(_decoder, "Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Mamba": _mamba,
    "WavLM": _wavlm,
}


def build(name: str) -> nn.Module:
    """A small random model of that name, the same at every call, in eval mode.

    Raises:
        ValueError: There is none.
    """
    if name not in MODELS:
        raise ValueError(f"no model {name!r}; there are {', '.join(MODELS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name]().eval()


def example_input(name: str) -> dict[str, Tensor]:
    """What the small model takes: two short texts, or half a second of two sounds."""
    if name == "WavLM":
        return {"input_values": torch.randn(2, 800, generator=torch.Generator().manual_seed(0))}
    ids = {"input_ids": _ids()}
    return ids | {"decoder_input_ids": _ids()} if name == "T5" else ids


@torch.no_grad()
def places(model: nn.Module, inputs: dict[str, Tensor]) -> list[Place]:
    """Every linear layer of a model, those of one name and shape together, and 3-D experts.

    The model is run once on ``inputs`` and left as it was.
    """
    called: set[str] = set()
    layers = {path: module for path, module in model.named_modules() if _is_linear(module)}
    hooks = [module.register_forward_hook(_Seen(path, called)) for path, module in layers.items()]
    try:
        model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    found = [
        Place(_ending(path), path, tuple(module.weight.shape), _turned(module), path in called)
        for path, module in layers.items()
    ]
    for path, parameter in model.named_parameters():
        if parameter.ndim == 3 and not isinstance(_owner(model, path), nn.Conv1d | nn.Conv2d):
            if "parametrizations" not in path:  # a weight that is normed, not experts
                shape = tuple(parameter.shape)
                found.append(Place(_ending(path), path, shape, called=True, parameter=True))
    return _together(found)


class _Seen:
    """A hook that notes down that a layer was called."""

    def __init__(self, path: str, called: set[str]) -> None:
        self.path, self.called = path, called

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.called.add(self.path)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _turned(module)


def _turned(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D, a linear layer whose weight is (in, out)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers")


def _owner(model: nn.Module, path: str) -> nn.Module:
    return model.get_submodule(path.rpartition(".")[0])


def _ending(path: str) -> str:
    """The last part of a path, or the last two where the last alone is "dense"."""
    parts = path.split(".")
    return ".".join(parts[-2:] if parts[-1] == "dense" else parts[-1:])


def _together(found: list[Place]) -> list[Place]:
    """One place for all that agree in everything but their path."""
    of: dict[tuple[Any, ...], list[Place]] = {}
    for one in found:
        key = one.name, one.shape, one.turned, one.called, one.parameter
        of.setdefault(key, []).append(one)
    return [
        Place(
            one[0].name,
            one[0].example,
            one[0].shape,
            one[0].turned,
            one[0].called,
            one[0].parameter,
            len(one),
        )
        for one in of.values()
    ]


def table(names: list[str] | None = None) -> str:
    """`describe` for the models of that name, one after the other."""
    lines = []
    for name in MODELS if names is None else names:
        lines += [name, describe(build(name), example_input(name))]
    return "\n".join(lines)


def describe(model: nn.Module, inputs: dict[str, Tensor]) -> str:
    """The places of a model as lines of text: name, weight, how many, and what is special."""
    lines = []
    for one in places(model, inputs):
        marks = [
            word
            for word, holds in (
                ("(in, out)", one.turned),
                ("never called", not one.called),
                ("a 3-D parameter", one.parameter),
            )
            if holds
        ]
        shape = " × ".join(map(str, one.shape))
        lines.append(f"  {one.name:26}{shape:>14}  ×{one.count:<3} {', '.join(marks)}".rstrip())
    return "\n".join(lines)


@dataclass(frozen=True)
class Reach:
    """Where a model's numbers are, seen from adapters on all of its linear layers.

    Attributes:
        acted: Numbers of weights whose adapter got a gradient.
        idle: Of weights whose adapter got none, as the layer is never called.
        experts: Of tensors with three axes, which are no layers.
        rest: All others: embeddings, output heads, norms, biases, convolutions.
    """

    acted: int
    idle: int
    experts: int
    rest: int


def reach(name: str) -> Reach:
    """What ``targets="all-linear"`` reaches in the small model of that name: one backward pass."""
    model, inputs = build(name), example_input(name)
    total = sum(p.numel() for p in model.parameters())
    experts = sum(
        one.count * math.prod(one.shape) for one in places(model, inputs) if one.parameter
    )
    layers = lora_layers(add_lora(model, LoRAConfig(r=2, targets="all-linear"))).values()
    model(**inputs).logits.square().sum().backward()
    acted = idle = 0
    for layer in layers:
        if layer.B.grad is not None and layer.B.grad.any():
            acted += layer.base.weight.numel()
        else:
            idle += layer.base.weight.numel()
    return Reach(acted, idle, experts, total - acted - idle - experts)
