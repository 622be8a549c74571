"""Adapters and whole checkpoints: an update merged into a model on disk, or drawn out of two.

    merge("base", "adapter", "merged", dtype=torch.bfloat16)
    extract("base", "tuned", "adapter", rank=16)

Neither builds the model. Weights are read and written one at a time, so that a model larger than
memory passes through, and what is written appears under its name when it is whole.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilora.bases import (
    SHARD,
    Base,
    Tally,
    copy_rest,
    merged_blocks,
    named_base,
    nearest_base,
    open_base,
    updated_blocks,
    write_shards,
)
from minilora.folder import FLOATS, TENSOR_FILE, AdapterError
from minilora.shards import (
    Entry,
    Tensors,
    bar,
    copied,
    model_tensors,
    new_folder,
    row_blocks,
    write_adapter,
)
from minilora.stored import (
    EMBEDDINGS,
    StoredAdapter,
    StoredLayer,
    open_adapter,
    plain_key,
    plain_settings,
)
from minilora.surgery import Change, Changes, leading

Path_ = str | os.PathLike[str]


@dataclass(frozen=True)
class Arrival:
    """How much of a layer's update a merge wrote.

    Attributes:
        relative: ‖ΔW‖ / ‖W₀‖. ``lost``: ‖what arrived − ΔW‖ / ‖ΔW‖, 0 where all of it did.
    """

    path: str
    relative: float
    lost: float


@dataclass(frozen=True)
class Merged:
    """What ``merge`` wrote. ``str()`` says it."""

    out: str
    dtype: str
    layers: tuple[Arrival, ...]
    bytes: int

    def __str__(self) -> str:
        worst = max(self.layers, key=lambda layer: layer.lost)
        mean = sum(layer.lost for layer in self.layers) / len(self.layers)
        text = (
            f"{self.out}: {len(self.layers)} layers merged in {self.dtype}, {self.bytes:,} bytes. "
            f"Rounding took {mean:.1%} of the update in the mean, {worst.lost:.1%} in the worst "
            f"layer ({worst.path})."
        )
        if worst.lost > 0.5:
            text += " That is more than half: use the adapter unmerged, or --dtype float32."
        if empty := sum(layer.relative == 0 for layer in self.layers):
            text += f" In {empty} layers the update is zero: nothing was added."
        return text


# --- merging --------------------------------------------------------------------------------


def merge(
    base: Path_,
    adapter: Path_,
    out: Path_,
    dtype: torch.dtype | None = None,
    *,
    shard: int = SHARD,
    progress: bool = False,
) -> Merged:
    """Write the base with the adapter's update in its weights, as a model's folder.

    Args:
        base: The model's folder; its config and tokenizer files are copied.
        adapter: PEFT's folder. ``out``: a folder that does not exist yet.
        dtype: Of all floating-point weights that are written; None: as in the base.
        shard: Bytes of weights in one file, about. ``progress``: show a bar.

    Returns:
        How much of each layer's update arrived.

    Raises:
        AdapterError: The adapter is broken, the base is another model or quantized, a weight is
            tied to another, or ``out`` is there already. Nothing is left behind.
    """
    found = open_adapter(Path(adapter))
    found.require_sound("merge")
    opened = open_base(Path(base), found.layers)
    _check_tied(found, opened)
    plan = _merged_entries(found, opened, dtype)
    arrivals = plan.arrivals
    with new_folder(Path(out)) as folder:
        copy_rest(opened, folder, dtype)
        size = write_shards(folder, plan.entries, shard, progress)
    kind = str(dtype or plan.usual).removeprefix("torch.")
    return Merged(str(out), kind, tuple(arrivals), size)


@dataclass
class _MergePlan:
    entries: dict[str, Entry]
    arrivals: list[Arrival]
    usual: torch.dtype


def _merged_entries(found: StoredAdapter, base: Base, dtype: torch.dtype | None) -> _MergePlan:
    arrivals: list[Arrival] = []
    adapted = {base.weight_of(path): layer for path, layer in found.layers.items()}
    replaced = _replacements(found, base)
    entries: dict[str, Entry] = {}
    usual = torch.float32
    for name, stored in base.tensors.stored.items():
        old = base.tensors[name]
        new_type = dtype if dtype is not None and old.dtype in FLOATS else old.dtype
        if name in adapted:
            layer = adapted[name]
            if old.dtype not in FLOATS:
                raise AdapterError(
                    f"{name!r} of the base holds {old.dtype}: it is quantized, and nothing can be "
                    "merged into it; give the folder of the weights before that"
                )
            usual = new_type
            turned = base.turned(layer, found)
            make: Callable[[], Iterable[Tensor]] = functools.partial(
                _merged, found, base, layer, name, turned, new_type, arrivals
            )
            entries[name] = Entry(new_type, stored.shape, make)
        elif name in replaced:
            key = replaced[name]
            if found.tensors.stored[key].shape != stored.shape:
                raise AdapterError(
                    f"{found.others[key]!r} has the shape {found.tensors.stored[key].shape} in the "
                    f"adapter and {stored.shape} in the base: was the vocabulary resized? Resize "
                    "the base's first"
                )
            entries[name] = Entry(
                new_type,
                stored.shape,
                functools.partial(_cast, found.tensors, key, new_type),
            )
        elif new_type == old.dtype:
            entries[name] = copied(base.tensors, name)
        else:
            make_it = functools.partial(_cast, base.tensors, name, new_type)
            entries[name] = Entry(new_type, stored.shape, make_it)
    return _MergePlan(entries, arrivals, usual)


def _cast(tensors: Any, name: str, dtype: torch.dtype) -> Iterator[Tensor]:
    tensor = tensors[name]
    rows = tensor.flatten(1) if tensor.ndim > 1 else tensor.reshape(1, -1)
    for block in row_blocks(*rows.shape):
        new = rows[block].to(dtype)
        if not torch.isfinite(new).all() and torch.isfinite(rows[block]).all():
            raise AdapterError(f"{name!r} holds numbers too large for {dtype}; choose another type")
        yield new


def _merged(
    found: StoredAdapter,
    base: Base,
    layer: StoredLayer,
    name: str,
    turned: bool,
    dtype: torch.dtype,
    arrivals: list[Arrival],
) -> Iterator[Tensor]:
    """The merged weight in blocks of rows; at the end it notes how much arrived."""
    weight = base.tensors[name]
    A, B = next(found.factors(layer.path))
    if not (torch.isfinite(A).all() and torch.isfinite(B).all()):
        raise AdapterError(f"{layer.path!r} of the adapter holds NaN or infinity")
    tally = Tally()
    if "magnitude" in layer.keys:
        old = weight.reshape(len(weight), -1).float()
        whole = _with_lengths(found, layer, weight, A, B, turned)
        new = whole.to(dtype)
        tally.note(old, whole - old, new)
        blocks: Iterable[Tensor] = [new]
    else:
        blocks = merged_blocks(weight, A, B, layer.scale, turned, dtype, tally)
    for block in blocks:
        if not torch.isfinite(block).all():
            raise AdapterError(f"merging {layer.path!r} would give NaN or infinity in {dtype}")
        yield block
    arrivals.append(Arrival(layer.path, tally.relative, tally.share_lost))


def _with_lengths(
    found: StoredAdapter, layer: StoredLayer, weight: Tensor, A: Tensor, B: Tensor, turned: bool
) -> Tensor:
    """DoRA: each output's row of W₀ + s · B A, with its trained length (arXiv 2402.09353)."""
    lengths = found.tensors[layer.keys["magnitude"]].float().flatten()
    blocks = [old + update for _, old, update in updated_blocks(weight, A, B, layer.scale, turned)]
    changed = torch.cat(blocks)
    outputs = changed.T if turned else changed
    if len(lengths) != len(outputs):
        raise AdapterError(f"{layer.path!r} has {len(lengths)} lengths for {len(outputs)} outputs")
    scaled = outputs * (lengths / outputs.norm(dim=1))[:, None]
    return (scaled.T if turned else scaled).contiguous()


def _check_tied(found: StoredAdapter, base: Base) -> None:
    if not base.tied:
        return
    heads = ("lm_head", "embed_tokens", "wte", "shared", "word_embeddings")
    whole = found.config.modules_to_save if found.config else ()
    for path in [*found.layers, *whole]:
        if path.rpartition(".")[2] in heads:
            raise AdapterError(
                f"{path!r} is adapted, and this model ties the weights of its embeddings and its "
                "output layer: merging into one would change the other. Use it unmerged"
            )


def _replacements(found: StoredAdapter, base: Base) -> dict[str, str]:
    """{name in the base: key in the adapter} of what was trained whole."""
    replaced: dict[str, str] = {}
    for key, name in found.others.items():
        if ".original_module." in name:  # PEFT writes the biases of what it keeps aside, too
            continue
        plain = base.name_of(name.replace(".base_layer.", "."))
        if plain not in base.tensors:
            raise AdapterError(
                f"the adapter holds {name!r}, trained whole, and the base has no such weight: a "
                "new head? Build the model with it, load the adapter there, and save that"
            )
        replaced[plain] = key
    return replaced


# --- extracting -----------------------------------------------------------------------------


def extract(
    base: Path_,
    tuned: Path_,
    out: Path_,
    rank: int,
    *,
    targets: str | None = None,
    progress: bool = False,
) -> tuple[Changes, list[str]]:
    """Write the LoRA that is nearest to a full fine-tuning, matrix by matrix.

    Args:
        base, tuned: Two folders of one model's weights, before and after.
        out: The adapter's folder to write. ``rank``: of every layer, at most.
        targets: A regular expression for the modules' paths; None: every matrix that changed,
            without embeddings.
        progress: Show a bar.

    Returns:
        What became of each layer (``kept`` is the share of the change that its rank holds), and
        sentences on what changed and is not in the adapter.

    Raises:
        AdapterError: The two do not match, or no matrix changed.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, but is {rank}")
    after = model_tensors(Path(tuned))
    names = [name for name, stored in after.stored.items() if len(stored.shape) == 2]
    modules = [n.removesuffix(".weight") for n in names if n.endswith(".weight")]
    before = nearest_base(Path(base), modules)
    shared = [m for m in modules if before.weight_of(m) in before.tensors]
    if modules and not shared:
        open_base(Path(base), modules)  # which says what is missing
    layers: list[Change] = []
    entries: dict[str, Entry] = {}
    left: dict[str, float] = {}
    shown = bar(len(shared), progress, "matrix")
    for module in shared:
        shown.update()
        old, new = before.tensors[before.weight_of(module)], after[f"{module}.weight"]
        if old.shape != new.shape:
            left[f"{module}.weight (of another shape)"] = float("inf")
            continue
        change = new.float() - old.float()
        size = float(change.norm())
        if not size:
            continue
        if not math.isfinite(size):
            raise AdapterError(f"{module!r} holds NaN or infinity in one of the two models")
        chosen = re.fullmatch(targets, module) if targets else not EMBEDDINGS.search(module)
        if not chosen:
            left[f"{module}.weight"] = size
            continue
        embedding = bool(EMBEDDINGS.search(module)) and f"{module}.bias" not in after
        flat = change.T if embedding or before.is_conv1d(module) else change
        U, values, Vt = leading(flat, min(rank, *flat.shape))
        root = values.sqrt()
        dtype = new.dtype if new.dtype in FLOATS else torch.float32
        A, B = (root[:, None] * Vt).to(dtype), (U * root).to(dtype)
        for end, factor in (("A", A), ("B", B)):
            name = f"lora_embedding_{end}" if embedding else f"lora_{end}.weight"
            entries[plain_key(module, name)] = Entry.of(factor.contiguous())
        kept = min(1.0, float(values.double().square().sum()) / size**2)
        layers.append(Change(module, min(flat.shape), len(values), kept))
    if not layers:
        raise AdapterError("no matrix differs between the two models: there is nothing to extract")
    left |= _other_changes(before, after, set(shared))
    ranks = {change.path: change.after for change in layers}
    settings = plain_settings(
        max(ranks.values()), max(ranks.values()), ranks, dict.fromkeys(ranks, 1.0)
    )
    settings |= named_base(Path(base))
    settings["fan_in_fan_out"] = any(map(before.is_conv1d, ranks))
    write_adapter(Path(out), settings, entries)
    written = Tensors([Path(out) / TENSOR_FILE]).bytes
    said = []
    if left:
        worst = sorted(left, key=lambda name: -left[name])[:3]
        said.append(
            f"{len(left)} other tensors changed and are not in the adapter: {', '.join(worst)}"
            + " …" * (len(left) > 3)
        )
    return Changes(str(out), tuple(layers), after.bytes, written), said


def _other_changes(before: Base, after: Any, done: set[str]) -> dict[str, float]:
    """‖change‖ of the tensors that are no matrices of layers."""
    found: dict[str, float] = {}
    for name in after:
        if name.removesuffix(".weight") in done and name.endswith(".weight"):
            continue
        other = before.name_of(name)
        if other not in before.tensors:
            found[f"{name} (not in the base)"] = float("inf")
        elif before.tensors.stored[other].shape != after.stored[name].shape:
            found[f"{name} (of another shape)"] = float("inf")
        else:
            size = float((after[name].float() - before.tensors[other].float()).norm())
            if size:
                found[name] = size
    return found
