"""Low-rank approximation: the theorems, checked on random matrices, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora import svd

Array = np.ndarray[Any, Any]
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
seeds = st.integers(0, 2**32 - 1)
spectra = st.lists(st.just(0.0) | st.floats(1e-3, 1e3), min_size=1, max_size=8)


def gaussian(shape: tuple[int, ...], seed: int, complex_: bool = False) -> Array:
    generator = np.random.default_rng(seed)
    X = generator.standard_normal(shape)
    return X + 1j * generator.standard_normal(shape) if complex_ else X


def with_spectrum(s: list[float] | Array, seed: int, extra: int = 2) -> tuple[Array, Array]:
    """A (k, k + extra) matrix whose singular values are s, and s in falling order."""
    s = np.sort(np.asarray(s, float))[::-1]
    U = np.linalg.qr(gaussian((len(s), len(s)), seed))[0]
    V = np.linalg.qr(gaussian((len(s) + extra, len(s)), seed + 1))[0]
    return (U * s) @ V.T, s


# The truncated SVD and Eckart–Young–Mirsky.


@given(shapes, seeds, st.booleans())
def test_factors_are_orthonormal_and_sorted(
    shape: tuple[int, int], seed: int, complex_: bool
) -> None:
    X = gaussian(shape, seed, complex_)
    for r in range(min(shape) + 1):
        U, s, Vt = svd.truncated_svd(X, r)
        assert U.shape == (shape[0], r)
        assert s.shape == (r,)
        assert Vt.shape == (r, shape[1])
        np.testing.assert_allclose(U.conj().T @ U, np.eye(r), atol=1e-12)
        np.testing.assert_allclose(Vt @ Vt.conj().T, np.eye(r), atol=1e-12)
        assert (s >= 0).all()
        assert (np.diff(s) <= 0).all()
        np.testing.assert_allclose((U * s) @ Vt, svd.low_rank_approximation(X, r), atol=1e-12)
    np.testing.assert_allclose((U * s) @ Vt, X, atol=1e-12)


@given(spectra, seeds)
def test_errors_are_the_tail_of_the_spectrum(spectrum: list[float], seed: int) -> None:
    X, s = with_spectrum(spectrum, seed)
    scale = max(s[0], 1e-300)
    for r in range(len(s) + 1):
        rest = X - svd.low_rank_approximation(X, r)
        tail = np.append(s, 0)[r:]
        expected = {"fro": np.linalg.norm(tail / scale) * scale, "spectral": tail[0]}
        for norm, numpy_norm in (("fro", "fro"), ("spectral", 2)):
            error = svd.low_rank_error(X, r, norm)
            assert error == pytest.approx(expected[norm], rel=1e-9, abs=1e-12 * scale)
            assert error == pytest.approx(np.linalg.norm(rest, numpy_norm), abs=1e-11 * scale)
            assert svd.low_rank_errors(X, norm)[r] == error


@given(shapes, seeds, st.data())
def test_no_rival_of_the_same_rank_is_nearer(
    shape: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    X = gaussian(shape, seed)
    r = data.draw(st.integers(0, min(shape)))
    generator = np.random.default_rng(seed + 1)
    best = svd.low_rank_approximation(X, r)
    for step in (1e-6, 1e-3, 0.1, 10.0):
        # A neighbour of the best one, and the best in a column space that is a little off.
        U, s, Vt = svd.truncated_svd(X, r)
        near = ((U + step * generator.standard_normal(U.shape)) * s) @ (
            Vt + step * generator.standard_normal(Vt.shape)
        )
        Q = np.linalg.qr(best @ gaussian((shape[1], r), seed) + step * gaussian((shape[0], r), 1))[
            0
        ]
        for rival in (near, Q @ (Q.T @ X)):
            for norm, numpy_norm in (("fro", "fro"), ("spectral", 2)):
                distance = np.linalg.norm(X - rival, numpy_norm)
                assert distance >= svd.low_rank_error(X, r, norm) - 1e-10


@given(shapes, seeds)
def test_signs_do_not_depend_on_the_machine(shape: tuple[int, int], seed: int) -> None:
    U, _, _ = svd.truncated_svd(gaussian(shape, seed), min(shape))
    largest = U[np.abs(U).argmax(axis=0), np.arange(U.shape[1])]
    assert (largest > 0).all()


def test_relative_errors_run_from_one_to_zero() -> None:
    errors = svd.low_rank_errors(gaussian((6, 4), 0), relative=True)
    assert errors[0] == 1
    assert errors[-1] == 0
    assert svd.low_rank_error(np.zeros((3, 3)), 1, relative=True) == 0


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_no_overflow_and_no_underflow(scale: float) -> None:
    X = scale * np.diag([4.0, 3.0, 4.0])
    assert svd.low_rank_error(X, 1) == pytest.approx(5 * scale)
    assert svd.stable_rank(X) == pytest.approx(41 / 16)


@given(shapes, seeds, st.integers(0, 4), st.integers(0, 4))
def test_the_rank_of_a_sum_is_at_most_the_sum_of_ranks(
    shape: tuple[int, int], seed: int, a: int, b: int
) -> None:
    a, b = min(a, *shape), min(b, *shape)
    P = svd.low_rank_approximation(gaussian(shape, seed), a)
    Q = svd.low_rank_approximation(gaussian(shape, seed + 1), b)
    total = np.linalg.matrix_rank(P + Q, tol=1e-9)
    assert total <= a + b
    assert svd.low_rank_error(P + Q, min(a + b, *shape)) < 1e-9


# What rank is this, roughly?


@given(st.integers(1, 9), st.integers(0, 5), st.floats(1e-3, 1e3), seeds)
def test_equal_singular_values_are_counted(k: int, zeros: int, scale: float, seed: int) -> None:
    X, s = with_spectrum([scale] * k + [0.0] * zeros, seed)
    for argument in (X, s, list(s), X.T, -3 * X):
        assert svd.effective_rank(argument) == pytest.approx(k, rel=1e-6)
        assert svd.stable_rank(argument) == pytest.approx(k, rel=1e-6)


@given(shapes, seeds)
def test_stable_and_effective_rank_lie_between_one_and_the_rank(
    shape: tuple[int, int], seed: int
) -> None:
    X = gaussian(shape, seed)
    for value in (svd.stable_rank(X), svd.effective_rank(X)):
        assert 1 - 1e-12 <= value <= np.linalg.matrix_rank(X) + 1e-9


def test_ranks_of_nothing_and_of_a_known_spectrum() -> None:
    assert svd.effective_rank(np.zeros((2, 3))) == svd.stable_rank(np.zeros((2, 3))) == 0
    s = np.array([2.0, 1.0, 1.0])
    assert svd.stable_rank(s) == pytest.approx(1.5)
    assert svd.effective_rank(s) == pytest.approx(np.exp(1.5 * np.log(2)))
    with pytest.raises(ValueError, match="read as singular values"):
        svd.stable_rank([1.0, -1.0])


@given(spectra, seeds, st.floats(0, 1))
def test_a_share_is_held_by_no_fewer_pieces(spectrum: list[float], seed: int, share: float) -> None:
    X, s = with_spectrum(spectrum, seed)
    r = svd.rank_for_share(s, share)
    if not s.any():
        assert r == svd.rank_for_share(X, share) == 0
        return
    missed = svd.low_rank_errors(np.diag(s), relative=True) ** 2
    assert missed[r] <= 1 - share + 1e-12
    assert r == 0 or missed[r - 1] > 1 - share - 1e-12


def test_a_tie_is_held_and_all_is_all() -> None:
    assert svd.rank_for_share([3, 1], 0.9) == 1 and svd.rank_for_share([3, 1], 0.901) == 2
    for k in range(1, 30):
        assert [svd.rank_for_share(np.full(k, 3.7), r / k) for r in range(k + 1)] == [*range(k + 1)]
    assert all(svd.rank_for_share(gaussian((40, 30), seed), 1) == 30 for seed in range(50))
    for share in (-0.1, 1.1, 90, np.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            svd.rank_for_share(np.eye(2), share)


# Gavish and Donoho's threshold, against three things that do not use their formula.


def test_lambda_is_where_keeping_a_direction_begins_to_pay() -> None:
    """Keep a noisy triplet of true size x and the loss is x² + y² − 2xyc₁c₂; drop it and it is x².

    y and the cosines c₁, c₂ are the limits of Benaych-Georges and Nadakuditi (2012).
    """
    for beta in (0.1, 0.3, 0.7, 1.0):

        def gain(x: float, beta: float = beta) -> float:
            y = np.sqrt((x + 1 / x) * (x + beta / x))
            c1 = np.sqrt((x**4 - beta) / (x**4 + beta * x**2))
            c2 = np.sqrt((x**4 - beta) / (x**4 + x**2))
            return float(2 * x * y * c1 * c2 - y**2)

        low, high = beta**0.25 + 1e-9, 10.0
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if gain(middle) < 0 else (low, middle)
        y = np.sqrt((low + 1 / low) * (low + beta / low))
        assert svd._lambda(beta) == pytest.approx(y, rel=1e-6)
    assert svd._lambda(1.0) == pytest.approx(4 / np.sqrt(3))


def test_omega_agrees_with_their_table_and_polynomial() -> None:
    def omega(beta: float) -> float:
        return svd._lambda(beta) / np.sqrt(svd._marchenko_pastur_median(beta))

    assert omega(1.0) == pytest.approx(2.858, abs=1e-3)
    for beta in np.linspace(0.05, 1, 20):
        polynomial = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
        assert omega(beta) == pytest.approx(polynomial, abs=0.02)


def test_the_median_of_noise_is_the_median_of_noise() -> None:
    for m, n in ((300, 300), (200, 500)):
        s = np.linalg.svd(gaussian((m, n), m) / np.sqrt(n), compute_uv=False)
        assert np.median(s) ** 2 == pytest.approx(svd._marchenko_pastur_median(m / n), rel=0.02)


@pytest.mark.parametrize("shape", [(200, 200), (120, 300), (300, 120)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_planted_rank_is_found(shape: tuple[int, int], scale: float) -> None:
    noise = scale * gaussian(shape, 0)
    U = np.linalg.qr(gaussian((shape[0], 7), 1))[0]
    V = np.linalg.qr(gaussian((shape[1], 7), 2))[0]
    X = noise + (U * np.linspace(4, 12, 7) * np.sqrt(max(shape)) * scale) @ V.T
    assert svd.gavish_donoho_rank(X) == 7
    assert svd.gavish_donoho_rank(X, sigma=scale) == 7
    assert svd.gavish_donoho_rank(noise) == 0


def test_without_noise_rounding_errors_are_not_counted() -> None:
    X = svd.low_rank_approximation(gaussian((40, 50), 3), 5)
    assert svd.gavish_donoho_rank(X) == 5
    assert svd.gavish_donoho_rank(np.zeros((4, 4))) == 0


@pytest.mark.parametrize("sigma", [0.0, -1.0, np.nan, np.inf])
def test_sigma_must_be_positive_and_finite(sigma: float) -> None:
    with pytest.raises(ValueError, match="standard deviation"):
        svd.gavish_donoho_rank(np.eye(3), sigma)


# Counting.


@given(st.integers(1, 500), st.integers(1, 500))
def test_break_even_is_where_the_factors_cost_as_much(m: int, n: int) -> None:
    r = svd.break_even_rank(m, n)
    assert r * (m + n) == pytest.approx(m * n)
    assert svd.break_even_rank(n, m) == r
    assert r < min(m, n)


def test_break_even_takes_whole_numbers_only() -> None:
    assert svd.break_even_rank(384, 384) == 192
    for bad in (0, -1, 2.0, True, "3"):
        with pytest.raises(ValueError, match="whole number"):
            svd.break_even_rank(bad, 4)  # type: ignore[arg-type]


# Randomized SVD.


def test_expected_error_keeps_halkos_bound() -> None:
    """E‖X − QQᵀX‖_F ≤ √(1 + k/(p − 1)) · (Σ_{j>k} s_j²)^½ without power iterations."""
    s = 1 / np.arange(1, 41) ** 0.8
    X, _ = with_spectrum(s, 0, extra=10)
    k = 5
    for p in (2, 3, 5, 10):
        errors = []
        for seed in range(300):
            Q = svd.random_range(X, k + p, seed=seed)
            errors.append(np.linalg.norm(X - Q @ (Q.T @ X)))
        bound = np.sqrt(1 + k / (p - 1)) * svd.low_rank_error(X, k)
        assert np.mean(errors) <= bound
        assert np.mean(errors) >= svd.low_rank_error(X, k + p)


@given(shapes, seeds, st.booleans(), st.data())
def test_randomized_factors(
    shape: tuple[int, int], seed: int, complex_: bool, data: st.DataObject
) -> None:
    X = gaussian(shape, seed, complex_)
    r = data.draw(st.integers(0, min(shape)))
    U, s, Vt = svd.randomized_svd(X, r, oversample=data.draw(st.integers(0, 3)), seed=seed)
    assert (U.shape, s.shape, Vt.shape) == ((shape[0], r), (r,), (r, shape[1]))
    np.testing.assert_allclose(U.conj().T @ U, np.eye(r), atol=1e-10)
    np.testing.assert_allclose(Vt @ Vt.conj().T, np.eye(r), atol=1e-10)
    exact = svd.truncated_svd(X, r)[1]
    assert (s <= exact + 1e-10).all()
    assert np.linalg.norm(X - (U * s) @ Vt) >= svd.low_rank_error(X, r) - 1e-10


@given(seeds)
@settings(max_examples=20)
def test_randomized_is_exact_where_the_rank_is_low(seed: int) -> None:
    X = gaussian((30, 4), seed) @ gaussian((4, 25), seed + 1)
    U, s, Vt = svd.randomized_svd(X, 4, seed=seed)
    np.testing.assert_allclose((U * s) @ Vt, X, atol=1e-9)
    V = svd.truncated_svd(X, 4)
    for found, exact in zip((U, s, Vt), V, strict=True):
        np.testing.assert_allclose(found, exact, atol=1e-6)


def test_power_iterations_help_and_the_seed_decides() -> None:
    X, _ = with_spectrum(1 / np.sqrt(np.arange(1, 61)), 0)
    errors = [
        np.mean(
            [
                np.linalg.norm(X - (U * s) @ Vt)
                for seed in range(20)
                for U, s, Vt in [svd.randomized_svd(X, 8, 2, power, seed)]
            ]
        )
        for power in (0, 1, 2, 4)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1.01 * svd.low_rank_error(X, 8)
    one, two = (svd.randomized_svd(X, 3, seed=5)[0] for _ in range(2))
    np.testing.assert_array_equal(one, two)


# What goes in.


@pytest.mark.parametrize(
    ("X", "words"),
    [
        ([1.0, 2.0], "two axes"),
        (3.0, "two axes"),
        (np.zeros((2, 2, 3)), "colour picture"),
        (np.zeros((0, 3)), "no entries"),
        (np.zeros((3, 0)), "no entries"),
        ([[1.0, np.nan]], "NaN"),
        ([[1.0, 2.0], [np.inf, np.nan]], r"2 entries .* \[1, 0\]"),
        ([["a", "b"]], "numbers"),
        ([[1.0], [2.0, 3.0]], "rows of one length"),
        (np.array([[None, 1]]), "numbers"),
    ],
)
def test_what_is_no_matrix_is_refused(X: Any, words: str) -> None:
    for function in (
        lambda: svd.truncated_svd(X, 1),
        lambda: svd.low_rank_error(X, 1),
        lambda: svd.low_rank_approximation(X, 1),
        lambda: svd.randomized_svd(X, 1),
        lambda: svd.gavish_donoho_rank(X),
    ):
        with pytest.raises(ValueError, match=words):
            function()
    if np.ndim(np.asarray(X, dtype=object)) != 1:
        for function in (svd.effective_rank, svd.rank_for_share):
            with pytest.raises(ValueError, match=words):
                function(X)


@pytest.mark.parametrize("r", [-1, 4, 1.0, "2", None, True])
def test_r_out_of_range_is_refused(r: Any) -> None:
    for function in (svd.truncated_svd, svd.low_rank_error, svd.randomized_svd):
        with pytest.raises(ValueError, match=r"r must (be|lie)"):
            function(np.ones((3, 5)), r)


def test_other_arguments_are_refused_with_words() -> None:
    with pytest.raises(ValueError, match='"fro" or "spectral"'):
        svd.low_rank_error(np.eye(2), 1, "nuclear")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="oversample"):
        svd.randomized_svd(np.eye(2), 1, oversample=-1)
    with pytest.raises(ValueError, match="power_iterations"):
        svd.randomized_svd(np.eye(2), 1, power_iterations=-1)


@pytest.mark.parametrize(
    ("given_type", "found_type"),
    [("uint8", "float64"), ("bool", "float64"), ("float16", "float64"), ("float32", "float32")],
)
def test_number_types(given_type: str, found_type: str) -> None:
    X = np.array([[1, 0, 1], [0, 1, 1]]).astype(given_type)
    for factors in (svd.truncated_svd(X, 2), svd.randomized_svd(X, 2)):
        U, s, Vt = factors
        assert {str(factor.dtype) for factor in factors} == {found_type}
        np.testing.assert_allclose((U * s) @ Vt, X.astype(float), atol=1e-6)


def test_tensors_are_read() -> None:
    torch = pytest.importorskip("torch")
    X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert svd.truncated_svd(X, 2)[0].dtype == np.float32
    assert svd.stable_rank(X) == pytest.approx(svd.stable_rank(X.detach().numpy()))
    with pytest.raises(ValueError, match=r"\.float\(\)"):
        svd.truncated_svd(X.bfloat16(), 2)


def test_the_input_is_left_alone() -> None:
    X = gaussian((5, 4), 0)
    before = X.copy()
    svd.randomized_svd(X, 2)
    svd.low_rank_approximation(X, 2)
    np.testing.assert_array_equal(X, before)


def test_minilora_needs_neither_matplotlib_nor_scikit_learn() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['matplotlib', 'sklearn', 'scipy', 'PIL']));"
        "import minilora, minilora.svd, minilora.exercises"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
