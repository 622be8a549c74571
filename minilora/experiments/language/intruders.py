"""Intruder directions: leading singular vectors of a tuned matrix that the base does not have.

After arXiv 2410.21228: of the ten leading left singular vectors of W₀ + ΔW, an intruder is one
whose cosine with every left singular vector of W₀ is below a limit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from minilora.experiments.language.forgetting import Updates
from minilora.lab.language import LanguageModel

LEADING, LIMIT = 10, 0.6


def cosines(before: Tensor, after: Tensor, leading: int = LEADING) -> Tensor:
    """For each leading left singular vector after, its largest |cosine| with one before: (k,)."""
    old = torch.linalg.svd(before.double(), full_matrices=False).U
    new = torch.linalg.svd(after.double(), full_matrices=False).U[:, :leading]
    return (new.T @ old).abs().amax(dim=1)


def count_intruders(base: LanguageModel, updates: Updates, limit: float = LIMIT) -> int:
    """How many there are in all matrices that the updates change."""
    found = 0
    for path, update in updates.items():
        before = base.get_parameter(path).detach()
        found += int((cosines(before, before + update) < limit).sum())
    return found


def without_intruders(
    base: LanguageModel, updates: Updates, keep: float = 0.0, limit: float = LIMIT
) -> dict[str, Tensor]:
    """Updates after which the intruders' singular values are ``keep`` times as large."""
    found = {}
    for path, update in updates.items():
        before = base.get_parameter(path).detach().double()
        after = before + update.double()
        U, values, Vh = torch.linalg.svd(after, full_matrices=False)
        old = torch.linalg.svd(before, full_matrices=False).U
        strange = (U[:, :LEADING].T @ old).abs().amax(dim=1) < limit
        shrunk = values.clone()
        shrunk[:LEADING][strange] *= keep
        found[path] = ((U * shrunk @ Vh) - before).to(update)
    return found


def gaussian(updates: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Independent normal numbers, with the Frobenius norm of each update."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for path, update in updates.items():
        noise = torch.randn(update.shape, generator=generator).to(update)
        found[path] = noise * (update.norm() / noise.norm())
    return found
