"""The texts that runs share, and how a model is judged on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from minilora.experiments.language.profiles import LanguageProfile
from minilora.lab.language import LanguageModel, text
from minilora.lab.sweep import Data
from minilora.lab.training import Evaluation, flush_denormals


def some(pair: Data, count: int) -> Data:
    """So many windows, evenly spread over all."""
    rows = torch.linspace(0, len(pair[1]) - 1, min(count, len(pair[1]))).long()
    return pair[0][rows], pair[1][rows]


@dataclass(frozen=True)
class Texts:
    """The windows that every run of a profile shares."""

    train: Data
    prose: Data
    code: Data
    prose_test: Data
    code_test: Data
    topics: tuple[str, ...]

    @staticmethod
    def of(profile: LanguageProfile, device: torch.device | str = "cpu") -> Texts:
        context, count = profile.model.context, profile.windows
        test = text("prose", "test")

        def there(pair: Data) -> Data:
            return pair[0].to(device), pair[1].to(device)

        return Texts(
            there(text("prose").windows(context)),
            there(some(text("prose", "validation").windows(context), count)),
            there(some(text("code", "validation").windows(context), count)),
            there(test.windows(context)),
            there(some(text("code", "test").windows(context), 2 * count)),
            tuple(test.homes(context)),
        )


@torch.no_grad()
@flush_denormals()
def judged(model: LanguageModel, pair: Data) -> tuple[Tensor, Tensor]:
    """Nats of each token (N, T), and whether it was the likeliest (N, T), both on the CPU."""
    losses, right = [], []
    for x, y in zip(pair[0].split(32), pair[1].split(32), strict=True):
        scores = model(x)
        losses.append(F.cross_entropy(scores, y, reduction="none").double().cpu())
        right.append((scores.argmax(dim=1) == y).double().cpu())
    return torch.cat(losses), torch.cat(right)


def score_on(model: LanguageModel, pair: Data) -> Evaluation:
    losses, right = judged(model, pair)
    nan = float("nan")
    return Evaluation(float(right.mean()), nan, float(losses.mean()), nan, len(pair[1]))
