"""A whole grid of adapters, trained in one pass over one frozen base.

A sweep tries the same model at many ranks, scales, learning rates, seeds and placements. One by
one, each of these runs would push its own small batches through the same frozen weights. Here the
adapters are stacked, each cell's updates are added to the base's weights, and `torch.vmap` carries
the stack of weights through the model, every layer in one call for all cells.

    A: (cells, R, in)     B: (cells, out, R)     R: the largest rank among them

Adding first is what is fast where a weight is smaller than what a layer computes from a batch, as
it is in this book's models: W₀ + s·BA is then made of fewer numbers than s·B(Ax) is. It takes the
memory of the adapted weights once for each cell of a pass.

A rank below R is padded with zeros, in the last rows of A and the last columns of B. Where both are
zero, both gradients are, so that the padding never trains; the same holds for a layer that a cell
does not adapt, whose factors are zero altogether. So each cell is the very run that `fit` would
have made of it, up to the order of sums (tests hold the two together in double precision).
"""

from __future__ import annotations

import copy
import hashlib
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from minilora.adapt import add_lora, remove_lora
from minilora.checks import not_linear
from minilora.config import LoRAConfig
from minilora.lab.training import (
    Evaluation,
    batches,
    flush_denormals,
    learning_rate,
    progress_bar,
    score,
    set_seed,
)
from minilora.lab.work import Journal, spread
from minilora.layers import LoRALayer
from minilora.state import lora_layers
from minilora.targets import plan

Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    ``seed`` draws the adapter and the order of the examples. ``lr`` is the peak learning rate, of B
    too unless ``lr_ratio`` (LoRA+'s λ) says how many times A's it is. ``trained`` names the factors
    that train: "AB", or one of them.
    """

    config: LoRAConfig
    lr: float
    seed: int = 0
    lr_ratio: float = 1.0
    trained: str = "AB"

    def __post_init__(self) -> None:
        for name in ("lr", "lr_ratio"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be a positive number, but is {value}")
        if self.trained not in ("AB", "A", "B"):
            raise ValueError(f'trained must be "AB", "A" or "B", but is {self.trained!r}')
        c = self.config
        refused = {
            "dropout": c.dropout > 0,
            f"init={c.init!r}": c.init in ("pissa", "olora", "milora"),
            "use_dora": c.use_dora,
            f"bias={c.bias!r}": c.bias != "none",
            "modules_to_save": bool(c.modules_to_save),
        }
        for name, asked in refused.items():
            if asked:
                raise ValueError(
                    f"a sweep trains A and B over one frozen base, and cannot take {name}: "
                    "train such a configuration by itself, with minilora.lab.training.fit"
                )


@dataclass(frozen=True)
class Result:
    """What became of one cell.

    ``loss`` is the training loss of every step, in nats; ``scores`` holds an evaluation for each
    name in ``evaluate``, and ``along`` those made on the way, one after every ``every`` steps. A
    diverged cell has lost its finite loss on the way, and has neither.
    ``adapter`` holds the trained factors by name (``PATH.A``, ``PATH.B``), unpadded, where they
    were to be kept.
    """

    cell: Cell
    parameters: int
    loss: list[float]
    scores: dict[str, Evaluation]
    diverged: bool
    along: dict[str, list[Evaluation]] = field(default_factory=dict)
    adapter: dict[str, Tensor] | None = field(default=None, compare=False)


def grid(config: LoRAConfig, **axes: Sequence[Any]) -> list[Cell]:
    """Every combination of the values given, the last axis varying fastest.

    An axis is a field of `Cell` (``lr``, ``seed`` …) or of `LoRAConfig` (``r``, ``alpha``,
    ``targets`` …), whose other fields are those of ``config``. For an α that follows the rank, or
    other combinations than all, build the list of cells yourself.

    Raises:
        ValueError: No ``lr``, or an axis that neither has.
    """
    of_cell = {f.name for f in fields(Cell)} - {"config"}
    of_config = {f.name for f in fields(LoRAConfig)}
    if "lr" not in axes:
        raise ValueError("a grid needs learning rates: grid(config, lr=[1e-3, 1e-2], …)")
    if unknown := axes.keys() - of_cell - of_config:
        raise ValueError(
            f"no axis {sorted(unknown)[0]!r}; there are {', '.join(sorted(of_cell | of_config))}"
        )
    cells = []
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        changed = {name: value for name, value in chosen.items() if name in of_config}
        rest = {name: value for name, value in chosen.items() if name in of_cell}
        cells.append(Cell(replace(config, **changed), **rest))
    return cells


def sweep(
    base: nn.Module,
    cells: Sequence[Cell],
    train: Data | Callable[[int], Data],
    *,
    steps: int,
    batch_size: int = 64,
    schedule: str = "cosine",
    warmup: int | None = None,
    optimizer: str = "adamw",
    weight_decay: float = 0.0,
    evaluate: Mapping[str, Data] | None = None,
    every: int | None = None,
    at_once: int | None = None,
    jobs: int = 1,
    path: Path | str | None = None,
    keep: bool = False,
    progress: bool | None = None,
) -> list[Result]:
    """Train an adapter for every cell over ``base``, a classifier, which stays as it is.

    ``train`` is one pair (x, y), examples (N, …) and labels (N,), or a function that gives the pair
    for a seed. Steps, batches, schedule and AdamW are those of `minilora.lab.training.fit`;
    ``optimizer="sgd"`` takes plain gradient steps instead. ``evaluate`` names pairs on which every
    trained cell is scored, and with ``every`` after so many steps each time as well.

    ``at_once`` cells share a pass (left out: 8 on a CPU; on a card one for each half GiB of its
    memory, 256 at most), similar ones together. ``jobs`` processes share the passes; inside
    ``joblib.parallel_config(backend="dask")`` they are spread over that cluster instead. With
    ``path``, each finished pass is kept in that file, and a second call with the same arguments
    goes on from there. ``keep`` returns the trained factors.

    Returns:
        One `Result` for each cell, in their order.

    Raises:
        minilora.lab.work.OutOfTime: Under a `minilora.lab.work.time_limit`, passes are left and no
            time; those that are done are in the file.
        ValueError: No cells; a cell that appears twice or does not fit the model; ``keep`` with
            ``path``, which holds no factors; a file at ``path`` that belongs to another sweep.
    """
    if not cells:
        raise ValueError("a sweep needs at least one cell")
    if keep and path is not None:
        raise ValueError("keep=True and path exclude each other: the file holds no factors")
    if optimizer not in _OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {list(_OPTIMIZERS)}, but is {optimizer!r}")
    _check_model(base)
    keys = _keys(cells, for_file=path is not None)
    # Every cell is held against the model before the first one trains.
    ranks = [_ranks(base, cell) for cell in cells]
    warmup = steps // 10 if warmup is None else warmup
    settings = _Settings(steps, batch_size, schedule, warmup, optimizer, weight_decay, every)
    device = next(base.parameters()).device
    pairs = _pairs(train, [cell.seed for cell in cells], device)
    scored = {name: (x.to(device), y) for name, (x, y) in (evaluate or {}).items()}
    journal = Journal(path, {} if path is None else _header(base, pairs, scored, settings))

    kept = {
        i: _read(cells[i], journal.entries[k]) for i, k in enumerate(keys) if k in journal.entries
    }
    todo = [i for i in range(len(cells)) if i not in kept]
    # Cells of like ranks share a pass, so that little of it is padding.
    todo.sort(key=lambda i: (sorted(ranks[i]), sorted(ranks[i].values())))
    size = at_once or _at_once(device)
    passes = [todo[a:b] for a, b in _portions(len(todo), size, abs(jobs))]
    together = partial(_train, base, pairs, scored, settings, keep)
    found = spread(together, [[cells[i] for i in rows] for rows in passes], jobs)
    for rows, results in zip(passes, progress_bar(found, len(passes), progress)):
        for i, result in zip(rows, results, strict=True):
            kept[i] = result
            journal.add(keys[i], _entry(result))
    return [kept[i] for i in range(len(cells))]


def _at_once(device: torch.device) -> int:
    """How many cells share a pass.

    A CPU is fastest while they fit its cache. On a card a pass takes about as long for many cells
    as for a few, until its calls are no longer what takes the time.
    """
    if device.type != "cuda":
        return 8
    halves = torch.cuda.get_device_properties(device).total_memory // 2**29
    return max(1, min(256, halves))


def _portions(count: int, size: int, jobs: int) -> list[tuple[int, int]]:
    """Cuts of ``count`` cells: portions of at most ``size``, nearly alike, as many for each job.

    No process is left without work while another has more than a portion to go.
    """
    number = -(-count // (size * jobs)) * jobs
    ends = [count * k // max(1, number) for k in range(number + 1)]
    return [(a, b) for a, b in pairwise(ends) if a < b]


def _check_model(base: nn.Module) -> None:
    """Refuse what would make the cells' runs differ from runs of their own."""
    if lora_layers(base):
        raise ValueError("the base has an adapter already: remove_lora(model) first")
    for path, module in base.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise ValueError(f"{path!r} drops out {module.p:g} of its input: set its p to 0 first")
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(f"{path!r} averages over a batch, which the cells would share")


def _check_sum(path: str, layer: LoRALayer) -> None:
    """Refuse a layer that would compute something else with its update in its weight."""
    why = not_linear(layer)
    if why is None and not isinstance(layer.weight, nn.Parameter):
        why = "its weight is computed, by a quantization, a parametrization or a hook"
    if why:
        raise ValueError(
            f"a sweep adds each cell's update to a copy of the weight, and for {path!r} that is "
            f"not the same as an adapter, since {why}: train it with minilora.lab.training.fit"
        )


def _ranks(base: nn.Module, cell: Cell) -> dict[str, int]:
    """{path: rank} of the layers that a cell adapts; ValueError where it does not fit."""
    return {path: cell.config.rank_for(path) for path in plan(base, cell.config).targets}


def _pairs(
    train: Data | Callable[[int], Data], seeds: list[int], device: torch.device
) -> dict[int, Data]:
    """The training pair of every seed; the same pair of tensors where all share it."""
    if not callable(train):
        x, y = train[0].to(device), train[1].to(device)
        return dict.fromkeys(seeds, (x, y))
    drawn = {seed: train(seed) for seed in dict.fromkeys(seeds)}
    if len({x.shape for x, _ in drawn.values()}) > 1:
        raise ValueError("train gave different numbers of examples for different seeds")
    return {seed: (x.to(device), y.to(device)) for seed, (x, y) in drawn.items()}


@dataclass(frozen=True)
class _Settings:
    steps: int
    batch_size: int
    schedule: str
    warmup: int
    optimizer: str
    weight_decay: float
    every: int | None


@flush_denormals()
def _train(
    base: nn.Module,
    pairs: dict[int, Data],
    scored: dict[str, Data],
    settings: _Settings,
    keep: bool,
    cells: list[Cell],
) -> list[Result]:
    """One pass: all of ``cells`` at once."""
    stack = _Stack(base, cells)
    x, y, which, order = _examples(cells, pairs, settings)
    optimizer = _OPTIMIZERS[settings.optimizer](stack, cells, settings.weight_decay)
    losses = vmap(stack.loss)
    history = []
    looks: list[dict[str, list[Evaluation]]] = []  # on the way: [{name: one for each cell}]
    stack.model.train()
    for step, rows in enumerate(order):  # rows: (C, batch)
        # Each cell's loss depends on its own factors alone, so one sum gives all the gradients.
        loss = losses(stack.A, stack.B, stack.scales, x[which, rows], y[which, rows])  # (C,)
        dA, dB = torch.autograd.grad(loss.sum(), (stack.A, stack.B))
        now = learning_rate(step, settings.steps, 1.0, settings.schedule, settings.warmup)
        optimizer.step(now, dA, dB)
        history.append(loss.detach())
        if settings.every and (step + 1) % settings.every == 0:
            looks.append(stack.scores(scored))
    curves = torch.stack(history).T.tolist() if history else [[] for _ in cells]
    found = stack.scores(scored)
    results = []
    for i, (cell, curve) in enumerate(zip(cells, curves, strict=True)):
        scores = {name: of_cells[i] for name, of_cells in found.items()}
        along = {name: [look[name][i] for look in looks] for name in scored} if looks else {}
        numbers = [*curve, *(one.log_loss for one in scores.values())]
        lost = not all(math.isfinite(number) for number in numbers)
        adapter = stack.unpack(i)
        count = sum(t.numel() for name, t in adapter.items() if name[-1] in cell.trained)
        kept = adapter if keep else None
        if lost:
            results.append(Result(cell, count, curve, {}, True, adapter=kept))
        else:
            results.append(Result(cell, count, curve, scores, False, along, kept))
    return results


class _Stack:
    """The adapters of all cells of a pass, and the model that they are carried through.

    Attributes:
        A: (C, numbers in all As of a cell). ``B``: likewise. One matrix each, so that a step of
            the optimizer is a handful of calls, however many layers there are.
        scales: (C, layers).
        model: The base's weights, without an adapter.
        layers: {path: the layer that would adapt it with the largest rank}, for shapes alone.
    """

    def __init__(self, base: nn.Module, cells: list[Cell]) -> None:
        model = _same_weights(base)
        with _DRAWING:
            drawing = _drawing_model(model)
            drawn = [_draw(drawing, cell) for cell in cells]  # [{path: (A, B, scale)}]
            paths = {path for factors in drawn for path in factors}
            R = max(len(A) for factors in drawn for A, _, _ in factors.values())
            add_lora(model, LoRAConfig(r=R, alpha=R, targets=lambda path, _: path in paths))
        self.layers = layers = lora_layers(model)
        for path, layer in layers.items():
            _check_sum(path, layer)
        self.model = remove_lora(model)
        self.shapes = {path: (layer.A.shape, layer.B.shape) for path, layer in layers.items()}
        self.ranks = [{path: len(A) for path, (A, _, _) in factors.items()} for factors in drawn]
        like = next(iter(layers.values())).A

        rows_A, rows_B = [], []
        scales = like.new_zeros(len(cells), len(layers))
        for i, factors in enumerate(drawn):
            parts_A, parts_B = [], []
            for k, (path, (a_shape, b_shape)) in enumerate(self.shapes.items()):
                padded_A, padded_B = like.new_zeros(a_shape), like.new_zeros(b_shape)
                if path in factors:
                    A, B, scales[i, k] = factors[path]
                    padded_A[: len(A)].copy_(A)
                    padded_B[:, : len(A)].copy_(B)
                parts_A.append(padded_A.flatten())
                parts_B.append(padded_B.flatten())
            rows_A.append(torch.cat(parts_A))
            rows_B.append(torch.cat(parts_B))
        self.A = torch.stack(rows_A).requires_grad_()
        self.B = torch.stack(rows_B).requires_grad_()
        self.scales = scales

    def split(self, A: Tensor, B: Tensor) -> dict[str, Tensor]:
        """One cell's rows of A and B → its padded factors, by name."""
        factors = {}
        for which, row in enumerate((A, B)):
            shapes = {path: both[which] for path, both in self.shapes.items()}
            parts = row.split([shape.numel() for shape in shapes.values()])
            for (path, shape), part in zip(shapes.items(), parts, strict=True):
                factors[f"{path}.{'AB'[which]}"] = part.view(shape)
        return factors

    def forward(self, A: Tensor, B: Tensor, scales: Tensor, x: Tensor) -> Tensor:
        """The model's scores with one cell's adapter: (N, …) → (N, classes)."""
        factors, weights = self.split(A, B), {}
        for (path, layer), scale in zip(self.layers.items(), scales.unbind(), strict=True):
            update = layer.multiply(factors[f"{path}.A"], factors[f"{path}.B"] * scale)
            weights[f"{path}.weight"] = layer.weight + update
        # Of two modules that share a weight, only the adapted one gets the update.
        y: Tensor = functional_call(self.model, weights, (x,), tie_weights=False)
        return y

    def loss(self, A: Tensor, B: Tensor, scales: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The mean cross-entropy of one cell, in nats."""
        return F.cross_entropy(self.forward(A, B, scales, x), y)

    @torch.no_grad()
    def scores(self, scored: Mapping[str, Data]) -> dict[str, list[Evaluation]]:
        """{name: how good each cell is on the pair of that name}."""
        forward = vmap(self.forward, in_dims=(0, 0, 0, None))
        # On a CPU small portions are faster, since they fit its cache.
        size = max(1, (32_768 if self.A.is_cuda else 512) // len(self.A))
        self.model.eval()
        found = {}
        for name, (x, y) in scored.items():
            parts = [forward(self.A, self.B, self.scales, part).cpu() for part in x.split(size)]
            logits = torch.cat(parts, dim=1)  # (C, N, classes)
            found[name] = [score(one, y) for one in logits.log_softmax(dim=-1)]
        self.model.train()
        return found

    def unpack(self, i: int) -> dict[str, Tensor]:
        """Cell i's factors without their padding, as a run of its own would have left them."""
        padded = self.split(self.A[i].detach(), self.B[i].detach())
        adapter = {}
        for path, r in self.ranks[i].items():
            adapter[f"{path}.A"] = padded[f"{path}.A"][:r].clone()
            adapter[f"{path}.B"] = padded[f"{path}.B"][:, :r].clone()
        return adapter


class _SGD:
    """p ← p − η (g + λ p), with a rate η of its own for every cell and factor."""

    def __init__(self, stack: _Stack, cells: list[Cell], weight_decay: float) -> None:
        self.decay = weight_decay
        self.parts = []  # (numbers, rates (C, 1)) of the As, then of the Bs
        for factor, numbers in (("A", stack.A), ("B", stack.B)):
            rates = [
                (c.lr * c.lr_ratio if factor == "B" else c.lr) * (factor in c.trained)
                for c in cells
            ]
            self.parts.append((numbers, numbers.new_tensor(rates).unsqueeze(1)))

    @torch.no_grad()
    def step(self, now: float, *grads: Tensor) -> None:
        """One step; ``now`` is the share of the peak rate that the schedule allows."""
        for (p, rates), grad in zip(self.parts, grads, strict=True):
            p -= now * rates * (grad + self.decay * p)


class _AdamW(_SGD):
    """torch.optim.AdamW with its default β and ε (arXiv 1711.05101, algorithm 2)."""

    def __init__(self, stack: _Stack, cells: list[Cell], weight_decay: float) -> None:
        super().__init__(stack, cells, weight_decay)
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p, _ in self.parts]
        self.steps = 0

    @torch.no_grad()
    def step(self, now: float, *grads: Tensor) -> None:
        self.steps += 1
        first, second = 1 - 0.9**self.steps, 1 - 0.999**self.steps
        for (p, rates), (m, v), grad in zip(self.parts, self.moments, grads, strict=True):
            m.lerp_(grad, 1 - 0.9)
            v.mul_(0.999).addcmul_(grad, grad, value=1 - 0.999)
            p.mul_(1 - now * rates * self.decay)
            p.sub_(now / first * rates * m / (v.sqrt() / second**0.5 + 1e-8))


_OPTIMIZERS = {"adamw": _AdamW, "sgd": _SGD}


#: Passes in threads of one process share torch's generator, and must not draw at the same time.
_DRAWING = threading.Lock()


def _same_weights(base: nn.Module) -> nn.Module:
    """A copy of the model whose parameters are frozen views of the base's: no weight is copied."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in base.parameters()
    }
    memo |= {id(buffer): buffer for buffer in base.buffers()}
    return copy.deepcopy(base, memo)


def _drawing_model(model: nn.Module) -> nn.Module:
    """The model, on the CPU: a card has a random generator of its own, and draws other numbers.

    So a sweep's adapters are those that a model gets before it is moved to a card.
    """
    on_card = next(model.parameters()).device.type == "cuda"
    return _same_weights(model).cpu() if on_card else model


def _draw(model: nn.Module, cell: Cell) -> dict[str, tuple[Tensor, Tensor, float]]:
    """{path: (A, B, scale)} as a run of this cell alone would begin."""
    set_seed(cell.seed)
    add_lora(model, cell.config)
    layers = lora_layers(model)
    factors = {p: (one.A.detach(), one.B.detach(), one.scale) for p, one in layers.items()}
    remove_lora(model)
    return factors


def _examples(
    cells: list[Cell], pairs: dict[int, Data], settings: _Settings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (S, N, …), y (S, N), each cell's place among the S (C, 1), its rows (steps, C, batch)."""
    seeds = list(dict.fromkeys(cell.seed for cell in cells))
    shared = len({id(pairs[seed][0]) for seed in seeds}) == 1
    x, y = (
        torch.stack(parts) for parts in zip(*(pairs[s] for s in seeds[: 1 if shared else None]))
    )
    which = torch.tensor([0 if shared else seeds.index(c.seed) for c in cells], device=x.device)
    n, size, steps = y.shape[1], settings.batch_size, settings.steps
    orders = {seed: torch.stack(list(batches(n, size, steps, seed))) for seed in seeds}
    rows = torch.stack([orders[cell.seed] for cell in cells], dim=1)
    return x, y, which.unsqueeze(1), rows.to(x.device)


# What a file of results holds.


def _keys(cells: Sequence[Cell], for_file: bool) -> list[str]:
    keys = [repr(cell) for cell in cells]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"a cell appears twice: {twice}")
    return [_lasting_key(cell) for cell in cells] if for_file else keys


def _lasting_key(cell: Cell) -> str:
    """A cell's repr, in which a function stands under its name and not under its address."""
    config = {}
    for part in fields(cell.config):
        value = getattr(cell.config, part.name)
        if callable(value) and not isinstance(value, type):
            name = f"{value.__module__}.{getattr(value, '__qualname__', '<lambda>')}"
            if "<" in name:
                raise ValueError(
                    f"{part.name} is a function without a name of its own, {name}, which a file "
                    "cannot hold: with path, define it in a module, or leave path out"
                )
            value = name
        config[part.name] = value
    rest = {part.name: getattr(cell, part.name) for part in fields(cell) if part.name != "config"}
    return repr((config, rest))


def _header(
    base: nn.Module, pairs: dict[int, Data], scored: dict[str, Data], settings: _Settings
) -> dict[str, Any]:
    """What settles the results, apart from the cells."""
    parts: list[tuple[str, Tensor]] = [*base.state_dict().items()]
    for name, pair in [*pairs.items(), *scored.items()]:
        parts += [(f"{name} {part}", tensor) for part, tensor in zip("xy", pair, strict=True)]
    # Data drawn for a seed counts seed by seed, so more seeds can be added to a finished file only
    # where all cells share their data.
    return {"sweep": asdict(settings), "of": fingerprint(parts), "torch": torch.__version__}


def fingerprint(named: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of tensors and their names, as of ``model.state_dict().items()``: 64 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _entry(result: Result) -> dict[str, Any]:
    return {
        "parameters": result.parameters,
        "loss": result.loss,
        "scores": {name: asdict(one) for name, one in result.scores.items()},
        "along": {name: [asdict(one) for one in looks] for name, looks in result.along.items()},
        "diverged": result.diverged,
    }


def _read(cell: Cell, entry: dict[str, Any]) -> Result:
    scores = {name: Evaluation(**one) for name, one in entry["scores"].items()}
    along = {name: [Evaluation(**one) for one in looks] for name, looks in entry["along"].items()}
    return Result(cell, entry["parameters"], entry["loss"], scores, entry["diverged"], along)
