"""Checks of chapter 3: what a list of singular values says."""

from __future__ import annotations

from contextlib import ExitStack
from unittest import mock

import numpy as np

from minilora.exercises.tools import (
    Function,
    array,
    call,
    close,
    example,
    not_attempted,
    passed,
    require,
)


def check_stable_rank(function: Function) -> None:
    """``function(X)``: X (m, n) → ‖X‖_F² / ‖X‖₂²."""
    X = example()  # 8, 4, 2, 1: squares 64, 16, 4, 1
    answer = call(function, X.copy())
    if not_attempted(answer):
        return
    found = array(answer, (), "The stable rank")
    require(
        not close(found, (85 / 64) ** 0.5),
        "You divided the norms. The stable rank is the ratio of their squares.",
    )
    require(
        not close(found, 64 / 85) and not close(found, (64 / 85) ** 0.5),
        "Upside down: the sum of all squares is divided by the largest, so it is at least 1.",
    )
    require(
        not close(found, 85 / 8),
        "You squared ‖X‖_F only. Both norms are squared, above and below: the ratio has no unit.",
    )
    require(
        not close(found, 85**0.5 / 64),
        "You squared ‖X‖₂ only. Both norms are squared, above and below: the ratio has no unit.",
    )
    require(
        not close(found, 15 / 8),
        "You added the singular values. Their squares are added, over the largest square.",
    )
    require(
        not close(found, 4),
        "That is the rank itself, which counts every piece as one, however small.",
    )
    by_entry = (X**2).sum() / np.abs(X).max() ** 2
    require(
        not close(found, by_entry),
        "You divided by the largest entry. ‖X‖₂ is the largest singular value: "
        "np.linalg.norm(X, 2).",
    )
    require(close(found, 85 / 64), f"For singular values 8, 4, 2, 1 it is 85/64; found {found}.")
    for k in (1, 3):
        value = array(call(function, -2 * np.eye(5)[:, :k]), (), "The stable rank")
        require(close(value, k), f"For {k} equal singular values it is {k}; found {value}.")
    passed("how many times the largest square goes into the sum of all.")


def check_effective_rank(function: Function) -> None:
    """``function(s)``: singular values (k,) → exp(−Σ p log p), p = s / Σ s, 0 log 0 = 0."""
    s = np.array([6.0, 3.0, 1.0])
    answer = call(function, s.copy())
    if not_attempted(answer):
        return
    found = array(answer, (), "The effective rank")
    p, squared = s / s.sum(), s**2 / (s**2).sum()
    entropy = -(p * np.log(p)).sum()
    require(
        not close(found, entropy),
        "That is the entropy, a logarithm. Its exponential is the number of sharers.",
    )
    require(
        not close(found, np.exp(-entropy)),
        "The sign is lost: the logarithm of a share is negative, and the entropy is minus the sum.",
    )
    require(
        not close(found, np.exp(-(squared * np.log(squared)).sum())),
        "Your shares are those of the squares. The effective rank takes the shares of the singular "
        "values themselves; it is the stable rank that squares.",
    )
    require(
        not close(found, np.exp(entropy / np.log(2))),
        "You took the logarithm to base 2 and then exp. Use one base for both: np.log and np.exp.",
    )
    require(
        not close(found, 2**entropy),
        "You took the natural logarithm and then a power of 2. Use one base for both: np.log and "
        "np.exp.",
    )
    require(
        not close(found, np.exp(-(s * np.log(s)).sum())),
        "Divide by the sum first: the p are shares, and add up to 1.",
    )
    require(close(found, np.exp(entropy)), f"For 6, 3, 1 it is {np.exp(entropy):.6f}; got {found}.")
    with np.errstate(all="ignore"):
        zeros = np.asarray(call(function, np.array([5.0, 5.0, 0.0])), dtype=float)
    require(
        not np.isnan(zeros),
        "With a zero among the values you get NaN: 0 · log 0 is computed as 0 · (−∞). Leave the "
        "zeros out of the sum.",
    )
    require(close(zeros, 2), f"For 5, 5, 0 two share equally, so it is 2; found {zeros}.")
    passed("the number of equal sharers that would be as undecided.")


def check_worth_keeping(function: Function) -> None:
    """``function(X, nu)``: square X (n, n), known white noise → how many σᵢ > 4/√3·√n·nu."""
    n, nu = 100, 0.5
    unit = np.sqrt(n) * nu
    rng = np.random.default_rng(4)
    U, V = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    # Singular values as they would be seen: three above the cut, three between the edge of the
    # noise at 2 and the cut at 2.31, five between √3 and 2.
    seen = np.concatenate([[5.0, 3.0, 2.5], [2.25, 2.2, 2.1], np.linspace(1.98, 1.75, 5)])
    s = unit * np.concatenate([seen, np.linspace(1.7, 0.01, n - len(seen))])
    X = (U * s) @ V.T
    answer = call(function, X.copy(), nu)
    if not_attempted(answer):
        return
    found = int(array(answer, (), "The number of pieces"))
    require(
        found != 6,
        "You counted everything beyond the edge of the noise, 2√n·nu. Between there and the cut "
        "a piece can be seen, and keeping it does more harm than good.",
    )
    require(
        found != 11,
        "You compared what is seen with √3. That is the size of the planted piece; it is seen at "
        "√3 + 1/√3 = 4/√3.",
    )
    without_root = int((s > 4 / np.sqrt(3) * n * nu).sum())
    without_sides = int((s > 4 / np.sqrt(3) * nu).sum())
    without_nu = int((s > 4 / np.sqrt(3) * np.sqrt(n)).sum())
    require(
        found != without_sides,
        "The side is missing: noise in n rows adds up to singular values of the size of √n·nu.",
    )
    require(
        found != without_nu,
        "The noise's nu is missing, or taken to be 1.",
    )
    require(
        found != without_root,
        "Too strict by far: the singular values of noise grow with √n, not with n.",
    )
    require(
        found != int((s**2 > 4 / np.sqrt(3) * unit).sum()),
        "You compared the squares of the singular values with the cut. It is meant for the "
        "singular values themselves.",
    )
    by_median = int((s > 2.858 * np.median(s)).sum())
    require(
        found != by_median,
        "You took the noise from the median of the singular values. Here nu is given: use it.",
    )
    require(found == 3, f"Three pieces of this table are above 4/√3·√n·nu; you count {found}.")
    scaled = call(function, 10 * X, 10 * nu)
    require(scaled == 3, "Another unit for the table and the noise must not change the count.")
    small = np.diag([2.4, 2.0, 1.0, 0.5]) * 2  # √n = 2
    require(
        call(function, small, 1.0) == 1, "On a 4 by 4 table the count is wrong: use its own side."
    )
    passed("kept where keeping costs less than dropping.")


def check_blur_singular_values(function: Function) -> None:
    """``function(kernel, n)`` → the n singular values of the circular convolution, falling."""
    kernel, n = np.array([0.5, 0.3, -0.2]), 8
    answer = call(function, kernel.copy(), n)
    if not_attempted(answer):
        return
    found = np.asarray(answer)
    transform = np.fft.fft(kernel, n)
    right = np.sort(np.abs(transform))[::-1]
    require(
        found.shape != (3,),
        "You have three values, one for each weight of the blur. Pad the list with zeros to n "
        "first: np.fft.fft(kernel, n).",
    )
    require(
        found.shape != (n // 2 + 1,),
        "rfft leaves out the second half of the waves, whose sizes repeat. All n are wanted.",
    )
    require(
        not np.iscomplexobj(found),
        "The transform is complex. A singular value is how much a wave is stretched: its size, "
        "np.abs.",
    )
    found = array(found, (n,), "The singular values")
    require(
        not close(found, np.sort(transform.real)[::-1]),
        "You took the real part. How much a wave is stretched is the size of the complex number.",
    )
    require(
        not close(found, np.abs(transform)),
        "The values are right and not yet sorted: from large to small.",
    )
    require(not close(found, right[::-1]), "Sorted the wrong way round: the largest comes first.")
    require(
        not close(found, right**2),
        "These are the squares, the eigenvalues of KᵀK. Take the root.",
    )
    require(
        not close(found, right / np.sqrt(n)) and not close(found, right / n),
        "Leave the transform as it is: a plain copy, kernel (1), must have all values 1.",
    )
    require(close(found, right), "These are not the sizes of the transform of the padded weights.")
    try:
        long = np.asarray(call(function, np.array([1.0, 1.0]), 1_000_000))
    except MemoryError:
        raise AssertionError(
            "For a ring of a million places the matrix does not fit into memory. Work with the "
            "padded list alone."
        ) from None
    require(
        long.shape == (1_000_000,) and close(long[0], 2),
        "For a ring of a million places the answer is wrong; kernel (1, 1) has the largest value "
        "2, that of the wave that does not move.",
    )
    passed("a blur stretches waves, and the transform says by how much.")


def check_randomized_svd(function: Function) -> None:
    """``function(X, omega, r)``: X (m, n), omega (n, w) → U (m, r), s (r,), Vt (r, n)."""
    rng = np.random.default_rng(6)
    U0, V0 = (np.linalg.qr(rng.standard_normal((k, 9)))[0] for k in (12, 9))
    X = (U0 * (1 / np.arange(1.0, 10))) @ V0.T  # falls slowly, so that the sketch can be told
    omega, r = rng.standard_normal((9, 5)), 3
    decompositions = []  # numpy's functions keep count: a large one gives the same result
    try:
        with ExitStack() as stack:
            for name in ("svd", "eigh"):
                whole = getattr(np.linalg, name)
                spy = stack.enter_context(mock.patch.object(np.linalg, name, wraps=whole))
                decompositions.append(spy)
            answer = call(function, X.copy(), omega.copy(), r)
    except ValueError as error:
        raise AssertionError(
            f"Your shapes do not fit ({error}). omega has a row for each column of X, so the "
            "sketch is X @ omega, of shape (m, w)."
        ) from None
    except AttributeError as error:
        raise AssertionError(
            f"{error}: np.linalg.qr returns two matrices, Q and R. Take the first."
        ) from None
    if not_attempted(answer):
        return
    require(
        isinstance(answer, (tuple, list)) and len(answer) == 3,
        "Return three things, in this order: U, s, Vt.",
    )
    U, s, Vt = (np.asarray(part, dtype=float) for part in answer)
    Q = np.linalg.qr(X @ omega)[0]
    small_U, right, right_Vt = np.linalg.svd(Q.T @ X, full_matrices=False)
    require(
        s.shape != (5,),
        "You return all w pieces of the sketch. The extra ones are there for luck: keep r of them.",
    )
    require(
        U.shape != (5, 3),
        "Your U belongs to the small matrix QᵀX, and has a row for each column of Q. Multiply it "
        "by Q to come back.",
    )
    require(
        Vt.shape != (9, 3),
        "Vt lies on its side: it must have shape (r, n), a row for each piece.",
    )
    require(
        (U.shape, s.shape, Vt.shape) == ((12, 3), (3,), (3, 9)),
        f"U, s and Vt must have shapes (12, 3), (3,) and (3, 9); found {U.shape}, {s.shape} and "
        f"{Vt.shape}.",
    )
    exact = np.linalg.svd(X, compute_uv=False)[:r]
    require(
        not close(s, exact),
        "You decomposed X itself. That gives the best answer and saves nothing: decompose QᵀX.",
    )
    bare = np.linalg.svd((X @ omega).T @ X, compute_uv=False)[:r]
    require(
        not close(s, bare),
        "The sketch X @ omega is not orthonormal: its columns have lengths of their own, and these "
        "end up in the singular values. Take Q from np.linalg.qr.",
    )
    by_length = X @ omega
    by_length = by_length / np.linalg.norm(by_length, axis=0)
    require(
        not close(s, np.linalg.svd(by_length.T @ X, compute_uv=False)[:r]),
        "You gave the columns of the sketch length one; they must be at right angles too. Take Q "
        "from np.linalg.qr.",
    )
    of_sketch = np.linalg.svd(X @ omega, compute_uv=False)[:r]
    require(
        not close(s, of_sketch),
        "These are the singular values of X @ omega, which depend on how large omega was drawn. "
        "Use the sketch for its directions only.",
    )
    narrow = np.linalg.qr(X @ omega[:, :r])[0]
    require(
        not close(s, np.linalg.svd(narrow.T @ X, compute_uv=False)),
        "You used only r columns of omega. Use all w, and cut at the end.",
    )
    require(close(s, right[:r]), f"The singular values should be {right[:r]}; found {s}.")
    wanted = (Q @ small_U[:, :r] * right[:r]) @ right_Vt[:r]
    require(
        close((U * s) @ Vt, wanted),
        "s is right, but U times s times Vt is not the approximation: take the first r columns of "
        "Q @ U and the first r rows of Vt.",
    )
    require(close(U.T @ U, np.eye(r)), "The columns of U must be orthonormal.")
    for used in (used for spy in decompositions for used in spy.call_args_list):
        shape = np.shape([*used.args, *used.kwargs.values()][0])
        require(
            min(shape) <= omega.shape[1],
            f"The result is right, but you decomposed a matrix of shape {shape}, larger than w on "
            "its shorter side, which saves nothing: Q(QᵀX) is as large as X. Decompose QᵀX, which "
            "has only w rows, and multiply its U by Q.",
        )
    passed("a few random products, a small decomposition, and back.")
