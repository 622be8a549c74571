"""What a family scores: single sheets, and pictures beside the test."""

from dataclasses import replace

import pytest
import torch

from minilora import LoRAConfig
from minilora.experiments import sums
from minilora.experiments.families import BOTH, FINAL, AdapterRun, Family, Recipe, WholeRun
from minilora.experiments.running import Machine
from minilora.experiments.sums import SUMS
from minilora.lab.sweep import Cell
from minilora.lab.training import evaluate
from minilora.lab.transformer import BLOCK_LINEARS, TransformerClassifier

SIZE = SUMS["smoke"]
CPU = Machine(torch.device("cpu"))
LORA = AdapterRun("LoRA", Cell(LoRAConfig(r=1, alpha=8, targets=list(BLOCK_LINEARS)), 1e-2))
FULL = WholeRun("full", "full", 1e-3)


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return TransformerClassifier(SIZE.model).eval()


def family(base, **more):
    task = replace(sums.task(SIZE, 30), **more)
    return Family("few", base, task, Recipe(3, 16), CPU)


@pytest.mark.parametrize("run", [LORA, FULL], ids=lambda run: run.arm)
@pytest.mark.parametrize("stages", [BOTH, FINAL], ids=len)
def test_sheets_and_other_pictures_stand_beside_the_test(base, run, stages):
    sheets = sums.sheets(SIZE)
    aside = {"printed": sums.printed(20)}
    plain = family(base).train([run], stages)
    rows = family(base, sheets=sheets, aside=aside).train([run], stages)
    first, beside = rows[: len(stages)], rows[len(stages) :]
    for a, b in zip(plain, first, strict=True):
        assert (a.stage, a.arm, a.kind, a.seed, a.lr) == (b.stage, b.arm, b.kind, b.seed, b.lr)
        assert a.accuracy == pytest.approx(b.accuracy) and a.log_loss == pytest.approx(b.log_loss)
    assert {row.stage for row in beside} == {"final"}
    names = [f"{run.arm}, sheet {sheet}" for sheet in range(8, 14)]
    assert [row.arm for row in beside] == [*names, f"{run.arm}, printed"]
    assert [row.kind for row in beside] == ["sheet"] * 6 + ["aside"]
    # Every picture has two digits, each on a sheet: so the sheets' means have the test's mean.
    shares = torch.bincount(sheets.flatten() - 8).double() / sheets.numel()
    for field in ("accuracy", "log_loss"):
        mean = sum(
            share * getattr(row, field)
            for share, row in zip(shares.tolist(), beside[:6], strict=True)
        )
        assert mean == pytest.approx(getattr(first[-1], field))


def test_a_sheets_row_is_of_the_pictures_with_its_digits(base):
    sheets = sums.sheets(SIZE)
    still = WholeRun("still", "full", 1e-12)  # as good as no training
    rows = family(base, sheets=sheets).train([still], FINAL)
    x, y = family(base).task.test
    for row in rows[1:]:
        one = int(row.arm.rpartition(" ")[2])
        of = [i for i, both in enumerate(sheets.tolist()) for sheet in both if sheet == one]
        assert row.accuracy == pytest.approx(evaluate(base, x[of], y[of]).accuracy, abs=1e-6)


def test_a_run_that_diverged_has_no_rows_beside_it(base):
    lost = AdapterRun("lost", replace(LORA.cell, lr=1e30))
    rows = family(base, sheets=sums.sheets(SIZE)).train([lost], BOTH)
    assert [(row.stage, row.diverged, row.accuracy) for row in rows] == [
        ("tune", True, None),
        ("final", True, None),
    ]
