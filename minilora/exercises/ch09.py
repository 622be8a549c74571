"""Checks of chapter 9: ladders of rates, recipes, the same run, parameter groups, the cliff.

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


def _scale(alpha: float, r: int, scaling: str) -> float:
    return alpha / (r if scaling == "standard" else r**0.5)


def _rates_from(factor: Function, rates: Function) -> Function:
    """Another scale for the factor of BA, or other rates made of it."""

    def answer(alpha: float, r: int, scaling: str, lr: float, scale: float) -> tuple[float, float]:
        a, b = rates(factor(alpha, r, scaling) / scale)
        return a * lr, b * lr

    return answer


def _of_b(q: float) -> tuple[float, float]:
    return 1.0, q


#: {what to say: a wrong answer}
_RECIPES: dict[str, Function] = {
    "Both rates are multiplied. With the usual start of A only B's rate makes up for the scale.": (
        _rates_from(_scale, lambda q: (q, q))
    ),
    "Both rates are multiplied by the root. That is the same run only if A starts larger by the "
    "root as well, and the start is to stay what it is.": (
        _rates_from(_scale, lambda q: (q**0.5, q**0.5))
    ),
    "The factor is upside down: where the scale in front of BA becomes smaller, B must learn "
    "faster.": _rates_from(_scale, lambda q: (1.0, 1 / q)),
    "The two rates are exchanged: it is B's that makes up for the scale.": (
        _rates_from(_scale, lambda q: (q, 1.0))
    ),
    "You divide by r in both scalings. rsLoRA divides by √r.": (
        _rates_from(lambda alpha, r, scaling: alpha / r, _of_b)
    ),
    "You divide by √r in both scalings. The standard one divides by r.": (
        _rates_from(lambda alpha, r, scaling: alpha / r**0.5, _of_b)
    ),
    "You compare α itself with the scale. The factor in front of BA is α/r, or α/√r.": (
        _rates_from(lambda alpha, r, scaling: alpha, _of_b)
    ),
    "You leave the rates as they are, and another scale makes another run of them.": (
        lambda alpha, r, scaling, lr, scale: (lr, lr)
    ),
}

check_rates_at_scale = Exercise(
    asks="α, r, scaling, rate, scale → the rates of A and of B for the same run at that scale.",
    cases=[
        (64.0, 64, "rslora", 1e-4, 2.0),
        (128.0, 64, "standard", 1e-4, 2.0),
        (16.0, 8, "standard", 2e-4, 0.5),
        (6.0, 1, "rslora", 0.01, 3.0),
    ],
    right=_rates_from(_scale, _of_b),
    mistakes=[Mistake(wrong, says) for says, wrong in _RECIPES.items()],
    otherwise=lambda found, alpha, r, scaling, lr, scale: (
        f"α = {alpha:g}, r = {r}, {scaling} has the scale {_scale(alpha, r, scaling):g}. At "
        f"{scale:g}, A keeps its rate of {lr:g}, and B needs another."
    ),
    passed="the same scale or not, it is B's rate that tells two recipes apart.",
    parts="The answer: (rate of A, rate of B), which",
    same=partial(close, scale=1e-4),
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


def _adapted(**config: Any) -> Any:
    """A small network with an adapter; ``config`` may ask for more that trains."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.Linear(3, 2))
    return add_lora(model, LoRAConfig(r=2, alpha=2, **config))


def check_rate_groups(function: Function) -> None:
    """``function(model, lr, ratio)`` → parameter groups: B at ratio · lr, the rest at lr."""
    for config in (
        {"targets": ["0", "2"]},
        {"targets": ["0", "2"], "modules_to_save": ["3"], "bias": "lora_only"},
    ):
        model = _adapted(**config)
        answer = call(function, model, 0.01, 4.0)
        if not_attempted(answer):
            return
        _check_groups(model, answer)
    passed("B at ratio times lr, and A and whatever else trains at lr.")


def _check_groups(model: Any, answer: Any) -> None:
    import torch

    layers = lora_layers(model)
    require(
        isinstance(answer, (list, tuple))
        and all(isinstance(group, dict) and {"params", "lr"} <= group.keys() for group in answer),
        'Return a list of dictionaries, each with "params" and "lr".',
    )
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    of_A = [names[id(layer.A)] for layer in layers.values()]
    of_B = [names[id(layer.B)] for layer in layers.values()]
    rates = {}
    for group in answer:
        params = group["params"]
        for parameter in [params] if isinstance(params, torch.Tensor) else list(params):
            require(
                id(parameter) in names,
                "A group holds a parameter that does not train: the base is frozen and has no "
                "place in an optimizer.",
            )
            name = names[id(parameter)]
            require(name not in rates, f"{name} stands in two groups.")
            rates[name] = float(group["lr"])
    missing = [name for name in [*of_A, *of_B] if name not in rates]
    require(not missing, f"No group holds {', '.join(missing)}: it would never train.")
    missing = [name for name in names.values() if name not in rates]
    require(
        not missing,
        f"No group holds {', '.join(missing)}. This model trains a new head beside its adapters, "
        "and a bias: minilora.lora_parameters(model) has everything that trains.",
    )
    at_A, at_B = ({rates[name] for name in part} for part in (of_A, of_B))
    require(
        not (at_A == {0.04} and at_B == {0.01}),
        "The two are exchanged: it is B that gets the higher rate.",
    )
    require(
        not (at_A == {0.01} and at_B == {0.0025}),
        "You divide by the ratio. It is B's rate over A's, so B's is ratio times lr.",
    )
    require(at_B != {4.0}, "You gave B the ratio itself for a rate. Multiply it by lr.")
    require(
        at_A == {0.01} and len(at_B) == 1 and close(at_B.pop(), 0.04),
        f"All A should learn at 0.01 and all B at 0.04; found {rates}.",
    )
    rest = {name: rate for name, rate in rates.items() if name not in [*of_A, *of_B]}
    require(
        set(rest.values()) <= {0.01},
        f"The ratio is for B alone. What else trains learns at lr: {rest}.",
    )
    torch.optim.AdamW(list(answer))  # an optimizer takes them


#: {what to say: a wrong rate of A}
_CLIFFS: dict[str, Function] = {
    "What must stay below the limit is the *product* of the two rates, times α. With one unknown "
    "rate in it twice, a root is missing.": (
        lambda product, alpha, new, ratio: product * alpha / (ratio * new)
    ),
    "The wrong way: a larger α, or a faster B, brings the cliff nearer.": (
        lambda product, alpha, new, ratio: (product * new * ratio / alpha) ** 0.5
    ),
    "The ratio is left out. With B faster than A the product is ratio times the square of A's "
    "rate.": lambda product, alpha, new, ratio: (product * alpha / new) ** 0.5,
    "That is the rate of B. You were asked for A's.": (
        lambda product, alpha, new, ratio: (product * alpha * ratio / new) ** 0.5
    ),
    "The ratio stands outside the root. The product is ratio times the square of A's rate.": (
        lambda product, alpha, new, ratio: (product * alpha / new) ** 0.5 / ratio
    ),
    "You leave α out. By the identity it is the product of the rates *and α* that counts.": (
        lambda product, alpha, new, ratio: (product / ratio) ** 0.5
    ),
    "You let the rate fall in proportion to α. Two rates share the change, so that each falls "
    "with its root.": lambda product, alpha, new, ratio: (product / ratio) ** 0.5 * alpha / new,
}

check_cliff_rate = Exercise(
    asks="product, α, new α, ratio → the largest rate of A.",
    cases=[(1e-3, 8.0, 8.0, 1.0), (1e-3, 8.0, 0.5, 1.0), (4e-4, 16.0, 64.0, 9.0)],
    right=lambda product, alpha, new, ratio: (product * alpha / (ratio * new)) ** 0.5,
    mistakes=[Mistake(wrong, says) for says, wrong in _CLIFFS.items()],
    otherwise=lambda found, product, alpha, new, ratio: (
        f"With your rate {found:.3g} for A and {ratio * found:.3g} for B, the product of the rates "
        f"and α is {ratio * found**2 * new:.3g}; it should be {product * alpha:.3g}."
    ),
    passed="rate of A × rate of B × α is what must not grow.",
    parts="The rate",
)
