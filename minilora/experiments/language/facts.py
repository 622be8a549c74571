"""How many facts an adapter on a single matrix can hold.

A fact is three random tokens and a fourth one that is to follow them. There is no rule to find in
such facts, so that an adapter can but store them, and what it has stored can be counted in bits. It
sits on the last matrix of the model, ``down_proj`` of the last block. What comes before it is
frozen and is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minilora import LoRAConfig
from minilora.experiments.recording import Row
from minilora.experiments.running import Machine
from minilora.experiments.tuning import Runs, Tuning, best_rate, tune
from minilora.lab.decoder import DecoderBlock
from minilora.lab.language import LanguageModel
from minilora.lab.sweep import Cell, Data, sweep

#: Tokens that ask; the next one is the answer.
ASKING = 3


@dataclass(frozen=True)
class Facts:
    """The size of the part: so many facts, learnt all at once in every one of the steps."""

    counts: tuple[int, ...]
    ranks: tuple[int, ...]
    steps: int
    alpha: float
    lr: float
    tuning: Tuning


class LastMatrix(nn.Module):
    """A model from the input of its last matrix on, at the last token: (N, 5 · width) → (N, vocab).

    The first ``width`` numbers of a row are what the matrix's product is added to, and the others
    are its input.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.down_proj = _last_block(model).down_proj
        self.norm, self.head = model.norm, model.head

    def forward(self, rows: Tensor) -> Tensor:
        """(N, 5 · width) → (N, vocab)."""
        width = self.down_proj.out_features
        stream, hidden = rows[:, :width], rows[:, width:]
        scores: Tensor = self.head(self.norm(stream + self.down_proj(hidden)))
        return scores


def _last_block(model: LanguageModel) -> DecoderBlock:
    last = model.blocks[-1]
    assert isinstance(last, DecoderBlock)
    return last


@torch.no_grad()
def facts(model: LanguageModel, count: int, seed: int) -> Data:
    """So many facts, as `LastMatrix` reads them: (N, 5 · width), and their answers (N,)."""
    vocab, generator = model.config.vocab, torch.Generator().manual_seed(seed)
    # 256 and more are tokens of several letters. No two facts ask the same.
    asked = torch.randint(256, vocab, (2 * count, ASKING), generator=generator)
    asked = asked.unique(dim=0)
    asked = asked[torch.randperm(len(asked), generator=generator)[:count]]
    answers = torch.randint(0, vocab, (count,), generator=generator)
    x = model.embed(asked)
    for block in model.blocks[:-1]:
        x = block(x)
    last = _last_block(model)
    seen: list[Tensor] = []
    hook = last.down_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    after = last(x)
    hook.remove()
    hidden = seen[0][:, -1]
    stream = after[:, -1] - F.linear(hidden, last.down_proj.weight, last.down_proj.bias)
    return torch.cat([stream, hidden], dim=1), answers


def bits(row: Row, vocab: int) -> float:
    """What an adapter has stored of its facts: the bits that it saves somebody who guesses."""
    assert row.log_loss is not None
    return max(0.0, row.labels * (math.log2(vocab) - row.log_loss / math.log(2)))


def run_facts(of: Facts, base: LanguageModel, machine: Machine) -> list[Row]:
    """Tune every rank and test it; the rows. Facts are judged by those that were learnt."""
    rows: list[Row] = []
    for count in of.counts:
        arms = {f"{count} facts, r={r}": r for r in of.ranks}
        tunings = dict.fromkeys(arms, of.tuning)

        def train(
            runs: Runs, stage: str = "tune", count: int = count, arms: dict = arms
        ) -> list[Row]:
            return _train(of, base, machine, count, arms, runs, stage)

        rows += tune(train, dict.fromkeys(arms, of.lr), tunings)
        chosen = {arm: [(best_rate(rows, arm), seed) for seed in of.tuning.tested] for arm in arms}
        rows += train(chosen, "final")
    return rows


def _train(
    of: Facts,
    base: LanguageModel,
    machine: Machine,
    count: int,
    arms: dict[str, int],
    runs: Runs,
    stage: str,
) -> list[Row]:
    found = []
    model = LastMatrix(base)
    for seed in sorted({seed for pairs in runs.values() for _, seed in pairs}):
        asked = [(arm, lr) for arm, pairs in runs.items() for lr, one in pairs if one == seed]
        pair = facts(base, count, seed)
        for (arm, _), result in zip(asked, _sweep(of, model, arms, asked, seed, pair), strict=True):
            score = result.scores.get("facts")
            found.append(
                Row(
                    stage=stage,
                    arm=arm,
                    kind="lora",
                    labels=count,
                    seed=seed,
                    r=arms[arm],
                    lr=result.cell.lr,
                    parameters=result.parameters,
                    accuracy=score.accuracy if score else None,
                    log_loss=score.log_loss if score else None,
                    diverged=result.diverged,
                )
            )
        machine.say(f"facts: {count}, seed {seed}, {len(asked)} runs")
    return found


def _sweep(
    of: Facts, model: LastMatrix, arms: dict, asked: Sequence, seed: int, pair: Data
) -> list:
    cells = [
        Cell(LoRAConfig(r=arms[arm], alpha=of.alpha, targets=["down_proj"]), lr, seed)
        for arm, lr in asked
    ]
    steps, size = of.steps, len(pair[1])
    return sweep(
        model, cells, pair, steps=steps, batch_size=size, evaluate={"facts": pair}, progress=False
    )
