"""Checks of chapter 9: ladders of learning rates, scalings, the same run, parameter groups, decay.

torch is imported where a check trains or looks at a model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minilora import LoRAConfig, add_lora, lora_layers
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

INF = float("inf")


def _rung(losses: dict[float, float], order: Callable[..., list[float]] = sorted) -> str:
    rates = order(losses)
    best = min(rates, key=lambda rate: losses[rate])
    return "lower" if best == rates[0] else "higher" if best == rates[-1] else "no"


def _finite(losses: dict[float, float]) -> str:
    return _rung({rate: loss for rate, loss in losses.items() if loss < INF})


#: {what to say: (losses, an answer that is wrong there)}
_LADDERS: dict[str, tuple[dict[float, float], Function]] = {
    "The best of 0.001, 0.002 and 0.005 is 0.002, with a worse rate on either side: nothing is "
    "missing.": ({1e-3: 1.0, 2e-3: 0.8, 5e-3: 0.9}, lambda losses: "higher"),
    "A dictionary keeps the order in which it was filled. Sort the rates before you ask which is "
    "the first and which the last.": (
        {5e-3: 0.9, 1e-3: 1.0, 2e-3: 0.8},
        partial(_rung, order=list),
    ),
    "The best of three falling losses is at the highest rate: nobody knows yet where the loss "
    "turns.": ({1e-3: 1.0, 2e-3: 0.8, 5e-3: 0.7}, lambda losses: "no"),
    "The best of three rising losses is at the lowest rate: a lower one may be better yet.": (
        {1e-3: 0.6, 2e-3: 0.8, 5e-3: 0.9},
        lambda losses: _rung(losses).replace("lower", "no"),
    ),
    "A run that diverged is a worse neighbour like any other. With 0.9, 0.8 and a run that "
    "diverged the best rate lies inside.": ({1e-3: 0.9, 2e-3: 0.8, 5e-3: INF}, _finite),
    "With a run that diverged on the left and 0.9 on the right, 0.8 lies inside as well.": (
        {1e-3: INF, 2e-3: 0.8, 5e-3: 0.9},
        lambda losses: "lower" if losses[1e-3] == INF else _rung(losses),
    ),
}


def _exchanged(rung: Function, losses: dict[float, float]) -> str:
    return {"lower": "higher", "higher": "lower", "no": "no"}[rung(losses)]


def _wrong_at(ladder: dict[float, float], answer: Function, says: str) -> Mistake:
    return Mistake(answer, says, when=lambda found, losses: losses is ladder)


check_needs_rung = Exercise(
    asks='{rate: validation loss} → "lower", "higher" or "no".',
    cases=[(losses,) for losses, _ in _LADDERS.values()],
    right=_rung,
    mistakes=[
        Mistake(
            lambda losses: 0.002,
            lambda found, losses: f'Return "lower", "higher" or "no"; found {found!r}.',
            when=lambda found, losses: found not in ("lower", "higher", "no"),
        ),
        *(
            Mistake(
                partial(_exchanged, rung),
                'The sides are exchanged. Where the highest rate is the best, a still "higher" one '
                "may be better yet.",
            )
            for rung in (_rung, partial(_rung, order=list), _finite)
        ),
        *(_wrong_at(*wrong, says) for says, wrong in _LADDERS.items()),
    ],
    otherwise="The best rate must have a worse neighbour on either side.",
    passed="a best rate is one that has a worse neighbour on either side.",
)


#: {what to say: a wrong α'}
_ALPHAS: dict[str, Function] = {
    "You divide by √r. The standard scaling divides by more than rsLoRA does, so its α must be the "
    "larger one.": lambda alpha, r: alpha / r**0.5,
    "You multiply by r, which would undo the standard scaling altogether and leave the bare α.": (
        lambda alpha, r: alpha * r
    ),
    "The same α gives α/r = 2 in one program and α/√r = 8 in the other.": lambda alpha, r: alpha,
    "That is the factor in front of BA, not the α that makes it.": lambda alpha, r: alpha / r,
}

check_standard_alpha = Exercise(
    asks="α, r → the α' for which α'/r is α/√r.",
    cases=[(32.0, 16), (8.0, 1), (5.0, 10)],
    right=lambda alpha, r: alpha * r**0.5,
    mistakes=[Mistake(wrong, says) for says, wrong in _ALPHAS.items()],
    otherwise=lambda found, alpha, r: (
        f"For α = {alpha:g} and r = {r} the factor is {alpha / r**0.5:.4g}; with yours it is "
        f"{found / r:.4g}."
    ),
    passed="α'/r = α/√r.",
    parts="The α",
)


def _losses(alpha: float, lr_A: float, lr_B: float, p: float, q: float) -> np.ndarray:
    """Ten steps of gradient descent on one layer that starts at pA and qB: the squared errors."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=(5, 6))
    A, B = p * rng.normal(size=(2, 6)), q * 0.1 * rng.normal(size=(5, 2))
    scale, losses = alpha / 2, []
    for _ in range(10):
        gap = scale * B @ A - target
        losses.append((gap**2).sum())
        G = 2 * gap
        A, B = A - lr_A * scale * B.T @ G, B - lr_B * scale * G @ A.T
    return np.array(losses)


def _run_from(
    rates: Function, alpha: float, a: float, b: float, p: float, q: float
) -> tuple[float, float, float]:
    return (alpha / (p * q), *rates(a, b, p, q))


def _parting(found: Any, alpha: float, a: float, b: float, p: float, q: float) -> str:
    first = _losses(alpha, a, b, 1.0, 1.0)[-1]
    second = _losses(found[0], found[1], found[2], p, q)[-1]
    return (
        f"After ten steps the losses are {first:.6g} and {second:.6g}: the second run leaves the "
        "first."
    )


#: {what to say: wrong rates of A and of B}
_RATES: dict[str, list[Function]] = {
    "These are Adam's rates, p and q times the old ones. Adam divides the size of the gradient "
    "out; a plain step keeps it, and A's gradient is only 1/p of what it was.": [
        lambda a, b, p, q: (p * a, q * b)
    ],
    "A is p times as large and must move p times as far, with a gradient that is 1/p of what it "
    "was. Its rate has to grow, not fall or stay.": [
        lambda a, b, p, q: (a, b),
        lambda a, b, p, q: (a / p, b / q),
        lambda a, b, p, q: (a / p**2, b / q**2),
    ],
    "The two are exchanged: p belongs to A.": [lambda a, b, p, q: (q**2 * a, p**2 * b)],
}

check_same_run_sgd = Exercise(
    asks="α, rate of A, rate of B, p, q → the three for the same run, from pA and qB.",
    cases=[(1.0, 0.01, 0.02, 4.0, 2.0), (2.0, 0.005, 0.005, 3.0, 0.5)],
    right=lambda *case: np.array(_run_from(lambda a, b, p, q: (p**2 * a, q**2 * b), *case)),
    mistakes=[
        Mistake(
            lambda alpha, a, b, p, q: (alpha * p * q, p**2 * a, q**2 * b),
            "Your α is multiplied. Larger factors want a smaller α, so that αBA stays what it was.",
        ),
        Mistake(
            lambda alpha, a, b, p, q: (alpha, p**2 * a, q**2 * b),
            lambda found, alpha, a, b, p, q: (
                f"With pA and qB the update αBA must stay the same: α = {alpha / (p * q):g}, found "
                f"{found[0]:g}."
            ),
            when=lambda found, alpha, a, b, p, q: (
                not misshapen(found, np.zeros(3), "") and not close(found[0], alpha / (p * q))
            ),
        ),
        *(Mistake(partial(_run_from, wrong), says) for says in _RATES for wrong in _RATES[says]),
    ],
    otherwise=_parting,
    passed="p² for A and q² for B: once for its size, once for its gradient.",
    parts="The answer: (α, rate of A, rate of B), which",
)


def check_rate_groups(function: Function) -> None:
    """``function(model, lr, ratio)`` → two parameter groups: all A at lr, all B at ratio · lr."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    layers = lora_layers(add_lora(model, LoRAConfig(r=2, alpha=2, targets=["0", "2"])))
    answer = call(function, model, 0.01, 4.0)
    if not_attempted(answer):
        return
    require(
        isinstance(answer, (list, tuple))
        and len(answer) == 2
        and all(isinstance(group, dict) and {"params", "lr"} <= group.keys() for group in answer),
        'Return a list of two dictionaries, each with "params" and "lr".',
    )
    names = {id(layer.A): f"{path}.A" for path, layer in layers.items()}
    names |= {id(layer.B): f"{path}.B" for path, layer in layers.items()}
    rates = {}
    for group in answer:
        params = group["params"]
        for parameter in [params] if isinstance(params, torch.Tensor) else list(params):
            require(
                id(parameter) in names,
                "A group holds a parameter that is no factor of an adapter: the base is frozen and "
                "has no place in an optimizer.",
            )
            require(
                names[id(parameter)] not in rates, f"{names[id(parameter)]} stands in two groups."
            )
            rates[names[id(parameter)]] = float(group["lr"])
    missing = sorted(set(names.values()) - rates.keys())
    require(not missing, f"No group holds {', '.join(missing)}: it would never train.")
    of_A, of_B = ({rates[name] for name in names.values() if name[-1] == factor} for factor in "AB")
    require(
        not (of_A == {0.04} and of_B == {0.01}),
        "The two are exchanged: it is B that gets the higher rate.",
    )
    require(
        not (of_A == {0.01} and of_B == {0.0025}),
        "You divide by the ratio. It is B's rate over A's, so B's is ratio times lr.",
    )
    require(of_B != {4.0}, "You gave B the ratio itself for a rate. Multiply it by lr.")
    require(
        of_A == {0.01} and len(of_B) == 1 and close(of_B.pop(), 0.04),
        f"All A should learn at 0.01 and all B at 0.04; found {rates}.",
    )
    torch.optim.AdamW(list(answer))  # an optimizer takes them
    passed("A at lr, B at ratio times lr, and nothing left out.")


def _decayed(*case: Any) -> tuple[np.ndarray, np.ndarray]:
    W0, update, keep, _ = _decay(*case)
    return keep * (W0 + update), W0 + keep**2 * update


def _decay(W0: Any, A: Any, B: Any, scale: float, lr: float, decay: float, steps: int) -> Any:
    """W₀, the update, and what is left of a number: (1 − ηλ)^steps, and wrongly 1 − ηλ · steps."""
    return W0, scale * B @ A, (1 - lr * decay) ** steps, 1 - lr * decay * steps


#: {what to say: [(number of the weight, what it is)]}
_WEIGHTS: dict[str, list[tuple[int, Function]]] = {
    "In full fine-tuning the whole weight is a trained number, W₀ included: all of it shrinks.": [
        (0, lambda W0, update, keep, linear: W0 + keep * update)
    ],
    "The weight is multiplied by 1 − ηλ at every step, and does not lose the same amount each "
    "time: take the power.": [(0, lambda W0, update, keep, linear: linear * (W0 + update))],
    "In LoRA W₀ is frozen, and the optimizer does not know of it: it cannot shrink.": [
        (1, lambda W0, update, keep, linear: keep * (W0 + update)),
        (1, lambda W0, update, keep, linear: keep * W0 + update),
    ],
    "Both factors shrink, A and B, so their product shrinks twice at each step.": [
        (1, lambda W0, update, keep, linear: W0 + keep * update)
    ],
    "The update has not gone after so few steps; it only shrinks.": [
        (1, lambda W0, update, keep, linear: W0)
    ],
}


def _part(i: int, weight: Function, says: str) -> Mistake:
    """The first weight that is wrong is number i, and is ``weight(*_decay(…))``."""
    return Mistake(
        lambda *case: [
            weight(*_decay(*case)) if k == i else w for k, w in enumerate(_decayed(*case))
        ],
        says,
        when=lambda found, *case: (
            close(found[:i], _decayed(*case)[:i], 10)
            and close(found[i], weight(*_decay(*case)), 10)
        ),
    )


_draw = np.random.default_rng(1).normal

check_after_decay = Exercise(
    asks="W0, A, B, scale, lr, decay, steps → the weight after full fine-tuning, and after LoRA.",
    cases=[(_draw(size=(4, 5)), _draw(size=(2, 5)), _draw(size=(4, 2)), 3.0, 0.1, 0.5, 7)],
    right=_decayed,
    mistakes=[
        Mistake(
            lambda *case: _decayed(*case)[0],
            "Return two weights: after full fine-tuning, and after LoRA.",
            when=lambda found, *case: not (isinstance(found, (tuple, list)) and len(found) == 2),
        ),
        Mistake(
            lambda *case: _decayed(*case)[::-1],
            "The two are exchanged: first full fine-tuning, then LoRA.",
        ),
        *(_part(i, weight, says) for says, wrong in _WEIGHTS.items() for i, weight in wrong),
        Mistake(
            lambda W0, *case: (W0, _decayed(W0, *case)[1]),
            "The weight after full fine-tuning is not right.",
            when=lambda found, *case: (
                np.shape(found[0]) == (4, 5) and not close(found[0], _decayed(*case)[0], 10)
            ),
        ),
    ],
    otherwise="The weight after LoRA is not right.",
    passed="full fine-tuning goes to zero, LoRA to the base, at twice the pace.",
    parts=("The first weight", "The second"),
    same=partial(close, scale=10),
)
