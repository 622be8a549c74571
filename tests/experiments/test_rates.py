"""The rates experiment: rows that it promises, each held against a run of its own."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from experiment_help import noted, plain
from torch import nn

import minilora
from minilora import LoRAConfig, experiments
from minilora.experiments import families, rates, recording, sums
from minilora.experiments.families import BOTH, FINAL, AdapterRun, Family, Recipe, Task, WholeRun
from minilora.experiments.rates import experiment
from minilora.experiments.recording import Row
from minilora.experiments.running import Machine
from minilora.lab import data
from minilora.lab.sweep import Cell
from minilora.lab.training import batches, evaluate, fit, learning_rate, set_seed
from minilora.lab.transformer import TransformerClassifier

Scores = dict[str, float]

STEPS = 12  # of which one warms up
RATES, FULL_RATES, SGD_RATES = (1e-3, 2e-2), (1e-4, 1e-3), (0.03, 0.3)
#: The smoke profile with two seeds to tune on and one more to test with.
SIZE = replace(
    rates.PROFILES["smoke"],
    steps=STEPS,
    alpha=8.0,
    ranks=(1, 2),
    r=2,
    rates=RATES,
    full_rates=FULL_RATES,
    sgd_rates=SGD_RATES,
    plus_rates=RATES,
    plus_ratios=(1.0, 4.0),
    batches=(4, 16),
    seeds=(0, 1),
    more_seeds=(2,),
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


# ---------------------------------------------------------------- which rows there are

#: For each part: arm, kind, r, setting, rates, parameters, whether it is compared on test data.
#: The model of the smoke profile is 8 wide, with one block: A of rank 1 has 4·8 + 8 + 32 numbers.
PROMISED: dict[str, list[tuple[str, str, int | None, str, tuple[float, ...], int, bool]]] = {
    "adam": [
        ("LoRA r=1", "lora", 1, "adam", RATES, 144, True),
        ("LoRA r=2", "lora", 2, "adam", RATES, 288, True),
        ("full fine-tuning", "full", None, "adam", FULL_RATES, 1275, True),
    ],
    "scaling": [
        ("α/√r, AdamW, r=2", "lora", 2, "scaling-adamw", RATES, 288, True),
        ("α/r, SGD, r=1", "lora", 1, "scaling-sgd", SGD_RATES, 144, False),
        ("α/r, SGD, r=2", "lora", 2, "scaling-sgd", SGD_RATES, 288, False),
        ("α/√r, SGD, r=2", "lora", 2, "scaling-sgd", SGD_RATES, 288, False),
    ],
    "plus": [
        ("LoRA+ ratio 1", "lora", 2, "plus", RATES, 288, True),
        ("LoRA+ ratio 4", "lora", 2, "plus", RATES, 288, True),
    ],
    "starts": [
        ("A at zero", "lora", 2, "starts", RATES, 288, True),
        ("only B trains", "lora", 2, "starts", RATES, 144, True),
        ("only A trains", "lora", 2, "starts", RATES, 144, True),
    ],
    "inverted": [
        ("LoRA, inverted", "lora", 2, "inverted", RATES, 288, False),
        ("full fine-tuning, inverted", "full", None, "inverted", FULL_RATES, 1275, False),
    ],
    "batch": [
        ("batch 4", "lora", 2, "batch-4", RATES, 288, False),
        ("batch 16", "lora", 2, "batch-16", RATES, 288, False),
    ],
}


@pytest.fixture(scope="module")
def by_part(everything: tuple[recording.Recording, list[str]]) -> dict[str, list[Row]]:
    """The rows of every part."""
    of = {arm: part for part, arms in PROMISED.items() for arm, *_ in arms}
    rows = everything[0].rows
    assert {row.arm for row in rows} == of.keys()
    return {part: [row for row in rows if of[row.arm] == part] for part in PROMISED}


def best_by_hand(rows: Sequence[Row], arm: str) -> float:
    means = {
        lr: np.mean([r.log_loss for r in rows if (r.stage, r.arm, r.lr) == ("tune", arm, lr)])
        for lr in {row.lr for row in rows if row.arm == arm}
    }
    return min(means, key=means.__getitem__)


@pytest.mark.parametrize("part", rates.PARTS)
def test_every_part_gives_the_rows_that_it_promises(part, by_part):
    rows, expected = by_part[part], []
    for arm, kind, r, setting, ladder, parameters, compared in PROMISED[part]:
        of_arm = (arm, kind, r, setting, parameters, 40)
        expected += [("tune", *of_arm, lr, seed) for lr in ladder for seed in (0, 1)]
        best = best_by_hand(rows, arm)
        expected += [("final", *of_arm, best, seed) for seed in (0, 1, 2)[: 3 if compared else 2]]
    found = [
        (w.stage, w.arm, w.kind, w.r, w.setting, w.parameters, w.labels, w.lr, w.seed) for w in rows
    ]
    assert sorted(map(repr, found)) == sorted(map(repr, expected))
    assert not any(row.diverged or row.log_loss is None for row in rows)


def test_a_row_on_test_data_is_of_the_very_run_that_was_tuned(by_part):
    for rows in by_part.values():
        tuned = {(row.arm, row.lr, row.seed): row for row in rows if row.stage == "tune"}
        for row in rows:
            if row.stage == "final" and row.seed != 2:
                twin = tuned[row.arm, row.lr, row.seed]
                assert row.train_loss == pytest.approx(twin.train_loss, abs=1e-6)
                assert row.log_loss != pytest.approx(twin.log_loss, abs=1e-6)


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
    """At least five rates an arm, no more than 3.4 apart; and no row that a recording refuses."""
    size = rates.PROFILES[name]
    seen: list[tuple[str, str, float, int]] = []
    for part in rates.PARTS:
        for setting, cells, _ in experiment.sweeps(size, part):
            seen += [(setting, one.arm, one.lr, one.cell.seed) for one in cells]
        whole = experiment.full_fine_tunings(size, part)
        seen += [(part, one.arm, one.lr, one.seed) for one in whole]
    assert len(seen) == len(set(seen))
    assert not set(size.seeds) & set(size.more_seeds)
    for setting, arm in {(setting, arm) for setting, arm, _, _ in seen}:
        ladder = sorted({lr for s, a, lr, _ in seen if (s, a) == (setting, arm)})
        if name != "smoke":
            assert len(ladder) >= 5
            assert all(1.9 < high / low < 3.4 for low, high in pairwise(ladder))


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
) -> Scores:
    """Train what requires a gradient; the log losses by stage, and the mean loss of ten steps."""
    x, y = given["train"]
    if optimizer == "adamw" and ratio == 1:
        history = fit(
            model, x, y, steps=STEPS, lr=lr, batch_size=batch, seed=seed, progress=False
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
        for step, rows in enumerate(batches(len(y), batch, STEPS, seed)):
            for group in chosen.param_groups:
                group["lr"] = learning_rate(step, STEPS, group["peak"], "cosine", STEPS // 10)
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
    **config: Any,
) -> Scores:
    """The run of one adapter; ``drawn`` is the seed of the pictures, where it is another."""
    model = copy.deepcopy(base)
    set_seed(seed)
    minilora.add_lora(model, LoRAConfig(r=r, alpha=8, targets=SIX, **config))
    for layer in minilora.lora_layers(model).values():
        layer.A.requires_grad_("A" in trained)
        layer.B.requires_grad_("B" in trained)
    given = pictures(seed if drawn is None else drawn, inverted)
    settings: dict[str, Any] = {"batch": batch, "optimizer": optimizer, "ratio": ratio}
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
) -> Scores:
    model = copy.deepcopy(base).requires_grad_(False)
    for parameter in own_parameters(model, which):
        parameter.requires_grad_(True)
    given = pictures(seed if drawn is None else drawn, inverted)
    return trained_alone(model, given, lr=lr, seed=seed)


def a_zero_b_uniform(layer: Any) -> None:
    layer.A.zero_()
    layer.B.uniform_(-(0.5**0.5), 0.5**0.5)


ALONE: dict[tuple[str, str], dict[str, Any]] = {
    ("adam", "LoRA r=1"): {"r": 1},
    ("adam", "LoRA r=2"): {},
    ("scaling", "α/√r, AdamW, r=2"): {"scaling": "rslora"},
    ("scaling", "α/√r, SGD, r=2"): {"scaling": "rslora", "optimizer": "sgd"},
    ("scaling", "α/r, SGD, r=2"): {"optimizer": "sgd"},
    ("plus", "LoRA+ ratio 1"): {},
    ("plus", "LoRA+ ratio 4"): {"ratio": 4.0},
    ("starts", "A at zero"): {"init": a_zero_b_uniform},
    ("starts", "only B trains"): {"trained": "B"},
    ("starts", "only A trains"): {"init": a_zero_b_uniform, "trained": "A"},
    ("inverted", "LoRA, inverted"): {"inverted": True},
    ("batch", "batch 4"): {"batch": 4},
    ("batch", "batch 16"): {"batch": 16},
}


def agrees(row: Row, found: Scores) -> bool:
    """Whether a row is that of a run of its own, up to the order of sums in single precision."""
    return row.log_loss == pytest.approx(found[row.stage], abs=1e-4) and (
        row.train_loss == pytest.approx(found["train"], abs=1e-4)
    )


@pytest.mark.parametrize(("part", "arm"), ALONE)
def test_an_adapter_is_the_run_that_fit_makes_of_it(part, arm, by_part, base):
    settings = ALONE[part, arm]
    rows = [row for row in by_part[part] if row.arm == arm]
    last = max(row.lr for row in rows)
    held = [row for row in rows if row.stage == "final" or row.lr == last]
    assert len(held) >= 4
    for row in held:
        found = adapter_alone(base, lr=row.lr, seed=row.seed, **settings)
        assert agrees(row, found), (row, found)
    # The plain adapter, and one of another seed's pictures, would have been told from it.
    (row,) = [row for row in held if (row.stage, row.seed) == ("tune", 1)]
    if settings:
        assert not agrees(row, adapter_alone(base, lr=row.lr, seed=1))
    assert not agrees(row, adapter_alone(base, lr=row.lr, seed=1, drawn=0, **settings))


@pytest.mark.parametrize("part", ["adam", "inverted"])
def test_full_fine_tuning_is_the_run_that_fit_makes_of_it(part, by_part, base):
    rows = [row for row in by_part[part] if row.kind == "full"]
    assert len(rows) >= 6
    inverted = part == "inverted"
    for row in rows:
        found = whole_alone(base, lr=row.lr, seed=row.seed, inverted=inverted)
        assert agrees(row, found), (row, found)
    row = rows[3]
    assert (row.stage, row.lr, row.seed) == ("tune", FULL_RATES[1], 1)
    assert not agrees(row, whole_alone(base, lr=row.lr, seed=1, inverted=not inverted))
    assert not agrees(row, whole_alone(base, lr=row.lr, seed=1, inverted=inverted, drawn=0))


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
        experiment.sweeps(SIZE, "adan")


def test_another_optimizer_for_whole_models_is_refused(base):
    family = Family("x", base, rates.task(SIZE, "adam"), Recipe(2, optimizer="sgd"), CPU)
    with pytest.raises(ValueError, match="with 'adamw', not 'sgd'"):
        family.train([WholeRun("full", "full", 0.1)], FINAL)


# ---------------------------------------------------------------- stopped, spread, written


# Between two passes of "scaling-sgd", and in the full fine-tuning of "inverted".
@pytest.mark.parametrize("stop", [12, 18])
def test_a_stopped_run_goes_on_where_it_was(stop, everything, tmp_path):
    whole, done = everything
    _, first = noted(partial(run, out=tmp_path), stop)
    (folder,) = tmp_path.iterdir()
    assert folder.is_dir() and any(folder.iterdir())
    resumed, then = noted(partial(run, out=tmp_path))
    assert first + then == done  # nothing twice, nothing left out
    assert plain(resumed.rows) == plain(whole.rows)
    assert [path.name for path in tmp_path.iterdir()] == ["rates.smoke.json"]


def test_processes_change_nothing(by_part, monkeypatch):
    asked = []
    real = joblib.Parallel

    def noted(n_jobs: int, **more: Any) -> Any:
        asked.append(n_jobs)
        return real(n_jobs=n_jobs, **more)

    monkeypatch.setattr(joblib, "Parallel", noted)
    there = run(parts=["inverted"], jobs=2).rows
    assert asked == [2, 2]  # the sweep, and the full fine-tunings
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
