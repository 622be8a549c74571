"""Checks of chapter 17: a card's room, weights in bfloat16, odds that multiply, TIES by hand."""

from __future__ import annotations

from functools import partial

import numpy as np

from minilora.exercises.tools import Exercise, Function, Mistake


def _room(
    card: float, base: float, adapter: float, gib: float = 2**30, over: bool = False
) -> tuple[int, int]:
    free = card * gib
    copies, adapters = free / base, max(0.0, (free - base) / adapter)
    return (int(np.ceil(copies)), int(np.ceil(adapters))) if over else (int(copies), int(adapters))


#: {what to say: a wrong answer}
_ROOMS: dict[str, Function] = {
    "A GiB is 2³⁰ bytes, and not 10⁹.": partial(_room, gib=1e9),
    "The base is missing from the second number: it lies on the card once, under all adapters.": (
        lambda card, base, adapter: (_room(card, base, adapter)[0], int(card * 2**30 // adapter))
    ),
    "You count a base for every adapter. They share one.": (
        lambda card, base, adapter: (
            _room(card, base, adapter)[0],
            int(card * 2**30 // (base + adapter)),
        )
    ),
    "A merged copy is as large as the base: the update lies in the base's own numbers.": (
        lambda card, base, adapter: (
            int(card * 2**30 // (base + adapter)),
            _room(card, base, adapter)[1],
        )
    ),
    "You round up, and that one does not fit.": partial(_room, over=True),
    "The two are exchanged: first the merged copies, then the adapters over one base.": (
        lambda *given: _room(*given)[::-1]
    ),
}

check_room_on_card = Exercise(
    asks="card in GiB, bytes of the base, bytes of an adapter → how many merged copies fit, and "
    "how many adapters over one base.",
    cases=[
        (80, 13_500_000_000, 80_000_000),
        (24, 12_850_000_000, 160_000_000),
        (12, 13_500_000_000, 80_000_000),
    ],
    right=_room,
    mistakes=[
        Mistake(
            lambda card, base, adapter: (
                int(card * 2**30 // base),
                int((card * 2**30 - base) // adapter),
            ),
            "Where the base itself does not fit, no adapter does: return 0, not a negative number.",
            when=lambda found, *case: found[1] < 0,
        ),
        *(Mistake(answer, says) for says, answer in _ROOMS.items()),
    ],
    otherwise=lambda found, card, base, adapter: (
        f"{card} GiB are {card * 2**30:,} bytes: {_room(card, base, adapter)[0]} times the base, "
        f"or the base and {_room(card, base, adapter)[1]} adapters; found {found}."
    ),
    passed="a copy for each task, or one base and what is left over for adapters.",
    parts=("the merged copies", "the adapters over one base"),
)


def _rounded(values: np.ndarray, bits: int = 8, nearest: Function = np.round) -> np.ndarray:
    """To so many significant bits; a half goes to the even neighbour."""
    mantissa, exponent = np.frexp(values)  # the mantissa lies from ½ to 1
    return np.ldexp(nearest(mantissa * 2**bits), exponent - bits)


#: {what to say: a wrong answer}
_MERGES: dict[str, Function] = {
    "Nothing is rounded. The sum has to be a number of bfloat16 again.": lambda w, d: w + d,
    "You round the update, and the sum can still fall between two numbers of the format. It is the "
    "sum that is stored.": lambda w, d: w + _rounded(d),
    "Seven bits are stored, and the leading one, which is always 1, is not: that makes eight "
    "significant bits.": lambda w, d: _rounded(w + d, 7),
    "That is one bit too many: bfloat16 has eight significant bits, the leading one included.": (
        lambda w, d: _rounded(w + d, 9)
    ),
    "You cut off. The nearest number of the format is taken, above or below.": (
        lambda w, d: _rounded(w + d, nearest=np.trunc)
    ),
    "Your numbers lie equally far apart everywhere. The spacing of a floating-point format grows "
    "with the number: between 2ᵏ and 2ᵏ⁺¹ it is 2ᵏ⁻⁷.": lambda w, d: np.round((w + d) * 256) / 256,
    "That is what arrived of the update. The weights after the merge are wanted.": (
        lambda w, d: _rounded(w + d) - w
    ),
    "The weights are unchanged. Small updates vanish, and not all of these are small.": (
        lambda w, d: w
    ),
}

_WEIGHTS = np.array([1.0, -0.5, 3.0, 0.25, -1.5, 0.015625, 96.0])
_UPDATES = [
    np.array([0.003, -0.003, 0.009, 0.0011, 0.005, 0.0001, 0.3]),
    np.array([0.02, 0.013, -0.3, 0.07, 0.021, -0.003, 5.1]),
]

check_merged_weights = Exercise(
    asks="weights (n,) that are numbers of bfloat16, updates (n,) → the weights after the merge "
    "(n,), in bfloat16 again.",
    cases=[(_WEIGHTS, update) for update in _UPDATES],
    right=lambda w, d: _rounded(w + d),
    mistakes=[Mistake(answer, says) for says, answer in _MERGES.items()],
    otherwise=lambda found, w, d: (
        f"{w[0]:g} and {d[0]:g} make {w[0] + d[0]:g}, and the nearest number with eight "
        f"significant bits is {_rounded(w + d)[0]:.9g}; found {np.round(found[0], 9):g}."
    ),
    passed="the sum, rounded to eight significant bits: what is below half a step is lost.",
    parts="The weights",
)


def _odds(p: float) -> float:
    return p / (1 - p)


def _of(odds: float) -> float:
    return odds / (1 + odds)


#: {what to say: a wrong answer}
_SUMS: dict[str, Function] = {
    "Probabilities are not what the adapters add to. They add to scores, that is, to logarithms of "
    "odds.": lambda p0, p1, p2: p1 + p2,
    "What each adds to the probability is not what adds up. Each multiplies the *odds* by a "
    "factor.": lambda p0, p1, p2: p1 + p2 - p0,
    "That is the chance of two independent events. Here there is one draw, from scores to which "
    "both have added.": lambda p0, p1, p2: 1 - (1 - p1) * (1 - p2),
    "The base is counted twice: both adapters start from it. Divide by its odds once.": (
        lambda p0, p1, p2: _of(_odds(p1) * _odds(p2))
    ),
    "You multiply probabilities. That is right while they are small, and gives more than 1 when "
    "they are not. Multiply odds, p / (1 − p).": lambda p0, p1, p2: p1 * p2 / p0,
    "That is the mean of the two, as for half the strength. Both act in full.": (
        lambda p0, p1, p2: _of((_odds(p1) * _odds(p2)) ** 0.5)
    ),
    "Those are the odds. Turn them into a probability: o / (1 + o).": (
        lambda p0, p1, p2: _odds(p1) * _odds(p2) / _odds(p0)
    ),
}

check_summed_chance = Exercise(
    asks="p of the base, of the base with adapter 1, of the base with adapter 2 → p with their "
    "sum, if each adds to the log-odds what it adds alone.",
    cases=[(0.0001, 0.004, 0.006), (0.01, 0.2, 0.3), (0.2, 0.1, 0.5)],
    right=lambda p0, p1, p2: _of(_odds(p1) * _odds(p2) / _odds(p0)),
    mistakes=[Mistake(answer, says) for says, answer in _SUMS.items()],
    otherwise=lambda found, p0, p1, p2: (
        f"From {p0:g} to {p1:g} the odds grow by a factor of {_odds(p1) / _odds(p0):.3g}, and to "
        f"{p2:g} by {_odds(p2) / _odds(p0):.3g}. Both together make odds of "
        f"{_odds(p1) * _odds(p2) / _odds(p0):.3g}; found the probability {found:.3g}."
    ),
    passed="factors of the odds multiply.",
    parts="The probability",
)


def _trim(updates: np.ndarray, density: float, keep: str = "large") -> np.ndarray:
    """Of each update the largest entries, the others zero."""
    if keep == "all":
        return updates
    size = np.abs(updates)
    if keep == "together":
        count = round(density * updates.size)
        return np.where(size >= np.sort(size, axis=None)[-count], updates, 0)
    count = round(density * updates.shape[1])
    order = np.sort(size, axis=1)
    if keep == "small":
        return np.where(size <= order[:, [count - 1]], updates, 0)
    return np.where(size >= order[:, [-count]], updates, 0)


def _ties(
    updates: np.ndarray,
    density: float,
    keep: str = "large",
    elect: str = "weight",
    end: str = "mean",
) -> np.ndarray:
    trimmed = _trim(updates, density, keep)
    votes = trimmed if elect == "weight" else np.sign(trimmed)
    agree = np.sign(trimmed) == np.sign(votes.sum(0))
    if elect == "none":
        agree = np.ones_like(agree)
    agree = agree & (trimmed != 0)
    total = (trimmed * agree).sum(0)
    if end == "sum":
        return total
    voters = agree.sum(0) if end == "mean" else len(updates)
    return total / np.maximum(voters, 1)


#: {what to say: a wrong answer}
_TIES: dict[str, Function] = {
    "The small entries are still there. First keep, in each update, the largest.": (
        partial(_ties, keep="all")
    ),
    "You keep the smallest entries. Those are the ones that go.": partial(_ties, keep="small"),
    "You take the largest of all updates together, which lets a strong one crowd out the others. "
    "Each is trimmed by itself.": partial(_ties, keep="together"),
    "You count votes. The sign is elected by weight: that of the sum of what is left.": (
        partial(_ties, elect="count")
    ),
    "No sign was elected: entries against the sum's sign have to go before the mean is taken.": (
        partial(_ties, elect="none")
    ),
    "You divide by the number of all updates. The mean is over those left at that entry.": (
        partial(_ties, end="all")
    ),
    "You add up. The mean of those that are left is wanted.": partial(_ties, end="sum"),
    "That is the plain mean. TIES trims and elects before it takes a mean.": (
        lambda updates, density: updates.mean(0)
    ),
}

_THREE = np.array(
    [
        [4.0, -0.2, 3.0, 0.1, -2.0, 0.3],
        [-1.0, 1.6, 0.4, 0.2, 1.5, -0.6],
        [-1.2, 0.7, 0.5, -0.8, 0.9, 0.05],
    ]
)

check_ties = Exercise(
    asks="updates (n, k), the share of the entries that stays in each → the merged update (k,).",
    cases=[(_THREE, 0.5), (_THREE[:2, ::-1].copy(), 0.5), (_THREE + 0.15, 2 / 3)],
    right=_ties,
    mistakes=[Mistake(answer, says) for says, answer in _TIES.items()],
    otherwise=lambda found, updates, density: (
        f"Of {np.round(updates[:, 0], 2).tolist()} in the first place, "
        f"{np.round(_trim(updates, density)[:, 0], 2).tolist()} are left after trimming, and the "
        f"result is {_ties(updates, density)[0]:.3g}; found {np.round(found[0], 3):g}."
    ),
    passed="trimmed, a sign elected by weight, and the mean of those that have it.",
    parts="The merged update",
)
