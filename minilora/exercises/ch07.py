"""Checks of chapter 7: building the layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minilora.exercises.tools import (
    Exercise,
    Function,
    Mistake,
    call,
    close,
    is_numeric,
    not_attempted,
    passed,
    require,
)

Array = np.ndarray
Pair = tuple[Array, Array]


def _draw(seed: int, *shapes: tuple[int, ...]) -> tuple[Array, ...]:
    """Normal numbers, the arguments of a case."""
    return tuple(map(np.random.default_rng(seed).standard_normal, shapes))


def _scaled(scale: Callable[[float, int], float]) -> Function:
    """The layer, with a scale made of alpha and r."""
    return lambda x, W0, b, A, B, alpha: x @ W0.T + b + scale(alpha, len(A)) * (x @ A.T @ B.T)


_lora_forward = _scaled(lambda alpha, r: alpha / r)

_ONE_PATH = (
    "One of the two paths is missing: the output of the frozen layer, bias included, and the "
    "update are added."
)

check_lora_forward = Exercise(
    asks="x (n, d_in), W0, b, A, B, alpha → x W₀ᵀ + b + (alpha / r) x Aᵀ Bᵀ: (n, d_out).",
    # First square, so that a pair on its side does not fail by its shape.
    cases=[
        (*_draw(0, (7, 5), (5, 5), (5,), (2, 5), (5, 2)), 3.0),
        (*_draw(1, (7, 6), (4, 6), (4,), (3, 6), (4, 3)), 1.5),
    ],
    right=_lora_forward,
    mistakes=[
        Mistake(
            lambda x, W0, b, A, B, alpha: W0 @ x + b + alpha / len(A) * B @ A @ x,
            lambda error, *case: (
                f"Your shapes do not fit ({error}). x holds examples as rows, so the formula for a "
                "column, W0 x + B A x, becomes x W0ᵀ + x Aᵀ Bᵀ."
            ),
            raises=ValueError,
        ),
        Mistake(
            lambda *case: _lora_forward(*case).T,
            "Your answer lies on its side: examples are rows, so it must have shape (n, d_out).",
            when=lambda found, x, W0, *_: np.shape(found) == (len(W0), len(x)),
        ),
        Mistake(
            _scaled(lambda alpha, r: 1),
            "The scale is missing: the update counts alpha / r times, and r is the number of rows "
            "of A.",
        ),
        Mistake(
            _scaled(lambda alpha, r: alpha),
            "You multiply by alpha. The paper and PEFT divide it by the rank: alpha / r.",
        ),
        Mistake(
            _scaled(lambda alpha, r: alpha / r**0.5),
            "You divide alpha by the square root of r. That is rsLoRA; this chapter divides by r.",
        ),
        Mistake(_scaled(lambda alpha, r: 0), _ONE_PATH),
        Mistake(lambda x, W0, b, *rest: _lora_forward(x, 0 * W0, 0, *rest), _ONE_PATH),
        Mistake(
            lambda x, W0, b, *rest: _lora_forward(x, W0, 0, *rest),
            "The bias of the frozen layer is missing.",
        ),
        Mistake(
            lambda x, W0, b, A, B, alpha: _lora_forward(x, W0, b, B.T, A.T, alpha),
            "The update lies on its side: you computed x B A. For a row x the input meets A "
            "first: x Aᵀ Bᵀ.",
        ),
        Mistake(
            lambda x, W0, *rest: _lora_forward(x, W0.T, *rest),
            "The frozen weight lies on its side: W0 has shape (d_out, d_in), so a row x meets "
            "its transpose.",
        ),
    ],
    otherwise="The shape is right, the numbers are not: x W0ᵀ + b + alpha / r · x Aᵀ Bᵀ is wanted.",
    passed="A meets the input, B makes the output, and the scale is alpha / r.",
    parts="The output",
)


def _unfit(found: Any, A: Array, B: Array, *_: Any) -> str:
    """Why this is no pair (A, B) for the same layer; empty where it is one."""
    if not (isinstance(found, (tuple, list)) and len(found) == 2 and all(map(is_numeric, found))):
        return "Return the two factors, A and B, not their product."
    a, b = map(np.shape, found)
    if len(a) != 2 or len(b) != 2:
        return f"Both factors must be matrices; found shapes {a} and {b}."
    if (*b, *a) == (b[0], A.shape[1], len(B), b[0]):
        return "You return B first and A second. The exercise asks for A, then B."
    if (*a, *b) != (a[0], A.shape[1], len(B), a[0]):
        return f"A must be (r, {A.shape[1]}) and B ({len(B)}, r); found {a} and {b}."
    return ""


def _is_unfit(found: Any, *case: Any) -> bool:
    return _unfit(found, *case) != ""


def _same_update(found: Any, right: Any) -> bool:
    """Whether two pairs have the same product."""
    return not _unfit(found, *right) and close(np.matmul(*found[::-1]), np.matmul(*right[::-1]))


def _mean_adapters(*case: Array, by_A: float = 1, by_B: float = 0.5) -> Pair:
    A1, B1, A2, B2 = case
    return by_A * np.vstack([A1, A2]), by_B * np.hstack([B1, B2])


def _average(A1: Array, B1: Array, A2: Array, B2: Array) -> Pair:
    return (A1 + A2) / 2, (B1 + B2) / 2


check_mean_adapters = Exercise(
    asks="A1, B1, A2, B2 → (A, B) with B A = (B1 A1 + B2 A2) / 2.",
    cases=[_draw(r, (2, 6), (5, 2), (r, 6), (5, r)) for r in (2, 3)],
    right=_mean_adapters,
    mistakes=[
        Mistake(
            lambda *case: (_mean_adapters if len(case[0]) == len(case[2]) else _average)(*case),
            lambda error, A1, B1, A2, B2: (
                f"With ranks {len(A1)} and {len(A2)} your function fails: {error}. Factors of "
                "different ranks cannot be added; they can be put side by side."
            ),
            raises=ValueError,
        ),
        Mistake(lambda *case: _mean_adapters(*case)[::-1], _unfit, _is_unfit),
        Mistake(
            _average,
            "You averaged the factors. The product of the means also holds B1 A2 and B2 A1, "
            "which belong to neither adapter.",
            when=lambda found, *case: _same_update(found, _average(*case)),
        ),
        Mistake(
            lambda A1, B1, A2, B2: ((B1 @ A1 + B2 @ A2) / 2, np.eye(len(B1))),
            lambda found, A1, B1, A2, B2: (
                f"Your factors have rank {len(found[0])}; put side by side they have r1 + r2 = "
                f"{len(A1) + len(A2)}."
            ),
            when=lambda found, A1, B1, A2, B2: len(found[0]) != len(A1) + len(A2),
        ),
        Mistake(
            partial(_mean_adapters, by_B=1),
            "That is the sum of the two updates; halve it once.",
        ),
        Mistake(
            partial(_mean_adapters, by_A=0.5),
            "You halved both factors, so the product is a quarter of the sum; halve one of them.",
        ),
    ],
    otherwise="B A should be the mean of B1 A1 and B2 A2, and is not.",
    passed="side by side the factors add up the updates, at rank r1 + r2.",
    parts=("A", "B"),
    same=lambda found, right: _same_update(found, right) and len(found[0]) == len(right[0]),
)


def _orthonormal_b(A: Array, B: Array) -> Pair:
    Q, R = np.linalg.qr(B)
    return R @ A, Q


def _is_orthonormal(B: Any) -> bool:
    return close(np.transpose(B) @ B, np.eye(np.shape(B)[1]))


check_orthonormal_b = Exercise(
    asks="A, B → (A, B) with the same product and orthonormal columns of B.",
    cases=[_draw(2, (3, 6), (8, 3))],
    right=_orthonormal_b,
    mistakes=[
        Mistake(lambda A, B: _orthonormal_b(A, B)[::-1], _unfit, _is_unfit),
        Mistake(
            lambda A, B: (A, np.linalg.qr(B)[0]),
            "B is orthonormal now, but A is the old one, so the product has changed: what you took "
            "out of B must go into A.",
            when=lambda found, A, B: close(found[0], A) and _is_orthonormal(found[1]),
        ),
        Mistake(
            lambda A, B: (np.pad(B @ A, ((0, 1), (0, 0))), np.eye(8, 9)),
            "The rows of your B are orthonormal; the exercise asks for its columns, Bᵀ B = I.",
            when=lambda found, A, B: (
                not _is_orthonormal(found[1]) and _is_orthonormal(np.transpose(found[1]))
            ),
        ),
        Mistake(
            lambda A, B: (A, B / np.linalg.norm(B, axis=0)),
            "The columns of your B are not orthonormal: Bᵀ B differs from I. Dividing each column "
            "by its length is not enough, since columns must be at right angles too.",
            when=lambda found, A, B: not _is_orthonormal(found[1]),
        ),
        Mistake(
            lambda A, B: (np.linalg.qr(B)[1].T @ A, np.linalg.qr(B)[0]),
            "The product has changed. With B = Q R the new A is R A, in this order.",
            when=lambda found, A, B: not _same_update(found, (A, B)),
        ),
    ],
    otherwise="Return the two factors, A and B.",
    passed="the same update from another pair: factors mean nothing by themselves.",
    same=lambda found, right: _same_update(found, right) and _is_orthonormal(found[1]),
)

_MODEL = {"q.A": np.zeros((2, 4)), "q.B": np.zeros((3, 2))}
_FILE = {"q.A": np.ones((2, 4)), "q.B": np.full((3, 2), 2.0)}
_SHAPE = "a shape differs"
#: (a file that does not fit, part of the name that does not, what is wrong)
_MISFITS: list[tuple[dict[str, Array], str, str]] = [
    ({"q.A": _FILE["q.A"]}, "q.B", "a factor of the model is missing from the file"),
    ({**_FILE, "v.A": _FILE["q.A"]}, "v.A", "the file has a tensor that fits nothing"),
    ({f"_orig_mod.{n}": t for n, t in _FILE.items()}, "q.", "every name has a prefix"),
    ({"q.A": _FILE["q.A"], "q.B": np.ones((1, 2))}, "q.B", _SHAPE),
    ({"q.A": _FILE["q.A"], "q.B": np.ones((3, 1))}, "q.B", _SHAPE),
]


def check_strict_load(function: Function) -> None:
    """``function(model, file)`` → the file's values; ValueError names what does not fit."""
    given = dict(_MODEL)
    answer = call(function, given, dict(_FILE))
    if not_attempted(answer):
        return
    require(
        isinstance(answer, dict) and set(answer) == set(_MODEL),
        "Return a dictionary with the model's names.",
    )
    require(
        all(close(answer[name], tensor) for name, tensor in _FILE.items()),
        "A file that fits must give back the file's values under the model's names.",
    )
    require(
        all(given.get(name) is tensor for name, tensor in _MODEL.items()),
        "Your function changes the model's dictionary. If a later name does not fit, the model is "
        "left half loaded: build a new dictionary.",
    )
    for file, name, what in _MISFITS:
        words = "your function says nothing. " + (
            "NumPy would then broadcast the wrong numbers, or fail much later."
            if what == _SHAPE
            else "That is what strict=False does."
        )
        try:
            function(dict(_MODEL), dict(file))
        except ValueError as error:
            if name in str(error):
                continue
            words = f"your error must name it; it says {str(error)!r}."
        except KeyError as error:
            words = (
                f"a bare KeyError({error}) comes out. Compare the names first, and say what is "
                "wrong."
            )
        raise AssertionError(f"Where {what}, {words}")
    passed("what does not fit is refused by name, and nothing is half loaded.")


class _Shared(np.ndarray):
    """An array that a case does not copy."""

    def __deepcopy__(self, memo: Any) -> _Shared:
        return self


def _lora_embedding(ids: Array, W0: Array, A: Array, B: Array, scale: float) -> Array:
    return W0[ids] + scale * np.moveaxis(A[:, ids], 0, -1) @ B.T


def _whole_table(ids: Array, W0: Array, A: Array, B: Array, scale: float) -> Array:
    if W0.size > 1e9:
        raise MemoryError
    return W0[ids] + scale * (B @ A).T[ids]


_TABLE = _draw(3, (5, 5), (2, 5), (5, 2))
_WORDS = 200_000

check_lora_embedding = Exercise(
    asks="ids, W0, A, B, scale → W0[ids] + scale · (B A[:, ids])ᵀ, of shape (…, d).",
    cases=[
        (np.array([3, 0, 3]), *_TABLE, 0.5),
        (np.array([[1, 4], [2, 2], [0, 1]]), *_TABLE, 0.5),
        # The update of this whole table has 40,000 million entries; a read needs 3 columns.
        (
            np.array([7, 7, 9]),
            np.broadcast_to(np.zeros(1).view(_Shared), (_WORDS, _WORDS), subok=True),
            *(np.ones((1, _WORDS)), np.ones((_WORDS, 1)), 1.0),
        ),
    ],
    right=_lora_embedding,
    mistakes=[
        Mistake(
            lambda ids, W0, A, B, scale: W0[ids] + scale * A[:, ids].T @ B.T,
            lambda error, *case: (
                f"Your shapes do not fit ({error}). A[:, ids] has the r numbers of a token along "
                "its first axis. For ids of several axes .T turns all of them round: move only "
                "the first to the end, and multiply by Bᵀ."
            ),
            raises=ValueError,
        ),
        Mistake(
            _whole_table,
            "Your function forms the update of the whole table, which does not fit into memory "
            "here. Read the columns of A first, then multiply by B.",
            raises=MemoryError,
        ),
        Mistake(
            lambda ids, W0, A, B, scale: _lora_embedding(ids, W0, A, B, 1),
            "The scale is missing from the update.",
        ),
        Mistake(
            lambda ids, W0, A, B, scale: W0[ids] + scale * (B @ A)[ids],
            "You read rows of B A. A has a column for each token, so the update of token i is "
            "B times column i of A: a row of the transpose.",
        ),
        Mistake(lambda ids, W0, *rest: W0[ids], "The update is missing."),
        Mistake(
            lambda *case: np.moveaxis(_lora_embedding(*case), -1, 0),
            lambda found, ids, W0, *rest: (
                f"For ids of shape {ids.shape} the answer must have shape "
                f"{(*ids.shape, W0.shape[1])}, ids first and the {W0.shape[1]} numbers of a row "
                f"last; found {np.shape(found)}."
            ),
            when=lambda found, ids, W0, *rest: np.shape(found) != (*ids.shape, W0.shape[1]),
        ),
    ],
    otherwise=lambda found, ids, W0, *rest: (
        "On a large vocabulary the numbers are wrong."
        if len(W0) == _WORDS
        else "Row i should be W0[i] plus scale times B times A[:, i]."
    ),
    passed="a read costs one column of A and one small product.",
)
