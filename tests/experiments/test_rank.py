"""The rank experiment at its smallest: arms, labels, baselines, and what was watched."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from experiment_help import noted, plain

from minilora import add_lora
from minilora.experiments import rank, summaries, sums
from minilora.experiments.families import AdapterRun, WholeRun, prepare
from minilora.experiments.tuning import best_rate
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


def test_every_arm_is_tuned_and_tested(smoke):
    arms = [arm.arm for arm in rank.arms(SIZE)]
    assert len(arms) == len(set(arms)) == len(SIZE.ranks) + 5
    for arm in arms:
        of_arm = [row for row in smoke.rows if (row.arm, row.labels) == (arm, 40)]
        tuned = [row for row in of_arm if row.stage == "tune"]
        tested = [row for row in of_arm if row.stage == "final"]
        assert len({row.lr for row in tuned}) >= 5
        assert {row.seed for row in tuned} == set(SIZE.tuning_seeds)
        assert sorted(row.seed for row in tested) == list(SIZE.seeds)
        assert {row.lr for row in tested} == {best_rate(smoke.rows, arm, 40)}
    assert not set(SIZE.tuning_seeds) & set(SIZE.seeds)
    assert {row.arm for row in smoke.rows if row.lr is None} == UNTRAINED
    listed = [one.arm for one in summaries.summarise(smoke)]
    assert listed[: len(arms)] == arms  # in the order in which they are named


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
    assert len(losses) == len(SIZE.seeds) + len(SIZE.curve.seeds)


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


def test_the_curve_has_its_own_labels_arms_and_seeds(everything):
    found, done = everything
    trained = {
        (row.arm, row.seed)
        for row in found.rows
        if row.stage == "final" and row.labels == 30 and row.lr is not None
    }
    assert trained == {("LoRA r=1", 0), ("full fine-tuning", 0)}
    assert {row.arm for row in found.rows if row.labels == 30 and row.lr is None} == UNTRAINED
    assert {one.arm for one in summaries.summarise(found, 30)} >= {"LoRA r=1"}
    for arm in SIZE.curve.arms:
        tried = sorted(
            {r.lr for r in found.rows if (r.arm, r.labels, r.stage) == (arm, 30, "tune")}
        )
        start = best_rate(found.rows, arm, 40)  # one rung on either side of it at first
        assert start in tried and len(tried) >= 3
    assert len(set(done)) == len(done)  # no run is made twice


def test_from_scratch_starts_from_nothing_and_gets_more_steps(everything):
    _, done = everything
    (arm,) = [arm for arm in rank.arms(SIZE) if arm.kind == "scratch"]
    assert isinstance(arm, WholeRun) and arm.scratch and arm.patience == 3
    assert [a.arm for a in rank.arms(SIZE) if isinstance(a, WholeRun) and a.scratch] == [arm.arm]
    assert any("scratch=True, patience=3" in work for work in done)


def test_what_was_watched_on_its_way(smoke):
    size = SIZE.watch
    looks = [row for row in smoke.rows if row.arm == "watched r=2"]
    assert len(looks) == 10 * len(size.rates)
    by_step = {(row.lr, row.setting): row.log_loss for row in looks}
    best = min(by_step, key=by_step.__getitem__)
    (tuned,) = [row for row in smoke.rows if row.arm == "watched r=2, tuned"]
    (untuned,) = [row for row in smoke.rows if row.arm == "watched r=2, untuned"]
    assert (tuned.stage, tuned.lr) == ("final", best[0])
    assert untuned.lr == size.rates[1] and untuned.stage == "final"
    # On test data, and not the number that chose it.
    assert tuned.log_loss != by_step[best]


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
