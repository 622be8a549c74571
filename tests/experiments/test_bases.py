"""The comparison of ranks on several bases."""

from dataclasses import replace

import pytest
import torch
from experiment_help import make_row, recorded

from minilora import LoRAConfig, add_lora
from minilora.experiments import bases, sums
from minilora.experiments.bases import PROFILES
from minilora.experiments.bases.reading import differences
from minilora.experiments.sums import SUMS
from minilora.lab.pretrained import pretrained_adder
from minilora.lab.training import evaluate, fit, set_seed
from minilora.lab.transformer import BLOCK_LINEARS

pytestmark = pytest.mark.usefixtures("cache")
FULL = "full fine-tuning"


@pytest.fixture(scope="module")
def smoke(cache):
    return bases.run("smoke", jobs=1, device="cpu")


def test_every_arm_is_tuned_and_tested_on_every_base(smoke):
    profile = PROFILES["smoke"]
    assert list(dict.fromkeys(row.setting for row in smoke.rows)) == ["base 1", "base 2"]
    for setting in ("base 1", "base 2"):
        for arm in (FULL, "LoRA r=1", "LoRA r=2"):
            rows = [row for row in smoke.rows if (row.setting, row.arm) == (setting, arm)]
            tested = [row for row in rows if row.stage == "final"]
            assert [row.seed for row in tested] == [0, 1]
            assert len({row.lr for row in tested}) == 1
            tuned = {row.seed for row in rows if (row.stage, row.lr) == ("tune", tested[0].lr)}
            assert tuned == set(profile.tuning.seeds)


def test_a_row_is_the_run_on_the_base_of_its_seed(smoke):
    profile, size = PROFILES["smoke"], SUMS["smoke"]
    task = sums.task(size, profile.labels)
    (row,) = [
        row
        for row in smoke.rows
        if (row.setting, row.arm, row.stage, row.seed) == ("base 2", "LoRA r=2", "final", 1)
    ]

    def loss_on(seed):
        model = pretrained_adder(seed, config=size.model, steps=size.steps, lr=size.lr)
        set_seed(1)
        add_lora(model, LoRAConfig(r=2, alpha=profile.alpha, targets=list(BLOCK_LINEARS)))
        x, y = task.labelled(1)
        fit(model, x, y, steps=profile.steps, lr=row.lr, batch_size=profile.batch_size, seed=1,
            progress=False)  # fmt: skip
        return evaluate(model, *task.test).log_loss

    assert row.log_loss == pytest.approx(loss_on(2), abs=1e-3)
    assert row.log_loss != pytest.approx(loss_on(1), abs=1e-3)


def test_the_bases_are_made_as_those_of_the_other_chapters_are():
    one = sums.adder(SUMS["smoke"], seed=3)
    size = SUMS["smoke"]
    same = pretrained_adder(3, config=size.model, steps=size.steps, lr=size.lr, progress=False)
    other = sums.adder(SUMS["smoke"])
    for path, weight in one.state_dict().items():
        assert torch.equal(weight, same.state_dict()[path])
    assert not torch.equal(one.head.weight, other.head.weight)
    assert PROFILES["laptop"].sums == SUMS["cpu"] and 0 not in PROFILES["laptop"].bases


def test_differences_are_taken_within_a_base():
    rows = [
        make_row(arm, seed, accuracy, setting=setting)
        for setting, arm, accuracies in (
            ("base 1", FULL, (0.5, 0.6)),
            ("base 1", "LoRA r=1", (0.4, 0.52)),
            ("base 2", "LoRA r=1", (0.9, 0.9)),
            ("base 2", FULL, (0.8, 0.7)),
        )
        for seed, accuracy in enumerate(accuracies)
    ]
    found = differences(replace(recorded(rows), settings={"labels": 40}), "LoRA r=1")
    assert list(found) == ["base 1", "base 2"]
    assert found["base 1"].mean == pytest.approx(-0.09)
    assert found["base 2"].mean == pytest.approx(0.15)
