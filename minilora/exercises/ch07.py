"""Checks of chapter 7: building the layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from minilora.exercises.tools import Function, array, call, close, not_attempted, passed, require


def check_lora_forward(function: Function) -> None:
    """``function(x, W0, b, A, B, alpha)`` → x W₀ᵀ + b + (alpha / r) x Aᵀ Bᵀ: (n, d_out)."""
    rng = np.random.default_rng(0)
    # Square, so that a pair on its side does not fail by its shape.
    for d_in, d_out, r, alpha in ((5, 5, 2, 3.0), (6, 4, 3, 1.5)):
        x, b = rng.normal(size=(7, d_in)), rng.normal(size=d_out)
        W0, A, B = (rng.normal(size=s) for s in ((d_out, d_in), (r, d_in), (d_out, r)))
        try:
            answer = call(function, x.copy(), W0.copy(), b.copy(), A.copy(), B.copy(), alpha)
        except ValueError as error:
            raise AssertionError(
                f"Your shapes do not fit ({error}). x holds examples as rows, so the formula for a "
                "column, W0 x + B A x, becomes x W0ᵀ + x Aᵀ Bᵀ."
            ) from None
        if not_attempted(answer):
            return
        found = np.asarray(answer, dtype=float)
        base, update = x @ W0.T + b, x @ A.T @ B.T
        require(
            found.shape != (d_out, 7) or d_out == 7,
            "Your answer lies on its side: examples are rows, so it must have shape (n, d_out).",
        )
        found = array(found, (7, d_out), "The output")
        require(
            not close(found, base + update),
            "The scale is missing: the update counts alpha / r times, and r is the number of rows "
            "of A.",
        )
        require(
            not close(found, base + alpha * update),
            "You multiply by alpha. The paper and PEFT divide it by the rank: alpha / r.",
        )
        require(
            not close(found, base + alpha / r**0.5 * update),
            "You divide alpha by the square root of r. That is rsLoRA; this chapter divides by r.",
        )
        require(
            not close(found, alpha / r * update) and not close(found, base),
            "One of the two paths is missing: the output of the frozen layer, bias included, and "
            "the update are added.",
        )
        require(
            not close(found, base - b + alpha / r * update),
            "The bias of the frozen layer is missing.",
        )
        if d_in == d_out:
            require(
                not close(found, base + alpha / r * (x @ B @ A)),
                "The update lies on its side: you computed x B A. For a row x the input meets A "
                "first: x Aᵀ Bᵀ.",
            )
            require(
                not close(found, x @ W0 + b + alpha / r * update),
                "The frozen weight lies on its side: W0 has shape (d_out, d_in), so a row x meets "
                "its transpose.",
            )
        require(
            close(found, base + alpha / r * update),
            "The shape is right, the numbers are not: x W0ᵀ + b + alpha / r · x Aᵀ Bᵀ is wanted.",
        )
    passed("A meets the input, B makes the output, and the scale is alpha / r.")


def check_mean_adapters(function: Function) -> None:
    """``function(A1, B1, A2, B2)`` → (A, B) with B A = (B1 A1 + B2 A2) / 2."""
    rng = np.random.default_rng(1)
    for r1, r2 in ((2, 2), (2, 3)):
        A1, A2, B1, B2 = (rng.normal(size=s) for s in ((r1, 6), (r2, 6), (5, r1), (5, r2)))
        try:
            answer = call(function, A1.copy(), B1.copy(), A2.copy(), B2.copy())
        except ValueError as error:
            raise AssertionError(
                f"With ranks {r1} and {r2} your function fails: {error}. Factors of different "
                "ranks cannot be added; they can be put side by side."
            ) from None
        if not_attempted(answer):
            return
        A, B = _pair(answer, 6, 5)
        found, right = B @ A, (B1 @ A1 + B2 @ A2) / 2
        if r1 == r2:
            require(
                not close(found, (B1 + B2) @ (A1 + A2) / 4),
                "You averaged the factors. The product of the means also holds B1 A2 and B2 A1, "
                "which belong to neither adapter.",
            )
        require(
            len(A) == r1 + r2,
            f"Your factors have rank {len(A)}; put side by side they have r1 + r2 = {r1 + r2}.",
        )
        require(not close(found, 2 * right), "That is the sum of the two updates; halve it once.")
        require(
            not close(found, right / 2),
            "You halved both factors, so the product is a quarter of the sum; halve one of them.",
        )
        require(close(found, right), "B A should be the mean of B1 A1 and B2 A2, and is not.")
    passed("side by side the factors add up the updates, at rank r1 + r2.")


def _pair(answer: Any, d_in: int, d_out: int) -> tuple[np.ndarray, np.ndarray]:
    """The answer as factors A (r, d_in) and B (d_out, r)."""
    require(
        isinstance(answer, (tuple, list)) and len(answer) == 2,
        "Return the two factors, A and B, not their product.",
    )
    A, B = (np.asarray(factor, dtype=float) for factor in answer)
    require(
        A.ndim == 2 and B.ndim == 2,
        f"Both factors must be matrices; found shapes {A.shape} and {B.shape}.",
    )
    require(
        not (A.shape[0] == d_out and B.shape[1] == d_in and A.shape[1] == B.shape[0]),
        "You return B first and A second. The exercise asks for A, then B.",
    )
    require(
        A.shape[1] == d_in and B.shape[0] == d_out and A.shape[0] == B.shape[1],
        f"A must be (r, {d_in}) and B ({d_out}, r); found {A.shape} and {B.shape}.",
    )
    return A, B


def check_orthonormal_b(function: Function) -> None:
    """``function(A, B)`` → (A, B) with the same product and orthonormal columns of B."""
    rng = np.random.default_rng(2)
    A, B = rng.normal(size=(3, 6)), rng.normal(size=(8, 3))
    answer = call(function, A.copy(), B.copy())
    if not_attempted(answer):
        return
    new_A, new_B = _pair(answer, 6, 8)
    orthonormal = close(new_B.T @ new_B, np.eye(new_B.shape[1]))
    require(
        not (orthonormal and close(new_A, A)),
        "B is orthonormal now, but A is the old one, so the product has changed: what you took "
        "out of B must go into A.",
    )
    require(
        orthonormal or not close(new_B @ new_B.T, np.eye(8)),
        "The rows of your B are orthonormal; the exercise asks for its columns, Bᵀ B = I.",
    )
    require(
        orthonormal,
        "The columns of your B are not orthonormal: Bᵀ B differs from I. Dividing each column by "
        "its length is not enough, since columns must be at right angles too.",
    )
    require(
        close(new_B @ new_A, B @ A),
        "The product has changed. With B = Q R the new A is R A, in this order.",
    )
    passed("the same update from another pair: factors mean nothing by themselves.")


def check_strict_load(function: Function) -> None:
    """``function(model, file)`` → the file's values; ValueError names what does not fit."""
    model = {"q.A": np.zeros((2, 4)), "q.B": np.zeros((3, 2))}
    file = {"q.A": np.ones((2, 4)), "q.B": np.full((3, 2), 2.0)}
    answer = call(function, dict(model), dict(file))
    if not_attempted(answer):
        return
    require(
        isinstance(answer, dict) and set(answer) == set(model),
        "Return a dictionary with the model's names.",
    )
    require(
        all(close(answer[name], file[name]) for name in model),
        "A file that fits must give back the file's values under the model's names.",
    )
    given = dict(model)
    function(given, dict(file))
    require(
        all(given[name] is model[name] for name in model),
        "Your function changes the model's dictionary. If a later name does not fit, the model is "
        "left half loaded: build a new dictionary.",
    )
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"q.A": file["q.A"]}, "q.B", "a factor of the model is missing from the file"),
        ({**file, "v.A": file["q.A"]}, "v.A", "the file has a tensor that fits nothing"),
        ({f"_orig_mod.{n}": t for n, t in file.items()}, "q.", "every name has a prefix"),
        ({"q.A": file["q.A"], "q.B": np.ones((1, 2))}, "q.B", "a shape differs"),
        ({"q.A": file["q.A"], "q.B": np.ones((3, 1))}, "q.B", "a shape differs"),
    ]
    for wrong, name, what in cases:
        try:
            function(dict(model), wrong)
        except ValueError as error:
            require(
                name in str(error),
                f"Where {what}, your error must name it; it says {str(error)!r}.",
            )
        except KeyError as error:
            raise AssertionError(
                f"Where {what}, a bare KeyError({error}) comes out. Compare the names first, and "
                "say what is wrong."
            ) from None
        else:
            raise AssertionError(
                f"Where {what}, your function says nothing. "
                + (
                    "NumPy would then broadcast the wrong numbers, or fail much later."
                    if what == "a shape differs"
                    else "That is what strict=False does."
                )
            )
    passed("what does not fit is refused by name, and nothing is half loaded.")


def check_lora_embedding(function: Function) -> None:
    """``function(ids, W0, A, B, scale)`` → W0[ids] + scale · (B A[:, ids])ᵀ, of shape (…, d)."""
    rng = np.random.default_rng(3)
    W0, A, B = (rng.normal(size=s) for s in ((5, 5), (2, 5), (5, 2)))
    for ids in (np.array([3, 0, 3]), np.array([[1, 4], [2, 2], [0, 1]])):
        try:
            answer = call(function, ids.copy(), W0.copy(), A.copy(), B.copy(), 0.5)
        except ValueError as error:
            raise AssertionError(
                f"Your shapes do not fit ({error}). A[:, ids] has the r numbers of a token along "
                "its first axis. For ids of several axes .T turns all of them round: move only "
                "the first to the end, and multiply by Bᵀ."
            ) from None
        if not_attempted(answer):
            return
        found = np.asarray(answer, dtype=float)
        table = (B @ A).T
        right = W0[ids] + 0.5 * table[ids]
        if found.shape == right.shape:
            require(not close(found, W0[ids] + table[ids]), "The scale is missing from the update.")
            require(
                not close(found, W0[ids] + 0.5 * (B @ A)[ids]),
                "You read rows of B A. A has a column for each token, so the update of token i is "
                "B times column i of A: a row of the transpose.",
            )
            require(not close(found, W0[ids]), "The update is missing.")
        require(
            found.shape == right.shape,
            f"For ids of shape {ids.shape} the answer must have shape {right.shape}, ids first "
            f"and the {W0.shape[1]} numbers of a row last; found {found.shape}.",
        )
        require(close(found, right), "Row i should be W0[i] plus scale times B times A[:, i].")
    # The whole update of this table would have 40,000 million entries; a read needs 3 columns.
    huge_A, huge_B = np.ones((1, 200_000)), np.ones((200_000, 1))
    narrow = np.broadcast_to(np.zeros(1), (200_000, 200_000))
    try:
        found = np.asarray(function(np.array([7, 7, 9]), narrow, huge_A, huge_B, 1.0))
    except MemoryError:
        raise AssertionError(
            "Your function forms the update of the whole table, which does not fit into memory "
            "here. Read the columns of A first, then multiply by B."
        ) from None
    require(
        found.shape == (3, 200_000) and close(found, np.ones((3, 200_000))),
        "On a large vocabulary the numbers are wrong.",
    )
    passed("a read costs one column of A and one small product.")
