"""What the tests of the core share: small models, a snapshot that shows any change, folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn

import minilora
from minilora import LoRAConfig

HOOKS = [name for name in vars(nn.Linear(1, 1)) if name.endswith("_hooks")]


class Block(nn.Module):
    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.q_proj = nn.Linear(d, d)
        self.v_proj = nn.Linear(d, d, bias=False)
        self.up_proj = nn.Linear(d, 2 * d)
        self.down_proj = nn.Linear(2 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.v_proj(torch.tanh(self.q_proj(x)))
        return x + self.down_proj(torch.tanh(self.up_proj(x)))


class Toy(nn.Module):
    """Token ids (n, t) → (n, t, 3): an embedding, two blocks, a norm and a head."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, d)
        self.blocks = nn.ModuleList([Block(d), Block(d)])
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Pictures(nn.Module):
    """Pictures (n, 3, 8, 8) → (n, 4): convolutions of several kernels, strides and paddings."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, (3, 2), stride=2, padding=(1, 0), bias=False)
        self.point = nn.Conv2d(8, 8, 1)
        self.conv3 = nn.Conv1d(8, 8, 3, stride=2, padding="valid")
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(torch.tanh(self.conv2(torch.tanh(self.conv1(x)))))
        return self.head(torch.tanh(self.conv3(x.flatten(2))).mean(-1))


class Tied(nn.Module):
    """Token ids (n, t) → (n, t, 11), with the head's weight shared with the embedding."""

    def __init__(self, d: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, d)
        self.proj = nn.Linear(d, d)
        self.head = nn.Linear(d, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.proj(self.embed(ids)))


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 11, shape or (2, 5))


def toy(seed: int = 0, **config: Any) -> Toy:
    """A toy, adapted as ``config`` says, with its adapter shaken."""
    torch.manual_seed(seed)
    model = Toy()
    return shake(minilora.add_lora(model, LoRAConfig(**config))) if config else model


def shake(model: nn.Module, std: float = 0.3) -> Any:
    """As if it had been trained: everything that the adapter trains moves."""
    with torch.no_grad():
        for p in minilora.lora_parameters(model):
            p.add_(torch.randn_like(p) * std)
    return model


def bits(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    t = tensor.detach().cpu().contiguous().reshape(-1)
    return str(tensor.dtype), tuple(tensor.shape), t.view(torch.uint8).numpy().tobytes()


def snapshot(model: nn.Module) -> list[Any]:
    """Every module's identity, flags, hooks and tensors, to the bit."""
    seen: list[Any] = []
    for path, m in model.named_modules(remove_duplicate=False):
        plain = {k: v for k, v in vars(m).items() if isinstance(v, (bool, int, float, str))}
        hooks = {k: list(getattr(m, k).items()) for k in HOOKS}
        tensors = {
            k: (id(p), p.requires_grad, bits(p), bits(p.grad))
            for k, p in m._parameters.items()
            if p is not None
        }
        buffers = {k: (id(b), bits(b)) for k, b in m._buffers.items() if b is not None}
        aside = vars(m).get("aside")
        kept = [bits(t) for t in (aside.original, aside.unmerged)] if aside else []
        seen.append((path, id(m), type(m), plain, hooks, tensors, buffers, kept, sorted(vars(m))))
    noted = vars(model).get("_minilora")
    if noted is not None:
        biases = {k: (id(b), bits(o)) for k, (b, o) in noted.biases.items()}
        flags = [(id(m), name, flag) for m, name, flag in noted.requires_grad]
        seen.append((id(noted), noted.config, biases, flags, [id(m) for m in noted.nested]))
    return seen


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    before = snapshot(model)
    yield
    assert snapshot(model) == before


def refuses(
    model: nn.Module, action: Callable[[], object], *words: str, error: Any = ValueError
) -> str:
    """``action`` raises, the message holds all ``words``, and the model is as it was."""
    with unchanged(model), pytest.raises(error) as caught:
        action()
    message = str(caught.value)
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
    return message


def close(a: Tensor, b: Tensor, relative: float = 1e-5) -> bool:
    """max|a − b| ≤ relative · max|b|: the contract's measure of the fast form."""
    if a.numel() == 0:
        return a.shape == b.shape
    return bool((a - b).abs().max() <= relative * b.abs().max())


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Read, not mapped: the file may be written over while the test holds them."""
    return load((folder / "adapter_model.safetensors").read_bytes())


def settings_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def rewritten(
    folder: Path, rename: Callable[[str], str] = str, tensors: Any = None, **config: Any
) -> Path:
    """The folder as PEFT would have written it: no metadata of ours; with changes."""
    stored = tensors_of(folder) if tensors is None else tensors
    stored = {rename(k): t for k, t in stored.items()}
    (folder / "adapter_model.safetensors").write_bytes(save(stored, {"format": "pt"}))
    text = settings_of(folder) | {"auto_mapping": None} | config
    text = {k: v for k, v in text.items() if v is not ...}
    (folder / "adapter_config.json").write_text(json.dumps(text))
    return folder


class Net(nn.Module):
    """A random small network on token ids: what hypothesis draws."""

    def __init__(self, widths: list[int], bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, widths[0], dtype=dtype)
        pairs = pairwise(widths)
        self.layers = nn.ModuleList([nn.Linear(a, b, bias=bias, dtype=dtype) for a, b in pairs])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)) -> Any:
    """(model, config, ids) of random sizes, ranks, scales, targets and types."""
    torch.manual_seed(draw(st.integers(0, 10_000)))
    widths = draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    model = Net(widths, draw(st.booleans()), draw(st.sampled_from(dtypes)))
    names = ["embed", *(f"layers.{i}" for i in range(len(widths) - 1))]
    targets = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    config = LoRAConfig(
        r=draw(st.integers(1, 6)),
        alpha=draw(st.sampled_from([1, 3, 8, 0.7])),
        targets=targets,
        scaling=draw(st.sampled_from(["standard", "rslora"])),
        bias=draw(st.sampled_from(["none", "all", "lora_only"])),
        rank_pattern=draw(st.sampled_from([{}, {targets[0]: 2}])),
        modules_to_save=draw(st.sampled_from([(), (names[-1],)]))
        if names[-1] not in targets
        else (),
    )
    shape = draw(st.sampled_from([(1,), (4,), (2, 3), (1, 2, 2)]))
    return model, config, torch.randint(0, 7, shape)
