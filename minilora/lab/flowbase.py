"""The image generator that is shipped with the package, and the judge of its pictures.

``image_base`` draws plain printed digits of 16 × 16 dots. ``image_judge`` looks at a picture and
says which digit it is and in which style. Both are small files in half precision beside this one,
each held to its SHA-256. This command makes them again, in some minutes on one core:

    python -m minilora.lab.flowbase

The base has seen upright fonts of a regular weight alone: nothing bold, slanted or outlined, and no
handwriting. The judge has seen all styles.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from minilora.folder import replace_file
from minilora.lab import styles, training
from minilora.lab.flow import FlowTransformer, fit_flow

SHIPPED = Path(__file__).parent / "shipped"

#: What the files must be, by name: the SHA-256 of each.
HASHES = {
    "image-base.safetensors": "44c89697a9ecd6d0b9e5663bf44fc5b83c93e2c1b3c1d25ff42e9ecc9bf85cc8",
    "image-judge.safetensors": "62c1998e96a3345cae1c85b9431c89c0d8eadc131c76e5e79af15ec86733a7fb",
}


@dataclass(frozen=True)
class Pretraining:
    """How a network is made: the seed, so many steps of so many pictures, and the peak rate."""

    seed: int
    pictures: int
    steps: int
    batch_size: int
    lr: float


BASE = Pretraining(seed=0, pictures=20_000, steps=2000, batch_size=64, lr=2e-3)
JUDGE = Pretraining(seed=0, pictures=2_500, steps=1500, batch_size=128, lr=3e-3)
DROP = 0.1  # how often the base has to do without the class


class Judge(nn.Module):
    """Which digit, in which style: (N, 1, 16, 16) → scores (N, 10) and (N, styles)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.hidden = nn.Linear(32 * 4 * 4, 64)
        self.content = nn.Linear(64, 10)
        self.style = nn.Linear(64, len(styles.STYLES))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 1, 16, 16), ink from 0 to 1 → (N, 10), (N, styles)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)  # (N, 16, 8, 8)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # (N, 32, 4, 4)
        x = F.relu(self.hidden(x.flatten(1)))  # (N, 64)
        return self.content(x), self.style(x)


@torch.no_grad()
def verdicts(judge: Judge, x: Tensor) -> tuple[Tensor, Tensor]:
    """The judge's digit and style for each picture: (N, 1, 16, 16) → (N,), (N,).

    A style is its place in `minilora.lab.styles.STYLES`.
    """
    content, style = judge(x)
    return content.argmax(dim=1), style.argmax(dim=1)


def make_base(recipe: Pretraining = BASE, progress: bool | None = None) -> FlowTransformer:
    """Train the base, on this machine."""
    training.set_seed(recipe.seed)
    model = FlowTransformer()
    plain = styles.styled("plain", recipe.pictures, recipe.seed)
    fit_flow(
        model,
        plain.x,
        plain.y,
        steps=recipe.steps,
        lr=recipe.lr,
        batch_size=recipe.batch_size,
        drop=DROP,
        seed=recipe.seed,
        progress=progress,
    )
    return model.eval()


@training.flush_denormals()
def make_judge(recipe: Pretraining = JUDGE) -> Judge:
    """Train the judge, on so many pictures of each printed style, and on handwriting."""
    training.set_seed(recipe.seed)
    judge = Judge()
    parts = [
        styles.styled(style, recipe.pictures if style != "handwritten" else 646, 500 + number)
        for number, style in enumerate(styles.STYLES)
    ]
    # Handwriting is rare: it is shown as often as any other style.
    parts[-1] = parts[-1][torch.arange(recipe.pictures) % 646]
    x, digit = torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])
    style = torch.arange(len(parts)).repeat_interleave(recipe.pictures)
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.05, fused=True)
    order = training.batches(len(digit), recipe.batch_size, recipe.steps, recipe.seed)
    for step, rows in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate(step, recipe.steps, recipe.lr, "cosine", 100)
        content, look = judge(_moved(x[rows]))
        loss = F.cross_entropy(content, digit[rows]) + F.cross_entropy(look, style[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return judge.eval()


def _moved(x: Tensor) -> Tensor:
    """A little grey noise, as a generator leaves it: the judge must not stumble over that."""
    return (x + 0.05 * torch.randn_like(x)).clamp(0, 1)


def image_base() -> FlowTransformer:
    """The shipped image generator, in single precision; see `FlowTransformer`.

    Raises:
        RuntimeError: The file is not the one that belongs to this package.
    """
    model = FlowTransformer()
    model.load_state_dict(_read("image-base.safetensors"))
    return model.eval()


def image_judge() -> Judge:
    """The shipped judge.

    Raises:
        RuntimeError: The file is not the one that belongs to this package.
    """
    judge = Judge()
    judge.load_state_dict(_read("image-judge.safetensors"))
    return judge.eval()


def _read(name: str) -> dict[str, Tensor]:
    content = (SHIPPED / name).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != HASHES[name]:
        raise RuntimeError(
            f"{SHIPPED / name} is not the file that this package was made with (SHA-256 "
            f"{found[:12]}… in place of {HASHES[name][:12]}…): install minilora again, or, if you "
            "have trained the networks anew, write the new hashes into minilora/lab/flowbase.py"
        )
    return {name: tensor.float() for name, tensor in load(content).items()}


def main(arguments: list[str] | None = None) -> int:
    """Make both files again, and say whether they are the ones that are shipped."""
    parser = argparse.ArgumentParser(
        prog="python -m minilora.lab.flowbase",
        description="Train the image generator and its judge again, and write their files.",
    )
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder of the files")
    parser.add_argument("--steps", type=int, help="fewer steps than the recipe's, for a try")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with training.one_thread():
        made: dict[str, nn.Module] = {
            "image-judge.safetensors": make_judge(_shorter(JUDGE, options.steps)),
            "image-base.safetensors": make_base(_shorter(BASE, options.steps)),
        }
    for name, network in made.items():
        content = save({key: t.half() for key, t in network.state_dict().items()})
        replace_file(options.out / name, content)
        digest = hashlib.sha256(content).hexdigest()
        same = "as shipped" if digest == HASHES[name] else "not the one that is shipped"
        print(f"{name}: {len(content):,} bytes, SHA-256 {digest} ({same})")
    return 0


def _shorter(recipe: Pretraining, steps: int | None) -> Pretraining:
    return recipe if steps is None else Pretraining(**{**vars(recipe), "steps": steps})


if __name__ == "__main__":
    sys.exit(main())
