"""A smaller adapter is the nearest of its rank, and a sum of adapters is the sum."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from core_help import (
    Pictures,
    Toy,
    bits,
    close,
    ids,
    rewritten,
    settings_of,
    shake,
    tensors_of,
    toy,
)
from torch import Tensor, nn

import minilora
from minilora import AdapterError, LoRAConfig, add_lora
from minilora.layers import LoRAEmbedding
from minilora.surgery import METHODS, add, leading, resize, ties

LINEAR = {"targets": ["q_proj", "up_proj"], "r": 5, "alpha": 7}
CASES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "linear": (Toy, LINEAR),
    "one": (Toy, {"targets": ["blocks.1.q_proj"], "r": 4, "alpha": 3}),
    "embedding": (Toy, {"targets": ["embed", "v_proj"], "r": 5, "alpha": 3}),
    "convolutions": (
        Pictures,
        {"targets": ["conv1", "conv2", "conv3", "head"], "r": 4, "alpha": 3},
    ),
    "rslora": (Toy, {**LINEAR, "scaling": "rslora"}),
    "patterns": (
        Toy,
        {
            **LINEAR,
            "rank_pattern": {"0.q_proj": 2, "1.q_proj": 3, "up_proj": 6},
            "alpha_pattern": {"1.q_proj": 1, r"blocks\.0\.up_proj": 13},
        },
    ),
    "patterns, rslora": (
        Toy,
        {
            **LINEAR,
            "scaling": "rslora",
            "rank_pattern": {"up_proj": 3},
            "alpha_pattern": {"0.q_proj": 2},
        },
    ),
    "rank above the width": (Toy, {"targets": ["q_proj"], "r": 12, "alpha": 5}),
    "dora": (Toy, {**LINEAR, "targets": ["q_proj", "embed"], "use_dora": True}),
    "a head": (Toy, {**LINEAR, "modules_to_save": ["head", "norm"]}),
    "biases": (Toy, {**LINEAR, "bias": "all"}),
    "biases of layers": (Toy, {**LINEAR, "bias": "lora_only"}),
}
every = pytest.mark.parametrize("case", CASES)


def base(case: str) -> nn.Module:
    torch.manual_seed(0)
    return CASES[case][0]()


def saved(case: str, folder: Path, seed: int = 0) -> Path:
    """An adapter whose directions differ in size, as those of trained ones do."""
    model = add_lora(base(case), LoRAConfig(**CASES[case][1]))
    torch.manual_seed(seed)
    shake(model)
    with torch.no_grad():
        for layer in minilora.lora_layers(model).values():
            layer.A.mul_(0.6 ** torch.arange(layer.r).reshape(-1, *[1] * (layer.A.ndim - 1)))
    minilora.save(model, folder)
    return folder


def updates(folder: Path, kind: Callable[[], nn.Module] = Toy) -> dict[str, Tensor]:
    """{path: s · B A} as ``minilora.load`` reads the folder, (out, in), in float64."""
    torch.manual_seed(0)
    model = minilora.load(kind(), folder).double()
    with torch.no_grad():
        return {
            path: layer.scale * layer.B.flatten(1) @ layer.A.flatten(1)
            for path, layer in minilora.lora_layers(model).items()
        }


def cut(X: Tensor, rank: int) -> Tensor:
    U, values, Vt = torch.linalg.svd(X, full_matrices=False)
    return (U[:, :rank] * values[:rank]) @ Vt[:rank]


# --- a smaller one ------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("rank", [1, 3])
def test_the_nearest_of_its_rank(tmp_path, case, rank):
    kind = CASES[case][0]
    before = updates(saved(case, tmp_path / "a"), kind)
    done = resize(tmp_path / "a", tmp_path / "b", rank)
    after = updates(tmp_path / "b", kind)
    assert after.keys() == before.keys() == {change.path for change in done.layers}
    for change in done.layers:
        X, Y = before[change.path], after[change.path]
        values = torch.linalg.svdvals(X)
        assert change.after == min(rank, change.before)
        assert torch.linalg.matrix_rank(Y, rtol=1e-5) == change.after
        tail = values[change.after :].square().sum()
        assert (X - Y).square().sum().sqrt() == pytest.approx(float(tail.sqrt()), abs=1e-5)
        assert close(Y, cut(X, change.after), 1e-5)
        assert change.kept == pytest.approx(1 - float(tail / values.square().sum()), abs=1e-6)
        assert change.dropped == 0


@every
def test_what_is_written_multiplies_by_one(tmp_path, case):
    """So that programs that read neither patterns nor rslora compute the same."""
    kind = CASES[case][0]
    resize(saved(case, tmp_path / "a"), tmp_path / "b", energy=0.9)
    settings = settings_of(tmp_path / "b")
    assert settings["lora_alpha"] == settings["r"]
    assert settings["alpha_pattern"] == settings["rank_pattern"]
    assert settings["use_rslora"] is False
    model = minilora.load(kind(), tmp_path / "b")
    ranks = [layer.r for layer in minilora.lora_layers(model).values()]
    assert {layer.scale for layer in minilora.lora_layers(model).values()} == {1}
    assert ranks.count(settings["r"]) == max(map(ranks.count, ranks))
    kept = ("target_modules", "use_dora", "bias", "modules_to_save", "task_type", "peft_type")
    assert all(settings[name] == settings_of(tmp_path / "a")[name] for name in kept)


@every
@pytest.mark.parametrize("energy", [0.6, 0.95, 1.0])
def test_the_smallest_rank_that_holds_the_energy(tmp_path, case, energy):
    before = updates(saved(case, tmp_path / "a"), CASES[case][0])
    done = resize(tmp_path / "a", tmp_path / "b", energy=energy)
    for change in done.layers:
        squares = torch.linalg.svdvals(before[change.path]).square()
        held = squares.cumsum(0) / squares.sum()
        assert change.kept >= energy - 1e-6
        if energy < 1:
            assert change.after == int((held < energy).sum()) + 1
        else:
            assert change.after == min(change.before, *before[change.path].shape)
    if energy == 0.6:  # or the test would show nothing
        assert any(change.after < change.before for change in done.layers)


@every
def test_what_is_no_factor_is_carried_over(tmp_path, case):
    resize(saved(case, tmp_path / "a"), tmp_path / "b", 2)
    one, other = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    assert one.keys() == other.keys()
    rest = [key for key in one if not key.endswith(("_A.weight", "_B.weight", "ing_A", "ing_B"))]
    assert bool(rest) == (case in ("dora", "a head", "biases", "biases of layers"))
    assert all(bits(one[key]) == bits(other[key]) for key in rest)


def test_at_full_rank_the_model_computes_the_same(tmp_path):
    for case in ("patterns", "dora", "a head", "biases", "embedding"):
        folder = saved(case, tmp_path / case)
        done = resize(folder, tmp_path / "b", 12)
        x = ids(3, 4)
        wanted = minilora.load(base(case), folder)(x)
        assert close(minilora.load(base(case), tmp_path / "b")(x), wanted)
        assert "Nothing of the update is lost" in str(done)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_stays_so(tmp_path, half):
    saved("a head", tmp_path / "a")
    stored = {k: t.to(half) for k, t in tensors_of(tmp_path / "a").items()}
    before = updates(rewritten(tmp_path / "a", tensors=stored))
    resize(tmp_path / "a", tmp_path / "b", 2)
    assert {t.dtype for t in tensors_of(tmp_path / "b").values()} == {half}
    for path, Y in updates(tmp_path / "b").items():
        assert close(Y, cut(before[path], 2), 4 * torch.finfo(half).eps)


def test_in_place(tmp_path):
    before = updates(saved("patterns", tmp_path))
    (tmp_path / "README.md").write_text("mine")
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    done = resize(tmp_path, tmp_path, 1)
    assert done.bytes_before == size
    after = updates(tmp_path)
    assert all(close(after[path], cut(X, 1)) for path, X in before.items())
    assert len(os.listdir(tmp_path)) == 3


def test_an_update_of_zero(tmp_path):
    torch.manual_seed(0)
    minilora.save(add_lora(Toy(), LoRAConfig(targets=["q_proj"], r=3)), tmp_path / "a")
    for given in ({"rank": 2}, {"energy": 0.9}):
        done = resize(tmp_path / "a", tmp_path / "b", **given)
        assert {change.kept for change in done.layers} == {1}
        assert all(X.abs().max() == 0 for X in updates(tmp_path / "b").values())


def test_what_it_says(tmp_path):
    done = resize(saved("linear", tmp_path / "a"), tmp_path / "b", 2)
    worst = min(done.layers, key=lambda change: change.kept)
    text = str(done)
    assert text.startswith(f"{tmp_path / 'b'}: 4 layers of rank 2; ")
    assert f"{worst.kept:.2%} in the worst layer ({worst.path})" in text
    sizes = [(tmp_path / n / "adapter_model.safetensors").stat().st_size for n in "ab"]
    assert [done.bytes_before, done.bytes_after] == sizes
    ranks = {change.after for change in resize(tmp_path / "a", tmp_path / "c", energy=0.9).layers}
    again = str(resize(tmp_path / "a", tmp_path / "c", energy=0.9))
    assert (f"of rank {min(ranks)} to {max(ranks)};" in again) == (len(ranks) > 1)


def nothing_written(tmp_path: Path, work: Callable[[], object], error: Any, *words: str) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    folders = sorted(tmp_path.rglob("*"))
    with pytest.raises(error) as caught:
        work()
    for word in words:
        assert word in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == folders
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give either rank or energy"),
        ({"rank": 1, "energy": 0.5}, "give either rank or energy"),
        ({"rank": 0}, "rank must be at least 1, but is 0"),
        ({"energy": 0.0}, "energy must be above 0"),
        ({"energy": 1.5}, "at most 1"),
        ({"energy": float("nan")}, "energy"),
    ],
)
def test_a_resize_that_makes_no_sense(tmp_path, given, message):
    saved("linear", tmp_path / "a")
    work = lambda: resize(tmp_path / "a", tmp_path / "b", **given)  # noqa: E731
    nothing_written(tmp_path, work, ValueError, message)


def spoiled(folder: Path, value: float) -> Path:
    tensors = tensors_of(folder)
    tensors["base_model.model.blocks.0.q_proj.lora_B.weight"][0, 0] = value
    return rewritten(folder, tensors=tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(tmp_path, value):
    spoiled(saved("linear", tmp_path / "a"), value)
    for work in (
        lambda: resize(tmp_path / "a", tmp_path / "b", 2),
        lambda: resize(tmp_path / "a", tmp_path / "a", 2),
        lambda: add({tmp_path / "a": 1}, tmp_path / "b"),
    ):
        nothing_written(tmp_path, work, AdapterError, "'blocks.0.q_proj'", "NaN or infinity")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"r": 4}, "rank 5"),
        ({"init_lora_weights": "pissa"}, "base that was changed"),
        ({"lora_bias": True}, "'lora_bias'"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"target_modules": ["q_proj"]}, "up_proj"),
    ],
)
def test_an_adapter_that_is_not_sound(tmp_path, setting, words):
    rewritten(saved("linear", tmp_path / "a"), **setting)
    for work in (
        lambda: resize(tmp_path / "a", tmp_path / "b", 2),
        lambda: add({tmp_path / "a": 1}, tmp_path / "b"),
    ):
        nothing_written(tmp_path, work, AdapterError, words)


def test_a_home_that_only_a_shell_would_find(tmp_path, monkeypatch):
    saved("linear", tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    for work in (lambda: resize("a", "~/b", 2), lambda: add({"a": 1}, "~/b")):
        nothing_written(tmp_path, work, AdapterError, "does not expand '~'")


# --- an exact sum -------------------------------------------------------------------------------


def dense_sum(parts: dict[Path, float], kind: Callable[[], nn.Module] = Toy) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for folder, weight in parts.items():
        for path, X in updates(folder, kind).items():
            total[path] = total.get(path, torch.zeros_like(X)) + weight * X
    return total


PAIRS = [
    *(("linear", "linear"), ("linear", "patterns"), ("rslora", "patterns, rslora")),
    *(("linear", "one"), ("one", "embedding"), ("embedding", "embedding")),
    *(("convolutions", "convolutions"), ("rank above the width", "linear")),
]


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1, -0.5), (-2, -1), (1, 0)])
@pytest.mark.parametrize("cases", PAIRS, ids=map(" and ".join, PAIRS))
def test_the_sum_is_exact(tmp_path, cases, weights):
    kind = CASES[cases[0]][0]
    folders = [saved(case, tmp_path / str(n), n) for n, case in enumerate(cases)]
    parts = dict(zip(folders, map(float, weights), strict=True))
    done = add(parts, tmp_path / "sum")
    found, wanted = updates(tmp_path / "sum", kind), dense_sum(parts, kind)
    assert found.keys() == wanted.keys()
    for change in done.layers:
        ranks = [updates_rank(f, change.path) for f in folders]
        assert change.before == change.after == sum(ranks)
        assert change.kept == 1
        assert close(found[change.path], wanted[change.path])


def updates_rank(folder: Path, path: str) -> int:
    names = (f"base_model.model.{path}.lora_A.weight", f"base_model.model.{path}.lora_embedding_A")
    return sum(len(t) for k, t in tensors_of(folder).items() if k in names)


@pytest.mark.parametrize("cases", PAIRS, ids=map(" and ".join, PAIRS))
def test_a_sum_cut_to_a_rank_is_the_nearest(tmp_path, cases):
    kind = CASES[cases[0]][0]
    parts = {saved(case, tmp_path / str(n), n): 1 - 1.5 * n for n, case in enumerate(cases)}
    done = add(parts, tmp_path / "sum", 3)
    found, wanted = updates(tmp_path / "sum", kind), dense_sum(parts, kind)
    assert found.keys() == wanted.keys()
    for change in done.layers:
        X = wanted[change.path]
        assert change.after == min(3, change.before, *X.shape)
        assert close(found[change.path], cut(X, 3), 1e-5)
        share = cut(X, 3).square().sum() / X.square().sum()
        assert change.kept == pytest.approx(float(share), abs=1e-6)


def test_three_at_once_and_one_alone(tmp_path):
    folders = [saved("linear", tmp_path / str(n), n) for n in range(3)]
    parts = dict(zip(folders, (1.0, -2.0, 0.5), strict=True))
    done = add(parts, tmp_path / "sum")
    sizes = [(f / "adapter_model.safetensors").stat().st_size for f in folders]
    assert done.bytes_before == sum(sizes)
    wanted = dense_sum(parts)
    assert all(close(X, wanted[path]) for path, X in updates(tmp_path / "sum").items())
    add({folders[0]: -1}, tmp_path / "minus")
    for path, X in updates(tmp_path / "minus").items():
        assert close(X, -updates(folders[0])[path])


def test_the_sum_in_place_of_a_part(tmp_path):
    a, b = saved("linear", tmp_path / "a"), saved("linear", tmp_path / "b", 1)
    wanted = dense_sum({a: 1, b: 1})
    sizes = [(f / "adapter_model.safetensors").stat().st_size for f in (a, b)]
    done = add({a: 1, b: 1}, a)
    assert done.bytes_before == sum(sizes)
    assert all(close(X, wanted[path]) for path, X in updates(a).items())


def test_excludes_and_layer_numbers_of_one_do_not_hold_for_the_sum(tmp_path):
    kind = {"targets": ["q_proj"], "exclude": ["blocks.0.q_proj"], "r": 2}
    minilora.save(toy(0, **kind), tmp_path / "a")
    rewritten(tmp_path / "a", layers_to_transform=[1], layers_pattern="blocks")
    minilora.save(toy(1, targets=["blocks.0.q_proj"], r=1), tmp_path / "b")
    parts = {tmp_path / "a": 1.0, tmp_path / "b": 1.0}
    add(parts, tmp_path / "sum")
    found, wanted = updates(tmp_path / "sum"), dense_sum(parts)
    assert found.keys() == wanted.keys() == {"blocks.0.q_proj", "blocks.1.q_proj"}
    assert all(close(found[path], X) for path, X in wanted.items())


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32, torch.float32),
        (torch.bfloat16, torch.float16, torch.float32),
    ],
)
def test_the_type_of_a_sum_holds_both(tmp_path, one, other, both):
    for n, dtype in enumerate((one, other)):
        saved("linear", tmp_path / str(n), n)
        stored = {k: t.to(dtype) for k, t in tensors_of(tmp_path / str(n)).items()}
        rewritten(tmp_path / str(n), tensors=stored)
    parts = {tmp_path / "0": 1.0, tmp_path / "1": 0.5}
    add(parts, tmp_path / "sum")
    assert {t.dtype for t in tensors_of(tmp_path / "sum").values()} == {both}
    for path, X in dense_sum(parts).items():
        assert close(updates(tmp_path / "sum")[path], X, 4 * torch.finfo(both).eps)


def test_a_repeated_base_weight_is_no_part_of_the_adapter(tmp_path):
    """PEFT writes the weight of an adapted embedding beside its factors."""
    for n in (0, 1):
        saved("embedding", tmp_path / str(n), n)
        own = {"base_model.model.embed.base_layer.weight": base("embedding").embed.weight.detach()}
        rewritten(tmp_path / str(n), tensors=tensors_of(tmp_path / str(n)) | own)
    parts = {tmp_path / "0": 1.0, tmp_path / "1": 1.0}
    add(parts, tmp_path / "sum")
    wanted = dense_sum(parts)
    assert all(close(X, wanted[path]) for path, X in updates(tmp_path / "sum").items())
    own = {k: t + 1 if "base_layer" in k else t for k, t in tensors_of(tmp_path / "1").items()}
    rewritten(tmp_path / "1", tensors=own)
    work = lambda: add(parts, tmp_path / "other")  # noqa: E731
    nothing_written(tmp_path, work, AdapterError, "'embed.base_layer.weight'")


# --- TIES and DARE ------------------------------------------------------------------------------


def test_ties_by_hand():
    """Two of 2 × 3: half of each stays, and where signs differ the heavier one wins."""
    one = torch.tensor([[4.0, -3.0, 1.0], [0.0, 2.0, -6.0]])  # -3, 4 and -6 stay
    other = torch.tensor([[2.0, 5.0, -1.0], [3.0, -1.0, -1.5]])  # 2, 5 and 3 stay
    total, dropped = ties(torch.stack([one, other]), torch.tensor([1.0, 3.0]), 0.5)
    # Where both agree: (4 + 2) · 4/4. Where the second stays: · 4/3; the first: · 4/1.
    wanted = torch.tensor([[6.0, 5 * 4 / 3, 0.0], [3 * 4 / 3, 0.0, -6 * 4.0]])
    torch.testing.assert_close(total, wanted)
    assert dropped == pytest.approx(7 / 12)


def test_ties_is_that_of_the_paper():
    """Yadav et al., algorithm 1, with λ = 1: trim, elect, and the mean of those that agree."""
    tasks, density = torch.randn(4, 6, 5), 0.4
    trimmed = []
    for task in tasks:
        least = task.abs().flatten().sort(descending=True).values[round(density * 30) - 1]
        trimmed.append(torch.where(task.abs() >= least, task, 0.0))
    kept = torch.stack(trimmed)
    sign = torch.where(kept.sum(0) >= 0, 1.0, -1.0)
    agree = kept * sign > 0
    wanted = (kept * agree).sum(0) / agree.sum(0).clamp(min=1)
    total, dropped = ties(tasks / 4, torch.full((4,), 0.25), density)
    torch.testing.assert_close(total, wanted)
    assert dropped == pytest.approx(1 - float(agree.float().mean()))
    total, _ = ties(-tasks / 4, torch.full((4,), -0.25), density)  # weights below 0 count as well
    torch.testing.assert_close(total, -wanted)


def copies(tmp_path: Path, number: int) -> list[Path]:
    folders = [saved("linear", tmp_path / str(n)) for n in range(number)]
    assert len({bits(t) for f in folders for t in tensors_of(f).values()}) == 8
    return folders


@pytest.mark.parametrize("number", [1, 3])
def test_ties_of_equal_adapters_is_that_adapter_trimmed(tmp_path, number):
    folders = copies(tmp_path, number)
    done = add(dict.fromkeys(folders, 1 / number), tmp_path / "sum", 8, "ties", density=0.3)
    found = updates(tmp_path / "sum")
    for path, X in updates(folders[0]).items():
        least = X.abs().flatten().sort(descending=True).values[round(0.3 * X.numel()) - 1]
        trimmed = torch.where(X.abs() >= least, X, 0)
        assert close(found[path], trimmed, 1e-5)
    for change in done.layers:
        assert change.before == 5 * number
        assert change.kept == pytest.approx(1, abs=1e-6)
        assert change.dropped == pytest.approx(0.7, abs=0.01)
    assert "70% of the entries were dropped before" in str(done)


def test_ties_is_cut_to_the_rank(tmp_path):
    folders = [saved("linear", tmp_path / str(n), n) for n in range(2)]
    parts = dict(zip(folders, (1.0, -0.5), strict=True))
    add(parts, tmp_path / "whole", 8, "ties", density=0.5)
    done = add(parts, tmp_path / "cut", 2, "ties", density=0.5)
    whole, found = updates(tmp_path / "whole"), updates(tmp_path / "cut")
    for change in done.layers:
        X = whole[change.path]
        assert change.after == 2
        assert close(found[change.path], cut(X, 2), 1e-4)
        share = cut(X, 2).square().sum() / X.square().sum()
        assert change.kept == pytest.approx(float(share), abs=1e-5)
    one, other = (updates(folder) for folder in folders)
    for path, X in whole.items():
        both = torch.stack([one[path], -0.5 * other[path]])
        assert close(X, ties(both, torch.tensor([1.0, -0.5]), 0.5)[0].to(X), 1e-4)


def test_dare_drops_entries_and_divides_the_others(tmp_path):
    folder = saved("linear", tmp_path / "a")
    done = add({folder: 2.0}, tmp_path / "b", 8, "dare", density=0.25)
    zeros = []
    for path, X in updates(folder).items():
        Y = updates(tmp_path / "b")[path]
        stays = Y.abs() > 1e-4 * X.abs().max()
        assert close(Y * stays, 8 * X * stays, 1e-4)
        assert (Y * ~stays).abs().max() < 1e-4
        zeros.append(1 - stays.double().mean())
        change = next(c for c in done.layers if c.path == path)
        assert change.dropped == pytest.approx(float(zeros[-1]), abs=0.05)
    assert 0.6 < sum(zeros) / len(zeros) < 0.9


def test_dare_is_unbiased_over_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # which takes most of the time
    folders = [saved("one", tmp_path / str(n), n) for n in range(2)]
    parts = dict(zip(folders, (1.0, -0.5), strict=True))
    path, draws, density = "blocks.1.q_proj", 100, 0.5
    mean = torch.zeros(8, 8, dtype=torch.float64)
    for seed in range(draws):
        add(parts, tmp_path / "sum", 8, "dare", density=density, seed=seed)
        tensors = tensors_of(tmp_path / "sum")
        A, B = (tensors[f"base_model.model.{path}.lora_{n}.weight"].double() for n in "AB")
        mean += B @ A / draws
    one, other = (weight * updates(folder)[path] for folder, weight in parts.items())
    error = ((one**2 + other**2) * (1 - density) / density / draws).sqrt()
    far = (mean - one - other).abs() / error
    assert far.max() < 4.5
    assert 0.7 < far.square().mean() < 1.4  # and it is a choice for each entry and adapter


def test_dare_is_repeated_by_its_seed(tmp_path):
    folder = saved("linear", tmp_path / "a")
    before = torch.get_rng_state()
    for name, seed in [("b", 3), ("c", 3), ("d", 4)]:
        torch.manual_seed(len(name))
        add({folder: 1.0}, tmp_path / name, 4, "dare", seed=seed)
    torch.set_rng_state(before)
    add({folder: 1.0}, tmp_path / "b", 4, "dare", seed=3)
    assert bits(torch.get_rng_state()) == bits(before)  # no draw of the caller's is taken
    b, c, d = (tensors_of(tmp_path / name) for name in "bcd")
    assert all(bits(b[key]) == bits(c[key]) for key in b)
    assert any(bits(b[key]) != bits(d[key]) for key in b)


@pytest.mark.parametrize("method", ["ties", "dare"])
@pytest.mark.parametrize("case", ["embedding", "convolutions"])
def test_at_density_one_nothing_is_dropped(tmp_path, method, case):
    folder = saved(case, tmp_path / "a")
    done = add({folder: 1.0}, tmp_path / "b", 12, method, density=1)
    after = updates(tmp_path / "b", CASES[case][0])
    assert all(close(after[p], X) for p, X in updates(folder, CASES[case][0]).items())
    assert all(change.dropped < 0.02 for change in done.layers)


def test_what_cannot_be_added(tmp_path):
    def refused(other: Path, *words: str, method: str = "exact") -> None:
        for parts in ({tmp_path / "a": 1, other: 1}, {other: 1, tmp_path / "a": 1}):
            work = lambda parts=parts: add(parts, tmp_path / "sum", 2, method)  # noqa: E731
            nothing_written(tmp_path, work, AdapterError, *words)

    saved("linear", tmp_path / "a")
    for method in METHODS:
        refused(saved("dora", tmp_path / "dora"), "is a DoRA", "merge it", method=method)
        refused(saved("a head", tmp_path / "head"), "'head.bias', trained whole", method=method)
        refused(saved("biases", tmp_path / "biases"), "trained whole", method=method)
    torch.manual_seed(0)
    wide = shake(add_lora(Toy(12), LoRAConfig(**LINEAR)))
    minilora.save(wide, tmp_path / "wide")
    refused(tmp_path / "wide", "'blocks.0.q_proj' has the shape", "(8, 8)", "(12, 12)")
    refused(tmp_path / "none", "none is not a folder")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "mean"}, "method must be one of exact, ties, dare, but is 'mean'"),
        ({"method": "ties"}, "say to which rank to cut"),
        ({"method": "dare"}, "say to which rank to cut"),
        ({"rank": 0}, "rank must be at least 1, but is 0"),
        ({"method": "ties", "rank": 2, "density": 0.0}, "density must be above 0"),
        ({"method": "dare", "rank": 2, "density": 1.1}, "density must be above 0 and at most 1"),
        ({"parts": {}}, "give at least one adapter"),
        ({"weight": float("nan")}, "the weight of"),
        ({"weight": float("inf")}, "the weight of"),
    ],
)
def test_a_sum_that_makes_no_sense(tmp_path, given, message):
    saved("linear", tmp_path / "a")
    given = copy.copy(given)
    parts = given.pop("parts", {tmp_path / "a": given.pop("weight", 1.0)})
    work = lambda: add(parts, tmp_path / "b", **given)  # noqa: E731
    nothing_written(tmp_path, work, ValueError, message)


def test_other_files_stay(tmp_path):
    saved("linear", tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "README.md").write_text("mine")
    add({tmp_path / "a": 1}, tmp_path / "b")
    resize(tmp_path / "a", tmp_path / "b", 2)
    assert (tmp_path / "b" / "README.md").read_text() == "mine"
    assert len(os.listdir(tmp_path / "b")) == 3


# --- leading directions -------------------------------------------------------------------------


def test_leading_directions_of_a_small_matrix_are_exact():
    X = torch.randn(9, 6)
    U, values, Vt = leading(X, 3)
    assert (U.shape, values.shape, Vt.shape) == ((9, 3), (3,), (3, 6))
    assert close((U * values) @ Vt, cut(X, 3))


def test_leading_directions_of_a_large_matrix():
    """By random projection, which neither takes nor needs the caller's random numbers."""
    n = 1100
    Q, _ = torch.linalg.qr(torch.randn(n, 30))
    P, _ = torch.linalg.qr(torch.randn(n, 30))
    wanted = torch.logspace(1, -1, 30)
    X = (Q * wanted) @ P.T
    state = torch.get_rng_state()
    U, values, Vt = leading(X, 4)
    assert bits(torch.get_rng_state()) == bits(state)
    torch.testing.assert_close(values, wanted[:4], rtol=1e-4, atol=0)
    assert close((U * values) @ Vt, (Q[:, :4] * wanted[:4]) @ P[:, :4].T, 1e-3)
    torch.manual_seed(5)
    assert bits(leading(X, 4)[1]) == bits(values)


def test_the_layers_of_the_cases_are_of_every_kind():
    kinds = set()
    for case, (kind, config) in CASES.items():
        model = add_lora(base(case), LoRAConfig(**config))
        for layer in minilora.lora_layers(model).values():
            kinds.add("embedding" if isinstance(layer, LoRAEmbedding) else layer.weight.ndim)
        assert type(model) is kind
    assert kinds == {"embedding", 2, 3, 4}
