"""Checks of chapter 5: attention, its mask, the loss, and what a block holds."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from minilora.exercises.tools import Exercise, Function, Mistake, close

Array = np.ndarray


def _draw(seed: int, *shapes: tuple[int, ...]) -> tuple[Array, ...]:
    """Normal numbers, the arguments of a case."""
    return tuple(map(np.random.default_rng(seed).standard_normal, shapes))


def _softmax(scores: Array, axis: Any = -1) -> Array:
    """Shares that add up to 1 along the axis; −∞ gets none."""
    powers = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def _scores(Q: Array, K: Array, divisor: float | None = None) -> Array:
    return Q @ K.swapaxes(-1, -2) / (Q.shape[-1] ** 0.5 if divisor is None else divisor)


def _attention(Q: Array, K: Array, V: Array, divisor: Any = None, axis: Any = -1) -> Array:
    return _softmax(_scores(Q, K, divisor), axis) @ V


check_attention = Exercise(
    asks="Q (T, d), K (T, d), V (T, d_v) → softmax(QKᵀ / √d) V, softmax along the rows: (T, d_v).",
    cases=[_draw(0, (4, 9), (4, 9), (4, 3)), _draw(1, (5, 5), (5, 5), (5, 5))],
    right=_attention,
    mistakes=[
        Mistake(
            lambda Q, K, V: _softmax(Q @ K) @ V,
            lambda error, Q, K, V: (
                f"Your shapes do not fit ({error}). Queries and keys are rows, so the table of "
                "scores, one row for each token that looks, is Q Kᵀ."
            ),
            raises=ValueError,
        ),
        Mistake(
            lambda Q, K, V: _softmax(_scores(Q, K)),
            "You return the shares. What a token receives is the mean of the values with these "
            "shares: multiply by V.",
        ),
        Mistake(
            partial(_attention, axis=0),
            "Your softmax runs down the columns. Each token that looks is a row and has one unit "
            "of attention to give, so it is the rows that must add up to 1.",
        ),
        Mistake(
            partial(_attention, axis=(0, 1)),
            "Your softmax runs over the whole table, so that all tokens together have one unit "
            "of attention. Each row must add up to 1.",
        ),
        Mistake(
            partial(_attention, divisor=1),
            "The division by √d is missing: without it scores grow with the length of the lists, "
            "and the softmax ends up on one token.",
        ),
        Mistake(
            lambda Q, K, V: _attention(Q, K, V, Q.shape[1]),
            "You divide by d. The variance of a score is d, its size is √d: divide by the root.",
        ),
        Mistake(
            lambda Q, K, V: _attention(Q, K, V, 1) / Q.shape[1] ** 0.5,
            "You divide by √d after the softmax. The scores are what is too large: divide them, "
            "or the shares no longer add up to 1.",
        ),
        Mistake(
            lambda Q, K, V: _attention(Q, K, V, len(Q) ** 0.5),
            "You divide by the root of the number of tokens. d is the length of a query.",
        ),
        Mistake(
            lambda Q, K, V: _attention(Q, K, V, V.shape[1] ** 0.5),
            "You divide by the root of the length of a value. d is the length of a query.",
        ),
        Mistake(
            lambda Q, K, V: _attention(K, Q, V),
            "Keys and queries are exchanged: K Qᵀ is the transpose of Q Kᵀ. The rows belong to "
            "the tokens that look, that is, to the queries.",
        ),
        Mistake(
            lambda Q, K, V: _scores(Q, K) @ V,
            "The softmax is missing: scores may be negative, and do not add up to 1.",
        ),
        Mistake(
            lambda Q, K, V: np.exp(_scores(Q, K)) @ V,
            "You raise e to the scores, but do not divide by the sum along each row.",
        ),
    ],
    otherwise="The shape is right, the numbers are not: softmax(Q Kᵀ / √d) V is wanted.",
    passed="each row is a mean of the values, with shares that add up to 1.",
    parts="The result",
)


def _log_p(logits: Array, axis: int = -1) -> Array:
    s = logits - logits.max(axis=axis, keepdims=True)
    return s - np.log(np.exp(s).sum(axis=axis, keepdims=True))


def _losses(logits: Array, y: Array, axis: int = -1) -> Array:
    return -_log_p(logits, axis)[np.arange(len(y)), y]


def _cross_entropy(logits: Array, y: Array) -> float:
    return _losses(logits, y).mean()


def _mean_p(logits: Array, y: Array) -> float:
    return np.exp(-_losses(logits, y)).mean()


def _is_small(logits: Array) -> bool:
    return logits.max() < 1000


def _at_small(answer: Function, says: str) -> Mistake:
    """A mistake told by small logits alone, for whoever makes it may overflow with large ones."""
    return Mistake(answer, says, lambda found, s, y: _is_small(s) and close(found, answer(s, y)))


def _no_overflow(found: float, logits: Array, y: Array) -> str:
    return (
        f"With logits of ±1,000 the loss should be 500; found {found:g}. A small number added "
        "inside the logarithm hides the overflow, and the loss with it."
    )


_NO_LOGARITHM = "The logarithm is missing: that is the mean probability of the right answers."
_OTHER_BASE = "Your logarithm has another base. The loss is measured with the natural one."

check_cross_entropy = Exercise(
    asks="logits (n, classes), y (n,) → the mean of −log softmax(logits)[right class], one number.",
    cases=[
        (2 * _draw(1, (6, 4))[0], np.array([0, 3, 1, 2, 2, 0])),
        (np.array([[1000.0, 0.0], [0.0, -1000.0]]), np.array([1, 0])),
    ],
    right=_cross_entropy,
    mistakes=[
        _at_small(
            _losses,
            "You return one loss for each example. Take their mean, so that batches of different "
            "size can be compared.",
        ),
        _at_small(
            lambda logits, y: _losses(logits, y).sum(),
            "You sum over the examples. The loss is their mean; a sum grows with the batch, and "
            "the gradient with it.",
        ),
        _at_small(
            lambda logits, y: -_cross_entropy(logits, y),
            "The minus sign is missing: a loss is small when p is large.",
        ),
        _at_small(
            lambda logits, y: _cross_entropy(logits, y) / logits.shape[1],
            "You divide by the number of classes as well. Only the right class of each example "
            "counts: one number for each, so divide by n alone.",
        ),
        _at_small(_mean_p, _NO_LOGARITHM),
        _at_small(lambda logits, y: -_mean_p(logits, y), _NO_LOGARITHM),
        _at_small(
            lambda logits, y: -np.log(_mean_p(logits, y)),
            "You take the logarithm of the mean. The logarithm belongs inside: each example pays "
            "−log of its own p.",
        ),
        _at_small(lambda logits, y: _cross_entropy(logits, y) / np.log(2), _OTHER_BASE),
        _at_small(lambda logits, y: _cross_entropy(logits, y) / np.log(10), _OTHER_BASE),
        _at_small(
            lambda logits, y: -_log_p(logits)[:, y].mean(),
            "p[:, y] picks a whole column for each answer, and every example meets the answers of "
            "all the others. One entry for each row is p[np.arange(n), y].",
        ),
        _at_small(
            lambda logits, y: _losses(logits, y, axis=0).mean(),
            "Your softmax runs over the examples. The classes of one example share one "
            "probability: take it along each row.",
        ),
        _at_small(
            lambda logits, y: -_log_p(logits).max(axis=1).mean(),
            "You take the largest probability of each row. The loss asks for that of the right "
            "class, y.",
        ),
        _at_small(
            lambda logits, y: -logits[np.arange(len(y)), y].mean(),
            "You use the logits as they are. Make probabilities of them first, with the softmax.",
        ),
        Mistake(
            lambda logits, y: _cross_entropy(logits, y) + 0.1,
            "That is not the mean of −log p over the examples, with p from the softmax of a row.",
            when=lambda found, logits, y: _is_small(logits) and np.ndim(found) == 0,
        ),
        Mistake(
            lambda logits, y: _cross_entropy(logits, y) if _is_small(logits) else np.inf,
            lambda found, logits, y: (
                f"With a logit of 1,000 your loss is {found}: its exponential, or the logarithm of "
                "a probability that was rounded to 0, overflows. Subtract the largest logit of "
                "each row first, and take log(e^a / Σ) as a − log Σ."
            ),
            when=lambda found, logits, y: not np.isfinite(found),
        ),
        Mistake(
            lambda logits, y: -np.log(np.exp(-_losses(logits, y)) + 1e-12).mean(), _no_overflow
        ),
    ],
    otherwise=_no_overflow,
    passed="the mean of −log p, and safe with large logits.",
    parts="The loss",
)


def _centred(x: Array, axis: Any = -1) -> Array:
    return x - x.mean(axis=axis, keepdims=True)


def _spread(x: Array, eps: float = 0, axis: Any = -1, ddof: int = 0) -> Array:
    return np.sqrt(x.var(axis=axis, ddof=ddof, keepdims=True) + eps)


def _norm(x: Array, weight: Any, bias: Any, eps: float, axis: Any = -1, ddof: int = 0) -> Array:
    return _centred(x, axis) / _spread(x, eps, axis, ddof) * weight + bias


_OVER_BATCH = (
    "You average over the batch. Each token is normalised by its own numbers, the last axis, so "
    "that no example has a part in another."
)
_OVER_TOKENS = (
    "You average over the tokens of an example. Each token is normalised by itself, along the last "
    "axis."
)

check_layer_norm = Exercise(
    asks="x (n, T, d), weight (d,), bias (d,), eps → each token's numbers at mean 0, variance 1.",
    cases=[(3 * _draw(2, (2, 3, 6))[0] + 1, *_draw(3, (6,), (6,)), 0.25)],
    right=_norm,
    mistakes=[
        Mistake(partial(_norm, axis=0), _OVER_BATCH),
        Mistake(partial(_norm, axis=(0, 1)), _OVER_BATCH),
        Mistake(partial(_norm, axis=1), _OVER_TOKENS),
        Mistake(partial(_norm, axis=(1, 2)), _OVER_TOKENS),
        Mistake(
            partial(_norm, axis=None),
            "You take one mean over everything. Each token has its own: keep the last axis only.",
        ),
        Mistake(
            partial(_norm, ddof=1),
            "You divide the sum of squares by n − 1. Layer normalisation divides by n.",
        ),
        Mistake(
            lambda x, w, b, eps: _centred(x) / _spread(x, eps) ** 2 * w + b,
            "You divide by the variance. Divide by its root, the standard deviation.",
        ),
        Mistake(
            lambda x, w, b, eps: _centred(x) / (_spread(x) + eps) * w + b,
            "You add eps to the standard deviation. It belongs under the root, with the variance.",
        ),
        Mistake(
            lambda x, w, b, eps: _norm(x, w, b, 0),
            "eps is missing: a token of equal numbers would divide by zero.",
        ),
        Mistake(
            lambda x, w, b, eps: x / _spread(x, eps) * w + b,
            "The mean is still in: subtract it before you divide.",
        ),
        Mistake(
            lambda x, w, b, eps: _norm(x, 1, b, eps),
            "The weight is missing: one factor for each place.",
        ),
        Mistake(
            lambda x, w, b, eps: _norm(x, w, 0, eps),
            "The bias is missing: one number for each place.",
        ),
        Mistake(lambda x, w, b, eps: _norm(x, 1, 0, eps), "The weight and the bias are missing."),
        Mistake(
            lambda x, w, b, eps: _norm(x, b, w, eps),
            "Weight and bias are exchanged: multiply by the weight, then add the bias.",
        ),
    ],
    otherwise="The shape is right, the numbers are not: (x − mean) / √(variance + eps), times "
    "weight, plus bias, along the last axis.",
    passed="each token by itself, over its own numbers.",
    parts="The result",
)


def _matrices(width: int, heads: int, factor: int) -> int:
    return (4 + 2 * factor) * width**2


def _without_norms(width: int, heads: int, factor: int) -> int:
    return _matrices(width, heads, factor) + (5 + factor) * width


def _block_numbers(width: int, heads: int, factor: int) -> int:
    return _without_norms(width, heads, factor) + 4 * width


def _for_block(what: str) -> Function:
    """A message that begins with the case."""
    return lambda found, w, heads, f: f"For width {w}, {heads} heads and factor {f} {what}"


_HALF_NORMS = _for_block(
    "the normalisations are not complete: two of them, each with a weight *and* a bias."
)
_ONCE_PER_HEAD = _for_block(
    "you count the attention matrices once for each head. The heads share them: each head is a few "
    "rows of the same matrix."
)

check_block_numbers = Exercise(
    asks="width, heads, factor → all the numbers of a block.",
    cases=[(64, 8, 2), (48, 4, 4), (48, 12, 4), (768, 12, 4)],
    right=_block_numbers,
    mistakes=[
        Mistake(_matrices, _for_block("you count the six matrices without anything else.")),
        Mistake(
            lambda w, heads, f: _matrices(w, heads, f) + 4 * w,
            _for_block("the biases of the six layers are missing."),
        ),
        Mistake(
            _without_norms,
            _for_block(
                "the normalisations are missing: two of them, each with a weight and a bias for "
                "every place."
            ),
        ),
        Mistake(
            lambda w, heads, f: _block_numbers(w, heads, f) - (f - 1) * w,
            _for_block("up_proj has as many biases as outputs, factor times the width."),
        ),
        Mistake(lambda w, heads, f: _without_norms(w, heads, f) + 2 * w, _HALF_NORMS),
        Mistake(lambda w, heads, f: _without_norms(w, heads, f) + w, _HALF_NORMS),
        Mistake(
            lambda w, heads, f: _block_numbers(w, heads, f) + (heads - 1) * 3 * (w**2 + w),
            _ONCE_PER_HEAD,
        ),
        Mistake(
            lambda w, heads, f: _block_numbers(w, heads, f) + (heads - 1) * 4 * (w**2 + w),
            _ONCE_PER_HEAD,
        ),
        Mistake(
            lambda w, heads, f: _block_numbers(w, heads, f) - (w**2 + w),
            _for_block(
                "a square matrix is missing: besides query, key and value there is the output "
                "projection."
            ),
        ),
        Mistake(
            lambda w, heads, f: _block_numbers(w, heads, 1),
            _for_block(
                "you count the feed-forward matrices as square; they are factor times as long on "
                "one side."
            ),
        ),
    ],
    otherwise=lambda found, *case: _for_block(
        f"a block holds {_block_numbers(*case):,} numbers; you count {float(found):,.0f}."
    )(found, *case),
    passed="six matrices, six biases, two normalisations, whatever the number of heads.",
    parts="The count",
)


def _past(scores: Array) -> Array:
    """Which keys each token may see, its own and those before."""
    return np.tri(scores.shape[-1], dtype=bool)


def _hidden(scores: Array, hides: float = -np.inf) -> Array:
    return np.where(_past(scores), scores, hides)


def _causal(Q: Array, K: Array, V: Array) -> Array:
    return _softmax(_hidden(_scores(Q, K))) @ V


def _blind_first(Q: Array, K: Array, V: Array) -> Array:
    """Not even itself: the first row is hidden whole."""
    scores = _scores(Q, K)
    with np.errstate(invalid="ignore"):
        return _softmax(np.where(_past(scores).T, -np.inf, scores)) @ V


check_causal_attention = Exercise(
    asks="Q, K, V, all (heads, T, d) → attention in which token i sees 0 … i: (heads, T, d).",
    cases=[_draw(3, *[(2, 5, 3)] * 3), _draw(4, *[(3, 4, 4)] * 3)],
    right=_causal,
    mistakes=[
        Mistake(
            lambda Q, K, V: _softmax(_hidden(Q @ K.T)) @ V,
            lambda error, Q, K, V: (
                f"Your shapes do not fit ({error}). With several heads .T turns all three axes "
                "round; exchange the last two only."
            ),
            raises=ValueError,
        ),
        Mistake(
            _blind_first,
            "Your result holds NaN. Either a row is hidden whole, and its softmax divides zero by "
            "zero: a token must at least see itself. Or you multiplied a mask by infinity, and 0 "
            "times infinity is no number: choose with np.where instead.",
            when=lambda found, Q, K, V: np.shape(found) == V.shape and np.isnan(found).any(),
        ),
        Mistake(_attention, "Nothing is hidden: this has no mask."),
        Mistake(
            lambda Q, K, V: _softmax(np.where(_past(_scores(Q, K)).T, _scores(Q, K), -np.inf)) @ V,
            "Your mask hides the past: token i sees i and everything later. The lower triangle "
            "is what it may see.",
        ),
        Mistake(
            lambda Q, K, V: np.tril(_softmax(_scores(Q, K))) @ V,
            "You mask after the softmax, so the shares of a row no longer add up to 1. Set the "
            "scores to −∞ before it.",
        ),
        Mistake(
            lambda Q, K, V: _softmax(_hidden(_scores(Q, K), 0)) @ V,
            "You set hidden scores to 0. A score of 0 is not nothing: e⁰ is 1, so the token still "
            "gets a share. Only −∞ gives a share of zero.",
        ),
        Mistake(
            lambda Q, K, V: _softmax(_hidden(_scores(Q, K, 1))) @ V,
            "The division of the scores by √d is missing.",
        ),
        Mistake(
            lambda Q, K, V: _causal(K, Q, V),
            "Keys and queries are exchanged: the rows of the scores belong to the queries.",
        ),
        Mistake(
            lambda Q, K, V: _softmax(_hidden(_scores(Q, K)), axis=1) @ V,
            "Your softmax runs down the columns. Each token that looks is a row, and its shares "
            "must add up to 1.",
        ),
    ],
    otherwise="The shape is right, the numbers are not: hide the scores of later tokens with −∞, "
    "then take softmax along each row, then multiply by V, head by head.",
    passed="no token sees a later one, and every row adds up to 1.",
    parts="The result",
)
