"""The rates experiment: rows that it promises, each held against a run of its own."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import joblib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from experiment_help import noted, plain, recorded, tuned
from torch import nn

import minilora
from minilora import LoRAConfig, experiments
from minilora.experiments import families, rates, recording, sums
from minilora.experiments.families import BOTH, FINAL, AdapterRun, Family, Recipe, WholeRun
from minilora.experiments.rates import experiment, figures
from minilora.experiments.recording import Row
from minilora.experiments.running import Machine
from minilora.experiments.tasks import Task
from minilora.experiments.tuning import LADDERS
from minilora.lab import data
from minilora.lab.sweep import Cell
from minilora.lab.training import batches, evaluate, fit, learning_rate, set_seed
from minilora.lab.transformer import TransformerClassifier

Scores = dict[str, float]

STEPS, SHORT = 12, 8  # of which one, and none, warm up
#: The smoke profile with two draws to tune on, and one to test with.
SIZE = replace(
    rates.PROFILES["smoke"],
    steps=STEPS,
    short_steps=SHORT,
    tuning=replace(rates.PROFILES["smoke"].tuning, tested=(0, 1)),
)
SIX = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
CPU = Machine(torch.device("cpu"))


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def base(cache: None) -> TransformerClassifier:
    return sums.adder(SIZE.sums)


def run(**given: Any) -> recording.Recording:
    return rates.run(SIZE, device="cpu", **{"jobs": 1, **given})


@pytest.fixture(scope="module")
def everything(cache: None) -> tuple[recording.Recording, list[str]]:
    """A run of all parts, and all that it has trained."""
    return noted(run)


# ---------------------------------------------------------------- broken or sound


def test_a_run_is_broken_where_it_ends_above_its_start():
    assert rates.broken(tuned(0.1, 2.0, train_loss=1.7), 1.6)
    assert not rates.broken(tuned(0.1, 2.0, train_loss=1.5), 1.6)  # however high its other loss
    assert rates.broken(tuned(0.1, None, train_loss=None), 1.6)


def test_the_highest_sound_rate_lies_below_the_first_broken_run():
    rows = [
        tuned(0.001, 1.0, train_loss=0.5),
        tuned(0.002, 1.0, train_loss=0.5),
        tuned(0.004, 1.0, 0, train_loss=0.5),
        tuned(0.004, 2.8, 1, train_loss=2.8),
        tuned(0.008, 1.0, train_loss=0.5),
    ]
    assert rates.highest_sound(rows, "a", 1.6) == 0.002
    assert rates.highest_sound(rows[:3], "a", 1.6) == 0.004
    with pytest.raises(ValueError, match="'a' is broken at the lowest rate"):
        rates.highest_sound(rows, "a", 0.4)


def test_no_tuning_runs_are_said_to_be_none():
    with pytest.raises(ValueError, match="no tuning runs of 'b'"):
        rates.by_rate([tuned(0.1, 1.0)], "b")


# ---------------------------------------------------------------- which rows there are

#: For each part: arm, kind, r, setting, parameters, whether it is tested.
#: The model of the smoke profile is 8 wide, with one block: A of rank 1 has 4·8 + 8 + 32 numbers.
PROMISED: dict[str, list[tuple[str, str, int | None, str, int, bool]]] = {
    "adam": [
        ("LoRA r=1", "lora", 1, "adam", 144, False),
        ("LoRA r=2", "lora", 2, "adam", 288, True),
        ("full fine-tuning", "full", None, "adam", 1275, False),
    ],
    "scaling": [
        ("LoRA r=2, scale 5.66", "lora", 2, "scaling-adamw", 288, True),
        ("LoRA r=1, scale 2", "lora", 1, "scaling-adamw", 144, False),
        ("LoRA r=2, scale 2", "lora", 2, "scaling-adamw", 288, False),
        ("SGD, r=1, scale 8", "lora", 1, "scaling-sgd", 144, False),
        ("SGD, r=2, scale 4", "lora", 2, "scaling-sgd", 288, False),
        ("SGD, r=2, scale 5.66", "lora", 2, "scaling-sgd", 288, False),
    ],
    "plus": [("LoRA+ ratio 4", "lora", 2, "plus", 288, True)],
    "starts": [
        ("A at zero", "lora", 2, "starts", 288, True),
        ("only B trains", "lora", 2, "starts", 144, True),
        ("only A trains", "lora", 2, "starts", 144, True),
    ],
    "inverted": [
        ("LoRA, inverted", "lora", 2, "inverted", 288, False),
        ("full fine-tuning, inverted", "full", None, "inverted", 1275, False),
    ],
    "batch": [("batch 4", "lora", 2, "batch-4", 288, False)],
    "short": [
        ("LoRA, few steps", "lora", 2, "short", 288, False),
        ("full fine-tuning, few steps", "full", None, "short", 1275, False),
    ],
}


@pytest.fixture(scope="module")
def by_part(everything: tuple[recording.Recording, list[str]]) -> dict[str, list[Row]]:
    """The rows of every part."""
    of = {arm: part for part, arms in PROMISED.items() for arm, *_ in arms}
    rows = everything[0].rows
    assert {row.arm for row in rows} == of.keys()
    return {part: [row for row in rows if of[row.arm] == part] for part in PROMISED}


@pytest.mark.parametrize("part", rates.PARTS)
def test_every_part_gives_the_rows_that_it_promises(part, by_part):
    for arm, kind, r, setting, parameters, is_tested in PROMISED[part]:
        rows = [row for row in by_part[part] if row.arm == arm]
        assert {(w.kind, w.r, w.setting, w.parameters, w.labels) for w in rows} == {
            (kind, r, setting, parameters, 40)
        }
        tried = {
            lr: {row.seed for row in rows if (row.stage, row.lr) == ("tune", lr)}
            for lr in {row.lr for row in rows}
        }
        assert all(draws <= {100, 101} for draws in tried.values())
        whole = {lr for lr, draws in tried.items() if draws == {100, 101}}
        best = min(
            whole,
            key=lambda lr: rates.mean_loss(w for w in rows if (w.stage, w.lr) == ("tune", lr)),
        )
        assert {best / 2, best, best * 2} <= whole
        final = [(row.lr, row.seed) for row in rows if row.stage == "final"]
        assert final == ([(best, 0), (best, 1)] if is_tested else [])
        assert not any(row.diverged or row.log_loss is None for row in rows)


def test_arms_with_the_same_scale_are_the_same_arm():
    """α/√r at rank 16 and α = 2r at rank 16 are one scale, and α = 2r at rank 4 is α/r."""
    fixed, root, double = rates.RULES
    assert rates.arm_of(8.0, fixed, 4) == rates.arm_of(8.0, double, 4) == "LoRA r=4"
    assert rates.arm_of(8.0, root, 16) == rates.arm_of(8.0, double, 16) == "LoRA r=16, scale 2"
    assert rates.arm_of(8.0, root, 1) == "LoRA r=1"
    runs = {
        run.arm: run
        for part in ("adam", "scaling")
        for group in experiment.groups(rates.PROFILES["cpu"], part)
        for run, _ in group.arms
    }
    for rule, scale_of in rates.RULES.items():
        for r in rates.PROFILES["cpu"].ranks:
            config = runs[rates.arm_of(8.0, rule, r)].cell.config
            assert config.r == r and config.alpha / r == pytest.approx(scale_of(8.0, r))


def test_parts_by_themselves_give_the_same_rows(by_part, tmp_path, monkeypatch):
    """And a page leaves them under their names, where the build asks for it."""
    monkeypatch.setenv("MINILORA_RUNS", str(tmp_path))
    found = run(parts=["batch", "scaling"])
    assert plain(found.rows) == plain(by_part["batch"] + by_part["scaling"])
    (path,) = tmp_path.iterdir()
    assert path.name == "rates-batch-scaling.smoke.json"
    assert len(recording.read_recording(path).rows) == len(found.rows)


@pytest.mark.parametrize("name", ["cpu", "gpu", "smoke"])
def test_the_ladders_of_a_profile_are_fair(name):
    """At least four rates to begin with, on the ladder; and no draw both tunes and tests."""
    size = rates.PROFILES[name]
    usual, ladder = size.tuning, LADDERS[size.tuning.ladder]
    assert not set(usual.seeds) & set(usual.tested)
    seen: list[tuple[str, str]] = []
    for part in rates.PARTS:
        for group in experiment.groups(size, part):
            for run, tuning in group.arms:
                seen.append((group.name, run.arm))
                assert (tuning.ladder, tuning.seeds) == (usual.ladder, usual.seeds)
                assert ladder.index(run.lr) - tuning.below > 1
                assert ladder.index(run.lr) + tuning.above < len(ladder) - 2
                assert tuning.below + tuning.above >= 3 or tuning.glance is None
    assert len(seen) == len(set(seen))
    assert name == "smoke" or len(usual.seeds) >= 3


def test_pictures_that_tune_are_never_scored_on_test_data(base, monkeypatch):
    """Only the cells that were chosen are looked at there, once."""
    asked: list[tuple[str, set[str], int]] = []
    real = families.sweep

    def noted(base: Any, cells: Any, *given: Any, **more: Any) -> Any:
        asked.append((repr({cell.seed for cell in cells}), set(more["evaluate"]), len(cells)))
        return real(base, cells, *given, **more)

    monkeypatch.setattr(families, "sweep", noted)
    rows = run(parts=["plus"]).rows
    *tuning, last = asked
    assert all(len(sets) == 1 for _, sets, _ in asked)
    assert not any(draws == "{0, 1}" or sets == last[1] for draws, sets, _ in tuning)
    assert last[0] == "{0, 1}" and last[2] == sum(row.stage == "final" for row in rows) == 2


# ---------------------------------------------------------------- figures


def by_hand(arm: str = "a") -> list[Row]:
    """Four rungs: one draw, three, three, and three of which two are broken."""
    found = []
    for lr, pairs in {
        0.004: [(0.9, 0.1)],
        0.008: [(0.8, 0.1), (0.7, 0.1), (0.9, 0.1)],
        0.016: [(0.6, 0.1), (0.5, 0.1), (1.0, 0.1)],
        0.032: [(0.7, 0.1), (2.8, 2.7), (2.7, 2.7)],
    }.items():
        found += [
            tuned(lr, loss, draw, arm=arm, train_loss=train)
            for draw, (loss, train) in enumerate(pairs)
        ]
    return found


def test_a_curve_shows_every_run_and_no_mean_of_sound_and_broken_ones():
    figure, ax = plt.subplots()
    ends = figures.draw_u(ax, by_hand(), "a", 1.6)
    drawn: dict[Any, list[tuple[float, float]]] = {}
    for line in ax.lines:
        points = zip(line.get_xdata(), line.get_ydata(), strict=True)
        drawn.setdefault(line.get_marker(), []).extend(points)
    assert len(drawn["."]) == 8 and sorted(drawn["x"]) == [(0.032, 2.7), (0.032, 2.8)]
    means = [(0.008, pytest.approx(0.8)), (0.016, pytest.approx(0.7))]
    assert drawn["o"] == [*means, means[1]]  # the best a second time, filled
    assert ends == ((0.004, 0.9), (0.016, 0.6))
    plt.close(figure)


def test_the_map_says_where_runs_are_broken_and_where_draws_are_few():
    figure, ax = plt.subplots()
    rows = [*by_hand("b"), *(replace(row, lr=row.lr / 2) for row in by_hand("c"))]
    found = replace(recorded(rows), name="rates")
    figures.draw_ratios(ax, found, SIZE, {1.0: "b", 4.0: "c"}, 1.6)
    words = [text.get_text() for text in ax.texts]
    assert words == ["(0.90)", "0.80", "0.70", "2 of 3\nbroken"] * 2
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        "0.004",
        "0.008",
        "0.016",
        "0.032",
    ]
    framed = [patch.get_xy() for patch in ax.patches if not patch.get_fill()]
    assert framed == [(1.5, -0.5), (1.5, 0.5)]
    plt.close(figure)


def test_the_panels_hold_every_rule_and_rank(everything):
    figure, axes = plt.subplots(2, 3)
    figures.draw_scalings(axes.ravel(), everything[0], SIZE, 10.0)
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in axes.ravel()]
    assert [title.split(", ")[0] for title in titles] == ["AdamW"] * 3 + ["SGD"] * 2 + ["AdamW"]
    last = axes.ravel()[5]
    assert [text.get_text() for text in last.texts] == list(rates.RULES)
    plt.close(figure)


# ---------------------------------------------------------------- held against runs of their own


def pictures(seed: int, change: bool = False) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The seed's labelled pairs, and those that every run is scored on, by stage."""
    hand = data.digits()
    parts = {
        "train": data.pairs(hand.train, 40, seed),
        "tune": data.pairs(hand.validation, 60, seed=1001),
        "final": data.pairs(hand.test, 60, seed=1002),
    }
    return {name: (1 - part.x if change else part.x, part.y) for name, part in parts.items()}


def trained_alone(
    model: TransformerClassifier,
    given: dict[str, Any],
    *,
    lr: float,
    seed: int,
    batch: int = 32,
    optimizer: str = "adamw",
    ratio: float = 1.0,
    steps: int = STEPS,
) -> Scores:
    """Train what requires a gradient; the log losses by stage, and the mean loss of ten steps."""
    x, y = given["train"]
    if optimizer == "adamw" and ratio == 1:
        history = fit(
            model, x, y, steps=steps, lr=lr, batch_size=batch, seed=seed, progress=False
        ).loss
    else:
        layers = minilora.lora_layers(model).values()
        groups = [
            {"params": [layer.A for layer in layers], "peak": lr},
            {"params": [layer.B for layer in layers], "peak": lr * ratio},
        ]
        adamw = torch.optim.AdamW(groups, weight_decay=0.0)
        chosen = adamw if optimizer == "adamw" else torch.optim.SGD(groups)
        history = []
        for step, rows in enumerate(batches(len(y), batch, steps, seed)):
            for group in chosen.param_groups:
                group["lr"] = learning_rate(step, steps, group["peak"], "cosine", steps // 10)
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            chosen.zero_grad()
            loss.backward()
            chosen.step()
            history.append(loss.item())
    found = {stage: evaluate(model, *given[stage]).log_loss for stage in ("tune", "final")}
    return {**found, "train": float(np.mean(history[-10:]))}


def adapter_alone(
    base: TransformerClassifier,
    *,
    r: int = 2,
    seed: int,
    drawn: int | None = None,
    inverted: bool = False,
    trained: str = "AB",
    lr: float,
    batch: int = 32,
    optimizer: str = "adamw",
    ratio: float = 1.0,
    steps: int = STEPS,
    alpha: float = 8,
    **config: Any,
) -> Scores:
    """The run of one adapter; ``drawn`` is the seed of the pictures, where it is another."""
    model = copy.deepcopy(base)
    set_seed(seed)
    minilora.add_lora(model, LoRAConfig(r=r, alpha=alpha, targets=SIX, **config))
    for layer in minilora.lora_layers(model).values():
        layer.A.requires_grad_("A" in trained)
        layer.B.requires_grad_("B" in trained)
    given = pictures(seed if drawn is None else drawn, inverted)
    settings: dict[str, Any] = {
        "batch": batch,
        "optimizer": optimizer,
        "ratio": ratio,
        "steps": steps,
    }
    return trained_alone(model, given, lr=lr, seed=seed, **settings)


def own_parameters(model: TransformerClassifier, which: str) -> list[nn.Parameter]:
    """What a run of that name is to train, by the model's modules."""
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    return {
        "everything": list(model.parameters()),
        "biases": [m.bias for m in [*linears, *norms]],
        "norms": [p for m in norms for p in m.parameters()],
        "embeddings": [
            *model.patch_embedding.parameters(),
            model.class_token,
            model.positions,
        ],
        "head": list(model.head.parameters()),
        "biases of the blocks": [p for n, p in model.blocks.named_parameters() if "bias" in n],
    }[which]


def whole_alone(
    base: TransformerClassifier,
    *,
    seed: int,
    lr: float,
    which: str = "everything",
    drawn: int | None = None,
    inverted: bool = False,
    steps: int = STEPS,
) -> Scores:
    model = copy.deepcopy(base).requires_grad_(False)
    for parameter in own_parameters(model, which):
        parameter.requires_grad_(True)
    given = pictures(seed if drawn is None else drawn, inverted)
    return trained_alone(model, given, lr=lr, seed=seed, steps=steps)


def a_zero_b_uniform(layer: Any) -> None:
    layer.A.zero_()
    layer.B.uniform_(-(0.5**0.5), 0.5**0.5)


ALONE: dict[tuple[str, str], dict[str, Any]] = {
    ("adam", "LoRA r=1"): {"r": 1},
    ("adam", "LoRA r=2"): {},
    ("scaling", "LoRA r=2, scale 5.66"): {"scaling": "rslora"},
    ("scaling", "LoRA r=1, scale 2"): {"r": 1, "alpha": 2},
    ("scaling", "LoRA r=2, scale 2"): {"alpha": 4},
    ("scaling", "SGD, r=2, scale 5.66"): {"scaling": "rslora", "optimizer": "sgd"},
    ("scaling", "SGD, r=2, scale 4"): {"optimizer": "sgd"},
    ("plus", "LoRA+ ratio 4"): {"ratio": 4.0},
    ("starts", "A at zero"): {"init": a_zero_b_uniform},
    ("starts", "only B trains"): {"trained": "B"},
    ("starts", "only A trains"): {"init": a_zero_b_uniform, "trained": "A"},
    ("inverted", "LoRA, inverted"): {"inverted": True},
    ("batch", "batch 4"): {"batch": 4},
    ("short", "LoRA, few steps"): {"steps": SHORT},
}


def agrees(row: Row, found: Scores) -> bool:
    """Whether a row is that of a run of its own, up to the order of sums in single precision.

    Adam's first step is a whole step for a slope that is nothing but rounding, and at the highest
    rates that moves the third digit. (tests/lab/test_sweep.py holds them in double precision.)
    """
    off = 1e-4 if row.lr < 0.1 else 0.02
    return row.log_loss == pytest.approx(found[row.stage], abs=off) and (
        row.train_loss == pytest.approx(found["train"], abs=off)
    )


@pytest.mark.parametrize(("part", "arm"), ALONE)
def test_an_adapter_is_the_run_that_fit_makes_of_it(part, arm, by_part, base):
    settings = ALONE[part, arm]
    rows = [row for row in by_part[part] if row.arm == arm]
    best = rates.best_rate(rows, arm)
    held = [row for row in rows if row.lr == best]
    assert len(held) >= 2
    for row in held:
        found = adapter_alone(base, lr=row.lr, seed=row.seed, **settings)
        assert agrees(row, found), (row, found)
    # The plain adapter, and one of another draw's pictures, would have been told from it.
    (row,) = [row for row in held if (row.stage, row.seed) == ("tune", 101)]
    if settings:
        assert not agrees(row, adapter_alone(base, lr=row.lr, seed=101))
    assert not agrees(row, adapter_alone(base, lr=row.lr, seed=101, drawn=0, **settings))


@pytest.mark.parametrize("part", ["adam", "inverted", "short"])
def test_full_fine_tuning_is_the_run_that_fit_makes_of_it(part, by_part, base):
    rows = [row for row in by_part[part] if row.kind == "full" and row.lr <= 0.004]
    assert len(rows) >= 3
    settings: dict[str, Any] = {
        "inverted": part == "inverted",
        "steps": SHORT if part == "short" else STEPS,
    }
    for row in rows:
        found = whole_alone(base, lr=row.lr, seed=row.seed, **settings)
        assert agrees(row, found), (row, found)
    row = rows[-1]
    other = settings | {"inverted": not settings["inverted"]}
    assert not agrees(row, whole_alone(base, lr=row.lr, seed=row.seed, **other))
    assert not agrees(row, whole_alone(base, lr=row.lr, seed=row.seed, drawn=0, **settings))


def test_pictures_are_inverted_in_all_three_sets_and_in_one_part_only():
    task = rates.task(SIZE, "inverted")
    for seed in (0, 1):
        right = pictures(seed)
        sets = {"train": task.labelled(seed), **task.scored}
        for name, (x, y) in sets.items():
            was, labels = right[{"validation": "tune", "test": "final"}.get(name, name)]
            assert torch.equal(x, 1 - was) and torch.equal(y, labels)
    for part in set(rates.PARTS) - {"inverted"}:
        task = rates.task(SIZE, part)
        assert torch.equal(task.labelled(1)[0], pictures(1)["train"][0])
        assert torch.equal(task.scored["test"][0], pictures(1)["final"][0])


def test_the_other_start_has_a_at_zero_and_b_as_wide_as_a_linear_layer():
    set_seed(0)
    model = nn.Sequential(nn.Linear(30, 400))
    minilora.add_lora(model, LoRAConfig(r=4, alpha=4, targets=["0"], init=experiment.zero_a))
    layer = minilora.lora_layers(model)["0"]
    assert not layer.A.any()
    assert 0.49 < layer.B.abs().max() <= 0.5  # 1/√4
    assert layer.B.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.03)


def test_the_base_as_it_is_is_scored_on_test_data(base):
    row = families.untrained("base", base, rates.task(SIZE, "inverted"))
    found = evaluate(base, *pictures(0, change=True)["final"])
    assert (row.stage, row.parameters, row.lr) == ("final", None, None)
    assert (row.accuracy, row.log_loss) == (found.accuracy, found.log_loss)


# ---------------------------------------------------------------- parts of the model itself


@pytest.mark.parametrize("which", families.TRAINED)
def test_names_pick_the_parameters_that_they_say(which):
    config = replace(SIZE.sums.model, layers=2)
    model = TransformerClassifier(config)
    right = {id(p) for p in own_parameters(model, which)}
    for name, parameter in model.named_parameters():
        assert families.TRAINED[which](name) == (id(parameter) in right), name


@pytest.mark.parametrize("which", families.TRAINED)
def test_a_run_trains_what_its_name_says(which, base):
    task = rates.task(SIZE, "adam")
    before = copy.deepcopy(base.state_dict())
    runs = [WholeRun("x", "full", lr, 1, which) for lr in (1e-3, 2e-2)]
    rows = Family("own", base, task, Recipe(STEPS), CPU).train(runs, BOTH)
    assert [row.stage for row in rows] == ["tune", "tune", "final", "final"]
    for row in rows:
        assert agrees(row, whole_alone(base, lr=row.lr, seed=1, which=which))
        assert row.parameters == sum(p.numel() for p in own_parameters(base, which))
    assert all(torch.equal(now, before[name]) for name, now in base.state_dict().items())


# ---------------------------------------------------------------- runs that diverge


def judged(
    base: TransformerClassifier,
    task: Task,
    recipe: Recipe,
    runs: Sequence[families.Run],
    seeds: dict[str, tuple[int, ...]],
) -> list[Row]:
    family = Family("x", base, task, recipe, CPU)
    return family.tested(family.train(runs, BOTH), {run.arm: run for run in runs}, seeds)


def test_adapters_that_diverge_have_no_numbers_and_no_part_in_the_test(base, everything):
    task, config = rates.task(SIZE, "adam"), LoRAConfig(r=2, alpha=8, targets=SIX)
    runs = [AdapterRun("a", Cell(config, lr, seed)) for lr in (1e30, 1e-2) for seed in (0, 1)]
    runs.append(AdapterRun("lost", Cell(config, 1e31)))
    rows = judged(base, task, Recipe(4), runs, {"a": (0, 1, 5), "lost": (0,)})
    assert [(row.lr, row.diverged) for row in rows if row.stage == "tune"] == [
        (1e30, True),
        (1e30, True),
        (1e-2, False),
        (1e-2, False),
        (1e31, True),
    ]
    final = [(row.arm, row.lr, row.seed, row.diverged) for row in rows if row.stage == "final"]
    # An arm without a run that lasted is not passed over in silence.
    assert final == [
        ("a", 1e-2, 0, False),
        ("a", 1e-2, 1, False),
        ("lost", 1e31, 0, True),
        ("a", 1e-2, 5, False),
    ]
    assert all((row.log_loss is None) == row.diverged for row in rows)
    recording.check_recording(asdict(replace(everything[0], rows=rows)))


@pytest.mark.parametrize(("steps", "lr"), [(4, 1e30), (1, 1e10)])
def test_whole_models_that_diverge_have_no_numbers_and_no_part_in_the_test(
    base, everything, steps, lr
):
    """With a single step the loss is still a number, and what the step has left is not."""
    task = rates.task(SIZE, "adam")
    runs = [WholeRun("full", "full", rate) for rate in (lr, 1e-3)]
    rows = judged(base, task, Recipe(steps), runs, {"full": (0, 5)})
    assert [(row.stage, row.lr, row.seed, row.diverged) for row in rows] == [
        ("tune", lr, 0, True),
        ("tune", 1e-3, 0, False),
        ("final", 1e-3, 0, False),
        ("final", 1e-3, 5, False),
    ]
    assert (rows[0].accuracy, rows[0].log_loss, rows[0].train_loss) == (None, None, None)
    recording.check_recording(asdict(replace(everything[0], rows=rows)))


# ---------------------------------------------------------------- what is refused


def test_a_part_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="no part 'adan'; there are adam, scaling, plus"):
        experiment.groups(SIZE, "adan")


def test_another_optimizer_for_whole_models_is_refused(base):
    family = Family("x", base, rates.task(SIZE, "adam"), Recipe(2, optimizer="sgd"), CPU)
    with pytest.raises(ValueError, match="with 'adamw', not 'sgd'"):
        family.train([WholeRun("full", "full", 0.1)], FINAL)


# ---------------------------------------------------------------- stopped, spread, written


def rounded(rows: Sequence[Row]) -> Any:
    return recording._rounded([asdict(row) for row in plain(rows)])


# Between two rounds of "adam", and later, where finished parts lie beside unfinished work.
@pytest.mark.parametrize("stop", [12, 18])
def test_a_stopped_run_goes_on_where_it_was(stop, everything, tmp_path):
    whole, done = everything
    _, first = noted(partial(run, out=tmp_path), stop)
    # Finished parts have recordings of their own beside the folder of unfinished work.
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert any(folder.iterdir())
    resumed, then = noted(partial(run, out=tmp_path))
    assert first + then == done  # nothing twice, nothing left out
    assert rounded(resumed.rows) == rounded(whole.rows)  # as a file holds them
    assert [path.name for path in tmp_path.iterdir()] == ["rates.smoke.json"]


def test_processes_change_nothing(by_part, monkeypatch):
    asked = []
    real = joblib.Parallel

    def noted(n_jobs: int, **more: Any) -> Any:
        asked.append(n_jobs)
        return real(n_jobs=n_jobs, **more)

    monkeypatch.setattr(joblib, "Parallel", noted)
    there = run(parts=["inverted"], jobs=2).rows
    assert asked and set(asked) == {2}  # sweeps and full fine-tunings
    here = by_part["inverted"]
    numbers = {"seconds": 0.0, "log_loss": None, "train_loss": None, "accuracy": None}
    for one, other in zip(here, there, strict=True):
        assert replace(one, **numbers) == replace(other, **numbers)
        for name in ("log_loss", "train_loss", "accuracy"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-5)


def test_the_recording_of_the_smoke_profile_is_sound(tmp_path):
    found = rates.run("smoke", jobs=1, device="cpu", out=tmp_path)
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text(encoding="utf-8"))
    recording.check_recording(content)
    assert content["settings"]["sums"]["model"]["width"] == 8
    back = experiments.load_recording("rates", "smoke", tmp_path)
    assert not experiments.is_stale(back)
    assert {row.arm for row in back.rows} == {arm for arms in PROMISED.values() for arm, *_ in arms}
    for one, other in zip(back.rows, found.rows, strict=True):
        assert (one.stage, one.arm, one.lr, one.seed) == (
            other.stage,
            other.arm,
            other.lr,
            other.seed,
        )
        assert one.log_loss == pytest.approx(other.log_loss, rel=1e-5)
