"""Chapter 5's checks: the right answer passes, a stub is no error, each mistake gets its words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from exercise_help import exercise_tests

from minilora.exercises import ch05
from minilora.lab.transformer import Block, TransformerConfig

Function = Callable[..., Any]


def softmax(s, axis=-1):
    powers = np.exp(s - s.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def attention(Q, K, V):
    return softmax(Q @ K.T / Q.shape[1] ** 0.5) @ V


def losses(logits, y):
    s = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(s).sum(1)) - s[np.arange(len(y)), y]


def cross_entropy(logits, y):
    return losses(logits, y).mean()


def layer_norm(x, weight, bias, eps, axis=-1, ddof=0):
    spread = np.sqrt(x.var(axis=axis, ddof=ddof, keepdims=True) + eps)
    return (x - x.mean(axis=axis, keepdims=True)) / spread * weight + bias


def block_numbers(width, heads, factor):
    config = TransformerConfig(width=width, heads=heads, ffn_factor=factor)
    return sum(p.numel() for p in Block(config).parameters())


def hidden(s, sees=None):
    return np.where(np.tri(s.shape[-1], dtype=bool) if sees is None else sees, s, -np.inf)


def scaled(Q, K):
    return Q @ K.swapaxes(1, 2) / Q.shape[2] ** 0.5


def causal_attention(Q, K, V):
    return softmax(hidden(scaled(Q, K))) @ V


def zero_times_infinity(Q, K, V):
    return softmax(scaled(Q, K) + (1 - np.tri(Q.shape[1])) * -np.inf) @ V


RIGHT: dict[str, Function] = {
    "attention": attention,
    "cross_entropy": cross_entropy,
    "layer_norm": layer_norm,
    "block_numbers": block_numbers,
    "causal_attention": causal_attention,
}


def p_right(logits, y):
    return softmax(logits)[np.arange(len(y)), y]


def overflows(logits, y):
    with np.errstate(all="ignore"):
        powers = np.exp(logits)
        return -np.log(powers[np.arange(len(y)), y] / powers.sum(1)).mean()


def propped_up(logits, y):
    return -np.log(p_right(logits, y) + 1e-12).mean()


def centred(x):
    return x - x.mean(-1, keepdims=True)


def strict_past(Q, K, V):
    with np.errstate(all="ignore"):
        return softmax(hidden(scaled(Q, K), np.tri(Q.shape[1], k=-1, dtype=bool))) @ V


def without_norms(width, heads, factor):
    return block_numbers(width, heads, factor) - 4 * width


WRONG: list[tuple[str, Function, str]] = [
    ("attention", lambda Q, K, V: softmax(Q @ K.T / Q.shape[1] ** 0.5, 0) @ V, "down the columns"),
    (
        "attention",
        lambda Q, K, V: softmax(Q @ K.T / Q.shape[1] ** 0.5, (0, 1)) @ V,
        "over the whole table",
    ),
    ("attention", lambda Q, K, V: softmax(Q @ K.T) @ V, "division by √d is missing"),
    ("attention", lambda Q, K, V: softmax(Q @ K.T / Q.shape[1]) @ V, "its size is √d"),
    ("attention", lambda Q, K, V: softmax(Q @ K.T / len(Q) ** 0.5) @ V, "number of tokens"),
    ("attention", lambda Q, K, V: softmax(Q @ K.T / V.shape[1] ** 0.5) @ V, "length of a value"),
    ("attention", lambda Q, K, V: softmax(Q @ K.T) @ V / Q.shape[1] ** 0.5, "after the softmax"),
    ("attention", lambda Q, K, V: attention(K, Q, V), "Keys and queries are exchanged"),
    ("attention", lambda Q, K, V: softmax(Q @ K.T / Q.shape[1] ** 0.5), "multiply by V"),
    ("attention", lambda Q, K, V: Q @ K.T / Q.shape[1] ** 0.5 @ V, "softmax is missing"),
    ("attention", lambda Q, K, V: np.exp(Q @ K.T / Q.shape[1] ** 0.5) @ V, "divide by the sum"),
    ("attention", lambda Q, K, V: attention(Q, K, V) + 1, "the numbers are not"),
    ("attention", lambda Q, K, V: softmax(Q @ K / 3) @ V, "Q Kᵀ"),
    ("attention", lambda Q, K, V: attention(Q, K, V)[:2], "must have shape"),
    ("cross_entropy", losses, "one loss for each example"),
    ("cross_entropy", lambda s, y: losses(s, y).sum(), "You sum over the examples"),
    ("cross_entropy", lambda s, y: -cross_entropy(s, y), "minus sign"),
    ("cross_entropy", lambda s, y: cross_entropy(s, y) / s.shape[1], "number of classes"),
    ("cross_entropy", lambda s, y: p_right(s, y).mean(), "logarithm is missing"),
    ("cross_entropy", lambda s, y: -p_right(s, y).mean(), "logarithm is missing"),
    ("cross_entropy", lambda s, y: -np.log(p_right(s, y).mean()), "logarithm of the mean"),
    ("cross_entropy", lambda s, y: -np.log(softmax(s)[:, y]).mean(), "p[np.arange(n), y]"),
    ("cross_entropy", lambda s, y: cross_entropy(s, y) / np.log(2), "another base"),
    (
        "cross_entropy",
        lambda s, y: -np.log(softmax(s, 0)[np.arange(len(y)), y]).mean(),
        "over the examples",
    ),
    ("cross_entropy", lambda s, y: -np.log(softmax(s).max(1)).mean(), "largest probability"),
    ("cross_entropy", lambda s, y: -s[np.arange(len(y)), y].mean(), "logits as they are"),
    ("cross_entropy", lambda s, y: cross_entropy(s, y) + 0.1, "mean of −log p"),
    ("cross_entropy", overflows, "Subtract the largest logit"),
    ("cross_entropy", propped_up, "hides the overflow"),
    ("cross_entropy", lambda s, y: min(cross_entropy(s, y), 27.6), "hides the overflow"),
    ("layer_norm", lambda x, w, b, e: layer_norm(x, w, b, e, axis=0), "over the batch"),
    ("layer_norm", lambda x, w, b, e: layer_norm(x, w, b, e, axis=(0, 1)), "over the batch"),
    ("layer_norm", lambda x, w, b, e: layer_norm(x, w, b, e, axis=1), "over the tokens"),
    ("layer_norm", lambda x, w, b, e: layer_norm(x, w, b, e, axis=(1, 2)), "over the tokens"),
    ("layer_norm", lambda x, w, b, e: layer_norm(x, w, b, e, axis=None), "over everything"),
    ("layer_norm", lambda x, w, b, e: layer_norm(x, w, b, e, ddof=1), "n − 1"),
    (
        "layer_norm",
        lambda x, w, b, e: centred(x) / (x.var(-1, keepdims=True) + e) * w + b,
        "divide by the variance",
    ),
    (
        "layer_norm",
        lambda x, w, b, e: centred(x) / (x.std(-1, keepdims=True) + e) * w + b,
        "under the root",
    ),
    ("layer_norm", lambda x, w, b, e: layer_norm(x, w, b, 0), "eps is missing"),
    (
        "layer_norm",
        lambda x, w, b, e: x / np.sqrt(x.var(-1, keepdims=True) + e) * w + b,
        "mean is still in",
    ),
    ("layer_norm", lambda x, w, b, e: layer_norm(x, 1, b, e), "The weight is missing"),
    ("layer_norm", lambda x, w, b, e: layer_norm(x, w, 0, e), "The bias is missing"),
    ("layer_norm", lambda x, w, b, e: layer_norm(x, 1, 0, e), "weight and the bias are missing"),
    ("layer_norm", lambda x, w, b, e: layer_norm(x, b, w, e), "are exchanged"),
    ("layer_norm", lambda x, w, b, e: layer_norm(x, w, b, e) + 1, "the numbers are not"),
    ("layer_norm", lambda x, w, b, e: layer_norm(x, w, b, e)[0], "must have shape"),
    ("block_numbers", lambda w, h, f: 4 * w * w + 2 * f * w * w, "six matrices without"),
    ("block_numbers", lambda w, h, f: 4 * w * w + 2 * f * w * w + 4 * w, "biases of the six"),
    ("block_numbers", without_norms, "normalisations are missing"),
    ("block_numbers", lambda *a: without_norms(*a) + 2 * a[0], "not complete"),
    ("block_numbers", lambda *a: without_norms(*a) + a[0], "not complete"),
    (
        "block_numbers",
        lambda w, h, f: block_numbers(w, h, f) + (h - 1) * 3 * (w * w + w),
        "heads share them",
    ),
    (
        "block_numbers",
        lambda w, h, f: block_numbers(w, h, f) + (h - 1) * 4 * (w * w + w),
        "heads share them",
    ),
    ("block_numbers", lambda w, h, f: block_numbers(w, h, f) - (f - 1) * w, "up_proj has as many"),
    ("block_numbers", lambda w, h, f: block_numbers(w, h, f) - w * w - w, "output projection"),
    ("block_numbers", lambda w, h, f: block_numbers(w, h, 1), "count the feed-forward"),
    ("block_numbers", lambda *a: block_numbers(*a) + 1, "you count"),
    ("causal_attention", zero_times_infinity, "np.where"),
    ("causal_attention", lambda Q, K, V: softmax(scaled(Q, K)) @ V, "no mask"),
    (
        "causal_attention",
        lambda Q, K, V: softmax(hidden(scaled(Q, K), np.tri(Q.shape[1], dtype=bool).T)) @ V,
        "hides the past",
    ),
    ("causal_attention", strict_past, "at least see itself"),
    ("causal_attention", lambda Q, K, V: np.tril(softmax(scaled(Q, K))) @ V, "after the softmax"),
    ("causal_attention", lambda Q, K, V: softmax(np.tril(scaled(Q, K))) @ V, "e⁰ is 1"),
    (
        "causal_attention",
        lambda Q, K, V: softmax(hidden(Q @ K.swapaxes(1, 2))) @ V,
        "√d is missing",
    ),
    ("causal_attention", lambda Q, K, V: causal_attention(K, Q, V), "exchanged"),
    (
        "causal_attention",
        lambda Q, K, V: softmax(hidden(scaled(Q, K)), 1) @ V,
        "down the columns",
    ),
    ("causal_attention", lambda *a: causal_attention(*a) + 1, "the numbers are not"),
    ("causal_attention", lambda Q, K, V: softmax(Q @ K.T) @ V, "the last two only"),
    ("causal_attention", lambda *a: causal_attention(*a)[0], "must have shape"),
]


def test_shares_made_whole_again_after_masking_are_accepted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def renormalised(Q, K, V):
        shares = np.tril(softmax(scaled(Q, K)))
        return shares / shares.sum(-1, keepdims=True) @ V

    ch05.check_causal_attention(renormalised)
    assert capsys.readouterr().out.startswith("passed: ")


test_right, test_stub, test_wrong = exercise_tests(RIGHT, WRONG)
