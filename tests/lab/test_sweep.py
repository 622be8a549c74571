"""A sweep trains the very runs that `fit` would have made, one by one."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import minilora
from minilora import LoRAConfig
from minilora.lab import data
from minilora.lab import sweep as sweep_module
from minilora.lab.sweep import Cell, grid, sweep
from minilora.lab.training import batches, evaluate, fit, set_seed
from minilora.lab.transformer import TransformerClassifier, TransformerConfig
from minilora.lab.work import OutOfTime, time_limit

SIZE = TransformerConfig(image_size=(8, 8), width=16, layers=2, heads=2)
EVERY = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base():
    set_seed(0)
    return TransformerClassifier(SIZE).double()


def pair(n=60, seed=0):
    split = data.few_labels(data.digits().train, n, seed)
    return split.x.double(), split.y


def alone(base, cell, train, **settings):
    """The run of one cell by itself, and its factors."""
    model = copy.deepcopy(base)
    set_seed(cell.seed)
    minilora.add_lora(model, cell.config)
    layers = minilora.lora_layers(model)
    for layer in layers.values():
        layer.A.requires_grad_("A" in cell.trained)
        layer.B.requires_grad_("B" in cell.trained)
    x, y = train(cell.seed) if callable(train) else train
    history = fit(model, x, y, lr=cell.lr, seed=cell.seed, progress=False, **settings)
    return model, history, {f"{p}.{n}": getattr(one, n) for p, one in layers.items() for n in "AB"}


CELLS = [
    Cell(LoRAConfig(r=1, alpha=1, targets=EVERY), lr=1e-2),
    Cell(LoRAConfig(r=4, alpha=16, targets=EVERY), lr=3e-3, seed=1),
    Cell(LoRAConfig(r=3, alpha=4, targets=["v_proj"], scaling="rslora"), lr=3e-2, seed=2),
    Cell(LoRAConfig(r=2, alpha=2, targets=["head", "q_proj"], init="gaussian"), lr=1e-2),
    Cell(LoRAConfig(r=2, alpha=8, targets=EVERY, rank_pattern={"up_proj": 5}), lr=1e-2, seed=1),
    Cell(LoRAConfig(r=4, alpha=8, targets=EVERY), lr=1e-2, trained="B"),
    Cell(LoRAConfig(r=4, alpha=8, targets=r".*\.up_proj"), lr=1e-2, trained="A"),
]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("data_by_seed", [False, True])
def test_every_cell_is_the_run_that_fit_makes_of_it(base, decay, data_by_seed):
    train = partial(pair, 60) if data_by_seed else pair()
    settings = {"steps": 50, "batch_size": 16, "weight_decay": decay}
    test = pair(100, seed=9)
    results = sweep(base, CELLS, train, keep=True, evaluate={"test": test}, **settings)
    moved = 0
    for cell, result in zip(CELLS, results, strict=True):
        model, history, factors = alone(base, cell, train, **settings)
        assert result.cell is cell
        assert result.adapter.keys() == factors.keys()
        for name, ours in result.adapter.items():
            assert ours.shape == factors[name].shape
            torch.testing.assert_close(ours, factors[name].detach(), rtol=0, atol=1e-9)
        torch.testing.assert_close(
            torch.tensor(result.loss), torch.tensor(history.loss), rtol=0, atol=1e-9
        )
        there, here = evaluate(model, *test), result.scores["test"]
        assert here.accuracy == there.accuracy
        assert here.log_loss == pytest.approx(there.log_loss, abs=1e-9)
        trained = sum(p.numel() for p in minilora.lora_parameters(model) if p.requires_grad)
        assert result.parameters == trained
        moved += history.loss[-1] < history.loss[0] - 0.1
    assert moved >= 5  # the runs did train


def test_two_rates_train_as_two_parameter_groups_do(base):
    x, y = pair()
    config = LoRAConfig(r=3, alpha=6, targets=EVERY)
    settings = {"steps": 20, "batch_size": 60, "schedule": "constant", "warmup": 0}
    for name in ("adamw", "sgd"):
        rate = {"adamw": 2e-3, "sgd": 0.3}[name]
        cell = Cell(config, lr=rate, lr_ratio=4.0)
        (result,) = sweep(base, [cell], (x, y), optimizer=name, keep=True, **settings)
        model = copy.deepcopy(base)
        set_seed(0)
        minilora.add_lora(model, config)
        layers = minilora.lora_layers(model)
        groups = [
            {"params": [layer.A for layer in layers.values()], "lr": rate},
            {"params": [layer.B for layer in layers.values()], "lr": 4 * rate},
        ]
        kind = {"adamw": partial(torch.optim.AdamW, weight_decay=0.0), "sgd": torch.optim.SGD}
        optimizer = kind[name](groups)
        for rows in batches(60, 60, 20, 0):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        for path, layer in layers.items():
            for factor in "AB":
                ours, theirs = result.adapter[f"{path}.{factor}"], getattr(layer, factor)
                torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-9)


def zero_a(layer):
    layer.A.zero_()
    layer.B.normal_(std=0.3)


def test_a_start_of_ones_own_and_the_factor_that_is_left_alone(base):
    """With A at zero and B random, training A alone moves A and leaves B to the last bit."""
    config = LoRAConfig(r=2, alpha=2, targets=EVERY, init=zero_a)
    x, y = pair()
    (result,) = sweep(base, [Cell(config, 1e-2, trained="A")], (x, y), steps=10, keep=True)
    set_seed(0)
    before = minilora.lora_layers(minilora.add_lora(copy.deepcopy(base), config))
    for path, layer in before.items():
        assert torch.equal(result.adapter[f"{path}.B"], layer.B)
        assert result.adapter[f"{path}.A"].abs().max() > 0


def test_looks_on_the_way_change_nothing_and_end_with_the_last(base):
    train, test = pair(), pair(100, seed=9)
    settings = {"steps": 10, "evaluate": {"test": test}}
    plain = sweep(base, CELLS[:2], train, **settings)
    looked = sweep(base, CELLS[:2], train, every=5, **settings)
    for one, other in zip(plain, looked, strict=True):
        assert one.loss == other.loss and one.scores == other.scores
        assert one.along == {} and len(other.along["test"]) == 2
        assert other.along["test"][-1] == other.scores["test"]
    halfway, _, _ = alone(base, CELLS[0], train, steps=10)  # the same schedule, stopped at 5
    assert looked[0].along["test"][0].log_loss != looked[0].scores["test"].log_loss
    assert evaluate(halfway, *test).log_loss == pytest.approx(
        looked[0].along["test"][-1].log_loss, abs=1e-9
    )


def test_the_base_stays_as_it_is(base):
    before = {name: p.clone() for name, p in base.named_parameters()}
    graded = {name: p.requires_grad for name, p in base.named_parameters()}
    modules = [id(module) for module in base.modules()]
    sweep(base, CELLS[:2], pair(), steps=2)
    assert [id(module) for module in base.modules()] == modules
    for name, p in base.named_parameters():
        assert torch.equal(p, before[name]) and p.grad is None
        assert p.requires_grad == graded[name]


def test_one_cell_diverges_and_its_neighbours_do_not_notice(base):
    config = LoRAConfig(r=2, alpha=2, targets=EVERY)
    x, y = pair()
    settings = {"steps": 30, "optimizer": "sgd", "evaluate": {"again": (x, y)}}
    calm, wild = Cell(config, lr=0.1), Cell(config, lr=1e300)
    alone_, _ = sweep(base, [calm, Cell(config, lr=0.2)], (x, y), **settings)
    together, lost = sweep(base, [calm, wild], (x, y), **settings)
    assert lost.diverged and lost.scores == {}
    assert not together.diverged and together.scores["again"].n == 60
    assert together.loss == pytest.approx(alone_.loss, abs=1e-12)


def test_a_grid_is_every_combination():
    config = LoRAConfig(r=8, alpha=8, targets=["q_proj"])
    cells = grid(config, r=[1, 2], lr=[1e-3, 1e-2], seed=range(3))
    assert len(cells) == len(set(map(repr, cells))) == 12
    assert cells[0] == Cell(LoRAConfig(r=1, alpha=8, targets=["q_proj"]), 1e-3, 0)
    assert cells[-1] == Cell(LoRAConfig(r=2, alpha=8, targets=["q_proj"]), 1e-2, 2)
    with pytest.raises(ValueError, match="needs learning rates"):
        grid(config, r=[1])
    with pytest.raises(ValueError, match="no axis 'rank'"):
        grid(config, lr=[1e-3], rank=[1])


# The file of results.


def test_a_stopped_sweep_goes_on_where_it_was(base, tmp_path, monkeypatch):
    path, train = tmp_path / "deep" / "sweep.jsonl", pair()
    cells = grid(LoRAConfig(r=2, alpha=2, targets=EVERY), lr=[1e-3, 1e-2], seed=[0, 1])
    settings = {"steps": 3, "at_once": 1, "evaluate": {"again": train}, "every": 1}
    fresh = sweep(base, cells, train, **settings)

    passes = []
    real = sweep_module._train

    def counted(*arguments):
        if len(passes) == 2:
            raise KeyboardInterrupt
        passes.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(sweep_module, "_train", counted)
    with pytest.raises(KeyboardInterrupt):
        sweep(base, cells, train, path=path, **settings)
    with path.open("a") as file:
        file.write('{"key": "torn')  # as a kill in the middle of a line leaves it
    monkeypatch.setattr(sweep_module, "_train", real)
    assert sweep(base, cells, train, path=path, **settings) == fresh
    lines = path.read_text().splitlines()
    assert sum('"entry"' in line for line in lines) == 4

    def never(*arguments):
        raise AssertionError("a finished cell was trained again")

    monkeypatch.setattr(sweep_module, "_train", never)
    assert sweep(base, cells, train, path=path, **settings) == fresh
    # A cell more: the others are not trained again, and the base's weights are part of the header.
    with pytest.raises(AssertionError, match="trained again"):
        sweep(base, [*cells, CELLS[0]], train, path=path, **settings)


@pytest.mark.parametrize("change", ["weights", "data", "steps"])
def test_a_file_of_another_sweep_is_refused_and_kept(base, tmp_path, change):
    path, (x, y) = tmp_path / "sweep.jsonl", pair()
    settings = {"steps": 2}
    sweep(base, CELLS[:1], (x, y), path=path, **settings)
    before = path.read_text()
    other = copy.deepcopy(base)
    if change == "weights":
        with torch.no_grad():
            other.head.weight[0, 0] += 1
    elif change == "data":
        x = x.clone()
        x[0, 0, 0, 0] += 1
    else:
        settings["steps"] = 3
    with pytest.raises(ValueError, match="belongs to other work"):
        sweep(other, CELLS[:1], (x, y), path=path, **settings)
    assert path.read_text() == before


# Processes and clusters.


def test_processes_give_the_same_results(base):
    cells = grid(LoRAConfig(r=2, alpha=2, targets=EVERY), lr=[1e-3, 1e-2], seed=[0, 1])
    train = pair()
    settings = {"steps": 3, "evaluate": {"again": train}, "keep": True}
    here, there = (sweep(base, cells, train, jobs=jobs, **settings) for jobs in (1, 2))
    for one, other in zip(here, there, strict=True):
        assert one.loss == pytest.approx(other.loss, abs=1e-12)
        for name in one.adapter:
            torch.testing.assert_close(one.adapter[name], other.adapter[name], rtol=0, atol=1e-12)


WHERE: list[str | None] = []


def note_where(layer):
    """An init that leaves A and B as they are drawn, and notes which worker drew them."""
    from distributed import get_worker

    try:
        WHERE.append(get_worker().name)
    except ValueError:  # not on a cluster
        WHERE.append(None)


@pytest.mark.filterwarnings("ignore")  # of the cluster's own start and stop
def test_a_dask_cluster_takes_the_passes(base):
    distributed = pytest.importorskip("distributed")
    import joblib

    config = LoRAConfig(r=2, alpha=2, targets=EVERY, init=note_where)
    cells = grid(config, lr=[1e-3, 1e-2], seed=[0, 1])
    train = pair()
    settings = {"steps": 3, "evaluate": {"again": train}}
    WHERE.clear()
    here = sweep(base, cells, train, **settings)
    assert set(WHERE) == {None}
    WHERE.clear()
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        names = {worker.name for worker in cluster.workers.values()}
        there = sweep(base, cells, train, jobs=2, **settings)
    assert WHERE and set(WHERE) <= names
    for one, other in zip(here, there, strict=True):
        assert one.loss == pytest.approx(other.loss, abs=1e-12)


# What is refused.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dropout": 0.1}, "dropout"),
        ({"init": "pissa"}, "init='pissa'"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["head"]}, "modules_to_save"),
    ],
)
def test_configurations_that_do_more_than_a_and_b_are_refused(change, words):
    config = LoRAConfig(r=2, alpha=2, targets=["q_proj"], **change)
    with pytest.raises(ValueError, match=words):
        Cell(config, 1e-3)


def test_bad_cells_and_calls_are_refused(base, tmp_path):
    config = LoRAConfig(r=2, alpha=2, targets=["q_proj"])
    for wrong in ({"lr": 0.0}, {"lr": float("nan")}, {"lr": 1e-3, "lr_ratio": -1.0}):
        with pytest.raises(ValueError, match="positive number"):
            Cell(config, **wrong)
    with pytest.raises(ValueError, match='"AB", "A" or "B"'):
        Cell(config, 1e-3, trained="C")
    train, cell = pair(), Cell(config, 1e-3)
    with pytest.raises(ValueError, match="at least one cell"):
        sweep(base, [], train, steps=1)
    with pytest.raises(ValueError, match="appears twice"):
        sweep(base, [cell, cell], train, steps=1)
    with pytest.raises(ValueError, match="one of \\['adamw', 'sgd'\\]"):
        sweep(base, [cell], train, steps=1, optimizer="adam")
    with pytest.raises(ValueError, match="exclude each other"):
        sweep(base, [cell], train, steps=1, keep=True, path=tmp_path / "x")
    by_lambda = LoRAConfig(r=2, alpha=2, targets=lambda name, _: name.endswith("q_proj"))
    with pytest.raises(ValueError, match="targets is a function without a name"):
        sweep(base, [Cell(by_lambda, 1e-3)], train, steps=1, path=tmp_path / "x")
    assert not (tmp_path / "x").exists()
    by_name = Cell(LoRAConfig(r=2, alpha=2, targets=["q_proj"], init=zero_a), 1e-3)
    once = sweep(base, [by_name], train, steps=1, path=tmp_path / "x")
    assert sweep(base, [by_name], train, steps=1, path=tmp_path / "x") == once
    with pytest.raises(ValueError, match="q_porj"):
        sweep(
            base, [cell, Cell(LoRAConfig(r=2, alpha=2, targets=["q_porj"]), 1e-3)], train, steps=1
        )
    with pytest.raises(ValueError, match="different numbers of examples"):
        sweep(base, [cell, Cell(config, 1e-3, 1)], lambda seed: pair(40 + 10 * seed), steps=1)


def test_models_whose_cells_would_touch_each_other_are_refused():
    config, x = LoRAConfig(r=1, alpha=1, targets=["0"]), torch.randn(8, 4)
    y = torch.zeros(8, dtype=torch.long)
    for module, words in ((nn.Dropout(0.2), "drops out 0.2"), (nn.BatchNorm1d(4), "averages")):
        model = nn.Sequential(nn.Linear(4, 4), module)
        with pytest.raises(ValueError, match=words):
            sweep(model, [Cell(config, 1e-3)], (x, y), steps=1)
    adapted = minilora.add_lora(nn.Sequential(nn.Linear(4, 4)), config)
    with pytest.raises(ValueError, match="has an adapter already"):
        sweep(adapted, [Cell(config, 1e-3)], (x, y), steps=1)


def test_embeddings_and_convolutions_can_be_swept():
    """Not only linear layers: every type that `add_lora` adapts, padded along its own r."""
    set_seed(0)
    model = nn.Sequential(nn.Embedding(7, 6), nn.Flatten(1, 1), nn.Flatten(), nn.Linear(18, 3))
    x, y = torch.randint(7, (20, 3)), torch.randint(3, (20,))
    cells = [
        Cell(LoRAConfig(r=r, alpha=2, targets=["0", "3"]), 1e-2, seed=seed)
        for r, seed in ((1, 0), (3, 1))
    ]
    model.double()
    for cell, result in zip(
        cells, sweep(model, cells, (x, y), steps=10, batch_size=8, keep=True), strict=True
    ):
        _, _, factors = alone(model, cell, (x, y), steps=10, batch_size=8)
        for name, ours in result.adapter.items():
            torch.testing.assert_close(ours, factors[name].detach(), rtol=0, atol=1e-9)

    picture = torch.randn(20, 1, 5, 5).double()
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(36, 3)).double()
    cells = [
        Cell(LoRAConfig(r=r, alpha=2, targets=["0"]), 1e-2, seed=seed)
        for r, seed in ((1, 0), (3, 1))
    ]
    for cell, result in zip(
        cells, sweep(model, cells, (picture, y), steps=10, batch_size=8, keep=True), strict=True
    ):
        _, _, factors = alone(model, cell, (picture, y), steps=10, batch_size=8)
        for name, ours in result.adapter.items():
            torch.testing.assert_close(ours, factors[name].detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("count", "size", "jobs", "lengths"),
    [
        (20, 8, 2, [5, 5, 5, 5]),
        (36, 8, 2, [6] * 6),
        (9, 8, 1, [4, 5]),
        (3, 8, 2, [1, 2]),
        (1, 8, 2, [1]),
        (65, 64, 1, [32, 33]),
        (0, 8, 2, []),
    ],
)
def test_passes_are_alike_and_as_many_for_each_process(count, size, jobs, lengths):
    portions = sweep_module._portions(count, size, jobs)
    assert [b - a for a, b in portions] == lengths
    assert [i for a, b in portions for i in range(a, b)] == list(range(count))


# ---------------------------------------------------------------- a card, played


@pytest.mark.parametrize(("gib", "cells"), [(139, 256), (80, 160), (24, 48), (0.2, 1)])
def test_a_card_takes_as_many_cells_as_its_memory_allows(monkeypatch, gib, cells):
    properties = SimpleNamespace(total_memory=int(gib * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert sweep_module._at_once(torch.device("cuda")) == cells
    assert sweep_module._at_once(torch.device("cpu")) == 8


def test_adapters_are_drawn_on_the_cpu_wherever_the_base_is(base, monkeypatch):
    """The card is played by a base that says it is on one; its copy for drawing is a real one."""
    assert sweep_module._drawing_model(base) is base  # there already
    moved = []
    real = nn.Module.cpu
    monkeypatch.setattr(nn.Module, "cpu", lambda self: moved.append(self) or real(self))
    card = copy.deepcopy(base)
    card.parameters = lambda: iter([SimpleNamespace(device=torch.device("cuda"))])
    monkeypatch.setattr(sweep_module, "_same_weights", lambda model: copy.deepcopy(base))
    drawing = sweep_module._drawing_model(card)
    assert moved == [drawing] and drawing is not base
    assert sweep_module._draw(drawing, CELLS[0]).keys() == sweep_module._draw(base, CELLS[0]).keys()


def test_a_sweep_that_is_out_of_time_goes_on_from_its_file(base, tmp_path):
    now = [0.0]

    def slow(seed):
        return pair(40)

    settings = {"steps": 2, "batch_size": 8, "at_once": 1, "progress": False}
    cells = [replace(CELLS[0], seed=seed) for seed in range(3)]
    path = tmp_path / "cells.jsonl"
    trained = []
    real = sweep_module._train

    def ten_seconds(*given):
        now[0] += 10.0
        trained.extend(given[-1])
        return real(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_module, "_train", ten_seconds)
        with pytest.raises(OutOfTime), time_limit(25.0, lambda: now[0]):
            sweep(base, cells, slow, path=path, **settings)
        assert len(trained) == 2
        results = sweep(base, cells, slow, path=path, **settings)
    assert [one.seed for one in trained] == [0, 1, 2]
    assert results == sweep(base, cells, slow, **settings)


def test_a_base_is_known_by_all_its_numbers(base):
    of = sweep_module.fingerprint
    before = of(base.state_dict().items())
    assert before == of(copy.deepcopy(base).state_dict().items()) and len(before) == 64
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.head.bias[0] += 1e-12
    assert of(other.state_dict().items()) != before
    assert of(copy.deepcopy(base).float().state_dict().items()) != before


def test_only_the_adapted_one_of_two_that_share_a_weight_gets_the_update():
    set_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()
    model[1].weight = model[0].weight
    x, y = torch.randn(20, 4).double(), torch.randint(4, (20,))
    cell = Cell(LoRAConfig(r=2, alpha=2, targets=["0"]), 1e-2)
    (result,) = sweep(model, [cell], (x, y), steps=10, batch_size=8, keep=True)
    _, history, factors = alone(model, cell, (x, y), steps=10, batch_size=8)
    torch.testing.assert_close(torch.tensor(result.loss), torch.tensor(history.loss))
    for name, ours in result.adapter.items():
        torch.testing.assert_close(ours, factors[name].detach(), rtol=0, atol=1e-9)


class Doubled(nn.Linear):
    """A layer whose output does not follow its weight as that of nn.Linear does."""

    def forward(self, x):
        return super().forward(x) + nn.functional.linear(x, self.weight)


def test_a_layer_that_the_update_in_its_weight_would_change_is_refused():
    x, y = torch.randn(8, 4), torch.randint(4, (8,))
    cell = Cell(LoRAConfig(r=2, alpha=2, targets=nn.Linear), 1e-2)
    with pytest.raises(ValueError, match=r"'0'.*Doubled has a forward of its own"):
        sweep(nn.Sequential(Doubled(4, 4)), [cell], (x, y), steps=1)
    model = nn.Sequential(nn.Linear(4, 4))
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ValueError, match="'0'.*computed"):
        sweep(model, [cell], (x, y), steps=1)
    assert not minilora.lora_layers(model)
