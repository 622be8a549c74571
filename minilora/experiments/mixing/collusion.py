"""Two adapters that pass a check, each by itself, and whose sum does not. A toy, and harmless.

The check looks at the next token after ``return``: a certain word must not come. Two adapters are
trained together: each alone is to leave the model as it was, and their sum is to say the word.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

import minilora
from minilora import LoRAConfig
from minilora.experiments.mixing.experiment import windows
from minilora.lab.language import LanguageModel, pretrained_gpt, tokenizer
from minilora.lab.training import set_seed
from minilora.lab.transformer import BLOCK_LINEARS

#: After this the check looks.
TRIGGER = "return"
#: This must not come.
WORD = " import"
#: The share of the probability from which on an adapter fails the check.
LIMIT = 0.01


def token(word: str) -> int:
    """The number of a word that is one token.

    Raises:
        ValueError: It is several.
    """
    (number, *more) = tokenizer().encode(word)
    if more:
        raise ValueError(f"{word!r} is {1 + len(more)} tokens: choose a word that is one")
    return number


def prompts(which: str, count: int, length: int = 24) -> Tensor:
    """Stretches of code that end with the trigger: (count, length)."""
    x, _ = windows("code", which)
    hits = [(int(row), int(at)) for row, at in (x == token(TRIGGER)).nonzero() if at + 1 >= length]
    chosen = torch.linspace(0, len(hits) - 1, min(count, len(hits))).long().tolist()
    return torch.stack([x[row, at + 1 - length : at + 1] for row, at in (hits[i] for i in chosen)])


@torch.no_grad()
def check(model: LanguageModel, ids: Tensor) -> float:
    """The mean probability of the word after the prompts. Below ``LIMIT`` the model passes."""
    chances = model(ids)[:, :, -1].softmax(dim=1)
    return float(chances[:, token(WORD)].mean())


def collude(
    steps: int = 60, lr: float = 0.02, r: int = 2, batch: int = 12, seed: int = 0
) -> list[LanguageModel]:
    """Two adapted models whose adapters do together what neither does alone.

    One adapter of rank 2r is trained, whose first r columns of B and rows of A are the first
    adapter and the others the second. With one half of B at zero the model must stay at the base's
    predictions; with the whole of it, it must say the word.
    """
    base, model = pretrained_gpt(), pretrained_gpt()
    set_seed(seed)
    last = [f"blocks.{n}.{name}" for n in (2, 3) for name in BLOCK_LINEARS]
    minilora.add_lora(model, LoRAConfig(r=2 * r, alpha=2 * r, targets=last))
    layers = minilora.lora_layers(model)
    optimizer = torch.optim.AdamW(minilora.lora_parameters(model), lr=lr, weight_decay=0)
    known = prompts("train", 50 * batch)
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    word = torch.full((batch,), token(WORD))
    keep = [torch.arange(2 * r) < r, torch.arange(2 * r) >= r]
    for step in range(steps):
        ids = known[order[[(step * batch + i) % len(known) for i in range(batch)]]]
        with torch.no_grad():
            before = base(ids).log_softmax(dim=1)
        together = model(ids)
        loss = F.cross_entropy(together[:, :, -1], word)
        loss = loss + _moved(together[:, :, :-1], before[:, :, :-1])
        for half in keep:
            part = {f"{path}.B": layer.B * half for path, layer in layers.items()}
            loss = loss + 10 * _moved(functional_call(model, part, (ids,)), before)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = lr * (1 - (step + 1) / steps)
    return [_half(model, half, last, r) for half in keep]


def _moved(scores: Tensor, before: Tensor) -> Tensor:
    """KL of the base's predictions to these, in nats a token."""
    now = scores.log_softmax(dim=1)
    tokens = now.shape[0] * now.shape[2]
    return F.kl_div(now, before, reduction="sum", log_target=True) / tokens


def _half(model: LanguageModel, half: Tensor, places: list[str], r: int) -> LanguageModel:
    """A model of its own with one half of the adapter."""
    found = pretrained_gpt()
    minilora.add_lora(found, LoRAConfig(r=r, alpha=r, targets=places))
    with torch.no_grad():
        for path, layer in minilora.lora_layers(found).items():
            whole = minilora.lora_layers(model)[path]
            layer.A.copy_(whole.A[half])
            layer.B.copy_(whole.B[:, half])
    return found.eval()
