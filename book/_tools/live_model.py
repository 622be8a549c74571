"""Make what the live model of chapter 8 needs: its weights, and a picture for where it cannot run.

    python book/_tools/live_model.py OUT [--runs build/runs]

The base is the one that the chapter adapts. The adapters are trained as the chapter trains them:
the first of the five draws that it tests, at the rate that it chose for each rank. The rates are
read from the run that the chapter's page left in --runs; where there is none, or it was made by
other code, every rank gets the rate with which the chapter's tuning begins.

OUT then holds weights.js (a script, so that it loads from a disk as well as from a server),
still.webp and still.json, which says in words what the picture shows. Weights are rounded to half
precision; the words, the picture and the shares of right answers are those of the rounded weights.
"""

from __future__ import annotations

import argparse
import base64
import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from minilora import add_lora, lora_layers, set_strength
from minilora.experiments.rank import PROFILES
from minilora.experiments.rank.experiment import AdapterRun, arms
from minilora.experiments.recording import file_name, is_stale, read_recording
from minilora.experiments.sums import adder, printed, task
from minilora.experiments.tuning import best_rate
from minilora.lab import training
from minilora.lab.slider import png, webp
from minilora.lab.transformer import TransformerClassifier

PROFILE = PROFILES["cpu"]
RANKS = (1, 2, 4, 8)  # 32 would more than double the bytes
SEED = PROFILE.tuning.tested[0]
SAMPLES = 12  # the first so many test pictures
STRENGTHS = [tenth / 10 for tenth in range(21)]


@dataclass(frozen=True)
class Adapter:
    """A trained adapter on a copy of the base, and the rate that it was trained at."""

    model: TransformerClassifier
    r: int
    lr: float

    @property
    def scale(self) -> float:
        return PROFILE.alpha / self.r


def chosen_rates(runs: Path) -> dict[str, float]:
    """{arm: rate} of the chapter's own run, where it left one that this code would make."""
    path = runs / file_name("rank", "cpu")
    if not path.exists():
        return {}
    recording = read_recording(path)
    if is_stale(recording):
        return {}
    return {f"LoRA r={r}": best_rate(recording.rows, f"LoRA r={r}", PROFILE.labels) for r in RANKS}


def trained(base: TransformerClassifier, runs: Path) -> list[Adapter]:
    """An adapter of each rank, trained on the pictures of the draw SEED."""
    rates = chosen_rates(runs)
    pictures = task(PROFILE.sums, PROFILE.labels).labelled(SEED)
    found = []
    for run in arms(PROFILE):
        if not isinstance(run, AdapterRun) or run.kind != "lora" or run.cell.config.r not in RANKS:
            continue
        lr = rates.get(run.arm, run.lr)
        model = copy.deepcopy(base)
        training.set_seed(SEED)  # draws A
        add_lora(model, run.cell.config)
        training.fit(
            model,
            *pictures,
            steps=PROFILE.steps,
            lr=lr,
            batch_size=PROFILE.batch_size,
            seed=SEED,
            progress=False,
        )
        found.append(Adapter(model, run.cell.config.r, lr))
    return found


@torch.no_grad()
def round_to_half(model: TransformerClassifier) -> None:
    """Every parameter to the nearest number that half precision has, in place."""
    for parameter in model.parameters():
        parameter.copy_(parameter.half().float())


def packed(tensors: list[Tensor]) -> str:
    """Numbers in half precision, little-endian, one tensor after the other, in base64."""
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors]).half()
    return base64.b64encode(flat.numpy().astype("<f2").tobytes()).decode()


def stored(base: TransformerClassifier, adapters: list[Adapter]) -> dict[str, object]:
    """Everything that weights.js holds."""
    config = asdict(base.config) | {"image_size": list(base.config.image_size)}
    written = task(PROFILE.sums, PROFILE.labels).scored["validation"]
    pictures = {"written": written, "printed": printed()}

    def right(model: TransformerClassifier) -> dict[str, float]:
        return {
            name: round(training.evaluate(model, *pair).accuracy, 4)
            for name, pair in pictures.items()
        }

    layers = lora_layers(adapters[0].model)
    x, _, digits = samples()
    found: dict[str, object] = {
        "config": config,
        "parameters": [(name, p.numel()) for name, p in base.named_parameters()],
        "base": packed(list(base.parameters())),
        "adapted": [(path, *layer.base.weight.shape) for path, layer in layers.items()],
        "adapters": {
            one.r: {
                "scale": one.scale,
                "lr": one.lr,
                "count": sum(p.numel() for p in one.model.parameters() if p.requires_grad),
                "weights": packed(
                    [part for la in lora_layers(one.model).values() for part in (la.A, la.B)]
                ),
                # For every strength that the slider has.
                "right": [right(set_strength(one.model, s)) for s in STRENGTHS],
            }
            for one in adapters
        },
        "right": right(base),
        "pictures": {name: len(pair[1]) for name, pair in pictures.items()},
        "samples": [
            {"digits": pair, "ink": (16 * picture).flatten().int().tolist()}
            for picture, pair in zip(x, digits, strict=True)
        ],
    }
    for one in adapters:
        set_strength(one.model, 1)
    return found


def samples() -> tuple[Tensor, Tensor, list[list[int]]]:
    """The first test pictures, (N, 1, 8, 16), their sums, and the two digits of each."""
    from minilora.lab import data

    hand = data.digits().test
    count = PROFILE.sums.test
    pairs = data.pairs(hand, count, seed=1002)[:SAMPLES]  # those of minilora.experiments.sums
    numbers = data.pairs(hand, count, seed=1002, label="number")[:SAMPLES].y
    return pairs.x, pairs.y, [[int(n) // 10, int(n) % 10] for n in numbers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("build/runs"))
    options = parser.parse_args()

    base = adder(PROFILE.sums)
    with training.one_thread():
        adapters = trained(base, options.runs)
        for model in (base, *(one.model for one in adapters)):
            round_to_half(model)
        content = stored(base, adapters)
        picture, words = still(base, adapters)
    options.out.mkdir(parents=True, exist_ok=True)
    # weights.js comes last: where it is, the others are.
    (options.out / "still.webp").write_bytes(webp(picture))
    (options.out / "still.json").write_text(json.dumps(words) + "\n", encoding="utf-8")
    text = json.dumps(content, separators=(",", ":"))
    (options.out / "weights.js").write_text(f"window.LIVE_WEIGHTS={text};\n", encoding="utf-8")


@torch.no_grad()
def still(base: TransformerClassifier, adapters: list[Adapter]) -> tuple[bytes, dict[str, str]]:
    """One sample and what the model makes of it: a PNG, and what it shows in words.

    The sample is the first that the base reads wrongly and the largest adapter rightly.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    from minilora.lab import plotting

    model, r = adapters[-1].model, adapters[-1].r
    x, y, digits = samples()
    alone, adapted = training.predict(base, x).argmax(1), training.predict(model, x).argmax(1)
    at = next((k for k in range(len(y)) if alone[k] != y[k] and adapted[k] == y[k]), 0)
    left, right = digits[at]
    shares = [training.predict(m, x[at : at + 1]).softmax(1)[0] for m in (base, model)]
    maps = model.attention_maps(x[at : at + 1])[:, 0, :, 0]  # (layers, heads, tokens)

    plotting.use_style()
    figure = plt.figure(figsize=(9.6, 3.6))
    left_half, right_half = figure.add_gridspec(1, 2, wspace=0.16)
    beside = left_half.subgridspec(2, 1, hspace=0.35)
    ax = figure.add_subplot(beside[0])
    plotting.show_picture(ax, x[at, 0], f"{left} + {right}")
    ax = figure.add_subplot(beside[1])
    looks = (("base", "base", -0.2), ("lora", f"rank {r}", 0.2))
    for values, (key, name, shift) in zip(shares, looks, strict=True):
        color = plotting.COLORS[key]
        ax.bar(torch.arange(len(values)) + shift, values, 0.4, color=color)
        top = int(values.argmax())
        plotting.label_line(
            ax, (top + shift, values[top].item()), name, color=color, offset=(0, 7), ha="center"
        )
    ax.set(xlabel="sum", ylabel="probability", ylim=(0, 1.12), xticks=range(len(shares[0])))
    ax.tick_params(axis="x", labelsize=8)
    ax.grid(axis="x", visible=False)
    blocks, heads = maps.shape[:2]
    small = right_half.subgridspec(blocks, heads, hspace=0.05, wspace=0.08)
    p, columns = base.config.patch_size, base.config.image_size[1] // base.config.patch_size
    for block, head in ((block, head) for block in range(blocks) for head in range(heads)):
        ax = figure.add_subplot(small[block, head])
        plotting.show_picture(ax, 0.6 * x[at, 0], f"head {head + 1}" if block == 0 else "")
        ax.title.set_fontsize(9)
        if head == 0:
            ax.set_ylabel(f"block {block + 1}", fontsize=9)
        for k, share in enumerate(maps[block, head, 1:].tolist()):
            side = p * share**0.5
            row, column = divmod(k, columns)
            corner = [p * (place + 0.5) - 0.5 - side / 2 for place in (column, row)]
            ax.add_patch(Rectangle(corner, side, side, color=plotting.COLORS["neighbours"], lw=0))
    data = png(figure)
    plt.close(figure)
    reads = [f"{int(v.argmax())} with a probability of {v.max():.0%}" for v in shares]
    return data, {
        "alt": (
            f"A handwritten {left} and {right}, side by side in grey squares. Below it bars over "
            f"the sums 0 to 18: the base reads {reads[0]}, the base with the adapter of rank {r} "
            f"{reads[1]}. At the right twelve copies of the picture, for three blocks with four "
            "heads each, with orange squares whose areas are the attention of the class token."
        )
    }


if __name__ == "__main__":
    main()
