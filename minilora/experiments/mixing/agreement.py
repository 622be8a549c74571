"""Whether a server computes what was trained: the first token of its answers, compared.

The server is played by the same model with all its numbers in bfloat16.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

import minilora
from minilora.lab.language import LanguageModel


@torch.no_grad()
def first_tokens(model: LanguageModel, prompts: Tensor) -> Tensor:
    """Log-probabilities of the token that comes next: (N, T) → (N, vocab)."""
    return model(prompts)[:, :, -1].float().log_softmax(dim=1)


def served(model: LanguageModel, strength: float = 1.0) -> LanguageModel:
    """A copy that computes in bfloat16, with a factor that is ``strength`` times the right one."""
    found = copy.deepcopy(model)
    if strength != 1:
        minilora.set_strength(found, strength)
    return found.bfloat16().eval()


def apart(expected: Tensor, found: Tensor) -> Tensor:
    """For each prompt: how far the log-probability of its likeliest token is off. (N,)"""
    best = expected.argmax(dim=1, keepdim=True)
    return (found - expected).gather(1, best).abs().flatten()
