"""Checks of chapter 9: ladders of learning rates, scalings, the same run, parameter groups, decay.

torch is imported where a check trains or looks at a model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minilora.exercises.tools import Function, array, call, close, not_attempted, passed, require

INF = float("inf")


def check_needs_rung(function: Function) -> None:
    """``function({rate: validation loss})`` → "lower", "higher" or "no"."""
    inside = {1e-3: 1.0, 2e-3: 0.8, 5e-3: 0.9}
    answer = call(function, dict(inside))
    if not_attempted(answer):
        return
    require(
        answer in ("lower", "higher", "no"),
        f'Return "lower", "higher" or "no"; found {answer!r}.',
    )
    shuffled = {5e-3: 0.9, 1e-3: 1.0, 2e-3: 0.8}
    falling = {1e-3: 1.0, 2e-3: 0.8, 5e-3: 0.7}
    rising = {1e-3: 0.6, 2e-3: 0.8, 5e-3: 0.9}
    found = {
        name: call(function, dict(losses))
        for name, losses in {
            "inside": inside,
            "shuffled": shuffled,
            "falling": falling,
            "rising": rising,
            "cliff": {1e-3: 0.9, 2e-3: 0.8, 5e-3: INF},
            "edge": {1e-3: INF, 2e-3: 0.8, 5e-3: 0.9},
        }.items()
    }
    require(
        (found["falling"], found["rising"]) != ("lower", "higher"),
        'The sides are exchanged. Where the highest rate is the best, a still "higher" one may be '
        "better yet.",
    )
    require(
        found["inside"] == "no",
        "The best of 0.001, 0.002 and 0.005 is 0.002, with a worse rate on either side: nothing is "
        "missing.",
    )
    require(
        found["shuffled"] == "no",
        "A dictionary keeps the order in which it was filled. Sort the rates before you ask which "
        "is the first and which the last.",
    )
    require(
        found["falling"] == "higher",
        "The best of three falling losses is at the highest rate: nobody knows yet where the loss "
        "turns.",
    )
    require(
        found["rising"] == "lower",
        "The best of three rising losses is at the lowest rate: a lower one may be better yet.",
    )
    require(
        found["cliff"] == "no",
        "A run that diverged is a worse neighbour like any other. With 0.9, 0.8 and a run that "
        "diverged the best rate lies inside.",
    )
    require(
        found["edge"] == "no",
        "With a run that diverged on the left and 0.9 on the right, 0.8 lies inside as well.",
    )
    passed("a best rate is one that has a worse neighbour on either side.")


def check_standard_alpha(function: Function) -> None:
    """``function(alpha, r)`` → the α for α/r with the same factor as α/√r."""
    answer = call(function, 32.0, 16)
    if not_attempted(answer):
        return
    found = array(answer, (), "The α")
    require(
        not close(found, 8.0),
        "You divide by √r. The standard scaling divides by more than rsLoRA does, so its α must be "
        "the larger one.",
    )
    require(
        not close(found, 512.0),
        "You multiply by r, which would undo the standard scaling altogether and leave the bare α.",
    )
    require(
        not close(found, 32.0),
        "The same α gives α/r = 2 in one program and α/√r = 8 in the other.",
    )
    require(
        not close(found, 2.0) and not close(found, 32 / 16**0.5),
        "That is the factor in front of BA, not the α that makes it.",
    )
    for alpha, r in ((32.0, 16), (8.0, 1), (5.0, 10)):
        found = array(call(function, alpha, r), (), "The α")
        require(
            close(found, alpha * r**0.5),
            f"For α = {alpha:g} and r = {r} the factor is {alpha / r**0.5:.4g}; with yours it is "
            f"{float(found) / r:.4g}.",
        )
    passed("α'/r = α/√r.")


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


def check_same_run_sgd(function: Function) -> None:
    """``function(alpha, lr_A, lr_B, p, q)`` → (α, lr_A, lr_B) of the same run from pA and qB."""
    given = 1.0, 0.01, 0.02, 4.0, 2.0
    answer = call(function, *given)
    if not_attempted(answer):
        return
    alpha, lr_A, lr_B, p, q = given
    found = array(answer, (3,), "The answer: (α, rate of A, rate of B), which")
    require(
        not close(found, [alpha * p * q, p**2 * lr_A, q**2 * lr_B]),
        "Your α is multiplied. Larger factors want a smaller α, so that αBA stays what it was.",
    )
    require(
        close(found[0], alpha / (p * q)),
        f"With pA and qB the update αBA must stay the same: α = {alpha / (p * q):g}, found "
        f"{found[0]:g}.",
    )
    require(
        not close(found[1:], [p * lr_A, q * lr_B]),
        "These are Adam's rates, p and q times the old ones. Adam divides the size of the gradient "
        "out; a plain step keeps it, and A's gradient is only 1/p of what it was.",
    )
    require(
        not any(close(found[1:], [lr_A / p**k, lr_B / q**k]) for k in (0, 1, 2)),
        "A is p times as large and must move p times as far, with a gradient that is 1/p of what "
        "it was. Its rate has to grow, not fall or stay.",
    )
    require(
        not close(found[1:], [q**2 * lr_A, p**2 * lr_B]),
        "The two are exchanged: p belongs to A.",
    )
    for case in (given, (2.0, 0.005, 0.005, 3.0, 0.5)):
        new = array(call(function, *case), (3,), "The answer")
        first = _losses(case[0], case[1], case[2], 1.0, 1.0)
        second = _losses(new[0], new[1], new[2], case[3], case[4])
        require(
            np.allclose(first, second, rtol=1e-9),
            f"After ten steps the losses are {first[-1]:.6g} and {second[-1]:.6g}: the second run "
            "leaves the first.",
        )
    passed("p² for A and q² for B: once for its size, once for its gradient.")


def _small_model() -> Any:
    import torch
    from torch import nn

    from minilora import LoRAConfig, add_lora

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    return add_lora(model, LoRAConfig(r=2, alpha=2, targets=["0", "2"]))


def check_rate_groups(function: Function) -> None:
    """``function(model, lr, ratio)`` → two parameter groups: all A at lr, all B at ratio · lr."""
    import torch

    from minilora import lora_layers

    model = _small_model()
    answer = call(function, model, 0.01, 4.0)
    if not_attempted(answer):
        return
    require(
        isinstance(answer, (list, tuple))
        and len(answer) == 2
        and all(isinstance(group, dict) and {"params", "lr"} <= group.keys() for group in answer),
        'Return a list of two dictionaries, each with "params" and "lr".',
    )
    layers = lora_layers(model)
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
    of_A = {rate for name, rate in rates.items() if name.endswith(".A")}
    of_B = {rate for name, rate in rates.items() if name.endswith(".B")}
    require(
        not (of_A == {0.04} and of_B == {0.01}),
        "The two are exchanged: it is B that gets the higher rate.",
    )
    require(
        not (of_A == {0.01} and of_B == {0.0025}),
        "You divide by the ratio. It is B's rate over A's, so B's is ratio times lr.",
    )
    require(
        of_B != {4.0},
        "You gave B the ratio itself for a rate. Multiply it by lr.",
    )
    require(
        of_A == {0.01} and len(of_B) == 1 and close(of_B.pop(), 0.04),
        f"All A should learn at 0.01 and all B at 0.04; found {rates}.",
    )
    torch.optim.AdamW(list(answer))  # an optimizer takes them
    passed("A at lr, B at ratio times lr, and nothing left out.")


def check_after_decay(function: Function) -> None:
    """``function(W0, A, B, scale, lr, decay, steps)`` → (weight after full, after LoRA)."""
    rng = np.random.default_rng(1)
    W0, A, B = rng.normal(size=(4, 5)), rng.normal(size=(2, 5)), rng.normal(size=(4, 2))
    scale, lr, decay, steps = 3.0, 0.1, 0.5, 7
    answer = call(function, W0.copy(), A.copy(), B.copy(), scale, lr, decay, steps)
    if not_attempted(answer):
        return
    require(
        isinstance(answer, (tuple, list)) and len(answer) == 2,
        "Return two weights: after full fine-tuning, and after LoRA.",
    )
    full, lora = (
        array(answer[0], (4, 5), "The first weight"),
        array(answer[1], (4, 5), "The second"),
    )
    keep, update = (1 - lr * decay) ** steps, scale * B @ A
    right = keep * (W0 + update), W0 + keep**2 * update
    require(
        not (close(full, right[1], 10) and close(lora, right[0], 10)),
        "The two are exchanged: first full fine-tuning, then LoRA.",
    )
    require(
        not close(full, W0 + keep * update, 10),
        "In full fine-tuning the whole weight is a trained number, W₀ included: all of it shrinks.",
    )
    require(
        not close(full, (1 - lr * decay * steps) * (W0 + update), 10),
        "The weight is multiplied by 1 − ηλ at every step, and does not lose the same amount each "
        "time: take the power.",
    )
    require(close(full, right[0], 10), "The weight after full fine-tuning is not right.")
    require(
        not close(lora, keep * (W0 + update), 10) and not close(lora, keep * W0 + update, 10),
        "In LoRA W₀ is frozen, and the optimizer does not know of it: it cannot shrink.",
    )
    require(
        not close(lora, W0 + keep * update, 10),
        "Both factors shrink, A and B, so their product shrinks twice at each step.",
    )
    require(
        not close(lora, W0, 10),
        "The update has not gone after so few steps; it only shrinks.",
    )
    require(close(lora, right[1], 10), "The weight after LoRA is not right.")
    passed("full fine-tuning goes to zero, LoRA to the base, at twice the pace.")
