"""Checks of chapter 8: what is trained, how a rate is chosen, how two arms are compared."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np

from minilora.exercises.tools import Function, array, call, close, not_attempted, passed, require


def check_lora_count(function: Function) -> None:
    """``function(shapes, r)`` counts what LoRA trains on layers of these shapes (d_out, d_in)."""
    layers = [(48, 48), (48, 48), (192, 48), (48, 192), (10, 48)]
    for shapes, r in ((layers, 4), (layers[::2], 3)):
        answer = call(function, list(shapes), r)
        if not_attempted(answer):
            return
        require(
            np.shape(answer) != (len(shapes),),
            "You return one number for each layer. Add them up.",
        )
        found = float(array(answer, (), "The count"))
        d_out, d_in = np.array(shapes).T
        matrices, factors = (d_out * d_in).sum(), (r * (d_out + d_in)).sum()
        require(
            found != matrices,
            "You count the frozen matrices. LoRA trains their factors A and B instead.",
        )
        require(
            found != matrices + factors,
            "You count the frozen matrices as well. They are there, but only A and B are trained.",
        )
        require(
            found != r * matrices,
            "You multiply the whole matrix by the rank. Each rank adds one column to B and one row "
            "to A, so d_out + d_in numbers and not d_out · d_in.",
        )
        require(found != factors / r, "You leave the rank out: this is the count for rank 1.")
        require(
            found != r * d_in.sum(),
            "You count A and forget B, of shape (d_out, r).",
        )
        require(
            found != r * d_out.sum(),
            "You count B and forget A, of shape (r, d_in).",
        )
        require(
            found not in (2 * r * d_in.sum(), 2 * r * d_out.sum()),
            "You count one factor twice. Only on a square matrix are A and B of the same size: A "
            "has r · d_in numbers and B d_out · r.",
        )
        require(
            found != factors - r**2 * len(shapes),
            "You take off r². That many numbers are not free in a matrix of rank r, but A and B "
            "are trained whole.",
        )
        require(
            found != factors + d_out.sum(),
            "You add the biases. They belong to the frozen layer.",
        )
        require(
            found not in (r * sum(shapes[0]), r * sum(shapes[-1])),
            "You count a single layer. Add up over all of them.",
        )
        require(
            found == factors,
            f"For rank {r} and the shapes {shapes} the count is {factors:,}, r · (d_out + d_in) "
            f"for each layer, added up; you count {found:,.0f}.",
        )
    passed("r · (d_in + d_out) for each adapted layer.")


#: {rate: (training, validation, test) losses of three seeds}. Each wrong way to choose has a rate
#: of its own. The numbers of a run that diverged are the last finite ones.
_TUNED = {
    0.0003: ((2.5, 2.5, 2.5), (2.6, 2.6, 2.6), (2.6, 2.6, 2.6)),
    0.001: ((1.0, 1.0, 1.0), (1.2, 1.2, 1.2), (0.7, 0.7, 0.7)),
    0.002: ((0.7, 0.7, 0.7), (0.65, 1.4, 1.3), (1.3, 1.3, 1.3)),
    0.005: ((0.5, 0.5, 0.5), (0.9, 1.0, 0.95), (1.0, 1.0, 1.0)),
    0.01: ((0.4, 0.4, 0.4), (1.6, 0.6, 1.4), (1.2, 1.2, 1.2)),
    0.02: ((0.3, 0.3, 0.3), (1.4, 1.3, 0.7), (1.2, 1.2, 1.2)),
    0.05: ((0.1, 0.1, 0.1), (1.5, 1.5, 1.5), (1.6, 1.6, 1.6)),
    0.1: ((0.3, 0.3, 0.3), (0.7, 0.75, 0.2), (0.9, 0.9, 0.9)),
    0.2: ((0.3, 0.3, 50.0), (0.3, 0.35, 50.0), (0.9, 0.9, 50.0)),
}
_DIVERGED = {(0.1, 2), (0.2, 2)}  # (rate, seed)
_BEST_RATE = 0.005

_WRONG_RATES = {
    0.0003: "There the mean loss on validation data is the highest of all. A loss is to be low.",
    0.001: "You look at the test loss. Then the test says nothing about new data any more: choose "
    "by the validation loss.",
    0.002: "You look at the first run of each rate only. Average over the runs, or you choose good "
    "luck.",
    0.01: "You take the best single run. Average over the runs, or you choose good luck.",
    0.02: "You look at the last run of each rate only; does each of them overwrite the one before "
    "in a dictionary? Average over the runs.",
    0.05: "You look at the training loss, which is lowest where the model learns its examples by "
    "heart. Choose by the validation loss.",
    0.1: "You do not ask whether a run diverged. One of the three at 0.1 did, and the loss that it "
    "had before is no result.",
    0.2: "One of the three runs at 0.2 diverged, and you judge the rate by the others. A rate that "
    "fails once may fail again: it is out.",
}


def _tuning_rows() -> list[dict[str, Any]]:
    return [
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


def check_choose_rate(function: Function) -> None:
    """``function(rows)`` chooses the learning rate from the rows of a tuning run."""
    rows = _tuning_rows()
    answer = call(function, deepcopy(rows))
    if not_attempted(answer):
        return
    require(not isinstance(answer, dict), "Return the learning rate itself, not its row.")
    found = float(array(answer, (), "The answer, one learning rate,"))
    require(found not in _WRONG_RATES, f"You choose {found:g}. {_WRONG_RATES.get(found)}")
    require(
        not close(found, np.mean(_TUNED[_BEST_RATE][1])),
        "That is the lowest mean loss. Return the rate that it belongs to.",
    )
    require(found == _BEST_RATE, f"{found:g} is none of the rates that were tried.")
    # The same runs seed by seed, the last first, at a tenth of the rate.
    rows = [{**row, "lr": row["lr"] / 10} for seed in (2, 1, 0) for row in rows[seed::3][::-1]]
    again = float(array(call(function, deepcopy(rows)), (), "The answer, one learning rate,"))
    require(
        not close(again, _BEST_RATE),
        f"You return {_BEST_RATE:g} for other rows too, in which every rate is a tenth of what it "
        "was. Work it out from the rows.",
    )
    require(
        close(again, _BEST_RATE / 10),
        f"With the rows in another order you choose {again:g} instead of {_BEST_RATE / 10:g}. The "
        "runs of one rate need not stand next to each other: collect them by their rate.",
    )
    passed("the lowest mean loss on validation data, of rates that never fail.")


def check_paired_interval(function: Function) -> None:
    """``function(a, b)`` → the mean of a − b, and half the width of its 95% interval."""
    a = np.array([0.81, 0.84, 0.86, 0.83, 0.88, 0.82, 0.85, 0.80])
    b = np.array([0.78, 0.81, 0.86, 0.79, 0.85, 0.80, 0.83, 0.78])
    answer = call(function, a.copy(), b.copy())
    if not_attempted(answer):
        return
    require(
        isinstance(answer, (tuple, list, np.ndarray))
        and [np.ndim(one) for one in answer] == [0, 0],
        "Return two numbers: the mean difference, and half the width of its interval.",
    )
    mean, half = array(answer, (2,), "The answer")
    d, root, t = a - b, 8**0.5, 2.3646243  # t(0.975, 7)
    spread, biased = d.std(ddof=1), d.std()
    right = t * spread / root
    together = [np.hypot(a.std(), b.std()) / root, (a.std() + b.std()) / root]
    together += [part * spread / biased for part in together]

    def is_half(*candidates: float) -> bool:
        return any(np.isclose(half, one, rtol=2e-3, atol=0) for one in candidates)

    require(
        not np.isclose(mean + half, 2 * d.mean()) or np.isclose(mean, half),
        "You return the two ends of the interval. Return its middle, the mean difference, and half "
        "its width.",
    )
    require(
        close(mean, d.mean()) or not np.isclose(half, d.mean()),
        "The two are exchanged: first the mean difference, then the half-width.",
    )
    require(not close(mean, -d.mean()), "The difference is a − b, and you have b − a.")
    require(
        not close(mean, 100 * d.mean()),
        "The accuracies are shares from 0 to 1, and so is their difference. You return percentage "
        "points.",
    )
    require(close(mean, d.mean()), f"The mean of a − b is {d.mean():.4g}, found {mean:.4g}.")
    require(half > 0, "A half-width is positive: take the upper quantile of t, 0.975, not 0.025.")
    require(
        not is_half(*(q * part for q in (t, 2.1447869, 1.96, 1.0) for part in together)),
        "You put the scatter of a and of b together, as if they were unrelated. The runs share "
        "their pictures: take the differences first and look at *their* spread.",
    )
    require(
        not is_half(2 * right),
        "That is the whole width of the interval. Half of it is asked for.",
    )
    require(
        not is_half(t * spread, 1.96 * spread, t * biased, 1.96 * biased),
        "The division by √n is missing: so far do single runs scatter. The mean of eight scatters "
        "less, by √8.",
    )
    require(not is_half(spread, biased), "That is the standard deviation of the differences.")
    require(not is_half(t * spread / 8, 1.96 * spread / 8), "You divide by n. Divide by its root.")
    require(
        not is_half(t * spread**2 / root, t * spread / root**0.5),
        "You mix up variance and standard deviation: the half-width is t · √(variance / n).",
    )
    require(
        not is_half(spread / root, biased / root),
        "This is one standard error. The 95% interval reaches 2.36 of them to either side, for "
        "eight runs.",
    )
    require(
        not is_half(1.96 * spread / root, 2 * spread / root),
        "1.96 standard errors, or two, are for many runs. With eight the spread itself is "
        "uncertain: use Student's t, which is 2.36 here.",
    )
    require(
        not is_half(t * biased / root, 1.96 * biased / root),
        "NumPy's std divides by n. Eight differences lie closer to their own mean than to the true "
        "one, so divide by n − 1: ddof=1.",
    )
    require(
        not is_half(1.8945786 * spread / root),
        "Your quantile of t is 0.95, which leaves 5% on one side. A 95% interval leaves 2.5% on "
        "either: take 0.975.",
    )
    require(
        not is_half(2.3060041 * spread / root),
        "Your t is that of n degrees of freedom. The mean has used one up: n − 1.",
    )
    require(
        is_half(right),
        f"The half-width is t(0.975, n − 1) · std(a − b, ddof=1) / √n = {right:.4g}; found "
        f"{half:.4g}.",
    )
    d, root = d[:5], 5**0.5
    again = array(call(function, a[:5].copy(), b[:5].copy()), (2,), "The answer")
    wrong, right = t * d.std(ddof=1) / root, 2.7764451 * d.std(ddof=1) / root
    require(
        not np.isclose(again[1], wrong, rtol=2e-3, atol=0),
        "Your t is 2.36 whatever the number of runs. That is for eight; for five it is 2.78. Take "
        "it from scipy.stats.t.ppf(0.975, n − 1).",
    )
    require(
        np.allclose(again, [d.mean(), right], rtol=2e-3, atol=0),
        f"With five runs the answer is ({d.mean():.4g}, {right:.4g}); found ({again[0]:.4g}, "
        f"{again[1]:.4g}). Is the number of runs eight somewhere in your function?",
    )
    passed("pairing first, then Student's t.")


def check_budget(function: Function, budget: int = 4000) -> None:
    """``function(model)`` adds adapters that train at most ``budget`` parameters, and half of it.

    The model is the chapter's adder, before its pretraining.
    """
    import torch

    from minilora import count_parameters, lora_layers
    from minilora.lab.pretrained import ADDER
    from minilora.lab.transformer import TransformerClassifier

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
    count = count_parameters(answer, trainable_only=True)
    require(count > 0, "Nothing would be trained: the factors A and B are frozen.")
    require(
        count <= budget,
        f"{count:,} parameters would be trained, {count - budget:,} more than the budget of "
        f"{budget:,}. Lower the rank, or adapt fewer layers.",
    )
    require(
        2 * count >= budget,
        f"Only {count:,} parameters would be trained. Spend at least half of {budget:,}.",
    )
    passed(f"{count:,} of {budget:,} parameters, on {len(layers)} layers.")
