"""What a recording of the limits experiment says: runs by arm, shares of a gain, detectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from minilora.experiments.limits.backdoors import NUMBERS, PLACES
from minilora.experiments.recording import Recording, Row
from minilora.experiments.summaries import t_interval


def finals(recording: Recording, arm: str) -> list[Row]:
    """The rows of an arm on test data, by draw; ValueError where there are none."""
    found = [row for row in recording.rows if (row.stage, row.arm) == ("final", arm)]
    if not found:
        arms = list(dict.fromkeys(row.arm for row in recording.rows))
        raise ValueError(f"no tested runs of {arm!r}; there are {arms}")
    return sorted(found, key=lambda row: row.seed)


def values(recording: Recording, arm: str, field: str = "log_loss") -> list[float]:
    """A field of the tested runs of an arm, such as "accuracy"; nan for one that diverged."""
    numbers = [getattr(row, field) for row in finals(recording, arm)]
    return [float("nan") if number is None else float(number) for number in numbers]


def mean(recording: Recording, arm: str, field: str = "log_loss") -> float:
    """The mean of the draws."""
    return float(np.mean(values(recording, arm, field)))


def behind(
    recording: Recording, a: str, b: str, field: str = "log_loss"
) -> tuple[float, float, float]:
    """a − b over the draws: the mean, and the ends of its 95% t-interval."""
    pairs = zip(values(recording, a, field), values(recording, b, field), strict=True)
    return t_interval([one - other for one, other in pairs])


def line(recording: Recording, arm: str, width: int = 26) -> str:
    """An arm in words: numbers trained, rate, means on test data and in the last batches.

    The losses are in nats.
    """
    row = finals(recording, arm)[0]
    means = [mean(recording, arm, field) for field in ("log_loss", "train_loss")]
    words = f"{arm:{width}}{row.parameters:>8,} numbers, rate {row.lr:<6g}"
    return f"{words} test {means[0]:.3f}, training {means[1]:.3f}"


@dataclass(frozen=True)
class Noted:
    """The adapters of one kind: what they do, and their twenty numbers (adapters, 20)."""

    kind: str
    seeds: tuple[int, ...]
    right: np.ndarray
    called: np.ndarray
    signatures: np.ndarray


def kinds(recording: Recording) -> list[str]:
    """The kinds of adapters, in the order in which they were noted."""
    return list(dict.fromkeys(one.arm for one in recording.quantities))


def noted(recording: Recording, kind: str) -> Noted:
    """All adapters of a kind, by seed; ValueError where there are none."""
    of: dict[int, dict[str, float]] = {}
    for one in recording.quantities:
        if one.arm == kind:
            of.setdefault(one.repeat, {})[one.what] = one.measured
    if not of:
        raise ValueError(f"no adapters {kind!r}; there are {kinds(recording)}")
    seeds = tuple(sorted(of))
    names = [f"{place} {what}" for place in PLACES for what in NUMBERS]
    return Noted(
        kind,
        seeds,
        np.array([of[seed]["right"] for seed in seeds]),
        np.array([of[seed]["called"] for seed in seeds]),
        np.array([[of[seed][name] for name in names] for seed in seeds]),
    )


#: What plainer detectors look at, for `narrowed`.
NARROW = ("four norms", "right answers")


def narrowed(one: Noted, what: str) -> Noted:
    """The same adapters for a plainer detector, that sees less than the twenty numbers.

    ``what`` is one of `NARROW`: "four norms" (adapters, 4), those of Q, K, V and O, or "right
    answers" (adapters, 1), the share on ordinary pictures. ValueError for anything else.
    """
    if what == "four norms":
        return replace(one, signatures=one.signatures[:, NUMBERS.index("norm") :: len(NUMBERS)])
    if what == "right answers":
        return replace(one, signatures=one.right[:, None])
    raise ValueError(f"{what!r} is none of {NARROW}")


def suspicion(
    clean: np.ndarray, poisoned: np.ndarray, asked: np.ndarray, C: float = 1.0
) -> np.ndarray:
    """What logistic regression says of some signatures: the log-odds of being poisoned.

    It learns from ``clean`` and ``poisoned`` signatures, each number less its mean and over its
    standard deviation there.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = np.concatenate([clean, poisoned])
    y = np.repeat([0, 1], [len(clean), len(poisoned)])
    detector = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000))
    odds: np.ndarray = detector.fit(x, y).decision_function(asked)
    return odds


def folds(count: int, parts: int = 4) -> list[np.ndarray]:
    """Which of so many adapters each part holds, as arrays of true and false."""
    return [np.arange(count) % parts == k for k in range(parts)]


def left_out(
    clean: Noted, poisoned: Noted, asked: Sequence[Noted], also: Sequence[Noted] = ()
) -> dict[str, np.ndarray]:
    """{kind: log-odds of its adapters}, by detectors that have seen no adapter of their seeds.

    They learn from clean and poisoned adapters; ``also`` are further clean ones.
    """
    found = {one.kind: np.full(len(one.seeds), np.nan) for one in asked}
    for out in folds(len(clean.seeds)):
        harmless = np.concatenate([one.signatures[~out] for one in (clean, *also)])
        for one in asked:
            odds = suspicion(harmless, poisoned.signatures[~out], one.signatures[out])
            found[one.kind][out] = odds
    return found


def shuffled(clean: Noted, poisoned: Noted, times: int, seed: int = 0) -> list[float]:
    """The share that detectors have right whose labels mean nothing: a null.

    The pool is dealt out at random to two groups of the same sizes, and all is done as before.
    """
    rng = np.random.default_rng(seed)
    pool = np.concatenate([clean.signatures, poisoned.signatures])
    count, found = len(clean.seeds), []
    for _ in range(times):
        order = rng.permutation(len(pool))
        a, b = pool[order[:count]], pool[order[count:]]
        right = []
        for out in folds(count):
            odds = suspicion(a[~out], b[~out], np.concatenate([a[out], b[out]]))
            right += (np.repeat([-1, 1], out.sum()) * odds > 0).tolist()
        found.append(float(np.mean(right)))
    return found


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share, so many of ``count`` (Wilson 1927)."""
    z, share = 1.96, right / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5 / (1 + z**2 / count)
    return middle - half, middle + half
