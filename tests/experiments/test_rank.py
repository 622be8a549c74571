"""The rank experiment at its smallest: arms, labels, baselines, and what was watched."""

from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt
import pytest
import torch
from experiment_help import noted, plain

from minilora import add_lora
from minilora.experiments import rank, summaries, sums
from minilora.experiments.families import AdapterRun, WholeRun, prepare
from minilora.experiments.rank import figures
from minilora.experiments.tuning import FINE, best_rate, runner_up
from minilora.lab.training import evaluate, fit
from minilora.lab.transformer import TransformerClassifier

pytestmark = pytest.mark.usefixtures("cache")
SIZE = rank.PROFILES["smoke"]
UNTRAINED = {
    "nearest neighbours",
    "logistic regression",
    "digits labelled singly",
    "the base as it is",
}


@pytest.fixture(scope="module")
def everything(cache):
    """A run of all parts, and all that it has trained."""
    return noted(partial(rank.run, "smoke", jobs=1))


@pytest.fixture
def smoke(everything):
    return everything[0]


def rows_of(found, arm, stage, labels=SIZE.labels):
    return [row for row in found.rows if (row.arm, row.stage, row.labels) == (arm, stage, labels)]


def tuned_well(found, arm, labels=SIZE.labels):
    """All tuning draws have tried the chosen rate and its neighbours, which are worse."""
    seeds = {}
    for row in rows_of(found, arm, "tune", labels):
        seeds.setdefault(row.lr, set()).add(row.seed)
    whole = sorted(lr for lr in seeds if seeds[lr] == set(SIZE.tuning.seeds))
    best = best_rate(found.rows, arm, labels)
    at = FINE.index(best)
    assert set(FINE[at - 1 : at + 2]) <= set(whole) and len(whole) >= 3
    tested = rows_of(found, arm, "final", labels)
    assert {row.lr for row in tested} == {best}
    assert sorted(row.seed for row in tested) == list(SIZE.tuning.tested)


def test_every_arm_is_tuned_and_tested(smoke):
    arms = [arm.arm for arm in rank.arms(SIZE)]
    assert len(arms) == len(set(arms)) == len(SIZE.ranks) + 5
    for arm in arms:
        tuned_well(smoke, arm)
    for profile in rank.PROFILES.values():
        assert not set(profile.tuning.seeds) & set(profile.tuning.tested)
        assert profile.name == "smoke" or len(profile.tuning.seeds) >= 3
    assert {row.arm for row in smoke.rows if row.lr is None} == UNTRAINED
    listed = [one.arm for one in summaries.summarise(smoke)]
    assert [arm for arm in listed if arm in arms] == arms  # in the order in which they are named


def test_some_arms_are_tested_at_other_rates_too(smoke):
    for arm in SIZE.again:
        second = rows_of(smoke, f"{arm}, runner-up", "final")
        assert {row.lr for row in second} == {runner_up(smoke.rows, arm, SIZE.labels)}
        assert [row.seed for row in second] == list(SIZE.tuning.tested)
    for arm, rates in SIZE.slower.items():
        for lr in rates:
            assert {row.lr for row in rows_of(smoke, f"{arm}, at {lr:g}", "final")} == {lr}


def test_what_is_tested_is_scored_by_sheet_and_on_printed_pairs(smoke):
    for arm in rank.arms(SIZE):
        sheets = [row.arm for row in smoke.rows if row.arm.startswith(f"{arm.arm}, sheet ")]
        assert len(sheets) >= 6 * len(SIZE.tuning.tested)
        assert len(figures.aside(smoke, arm.arm, "printed")) == len(SIZE.tuning.tested)
    found = summaries.by_sheet(smoke, "LoRA r=1", "full fine-tuning")
    assert list(found) == [8, 9, 10, 11, 12, 13]


def test_parameters_are_counted_on_the_model(smoke):
    width, classes, hidden = 8, 19, 32
    per_rank = 4 * (width + width) + 2 * (width + hidden)
    counts = {row.arm: row.parameters for row in smoke.rows}
    assert counts["LoRA r=1"] == per_rank and counts["LoRA r=2"] == 2 * per_rank
    assert counts["random A, r=2"] == 2 * (4 * width + hidden + width)
    assert counts["head only"] == classes * (width + 1)
    whole = sum(p.numel() for p in TransformerClassifier(SIZE.sums.model).parameters())
    assert counts["full fine-tuning"] == counts["from scratch"] == whole
    assert counts["biases only"] == 2 * 8 + 4 * 8 + 32 + 8  # of norms, attention, feed-forward


def test_the_seed_settles_the_numbers_and_processes_do_not_change_them(smoke):
    together = rank.run("smoke", jobs=2)
    for a, b in zip(plain(smoke.rows), plain(together.rows), strict=True):
        assert (a.arm, a.lr, a.seed, a.stage) == (b.arm, b.lr, b.seed, b.stage)
        assert a.log_loss == pytest.approx(b.log_loss, abs=1e-5)
    losses = {row.log_loss for row in smoke.rows if row.arm == "LoRA r=1" and row.stage == "final"}
    assert len(losses) == 2 * len(SIZE.tuning.tested)  # at two numbers of labels


@pytest.mark.parametrize("kind", ["lora", "random", "head", "full", "biases"])
def test_prepare_trains_what_the_arm_says(kind):
    torch.manual_seed(0)
    model = TransformerClassifier(SIZE.sums.model)
    x = torch.rand(4, 1, 8, 16)
    before = model(x)
    arm = next(arm for arm in rank.arms(SIZE) if arm.kind == kind)
    assert prepare(arm, model) is model
    assert torch.allclose(model(x), before, atol=1e-6)  # every arm starts at the base
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if kind == "lora":
        assert {name.rsplit(".", 1)[1] for name in trained} == {"A", "B"} and len(trained) == 12
    if kind == "random":
        assert {name.rsplit(".", 1)[1] for name in trained} == {"B"} and len(trained) == 6
    if kind == "head":
        assert trained == {"head.weight", "head.bias"}
    if kind == "full":
        assert len(trained) == len(list(model.parameters()))
    if kind == "biases":
        every = {name for name, _ in model.named_parameters()}
        assert trained == {n for n in every if n.startswith("blocks.") and n.endswith("bias")}


def test_the_seed_of_a_run_draws_its_adapter():
    arm = next(arm for arm in rank.arms(SIZE) if isinstance(arm, AdapterRun))
    drawn = []
    for seed in (0, 0, 1):
        model = prepare(arm.at(1e-3, seed), TransformerClassifier(SIZE.sums.model))
        drawn.append(model.blocks[0].attention.q_proj.A)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_train_validation_and_test_pictures_share_no_digit():
    task = sums.task(rank.PROFILES["cpu"].sums, 500)
    halves = [
        {tuple(half.flatten().tolist()) for half in torch.cat(x.split(8, dim=3))}
        for x in (task.labelled(0)[0], *(x for x, _ in task.scored.values()))
    ]
    assert not halves[0] & halves[1] and not halves[0] & halves[2] and not halves[1] & halves[2]
    assert not torch.equal(task.labelled(0)[0], task.labelled(1)[0])
    again = sums.task(rank.PROFILES["cpu"].sums, 100)
    assert torch.equal(task.test[0], again.test[0]) and len(task.test[1]) == 1536
    assert len(task.validation[1]) == 764 and len(task.labelled(3)[1]) == 500


def test_other_labels_and_steps_are_tuned_anew(everything):
    found, done = everything
    for where in SIZE.elsewhere:
        for arm in where.middles:
            name = arm if where.steps == SIZE.steps else f"{arm}, {where.steps} steps"
            tuned_well(found, name, where.labels)
    trained = {row.arm for row in found.rows if row.labels == 30 and row.lr and row.stage == "tune"}
    assert trained == {"LoRA r=1", "full fine-tuning"}
    assert {row.arm for row in found.rows if row.labels == 30 and row.lr is None} == UNTRAINED
    assert {one.arm for one in summaries.summarise(found, 30)} >= {"LoRA r=1"}
    cells = [work for work in done if work.startswith("Cell(")]
    assert len(set(cells)) == len(cells)  # no run is made twice


def test_from_scratch_starts_from_nothing_and_gets_more_steps(everything):
    _, done = everything
    (arm,) = [arm for arm in rank.arms(SIZE) if arm.kind == "scratch"]
    assert isinstance(arm, WholeRun) and arm.scratch and arm.patience == 3
    assert [a.arm for a in rank.arms(SIZE) if isinstance(a, WholeRun) and a.scratch] == [arm.arm]
    assert any("scratch=True, patience=3" in work for work in done)


def test_what_was_watched_on_its_way(smoke):
    size = SIZE.watch
    base = sums.adder(SIZE.sums)
    start = evaluate(base, *sums.task(SIZE.sums, size.labels).validation)
    for arm, lr in (("watched r=2", size.lr), ("watched full", size.full_lr)):
        looks = [row for row in smoke.rows if row.arm == arm]
        assert len(looks) == 11 * len(size.seeds) and {row.lr for row in looks} == {lr}
        assert {row.stage for row in looks} == {"tune"}  # no test data
        for seed in size.seeds:
            of = {row.setting: row for row in looks if row.seed == seed}
            assert list(of) == [f"step {2 * k}" for k in range(11)]
            assert of["step 0"].log_loss == pytest.approx(start.log_loss)
            assert of["step 0"].train_loss is None and of["step 20"].train_loss > 0


def test_a_whole_model_is_watched_as_fit_would_train_it(smoke):
    size = SIZE.watch
    task = sums.task(SIZE.sums, size.labels)
    model = sums.adder(SIZE.sums)
    how = {"steps": size.steps, "lr": size.full_lr, "batch_size": size.batch_size, "seed": 1}
    history = fit(model, *task.labelled(1), schedule="constant", progress=False, **how)
    (last,) = [
        row
        for row in smoke.rows
        if (row.arm, row.seed, row.setting) == ("watched full", 1, "step 20")
    ]
    assert last.log_loss == pytest.approx(evaluate(model, *task.validation).log_loss, abs=1e-6)
    assert last.train_loss == pytest.approx(sum(history.loss[-2:]) / 2, abs=1e-6)


def test_the_figures_can_be_drawn(smoke):
    _, axes = plt.subplots(2)
    figures.draw_tuning(axes[0], smoke, ["LoRA r=1", "full fine-tuning"], {})
    figures.draw_arms(axes, smoke, cut=50)
    figures.draw_methods(axes, smoke, x=100)
    figures.draw_by_labels(axes[0], smoke, ["LoRA r=1", "nearest neighbours"])
    figures.draw_watched(axes[0], smoke, "log_loss", {})
    figures.draw_watched(axes[1], smoke, "train_loss")
    figures.draw_forgetting(axes[0], smoke, ["LoRA r=2", "full fine-tuning"])
    plt.close("all")


def test_a_stopped_run_goes_on(tmp_path, everything):
    found, done = everything
    run = partial(rank.run, "smoke", jobs=1, out=tmp_path)
    _, first = noted(run, stop=7)
    assert not list(tmp_path.glob("*.json"))
    again, then = noted(run)
    assert first + then == done
    assert plain(again.rows) == plain(found.rows)
    assert [path.name for path in tmp_path.iterdir()] == ["rank.smoke.json"]


def test_an_adapter_that_is_there_already_is_refused():
    model = TransformerClassifier(SIZE.sums.model)
    arm = next(arm for arm in rank.arms(SIZE) if isinstance(arm, AdapterRun))
    add_lora(model, arm.cell.config)
    with pytest.raises(ValueError, match="has an adapter already"):
        prepare(replace(arm), model)
