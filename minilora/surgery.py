"""New adapters out of finished ones: a smaller one, and the sum of several.

    resize("adapter", "small", rank=8)            # the best of its rank, layer by layer
    resize("adapter", "small", energy=0.99)       # as many directions as hold 99%
    add({"a": 0.7, "b": 0.3}, "both")             # exact: the ranks add up
    add({"a": 1, "b": 1}, "both", rank=16, method="ties")

What is written multiplies the update by 1 in every layer: α = r, so that programs that ignore
``rank_pattern``, ``alpha_pattern`` or ``use_rslora`` compute the same. Tensors are read and written
one layer at a time, and killed at any moment the folder holds the old adapter or the new one.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilora.folder import TENSOR_FILE, AdapterError, check_home
from minilora.shards import Entry, Tensors, bar, copied, write_adapter
from minilora.stored import (
    StoredAdapter,
    StoredLayer,
    decompose,
    factor_keys,
    open_adapter,
    plain_key,
    shaped,
    singular_values,
)
from minilora.svd import rank_for_share

METHODS = ("exact", "ties", "dare")
Path_ = str | os.PathLike[str]


@dataclass(frozen=True)
class Change:
    """What became of one layer.

    Attributes:
        before: Its rank. ``after``: its rank in what is written.
        kept: Share of the sum of squares of the update that was to be written, and was.
        dropped: Share of the entries that TIES or DARE set to zero; 0 otherwise.
        empty: Whether the update is zero.
    """

    path: str
    before: int
    after: int
    kept: float
    dropped: float = 0.0
    empty: bool = False


@dataclass(frozen=True)
class Changes:
    """What became of the layers. ``str()`` says it."""

    out: str
    layers: tuple[Change, ...]
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        worst = min(self.layers, key=lambda change: change.kept)
        ranks = sorted({change.after for change in self.layers})
        span = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        text = (
            f"{self.out}: {len(self.layers)} layers of rank {span}; {self.bytes_after:,} bytes "
            f"from {self.bytes_before:,}. "
        )
        if worst.kept > 1 - 1e-9:
            text += "Nothing of the update is lost."
        else:
            mean = sum(change.kept for change in self.layers) / len(self.layers)
            text += (
                f"Of the update's sum of squares {_share(mean)} is kept in the mean, "
                f"{_share(worst.kept)} in the worst layer ({worst.path})."
            )
        dropped = [change.dropped for change in self.layers if change.dropped]
        if dropped:
            text += f" {sum(dropped) / len(dropped):.0%} of the entries were dropped before."
        if empty := sum(change.empty for change in self.layers):
            text += (
                f" In {empty} of {len(self.layers)} layers the update is zero: nothing is there."
            )
        return text


def _share(value: float) -> str:
    return f"{min(value, 0.9999):.2%}"


# --- a smaller one --------------------------------------------------------------------------


def resize(
    adapter: Path_,
    out: Path_,
    rank: int | None = None,
    energy: float | None = None,
    *,
    progress: bool = False,
) -> Changes:
    """Write the adapter of a smaller rank that is nearest, layer by layer, in Frobenius norm.

    Args:
        adapter: PEFT's folder. ``out``: the folder to write; may be the same.
        rank: At most this rank in every layer. ``energy``: in each layer the smallest rank that
            holds this share of the update's sum of squares. Give one of them.
        progress: Show a bar.

    Returns:
        What became of each layer.

    Raises:
        ValueError: Neither or both of rank and energy, or one out of its bounds.
        AdapterError: The adapter is broken; nothing is written.

    Source: Eckart and Young (1936), on the core of the factors' QR decompositions.
    """
    if (rank is None) == (energy is None):
        raise ValueError("give either rank or energy")
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, but is {rank}")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy must be above 0 and at most 1 (0.99), but is {energy}")
    found = open_adapter(Path(adapter))
    found.require_sound("resize")
    _check_finite(found)
    changes: list[Change] = []
    shown = bar(len(found.layers), progress, "layer")
    for layer in found.layers.values():
        shown.update()
        A, B = next(found.factors(layer.path))
        values = singular_values(A, B)
        wanted = rank if rank is not None else rank_for_share(values, energy or 1.0)
        after = max(1, min(wanted, len(values), layer.r))
        changes.append(
            Change(layer.path, layer.r, after, _kept(values, after), empty=not bool(values.any()))
        )
    pieces = {change.path: change.after for change in changes}

    def cut(path: str) -> tuple[Tensor, Tensor]:
        A, B = next(found.factors(path))
        return decompose(A, B, found.layers[path].scale).cut(pieces[path])

    def like(path: str) -> Tensor:
        return found.tensors[found.layers[path].keys["A"]]

    entries = _layer_entries(found.layers, pieces, like, cut, progress) | _rest(found)
    before = found.tensors.bytes  # out may be the same folder
    write_adapter(Path(out), _settings(found, pieces), entries)
    return Changes(str(out), tuple(changes), before, Tensors([Path(out) / TENSOR_FILE]).bytes)


def _kept(values: Tensor, rank: int) -> float:
    squares = values.square()
    whole = float(squares.sum())
    return float(squares[:rank].sum()) / whole if whole else 1.0


def _check_finite(found: StoredAdapter) -> None:
    for path in found.layers:
        for pair in found.factors(path):
            if not all(torch.isfinite(factor).all() for factor in pair):
                raise AdapterError(f"{path!r} of {found.folder} holds NaN or infinity")


def _layer_entries(
    layers: Mapping[str, StoredLayer],
    ranks: Mapping[str, int],
    like: Callable[[str], Tensor],
    make: Callable[[str], tuple[Tensor, Tensor]],
    progress: bool,
) -> dict[str, Entry]:
    """Entries for A and B of each layer, which ``make`` gives together when A is written.

    ``like`` gives an A of the layer in the file, whose type and kernel the new ones have.
    """
    shown = bar(len(ranks), progress, "layer")

    @functools.lru_cache(maxsize=1)  # B is asked for right after A
    def pair(path: str) -> tuple[Tensor, Tensor]:
        shown.update()
        old = like(path)
        A, B = shaped(layers[path], *make(path), old)
        return A.to(old.dtype).contiguous(), B.to(old.dtype).contiguous()

    entries: dict[str, Entry] = {}
    for path, rank in ranks.items():
        old = like(path)
        ends = [1] * (old.ndim - 2)
        shapes = ((rank, *old.shape[1:]), (layers[path].shape[0], rank, *ends))
        for which, key in enumerate(factor_keys(layers[path])):
            make_it = functools.partial(lambda path, which: [pair(path)[which]], path, which)
            entries[key] = Entry(old.dtype, shapes[which], make_it)
    return entries


def _rest(found: StoredAdapter) -> dict[str, Entry]:
    """What is no factor is carried over: heads, biases, DoRA's lengths."""
    kept = {plain_key(name, "").rstrip("."): key for key, name in found.others.items()}
    for layer in found.layers.values():
        if "magnitude" in layer.keys:
            kept[plain_key(layer.path, "lora_magnitude_vector")] = layer.keys["magnitude"]
    return {name: copied(found.tensors, key) for name, key in kept.items()}


def _settings(found: StoredAdapter, ranks: Mapping[str, int]) -> dict[str, Any]:
    """The old settings with the new ranks, and α = r everywhere."""
    counts = list(ranks.values())
    r = max(set(counts), key=lambda n: (counts.count(n), n))
    pattern = {f"^{re.escape(path)}": n for path, n in ranks.items() if n != r}
    return {
        **found.settings,
        "r": r,
        "lora_alpha": r,
        "use_rslora": False,
        "init_lora_weights": True,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
    }


# --- a sum ----------------------------------------------------------------------------------


def add(
    parts: Mapping[str, float],
    out: Path_,
    rank: int | None = None,
    method: str = "exact",
    *,
    density: float = 0.2,
    seed: int = 0,
    progress: bool = False,
) -> Changes:
    """Write the weighted sum of adapters of one base.

    Args:
        parts: {folder: weight}.
        out: The folder to write.
        rank: Cut the sum of each layer to this rank. None: exact, the ranks add up.
        method: ``"exact"``, Σ weight · ΔW. ``"ties"``: of each weighted update the ``density``
            largest entries stay; where signs differ, those stay whose sign weighs more; what is
            left is averaged, entry by entry, over the adapters that are left there, and
            multiplied by the sum of the weights' sizes: weights that sum to 1 are the paper's
            λ = 1. ``"dare"``: each entry stays with probability ``density`` and is divided by it,
            and then they are added. Both work on whole matrices and need a rank.
        density: Share of the entries that stay. ``seed``: of DARE's choice.
        progress: Show a bar.

    Raises:
        ValueError: An unknown method, no rank for TIES or DARE, a density out of (0, 1], a weight
            that is not finite.
        AdapterError: An adapter is broken, the shapes differ, or there are parts that cannot be
            added (DoRA, heads of their own, biases).

    Sources: Yadav et al. 2023 (TIES), arXiv 2306.01708; Yu et al. 2023 (DARE), arXiv 2311.03099.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, but is {method!r}")
    if method != "exact" and rank is None:
        raise ValueError(f"method {method!r} makes updates of full rank: say to which rank to cut")
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, but is {rank}")
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, but is {density}")
    if not parts:
        raise ValueError("give at least one adapter")
    for folder, weight in parts.items():
        if not math.isfinite(weight):
            raise ValueError(f"the weight of {folder} must be finite, but is {weight}")
    check_home(Path(out))
    found = [(open_adapter(Path(folder)), float(weight)) for folder, weight in parts.items()]
    for adapter, _ in found:
        _check_addable(adapter)
        _check_finite(adapter)
    paths: dict[str, StoredLayer] = {}
    for adapter, _ in found:
        for path, layer in adapter.layers.items():
            known = paths.setdefault(path, layer)
            if (known.shape, known.kind) != (layer.shape, layer.kind):
                raise AdapterError(
                    f"{path!r} has the shape {known.shape} in {found[0][0].folder} and "
                    f"{layer.shape} in {adapter.folder}: these are adapters of different models"
                )
    generator = torch.Generator().manual_seed(seed)
    ranks = {path: _rank_of_sum(path, found, rank, method) for path in paths}
    changes: list[Change] = []

    def summed(path: str) -> tuple[Tensor, Tensor]:
        A, B, change = _summed(path, found, ranks[path], method, density, generator)
        changes.append(change)
        return A, B

    def like(path: str) -> Tensor:
        """An A of the layer, in the widest type that one of the files has."""
        own = [a.tensors[a.layers[path].keys["A"]] for a, _ in found if path in a.layers]
        return own[0].to(functools.reduce(torch.promote_types, (A.dtype for A in own)))

    entries = _base_copies(found) | _layer_entries(paths, ranks, like, summed, progress)
    first = found[0][0]
    settings = {**_settings(first, ranks), "target_modules": sorted(ranks), "exclude_modules": None}
    settings["modules_to_save"] = None
    for name in ("layers_to_transform", "layers_pattern"):
        settings.pop(name, None)
    before = sum(adapter.tensors.bytes for adapter, _ in found)  # out may be one of them
    write_adapter(Path(out), settings, entries)
    return Changes(str(out), tuple(changes), before, Tensors([Path(out) / TENSOR_FILE]).bytes)


def _rank_of_sum(
    path: str, found: list[tuple[StoredAdapter, float]], rank: int | None, method: str
) -> int:
    own = [adapter.layers[path] for adapter, _ in found if path in adapter.layers]
    stacked = sum(layer.r for layer in own)
    if method == "exact" and (rank is None or rank >= stacked):
        return stacked
    return min(rank or stacked, *own[0].shape)


def _base_copies(found: list[tuple[StoredAdapter, float]]) -> dict[str, Entry]:
    """The weights of the base that PEFT writes beside the factors of embeddings, if all agree."""
    seen: dict[str, Tensor] = {}
    entries: dict[str, Entry] = {}
    for adapter, _ in found:
        for key, name in adapter.others.items():
            tensor = adapter.tensors[key]
            if not torch.equal(seen.setdefault(name, tensor), tensor):
                raise AdapterError(
                    f"{name!r} is another in {adapter.folder} than in those before it: these are "
                    "adapters of different models"
                )
            entries[plain_key(name, "").rstrip(".")] = copied(adapter.tensors, key)
    return entries


def _check_addable(adapter: StoredAdapter) -> None:
    adapter.require_sound("add")
    if adapter.settings.get("use_dora"):
        raise AdapterError(
            f"{adapter.folder} is a DoRA, whose effect is no sum of updates; merge it instead"
        )
    copies = {f"{path}.base_layer.weight" for path in adapter.layers}
    if rest := [name for name in adapter.others.values() if name not in copies]:
        name = rest[0]
        raise AdapterError(
            f"{adapter.folder} also holds {name!r}, trained whole: two of these cannot be added "
            "without saying which is meant; add the adapters that have factors alone"
        )


def _summed(
    path: str,
    found: list[tuple[StoredAdapter, float]],
    rank: int,
    method: str,
    density: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Change]:
    """Factors of the sum at one path, of rank ``rank``, and what became of it."""
    lefts, rights, weights = [], [], []
    for adapter, weight in found:
        layer = adapter.layers.get(path)
        if layer is None:
            continue
        A, B = next(adapter.factors(path))
        # The factor's root on either side keeps both of one size.
        whole = weight * layer.scale
        root = abs(whole) ** 0.5
        lefts.append(B * (root if whole >= 0 else -root))
        rights.append(A * root)
        weights.append(weight)
    before = sum(len(A) for A in rights)
    if method == "exact":
        A, B = torch.cat(rights), torch.cat(lefts, dim=1)
        if rank == before:
            return A, B, Change(path, before, rank, 1.0, empty=not bool((B @ A).any()))
        split = decompose(A, B)
        kept, empty = _kept(split.values, rank), not bool(split.values.any())
        return *split.cut(rank), Change(path, before, rank, kept, empty=empty)
    updates = torch.stack([B @ A for A, B in zip(rights, lefts, strict=True)])
    if method == "ties":
        total, dropped = ties(updates, torch.tensor(weights), density)
    else:
        stays = torch.rand(updates.shape, generator=generator) < density
        total = (updates * stays / density).sum(0)
        dropped = float((~stays).float().mean())
    U, values, Vt = leading(total, rank)
    root = values.sqrt()
    squares = float(total.double().square().sum())
    kept = float(values.double().square().sum()) / squares if squares else 1.0
    change = Change(path, before, rank, min(kept, 1.0), dropped, empty=not squares)
    return root[:, None] * Vt, U * root, change


def ties(updates: Tensor, weights: Tensor, density: float) -> tuple[Tensor, float]:
    """TIES: trim, elect a sign, and take the mean of those that agree with it.

    Args:
        updates: (n, out, in), each already multiplied by its weight. ``weights``: (n,).
        density: Share of the entries of each update that stay, the largest ones.

    Returns:
        The sum (out, in), and the share of all entries that were dropped, by size or by sign.

    Each entry is the mean over the updates that agree, times the sum of the weights' sizes, so
    that n equal adapters of weights that sum to 1 give that adapter, trimmed.
    """
    count = max(1, round(density * updates[0].numel()))
    trimmed = torch.zeros_like(updates)
    for update, target in zip(updates, trimmed, strict=True):
        places = update.abs().flatten().topk(count).indices
        target.view(-1)[places] = update.flatten()[places]
    sign = trimmed.sum(0).sign()
    agree = (trimmed.sign() == sign) & (trimmed != 0)
    size = weights.abs().to(updates)
    voters = (agree * size[:, None, None]).sum(0)
    total = (trimmed * agree).sum(0) * size.sum() / voters.clamp(min=1e-30)
    return total, float((~agree).float().mean())


def leading(X: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular triplets of X (m, n): U (m, rank), values (rank,), Vt (rank, n).

    Exact where the shorter side is at most 1,024; otherwise by random projection with eight power
    iterations, whose error is small beside what a cut to that rank loses.
    """
    if min(X.shape) <= 1024:
        U, values, Vt = torch.linalg.svd(X.float(), full_matrices=False)
        return U[:, :rank], values[:rank], Vt[:rank]
    width = min(2 * rank + 10, *X.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        U, values, V = torch.svd_lowrank(X.float(), q=width, niter=8)
    return U[:, :rank], values[:rank], V[:, :rank].T
