"""The right answer of a check of chapter 3 against what its exercise describes."""

from __future__ import annotations

import numpy as np

from minilora.exercises import check_blur_singular_values


def test_a_blur_is_what_its_matrix_is() -> None:
    kernel, n = np.array([0.5, 0.3, -0.2]), 8
    padded = np.append(kernel, np.zeros(n - len(kernel)))
    matrix = np.stack([np.roll(padded, shift) for shift in range(n)], axis=1)
    found = check_blur_singular_values.right(kernel, n)
    np.testing.assert_allclose(found, np.linalg.svd(matrix, compute_uv=False), atol=1e-12)
