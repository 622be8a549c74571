"""The benchmark at toy size: every section runs, all arms do the same work, the counts are right.

Nothing is timed here: a test that depends on a clock fails on a busy machine.
"""

from collections.abc import Iterator

import bench
import bench_arms as arms
import pytest
import torch
from bench_measure import alternate, ratios, spread
from torch import nn

from minilora.lab.measuring import saved_bytes

ALL_ARMS = arms.available(arms.ARMS + arms.DROPOUT_ARMS[1:])
LORA_ARMS = [arm for arm in ALL_ARMS if arm not in (arms.FLOOR, arms.FULL)]
# Two types of base; step shows the arms with dropout in tables of their own.
TABLES = {"step": 4, "saved": 2, "inference": 2, "wrap": 1, "files": 1, "sweeps": 1, "tools": 3}


@pytest.fixture(autouse=True)
def _settings_of_the_process() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("section", bench.SECTIONS)
def test_every_section_prints_its_tables(section: str, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["--quick", "--device", "cpu", "--threads", "1", "--section", section])
    header, *tables = capsys.readouterr().out.split("\n\n")
    assert f"torch {torch.__version__}" in header and "1 threads" in header
    assert len(tables) == TABLES[section]
    shown: list[str] = []
    for table in tables:
        assert table.startswith(section.removesuffix("s") if section == "sweeps" else section)
        rows = [line for line in table.splitlines()[3:] if not line.startswith("  ")]
        names = [row.split("  ")[0] for row in rows]
        shown += names
        if section == "saved":
            assert names == ALL_ARMS
        elif section == "sweeps":
            assert names == ["one by one, threads 1", "sweep, processes 1"]
        elif section == "tools":
            assert any(name.startswith("minilora") for name in names)
        elif section != "step":
            assert any(name.startswith("minilora") for name in names)
            assert any(name.startswith("PEFT") for name in names) == arms.HAS_PEFT
        columns = table.splitlines()[2].count("  ") + 1
        for row in rows:
            assert len([cell for cell in row.split("  ") if cell]) == columns
            assert "nan" not in row and "inf" not in row
    if section == "tools":
        assert any(name.startswith("PEFT") for name in shown) == arms.HAS_PEFT
    if section == "step":
        assert shown == 2 * arms.available(arms.ARMS) + 2 * arms.available(arms.DROPOUT_ARMS)


def test_all_sections_are_run_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for name in bench.SECTIONS:
        monkeypatch.setattr(bench, name, lambda *_, name=name: called.append(name))
    bench.main(["--quick", "--device", "cpu", "--threads", "1"])
    assert sorted(called) == sorted(bench.SECTIONS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_arms_do_the_same_work(dtype: torch.dtype) -> None:
    base = arms.stack(arms.TOY).to(dtype)
    x = torch.randn(2, 4, arms.TOY.width).to(dtype)
    models = {arm: arms.build(arm, base, arms.TOY) for arm in ALL_ARMS}
    expected = base(x)
    for arm, model in models.items():  # B is zero at the start, so every arm is the base
        assert torch.allclose(arms.forward(arm, model, x), expected, rtol=0, atol=1e-5), arm
    counts = {arm: sum(p.numel() for p in arms.trained(models[arm])) for arm in LORA_ARMS}
    width, r = arms.TOY.width, arms.TOY.r
    assert set(counts.values()) == {r * (4 * 2 * width + 2 * 5 * width)}, counts
    assert arms.trained(models[arms.FLOOR]) == []
    assert len(arms.trained(models[arms.FULL])) == len(list(base.parameters()))


@pytest.mark.parametrize("arm", ALL_ARMS)
def test_a_step_trains_what_the_arm_trains_and_nothing_else(arm: str) -> None:
    model = arms.build(arm, arms.stack(arms.TOY), arms.TOY)
    x = torch.randn(2, 4, arms.TOY.width)
    before = [(p, p.requires_grad, p.detach().clone()) for p in model.parameters()]
    step = arms.training_step(arm, model, x, fused=False)
    step()
    step()  # at the first step B is zero, so A has no gradient yet
    for parameter, trains, old in before:
        assert torch.equal(parameter, old) != trains


def test_wrapping_covers_every_linear() -> None:
    for add in [arms.add_bare, arms.add_minilora] + [arms.add_peft] * arms.HAS_PEFT:
        model = add(arms.many_linears(arms.TOY), arms.TOY)
        assert len(arms.trained(model)) == 2 * 6 * arms.TOY.wrap_blocks, add


def test_saved_bytes_counts_each_storage_once_and_no_parameter() -> None:
    linear = nn.Linear(6, 5)
    x = torch.randn(7, 6, requires_grad=True)
    assert saved_bytes(lambda: linear(x), linear) == x.numel() * 4
    assert saved_bytes(lambda: [linear(x), linear(x), x.sin(), x.cos()], linear) == x.numel() * 4
    # With the weight frozen nothing needs x, and the input's gradient needs the weight only.
    assert saved_bytes(lambda: linear.requires_grad_(False)(x), linear) == 0
    assert saved_bytes(lambda: [x.exp(), x.exp()], linear) == 2 * x.numel() * 4


def test_runs_alternate_and_ratios_are_paired() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    times = alternate(runs, repeats=6, device="cpu", warm_ups=2)
    rounds = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert len(rounds) == 8 and all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(map(tuple, rounds))) > 1
    assert {len(values) for values in times.values()} == {6}
    ticks = iter(range(1000))  # a clock that counts its readings: one passes within each run
    times = alternate(runs, 3, "cpu", calls=4, clock=lambda: float(next(ticks)))
    assert all(values == [0.25] * 3 for values in times.values())
    paired = {"a": [1.0, 4.0, 9.0], "b": [1.0, 2.0, 3.0]}
    assert ratios(paired, "a", "b") == [1, 2, 3]
    assert ratios(paired, "a", "not measured") == []
    assert spread([5, 1, 2, 4, 3]) == "3.00 (2.00–4.00)"
