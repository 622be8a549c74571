"""Checks of chapter 19: a flat spectrum, bits of an episode, true alarms, a borrowed spectrum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minilora.exercises.tools import Exercise, Function, Mistake


def _least_rank(left_over: float) -> int:
    return math.ceil(left_over - 1e-9)


check_flat_rank = Exercise(
    asks="n, relative error → the least rank that comes so near to n equal singular values.",
    cases=[(128, 0.1), (64, 0.5), (10, 0.7), (1000, 0.3)],
    right=lambda n, error: _least_rank(n * (1 - error**2)),
    mistakes=[
        Mistake(
            lambda n, error: _least_rank(n * (1 - error)),
            "The squares are missing. What is left out is a share of the sum of *squares*, and the "
            "relative error is the root of it.",
        ),
        Mistake(
            lambda n, error: _least_rank(n * error**2),
            "These are the pieces that may be left out. Asked is how many have to stay.",
        ),
        Mistake(
            lambda n, error: _least_rank(n * error),
            "These are the pieces that may be left out, and without the square. Asked is how many "
            "have to stay.",
        ),
        Mistake(
            lambda n, error: math.floor(n * (1 - error**2) + 1e-9),
            "Rounded down: with this rank the error is still a little larger than asked for. Round "
            "up.",
        ),
        Mistake(
            lambda n, error: n * (1 - error**2),
            "A rank is a whole number: round up to the next.",
        ),
        Mistake(
            lambda n, error: _least_rank(n * (1 - error**2) ** 0.5),
            "One root too many. The relative error is √(1 − r/n), and r/n itself stands under it.",
        ),
    ],
    otherwise=lambda found, n, error: (
        f"With r of {n} equal singular values kept, the relative error is √(1 − r/{n}). Which r "
        f"brings it to {error}? Found {found!r:.40}."
    ),
    passed="of a flat spectrum nearly all pieces are needed: a tenth of error leaves out one in "
    "a hundred.",
    parts="The rank",
)


def _bit(p: float) -> float:
    """The bits of a yes that comes with probability p."""
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


check_least_episodes = Exercise(
    asks="facts, answers to choose from → the least number of episodes, while one guesses.",
    cases=[(100, 19), (16, 2), (1000, 1024)],
    right=lambda facts, answers: math.ceil(facts * math.log2(answers) / _bit(1 / answers) - 1e-9),
    mistakes=[
        Mistake(
            lambda facts, answers: math.ceil(facts * math.log2(answers) - 1e-9),
            "You count one bit for each episode. A 'right' or 'wrong' brings a whole bit only "
            "where both are equally likely, and somebody who guesses is nearly always wrong.",
        ),
        Mistake(
            lambda facts, answers: facts,
            "So many labelled examples would do: a label tells the answer. A reward only tells "
            "whether one answer was right.",
        ),
        Mistake(
            lambda facts, answers: facts * answers,
            "To try all answers of every fact is a way to learn them, and not a bound. Divide the "
            "bits of the table by the bits of an episode.",
        ),
        Mistake(
            lambda facts, answers: math.ceil(facts * math.log(answers) / _bit(1 / answers) - 1e-9),
            "Nats are divided by bits. Take log2 in both places, or log in both.",
        ),
        Mistake(
            lambda facts, answers: facts * math.log2(answers) / _bit(1 / answers),
            "Episodes are whole: round up.",
        ),
    ],
    otherwise=lambda found, facts, answers: (
        f"The table holds {facts * math.log2(answers):.5g} bits, and a reward that comes with "
        f"probability 1/{answers} brings {_bit(1 / answers):.3g} bits at most; found "
        f"{found!r:.40}."
    ),
    passed="an episode brings a bit at most, and a part of one while the answers are guessed.",
    parts="The number of episodes",
)


def _alarms(share: float, found: float, false: float) -> float:
    return share * found / (share * found + (1 - share) * false)


check_true_alarms = Exercise(
    asks="share poisoned, share of these found, share of false alarms → how many alarms are right.",
    cases=[(0.001, 0.97, 0.02), (0.2, 0.97, 0.02), (0.5, 0.8, 0.1)],
    right=_alarms,
    mistakes=[
        Mistake(
            lambda share, found, false: found,
            "That is the share of poisoned adapters that raise an alarm. Asked is the share of "
            "alarms that come from poisoned adapters, and most adapters are clean.",
        ),
        Mistake(
            lambda share, found, false: found / (found + false),
            "You leave out how rare poisoned adapters are. Count the alarms among a thousand "
            "adapters of both kinds.",
        ),
        Mistake(
            lambda share, found, false: 1 - false,
            "That is the share of clean adapters that raise no alarm. Asked is how many alarms are "
            "right.",
        ),
        Mistake(
            lambda share, found, false: share * found,
            "These are the true alarms among all adapters. Divide them by all alarms, the false "
            "ones included.",
        ),
        Mistake(
            lambda share, found, false: share * found / (share * found + false),
            "The false alarms come from the clean adapters alone, a share of 1 − share.",
        ),
        Mistake(
            lambda share, found, false: 1 - _alarms(share, found, false),
            "That is the share of alarms that are wrong.",
        ),
    ],
    otherwise=lambda found, share, hit, false: (
        f"Among 1,000 adapters {1000 * share * hit:.3g} alarms are true and "
        f"{1000 * (1 - share) * false:.3g} false; found {found!r:.40}."
    ),
    passed="where one in a thousand is poisoned, most alarms of a detector that is 97% right are "
    "false.",
    parts="The share",
)


def _pieces(matrix: np.ndarray) -> Any:
    return np.linalg.svd(matrix, full_matrices=False)


def _borrowed(poisoned: np.ndarray, clean: np.ndarray) -> np.ndarray:
    U, _, Vt = _pieces(poisoned)
    return (U * _pieces(clean)[1]) @ Vt


def _exchanged(poisoned: np.ndarray, clean: np.ndarray) -> np.ndarray:
    return _borrowed(clean, poisoned)


def _same_norm(poisoned: np.ndarray, clean: np.ndarray) -> np.ndarray:
    return poisoned * np.linalg.norm(clean) / np.linalg.norm(poisoned)


def _half(poisoned: np.ndarray, clean: np.ndarray, left: bool) -> np.ndarray:
    U, _, Vt = _pieces(poisoned)
    V_clean, S, Vt_clean = _pieces(clean)
    return (U * S) @ Vt_clean if left else (V_clean * S) @ Vt


def _example(seed: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


_WITHOUT: dict[str, Function] = {
    "The two are exchanged: you give the clean adapter the poisoned one's spectrum. Its trigger is "
    "still not there.": _exchanged,
    "You bring the poisoned update to the clean one's *norm*. Its singular values keep their "
    "ratios, and the detector reads those as well.": _same_norm,
    "You return the clean update: that one has no trigger. Keep the poisoned one's singular "
    "vectors.": lambda poisoned, clean: clean.copy(),
    "You return the poisoned update as it is, with a spectrum that the detector knows.": (
        lambda poisoned, clean: poisoned.copy()
    ),
    "The left singular vectors are the poisoned one's and the right ones the clean one's. What is "
    "read from the input belongs to the trigger as well.": lambda p, c: _half(p, c, True),
    "The right singular vectors are the poisoned one's and the left ones the clean one's. What is "
    "written to the output belongs to the trigger as well.": lambda p, c: _half(p, c, False),
}

check_disguise = Exercise(
    asks="two updates → the first one's singular vectors with the second one's singular values.",
    cases=[(_example(0, (5, 4)), _example(1, (5, 4))), (_example(2, (3, 6)), _example(3, (3, 6)))],
    right=_borrowed,
    mistakes=[Mistake(wrong, says) for says, wrong in _WITHOUT.items()],
    otherwise="Its singular values should be those of the clean update, and its singular vectors "
    "those of the poisoned one: U of the one, Σ of the other, Vᵀ of the one.",
    passed="every number that is read off the singular values alone is now a clean adapter's.",
    parts="The update",
)
