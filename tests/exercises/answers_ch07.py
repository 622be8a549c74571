"""Answers to the checks of chapter 7 that are more than a table."""

from __future__ import annotations

from functools import partial

import numpy as np

from minilora.exercises.tools import Function

Tensors = dict[str, np.ndarray]


def strict_load(
    model: Tensors, file: Tensors, says: Function = str, checks_shapes: bool = True
) -> Tensors:
    for name in sorted(set(model) ^ set(file)):
        raise ValueError(says(name))
    for name, tensor in file.items():
        if checks_shapes and tensor.shape != model[name].shape:
            raise ValueError(name)
    return dict(file)


def half_loaded(model: Tensors, file: Tensors) -> Tensors:
    model.update(strict_load(model, file))
    return model


RIGHT: dict[str, Function] = {"strict_load": strict_load}

WRONG: list[tuple[str, Function, str]] = [
    ("strict_load", lambda model, file: {**model, **file}, "strict=False"),
    ("strict_load", lambda model, file: {name: file[name] for name in model}, "bare KeyError"),
    ("strict_load", half_loaded, "half loaded"),
    ("strict_load", partial(strict_load, checks_shapes=False), "a shape differs"),
    ("strict_load", partial(strict_load, says=lambda name: "they differ"), "must name it"),
    ("strict_load", lambda model, file: dict(model), "file's values"),
    ("strict_load", lambda model, file: list(file), "a dictionary"),
]
