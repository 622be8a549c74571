"""The checks that the exercises call.

Each chapter's exercises hand their function to one of these. A check prints ``not attempted yet``
for a stub, prints ``passed: …`` for a right answer, and raises ``AssertionError`` for a wrong one,
with a message that names the misconception behind it where it can be recognised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Function = Callable[..., Any]


def _call(function: Function, *arguments: Any) -> Any:
    """What the function returns; None where it says that it is not written yet."""
    try:
        return function(*arguments)
    except NotImplementedError:
        return None


def _not_attempted(answer: Any) -> bool:
    """True, and said in print, for the None that a stub returns."""
    if answer is None:
        print("not attempted yet")
        return True
    return False


def _require(condition: Any, message: str) -> None:
    """Raise AssertionError with the message unless the condition holds (also under python -O)."""
    if not condition:
        raise AssertionError(message)


def _passed(what: str) -> None:
    print(f"passed: {what}")


def _array(answer: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """The answer as a real array of the shape asked for."""
    array = np.asarray(answer)
    _require(array.dtype.kind in "biuf", f"{what} must hold numbers; found dtype {array.dtype}.")
    array = array.astype(float)
    _require(array.shape == shape, f"{what} must have shape {shape}; found {array.shape}.")
    return array


def _close(found: Any, right: Any, scale: float = 1.0) -> bool:
    """Equal, but for rounding."""
    found, right = np.asarray(found), np.asarray(right)
    return found.shape == right.shape and bool(
        np.allclose(found, right, rtol=1e-7, atol=1e-9 * scale)
    )


# Chapter 1


def check_outer_product(function: Function) -> None:
    """``function(u, v)``: u (m,), v (n,) → (m, n), every entry of u times every entry of v."""
    u, v = np.array([1.0, 2.0, -3.0]), np.array([4.0, 0.5])
    answer = _call(function, u.copy(), v.copy())
    if _not_attempted(answer):
        return
    found = np.asarray(answer, dtype=float)
    _require(
        found.ndim != 0,
        "You return one number: that is the inner product, which adds the products up. "
        "The outer product keeps them all, in a table.",
    )
    _require(
        not _close(found, np.outer(v, u)),
        "Your table lies on its side: u must run down the rows and v along the columns, "
        "so the shape is (len(u), len(v)).",
    )
    found = _array(found, (3, 2), "The outer product of u (3,) and v (2,)")
    _require(
        _close(found, np.outer(u, v)),
        "The shape is right, the entries are not: row i, column j must hold u[i] * v[j].",
    )
    _passed("every row is v times a number, every column is u times a number.")


def check_largest_saving_rank(function: Function) -> None:
    """``function(m, n)`` → the largest whole r with r·(m + n) < m·n."""
    answer = _call(function, 427, 640)
    if _not_attempted(answer):
        return
    _require(
        answer != 427,
        "427 is the largest rank that the matrix can have, not the largest that saves: at r = 427 "
        "the factors hold 427 · 1,067 numbers, the matrix only 427 · 640.",
    )
    _require(
        answer == int(answer),
        f"A rank is a whole number; found {answer}. Round mn / (m + n) down, not up: above it the "
        "factors hold more numbers than the matrix.",
    )
    _require(
        answer != 257,
        "257 is one too many: mn / (m + n) is 256.1, and above it the factors hold more numbers "
        "than the matrix. Round down.",
    )
    _require(answer == 256, f"For (427, 640) the answer is 256; found {answer}.")
    for m, n, right in ((1, 1, 0), (7, 26, 5), (100, 3, 2), (1000, 1000, 499), (384, 384, 191)):
        found = _call(function, m, n)
        if m == n and found == m // 2 and m > 1:
            raise AssertionError(
                f"At r = {found} the factors of a ({m}, {n}) matrix hold exactly as many numbers "
                "as the matrix. That is break-even; the exercise asks for fewer."
            )
        _require(found == right, f"For ({m}, {n}) the answer is {right}; found {found}.")
    _passed("one rank more, and the factors hold as many numbers as the matrix, or more.")


def check_addition_factors(function: Function) -> None:
    """``function(a, b)``: a (m,), b (n,) → C (m, 2), R (2, n) with (C @ R)[i, j] = a[i] + b[j]."""
    a, b = np.array([0.0, 7.0, 14.0, 21.0]), np.array([1.0, 2.0, 3.0])
    answer = _call(function, a.copy(), b.copy())
    if _not_attempted(answer):
        return
    _require(
        isinstance(answer, (tuple, list)) and len(answer) == 2,
        "Return the two factors, C and R, not the table that they make.",
    )
    C, R = (np.asarray(factor, dtype=float) for factor in answer)
    _require(
        C.ndim == 2 and R.ndim == 2,
        f"Both factors must be matrices; found shapes {C.shape} and {R.shape}.",
    )
    _require(
        not (C.shape == (2, 4) and R.shape == (3, 2)),
        "Each factor lies on its side: C has a row for each a, R a column for each b. "
        "Transpose both.",
    )
    _require(
        C.shape[1] <= 2,
        f"You use {C.shape[1]} outer products; two are enough. One carries a, the other b.",
    )
    C, R = _array(C, (4, 2), "C"), _array(R, (2, 3), "R")
    product = C @ R
    _require(
        not _close(product, np.outer(a, b), 100),
        "Your factors make the multiplication table a[i] * b[j]. To carry a alone, pair it with a "
        "row of ones; to carry b alone, pair it with a column of ones.",
    )
    _require(
        _close(product, a[:, None] + b[None, :], 100),
        "C @ R is not a[i] + b[j]. Its first outer product should be a column times a row of ones.",
    )
    _passed("an addition table has rank two, however large it is.")


def check_peel_once(function: Function) -> None:
    """``function(X, i, j)``: X (m, n) → what is left after the cross through X[i, j] is removed."""
    X = np.array([[2.0, 4.0, 6.0], [1.0, 5.0, 0.0], [3.0, 9.0, 6.0], [0.0, 3.0, -3.0]])  # rank 2
    answer = _call(function, X.copy(), 1, 1)
    if _not_attempted(answer):
        return
    found = _array(answer, (4, 3), "What is left of X")
    cross = np.outer(X[:, 1], X[1])
    _require(
        not _close(found, cross / X[1, 1], 10),
        "You return the piece itself; the exercise asks for what is left, X minus the piece.",
    )
    _require(
        not _close(found, X - cross, 100),
        "You forgot to divide by X[i, j]. The piece must equal X along row i and column j; where "
        "they meet, column times row is X[i, j] squared.",
    )
    _require(
        not (_close(found[1], np.zeros(3)) and _close(found[[0, 2, 3]], X[[0, 2, 3]])),
        "You cleared one row and left the others as they were. Every row must lose its share of "
        "row i: that is what the column in the outer product is for.",
    )
    _require(
        _close(found[1], np.zeros(3), 10) and _close(found[:, 1], np.zeros(4), 10),
        "Row i and column j of what is left must be zero; yours are not.",
    )
    _require(
        _close(found, X - cross / X[1, 1], 10),
        "Row i and column j are zero, but the rest is wrong: subtract "
        "outer(X[:, j], X[i]) / X[i, j].",
    )
    _passed("the rank fell by one, from 2 to 1.")


# Chapter 2


def _example() -> np.ndarray:
    """A (5, 4) matrix with singular values 8, 4, 2, 1 and a column mean that is not zero."""
    generator = np.random.default_rng(2)
    U = np.linalg.qr(generator.standard_normal((5, 4)))[0]
    V = np.linalg.qr(generator.standard_normal((4, 4)))[0]
    return (U * np.array([8.0, 4.0, 2.0, 1.0])) @ V.T


def check_truncate(function: Function) -> None:
    """``function(X, r)``: X (m, n) → its best approximation of rank r, (m, n)."""
    X = _example()
    answer = _call(function, X.copy(), 2)
    if _not_attempted(answer):
        return
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    found = _array(answer, X.shape, "The approximation")
    _require(
        not _close(found, U[:, :2] @ Vt[:2]),
        "The singular values are missing: your pieces all have the same size. Multiply column i of "
        "U by s[i].",
    )
    _require(
        not _close(found, (U[:, 2:] * s[2:]) @ Vt[2:]),
        "You kept the pieces after the first r. NumPy sorts them from large to small: keep the "
        "first r.",
    )
    _require(
        not _close(found, (U[:, :2] * s[:2]) @ Vt.T[:2]),
        "NumPy returns Vᵀ, not V: its rows are the singular vectors already. "
        "Keep its first r rows, Vt[:r], and do not transpose it.",
    )
    _require(
        _close(found, (U[:, :2] * s[:2]) @ Vt[:2], 10),
        "This is not the best rank-2 approximation. Keep U[:, :r], s[:r] and Vt[:r].",
    )
    for r in (0, 1, 4):
        right = (U[:, :r] * s[:r]) @ Vt[:r]
        _require(
            _close(_call(function, X.copy(), r), right, 10), f"Rank 2 is right, rank {r} is not."
        )
    _passed("columns of U, rows of Vᵀ, and the sizes between them.")


def check_errors_from_singular_values(function: Function) -> None:
    """``function(s, r)``: s falling (k,) → (Frobenius error, spectral error) at rank r."""
    s, r = np.array([9.0, 6.0, 4.0, 3.0]), 2
    answer = _call(function, s.copy(), r)
    if _not_attempted(answer):
        return
    fro, spectral = _array(answer, (2,), "The answer: (Frobenius error, spectral error), which")
    _require(
        not (_close(fro, 4) and _close(spectral, 5)),
        "The two errors are the wrong way round: first Frobenius, then spectral.",
    )
    _require(
        not _close(fro, 7),
        "You added the lost singular values. Lengths at right angles add as in Pythagoras: add the "
        "squares, then take the root.",
    )
    _require(not _close(fro, 25), "You forgot the root: 25 is the squared Frobenius error.")
    _require(
        not _close(spectral, 6),
        "Off by one: at rank 2 the first two are kept, so the largest that is lost is the third, "
        "s[2], since Python counts from 0.",
    )
    _require(_close(fro, 5), f"The Frobenius error of 9, 6, 4, 3 at rank 2 is 5; found {fro}.")
    _require(
        _close(spectral, 4), f"The spectral error of 9, 6, 4, 3 at rank 2 is 4; found {spectral}."
    )
    full = _array(_call(function, s.copy(), 4), (2,), "The answer at full rank")
    _require(_close(full, [0, 0]), f"At full rank nothing is lost: both are 0; found {full}.")
    _passed("what is lost is the tail; its root of squares and its largest are the two errors.")


def check_rank_for_error(function: Function) -> None:
    """``function(X, tolerance)`` → the smallest r whose relative Frobenius error is ≤ tolerance."""
    X = _example()  # 8, 4, 2, 1: squares 64, 16, 4, 1 of 85
    answer = _call(function, X.copy(), 0.3)
    if _not_attempted(answer):
        return
    # The errors at ranks 0 to 4 are 1, .497, .243, .108 and 0.
    cases = ((0.3, 2), (0.24, 3), (0.11, 3), (0.06, 4), (0.5, 1), (1.0, 0))
    found = [_call(function, X.copy(), tolerance) for tolerance, _ in cases]
    right = [r for _, r in cases]
    squared = [1, 2, 2, 2, 1, 0]
    plain = [2, 2, 3, 4, 1, 0]
    _require(
        found != [r + 1 for r in right] and found != [min(r + 1, 4) for r in right],
        "One too many each time. Entry r of the list of errors is the error at rank r, and the "
        "list begins with rank 0.",
    )
    _require(
        found != [r - 1 for r in right] and found != [max(r - 1, 0) for r in right],
        "One too few each time. Entry r of the list of errors is the error at rank r, and the "
        "list begins with rank 0.",
    )
    _require(
        found != squared,
        "You compared the share of squares that is lost with the tolerance. The relative error is "
        "its root: an error of 10% is a lost share of 1%.",
    )
    _require(
        found != plain,
        "You added singular values where their squares are to be added, and taken the root of.",
    )
    for (tolerance, expected), value in zip(cases, found, strict=True):
        _require(
            value == expected,
            f"For singular values 8, 4, 2, 1 and tolerance {tolerance} the smallest rank is "
            f"{expected}; found {value}.",
        )
    _passed("the smallest rank that is good enough.")


def check_pca_scores(function: Function) -> None:
    """``function(X, r)``: X (examples, features) → PCA scores (examples, r), signs left open."""
    X = _example() + np.array([3.0, -2.0, 0.0, 5.0])
    answer = _call(function, X.copy(), 2)
    if _not_attempted(answer):
        return
    centred = X - X.mean(axis=0)
    U, s, Vt = np.linalg.svd(centred, full_matrices=False)
    found = np.abs(_array(answer, (5, 2), "The scores of 5 examples at r = 2"))
    U0, s0, _ = np.linalg.svd(X, full_matrices=False)
    by_row = X - X.mean(axis=1, keepdims=True)
    Ur, sr, _ = np.linalg.svd(by_row, full_matrices=False)
    _require(
        not _close(found, np.abs(U0[:, :2] * s0[:2])),
        "You forgot to subtract the mean. Without it the first direction points at the average "
        "example, and this is TruncatedSVD, not PCA.",
    )
    _require(
        not _close(found, np.abs(Ur[:, :2] * sr[:2])),
        "You subtracted each example's own mean. PCA subtracts each feature's mean over the "
        "examples: X.mean(axis=0).",
    )
    _require(
        not _close(found, np.abs(U[:, :2])),
        "These are the columns of U, all of length one. Scores carry the size too: multiply by s.",
    )
    _require(
        not _close(found, np.abs(X @ Vt[:2].T)),
        "You found the directions from the centred data, then projected the data with its mean. "
        "Project the centred data.",
    )
    _require(_close(found, np.abs(U[:, :2] * s[:2]), 10), "These are not the first two PCA scores.")
    _passed("PCA is the truncated SVD of the centred data.")


def check_leading_triplet(function: Function) -> None:
    """``function(X)``: X (m, n) → (u, sigma, v), the leading singular triplet, signs left open."""
    X = _example()
    answer = _call(function, X.copy())
    if _not_attempted(answer):
        return
    _require(
        isinstance(answer, (tuple, list)) and len(answer) == 3,
        "Return three things, in this order: u, sigma, v.",
    )
    _require(np.ndim(answer[1]) == 0, "Return u, sigma, v in this order: sigma is one number.")
    u, sigma, v = _array(answer[0], (5,), "u"), float(answer[1]), _array(answer[2], (4,), "v")
    _require(
        np.isfinite(u).all() and np.isfinite(sigma) and np.isfinite(v).all(),
        "Your vectors grew until they overflowed. Divide by the length after every multiplication.",
    )
    _require(
        not np.isclose(sigma, 64),
        "64 is sigma squared: one round, by X and by its transpose, stretches twice. Take |X v|.",
    )
    _require(
        np.isclose(np.linalg.norm(v), 1) and np.isclose(np.linalg.norm(u), 1),
        "u and v must have length one; all of the size belongs to sigma. "
        f"Found lengths {np.linalg.norm(u):.4g} and {np.linalg.norm(v):.4g}.",
    )
    _require(
        np.isclose(sigma, 8, rtol=1e-6),
        f"The leading singular value is 8; found {sigma:.6g}. If it is a little less, go round "
        "more often.",
    )
    _require(
        np.allclose(X @ v, sigma * u, atol=1e-4),
        "X v must be sigma times u, sign included: compute u from the last v, as X v / |X v|.",
    )
    _require(
        np.allclose(X.T @ u, sigma * v, atol=1e-3),
        "Xᵀ u is not sigma times v: v has not settled yet. Go round more often.",
    )
    _passed("to and fro through X, and the largest direction takes over.")


# Chapter 4


def _factors(d_out: int = 5, d_in: int = 7, r: int = 2) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(4)
    return rng.normal(size=(d_out, d_in)), rng.normal(size=(r, d_in)), rng.normal(size=(d_out, r))


def check_lora_gradients(function: Function) -> None:
    """Chapter 4: ``function(G, A, B, scale)`` gives the gradients of A and of B, in this order.

    Raises AssertionError where the answer is wrong; the message says what was probably mixed up.
    """
    G, A, B = _factors()
    scale = 3.0
    answer = _call(function, G, A, B, scale)
    if _not_attempted(answer):
        return
    assert isinstance(answer, (tuple, list)) and len(answer) == 2, (
        "return two arrays: the gradient of A and the gradient of B"
    )
    grad_a, grad_b = (np.asarray(part, float) for part in answer)
    right_a, right_b = scale * B.T @ G, scale * G @ A.T
    if grad_a.shape == B.shape and grad_b.shape == A.shape:
        raise AssertionError("the gradient of A comes first: it has the shape of A, (r, d_in)")
    for name, got, right in (("A", grad_a, right_a), ("B", grad_b, right_b)):
        assert got.shape == right.shape, (
            f"the gradient of {name} must have the shape of {name}, {right.shape}, "
            f"but has {got.shape}: which of the factors meets G, and which is transposed?"
        )
        assert not np.allclose(got, right / scale), (
            f"the gradient of {name} lacks the factor s: ΔW = s·B·A, so the chain rule brings it in"
        )
        assert not np.allclose(got, right * scale), (
            f"the gradient of {name} has the factor s twice; G is ∂L/∂W and knows nothing of s"
        )
        assert not np.allclose(got, -right), (
            f"the gradient of {name} has the wrong sign; it points uphill, and a step subtracts it"
        )
        assert np.allclose(got, right), (
            f"the gradient of {name} is not right: A sees G through B, and B sees it through A"
        )
    _passed("each factor sees the full gradient through the other one")


def check_floor(function: Function) -> None:
    """Chapter 4: ``function(D, r)`` gives the smallest loss that an update of rank r can reach."""
    D = _factors(6, 5)[0]
    sigma = np.linalg.svd(D, compute_uv=False)
    answers = {r: _call(function, D, r) for r in (0, 1, 3, 5)}
    if _not_attempted(answers[1]):
        return
    answers = {r: float(value) for r, value in answers.items()}
    square = sigma**2

    def same(expected: Callable[[int], float]) -> bool:
        return all(np.isclose(value, expected(r)) for r, value in answers.items())

    assert not same(lambda r: sigma[r:].sum()), (
        "you added up the singular values that are left; the loss is a squared norm, so square them"
    )
    assert not same(lambda r: np.sqrt(square[r:].sum())), (
        "you returned the Frobenius norm; the loss is its square"
    )
    assert not same(lambda r: square[:r].sum()), (
        "you added up what rank r captures; the floor is what it leaves over"
    )
    assert not same(lambda r: square[r + 1 :].sum()), (
        "one singular value too many is gone: Python counts from 0, so the rest begins at s[r]"
    )
    assert not same(lambda r: square[r] if r < len(square) else 0.0), (
        "you returned the square of the largest singular value that is left, which is the error "
        "in the spectral norm; the Frobenius norm adds up all that are left"
    )
    assert same(lambda r: square[r:].sum()), (
        "the floor is the sum of the squared singular values of D after the first r"
    )
    _passed("the floor is what the truncated SVD leaves over")


def check_weighted_floor(function: Function) -> None:
    """Chapter 4: ``function(D, X, r)`` gives the floor of the change D on the inputs X (n, d)."""
    rng = np.random.default_rng(44)
    D = rng.normal(size=(6, 6))
    X = rng.normal(size=(40, 6)) @ np.diag([5, 2, 1, 0.5, 0.1, 0.01]) + 1.0

    def floor(matrix: np.ndarray, r: int) -> float:
        return float((np.linalg.svd(matrix, compute_uv=False)[r:] ** 2).sum())

    answers = {r: _call(function, D, X, r) for r in (0, 1, 2, 4)}
    if _not_attempted(answers[1]):
        return
    answers = {r: float(value) for r, value in answers.items()}

    def same(matrix: np.ndarray) -> bool:
        return all(np.isclose(value, floor(matrix, r)) for r, value in answers.items())

    seen = X @ D.T
    assert not same(D), "you did not use X: this is the floor for inputs that are noise"
    assert not same(seen), (
        "you added up the error over the inputs; the loss is the average, so divide X by √n"
    )
    assert not same(seen / len(X)), (
        "you divided by n before squaring; to average the squared error, divide X by √n"
    )
    assert not same(D @ (X.T @ X / len(X))), (
        "you multiplied D by Σ; the loss has Σ once and squares, so D meets its square root"
    )
    centred = X - X.mean(0)
    assert not same(centred @ D.T / np.sqrt(len(X))), (
        "you took the mean of the inputs away; the layer gets the inputs as they are"
    )
    assert not same(X @ D / np.sqrt(len(X))), (
        "D is transposed: inputs are rows of X, so the outputs of the change are X @ D.T"
    )
    assert same(seen / np.sqrt(len(X))), (
        "use the singular values of D Σ^½, which are those of X @ D.T / √n, after the first r"
    )
    _passed("what counts are the singular values of the change as the inputs see it")


def check_balance(function: Function) -> None:
    """Chapter 4: ``function(B, A)`` gives factors with the same product and BᵀB = AAᵀ."""
    _, A, B = _factors(8, 6, 3)
    A = 10 * A
    answer = _call(function, B.copy(), A.copy())
    if _not_attempted(answer):
        return
    assert isinstance(answer, (tuple, list)) and len(answer) == 2, "return the new B and the new A"
    new_b, new_a = (np.asarray(part, float) for part in answer)
    assert not (new_b.shape == A.shape and new_a.shape == B.shape), "return B first, then A"
    assert new_b.shape == B.shape and new_a.shape == A.shape, (
        f"the shapes must stay {B.shape} and {A.shape}, but are {new_b.shape} and {new_a.shape}; "
        "keep the first r singular values only"
    )
    assert np.allclose(new_b @ new_a, B @ A), (
        "the product has changed: what one factor is multiplied by, the other must be divided by"
    )
    left, right = new_b.T @ new_b, new_a @ new_a.T
    assert not np.allclose(left, np.eye(3)) and not np.allclose(right, np.eye(3)), (
        "one factor has all the singular values and the other none; give each their square roots"
    )
    assert np.allclose(left, right), (
        "BᵀB and AAᵀ still differ; equal norms are not enough, the matrices must be equal"
    )
    _passed("one product, and the pair of factors that shares it evenly")


def check_many_examples(function: Function) -> None:
    """Chapter 4: ``function(r)`` gives the tuned errors of rank r with 768 examples."""
    answers = {r: _call(function, r) for r in (4, 6, 12, 48)}
    if _not_attempted(answers[4]):
        return
    errors = {r: np.asarray(answer, float) for r, answer in answers.items()}
    for r, error in errors.items():
        assert error.ndim == 1 and len(error) >= 3, (
            f"rank {r}: return one error for each draw of the data, not {error.shape}"
        )
    means = {r: float(error.mean()) for r, error in errors.items()}
    assert means[48] < 2, (
        f"at rank 48 the error is {means[48]:.1f}, as with 96 examples: draw the training data "
        "again with n=768, and leave the validation data as they are"
    )
    assert means[6] == min(means.values()), (
        "rank 6 should be best: the data can now carry all six directions; did you return the "
        "tuned errors, or those after the last step?"
    )
    _passed("with more examples the best rank moves to the true one")


# Chapter 6


def check_relative_change(function: Function) -> None:
    """Chapter 6: ``function(before, after)`` gives ‖after − before‖ / ‖before‖, Frobenius norms."""
    before, after = np.array([[3.0, 0.0], [0.0, 4.0]]), np.array([[3.0, 3.0], [0.0, 2.0]])
    change = after - before
    answer = _call(function, before.copy(), after.copy())
    if _not_attempted(answer):
        return
    found = float(_array(answer, (), "The relative size, one number,"))
    size, whole = np.linalg.norm(change), np.linalg.norm(before)
    _require(
        not _close(found, size),
        "this is the size of the change by itself; divide by the size of the matrix before",
    )
    _require(
        not _close(found, size / np.linalg.norm(after)),
        "you divided by the size of the matrix after; the unit is the matrix before",
    )
    _require(
        not _close(found, (size / whole) ** 2),
        "you forgot the root: this is the ratio of the energies, not of the sizes",
    )
    _require(
        not _close(found, (np.linalg.norm(after) - whole) / whole)
        and not _close(found, abs(np.linalg.norm(after) - whole) / whole),
        "you subtracted the sizes; a matrix can change a great deal and keep its size. Subtract "
        "the matrices first",
    )
    _require(
        not _close(found, np.linalg.norm(change, 2) / np.linalg.norm(before, 2)),
        "you used the spectral norm; np.linalg.norm without a second argument is Frobenius",
    )
    _require(_close(found, size / whole), f"for the example it is {size / whole:.4f}, not {found}")
    _passed("the size of the change, with the matrix before as the unit")


def check_rank_for_share(function: Function) -> None:
    """Chapter 6: ``function(X, share)`` gives the smallest rank that holds a share of energy."""
    X = _example()  # singular values 8, 4, 2, 1: energies 64, 16, 4, 1 of 85
    cases = ((0.5, 1), (0.6, 1), (0.9, 2), (0.97, 3), (0.995, 4))
    found = [_call(function, X.copy(), share) for share, _ in cases]
    if _not_attempted(found[0]):
        return
    found = [int(value) for value in found]
    _require(
        found != [1, 2, 3, 4, 4],
        "you added the singular values; energy is their square. A sum that is not squared gives "
        "small directions too much weight",
    )
    _require(
        found != [right - 1 for _, right in cases],
        "one too few each time: the entry of a cumulative sum with index i belongs to i + 1 "
        "directions",
    )
    _require(
        found != [right + 1 for _, right in cases]
        and found != [min(right + 1, 4) for _, right in cases],
        "one too many each time: the share of the first entry of a cumulative sum is that of one "
        "direction, not of none",
    )
    for (share, right), value in zip(cases, found, strict=True):
        _require(
            value == right,
            f"for singular values 8, 4, 2, 1 a share of {share} takes {right} directions; "
            f"found {value}",
        )
    _passed("the smallest number of directions that holds the share")


def check_truncate_update(function: Function) -> None:
    """Chapter 6: ``function(before, after, r)``: W₀ plus the rank-r part of each change."""
    rng = np.random.default_rng(6)
    before = {"q_proj": rng.normal(size=(5, 4)), "up_proj": rng.normal(size=(7, 4))}
    after = {name: W + rng.normal(size=W.shape) / 2 for name, W in before.items()}
    inputs = {name: W.copy() for name, W in before.items()}
    answer = _call(function, inputs, {name: W.copy() for name, W in after.items()}, 2)
    if _not_attempted(answer):
        return
    _require(
        isinstance(answer, dict) and set(answer) == set(before),
        "return a dictionary with the same keys as before",
    )

    def cut(X: np.ndarray, part: slice) -> np.ndarray:
        U, s, Vt = np.linalg.svd(X, full_matrices=False)
        return (U[:, part] * s[part]) @ Vt[part]

    for name, W in before.items():
        found, change = _array(answer[name], W.shape, f"The new {name}"), after[name] - W
        _require(
            np.array_equal(inputs[name], W),
            "you changed the matrices that you were given; work on new ones",
        )
        _require(
            not _close(found, cut(after[name], slice(2))),
            "you truncated the weight after training. The weight has a spectrum that decays "
            "slowly; it is the change that is nearly of low rank",
        )
        _require(
            not _close(found, cut(change, slice(2))),
            "this is the truncated change alone; add it to the weight before",
        )
        _require(
            not _close(found, after[name] + cut(change, slice(2))),
            "you added the truncated change to the weight after; add it to the weight before",
        )
        _require(
            not _close(found, W + cut(change, slice(2, None))),
            "you kept the directions after the first r; keep the first r",
        )
        _require(
            not _close(found, W - cut(change, slice(2))),
            "the sign is wrong: the change is after − before",
        )
        _require(_close(found, W + cut(change, slice(2))), f"the new {name} is not right")
    _passed("the weight before, and the r largest directions of its change")


def check_stored_numbers(function: Function) -> None:
    """Chapter 6: ``function(shapes, r)`` counts the numbers of truncated changes."""
    shapes = [(48, 48), (192, 48), (48, 192), (10, 4)]
    answer = _call(function, list(shapes), 8)
    if _not_attempted(answer):
        return
    factors = sum(8 * (m + n) for m, n in shapes)
    right = factors - 8 * 14 + 40
    _require(
        answer != factors,
        "you count two factors for the (10, 4) matrix too, 112 numbers where the matrix has 40: "
        "above the break-even rank send the change itself",
    )
    _require(
        answer != sum(m * n for m, n in shapes),
        "this is the size of the whole changes; two factors of rank r hold r(m + n) numbers",
    )
    _require(
        answer != sum(min(8 * m * n, m * n) for m, n in shapes)
        and answer != sum(8 * m * n for m, n in shapes),
        "a direction costs a column and a row, m + n numbers, not m · n",
    )
    _require(
        answer == right, f"for the four example shapes at rank 8 it is {right}; found {answer}"
    )
    for r in (0, 1, 24, 48):
        expected = sum(min(r * (m + n), m * n) for m, n in shapes)
        found = _call(function, list(shapes), r)
        _require(found == expected, f"at rank {r} it is {expected}; found {found}")
    _passed("two factors where they save, the change itself where they do not")


def check_chance_share(function: Function) -> None:
    """Chapter 6: ``function(m, n, r)``: the share of r directions in a random matrix."""
    answer = _call(function, 48, 48, 8)
    if _not_attempted(answer):
        return
    found = float(answer)

    def near(value: float) -> bool:
        return abs(found - value) < 0.012

    X = np.random.default_rng(66).standard_normal((60, 48, 48))
    s = np.linalg.svd(X, compute_uv=False)

    def share(s: np.ndarray) -> float:
        return float((s[:, :8].sum(1) / s.sum(1)).mean())

    uniform = np.linalg.svd(np.random.default_rng(66).random((60, 48, 48)), compute_uv=False)
    _require(
        not near(8 / 48),
        "this is r / 48, the share if all directions were equal. Sorted, the first ones are the "
        "largest even in pure noise",
    )
    _require(not near(share(s)), "you added the singular values; energy is their square")
    _require(
        not near(share(uniform**2)),
        "your entries are all positive: their mean is one large direction by itself. Draw them "
        "from a normal distribution around zero",
    )
    _require(
        near(share(s**2)), f"for (48, 48) and r = 8 it is about {share(s**2):.2f}, not {found}"
    )
    wide = _call(function, 192, 48, 8)
    tall = np.random.default_rng(67).standard_normal((40, 192, 48))
    right = share(np.linalg.svd(tall, compute_uv=False) ** 2)
    _require(
        abs(float(wide) - right) < 0.012, f"for (192, 48) it is about {right:.2f}; found {wide}"
    )
    _passed("chance alone gives the first directions more than their part")


# Chapter 7


def check_lora_forward(function: Function) -> None:
    """``function(x, W0, b, A, B, alpha)`` → x W₀ᵀ + b + (alpha / r) x Aᵀ Bᵀ: (n, d_out)."""
    rng = np.random.default_rng(0)
    # Square, so that a pair on its side does not fail by its shape.
    for d_in, d_out, r, alpha in ((5, 5, 2, 3.0), (6, 4, 3, 1.5)):
        x, b = rng.normal(size=(7, d_in)), rng.normal(size=d_out)
        W0, A, B = (rng.normal(size=s) for s in ((d_out, d_in), (r, d_in), (d_out, r)))
        try:
            answer = _call(function, x.copy(), W0.copy(), b.copy(), A.copy(), B.copy(), alpha)
        except ValueError as error:
            raise AssertionError(
                f"Your shapes do not fit ({error}). x holds examples as rows, so the formula for a "
                "column, W0 x + B A x, becomes x W0ᵀ + x Aᵀ Bᵀ."
            ) from None
        if _not_attempted(answer):
            return
        found = np.asarray(answer, dtype=float)
        base, update = x @ W0.T + b, x @ A.T @ B.T
        _require(
            found.shape != (d_out, 7) or d_out == 7,
            "Your answer lies on its side: examples are rows, so it must have shape (n, d_out).",
        )
        found = _array(found, (7, d_out), "The output")
        _require(
            not _close(found, base + update),
            "The scale is missing: the update counts alpha / r times, and r is the number of rows "
            "of A.",
        )
        _require(
            not _close(found, base + alpha * update),
            "You multiply by alpha. The paper and PEFT divide it by the rank: alpha / r.",
        )
        _require(
            not _close(found, base + alpha / r**0.5 * update),
            "You divide alpha by the square root of r. That is rsLoRA; this chapter divides by r.",
        )
        _require(
            not _close(found, alpha / r * update) and not _close(found, base),
            "One of the two paths is missing: the output of the frozen layer, bias included, and "
            "the update are added.",
        )
        _require(
            not _close(found, base - b + alpha / r * update),
            "The bias of the frozen layer is missing.",
        )
        if d_in == d_out:
            _require(
                not _close(found, base + alpha / r * (x @ B @ A)),
                "The update lies on its side: you computed x B A. For a row x the input meets A "
                "first: x Aᵀ Bᵀ.",
            )
            _require(
                not _close(found, x @ W0 + b + alpha / r * update),
                "The frozen weight lies on its side: W0 has shape (d_out, d_in), so a row x meets "
                "its transpose.",
            )
        _require(
            _close(found, base + alpha / r * update),
            "The shape is right, the numbers are not: x W0ᵀ + b + alpha / r · x Aᵀ Bᵀ is wanted.",
        )
    _passed("A meets the input, B makes the output, and the scale is alpha / r.")


def check_mean_adapters(function: Function) -> None:
    """``function(A1, B1, A2, B2)`` → (A, B) with B A = (B1 A1 + B2 A2) / 2."""
    rng = np.random.default_rng(1)
    for r1, r2 in ((2, 2), (2, 3)):
        A1, A2, B1, B2 = (rng.normal(size=s) for s in ((r1, 6), (r2, 6), (5, r1), (5, r2)))
        try:
            answer = _call(function, A1.copy(), B1.copy(), A2.copy(), B2.copy())
        except ValueError as error:
            raise AssertionError(
                f"With ranks {r1} and {r2} your function fails: {error}. Factors of different "
                "ranks cannot be added; they can be put side by side."
            ) from None
        if _not_attempted(answer):
            return
        A, B = _pair(answer, 6, 5)
        found, right = B @ A, (B1 @ A1 + B2 @ A2) / 2
        if r1 == r2:
            _require(
                not _close(found, (B1 + B2) @ (A1 + A2) / 4),
                "You averaged the factors. The product of the means also holds B1 A2 and B2 A1, "
                "which belong to neither adapter.",
            )
        _require(
            len(A) == r1 + r2,
            f"Your factors have rank {len(A)}; put side by side they have r1 + r2 = {r1 + r2}.",
        )
        _require(not _close(found, 2 * right), "That is the sum of the two updates; halve it once.")
        _require(
            not _close(found, right / 2),
            "You halved both factors, so the product is a quarter of the sum; halve one of them.",
        )
        _require(_close(found, right), "B A should be the mean of B1 A1 and B2 A2, and is not.")
    _passed("side by side the factors add up the updates, at rank r1 + r2.")


def _pair(answer: Any, d_in: int, d_out: int) -> tuple[np.ndarray, np.ndarray]:
    """The answer as factors A (r, d_in) and B (d_out, r)."""
    _require(
        isinstance(answer, (tuple, list)) and len(answer) == 2,
        "Return the two factors, A and B, not their product.",
    )
    A, B = (np.asarray(factor, dtype=float) for factor in answer)
    _require(
        A.ndim == 2 and B.ndim == 2,
        f"Both factors must be matrices; found shapes {A.shape} and {B.shape}.",
    )
    _require(
        not (A.shape[0] == d_out and B.shape[1] == d_in and A.shape[1] == B.shape[0]),
        "You return B first and A second. The exercise asks for A, then B.",
    )
    _require(
        A.shape[1] == d_in and B.shape[0] == d_out and A.shape[0] == B.shape[1],
        f"A must be (r, {d_in}) and B ({d_out}, r); found {A.shape} and {B.shape}.",
    )
    return A, B


def check_orthonormal_b(function: Function) -> None:
    """``function(A, B)`` → (A, B) with the same product and orthonormal columns of B."""
    rng = np.random.default_rng(2)
    A, B = rng.normal(size=(3, 6)), rng.normal(size=(8, 3))
    answer = _call(function, A.copy(), B.copy())
    if _not_attempted(answer):
        return
    new_A, new_B = _pair(answer, 6, 8)
    orthonormal = _close(new_B.T @ new_B, np.eye(new_B.shape[1]))
    _require(
        not (orthonormal and _close(new_A, A)),
        "B is orthonormal now, but A is the old one, so the product has changed: what you took "
        "out of B must go into A.",
    )
    _require(
        orthonormal or not _close(new_B @ new_B.T, np.eye(8)),
        "The rows of your B are orthonormal; the exercise asks for its columns, Bᵀ B = I.",
    )
    _require(
        orthonormal,
        "The columns of your B are not orthonormal: Bᵀ B differs from I. Dividing each column by "
        "its length is not enough, since columns must be at right angles too.",
    )
    _require(
        _close(new_B @ new_A, B @ A),
        "The product has changed. With B = Q R the new A is R A, in this order.",
    )
    _passed("the same update from another pair: factors mean nothing by themselves.")


def check_strict_load(function: Function) -> None:
    """``function(model, file)`` → the file's values; ValueError names what does not fit."""
    model = {"q.A": np.zeros((2, 4)), "q.B": np.zeros((3, 2))}
    file = {"q.A": np.ones((2, 4)), "q.B": np.full((3, 2), 2.0)}
    answer = _call(function, dict(model), dict(file))
    if _not_attempted(answer):
        return
    _require(
        isinstance(answer, dict) and set(answer) == set(model),
        "Return a dictionary with the model's names.",
    )
    _require(
        all(_close(answer[name], file[name]) for name in model),
        "A file that fits must give back the file's values under the model's names.",
    )
    given = dict(model)
    function(given, dict(file))
    _require(
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
            _require(
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
    _passed("what does not fit is refused by name, and nothing is half loaded.")


def check_lora_embedding(function: Function) -> None:
    """``function(ids, W0, A, B, scale)`` → W0[ids] + scale · (B A[:, ids])ᵀ, of shape (…, d)."""
    rng = np.random.default_rng(3)
    W0, A, B = (rng.normal(size=s) for s in ((5, 5), (2, 5), (5, 2)))
    for ids in (np.array([3, 0, 3]), np.array([[1, 4], [2, 2], [0, 1]])):
        try:
            answer = _call(function, ids.copy(), W0.copy(), A.copy(), B.copy(), 0.5)
        except ValueError as error:
            raise AssertionError(
                f"Your shapes do not fit ({error}). A[:, ids] has the r numbers of a token along "
                "its first axis. For ids of several axes .T turns all of them round: move only "
                "the first to the end, and multiply by Bᵀ."
            ) from None
        if _not_attempted(answer):
            return
        found = np.asarray(answer, dtype=float)
        table = (B @ A).T
        right = W0[ids] + 0.5 * table[ids]
        if found.shape == right.shape:
            _require(
                not _close(found, W0[ids] + table[ids]), "The scale is missing from the update."
            )
            _require(
                not _close(found, W0[ids] + 0.5 * (B @ A)[ids]),
                "You read rows of B A. A has a column for each token, so the update of token i is "
                "B times column i of A: a row of the transpose.",
            )
            _require(not _close(found, W0[ids]), "The update is missing.")
        _require(
            found.shape == right.shape,
            f"For ids of shape {ids.shape} the answer must have shape {right.shape}, ids first "
            f"and the {W0.shape[1]} numbers of a row last; found {found.shape}.",
        )
        _require(_close(found, right), "Row i should be W0[i] plus scale times B times A[:, i].")
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
    _require(
        found.shape == (3, 200_000) and _close(found, np.ones((3, 200_000))),
        "On a large vocabulary the numbers are wrong.",
    )
    _passed("a read costs one column of A and one small product.")


# Chapter 8


def check_lora_count(function: Function) -> None:
    """Chapter 8: ``function(shapes, r)`` counts what LoRA trains on layers of these shapes."""
    shapes, r = [(48, 48), (192, 48), (48, 192), (10, 48)], 4
    answer = _call(function, shapes, r)
    if _not_attempted(answer):
        return

    def same(count: Callable[[int, int], float]) -> bool:
        return float(answer) == sum(count(d_out, d_in) for d_out, d_in in shapes)

    assert not same(lambda d_out, d_in: d_out * d_in), (
        "you counted the frozen matrices; LoRA trains their factors A and B instead"
    )
    assert not same(lambda d_out, d_in: r * d_out * d_in), (
        "you multiplied by the rank; each rank adds one column to B and one row to A, "
        "so d_out + d_in numbers"
    )
    assert not same(lambda d_out, d_in: d_out + d_in), "you left out the rank: this is rank 1"
    assert not same(lambda d_out, d_in: r * d_in), "you counted A and forgot B, of shape (d_out, r)"
    assert not same(lambda d_out, d_in: r * d_out), "you counted B and forgot A, of shape (r, d_in)"
    assert not same(lambda d_out, d_in: r * (d_out + d_in) + d_out), (
        "you added the biases; they belong to the frozen layer"
    )
    assert same(lambda d_out, d_in: r * (d_out + d_in)), (
        "the count is r·(d_out + d_in) for each layer, added up over the layers"
    )
    _passed("r·(d_in + d_out) for each adapted layer")


def _tuning_rows() -> list[dict[str, Any]]:
    """Four rates; each wrong way of choosing picks another one than the right way."""
    table = {  # rate: (training, validation, test) loss of two seeds
        0.001: ((1.0, 1.0), (1.2, 1.2), (0.7, 0.7)),  # best on test data
        0.01: ((0.5, 0.5), (0.9, 1.0), (1.0, 1.0)),  # right: best mean on validation data
        0.03: ((0.1, 0.1), (1.5, 1.5), (1.6, 1.6)),  # best on training data
        0.1: ((0.3, 3.0), (0.6, 0.1), (0.9, 0.9)),  # its second seed diverged
        0.02: ((0.4, 0.4), (0.8, 2.0), (1.2, 1.2)),  # best single run
    }
    return [
        {
            "lr": rate,
            "train_loss": train[seed],
            "validation_loss": validation[seed],
            "test_loss": test[seed],
            "diverged": rate == 0.1 and seed == 1,
        }
        for rate, (train, validation, test) in table.items()
        for seed in (0, 1)
    ]


def check_choose_rate(function: Function) -> None:
    """Chapter 8: ``function(rows)`` chooses the learning rate from the rows of a tuning run."""
    answer = _call(function, _tuning_rows())
    if _not_attempted(answer):
        return
    wrong = {
        0.001: "you looked at the test loss; then the test says nothing about new data any more",
        0.03: "you looked at the training loss, which is lowest where the model fits by heart",
        0.1: "one of the two runs at this rate diverged; a rate that may fail is not a choice",
        0.02: "you took the best single run; average over the seeds, or you choose good luck",
    }
    if isinstance(answer, dict):
        raise AssertionError("return the learning rate itself, not its row")
    assert float(answer) not in wrong, wrong[float(answer)]
    assert float(answer) == 0.01, f"{answer!r} is none of the rates that were tried"
    _passed("the lowest mean loss on validation data, of rates that never fail")


def check_paired_interval(function: Function) -> None:
    """Chapter 8: ``function(a, b)`` gives the mean of a − b and its 95% interval's half-width."""
    a = np.array([0.81, 0.84, 0.86, 0.83, 0.88])
    b = np.array([0.80, 0.82, 0.86, 0.80, 0.87])
    answer = _call(function, a, b)
    if _not_attempted(answer):
        return
    assert np.shape(answer) == (2,), "return two numbers: the mean difference and the half-width"
    mean, half = map(float, answer)
    d, root, t = a - b, np.sqrt(5), 2.7764451
    assert not np.isclose(mean, -d.mean()), "the difference is a − b, and you have b − a"
    assert np.isclose(mean, d.mean()), "the first number is the mean of a − b"
    spread = d.std(ddof=1)
    unpaired = t * np.sqrt(a.var(ddof=1) + b.var(ddof=1)) / root
    assert not np.isclose(half, unpaired, rtol=0.02), (
        "you added the variances of a and b as if they were unrelated; the runs share their data, "
        "so take the differences first and look at their spread"
    )
    assert not np.isclose(half, t * spread, rtol=0.02), (
        "this is the interval for one more run; for the mean of five, divide by √5"
    )
    assert not np.isclose(half, 1.96 * spread / root, rtol=0.02), (
        "1.96 is for many runs; for five the spread itself is uncertain: use Student's t, 2.78"
    )
    assert not np.isclose(half, t * d.std() / root, rtol=0.005), (
        "NumPy's std divides by n unless you say ddof=1"
    )
    assert not np.isclose(half, spread / root, rtol=0.02), (
        "this is one standard error; the 95% interval is 2.78 of them for five runs"
    )
    assert np.isclose(half, t * spread / root, rtol=0.005), (
        "the half-width is t(0.975, n − 1) · std(a − b, ddof=1) / √n"
    )
    _passed("pairing first, then Student's t")


def check_budget(function: Function, budget: int) -> None:
    """Chapter 8: ``function(model)`` adds adapters that train at most ``budget`` parameters."""
    import torch

    from minilora import count_parameters, lora_layers, lora_parameters
    from minilora.pretrained import ADDER
    from minilora.transformer import TransformerClassifier

    torch.manual_seed(0)
    model = TransformerClassifier(ADDER)
    pictures = torch.rand(4, 1, 8, 16)
    before = model(pictures).detach()
    answer = _call(function, model)
    if _not_attempted(answer):
        return
    assert isinstance(answer, torch.nn.Module), "return the model, as add_lora does"
    layers = lora_layers(answer)
    assert layers, "there is no adapter on the model; call minilora.add_lora(model, LoRAConfig(…))"
    assert torch.equal(answer(pictures).detach(), before), (
        "the adapted model does not start where the base stands; leave B (or A) at zero"
    )
    trained = {id(p) for p in lora_parameters(answer)}
    extra = [
        name for name, p in answer.named_parameters() if p.requires_grad and id(p) not in trained
    ]
    assert not extra, f"{extra[0]} is trained as well, and is no part of an adapter; freeze it"
    count = count_parameters(answer, trainable_only=True)
    assert count <= budget, (
        f"{count:,} parameters would be trained, {count - budget:,} more than the budget of "
        f"{budget:,}: lower the rank, or adapt fewer layers"
    )
    assert 2 * count >= budget, (
        f"only {count:,} parameters would be trained; spend at least half of {budget:,}"
    )
    _passed(f"{count:,} of {budget:,} parameters, on {len(layers)} layers")
