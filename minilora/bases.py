"""A base model's folder: which of its weights an adapter's layers mean, and writing another.

The weights are read one at a time, and the model itself is not needed: an adapter names modules,
a checkpoint names their weights, and the two differ at most by what they begin with
(``model.layers.0.…`` and ``layers.0.…``).
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilora.folder import AdapterError
from minilora.shards import (
    INDEX_FILE,
    Entry,
    Tensors,
    bar,
    model_tensors,
    row_blocks,
    write_tensors,
)
from minilora.stored import StoredAdapter, StoredLayer

# Models whose layers are transformers' Conv1D, whose weight is (in, out).
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
CONV1D_LAYERS = ("c_attn", "q_attn", "c_proj", "c_fc")  # and not their heads
# Models without an output layer over the vocabulary, whose embeddings have their weights alone.
HEADLESS = re.compile(
    r"(?<!LMHead)(?<!DoubleHeads)Model$"
    r"|For(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice)$"
)


@dataclass(frozen=True)
class Base:
    """The weights of a model on disk.

    Attributes:
        folder: Where it lies. ``settings``: its config.json, or {}.
        tensors: The weights by name, read when looked at.
        head: What a module's path begins with here and not in the adapter, and ``cut`` the
            reverse.
    """

    folder: Path
    settings: dict[str, Any]
    tensors: Tensors
    head: str = ""
    cut: str = ""

    def name_of(self, path: str) -> str:
        """The name that a path of the adapter, or a tensor of a module, has in the checkpoint."""
        return self.head + path.removeprefix(self.cut)

    def weight_of(self, path: str) -> str:
        """The name of a module's weight."""
        return f"{self.name_of(path)}.weight"

    def is_conv1d(self, path: str) -> bool:
        """Whether the module is a Conv1D of transformers, whose weight is (in, out)."""
        own_way = self.settings.get("model_type") in CONV1D_MODELS
        return own_way and path.rpartition(".")[2] in CONV1D_LAYERS

    @property
    def tied(self) -> bool:
        """Whether the output layer has the weights of the embeddings.

        In transformers it has, unless the config says otherwise: older versions did not write
        down what is usual.
        """
        usual = "model_type" in self.settings
        kinds = self.settings.get("architectures") or [""]
        headless = all(HEADLESS.search(str(kind)) for kind in kinds)
        if headless and not self.settings.get("is_encoder_decoder"):
            return False
        return bool(self.settings.get("tie_word_embeddings", usual))

    def turned(self, layer: StoredLayer, adapter: StoredAdapter) -> bool:
        """Whether the weight is stored as (in, out), the update's transpose.

        Raises:
            AdapterError: The shapes do not fit either way.
        """
        name = self.weight_of(layer.path)
        shape = self.tensors.stored[name].shape
        out, into = layer.shape
        if layer.kind == "embedding":
            if shape != (into, out):
                raise AdapterError(_shapes(layer, name, shape))
            return True
        if layer.kind == "conv":
            if shape[0] != out or self.tensors.stored[name].size != out * into:
                raise AdapterError(_shapes(layer, name, shape))
            return False
        if shape not in ((out, into), (into, out)):
            raise AdapterError(_shapes(layer, name, shape))
        if out != into:
            return shape == (into, out)
        if self.settings.get("model_type") in CONV1D_MODELS:
            return self.is_conv1d(layer.path)
        return bool(adapter.settings.get("fan_in_fan_out"))


def _shapes(layer: StoredLayer, name: str, shape: tuple[int, ...]) -> str:
    return (
        f"the update of {layer.path!r} has the shape {layer.shape}, but {name!r} of the base "
        f"{shape}: it is another model, or the weight is quantized"
    )


def model_settings(folder: Path) -> dict[str, Any]:
    """The config.json of a model's folder, or of the folder that a weights' file lies in; or {}.

    Raises:
        AdapterError: It is not valid JSON.
    """
    config = (folder if folder.is_dir() else folder.parent) / "config.json"
    if not config.is_file():
        return {}
    try:
        value = json.loads(config.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise AdapterError(f"{config} is not valid JSON: {error}") from None
    return value if isinstance(value, dict) else {}


# What PEFT calls the use of a model, by the end of its class's name. Of classifiers it would expect
# the head in the file as well.
TASKS = {"ForCausalLM": "CAUSAL_LM", "ForConditionalGeneration": "SEQ_2_SEQ_LM"}


def named_base(folder: Path) -> dict[str, Any]:
    """PEFT's settings that name a base: its folder, and what its class is used for."""
    kinds = model_settings(folder).get("architectures") or [""]
    task = next((task for end, task in TASKS.items() if str(kinds[0]).endswith(end)), None)
    return {"base_model_name_or_path": str(folder.resolve()), "task_type": task}


def nearest_base(folder: Path, paths: Iterable[str]) -> Base:
    """A model's folder under the names that fit most of the modules at ``paths``.

    Raises:
        AdapterError: No weights.
    """
    tensors = model_tensors(folder)
    settings = model_settings(folder)
    paths = list(paths)
    best, most = Base(folder, settings, tensors), -1
    for head, cut in _shifts(paths, tensors):
        found = Base(folder, settings, tensors, head, cut)
        hits = sum(found.weight_of(path) in tensors for path in paths)
        if hits > most:
            best, most = found, hits
    return best


def open_base(folder: Path, paths: Iterable[str]) -> Base:
    """Open a model's folder and find out how it names the modules at ``paths``.

    Raises:
        AdapterError: No weights, or the base does not have the modules.
    """
    paths = list(paths)
    best = nearest_base(folder, paths)
    tensors = best.tensors
    missing = [path for path in paths if best.weight_of(path) not in tensors]
    if missing:
        tied = best.tied and missing[0].endswith("lm_head")
        raise AdapterError(
            f"{folder} has no weight for {missing[0]!r}"
            + f" and {len(missing) - 1} more of the adapter's {len(paths)} layers"
            * (len(missing) > 1)
            + (
                "; it is tied to the embeddings, and the checkpoint holds it once"
                if tied
                else f"; its weights have names such as {next(iter(tensors))!r}: is it the base "
                "that the adapter was trained on?"
            )
        )
    return best


def _shifts(paths: list[str], tensors: Tensors) -> Iterator[tuple[str, str]]:
    """Pairs of what to put in front of the adapter's paths and what to cut off."""
    yield "", ""
    # The first may be a head, which one of two models has and the other has not.
    for some in dict.fromkeys([*paths[:1], *paths[len(paths) // 2 :][:1], *paths[-1:]]):
        wanted = f"{some}.weight"
        for name in tensors:
            if name.endswith(f".{wanted}"):
                yield name.removesuffix(wanted), ""
        parts = some.split(".")
        for number in range(1, min(4, len(parts))):
            cut = ".".join(parts[:number]) + "."
            yield "", cut
            rest = f"{some.removeprefix(cut)}.weight"
            for name in tensors:
                if name.endswith(f".{rest}"):
                    yield name.removesuffix(rest), cut


def updated_blocks(
    weight: Tensor, A: Tensor, B: Tensor, scale: float, turned: bool
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(rows, the weight's rows in float32, the update's rows in float32), block by block.

    Args:
        weight: (out, …), or (in, out) where ``turned``.
        A, B: (r, in) and (out, r), in float32.
    """
    flat = weight.reshape(len(weight), -1)
    left, right = (A.T, B.T) if turned else (B, A)
    left = left * scale
    for rows in row_blocks(*flat.shape):
        yield rows, flat[rows].float(), left[rows] @ right


@dataclass
class Tally:
    """Sums of squares over the blocks of a merged weight: what was there, and what arrived."""

    weight: float = 0.0
    update: float = 0.0
    lost: float = 0.0

    def note(self, old: Tensor, update: Tensor, new: Tensor) -> None:
        """Add rows of W₀ and ΔW, in float32, and of what is stored in their place."""
        rounded = old.to(new.dtype).float()
        self.weight += float(old.double().square().sum())
        self.update += float(update.double().square().sum())
        # What rounding does to W₀ by itself is no loss of the update.
        self.lost += float((new.float() - old - update).double().square().sum())
        self.lost -= float((rounded - old).double().square().sum())

    @property
    def relative(self) -> float:
        """‖ΔW‖ / ‖W₀‖."""
        return (self.update / self.weight) ** 0.5 if self.weight else float("nan")

    @property
    def share_lost(self) -> float:
        """Rounding's share of the update: 0 where all arrives (or ΔW = 0), 1 where nothing does.

        √(‖round(W₀ + ΔW) − W₀ − ΔW‖² − ‖round(W₀) − W₀‖²) / ‖ΔW‖.
        """
        return (max(0.0, self.lost) / self.update) ** 0.5 if self.update else 0.0


def merged_blocks(
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    scale: float,
    turned: bool,
    dtype: torch.dtype,
    tally: Tally,
) -> Iterator[Tensor]:
    """W₀ + ΔW rounded to ``dtype``, in blocks of rows of the weight; ``tally`` counts along."""
    for _, old, update in updated_blocks(weight, A, B, scale, turned):
        new = (old + update).to(dtype)
        tally.note(old, update, new)
        yield new


# --- writing one ---------------------------------------------------------------------------

SHARD = 5 * 10**9  # bytes of weights in a file, as in the shards that models come in
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


def copy_rest(base: Base, folder: Path, dtype: torch.dtype | None) -> None:
    """Config and tokenizer files, so that the folder is a model again."""
    if not base.folder.is_dir():
        return
    for file in sorted(base.folder.iterdir()):
        if file.is_file() and not file.name.startswith(".") and file.name != INDEX_FILE:
            if file.suffix not in WEIGHTS and not file.name.endswith(".index.json"):
                shutil.copyfile(file, folder / file.name)
    if dtype is not None and base.settings:
        named = {"dtype", "torch_dtype"} & base.settings.keys() or {"torch_dtype"}
        new = {**base.settings, **{name: str(dtype).removeprefix("torch.") for name in named}}
        (folder / "config.json").write_text(json.dumps(new, indent=2) + "\n", encoding="utf-8")


def write_shards(folder: Path, entries: dict[str, Entry], shard: int, progress: bool) -> int:
    """Write weights into files of about ``shard`` bytes, with an index; returns their bytes."""
    shards: list[dict[str, Entry]] = [{}]
    filled = 0
    for name, entry in entries.items():
        if filled and filled + entry.bytes > shard:
            shards.append({})
            filled = 0
        shards[-1][name] = entry
        filled += entry.bytes
    total = sum(entry.bytes for entry in entries.values())
    where: dict[str, str] = {}
    shown = bar(total, progress, "B")
    for number, part in enumerate(shards, start=1):
        name = (
            "model.safetensors"
            if len(shards) == 1
            else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        )
        where |= dict.fromkeys(part, name)
        with (folder / name).open("xb") as file:
            write_tensors(file, _counted(part, shown), {"format": "pt"})
            file.flush()
            os.fsync(file.fileno())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return sum((folder / name).stat().st_size for name in set(where.values()))


def _counted(entries: dict[str, Entry], shown: Any) -> dict[str, Entry]:
    def watched(entry: Entry) -> Iterator[Tensor]:
        for block in entry.make():
            yield block
            shown.update(block.numel() * block.dtype.itemsize)

    return {
        name: Entry(entry.dtype, entry.shape, functools.partial(watched, entry))
        for name, entry in entries.items()
    }
