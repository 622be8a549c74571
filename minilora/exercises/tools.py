"""What the checks share: calling a stub, requiring, comparing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Function = Callable[..., Any]


def call(function: Function, *arguments: Any) -> Any:
    """What the function returns; None where it says that it is not written yet."""
    try:
        return function(*arguments)
    except NotImplementedError:
        return None


def not_attempted(answer: Any) -> bool:
    """True, and said in print, for the None that a stub returns."""
    if answer is None:
        print("not attempted yet")
        return True
    return False


def require(condition: Any, message: str) -> None:
    """Raise AssertionError with the message unless the condition holds (also under python -O)."""
    if not condition:
        raise AssertionError(message)


def passed(what: str) -> None:
    print(f"passed: {what}")


def array(answer: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """The answer as a real array of the shape asked for."""
    found = np.asarray(answer)
    require(found.dtype.kind in "biuf", f"{what} must hold numbers; found dtype {found.dtype}.")
    require(found.shape == shape, f"{what} must have shape {shape}; found {found.shape}.")
    return found.astype(float)


def close(found: Any, right: Any, scale: float = 1.0) -> bool:
    """Equal, but for rounding."""
    found, right = np.asarray(found), np.asarray(right)
    return found.shape == right.shape and bool(
        np.allclose(found, right, rtol=1e-7, atol=1e-9 * scale)
    )


def example() -> np.ndarray:
    """A (5, 4) matrix with singular values 8, 4, 2, 1 and a column mean that is not zero."""
    generator = np.random.default_rng(2)
    U = np.linalg.qr(generator.standard_normal((5, 4)))[0]
    V = np.linalg.qr(generator.standard_normal((4, 4)))[0]
    return (U * np.array([8.0, 4.0, 2.0, 1.0])) @ V.T
