"""One run: an adapter, or the whole generator, trained on a few pictures of a style."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

import minilora
from minilora import LoRAConfig
from minilora.lab import styles
from minilora.lab.flow import ATTENTION, FEED_FORWARD, MODULATION, FlowTransformer, fit_flow
from minilora.lab.flowbase import image_base
from minilora.lab.training import set_seed

#: The linear layers that an adapter can be on: what a block computes with, and what it is told by.
PLACES: dict[str, tuple[str, ...]] = {
    "all": (*ATTENTION, *FEED_FORWARD, *MODULATION),
    "attention": ATTENTION,
    "feed-forward": FEED_FORWARD,
    "modulation": MODULATION,
}


@dataclass(frozen=True)
class Size:
    """How long a run is: ``pictures`` of the style, ``steps`` of ``batch_size`` of them, α.

    ``drawn`` pictures are judged where a run is tested, and ``held`` real ones choose its rate.
    """

    pictures: int = 50
    steps: int = 120
    batch_size: int = 16
    alpha: float = 4.0
    drawn: int = 100
    held: int = 200


@dataclass(frozen=True)
class StyleRun:
    """A run, and the arm that it belongs to.

    ``r`` is None for a run that trains the whole model. ``blocks`` are those that are adapted, all
    unless some are named. With ``labelled`` False every picture is shown as "no class".
    """

    arm: str
    style: str
    r: int | None
    lr: float
    seed: int = 0
    place: str = "all"
    blocks: tuple[int, ...] | None = None
    labelled: bool = True

    @property
    def kind(self) -> str:
        """That of its rows."""
        return "full" if self.r is None else "lora"

    def at(self, lr: float, seed: int) -> StyleRun:
        """The same arm at another rate, with another seed."""
        return replace(self, lr=lr, seed=seed)


@lru_cache(maxsize=1)
def base() -> FlowTransformer:
    """The shipped generator, read once; copy it before you change it."""
    return image_base()


def adapted(run: StyleRun, size: Size) -> FlowTransformer:
    """A copy of the base that is ready to be trained the run's way. The seed draws A."""
    set_seed(run.seed)
    model = copy.deepcopy(base())
    if run.r is None:
        return model.requires_grad_(True)
    names = "|".join(PLACES[run.place])
    blocks = range(model.config.layers) if run.blocks is None else run.blocks
    inside = rf"blocks\.({'|'.join(map(str, blocks))})\.(\w+\.)?({names})"
    # The last modulation belongs to no block.
    last = "|modulation" if run.blocks is None and "modulation" in PLACES[run.place] else ""
    config = LoRAConfig(r=run.r, alpha=size.alpha, targets=f"({inside}{last})")
    return minilora.add_lora(model, config)


def trained(run: StyleRun, size: Size) -> tuple[FlowTransformer, list[float]]:
    """The model after a run, and the loss of every step. The seed draws the pictures, too."""
    model = adapted(run, size)
    pictures = styles.styled(run.style, size.pictures, run.seed)
    y = pictures.y if run.labelled else torch.full_like(pictures.y, model.null)
    losses = fit_flow(
        model,
        pictures.x,
        y,
        steps=size.steps,
        lr=run.lr,
        batch_size=size.batch_size,
        seed=run.seed,
        progress=False,
    )
    return model.eval(), losses


def digits(n: int) -> Tensor:
    """0, 1, …, 9, 0, 1, …: (n,)."""
    return torch.arange(n) % 10
