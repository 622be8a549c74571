"""Checks of chapter 5: attention, its mask, the loss, and what a block holds."""

from __future__ import annotations

from typing import Any

import numpy as np

from minilora.exercises.tools import Function, array, call, close, not_attempted, passed, require


def _softmax(scores: np.ndarray, axis: int | tuple[int, ...] = -1) -> np.ndarray:
    """Shares that add up to 1 along the axis; −∞ gets none."""
    powers = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def check_attention(function: Function) -> None:
    """``function(Q, K, V)`` → softmax(QKᵀ / √d) V, softmax along the rows: (T, d_v)."""
    rng = np.random.default_rng(0)
    for T, d, d_v in ((4, 9, 3), (5, 5, 5)):
        Q, K, V = (rng.normal(size=shape) for shape in ((T, d), (T, d), (T, d_v)))
        try:
            answer = call(function, Q.copy(), K.copy(), V.copy())
        except ValueError as error:
            raise AssertionError(
                f"Your shapes do not fit ({error}). Queries and keys are rows, so the table of "
                "scores, one row for each token that looks, is Q Kᵀ."
            ) from None
        if not_attempted(answer):
            return
        scores = Q @ K.T
        shares = _softmax(scores / d**0.5)
        require(
            not close(answer, shares),
            "You return the shares. What a token receives is the mean of the values with these "
            "shares: multiply by V.",
        )
        found = array(answer, (T, d_v), "The result")
        require(
            not close(found, _softmax(scores / d**0.5, axis=0) @ V),
            "Your softmax runs down the columns. Each token that looks is a row and has one unit "
            "of attention to give, so it is the rows that must add up to 1.",
        )
        require(
            not close(found, _softmax(scores / d**0.5, axis=(0, 1)) @ V),
            "Your softmax runs over the whole table, so that all tokens together have one unit "
            "of attention. Each row must add up to 1.",
        )
        require(
            not close(found, _softmax(scores) @ V),
            "The division by √d is missing: without it scores grow with the length of the lists, "
            "and the softmax ends up on one token.",
        )
        require(
            not close(found, _softmax(scores / d) @ V),
            "You divide by d. The variance of a score is d, its size is √d: divide by the root.",
        )
        require(
            not close(found, _softmax(scores) @ V / d**0.5),
            "You divide by √d after the softmax. The scores are what is too large: divide them, "
            "or the shares no longer add up to 1.",
        )
        require(
            d == T or not close(found, _softmax(scores / T**0.5) @ V),
            "You divide by the root of the number of tokens. d is the length of a query.",
        )
        require(
            d == d_v or not close(found, _softmax(scores / d_v**0.5) @ V),
            "You divide by the root of the length of a value. d is the length of a query.",
        )
        require(
            not close(found, _softmax(scores.T / d**0.5) @ V),
            "Keys and queries are exchanged: K Qᵀ is the transpose of Q Kᵀ. The rows belong to "
            "the tokens that look, that is, to the queries.",
        )
        require(
            not close(found, scores / d**0.5 @ V),
            "The softmax is missing: scores may be negative, and do not add up to 1.",
        )
        require(
            not close(found, np.exp(scores / d**0.5) @ V),
            "You raise e to the scores, but do not divide by the sum along each row.",
        )
        require(
            close(found, shares @ V),
            "The shape is right, the numbers are not: softmax(Q Kᵀ / √d) V is wanted.",
        )
    passed("each row is a mean of the values, with shares that add up to 1.")


def check_cross_entropy(function: Function) -> None:
    """``function(logits, y)`` → the mean of −log softmax(logits)[right class], one number."""
    rng = np.random.default_rng(1)
    logits, y = 2 * rng.normal(size=(6, 4)), np.array([0, 3, 1, 2, 2, 0])
    answer = call(function, logits.copy(), y.copy())
    if not_attempted(answer):
        return
    p = _softmax(logits)
    rows = np.arange(6)
    losses = -np.log(p[rows, y])
    right = losses.mean()
    require(
        not close(answer, losses),
        "You return one loss for each example. Take their mean, so that batches of different "
        "size can be compared.",
    )
    found = array(answer, (), "The loss")
    require(
        not close(found, losses.sum()),
        "You sum over the examples. The loss is their mean; a sum grows with the batch, and the "
        "gradient with it.",
    )
    require(not close(found, -right), "The minus sign is missing: a loss is small when p is large.")
    require(
        not close(found, right / 4),
        "You divide by the number of classes as well. Only the right class of each example "
        "counts: one number for each, so divide by n alone.",
    )
    require(
        not (close(found, p[rows, y].mean()) or close(found, -p[rows, y].mean())),
        "The logarithm is missing: that is the mean probability of the right answers.",
    )
    require(
        not close(found, -np.log(p[rows, y].mean())),
        "You take the logarithm of the mean. The logarithm belongs inside: each example pays "
        "−log of its own p.",
    )
    require(
        not (close(found, right / np.log(2)) or close(found, right / np.log(10))),
        "Your logarithm has another base. The loss is measured with the natural one.",
    )
    require(
        not close(found, -np.log(p[:, y]).mean()),
        "p[:, y] picks a whole column for each answer, and every example meets the answers of all "
        "the others. One entry for each row is p[np.arange(n), y].",
    )
    require(
        not close(found, -np.log(_softmax(logits, axis=0)[rows, y]).mean()),
        "Your softmax runs over the examples. The classes of one example share one probability: "
        "take it along each row.",
    )
    require(
        not close(found, -np.log(p.max(axis=1)).mean()),
        "You take the largest probability of each row. The loss asks for that of the right "
        "class, y.",
    )
    require(
        not close(found, -logits[rows, y].mean()),
        "You use the logits as they are. Make probabilities of them first, with the softmax.",
    )
    require(
        close(found, right),
        "That is not the mean of −log p over the examples, with p from the softmax of a row.",
    )
    with np.errstate(all="ignore"):
        large = float(function(np.array([[1000.0, 0.0], [0.0, -1000.0]]), np.array([1, 0])))
    require(
        np.isfinite(large),
        f"With a logit of 1,000 your loss is {large}: its exponential, or the logarithm of a "
        "probability that was rounded to 0, overflows. Subtract the largest logit of each row "
        "first, and take log(e^a / Σ) as a − log Σ.",
    )
    require(
        close(large, 500.0),
        f"With logits of ±1,000 the loss should be 500; found {large:g}. A small number added "
        "inside the logarithm hides the overflow, and the loss with it.",
    )
    passed("the mean of −log p, and safe with large logits.")


def check_layer_norm(function: Function) -> None:
    """``function(x, weight, bias, eps)`` → each token's numbers at mean 0 and variance 1."""
    rng = np.random.default_rng(2)
    x = 3 * rng.normal(size=(2, 3, 6)) + 1
    weight, bias, eps = rng.normal(size=6), rng.normal(size=6), 0.25
    answer = call(function, x.copy(), weight.copy(), bias.copy(), eps)
    if not_attempted(answer):
        return
    found = array(answer, x.shape, "The result")

    def norm(axis: Any = -1, ddof: int = 0, w: Any = weight, b: Any = bias) -> np.ndarray:
        spread = x.var(axis=axis, ddof=ddof, keepdims=True)
        return (x - x.mean(axis=axis, keepdims=True)) / np.sqrt(spread + eps) * w + b

    centred = x - x.mean(axis=-1, keepdims=True)
    variance = x.var(axis=-1, keepdims=True)
    require(
        not (close(found, norm(axis=0)) or close(found, norm(axis=(0, 1)))),
        "You average over the batch. Each token is normalised by its own numbers, the last axis, "
        "so that no example has a part in another.",
    )
    require(
        not (close(found, norm(axis=1)) or close(found, norm(axis=(1, 2)))),
        "You average over the tokens of an example. Each token is normalised by itself, along the "
        "last axis.",
    )
    require(
        not close(found, norm(axis=(0, 1, 2))),
        "You take one mean over everything. Each token has its own: keep the last axis only.",
    )
    require(
        not close(found, norm(ddof=1)),
        "You divide the sum of squares by n − 1. Layer normalisation divides by n.",
    )
    require(
        not close(found, centred / (variance + eps) * weight + bias),
        "You divide by the variance. Divide by its root, the standard deviation.",
    )
    require(
        not close(found, centred / (np.sqrt(variance) + eps) * weight + bias),
        "You add eps to the standard deviation. It belongs under the root, with the variance.",
    )
    require(
        not close(found, centred / np.sqrt(variance) * weight + bias),
        "eps is missing: a token of equal numbers would divide by zero.",
    )
    require(
        not close(found, x / np.sqrt(variance + eps) * weight + bias),
        "The mean is still in: subtract it before you divide.",
    )
    require(not close(found, norm(w=1.0)), "The weight is missing: one factor for each place.")
    require(not close(found, norm(b=0.0)), "The bias is missing: one number for each place.")
    require(not close(found, norm(w=1.0, b=0.0)), "The weight and the bias are missing.")
    require(
        not close(found, norm(w=bias, b=weight)),
        "Weight and bias are exchanged: multiply by the weight, then add the bias.",
    )
    require(
        close(found, norm()),
        "The shape is right, the numbers are not: (x − mean) / √(variance + eps), times weight, "
        "plus bias, along the last axis.",
    )
    passed("each token by itself, over its own numbers.")


def check_block_numbers(function: Function) -> None:
    """``function(width, heads, factor)`` → all the numbers of a block."""
    for width, heads, factor in ((64, 8, 2), (48, 4, 4), (48, 12, 4), (768, 12, 4)):
        answer = call(function, width, heads, factor)
        if not_attempted(answer):
            return
        found = float(array(answer, (), "The count"))
        matrices = 4 * width**2 + 2 * factor * width**2
        biases = 4 * width + factor * width + width
        norms = 2 * 2 * width
        right = matrices + biases + norms
        case = f"For width {width}, {heads} heads and factor {factor} "
        require(found != matrices, f"{case}you count the six matrices without anything else.")
        require(found != matrices + norms, f"{case}the biases of the six layers are missing.")
        require(
            found != matrices + biases,
            f"{case}the normalisations are missing: two of them, each with a weight and a bias "
            "for every place.",
        )
        require(
            factor == 1 or found != right - (factor - 1) * width,
            f"{case}up_proj has as many biases as outputs, factor times the width.",
        )
        require(
            found not in (matrices + biases + norms / 2, matrices + biases + norms / 4),
            f"{case}the normalisations are not complete: two of them, each with a weight *and* a "
            "bias.",
        )
        require(
            found
            not in (
                right + (heads - 1) * (3 * (width**2 + width)),
                right + (heads - 1) * (4 * (width**2 + width)),
            ),
            f"{case}you count the attention matrices once for each head. The heads share them: "
            "each head is a few rows of the same matrix.",
        )
        require(
            found != right - (width**2 + width),
            f"{case}a square matrix is missing: besides query, key and value there is the output "
            "projection.",
        )
        require(
            factor == 1 or found != right - (factor - 1) * (2 * width**2 + width),
            f"{case}you count the feed-forward matrices as square; they are factor times as long "
            "on one side.",
        )
        require(
            found == right,
            f"{case}a block holds {right:,} numbers; you count {found:,.0f}.",
        )
    passed("six matrices, six biases, two normalisations, whatever the number of heads.")


def check_causal_attention(function: Function) -> None:
    """``function(Q, K, V)`` → attention in which token i sees 0 … i: (heads, T, d)."""
    rng = np.random.default_rng(3)
    for heads, T, d in ((2, 5, 3), (3, 4, 4)):
        Q, K, V = (rng.normal(size=(heads, T, d)) for _ in range(3))
        try:
            with np.errstate(all="ignore"):
                answer = call(function, Q.copy(), K.copy(), V.copy())
        except ValueError as error:
            raise AssertionError(
                f"Your shapes do not fit ({error}). With several heads .T turns all three axes "
                "round; exchange the last two only."
            ) from None
        if not_attempted(answer):
            return
        found = array(answer, (heads, T, d), "The result")
        scores = Q @ K.swapaxes(1, 2)
        sees = np.tri(T, dtype=bool)
        scaled = scores / d**0.5

        def masked(s: np.ndarray, sees: np.ndarray = sees) -> np.ndarray:
            return np.where(sees, s, -np.inf)

        require(
            not np.isnan(found).any(),
            "Your result holds NaN. Either a row is hidden whole, and its softmax divides zero by "
            "zero: a token must at least see itself. Or you multiplied a mask by infinity, and 0 "
            "times infinity is no number: choose with np.where instead.",
        )
        require(not close(found, _softmax(scaled) @ V), "Nothing is hidden: this has no mask.")
        require(
            not close(found, _softmax(masked(scaled, sees.T)) @ V),
            "Your mask hides the past: token i sees i and everything later. The lower triangle "
            "is what it may see.",
        )
        require(
            not close(found, np.where(sees, _softmax(scaled), 0) @ V),
            "You mask after the softmax, so the shares of a row no longer add up to 1. Set the "
            "scores to −∞ before it.",
        )
        require(
            not close(found, _softmax(np.where(sees, scaled, 0)) @ V),
            "You set hidden scores to 0. A score of 0 is not nothing: e⁰ is 1, so the token still "
            "gets a share. Only −∞ gives a share of zero.",
        )
        require(
            not close(found, _softmax(masked(scores)) @ V),
            "The division of the scores by √d is missing.",
        )
        require(
            not close(found, _softmax(masked(scaled.swapaxes(1, 2))) @ V),
            "Keys and queries are exchanged: the rows of the scores belong to the queries.",
        )
        columns = np.nan_to_num(_softmax(masked(scaled), axis=1))
        require(
            not close(found, columns @ V),
            "Your softmax runs down the columns. Each token that looks is a row, and its shares "
            "must add up to 1.",
        )
        require(
            close(found, _softmax(masked(scaled)) @ V),
            "The shape is right, the numbers are not: hide the scores of later tokens with −∞, "
            "then take softmax along each row, then multiply by V, head by head.",
        )
    passed("no token sees a later one, and every row adds up to 1.")
