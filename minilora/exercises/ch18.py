"""Checks of chapter 18: bytes of a step, tokens that hide them, unequal parts, a cut matrix."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from minilora.exercises.tools import Exercise, Function, Mistake, close

FLOAT32, BFLOAT16 = 4, 2


def _sent(base: int, adapter: int, n: int, sharded: bool, **other: float) -> float:
    """The right answer; ``other`` puts a mistake into it."""
    share = other.get("share", (n - 1) / n)
    if not sharded:
        return other.get("twice", 2) * share * (FLOAT32 * adapter + other.get("frozen", 0) * base)
    whole = other.get("of_base", BFLOAT16) * base + other.get("of_adapter", FLOAT32) * adapter
    passes = other.get("passes", 2)
    return share * (passes * whole + other.get("gradients", FLOAT32) * adapter)


def _bytes_of_all(base: int, adapter: int, n: int, sharded: bool) -> float:
    return n * _sent(base, adapter, n, sharded)


#: {what to say: a wrong answer}
_SENT: dict[str, Function] = {
    "That is what all processes send together. You were asked for one of them.": _bytes_of_all,
    "You let a process send every part, its own included. In a ring it passes on n − 1 of n "
    "parts.": lambda *case: _sent(*case, share=1.0),
    "An all-reduce goes round twice, once to add and once to pass the sums on; with DDP the "
    "adapters' gradients count twice.": lambda *case: _sent(*case, twice=1),
    "With DDP nothing of a frozen base travels: it has no gradient, and every process has it "
    "already.": lambda *case: _sent(*case, frozen=BFLOAT16),
    "With FSDP the base is gathered in the forward pass, and once more in the backward pass.": (
        lambda *case: _sent(*case, passes=1)
    ),
    "With FSDP only the adapters travel in your answer. A process holds 1/n of the frozen base "
    "and needs all of it to compute.": lambda base, *case: _sent(0, *case),
    "The base is in bfloat16, two bytes a number.": lambda *case: _sent(*case, of_base=FLOAT32),
    "With FSDP the adapters are cut up as well, and gathered with their block.": (
        lambda *case: _sent(*case, of_adapter=0)
    ),
    "The gradients are missing: with FSDP each process gets a part of their sum, which is a "
    "reduce-scatter.": lambda *case: _sent(*case, gradients=0),
    "A frozen base has no gradients, so that there are none to be summed.": (
        lambda base, adapter, n, sharded: (
            _sent(base, adapter, n, sharded) + sharded * (n - 1) / n * BFLOAT16 * base
        )
    ),
}

check_bytes_sent = Exercise(
    asks="numbers in the base, in the adapter, processes, whether sharded → bytes one sends.",
    cases=[
        (7_000_000_000, 40_000_000, 8, False),
        (7_000_000_000, 40_000_000, 8, True),
        (1_000_000, 50_000, 2, False),
        (1_000_000, 50_000, 2, True),
    ],
    right=_sent,
    mistakes=[Mistake(wrong, says) for says, wrong in _SENT.items()],
    otherwise=lambda found, base, adapter, n, sharded: (
        f"With {base:,} and {adapter:,} numbers, {n} processes and "
        f"{'FSDP' if sharded else 'DDP'} one sends {_sent(base, adapter, n, sharded):.4g} bytes a "
        f"step; found {found:.4g}."
    ),
    passed="with DDP only the adapters travel; with FSDP the base does, twice.",
    parts="The bytes",
    same=partial(close, scale=1e3),
)


def _tokens(
    forward: float,
    backward: float,
    trained: float,
    n: int,
    speed: float,
    gbit: float,
    **other: float,
) -> float:
    """The right answer before it is rounded; ``other`` puts a mistake into it."""
    link = gbit * 1e9 / other.get("bits", 8)
    sent = other.get("twice", 2) * other.get("share", (n - 1) / n) * trained
    return sent / link * speed / (backward + other.get("also", 0) * forward)


def _up(*case: float, **other: float) -> int:
    return math.ceil(_tokens(*case, **other))  # type: ignore[arg-type]


_TOKENS: dict[str, Function] = {
    "You hide the sending behind the forward pass as well. Before the backward pass there is no "
    "gradient that could be sent.": lambda *case: _up(*case, also=1),
    "You hide the sending behind the forward pass. The gradients come in the backward pass, and "
    "only its operations count.": lambda forward, backward, *case: _up(0, forward, *case),
    "A link of so many Gbit/s carries an eighth of that in bytes.": lambda *case: _up(
        *case, bits=1
    ),
    "An all-reduce goes round twice: 2 (n − 1)/n of the bytes.": lambda *case: _up(*case, twice=1),
    "In a ring a process sends 2 (n − 1)/n of the bytes, and not twice all of them.": (
        lambda *case: _up(*case, share=1)
    ),
    "A step has whole tokens, and with one less the sending takes longer: round up.": (
        lambda *case: math.floor(_tokens(*case))
    ),
    "It is upside down: the more there is to send, the more tokens are needed to hide it.": (
        lambda *case: math.ceil(1 / _tokens(*case))
    ),
}

check_hiding_tokens = Exercise(
    asks="operations a token forward, and backward, bytes of gradients, n, operations a second, "
    "Gbit/s → tokens.",
    cases=[
        (2 * 7e9 + 2 * 4e7, 2 * 7e9 + 4 * 4e7, 4 * 4e7, 8, 4e14, 10.0),
        (2 * 7e9, 4 * 7e9, 2 * 7e9, 8, 4e14, 12.0),
        (2 * 1e9, 4 * 1e9, 2 * 1e9, 2, 1e14, 90.0),
    ],
    right=_up,
    mistakes=[Mistake(wrong, says) for says, wrong in _TOKENS.items()],
    otherwise=lambda found, forward, backward, trained, n, speed, gbit: (
        f"Sending takes {2 * (n - 1) / n * trained / (gbit * 1e9 / 8):.3g} s at {gbit:g} Gbit/s; "
        f"the backward pass of your {found:.4g} tokens takes {found * backward / speed:.3g} s."
    ),
    passed="for full fine-tuning the size of the model cancels; for an adapter its share stays.",
    parts="The number of tokens",
)


def _weights(counts: list[int]) -> np.ndarray:
    return len(counts) * np.asarray(counts, float) / sum(counts)


_WEIGHTS: dict[str, Function] = {
    "With these weights the sum over the processes is right, and DDP takes the mean: multiply by "
    "their number.": lambda counts: _weights(counts) / len(counts),
    "Equal weights give a process with few tokens as much to say as one with many.": (
        lambda counts: np.ones(len(counts))
    ),
    "You give more weight to those with fewer tokens.": lambda counts: (
        sum(counts) / (len(counts) * np.asarray(counts, float))
    ),
    "These are the tokens themselves: right in their ratios, but the gradient grows with the "
    "length of the text.": lambda counts: np.asarray(counts, float),
    "Divide by the mean number of tokens, not by the largest.": lambda counts: (
        np.asarray(counts, float) / max(counts)
    ),
}

check_part_weights = Exercise(
    asks="tokens in each process → by what each multiplies its mean loss.",
    cases=[([100, 300],), ([7, 7, 7],), ([10, 20, 30, 60],)],
    right=_weights,
    mistakes=[Mistake(wrong, says) for says, wrong in _WEIGHTS.items()],
    otherwise=lambda found, counts: (
        f"With {counts} tokens the mean over the processes of weight × mean loss must be the mean "
        f"over all {sum(counts)} tokens; found {found}."
    ),
    passed="the mean of the means is the mean of all only where the parts are equal.",
    parts="The weights",
)

Pieces = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, str]


def _pieces(A: np.ndarray, B: np.ndarray, cut: str) -> Pieces:
    (d_out, _), d_in = B.shape, A.shape[1]
    if cut == "rows":
        return A, B[: d_out // 2], A, B[d_out // 2 :], "A"
    return A[:, : d_in // 2], B, A[:, d_in // 2 :], B, "B"


def _other(cut: str) -> str:
    return "columns" if cut == "rows" else "rows"


def _with_name(pieces: Function, A: np.ndarray, B: np.ndarray, cut: str) -> Pieces:
    return (*pieces(A, B, cut)[:4], {"A": "B", "B": "A"}[_pieces(A, B, cut)[4]])


def _both_cut(A: np.ndarray, B: np.ndarray, cut: str) -> Pieces:
    by_rows, by_columns = _pieces(A, B, "rows"), _pieces(A, B, "columns")
    return by_columns[0], by_rows[1], by_columns[2], by_rows[3], _pieces(A, B, cut)[4]


def _by_rank(A: np.ndarray, B: np.ndarray, cut: str) -> Pieces:
    half = len(A) // 2
    return A[:half], B[:, :half], A[half:], B[:, half:], _pieces(A, B, cut)[4]


def _halved(A: np.ndarray, B: np.ndarray, cut: str) -> Pieces:
    A_0, B_0, A_1, B_1, name = _pieces(A, B, cut)
    return (A_0, B_0, A_1, B_1, name) if cut == "rows" else (A_0, B_0 / 2, A_1, B_1 / 2, name)


#: {what to say: a wrong answer}
_CUTS: dict[str, Function] = {
    "The two cuts are exchanged. Where W is cut by its rows, each process makes a part of y and "
    "needs those rows of B; where it is cut by its columns, each gets a part of x.": (
        lambda A, B, cut: _pieces(A, B, _other(cut))
    ),
    "The factors are cut rightly. The other one has to have its gradient summed: the one that "
    "both processes hold whole, since each has seen a part of what it did.": (
        partial(_with_name, _pieces)
    ),
    "You cut both factors. One of them must stay whole in each process: with half of A's columns "
    "and half of B's rows, a quarter of BA is in each, and half of it in neither.": _both_cut,
    "You cut the rank. That makes two adapters of half the rank, each of which needs all of x and "
    "makes all of y, and a process has neither.": _by_rank,
    "The two products are added up already, since each has seen its own part of x: B must not be "
    "halved.": _halved,
}

_rng = np.random.default_rng(0)

check_cut_factors = Exercise(
    asks='A (r, in), B (out, r), "rows" or "columns" → (A_0, B_0, A_1, B_1, "A" or "B").',
    cases=[
        (_rng.standard_normal((2, 4)), _rng.standard_normal((4, 2)), "rows"),
        (_rng.standard_normal((2, 4)), _rng.standard_normal((4, 2)), "columns"),
        (_rng.standard_normal((4, 6)), _rng.standard_normal((8, 4)), "columns"),
        (_rng.standard_normal((4, 6)), _rng.standard_normal((8, 4)), "rows"),
    ],
    right=_pieces,
    mistakes=[Mistake(wrong, says) for says, wrong in _CUTS.items()],
    otherwise=lambda found, A, B, cut: (
        f"Where W is cut by its {cut}, the factors of the two processes do not make BAx together."
    ),
    passed="cut what W's cut runs through, keep the other factor whole, and sum its gradient.",
    parts=("A_0", "B_0", "A_1", "B_1", "the factor whose gradient is summed"),
)
