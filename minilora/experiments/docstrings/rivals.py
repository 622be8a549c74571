"""What needs no training of a transformer: counts of words, and a frozen encoder.

Both end in a logistic regression, whose strength C is chosen on validation texts for each draw.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from minilora.experiments.docstrings.results import bundle_rows
from minilora.experiments.docstrings.training import Trained, encoder, question, token_ids
from minilora.experiments.recording import Row
from minilora.lab import minilm

TFIDF, PROBE = "TF-IDF", "linear probe"
#: Strengths of the two, from much shrinking to little.
STRENGTHS = {
    TFIDF: (0.25, 1.0, 4.0, 16.0, 64.0, 256.0, 1024.0),
    PROBE: (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1),
}
SPLITS = ("validation", "test")


def rivals(run: Trained, seeds: Sequence[int], device: str) -> list[Row]:
    """The rows of both for every draw of the labels, with those of the bundles of test files."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    rows = []
    with threadpool_limits(1):  # on problems this small, threads wait for each other
        for seed in seeds:
            rows += _regression(run, seed, TFIDF, _counts(run, seed))
            rows += _regression(run, seed, PROBE, _features(run, seed, device))
    return rows


def _counts(run: Trained, seed: int) -> dict[str, Any]:
    """Weights of words and pairs of words, as far as the labelled texts have them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    asked = question(run.part, run.most)
    texts = [asked.texts["train"][i] for i in asked.draw(run.labels, seed)]
    counter = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(texts)
    found = {split: counter.transform(asked.texts[split]) for split in SPLITS}
    return found | {"train": counter.transform(texts)}


def _features(run: Trained, seed: int, device: str) -> dict[str, Any]:
    """(N, 384) vectors of the frozen encoder."""
    found = {split: _scored(run.part, run.most, run.layers, split, device) for split in SPLITS}
    chosen = question(run.part, run.most).draw(run.labels, seed)
    ids = token_ids(run.part, run.most, "train")[chosen]
    there = minilm.features(encoder(run.layers).to(device), ids)
    return found | {"train": there.double().numpy()}


@functools.lru_cache(maxsize=8)
def _scored(part: str, most: int, layers: int, split: str, device: str) -> np.ndarray:
    ids = token_ids(part, most, split)
    return minilm.features(encoder(layers).to(device), ids).double().numpy()


def _regression(run: Trained, seed: int, arm: str, x: dict[str, Any]) -> list[Row]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    asked = question(run.part, run.most)
    y = {split: asked.labels[split] for split in SPLITS}
    y["train"] = asked.labels["train"][asked.draw(run.labels, seed)]
    everything = np.arange(len(asked.classes))

    def probabilities(model: Any, split: str) -> np.ndarray:
        """(N, classes); a class that the draw has no text of gets next to nothing."""
        found = np.full((len(y[split]), len(everything)), 1e-6)
        found[:, model.classes_] = np.maximum(model.predict_proba(x[split]), 1e-6)
        return found / found.sum(1, keepdims=True)

    best: tuple[float, float, Any] | None = None
    for strength in STRENGTHS[arm]:
        model = LogisticRegression(C=strength, max_iter=1000).fit(x["train"], y["train"])
        loss = log_loss(y["validation"], probabilities(model, "validation"), labels=everything)
        if best is None or loss < best[0]:
            best = loss, strength, model
    assert best is not None
    _, strength, model = best
    given = probabilities(model, "test")
    hits = given.argmax(1) == y["test"]
    row = Row(
        stage="final",
        arm=arm,
        kind="logistic" if arm == TFIDF else "head",
        labels=run.labels,
        seed=seed,
        setting=f"C={strength:g}",
        parameters=int(model.coef_.size + model.intercept_.size),
        accuracy=float(hits.mean()),
        log_loss=float(log_loss(y["test"], given, labels=everything)),
    )
    return [row, *bundle_rows(row, hits, asked.files["test"])]
