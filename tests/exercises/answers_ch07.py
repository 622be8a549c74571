"""Answers to the checks of chapter 7 that are more than a table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minilora.exercises.tools import Function

Array = np.ndarray
Tensors = dict[str, Array]

# ---------------------------------------------------------------- a loader that is strict


def strict_load(
    model: Tensors,
    file: Tensors,
    says: Function = str,
    checks_shapes: bool = True,
    gives: Callable[[Tensors, Tensors], Any] = lambda model, file: dict(file),
) -> Any:
    for name in sorted(set(model) ^ set(file)):
        raise ValueError(says(name))
    for name, tensor in file.items():
        if checks_shapes and tensor.shape != model[name].shape:
            raise ValueError(says(name))
    return gives(model, file)


def half_loaded(model: Tensors, file: Tensors) -> Tensors:
    model.update(strict_load(model, file))
    return model


def half_loaded_before_the_error(model: Tensors, file: Tensors) -> Tensors:
    for name in model:
        if name not in file or file[name].shape != model[name].shape:
            raise ValueError(name)
        model[name] = file[name]
    return dict(file)


def into_the_arrays(model: Tensors, file: Tensors) -> Tensors:
    """What `load_state_dict` does: it copies into the tensors that are there."""
    strict_load(model, file)
    for name in model:
        model[name][...] = file[name]
    return dict(model)


def renames_in_the_file(model: Tensors, file: Tensors) -> Tensors:
    for name in list(file):
        file[name.removeprefix("_orig_mod.")] = file.pop(name)
    return strict_load(model, file)


def takes_from_the_file(model: Tensors, file: Tensors) -> Tensors:
    strict_load(model, file)
    return {name: file.pop(name) for name in model}


def all_names(model: Tensors, file: Tensors) -> Tensors:
    return strict_load(model, file, says=lambda name: f"{sorted(model)} against {sorted(file)}")


# ---------------------------------------------------------------- a test that would notice


def layer_test(
    forward: Function,
    delta: Function,
    d_in: int,
    d_out: int,
    r: int,
    *,
    draw: Callable[..., Array] | None = None,
    zero_B: bool = False,
    pieces: int | None = None,
    rows: int = 5,
    same: Callable[[Array, Array], Any] = np.allclose,
    calls: int = 1,
) -> Any:
    draw = draw or np.random.default_rng(0).standard_normal
    x, A, B = draw((rows, d_in)), draw((r, d_in)), draw((d_out, r))
    B *= not zero_B
    B[:, r if pieces is None else pieces :] = 0
    through = np.mean([forward(x, A, B) for _ in range(calls)], axis=0)
    return bool(same(through, x @ delta(A, B).T))


def by_norm(found: Array, wanted: Array) -> bool:
    return bool(np.isclose(np.linalg.norm(found), np.linalg.norm(wanted)))


def delta_norm(forward: Function, delta: Function, d_in: int, d_out: int, r: int) -> bool:
    """Compares the sizes of the two updates: forward's is read off the unit vectors."""
    draw = np.random.default_rng(0).standard_normal
    A, B = draw((r, d_in)), draw((d_out, r))
    return by_norm(forward(np.eye(d_in), A, B), delta(A, B))


RIGHT: dict[str, Function] = {"strict_load": strict_load, "layer_test": layer_test}

WRONG: list[tuple[str, Function, str]] = [
    ("strict_load", lambda model, file: {**model, **file}, "strict=False"),
    ("strict_load", lambda model, file: {name: file[name] for name in model}, "bare KeyError"),
    ("strict_load", half_loaded, "half loaded"),
    ("strict_load", half_loaded_before_the_error, "half loaded"),
    ("strict_load", into_the_arrays, "writes into the arrays"),
    ("strict_load", renames_in_the_file, "what it read from the file"),
    ("strict_load", takes_from_the_file, "what it read from the file"),
    ("strict_load", partial(strict_load, gives=lambda model, file: file), "Return a new one"),
    ("strict_load", partial(strict_load, checks_shapes=False), "a shape differs"),
    ("strict_load", partial(strict_load, says=lambda name: "they differ"), "must name it"),
    ("strict_load", all_names, "nothing that fits"),
    ("strict_load", partial(strict_load, gives=lambda model, file: dict(model)), "file's values"),
    ("strict_load", lambda model, file: list(file), "a dictionary"),
    ("strict_load", lambda model, file: {"q.A": 1 * file["q.A"]}, "the model's names"),
    ("strict_load", lambda model, file: 1 / 0, "A file that fits is refused"),
    ("layer_test", lambda *case: True, "forward adds nothing"),
    ("layer_test", lambda *case: False, "refuses a right layer"),
    ("layer_test", lambda *case: int(layer_test(*case)), "True or False"),
    ("layer_test", partial(layer_test, zero_B=True), "forward adds nothing"),
    ("layer_test", partial(layer_test, same=np.array_equal), "np.allclose"),
    ("layer_test", partial(layer_test, draw=np.ones), "a transposed update"),
    ("layer_test", delta_norm, "a transposed update"),
    ("layer_test", partial(layer_test, pieces=1), "only the first of the r pieces"),
    ("layer_test", partial(layer_test, rows=1), "the answer of the first"),
    ("layer_test", partial(layer_test, draw=np.random.default_rng(0).random), "loses the sign"),
    (
        "layer_test",
        partial(layer_test, calls=4000, same=partial(np.allclose, rtol=0.5, atol=1)),
        "dropout still acts",
    ),
    (
        "layer_test",
        lambda forward, delta, d_in, d_out, r: (
            layer_test(forward, delta, d_out, d_in, r, rows=2)
            or bool(delta(np.ones((r, d_in)), np.ones((d_out, r))) @ np.ones(d_out) is None)
        ),
        "ends in an error",
    ),
]
