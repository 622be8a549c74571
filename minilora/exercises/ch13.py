"""Checks of chapter 13: bits per byte, turned-down updates, room for facts, a random rival."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minilora.exercises.tools import (
    Exercise,
    Function,
    Mistake,
    array,
    call,
    not_attempted,
    passed,
    require,
)

check_bits_per_byte = Exercise(
    asks="nats a token, tokens, bytes → bits a byte.",
    cases=[(2.0, 1000, 2500), (4.2, 300, 1300), (math.log(2), 7, 7)],
    right=lambda nats, tokens, size: nats * tokens / size / math.log(2),
    mistakes=[
        Mistake(
            lambda nats, tokens, size: nats * tokens / size,
            "These are nats a byte. A bit is log 2 = 0.693 nats, so that there are more bits than "
            "nats: divide by log 2.",
        ),
        Mistake(
            lambda nats, tokens, size: nats * tokens / size * math.log(2),
            "You multiply by log 2. A nat is 1 / log 2 = 1.44 bits, and the number of bits is the "
            "larger one.",
        ),
        Mistake(
            lambda nats, tokens, size: nats / math.log(2),
            "These are bits a *token*. Multiply by the tokens for the bits of the whole text, and "
            "divide by its bytes.",
        ),
        Mistake(
            lambda nats, tokens, size: nats * size / tokens / math.log(2),
            "Tokens and bytes are exchanged: a token stands for several bytes, so a byte costs "
            "less than a token.",
        ),
        Mistake(
            lambda nats, tokens, size: nats * tokens / (8 * size) / math.log(2),
            "You divide by the bits that a byte is stored in. Asked is what each byte costs the "
            "model, and 8 would be no compression at all.",
        ),
    ],
    otherwise=lambda found, nats, tokens, size: (
        f"{tokens} tokens at {nats:.3g} nats are {nats * tokens / math.log(2):.4g} bits in all, "
        f"for {size} bytes; found {found}."
    ),
    passed="bits of the whole text over its bytes, whatever it is cut into.",
    parts="The answer",
)


check_turned_down = Exercise(
    asks="KL of the whole update (small), KL wanted → the strength to turn it down to.",
    cases=[(0.04, 0.01), (0.09, 0.01), (0.02, 0.02)],
    right=lambda kl, wanted: (wanted / kl) ** 0.5,
    mistakes=[
        Mistake(
            lambda kl, wanted: wanted / kl,
            "You let KL grow in proportion to the strength. At strength 0 it has its minimum, 0, "
            "so that it begins flat, as a square does.",
        ),
        Mistake(
            lambda kl, wanted: (kl / wanted) ** 0.5,
            "The wrong way round: for less KL the update is made weaker.",
        ),
        Mistake(
            lambda kl, wanted: (wanted / kl) ** 2,
            "KL grows with the square of the strength, so the strength goes with the *root* of KL.",
        ),
        Mistake(
            lambda kl, wanted: 1 - (wanted / kl) ** 0.5,
            "That is how much is taken away. Asked is the strength that is left.",
        ),
    ],
    otherwise=lambda found, kl, wanted: (
        f"With your strength {found:.3g} a KL of {kl:g} would become {kl * found**2:.3g}, and "
        f"{wanted:g} is wanted."
    ),
    passed="KL is flat at zero, and grows with the square of a small change.",
    parts="The strength",
)


def _least_rank(facts: int, vocab: int, d_in: int, d_out: int, bits: float) -> int:
    return math.ceil(facts * math.log2(vocab) / (bits * (d_in + d_out)))


check_least_rank = Exercise(
    asks="facts, vocab, d_in, d_out, bits a number can hold → the least rank with room for all.",
    cases=[
        (2560, 1024, 512, 128, 0.8),
        (20_000, 1024, 32, 16, 1.5),
        (64, 16, 100, 28, 2.0),
        (980, 1024, 300, 100, 2.0),
    ],
    right=_least_rank,
    mistakes=[
        Mistake(
            lambda n, v, i, o, b: math.ceil(n / (b * (i + o))),
            "You count a fact as one bit. One answer among `vocab` equally likely ones is "
            "log2(vocab) bits.",
        ),
        Mistake(
            lambda n, v, i, o, b: math.ceil(n * math.log(v) / (b * (i + o))),
            "The natural logarithm gives nats. A number's room is given in bits: take log2.",
        ),
        Mistake(
            lambda n, v, i, o, b: math.ceil(n * math.log2(v) / (b * i * o)),
            "d_in · d_out is the size of the matrix. One rank has a column and a row: d_in + d_out "
            "numbers.",
        ),
        Mistake(
            lambda n, v, i, o, b: math.floor(n * math.log2(v) / (b * (i + o))),
            "Rounded down the rank is too small for the last facts: round up.",
        ),
        Mistake(
            lambda n, v, i, o, b: math.ceil(n * math.log2(v) * b / (i + o)),
            "You multiply by the room of a number. The more a number holds, the smaller the rank.",
        ),
        Mistake(
            lambda n, v, i, o, b: n * math.log2(v) / (b * (i + o)),
            "A rank is a whole number: round up.",
        ),
        Mistake(
            lambda n, v, i, o, b: n * v / (b * (i + o)),
            "A fact that is one of `vocab` answers takes log2(vocab) bits, not vocab of them.",
        ),
    ],
    otherwise=lambda found, n, v, i, o, b: (
        f"{n} facts are {n * math.log2(v):,.0f} bits, and a rank has {i + o} numbers with room for "
        f"{b * (i + o):,.0f} bits; found {found}."
    ),
    passed="bits of all facts over the bits of one rank, rounded up.",
    parts="The rank",
)


def check_random_rival(function: Function) -> None:
    """``function(update, seed)`` → a matrix with its singular values and random directions."""
    generator = np.random.default_rng(7_919)  # no seed that an answer is called with
    left, right = generator.standard_normal((40, 3)), generator.standard_normal((3, 24))
    update = left @ right
    first = call(function, update.copy(), 0)
    if not_attempted(first):
        return
    first = array(first, update.shape, "The rival")
    _check_spectrum(first, update)
    U, _, Vh = np.linalg.svd(update)
    new_U, _, new_Vh = np.linalg.svd(first)
    alike = [
        float(np.linalg.norm(old.T @ new) ** 2 / 3)
        for old, new in ((U[:, :3], new_U[:, :3]), (Vh[:3].T, new_Vh[:3].T))
    ]
    require(
        max(alike) < 0.7,
        f"The spectrum is right, but the rival {'writes to' if alike[0] >= 0.7 else 'reads from'} "
        "the same directions as the update. What training has chosen has to go on both sides.",
    )
    second = array(call(function, update.copy(), 1), update.shape, "The rival")
    _check_spectrum(second, update)
    require(not np.allclose(first, second), "Two seeds give the same rival: use the seed.")
    again = array(call(function, update.copy(), 0), update.shape, "The rival")
    require(
        np.allclose(first, again), "One seed gives two rivals: draw from a generator of its own."
    )
    passed("size, rank and spectrum are kept, and every direction is random.")


def _check_spectrum(rival: Any, update: Any) -> None:
    wanted, found = (np.linalg.svd(one, compute_uv=False) for one in (update, rival))
    if np.allclose(wanted, found, rtol=1e-4, atol=1e-6):
        return
    if np.isclose(np.linalg.norm(found), np.linalg.norm(wanted), rtol=1e-4):
        rank = int((found > 1e-6 * found[0]).sum())
        require(
            rank <= 3,
            f"The norm is kept, but the rival has rank {rank} and the update rank 3: a random "
            "matrix, or a shuffled one, spreads over all directions.",
        )
        require(False, "Norm and rank are kept, but not the singular values themselves.")
    require(
        False,
        f"The largest singular values are {wanted[0]:.2f} of the update and {found[0]:.2f} of the "
        "rival: random directions must have length 1 and stand at right angles (numpy.linalg.qr).",
    )
