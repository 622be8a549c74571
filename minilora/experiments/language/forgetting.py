"""How far a model has moved, what it has forgotten, and what random moves would have done."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from minilora.lab.language import LanguageModel, token_losses
from minilora.lab.sweep import Data
from minilora.lab.training import flush_denormals

#: {path of a weight: what is added to it}
Updates = Mapping[str, Tensor]


def moved(base: LanguageModel, updates: Updates, strength: float = 1.0) -> LanguageModel:
    """A copy of the base to whose weights ``strength`` times the updates are added."""
    model = copy.deepcopy(base)
    with torch.no_grad():
        for path, update in updates.items():
            model.get_parameter(path).add_(update, alpha=strength)
    return model.eval()


def size(updates: Updates) -> float:
    """The Frobenius norm of all updates together."""
    return float(sum(update.double().square().sum() for update in updates.values()) ** 0.5)


def relative_size(updates: Updates, base: LanguageModel) -> float:
    """The same, as a share of the norm of the weights that they are added to."""
    weights = {path: base.get_parameter(path).detach() for path in updates}
    return size(updates) / size(weights)


def turned(updates: Updates, seed: int) -> dict[str, Tensor]:
    """Matrices with the same singular values as the updates, and random singular vectors.

    So size, rank and spectrum are kept, matrix by matrix, and what training has chosen is not.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for path, update in updates.items():
        m, n = update.shape
        values = torch.linalg.svdvals(update.double()).cpu()
        U, V = (
            torch.linalg.qr(torch.randn(side, len(values), generator=generator).double())[0]
            for side in (m, n)
        )
        found[path] = (U * values @ V.T).to(update)
    return found


@torch.no_grad()
@flush_denormals()
def log_probabilities(model: LanguageModel, x: Tensor) -> Tensor:
    """What the model expects at each place: (N, T) → (N, vocab, T)."""
    return torch.cat([model(part).log_softmax(dim=1) for part in x.split(16)])


def divergence(expected: Tensor, model: LanguageModel, x: Tensor) -> tuple[float, float]:
    """How far a model is from another on a text: KL in nats a token, and how often they agree.

    ``expected`` (N, vocab, T) are the other's log-probabilities, over which the mean is taken, and
    to agree is to hold the same next token for the likeliest.
    """
    now = log_probabilities(model, x)
    kl = F.kl_div(now, expected, reduction="sum", log_target=True) / x.numel()
    same = (now.argmax(dim=1) == expected.argmax(dim=1)).float().mean()
    return max(0.0, float(kl)), float(same)


def strength_of(
    kl: float, base: LanguageModel, updates: Updates, expected: Tensor, x: Tensor, tries: int = 7
) -> float:
    """How strong an update has to be for a model to be ``kl`` nats a token away from its base.

    KL grows with the square of a small change, and later on more slowly, which makes the next guess
    from the last. Of ``tries`` strengths the one that came nearest.
    """
    low, high, strength = 0.0, float("inf"), 1.0
    nearest = float("inf"), strength
    for _ in range(tries):
        found, _ = divergence(expected, moved(base, updates, strength), x)
        off = abs(math.log(max(found, 1e-12) / max(kl, 1e-12)))
        nearest = min(nearest, (off, strength))
        if off < 0.02:
            break
        low, high = (strength, high) if found < kl else (low, strength)
        guess = strength * min(4.0, max(0.25, (kl / max(found, 1e-12)) ** 0.5))
        strength = guess if low < guess < high else (low + min(high, 2 * guess)) / 2
    return nearest[1]


def mean_loss(model: LanguageModel, pair: Data) -> float:
    """Nats a token."""
    return float(token_losses(model, *pair).double().mean())
