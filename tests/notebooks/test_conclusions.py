"""The sentences of Part III that say what was found, held against the runs that the pages made.

`make book` leaves each experiment's run in build/runs. A conclusion is a fragment of a page's text,
which must still stand there, and a predicate on the run, with its tolerance. So neither the prose
nor the numbers can move on alone. Recordings of larger machines are held to the conclusions that
the pages draw from them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from minilora.experiments.recording import Recording, read_recording
from minilora.experiments.summaries import paired, quantities, summarise, tuning_curve
from minilora.experiments.tuning import best_rate

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "build" / "runs"
#: Log loss of the untouched base on the validation pictures of chapters 8 and 9, rounded down.
UNTOUCHED = 1.6


@dataclass(frozen=True)
class Conclusion:
    """A fragment of a chapter's prose, and what must hold of the run for it to be true."""

    notebook: str
    fragment: str
    runs: tuple[str, ...]
    holds: Callable[..., bool]


def rate(run: Recording, arm: str) -> float:
    return best_rate(run.rows, arm)


def loss_at(run: Recording, arm: str, lr: float) -> float:
    return tuning_curve(run, arm)[lr]


def difference(run: Recording, a: str, b: str, metric: str = "log_loss"):
    return paired(run, a, b, metric)


def together(*runs: Recording) -> Recording:
    """The first run with the rows of all."""
    first = runs[0]
    return Recording(
        **{**vars(first), "rows": [row for run in runs for row in run.rows]},
    )


RATES = (1e-3, 2.2e-3, 5e-3, 1e-2, 2.2e-2, 5e-2)
RANKS = (1, 4, 16)
PILES = ("weights", "gradients", "optimizer", "activations")


def accuracy(run: Recording, arm: str, labels: int | None = None) -> float:
    (found,) = [one for one in summarise(run, labels) if one.arm == arm]
    return found.accuracy


def better(run: Recording, a: str, b: str, labels: int | None = None):
    """a − b in accuracy, from 0 to 1."""
    return paired(run, a, b, labels=labels)


def watched(run: Recording, r: int, how: str) -> float:
    losses = [row.log_loss for row in run.rows if row.arm == f"watched r={r}, {how}"]
    return float(np.mean([loss for loss in losses if loss is not None]))


def products(run: Recording, sound: bool) -> list[float]:
    """The rate of A times that of B, for the cells of the LoRA+ map that learnt, or that broke."""
    return [
        lr * lr * float(ratio)
        for ratio in ("0.25", "1", "4", "16")
        for lr, loss in tuning_curve(run, f"LoRA+ ratio {ratio}").items()
        if (loss < UNTOUCHED) == sound
    ]


CONCLUSIONS = [
    # Chapter 8
    Conclusion(
        "08_lora_transformer",
        "Most of the way up is covered by the first rank",
        ("rank",),
        lambda run: (
            accuracy(run, "LoRA r=1") - accuracy(run, "the base as it is")
            > 0.6 * (accuracy(run, "full fine-tuning") - accuracy(run, "the base as it is"))
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "nothing to speak of from rank 1 to 2, a jump to 4, and after it a slow rise that no two "
        "neighbours show by themselves",
        ("rank",),
        lambda run: (
            not better(run, "LoRA r=2", "LoRA r=1").detectable
            and better(run, "LoRA r=4", "LoRA r=2").low > 0
            and not any(
                better(run, f"LoRA r={2 * r}", f"LoRA r={r}").detectable for r in (4, 8, 16)
            )
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "ranks 1 and 2 stay behind full fine-tuning by two or three points",
        ("rank",),
        lambda run: all(
            better(run, f"LoRA r={r}", "full fine-tuning").high < 0.005
            and -0.04 < better(run, f"LoRA r={r}", "full fine-tuning").mean < -0.01
            for r in (1, 2)
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "From rank 4 on LoRA is not on a par with full fine-tuning but ahead of it",
        ("rank",),
        lambda run: all(
            better(run, f"LoRA r={r}", "full fine-tuning").low > -0.005 for r in (4, 8, 16, 32)
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "rank 32 is ahead of rank 4, by little",
        ("rank",),
        lambda run: 0 < better(run, "LoRA r=32", "LoRA r=4").low < 0.03,
    ),
    Conclusion(
        "08_lora_transformer",
        "Training the *head only* barely improves on the base as it is",
        ("rank",),
        lambda run: 0 < accuracy(run, "head only") - accuracy(run, "the base as it is") < 0.04,
    ),
    Conclusion(
        "08_lora_transformer",
        "but both factors together do better",
        ("rank",),
        lambda run: better(run, "random A, r=8", "LoRA r=8").high < 0,
    ),
    Conclusion(
        "08_lora_transformer",
        "would read the two digits, add them, and beat every transformer on this page",
        ("rank",),
        lambda run: (
            accuracy(run, "digits labelled singly")
            > max(one.accuracy for one in summarise(run) if one.parameters)
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "LoRA of rank 8 stands beside full fine-tuning at every number of labels",
        ("rank",),
        lambda run: all(
            -0.02 < better(run, "LoRA r=8", "full fine-tuning", labels).mean < 0.04
            for labels in (100, 250, 500, 2000)
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "Rank 1 is behind in the mean at every number, by three to five points",
        ("rank",),
        lambda run: all(
            -0.07 < better(run, "LoRA r=1", "full fine-tuning", labels).mean < -0.015
            for labels in (100, 250, 500, 2000)
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "Run to the end, three draws scatter too much to set rank 32 apart from rank 1; stopped in "
        "time, it is the better of the two",
        ("rank",),
        lambda run: (
            paired(run, "watched r=32, tuned", "watched r=1, tuned", "log_loss", labels=100).high
            < 0
            and paired(
                run, "watched r=32, untuned", "watched r=1, untuned", "log_loss", labels=100
            ).high
            > 0
            and watched(run, 32, "untuned") > watched(run, 32, "tuned") + 0.2
        ),
    ),
    # Chapter 9
    Conclusion(
        "09_learning_rate",
        "sixteen times the rank, and the best rate is the same rung of the ladder",
        ("rates-adam",),
        # Another processor rounds otherwise: a neighbour may be ahead by a hair.
        lambda run: all(
            loss_at(run, f"LoRA r={r}", 2.2e-2)
            < min(tuning_curve(run, f"LoRA r={r}").values()) + 0.08
            for r in RANKS
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "all three ranks end far above the dotted line",
        ("rates-adam",),
        lambda run: all(loss_at(run, f"LoRA r={r}", RATES[-1]) > UNTOUCHED + 0.5 for r in RANKS),
    ),
    Conclusion(
        "09_learning_rate",
        "even at the last rung, ten times its best rate, it is still better than the base",
        ("rates-adam",),
        lambda run: (
            1e-3 <= rate(run, "full fine-tuning") <= 5e-3
            and loss_at(run, "full fine-tuning", 2.2e-2) < UNTOUCHED
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "divide by $r$ and the best rate stays, divide by $\\sqrt r$ and it goes down with",
        ("rates-adam", "rates-scaling"),
        lambda adam, scaling: (
            loss_at(adam, "LoRA r=16", 2.2e-2) < UNTOUCHED
            and rate(scaling, "α/√r, AdamW, r=16") <= 1e-2
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "a rate that was right at rank 1 is ruinous at rank 16",
        ("rates-adam", "rates-scaling"),
        lambda adam, scaling: (
            loss_at(scaling, "α/√r, AdamW, r=16", 2.2e-2)
            > UNTOUCHED
            > loss_at(adam, "LoRA r=1", 2.2e-2)
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "Under plain SGD neither is quite level",
        ("rates-scaling",),
        lambda run: (
            rate(run, "α/r, SGD, r=16") > rate(run, "α/√r, SGD, r=16") > rate(run, "α/r, SGD, r=1")
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "Even with five draws the two cannot be told apart",
        ("rates-adam", "rates-scaling"),
        lambda adam, scaling: (
            not difference(together(adam, scaling), "α/√r, AdamW, r=16", "LoRA r=16").detectable
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "This page gives no support to a ratio of 16",
        ("rates-plus",),
        lambda run: difference(run, "LoRA+ ratio 16", "LoRA+ ratio 1").high > 0,
    ),
    Conclusion(
        "09_learning_rate",
        "neither rate by itself but the product of the two",
        ("rates-plus",),
        lambda run: max(products(run, sound=True)) < min(products(run, sound=False)),
    ),
    Conclusion(
        "09_learning_rate",
        "The lowest cell is that of plain LoRA",
        ("rates-plus",),
        lambda run: (
            min(tuning_curve(run, "LoRA+ ratio 1").values()) - 0.05
            <= min(min(tuning_curve(run, f"LoRA+ ratio {q}").values()) for q in ("0.25", "4", "16"))
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "Which factor starts at zero makes no difference here that five draws could show",
        ("rates-starts", "rates-adam"),
        lambda *runs: not difference(together(*runs), "A at zero", "LoRA r=4").detectable,
    ),
    Conclusion(
        "09_learning_rate",
        "What costs something is to freeze one of them",
        ("rates-starts", "rates-adam"),
        lambda *runs: all(
            difference(together(*runs), f"only {factor} trains", "LoRA r=4").low > 0
            for factor in "AB"
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "On this task neither shows up beyond the scatter",
        ("rates-starts",),
        lambda run: not difference(run, "only A trains", "only B trains").detectable,
    ),
    Conclusion(
        "09_learning_rate",
        "with 4 pictures a step the cliff comes a rung earlier",
        ("rates-batch",),
        lambda run: loss_at(run, "batch 4", 2.2e-2) > UNTOUCHED > loss_at(run, "batch 16", 2.2e-2),
    ),
    Conclusion(
        "09_learning_rate",
        "with 64 the fall from it is not as deep",
        ("rates-batch",),
        lambda run: loss_at(run, "batch 64", 5e-2) < loss_at(run, "batch 16", 5e-2) - 0.3,
    ),
    Conclusion(
        "09_learning_rate",
        "which is near that of somebody who looks at no picture",
        ("rates-inverted",),
        lambda run: loss_at(run, "LoRA, inverted", 2.2e-2) > 2.79 - 0.3,
    ),
    Conclusion(
        "09_learning_rate",
        "has its best rate a rung *higher* than before, and with it a lower loss than LoRA",
        ("rates-inverted", "rates-adam"),
        lambda inverted, adam: (
            rate(inverted, "full fine-tuning, inverted") > rate(adam, "full fine-tuning")
            and difference(inverted, "full fine-tuning, inverted", "LoRA, inverted").mean < 0
        ),
    ),
]


def held(run: Recording, what: str, arm: str) -> float:
    """Bytes that chapter 11 measured."""
    (found,) = quantities(run, what, arm)
    return found.measured


CONCLUSIONS += [
    # Chapter 11: bytes and counts, never the clock.
    Conclusion(
        "11_memory_time",
        "So 'more than half' was the right guess here",
        ("memory",),
        lambda run: 0.5 < held(run, "peak", "LoRA") / held(run, "peak", "full") < 0.9,
    ),
    Conclusion(
        "11_memory_time",
        "For LoRA the peak lies *above* the sum",
        ("memory",),
        lambda run: (
            held(run, "peak", "LoRA") > sum(held(run, pile, "LoRA") for pile in PILES)
            and held(run, "peak", "full") < sum(held(run, pile, "full") for pile in PILES)
        ),
    ),
    Conclusion(
        "11_memory_time",
        "Not two per cent, and not a tenth",
        ("memory",),
        lambda run: 0.6 < held(run, "flops", "LoRA") / held(run, "flops", "full") < 0.75,
    ),
]


ALL_SIX = "all six, r=2"
BLOCKS = [f"block {k}, r=6" for k in (1, 2, 3)]
NEW = ", new answers"
TURNED = ("turned 15°", "turned 45°", "turned 90°", "turned 180°")
EXCHANGED = ("exchanged 12.5%", "exchanged 50%", "exchanged 100%")


def lack(run: Recording, r: int, shift: str):
    """Log loss of a rank above that of rank 48, on one shift of the pictures."""
    return difference(run, f"r={r}, {shift}", f"r=48, {shift}")


CONCLUSIONS += [
    # Chapter 10
    Conclusion(
        "10_placement",
        "Q alone and K alone stay about twenty points behind everybody else",
        ("placement-places",),
        lambda run: all(
            better(run, place, one.arm).high < -0.12
            for place in ("Q, r=20", "K, r=20")
            for one in summarise(run)
            if one.arm not in ("Q, r=20", "K, r=20")
        ),
    ),
    Conclusion(
        "10_placement",
        "O, `up`, all four of attention, and `up` with `down` are not told apart from 'all six'",
        ("placement-places",),
        lambda run: all(
            abs(better(run, arm, ALL_SIX).mean) < 0.02
            for arm in ("O, r=20", "up, r=8", "Q, K, V, O, r=5", "up, down, r=4")
        ),
    ),
    Conclusion(
        "10_placement",
        "O is ahead of V by some four points",
        ("placement-places",),
        lambda run: better(run, "O, r=20", "V, r=20").low > 0.01,
    ),
    Conclusion(
        "10_placement",
        "Between attention and feed-forward there is no detectable difference",
        ("placement-places",),
        lambda run: not better(run, "Q, K, V, O, r=5", "up, down, r=4").detectable,
    ),
    Conclusion(
        "10_placement",
        "may be the size of its matrix",
        ("placement-places", "placement-rank"),
        lambda *runs: all(
            better(together(*runs), wide, f"{square}, r=8").mean
            > better(together(*runs), wide, f"{square}, r=20").mean + 0.005
            for square in "VO"
            for wide in ("up, r=8", "down, r=8")
        ),
    ),
    Conclusion(
        "10_placement",
        "The first block by itself is ahead of the whole model, with the same number of "
        "parameters; the second is behind, and the third is far behind",
        ("placement-places", "placement-blocks"),
        lambda *runs: (
            better(together(*runs), BLOCKS[0], ALL_SIX).low > 0
            and better(together(*runs), BLOCKS[1], ALL_SIX).high < -0.03
            and better(together(*runs), BLOCKS[2], BLOCKS[1]).high < -0.03
        ),
    ),
    Conclusion(
        "10_placement",
        "The block that won on handwriting is now the last, the block that lost is now the first, "
        "and 'all six' stands between them in both",
        ("placement-answers",),
        lambda run: (
            better(run, BLOCKS[0] + NEW, ALL_SIX + NEW).high < 0
            and better(run, BLOCKS[2] + NEW, ALL_SIX + NEW).low > 0.1
            and better(run, BLOCKS[2] + NEW, BLOCKS[1] + NEW).low > 0
        ),
    ),
    Conclusion(
        "10_placement",
        "Training the head alone, on the same 500 pairs, gets",
        ("placement-answers",),
        lambda run: better(run, "the head" + NEW, BLOCKS[2] + NEW).low > 0.03,
    ),
    Conclusion(
        "10_placement",
        "None of the four comes up to rank 1 on all six",
        ("placement-own",),
        lambda run: all(
            better(run, f"the {what}", "all six, r=1").high < 0
            for what in ("embeddings", "norms", "biases", "head")
        ),
    ),
    Conclusion(
        "10_placement",
        "Among them the embeddings are the best, with fewer numbers than the biases",
        ("placement-own",),
        lambda run: all(
            better(run, "the embeddings", f"the {what}").mean > 0.01
            for what in ("norms", "biases", "head")
        ),
    ),
    Conclusion(
        "10_placement",
        "Rank 2 in the first block is ahead of everything else here",
        ("placement-own",),
        lambda run: better(run, "block 1, r=2", "all six, r=1").low > 0,
    ),
    Conclusion(
        "10_placement",
        "the head does next to nothing",
        ("placement-own",),
        lambda run: accuracy(run, "the head") < accuracy(run, "the norms") - 0.08,
    ),
    Conclusion(
        "10_placement",
        "Within each kind of shift the order is the one that the line at a quarter gave",
        ("placement-turned", "placement-exchanged"),
        # The half turn and a turn of 45 degrees lie close: their places may change.
        lambda turned, exchanged: (
            lack(turned, 1, "turned 15°").mean
            < min(lack(turned, 1, shift).mean for shift in ("turned 45°", "turned 180°"))
            and max(lack(turned, 1, shift).mean for shift in ("turned 45°", "turned 180°"))
            < lack(turned, 1, "turned 90°").mean
            and lack(exchanged, 1, EXCHANGED[0]).mean
            < lack(exchanged, 1, EXCHANGED[1]).mean
            < lack(exchanged, 1, EXCHANGED[2]).mean
        ),
    ),
    Conclusion(
        "10_placement",
        "where its interval lies far above that of the weakest shift",
        ("placement-turned", "placement-exchanged"),
        lambda turned, exchanged: all(
            lack(run, 1, strong).low > lack(run, 1, weak).high + 0.05
            for run, weak, strong in (
                (turned, "turned 15°", "turned 90°"),
                (exchanged, "exchanged 12.5%", "exchanged 100%"),
            )
        ),
    ),
    Conclusion(
        "10_placement",
        "rank 4 in eighteen matrices comes close, by its log loss, to what no bound at all would "
        "give",
        ("placement-turned", "placement-exchanged"),
        lambda turned, exchanged: all(
            lack(run, 4, shift).mean < 0.15
            for run, shifts in ((turned, TURNED), (exchanged, EXCHANGED))
            for shift in shifts
        ),
    ),
    Conclusion(
        "10_placement",
        "even rank 48 is far below",
        ("placement-turned", "placement-exchanged"),
        lambda turned, exchanged: (
            max(accuracy(turned, "r=48, turned 90°"), accuracy(exchanged, "r=48, exchanged 100%"))
            < 0.8
        ),
    ),
    Conclusion(
        "10_placement",
        "At 0.05 it has fallen off the cliff",
        ("placement-places",),
        lambda run: (
            loss_at(run, ALL_SIX, 5e-2) > UNTOUCHED + 0.5
            and loss_at(run, "Q, K, V, O, r=5", 5e-2) > UNTOUCHED + 0.5
            and loss_at(run, "up, down, r=4", 5e-2) < UNTOUCHED
        ),
    ),
]


def prose(notebook: str) -> str:
    """The markdown of a chapter as one line, so that a fragment may run over a break."""
    content = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "markdown"]
    return re.sub(r"\s+", " ", "\n".join(cells))


def run_of_the_page(name: str) -> Recording:
    path = RUNS / f"{name}.cpu.json"
    if not path.exists():
        if os.environ.get("CI"):
            pytest.fail(f"{path} is missing: `make book` must come before this test")
        pytest.skip("no run of this page: `make book` makes it")
    return read_recording(path)


def name_of(one: Conclusion) -> str:
    return f"{one.notebook[:2]}: {one.fragment[:50]}"


@pytest.mark.parametrize("one", CONCLUSIONS, ids=name_of)
def test_the_sentence_stands_on_the_page(one: Conclusion) -> None:
    assert one.fragment in prose(one.notebook)


@pytest.mark.parametrize("one", CONCLUSIONS, ids=name_of)
def test_the_run_says_the_same(one: Conclusion) -> None:
    assert one.holds(*(run_of_the_page(name) for name in one.runs))


def test_every_recording_is_sound() -> None:
    for path in (ROOT / "minilora" / "experiments" / "recorded").glob("*.json"):
        recording = read_recording(path)
        assert path.name == f"{recording.name}.{recording.profile}.json"
        if recording.name in ("rank", "rates", "placement"):
            assert summarise(recording)
