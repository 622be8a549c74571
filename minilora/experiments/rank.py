"""Rank against trainable parameters and accuracy: teaching a printed-digit adder handwriting.

The base adds two printed digits. It is to add two handwritten ones, from pictures that are labelled
with their sum alone. Every arm starts from the same base and is trained for the same number of
steps on the same labelled pictures ("from scratch" starts from nothing and gets three times the
steps). Its learning rate is tuned on pictures from sheets of handwriting that are used for nothing
else. Test pictures come from yet other sheets, and are looked at once.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from minilora import LoRAConfig, add_lora, lora_layers
from minilora.experiments.cells import Journal, run_cells, trained
from minilora.experiments.recording import (
    Recording,
    Row,
    keep_run,
    source_of,
    write_recording,
)
from minilora.lab import data as data_module
from minilora.lab.pretrained import ADDER, pretrained_adder
from minilora.lab.provenance import commit, device_name, now, peak_memory, versions
from minilora.lab.sweep import Result, grid, sweep
from minilora.lab.training import Evaluation, evaluate, set_seed
from minilora.lab.transformer import BLOCK_LINEARS, TransformerClassifier, TransformerConfig
from minilora.lab.work import cores

Kind = Literal["lora", "random", "full", "head", "biases", "scratch"]

#: The ladder of learning rates: neighbours a factor of about 2.2 apart. An arm starts with five of
#: them and goes on where the best is the first or the last.
RATES = (1e-4, 2.2e-4, 5e-4, 1e-3, 2.2e-3, 5e-3, 1e-2, 2.2e-2, 5e-2, 0.1, 0.22, 0.5)


@dataclass(frozen=True)
class Arm:
    """One way to adapt: what is trained, and the middle of the five rates it starts with."""

    name: str
    kind: Kind
    middle: float
    r: int | None = None
    patience: int = 1  # how many times the steps of the others: who starts from nothing gets more


@dataclass(frozen=True)
class Profile:
    """The size of a run.

    ``labels[0]`` is the number of labelled pictures of the main figure, in which every arm has a
    part. With ``curve_labels`` only the ``curve_arms`` are run. ``watch`` is the number of labels
    and ``watch_ranks``, ``watch_rates``, ``watch_steps`` the rest of the grid in which adapters are
    looked at on their way, every tenth part of it.
    """

    name: str
    model: TransformerConfig
    pretraining_steps: int
    pretraining_lr: float
    labels: tuple[int, ...]
    ranks: tuple[int, ...]
    random_rank: int
    alpha: float
    steps: int
    batch_size: int
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    validation_pictures: int
    test_pictures: int
    curve_labels: tuple[int, ...] = ()
    curve_arms: tuple[str, ...] = ()
    curve_seeds: tuple[int, ...] = ()
    watch: int = 100
    watch_ranks: tuple[int, ...] = ()
    watch_rates: tuple[float, ...] = ()
    watch_steps: int = 400
    rate_shift: int = 0  # steps on the ladder by which a wider model's rates start lower


PROFILES = {
    "cpu": Profile(
        name="cpu",
        model=ADDER,
        pretraining_steps=1600,
        pretraining_lr=3e-3,
        labels=(500,),
        ranks=(1, 2, 4, 8, 16, 32),
        random_rank=8,
        alpha=8.0,
        steps=200,
        batch_size=32,
        seeds=(0, 1, 2, 3, 4),
        tuning_seeds=(100,),
        validation_pictures=764,
        test_pictures=1536,
        curve_labels=(100, 250, 2000),
        curve_arms=("LoRA r=1", "LoRA r=8", "full fine-tuning"),
        curve_seeds=(0, 1, 2),
        watch_ranks=(1, 32),
        watch_rates=(5e-3, 1e-2, 2.2e-2),
    ),
    "gpu": Profile(
        name="gpu",
        model=replace(ADDER, width=256, layers=4, heads=8),
        pretraining_steps=3000,
        pretraining_lr=1e-3,
        labels=(500,),
        ranks=(1, 2, 4, 8, 16, 32, 64),
        random_rank=8,
        alpha=8.0,
        steps=300,
        batch_size=32,
        seeds=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
        tuning_seeds=(100,),
        validation_pictures=764,
        test_pictures=1536,
        curve_labels=(100, 250, 1000, 2000, 4000),
        curve_arms=("LoRA r=1", "LoRA r=8", "LoRA r=64", "full fine-tuning"),
        curve_seeds=(0, 1, 2, 3, 4),
        watch_ranks=(1, 4, 16, 64),
        watch_rates=(5e-4, 1e-3, 2.2e-3, 5e-3, 1e-2),
        rate_shift=1,
    ),
    "smoke": Profile(
        name="smoke",
        model=replace(ADDER, width=8, layers=1, heads=2),
        pretraining_steps=8,
        pretraining_lr=3e-3,
        labels=(40,),
        ranks=(1, 2),
        random_rank=2,
        alpha=8.0,
        steps=4,
        batch_size=16,
        seeds=(0, 1),
        tuning_seeds=(100,),
        validation_pictures=60,
        test_pictures=60,
        curve_labels=(30,),
        curve_arms=("LoRA r=1", "full fine-tuning"),
        curve_seeds=(0,),
        watch=40,
        watch_ranks=(1, 2),
        watch_rates=(1e-3, 1e-2),
        watch_steps=20,
    ),
}


@dataclass(frozen=True)
class Cell:
    """One training run."""

    stage: str
    arm: Arm
    labels: int
    seed: int
    lr: float


def arms(profile: Profile) -> list[Arm]:
    """Every way to adapt that is compared."""
    low_rank = [Arm(f"LoRA r={r}", "lora", 1e-2, r) for r in profile.ranks]
    r = profile.random_rank
    return [
        Arm("head only", "head", 5e-3),
        Arm("biases only", "biases", 1e-2),
        *low_rank,
        Arm(f"random A, r={r}", "random", 5e-2, r),
        Arm("full fine-tuning", "full", 2.2e-3),
        Arm("from scratch", "scratch", 1e-3, patience=3),
    ]


def prepare(arm: Arm, base: TransformerClassifier, alpha: float, seed: int) -> None:
    """Make a copy of the base ready to be trained the arm's way, in place.

    ``seed`` draws A of the adapters. The head keeps the base's weights; only "head only", "full
    fine-tuning" and "from scratch" train it. "biases only" is BitFit (arXiv 2106.10199): the biases
    of the adapted layers and of the normalisations.
    """
    set_seed(seed)
    if arm.kind in ("full", "scratch"):
        return
    if arm.kind == "head":
        base.requires_grad_(False)
        base.head.requires_grad_(True)
        return
    if arm.kind == "biases":
        for path, parameter in base.named_parameters():
            parameter.requires_grad_(path.startswith("blocks.") and path.endswith(".bias"))
        return
    assert arm.r is not None
    add_lora(base, LoRAConfig(r=arm.r, alpha=alpha, targets=list(BLOCK_LINEARS)))
    if arm.kind == "random":
        for layer in lora_layers(base).values():
            layer.A.requires_grad_(False)


def run(
    profile: str | Profile = "cpu",
    *,
    jobs: int | None = None,
    device: torch.device | str | None = None,
    out: Path | str | None = None,
    progress: bool = False,
) -> Recording:
    """Run the whole experiment; with ``out``, leave ``rank.PROFILE.json`` in that folder.

    It runs on CUDA where there is a card, else on the CPU (these models are too small for MPS to be
    worth its calls). ``jobs`` processes share the work: one for each core, or six for a card.
    """
    size = PROFILES[profile] if isinstance(profile, str) else profile
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if jobs is None:
        jobs = min(cores(), 6) if place.type == "cuda" else cores()
    started = time.perf_counter()
    source = source_of("rank")
    path = None if out is None else Path(out) / f"rank.{size.name}.jsonl"
    journal = Journal(path, {"source": source, "settings": repr(size), "device": str(place)})

    base = adder(size, place, progress)
    work = partial(run_cell, size=size, device=str(place), base=base.state_dict())
    rows: list[Row] = []
    compared = arms(size)
    chosen = [arm for arm in compared if arm.name in size.curve_arms]
    rows += tune(size, compared, size.labels, {}, work, journal, jobs, progress)
    start = {arm.name: best_rates(rows)[arm.name, size.labels[0]] for arm in chosen}
    rows += tune(size, chosen, size.curve_labels, start, work, journal, jobs, progress)
    best = best_rates(rows)
    cells = [
        Cell("final", arm, labels, seed, best[arm.name, labels])
        for some, counts, seeds in (
            (compared, size.labels, size.seeds),
            (chosen, size.curve_labels, size.curve_seeds),
        )
        for labels in counts
        for arm in some
        for seed in seeds
    ]
    rows += run_cells(cells, work, journal, jobs=jobs, say="test" if progress else None)
    rows += baselines(size, base)
    rows += watch(size, base.to(place), jobs if place.type == "cpu" else 1, path)
    recording = Recording(
        name="rank",
        profile=size.name,
        settings=asdict(size),
        rows=rows,
        source=source,
        device=device_name(place),
        versions=versions(),
        date=now(),
        commit=commit(),
        seconds=time.perf_counter() - started,
        peak_bytes=peak_memory(place),
    )
    if out is not None:
        write_recording(recording, out)
        journal.close()
        if path is not None:
            path.with_suffix(".watch.jsonl").unlink(missing_ok=True)
    keep_run(recording)
    return recording


def adder(
    size: Profile, device: torch.device | str = "cpu", progress: bool = False
) -> TransformerClassifier:
    """The base of a profile, from the cache or made now."""
    return pretrained_adder(
        config=size.model,
        steps=size.pretraining_steps,
        lr=size.pretraining_lr,
        device=device,
        progress=None if progress else False,
    )


def tune(
    size: Profile,
    compared: list[Arm],
    counts: tuple[int, ...],
    start: dict[str, float],
    work: partial[Row],
    journal: Journal,
    jobs: int,
    progress: bool,
) -> list[Row]:
    """Try learning rates for every arm until the best lies between two others; their rows.

    Five neighbouring rates at first, or three around the arm's rate in ``start``; then one more at
    a time on the side where the best is last.
    """
    # (arm, labels) → the first place on the ladder that was tried, and the one past the last
    seen: dict[tuple[Arm, int], tuple[int, int]] = {}
    for arm in compared:
        if arm.name in start:
            middle, half = RATES.index(start[arm.name]), 1
        else:
            middle, half = RATES.index(arm.middle) - size.rate_shift, 2
        first = min(max(middle - half, 0), len(RATES) - 2 * half - 1)
        seen |= {(arm, labels): (first, first + 2 * half + 1) for labels in counts}
    todo = [(key, rate) for key, (first, end) in seen.items() for rate in RATES[first:end]]
    rows: list[Row] = []
    while todo:
        cells = [
            Cell("tune", arm, labels, seed, rate)
            for (arm, labels), rate in todo
            for seed in size.tuning_seeds
        ]
        rows += run_cells(cells, work, journal, jobs=jobs, say="tuning" if progress else None)
        best, todo = best_rates(rows), []
        for (arm, labels), (first, end) in seen.items():
            place = RATES.index(best[arm.name, labels])
            if place == first and first > 0:
                seen[arm, labels] = first - 1, end
                todo.append(((arm, labels), RATES[first - 1]))
            elif place == end - 1 and end < len(RATES):
                seen[arm, labels] = first, end + 1
                todo.append(((arm, labels), RATES[end]))
    return rows


def watch(
    size: Profile, base: TransformerClassifier, jobs: int, path: Path | None = None
) -> list[Row]:
    """Adapters with few labels, looked at on their way: what they overfit, and when.

    One row for every look, on validation data, with "step N" for its setting; and one on test data
    for the rate and the step that validation chose for the rank (setting "tuned"), and for the
    middle rate at the last step ("untuned").
    """
    if not size.watch_ranks:
        return []
    config = LoRAConfig(r=1, alpha=size.alpha, targets=list(BLOCK_LINEARS))
    seeds = size.curve_seeds
    cells = grid(config, r=size.watch_ranks, lr=size.watch_rates, seed=seeds)
    every = max(1, size.watch_steps // 10)
    _, validation, test = pictures(size, size.watch, 0)
    results = sweep(
        base,
        cells,
        partial(_labelled, size),
        steps=size.watch_steps,
        batch_size=size.batch_size,
        schedule="constant",
        evaluate={"validation": (validation.x, validation.y), "test": (test.x, test.y)},
        every=every,
        jobs=jobs,
        path=None if path is None else path.with_suffix(".watch.jsonl"),
        progress=False,
    )
    found = {(c.config.r, c.lr, c.seed): r for c, r in zip(cells, results, strict=True)}
    rows = []
    middle = size.watch_rates[len(size.watch_rates) // 2]
    for (r, lr, seed), result in found.items():
        for k, look in enumerate(result.along.get("validation", []), start=1):
            rows.append(_watched(size, r, seed, lr, f"step {k * every}", look, result, "tune"))
    for r in size.watch_ranks:
        # (rates, looks): the mean over seeds, infinite for a rate at which one diverged
        curves = np.array(
            [np.mean([_curve(found[r, lr, seed], size, every) for seed in seeds], axis=0)
             for lr in size.watch_rates]
        )  # fmt: skip
        best, step = np.unravel_index(int(curves.argmin()), curves.shape)
        for setting, lr, at in (
            ("tuned", size.watch_rates[int(best)], int(step)),
            ("untuned", middle, -1),
        ):
            for seed in seeds:
                result = found[r, lr, seed]
                seen = result.along["test"][at] if result.along else None
                rows.append(_watched(size, r, seed, lr, setting, seen, result, "final"))
    return rows


def _labelled(size: Profile, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    train, _, _ = pictures(size, size.watch, seed)
    return train.x, train.y


def _curve(result: Result, size: Profile, every: int) -> list[float]:
    if result.along:
        return [look.log_loss for look in result.along["validation"]]
    return [float("inf")] * (size.watch_steps // every)


def _watched(
    size: Profile,
    r: int,
    seed: int,
    lr: float,
    setting: str,
    seen: Evaluation | None,
    result: Result,
    stage: str,
) -> Row:
    return Row(
        stage=stage,
        arm=f"watched r={r}" if stage == "tune" else f"watched r={r}, {setting}",
        kind="lora",
        r=r,
        labels=size.watch,
        seed=seed,
        lr=lr,
        setting=setting,
        parameters=result.parameters,
        accuracy=seen.accuracy if seen else None,
        log_loss=seen.log_loss if seen else None,
        train_loss=None,
        seconds=0.0,
        diverged=seen is None,
    )


def best_rates(rows: list[Row]) -> dict[tuple[str, int], float]:
    """For (arm's name, labels) the rate with the lowest mean log loss on validation data."""
    losses: dict[tuple[str, int], dict[float, list[float]]] = {}
    for row in rows:
        if row.stage == "tune" and row.lr is not None:
            loss = float("inf") if row.log_loss is None else row.log_loss
            losses.setdefault((row.arm, row.labels), {}).setdefault(row.lr, []).append(loss)
    return {
        key: min(by_rate, key=lambda rate: (float(np.mean(by_rate[rate])), rate))
        for key, by_rate in losses.items()
    }


def run_cell(cell: Cell, *, size: Profile, device: str, base: dict[str, torch.Tensor]) -> Row:
    """Train one arm once, and look at validation data (tuning) or test data (final)."""
    train, validation, test = pictures(size, cell.labels, cell.seed)
    set_seed(cell.seed)
    model = TransformerClassifier(size.model)
    if cell.arm.kind != "scratch":
        model.load_state_dict(base)
    prepare(cell.arm, model, size.alpha, cell.seed)
    row = Row(
        stage=cell.stage,
        arm=cell.arm.name,
        kind=cell.arm.kind,
        r=cell.arm.r,
        labels=cell.labels,
        seed=cell.seed,
        lr=cell.lr,
        setting=None,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        accuracy=None,
        log_loss=None,
        train_loss=None,
        seconds=0.0,
    )
    seen = validation if cell.stage == "tune" else test
    return trained(
        row,
        model,
        (train.x, train.y),
        (seen.x, seen.y),
        steps=size.steps * cell.arm.patience,
        batch_size=size.batch_size,
        device=device,
    )


Pictures = tuple[data_module.Split, data_module.Split, data_module.Split]


def pictures(size: Profile, labels: int, seed: int) -> Pictures:
    """Handwritten pairs with their sums: the seed's labelled ones, and the fixed other two."""
    hand = _handwriting()
    return (
        data_module.pairs(hand.train, labels, seed),
        data_module.pairs(hand.validation, size.validation_pictures, seed=1001),
        data_module.pairs(hand.test, size.test_pictures, seed=1002),
    )


@lru_cache(maxsize=1)
def _handwriting() -> data_module.Digits:
    return data_module.digits()


def baselines(size: Profile, base: TransformerClassifier) -> list[Row]:
    """What needs no training of the transformer, on the same labelled pictures and test pictures.

    The base as it is; logistic regression and nearest neighbours on the pixels, their own knob set
    on validation data; and, for comparison only, what nearest neighbours do when every single
    digit is labelled, so that the sum can be worked out from two readings.
    """
    # scikit-learn brings it; it carries no types of its own.
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    rows = []
    everywhere = [(labels, size.seeds) for labels in size.labels]
    everywhere += [(labels, size.curve_seeds) for labels in size.curve_labels]
    for labels, seeds in everywhere:
        for seed in seeds:
            train, validation, test = pictures(size, labels, seed)
            # In double precision, so that the number of BLAS threads does not show in the result.
            (x, y), *parts = (
                (part.x.flatten(1).double().numpy(), part.y.numpy())
                for part in (train, validation, test)
            )
            with threadpool_limits(1):  # on problems this small, threads wait for each other
                rows += [
                    _neighbours(x, y, parts, labels, seed),
                    _logistic(x, y, parts, labels, seed),
                    _digit_by_digit(size, labels, seed),
                ]
        _, _, test = pictures(size, labels, seeds[0])
        found = evaluate(base, test.x, test.y)
        rows.append(
            _classical("the base as it is", "base", labels, 0, None, found.accuracy, found.log_loss)
        )
    return rows


Parts = list[tuple[np.ndarray, np.ndarray]]


def _neighbours(x: np.ndarray, y: np.ndarray, parts: Parts, labels: int, seed: int) -> Row:
    from sklearn.neighbors import KNeighborsClassifier

    tried = [(k, KNeighborsClassifier(k).fit(x, y)) for k in (1, 3, 5, 9, 15) if k <= len(y)]
    k, best = max(tried, key=lambda pair: pair[1].score(*parts[0]))
    return _classical(
        "nearest neighbours", "neighbours", labels, seed, f"k={k}", best.score(*parts[1]), None
    )


def _logistic(x: np.ndarray, y: np.ndarray, parts: Parts, labels: int, seed: int) -> Row:
    from sklearn.linear_model import LogisticRegression

    tried = [
        (strength, LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit(x, y))
        for strength in (0.001, 0.01, 0.1, 1.0, 10.0)
    ]
    strength, best = max(tried, key=lambda pair: pair[1].score(*parts[0]))
    return _classical(
        "logistic regression",
        "logistic",
        labels,
        seed,
        f"C={strength:g}",
        best.score(*parts[1]),
        None,
    )


def _digit_by_digit(size: Profile, labels: int, seed: int) -> Row:
    """One nearest neighbour for each half of the picture, had its own digit been labelled."""
    from sklearn.neighbors import KNeighborsClassifier

    hand = _handwriting()
    train = data_module.pairs(hand.train, labels, seed, label="number")
    test = data_module.pairs(hand.test, size.test_pictures, seed=1002)

    def halves(part: data_module.Split) -> np.ndarray:
        return torch.cat(part.x.split(8, dim=3)).flatten(1).numpy()  # all left, then all right

    digit = torch.cat([train.y // 10, train.y % 10]).numpy()
    reader = KNeighborsClassifier(1).fit(halves(train), digit)
    left, right = np.split(reader.predict(halves(test)), 2)
    accuracy = float(np.mean(left + right == test.y.numpy()))
    return _classical("digits labelled singly", "halves", labels, seed, "k=1", accuracy, None)


def _classical(
    arm: str,
    kind: str,
    labels: int,
    seed: int,
    setting: str | None,
    accuracy: float,
    log_loss: float | None,
) -> Row:
    return Row(
        stage="final",
        arm=arm,
        kind=kind,
        r=None,
        labels=labels,
        seed=seed,
        lr=None,
        setting=setting,
        parameters=None,
        accuracy=float(accuracy),
        log_loss=log_loss,
        train_loss=None,
        seconds=0.0,
    )
