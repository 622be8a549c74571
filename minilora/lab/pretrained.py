"""The base models of the book: small transformers pretrained on printed digits.

There is nothing to download. Each base is trained on this machine, in half a minute or so, from
unlimited printed digits, and kept on disk, so that the next call only reads it. The file's name
holds a hash of everything that settles the weights: change the code, torch's version, the seed or a
size, and a new base is made. ``MINILORA_CACHE`` names another folder than ``~/.cache/minilora``.

A base that was to learn in earnest is asked about new printed pictures once it is made. One that
has not learnt its task is refused, since adapters on it would say nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

from minilora.folder import replace_file
from minilora.lab import data, training
from minilora.lab.provenance import source_hash, sources
from minilora.lab.transformer import TransformerClassifier, TransformerConfig

#: The picture sizes and sizes of the two bases.
READER = TransformerConfig(image_size=(8, 8), patch_size=2, classes=10)
ADDER = TransformerConfig(image_size=(8, 16), patch_size=4, classes=19)

IN_EARNEST = 1000  # steps; a base that gets fewer is a toy, as in the tests
LEAST = 0.6  # of new printed pictures, which a base in earnest must name rightly


def pretrained_digits(
    seed: int = 0,
    *,
    config: TransformerConfig = READER,
    pictures: int = 30_000,
    steps: int = 1600,
    lr: float = 3e-3,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> TransformerClassifier:
    """A transformer that reads one printed digit: (N, 1, 8, 8) → (N, 10). On the CPU.

    It has seen so many printed ``pictures``, or all that it has time for, and no handwriting.
    ``steps`` of 64 pictures each.

    Raises:
        RuntimeError: It has not learnt to read.
    """
    count = min(pictures, 64 * steps)

    def make() -> TransformerClassifier:
        training.set_seed(seed)
        model = TransformerClassifier(config).to(device or "cpu")
        printed = data.printed_digits(count, seed)
        _pretrain(model, printed, steps, 64, "cosine", seed, progress, lr)
        _check_learnt(model, lambda: _new_digits(seed), steps)
        return model

    settings = {"seed": seed, "steps": steps, "pictures": count, "lr": lr}
    return _cached("digits", config, settings, make)


def pretrained_adder(
    seed: int = 0,
    *,
    config: TransformerConfig = ADDER,
    steps: int = 1600,
    lr: float = 3e-3,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> TransformerClassifier:
    """A transformer that adds two printed digits: (N, 1, 8, 16) → (N, 19). On the CPU.

    It learns in two lessons: to read the number that the two digits spell (100 classes, three
    eighths of the ``steps``), then, with a new head, to name their sum. Straight to the sum takes
    several times as long. It has seen no handwriting. ``steps`` of 128 pictures each.

    Raises:
        RuntimeError: It has not learnt to add.
    """

    def make() -> TransformerClassifier:
        training.set_seed(seed)
        model = TransformerClassifier(config)
        sum_head, model.head = model.head, nn.Linear(config.width, 100)
        model.to(device or "cpu")
        printed = data.printed_digits(min(30_000, 128 * steps), seed)
        count = min(100_000, 128 * steps)
        reading = data.pairs(printed, count, seed, label="number")
        adding = data.pairs(printed, count, seed, label="sum")
        first = steps * 3 // 8
        _pretrain(model, reading, first, 128, "constant", seed, progress, lr)
        model.head = sum_head.to(device or "cpu")
        _pretrain(model, adding, steps - first, 128, "cosine", seed + 1, progress, lr)
        _check_learnt(model, lambda: data.pairs(_new_digits(seed), 500, seed, label="sum"), steps)
        return model

    return _cached("adder", config, {"seed": seed, "steps": steps, "lr": lr}, make)


def _new_digits(seed: int) -> data.Split:
    """Printed digits that a base of this seed has not seen."""
    return data.printed_digits(1000, 90_000 + seed)


def _check_learnt(model: TransformerClassifier, draw: Callable[[], data.Split], steps: int) -> None:
    if steps < IN_EARNEST:
        return
    new = draw()
    right = training.evaluate(model, new.x, new.y).accuracy
    if right < LEAST:
        raise RuntimeError(
            f"after {steps:,} steps the base names {right:.0%} of new printed pictures rightly, "
            f"and {LEAST:.0%} is the least at which an adapter on it says anything: "
            "give it more steps, or another learning rate"
        )


def cache_folder() -> Path:
    """Where the bases are kept."""
    folder = Path(os.environ.get("MINILORA_CACHE") or "~/.cache/minilora")
    try:
        return folder.expanduser()
    except RuntimeError:  # there is no home folder
        return folder


def _pretrain(
    model: TransformerClassifier,
    examples: data.Split,
    steps: int,
    batch_size: int,
    schedule: str,
    seed: int,
    progress: bool | None,
    lr: float = 3e-3,
) -> None:
    training.fit(
        model,
        examples.x,
        examples.y,
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        schedule=schedule,
        weight_decay=0.05,
        seed=seed,
        progress=progress,
    )


def _cached(
    name: str,
    config: TransformerConfig,
    settings: dict[str, float],
    make: Callable[[], TransformerClassifier],
) -> TransformerClassifier:
    """The base from its file; made, and filed, where there is none or it cannot be read."""
    import matplotlib

    code = source_hash(sources("minilora.lab.pretrained"))
    # matplotlib's version stands for its fonts.
    parts = [code, torch.__version__, matplotlib.__version__, repr(config), settings]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    path = cache_folder() / f"{name}-{key}.safetensors"

    model = TransformerClassifier(config)
    try:
        model.load_state_dict(load_file(path))
    except Exception:  # not there, torn or foreign: whatever is wrong, the base is made again
        pass
    else:
        return model.eval()

    with training.one_thread():
        model = make().cpu()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, save(model.state_dict()))
    except OSError as error:
        warnings.warn(
            f"the base model was trained and could not be kept in {path.parent} ({error}), so that "
            "the next call trains it again; let MINILORA_CACHE name a folder that can be written",
            stacklevel=4,
        )
    return model.eval()
