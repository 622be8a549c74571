"""Checks of chapter 8: how many draws, which rate, how two arms are compared, what is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from minilora import count_parameters, lora_layers
from minilora.exercises.tools import (
    Exercise,
    Function,
    Mistake,
    call,
    close,
    misshapen,
    not_attempted,
    passed,
    require,
)
from minilora.lab.pretrained import ADDER
from minilora.lab.transformer import TransformerClassifier


def _reach(s: float, n: int) -> float:
    from scipy.stats import t  # scikit-learn brings it

    return float(t.ppf(0.975, n - 1) * s / n**0.5)


def _draws(s: float, half: float) -> int:
    return next(n for n in count(2) if _reach(s, n) <= half)


def _for_many(multiple: float) -> Function:
    """So many standard errors, whatever the number of draws."""
    return lambda s, half: max(2, math.ceil((multiple * s / half) ** 2))


check_draws_needed = Exercise(
    asks="s, half → the least number of draws, from 2, at which t · s / √n is at most half.",
    cases=[(1.8, 1.0), (1.2, 1.0), (1.5, 0.5), (0.4, 1.0)],
    right=_draws,
    mistakes=[
        Mistake(
            lambda s, half: (1.96 * s / half) ** 2,
            "Return a whole number of draws.",
            when=lambda found, s, half: found != int(found),
        ),
        *(
            Mistake(
                _for_many(multiple),
                "You use 1.96, or 2, as for many draws. With few the spread itself is uncertain, "
                "and t is larger. It depends on n: try one n after the other.",
            )
            for multiple in (1.96, 2.0)
        ),
        Mistake(
            _for_many(2.7764451),
            "You keep t = 2.78, which is that of five draws. It falls as n grows: take it anew for "
            "each n.",
        ),
        Mistake(
            lambda s, half: _draws(s, half / 2),
            "You make the whole interval as long as half. It reaches so far to either side.",
        ),
        Mistake(
            lambda s, half: _draws(s, 2 * half),
            "Your interval reaches twice as far as it may: half is the distance from its middle to "
            "an end.",
        ),
        Mistake(
            lambda s, half: _draws(s, half) - 1,
            "With one draw more the interval would be short enough; with yours it is not quite.",
        ),
        Mistake(
            lambda s, half: _draws(s, half) + 1,
            "One draw fewer is enough. For n draws t has n − 1 degrees of freedom.",
        ),
        Mistake(
            lambda s, half: next(n for n in count(2) if _reach(s, n) * n**-0.5 <= half),
            "You divide by n. The mean of n draws scatters less by √n only.",
        ),
        Mistake(
            _for_many(1.0),
            "That is where one standard error is as small as half. The interval reaches t of them.",
        ),
    ],
    otherwise=lambda found, s, half: (
        f"With s = {s} and half = {half} you answer {found:,.0f}, where the interval reaches "
        f"{_reach(s, max(2, int(found))):.2f} to either side; the least number is "
        f"{_draws(s, half)}, where it reaches {_reach(s, _draws(s, half)):.2f}."
    ),
    passed="t falls with n, and so does 1/√n; half the length takes about four times the draws.",
    parts="The number of draws",
)


#: {rate: (training, validation, test) losses of three seeds}. Each wrong way to choose has a rate
#: of its own. The numbers of a run that diverged are the last finite ones.
_TUNED = {
    0.0003: ((2.5, 2.5, 2.5), (2.6, 2.6, 2.6), (2.6, 2.6, 2.6)),
    0.001: ((1.0, 1.0, 1.0), (1.2, 1.2, 1.2), (0.7, 0.7, 0.7)),
    0.002: ((0.7, 0.7, 0.7), (0.65, 1.4, 1.3), (1.3, 1.3, 1.3)),
    0.005: ((0.5, 0.5, 0.5), (0.9, 1.0, 0.95), (1.0, 1.0, 1.0)),
    0.007: ((0.45, 0.45, 0.45), (0.85, 0.85, 1.45), (1.1, 1.1, 1.1)),
    0.01: ((0.4, 0.4, 0.4), (1.6, 0.6, 1.4), (1.2, 1.2, 1.2)),
    0.02: ((0.3, 0.3, 0.3), (1.4, 1.3, 0.7), (1.2, 1.2, 1.2)),
    0.05: ((0.1, 0.1, 0.1), (1.5, 1.5, 1.5), (1.6, 1.6, 1.6)),
    0.1: ((0.3, 0.3, 0.3), (0.7, 0.75, 0.2), (0.9, 0.9, 0.9)),
    0.2: ((0.3, 0.3, 2.0), (0.3, 0.35, 2.0), (0.9, 0.9, 2.0)),
}
_DIVERGED = {(0.1, 2), (0.2, 2)}  # (rate, seed)
Rows = list[dict[str, Any]]
Loss = Callable[[Rows], float]
_ROWS: Rows = [
    {
        "lr": rate,
        "train_loss": train[seed],
        "validation_loss": validation[seed],
        "test_loss": test[seed],
        "diverged": (rate, seed) in _DIVERGED,
    }
    for rate, (train, validation, test) in _TUNED.items()
    for seed in range(3)
]
#: The same runs seed by seed, the last first, at a tenth of the rate.
_AGAIN = [{**row, "lr": row["lr"] / 10} for seed in (2, 1, 0) for row in _ROWS[seed::3][::-1]]


def _loss(runs: Rows, key: str = "validation_loss") -> float:
    return float(np.mean([run[key] for run in runs]))


def _safe(loss: Loss = _loss) -> Loss:
    """The loss of a rate, infinite where one of its runs diverged."""
    return lambda runs: float("inf") if any(run["diverged"] for run in runs) else loss(runs)


def _by_rate(rows: Rows) -> dict[float, Rows]:
    return {row["lr"]: [run for run in rows if run["lr"] == row["lr"]] for row in rows}


def _lowest(loss: Loss, rows: Rows) -> float:
    """The rate whose runs have the lowest loss."""
    runs = _by_rate(rows)
    return min(runs, key=lambda rate: loss(runs[rate]))


#: {what to say: (the rate that is chosen, for its lowest loss of what kind)}
_RATES: dict[str, tuple[float, Loss]] = {
    "There the mean loss on validation data is the highest of all. A loss is to be low.": (
        0.0003,
        _safe(lambda runs: -_loss(runs)),
    ),
    "You look at the test loss. Then the test says nothing about new data any more: choose by the "
    "validation loss.": (0.001, _safe(partial(_loss, key="test_loss"))),
    "You look at the first run of each rate only. Average over the runs, or you choose good "
    "luck.": (0.002, _safe(lambda runs: _loss(runs[:1]))),
    "You take the best single run. Average over the runs, or you choose good luck.": (
        0.01,
        _safe(lambda runs: min(run["validation_loss"] for run in runs)),
    ),
    "You look at the last run of each rate only; does each of them overwrite the one before in a "
    "dictionary? Average over the runs.": (0.02, _safe(lambda runs: _loss(runs[-1:]))),
    "You take the median, which does not see that one run in three went wrong. The choice is by "
    "the mean.": (
        0.007,
        _safe(lambda runs: float(np.median([r["validation_loss"] for r in runs]))),
    ),
    "You look at the training loss, which is lowest where the model learns its examples by heart. "
    "Choose by the validation loss.": (0.05, partial(_loss, key="train_loss")),
    "You do not ask whether a run diverged. One of the three at 0.1 did, and the loss that it had "
    "before is no result.": (0.1, _loss),
    "One of the three runs at 0.2 diverged, and you judge the rate by the others. A rate that "
    "fails once may fail again: it is out.": (
        0.2,
        lambda runs: _loss([run for run in runs if not run["diverged"]]),
    ),
}


def _wrong_rate(words: str, rate: float, loss: Loss) -> Mistake:
    return Mistake(
        partial(_lowest, loss),
        f"You choose {rate:g}. {words}",
        when=lambda found, rows: found == rate and rows is _ROWS,
    )


check_choose_rate = Exercise(
    asks="The rows of a tuning run (lr, train_loss, validation_loss, test_loss, diverged) → the "
    "rate to take.",
    cases=[(_ROWS,), (_AGAIN,)],
    right=partial(_lowest, _safe()),
    mistakes=[
        Mistake(
            lambda rows: rows[9],
            "Return the learning rate itself, not its row.",
            when=lambda found, rows: isinstance(found, dict),
        ),
        *(_wrong_rate(words, *wrong) for words, wrong in _RATES.items()),
        Mistake(
            lambda rows: min(map(_safe(), _by_rate(rows).values())),
            "That is the lowest mean loss. Return the rate that it belongs to.",
        ),
        Mistake(
            lambda rows: 0.005,
            "You return 0.005 for other rows too, in which every rate is a tenth of what it was. "
            "Work it out from the rows.",
        ),
    ],
    otherwise=lambda found, rows: (
        f"{found:g} is none of the rates that were tried."
        if rows is _ROWS
        else f"With the rows in another order you choose {found:g} instead of 0.0005. The runs of "
        "one rate need not stand next to each other: collect them by their rate."
    ),
    passed="the lowest mean loss on validation data, of rates that never fail.",
    parts="The answer, one learning rate,",
)


_A = np.array([0.81, 0.84, 0.86, 0.83, 0.89, 0.82, 0.85, 0.80])
_B = np.array([0.78, 0.81, 0.86, 0.79, 0.85, 0.80, 0.83, 0.78])
_T = {8: 2.3646243, 5: 2.7764451}  # t(0.975, n - 1)


def _interval(a: np.ndarray, b: np.ndarray, t: float | None = None) -> tuple[float, float]:
    d = a - b
    return d.mean(), (t or _T[len(d)]) * d.std(ddof=1) / len(d) ** 0.5


def _ends(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    mean, half = _interval(a, b)
    return mean - half, mean + half


def _is_pair(found: Any) -> bool:
    return not misshapen(found, (0.0, 0.0), ("the mean", "the half-width"))


def _near(found: float, right: Any) -> bool:
    """Equal to one of these but for a rounded quantile of t."""
    return bool(np.isclose(found, right, rtol=2e-3, atol=0).any())


def _of_eight(answer: Function, says: Any, when: Callable[..., bool]) -> Mistake:
    """A mistake that the first case, eight runs, shows: ``when(mean, half, a, b)``."""
    return Mistake(
        answer,
        says,
        when=lambda found, a, b: (
            len(a) == 8 and _is_pair(found) and when(float(found[0]), float(found[1]), a, b)
        ),
    )


def _half(halves: Callable[..., Any], says: str) -> Mistake:
    """A half-width that is one of ``halves(std, biased std, t, n)``; the first is the example."""

    def listed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        d = a - b
        return np.ravel(halves(d.std(ddof=1), d.std(), _T[len(d)], len(d)))

    return _of_eight(
        lambda a, b: ((a - b).mean(), listed(a, b)[0]),
        says,
        when=lambda mean, half, a, b: _near(half, listed(a, b)),
    )


def _together(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Half-widths from the scatter of a and of b; t for 7 and 14, then normal, then one."""
    bars = [join(a.std(ddof=k), b.std(ddof=k)) for join in (np.hypot, np.add) for k in (1, 0)]
    return np.outer([_T[8], 2.1447869, 1.96, 1.0], bars) / len(a) ** 0.5


#: {what to say: half-widths, from the standard deviation, the biased one, t and n}
_HALVES: dict[str, Function] = {
    "That is the whole width of the interval. Half of it is asked for.": (
        lambda s, s0, t, n: 2 * t * s / n**0.5
    ),
    "The division by √n is missing: so far do single runs scatter. The mean of eight scatters "
    "less, by √8.": lambda s, s0, t, n: np.outer([t, 1.96], [s, s0]),
    "That is the standard deviation of the differences.": lambda s, s0, t, n: [s, s0],
    "You divide by n. Divide by its root.": lambda s, s0, t, n: [t * s / n, 1.96 * s / n],
    "You mix up variance and standard deviation: the half-width is t · √(variance / n).": (
        lambda s, s0, t, n: [t * s**2 / n**0.5, t * s / n**0.25]
    ),
    "This is one standard error. The 95% interval reaches 2.36 of them to either side, for eight "
    "runs.": lambda s, s0, t, n: [s / n**0.5, s0 / n**0.5],
    "1.96 standard errors, or two, are for many runs. With eight the spread itself is uncertain: "
    "use Student's t, which is 2.36 here.": (
        lambda s, s0, t, n: [1.96 * s / n**0.5, 2 * s / n**0.5]
    ),
    "NumPy's std divides by n. Eight differences lie closer to their own mean than to the true "
    "one, so divide by n − 1: ddof=1.": lambda s, s0, t, n: [t * s0 / n**0.5, 1.96 * s0 / n**0.5],
    "Your quantile of t is 0.95, which leaves 5% on one side. A 95% interval leaves 2.5% on "
    "either: take 0.975.": lambda s, s0, t, n: 1.8945786 * s / n**0.5,
    "Your t is that of n degrees of freedom. The mean has used one up: n − 1.": (
        lambda s, s0, t, n: 2.3060041 * s / n**0.5
    ),
}

check_paired_interval = Exercise(
    asks="a (n,), b (n,) → the mean of a − b, and half the width of its 95% interval.",
    cases=[(_A, _B), (_A[:5], _B[:5])],
    right=_interval,
    mistakes=[
        Mistake(
            lambda a, b: (a - b).mean(),
            "Return two numbers: the mean difference, and half the width of its interval.",
            when=lambda found, a, b: not _is_pair(found),
        ),
        _of_eight(
            _ends,
            "You return the two ends of the interval. Return its middle, the mean difference, and "
            "half its width.",
            when=lambda mean, half, a, b: (
                np.isclose(mean + half, 2 * (a - b).mean()) and not np.isclose(mean, half)
            ),
        ),
        _of_eight(
            lambda a, b: _interval(a, b)[::-1],
            "The two are exchanged: first the mean difference, then the half-width.",
            when=lambda mean, half, a, b: (
                np.isclose(half, (a - b).mean()) and not close(mean, (a - b).mean())
            ),
        ),
        _of_eight(
            lambda a, b: _interval(b, a),
            "The difference is a − b, and you have b − a.",
            when=lambda mean, half, a, b: close(mean, (b - a).mean()),
        ),
        _of_eight(
            lambda a, b: _interval(100 * a, 100 * b),
            "The accuracies are shares from 0 to 1, and so is their difference. You return "
            "percentage points.",
            when=lambda mean, half, a, b: close(mean, 100 * (a - b).mean()),
        ),
        _of_eight(
            lambda a, b: _interval(a / b, 0 * b),
            lambda found, a, b: f"The mean of a − b is {(a - b).mean():.4g}, found {found[0]:.4g}.",
            when=lambda mean, half, a, b: not close(mean, (a - b).mean()),
        ),
        _of_eight(
            lambda a, b: _interval(a, b, -_T[len(a)]),
            "A half-width is positive: take the upper quantile of t, 0.975, not 0.025.",
            when=lambda mean, half, a, b: not half > 0,
        ),
        _of_eight(
            lambda a, b: ((a - b).mean(), np.ptp(a - b)),
            "That is the distance from the smallest difference to the largest. It grows with the "
            "number of runs, and the interval of their mean shrinks: use their standard deviation.",
            when=lambda mean, half, a, b: _near(half, np.ptp(a - b) * np.array([1, 0.5])),
        ),
        _of_eight(
            lambda a, b: ((a - b).mean(), _together(a, b)[0, 0]),
            "You put the scatter of a and of b together, as if they were unrelated. The runs share "
            "their pictures: take the differences first and look at *their* spread.",
            when=lambda mean, half, a, b: _near(half, _together(a, b)),
        ),
        *(_half(halves, says) for says, halves in _HALVES.items()),
        Mistake(
            lambda a, b: _interval(a, b, _T[8]),
            "Your t is 2.36 whatever the number of runs. That is for eight; for five it is 2.78. "
            "Take it from scipy.stats.t.ppf(0.975, n − 1).",
        ),
    ],
    otherwise=lambda found, a, b: (
        f"The half-width is t(0.975, n − 1) · std(a − b, ddof=1) / √n = {_interval(a, b)[1]:.4g}; "
        f"found {found[1]:.4g}."
        if len(a) == 8
        else "With five runs the answer is ({:.4g}, {:.4g}); found ({:.4g}, {:.4g}). Is the number "
        "of runs eight somewhere in your function?".format(*_interval(a, b), *found)
    ),
    passed="pairing first, then Student's t.",
    parts=("the mean", "the half-width"),
    same=lambda found, right: (
        _is_pair(found) and close(found[0], right[0]) and _near(found[1], right[1])
    ),
)


def check_budget(function: Function, budget: int = 4000) -> None:
    """``function(model)`` adds adapters that train at most ``budget`` parameters, and half of it.

    The model is the chapter's adder, before its pretraining.
    """
    import torch

    torch.manual_seed(0)
    model = TransformerClassifier(ADDER)
    whole = count_parameters(model)
    pictures = torch.rand(4, 1, 8, 16)
    before = model(pictures).detach()
    answer = call(function, model)
    require(
        answer is not None or not lora_layers(model),
        "You adapt the model and return nothing. Return it, as add_lora does.",
    )
    if not_attempted(answer):
        return
    require(
        isinstance(answer, torch.nn.Module),
        f"Return the model, as add_lora does; found {type(answer).__name__}.",
    )
    layers = lora_layers(answer)
    require(
        layers,
        "There is no adapter on the model: call minilora.add_lora(model, LoRAConfig(…)).",
    )
    require(
        torch.allclose(answer(pictures).detach(), before, atol=1e-5),
        "The adapted model does not start where the base stands. Leave B (or A) at zero.",
    )
    factors = {id(p) for layer in layers.values() for p in layer.trained()}
    extra = {
        name: p.numel()
        for name, p in answer.named_parameters()
        if p.requires_grad and id(p) not in factors
    }
    require(
        2 * sum(extra.values()) < whole,
        f"The base is not frozen: {sum(extra.values()):,} parameters would be trained beside the "
        "adapters. add_lora freezes it, so do not turn its gradients on again.",
    )
    require(
        not any(name.startswith("head.") for name in extra),
        "The head is trained as well. It is no adapter: freeze it, and leave it out of "
        "modules_to_save. (It may have an adapter of its own.)",
    )
    require(
        not extra,
        f"{next(iter(extra), None)} is trained as well, and is no part of an adapter. Freeze it.",
    )
    trained = count_parameters(answer, trainable_only=True)
    require(trained > 0, "Nothing would be trained: the factors A and B are frozen.")
    require(
        trained <= budget,
        f"{trained:,} parameters would be trained, {trained - budget:,} more than the budget of "
        f"{budget:,}. Lower the rank, or adapt fewer layers.",
    )
    require(
        2 * trained >= budget,
        f"Only {trained:,} parameters would be trained. Spend at least half of {budget:,}.",
    )
    passed(f"{trained:,} of {budget:,} parameters, on {len(layers)} layers.")
