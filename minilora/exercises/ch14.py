"""Checks of chapter 14: one step of a flow, guidance, two adapters as one, the bytes of a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.exercises.tools import Exercise, Function, Mistake, close

Array = NDArray[Any]


def _mean(values: Sequence[float], shares: Sequence[float]) -> float:
    return float(np.dot(values, shares))


#: {what to say: a wrong end}
_ENDS: dict[str, Function] = {
    "That is the value nearest to the noise. At time 0 the noise says nothing yet about which "
    "value it will become, so the velocity is an average over all of them.": (
        lambda values, shares, noise: min(values, key=lambda value: abs(value - noise))
    ),
    "That is the commonest value. The mean squared error is smallest at the mean, not at the "
    "commonest.": lambda values, shares, noise: values[int(np.argmax(shares))],
    "That is the mean without the shares. A value that is drawn more often counts more.": (
        lambda values, shares, noise: float(np.mean(values))
    ),
    "You added the mean of the values. The velocity is value − noise, and its mean is the mean of "
    "the values less the noise.": (lambda values, shares, noise: noise + _mean(values, shares)),
    "That is the velocity. You were asked where the step ends: noise + velocity.": (
        lambda values, shares, noise: _mean(values, shares) - noise
    ),
    "That is the velocity turned round, and where it leads from. It is mean − noise, added to the "
    "noise.": lambda values, shares, noise: 2 * noise - _mean(values, shares),
    "The noise comes back: the step was not taken.": lambda values, shares, noise: noise,
    "That is the sum of the values. Weight each by its share.": (
        lambda values, shares, noise: float(np.sum(values))
    ),
    "That is half-way. One step covers all of the time from 0 to 1.": (
        lambda values, shares, noise: (noise + _mean(values, shares)) / 2
    ),
}

check_one_step = Exercise(
    asks="values, their shares, a noise → where one step over all of the time ends.",
    cases=[
        ([-1.0, 1.0], [0.25, 0.75], 0.4),
        ([-1.0, 0.5, 1.0], [0.5, 0.2, 0.3], -1.5),
        ([-1.0, 1.0], [0.25, 0.75], -2.0),
    ],
    right=lambda values, shares, noise: _mean(values, shares),
    mistakes=[Mistake(wrong, says) for says, wrong in _ENDS.items()],
    otherwise=lambda found, values, shares, noise: (
        f"With values {values}, shares {shares} and noise {noise:g} the mean velocity is "
        f"{_mean(values, shares) - noise:.3g}, from {noise:g} on; found {found}."
    ),
    passed="one step ends at the mean of all pictures, whatever the noise: a grey blur.",
    parts="The end",
)


#: {what to say: a wrong change of the guided velocity}
_CHANGES: dict[str, Function] = {
    "You leave out what the adapter changes where there is no class. The guided velocity is made "
    "of both, and the second counts negatively as soon as w is above 1.": lambda c, n, w: w * c,
    "That is w times the difference. The guided velocity begins with v(no class), whose change has "
    "to be added once.": lambda c, n, w: w * (c - n),
    "The two are exchanged: it is the velocity for the class that is multiplied by w.": (
        lambda c, n, w: c + w * (n - c)
    ),
    "That is the change without guidance, w = 1.": lambda c, n, w: c,
    "Guidance multiplies the *difference* of the two velocities, and what you return has lost the "
    "minus.": lambda c, n, w: n + w * (c + n),
    "What the adapter changes with no class is subtracted w − 1 times, and not added.": (
        lambda c, n, w: w * c + (w - 1) * n
    ),
    "That begins with the velocity for the class, as in the paper, where w = 0 is no guidance. "
    "Here it begins with the one for no class, and w = 1 is none.": (
        lambda c, n, w: c + w * (c - n)
    ),
    "The change with no class is missing once: n + w·(c − n).": lambda c, n, w: (w - 1) * (c - n),
}

check_guided_change = Exercise(
    asks="change with the class (k,), change with no class (k,), w → change of the guided velocity "
    "(k,).",
    cases=[
        (np.array([1.0, 0.5, -2.0]), np.array([0.25, 3.0, 1.0]), 3.0),
        (np.array([0.0, 0.0]), np.array([1.0, -2.0]), 5.0),
        (np.array([2.0, 1.0]), np.array([2.0, 1.0]), 1.5),
    ],
    right=lambda c, n, w: n + w * (c - n),
    mistakes=[Mistake(wrong, says) for says, wrong in _CHANGES.items()],
    otherwise=lambda found, c, n, w: (
        f"Write down v(no class) + w·(v(class) − v(no class)) with and without the adapter, and "
        f"subtract. For changes {c} and {n} and w = {w:g} it is {n + w * (c - n)}; found {found}."
    ),
    passed="w·c − (w − 1)·n. Guidance turns what was learnt without classes round.",
    parts="The change",
)


def _stacked(A: Array, B: Array, s: float, C: Array, D: Array, t: float) -> tuple[Array, Array]:
    return np.vstack([A, C]), np.hstack([s * B, t * D])


def _same_update(found: Any, right: tuple[Array, Array]) -> bool:
    """Whether two pairs (A, B) have the same product BA; the factors themselves may differ."""
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        return False
    try:
        A, B = (np.asarray(part, dtype=float) for part in found)
        product = B @ A
    except (TypeError, ValueError):
        return False
    return close(product, right[1] @ right[0])


#: {what to say: a wrong pair of factors}
_PAIRS: dict[str, Function] = {
    "You added the factors. (B₁ + B₂)(A₁ + A₂) has two products too many, B₁A₂ and B₂A₁, that "
    "neither adapter ever trained.": lambda A, B, s, C, D, t: (A + C, s * B + t * D),
    "You averaged the factors: besides B₁A₁ and B₂A₂, at a quarter, that holds B₁A₂ and B₂A₁.": (
        lambda A, B, s, C, D, t: ((A + C) / 2, (s * B + t * D) / 2)
    ),
    "You added the factors, without the scales. (B₁ + B₂)(A₁ + A₂) has two products too many.": (
        lambda A, B, s, C, D, t: (A + C, B + D)
    ),
    "You averaged the factors, without the scales. That holds B₁A₂ and B₂A₁ as well.": (
        lambda A, B, s, C, D, t: ((A + C) / 2, (B + D) / 2)
    ),
    "The scales are missing. The new adapter has the scale 1, so they must go into a factor.": (
        lambda A, B, s, C, D, t: (np.vstack([A, C]), np.hstack([B, D]))
    ),
    "The scales are in both factors, so that each update is multiplied by its scale twice.": (
        lambda A, B, s, C, D, t: (np.vstack([s * A, t * C]), np.hstack([s * B, t * D]))
    ),
    "The two are packed in different orders. Column i of B belongs to row i of A, and yours makes "
    "B₂A₁ and B₁A₂: the norm looks right, and the update is another one.": (
        lambda A, B, s, C, D, t: (np.vstack([A, C]), np.hstack([t * D, s * B]))
    ),
    "The scales are exchanged.": lambda A, B, s, C, D, t: (
        np.vstack([A, C]),
        np.hstack([t * B, s * D]),
    ),
    "That is the mean of the two updates, half of their sum.": lambda A, B, s, C, D, t: (
        np.vstack([A, C]),
        np.hstack([s * B, t * D]) / 2,
    ),
}


def _pair_of(seed: int, scales: tuple[float, float]) -> tuple[Any, ...]:
    draw = np.random.default_rng(seed)
    A, C = draw.standard_normal((2, 2, 5))
    B, D = draw.standard_normal((2, 4, 2))
    return A, B, scales[0], C, D, scales[1]


check_one_adapter = Exercise(
    asks="A₁ (r, in), B₁ (out, r), scale₁, A₂, B₂, scale₂ → (A, B) of one adapter with scale 1 "
    "that does what both do.",
    cases=[_pair_of(0, (2.0, 0.5)), _pair_of(1, (1.0, 3.0))],
    right=_stacked,
    mistakes=[Mistake(wrong, says) for says, wrong in _PAIRS.items()],
    otherwise="BA of your adapter is not scale₁·B₁A₁ + scale₂·B₂A₂. Put the rows of the two A "
    "under each other, and the columns of the two B side by side.",
    passed="the rows of A under each other, the columns of B side by side.",
    parts=("A", "B"),
    same=_same_update,
)


#: {what to say: wrong bytes of one layer (out, in, k) at rank r}
_BYTES: dict[str, Function] = {
    "The k × k window is counted in both factors. A looks through it, and B is a 1 × 1 "
    "convolution.": lambda o, i, k, r: 2 * r * k * k * (i + o),
    "The window is left out: A of a convolution has r · in · k · k numbers.": (
        lambda o, i, k, r: 2 * r * (i + o)
    ),
    "The window belongs to A, which reads the input, and not to B.": (
        lambda o, i, k, r: 2 * r * (i + o * k * k)
    ),
    "A window k wide and k high has k · k places.": lambda o, i, k, r: 2 * r * (i * k + o),
    "These are bits. A byte has eight of them, and half precision two bytes.": (
        lambda o, i, k, r: 16 * r * (i * k * k + o)
    ),
    "The two factors stand beside each other: their numbers are added, r · in and r · out.": (
        lambda o, i, k, r: 2 * r * i * k * k * o
    ),
    "These are numbers. In half precision each takes two bytes.": (
        lambda o, i, k, r: r * (i * k * k + o)
    ),
    "Each number takes two bytes in half precision, not four.": (
        lambda o, i, k, r: 4 * r * (i * k * k + o)
    ),
    "That is the size of the weights themselves. An adapter has r · (in · k² + out) numbers for "
    "each layer.": lambda o, i, k, r: 2 * o * i * k * k,
}


def _total(of_layer: Function) -> Function:
    return lambda layers, r: sum(of_layer(*layer, r) for layer in layers)


_right_bytes = _total(lambda o, i, k, r: 2 * r * (i * k * k + o))

check_adapter_bytes = Exercise(
    asks="[(out, in, k), …], r → bytes of an adapter in half precision; k = 1 for a linear layer.",
    cases=[
        ([(320, 320, 1), (320, 768, 1)], 8),
        ([(320, 320, 3)], 4),
        ([(1280, 640, 3), (1280, 1280, 1)], 16),
    ],
    right=_right_bytes,
    mistakes=[Mistake(_total(wrong), says) for says, wrong in _BYTES.items()],
    otherwise=lambda found, layers, r: (
        f"For {layers} at rank {r} it is {_right_bytes(layers, r):,} bytes; found {found}."
    ),
    passed="2 · r · (in · k² + out) bytes a layer. Choose the rank, and the layers.",
    parts="The bytes",
)
