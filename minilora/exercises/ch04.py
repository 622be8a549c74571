"""Checks of chapter 4: learning a low-rank update."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minilora.exercises.tools import Function, call, not_attempted, passed


def _factors(d_out: int = 5, d_in: int = 7, r: int = 2) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(4)
    return rng.normal(size=(d_out, d_in)), rng.normal(size=(r, d_in)), rng.normal(size=(d_out, r))


def check_lora_gradients(function: Function) -> None:
    """Chapter 4: ``function(G, A, B, scale)`` gives the gradients of A and of B, in this order.

    Raises AssertionError where the answer is wrong; the message says what was probably mixed up.
    """
    G, A, B = _factors()
    scale = 3.0
    answer = call(function, G, A, B, scale)
    if not_attempted(answer):
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
    passed("each factor sees the full gradient through the other one")


def check_floor(function: Function) -> None:
    """Chapter 4: ``function(D, r)`` gives the smallest loss that an update of rank r can reach."""
    D = _factors(6, 5)[0]
    sigma = np.linalg.svd(D, compute_uv=False)
    answers = {r: call(function, D, r) for r in (0, 1, 3, 5)}
    if not_attempted(answers[1]):
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
    assert not same(lambda r: square[r:].sum() / square.sum()), (
        "you divided by the squared norm of D: that is the share that rank r leaves over; the "
        "loss is the sum itself"
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
    passed("the floor is what the truncated SVD leaves over")


def check_weighted_floor(function: Function) -> None:
    """Chapter 4: ``function(D, X, r)`` gives the floor of the change D on the inputs X (n, d)."""
    rng = np.random.default_rng(44)
    D = rng.normal(size=(6, 6))
    X = rng.normal(size=(40, 6)) @ np.diag([5, 2, 1, 0.5, 0.1, 0.01]) + 1.0

    def floor(matrix: np.ndarray, r: int) -> float:
        return float((np.linalg.svd(matrix, compute_uv=False)[r:] ** 2).sum())

    answers = {r: call(function, D, X, r) for r in (0, 1, 2, 4)}
    if not_attempted(answers[1]):
        return
    answers = {r: float(value) for r, value in answers.items()}

    def same(matrix: np.ndarray) -> bool:
        return all(np.isclose(value, floor(matrix, r)) for r, value in answers.items())

    seen = X @ D.T
    U, s, Vt = np.linalg.svd(D)

    def weighed_after(r: int) -> float:
        """What the truncated SVD of D itself leaves over on the inputs."""
        return float(((X @ (U[:, r:] * s[r:] @ Vt[r:]).T) ** 2).sum() / len(X))

    assert not all(np.isclose(value, weighed_after(r)) for r, value in answers.items()), (
        "you cut the SVD of D itself and weighed what was left with the inputs: the grey curve of "
        "the chapter, not the floor. Multiply D by Σ^½ first and cut then, for it is the inputs "
        "that say which directions matter"
    )
    total = floor(seen, 0)
    assert not all(np.isclose(v, floor(seen, r) / total) for r, v in answers.items()), (
        "you divided by the error of the frozen layer: that is the share left over, which the "
        "chapter draws; the loss is the average squared error itself"
    )
    root = np.linalg.cholesky(X.T @ X / len(X))
    assert not same(D @ root.T), (
        "the Cholesky factor is the wrong way round: Σ = L Lᵀ, and tr(DΣDᵀ) is the squared norm "
        "of D L, not of D Lᵀ"
    )
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
    passed("what counts are singular values of the change as inputs see it")


def check_balance(function: Function) -> None:
    """Chapter 4: ``function(B, A)`` gives factors with the same product and BᵀB = AAᵀ."""
    _, A, B = _factors(8, 6, 3)
    A = 10 * A
    answer = call(function, B.copy(), A.copy())
    if not_attempted(answer):
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
    passed("one product, and the pair of factors that shares it evenly")


def check_many_examples(function: Function) -> None:
    """Chapter 4: ``function(r)`` gives the tuned errors of rank r with 768 examples."""
    answers = {r: call(function, r) for r in (4, 6, 12, 48)}
    if not_attempted(answers[4]):
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
    assert means[48] < 0.67, (
        f"at rank 48 the error is {means[48]:.2f}, as after the last step at a fixed learning "
        "rate: return the tuned errors, the second of the two that few_examples gives"
    )
    assert means[6] == min(means.values()), (
        "rank 6 should be best: 768 examples can carry all six directions. Does your function "
        "train at the rank it is given?"
    )
    passed("with more examples the best rank moves to the true one")
