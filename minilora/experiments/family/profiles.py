"""The sizes of the family experiment, and the two tasks of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch

from minilora.experiments import sums
from minilora.experiments.family.methods import Sizes
from minilora.experiments.family.training import Bench
from minilora.experiments.running import Profile
from minilora.experiments.sums import SUMS, Sums
from minilora.experiments.tasks import Task
from minilora.experiments.tuning import Tuning
from minilora.lab.decoder import DecoderConfig
from minilora.lab.language import GPT, GptRecipe, LanguageModel, pretrain, pretrained_gpt, text
from minilora.lab.sweep import Data

#: Every method on the adder; the last two are no relatives, but a frame.
FAMILY = (
    *("LoRA", "rsLoRA", "LoRA+", "DoRA", "PiSSA", "OLoRA", "gradient start", "LoRA-FA", "VeRA"),
    *("AdaLoRA", "serial adapters", "BitFit", "full", "head only"),
)

#: Those that are also tried on the language model, which takes longer.
ON_PROSE = ("LoRA", "rsLoRA", "LoRA+", "DoRA", "PiSSA", "the matrices")


@dataclass(frozen=True)
class Prose:
    """The second task: a language model that has read code is to learn prose.

    ``base`` says how it is pretrained; None for the shipped one. ``windows`` of prose choose rates.
    ``finer`` is {times the steps: {method: its middle rate on the fine ladder}}.
    """

    model: DecoderConfig
    base: GptRecipe | None
    steps: int
    batch_size: int
    sizes: Sizes
    methods: tuple[str, ...]
    middles: Mapping[str, float]
    finer: Mapping[int, Mapping[str, float]]
    tuning: Tuning
    windows: int

    @property
    def labels(self) -> int:
        """Tokens of prose in a step, which stand in the rows' field of that name."""
        return self.batch_size * self.model.context


@dataclass(frozen=True)
class FamilyProfile(Profile):
    """The size of a run.

    Attributes:
        middles: {method: the middle of the rates that it starts with}.
        longer: Methods that are also trained for twice the steps.
        batches: {batch size: steps}: beside the usual size, other ones with as many pictures.
        by_batch: {method: middles of the rates for those batches}.
        factors: What α, and the rate of B, is multiplied by in the part "alpha". ``epsilons``:
            Adam's. ``slow``: the rate there, for ``watched`` draws.
        prose: The second task.
    """

    sums: Sums
    labels: int
    steps: int
    batch_size: int
    sizes: Sizes
    methods: tuple[str, ...]
    middles: Mapping[str, float]
    tuning: Tuning
    longer: tuple[str, ...]
    batches: Mapping[int, int]
    by_batch: Mapping[str, Mapping[int, float]]
    factors: tuple[float, ...]
    epsilons: tuple[float, ...]
    slow: float
    watched: tuple[int, ...]
    prose: Prose


_MIDDLES = {
    **dict.fromkeys(("DoRA", "gradient start", "serial adapters"), 0.032),
    **{"LoRA": 0.016, "rsLoRA": 0.016, "LoRA+": 0.002, "PiSSA": 0.008, "OLoRA": 0.008},
    **{"LoRA-FA": 0.064, "VeRA": 0.128, "AdaLoRA": 0.064, "BitFit": 0.128},
    **{"full": 0.002, "head only": 0.002},
}
_ON_PROSE = {
    **dict.fromkeys(("LoRA", "rsLoRA", "DoRA"), 0.016),
    **{"LoRA+": 0.004, "PiSSA": 0.004, "the matrices": 0.004},
}
_FINER = {
    1: {"LoRA": 0.022, "rsLoRA": 0.01, "LoRA+": 0.005, "DoRA": 0.015, "PiSSA": 0.01}
    | {"OLoRA": 0.01, "gradient start": 0.022, "the matrices": 0.005},
    4: {"LoRA": 0.022, "rsLoRA": 0.01, "LoRA+": 0.005, "PiSSA": 0.01},
}
# On the adder the choice between neighbouring rates is noisy: five draws make it, at every rate.
_TUNING = Tuning(1, 1, (100, 101, 102, 103, 104), tuple(range(10)), ladder="doubles")
_SMOOTH = Tuning(1, 1, (100, 101, 102), (0, 1, 2, 3, 4), glance=1, ladder="doubles")

LAPTOP = FamilyProfile(
    name="laptop",
    sums=SUMS["cpu"],
    labels=500,
    steps=200,
    batch_size=32,
    sizes=Sizes(r=4, alpha=8.0, only_B=8, vectors=504, bottleneck=17, first=6),
    methods=FAMILY,
    middles=_MIDDLES,
    tuning=_TUNING,
    longer=("LoRA", "AdaLoRA"),
    batches={8: 800, 128: 50},
    by_batch={
        "LoRA": {8: 0.016, 128: 0.032},
        "PiSSA": {8: 0.004, 128: 0.016},
        "full": {8: 0.001, 128: 0.004},
    },
    factors=(1 / 16, 1 / 4, 1.0, 4.0, 16.0),
    epsilons=(1e-8, 1e-4, 1e-2),
    slow=0.004,
    watched=(100, 101),
    prose=Prose(
        model=GPT,
        base=None,
        steps=100,
        batch_size=4,
        sizes=Sizes(r=16, alpha=8.0, only_B=32, vectors=512, bottleneck=71, first=24, asked=16),
        methods=ON_PROSE,
        middles=_ON_PROSE,
        finer=_FINER,
        tuning=_SMOOTH,
        windows=64,
    ),
)

PROFILES = {
    "laptop": LAPTOP,
    "cpu": replace(
        LAPTOP,
        name="cpu",
        methods=("LoRA", "PiSSA", "BitFit"),
        tuning=Tuning(1, 1, (100,), (0, 1), ladder="doubles"),
        longer=("LoRA",),
        batches={128: 50},
        by_batch={"LoRA": {128: 0.032}, "PiSSA": {128: 0.016}},
        factors=(1 / 16, 1.0, 16.0),
        epsilons=(1e-8, 1e-2),
        watched=(100,),
        prose=replace(
            LAPTOP.prose,
            steps=60,
            methods=("LoRA", "PiSSA"),
            finer={1: {"LoRA": 0.022}},
            tuning=Tuning(1, 1, (100,), (0,), ladder="doubles"),
        ),
    ),
    "gpu": replace(
        LAPTOP,
        name="gpu",
        sums=SUMS["gpu"],
        labels=2000,
        steps=300,
        sizes=Sizes(r=4, alpha=8.0, only_B=8, vectors=1024, bottleneck=17, first=6),
        middles=_MIDDLES | {"full": 0.0005},
        tuning=replace(_TUNING, below=2, tested=tuple(range(8))),
        batches={8: 1200, 128: 75},
        prose=replace(
            LAPTOP.prose,
            model=DecoderConfig(width=384, layers=6, heads=6, vocab=1024, context=128),
            base=GptRecipe(steps=3000, batch_size=64, lr=1e-3),
            steps=400,
            batch_size=8,
            sizes=Sizes(
                r=16, alpha=8.0, only_B=32, vectors=1024, bottleneck=71, first=24, asked=16
            ),
            middles=_ON_PROSE | {"the matrices": 0.001},
            windows=128,
        ),
    ),
    "smoke": replace(
        LAPTOP,
        name="smoke",
        sums=SUMS["smoke"],
        labels=40,
        steps=10,
        batch_size=16,
        sizes=Sizes(r=2, alpha=8.0, only_B=4, vectors=8, bottleneck=2, first=3, asked=20),
        middles=dict.fromkeys(FAMILY, 0.002),
        tuning=Tuning(1, 1, (100,), (0, 1), ladder="doubles"),
        batches={8: 4},
        by_batch={"LoRA": {8: 0.002}, "full": {8: 0.002}},
        factors=(1.0, 4.0),
        epsilons=(1e-8, 1e-2),
        watched=(100,),
        prose=Prose(
            model=DecoderConfig(width=8, layers=1, heads=1, vocab=1024, context=16),
            base=GptRecipe(steps=2, batch_size=2),
            steps=3,
            batch_size=2,
            sizes=Sizes(r=2, alpha=8.0, only_B=4, vectors=8, bottleneck=2, first=3, asked=4),
            methods=("LoRA", "PiSSA"),
            middles={"LoRA": 0.002, "PiSSA": 0.002},
            finer={1: {"LoRA": 0.0022}, 2: {"LoRA": 0.0022}},
            tuning=Tuning(1, 1, (100,), (0,), ladder="doubles"),
            windows=4,
        ),
    ),
}


def adder_bench(
    profile: FamilyProfile, device: torch.device | str = "cpu", say: bool = False
) -> Bench:
    """The first task: an adder of printed digits is to add handwritten ones."""
    task = replace(sums.task(profile.sums, profile.labels), sheets=sums.sheets(profile.sums))
    base = sums.adder(profile.sums, device, say).cpu()
    return Bench("sums", base, task, profile.sizes, profile.steps, profile.batch_size)


def prose_bench(prose: Prose, device: str = "cpu") -> Bench:
    """The second task. Each topic of the test prose has rows of its own, of the kind "aside"."""
    base = _language_base(prose.base, prose.model, device)
    context, test = prose.model.context, text("prose", "test")
    pair, homes = test.windows(context), test.homes(context)
    topics = {
        f"topic {name}": _rows(pair, [i for i, home in enumerate(homes) if home == name])
        for name in dict.fromkeys(homes)
    }
    task = Task(
        labels=prose.labels,
        train=partial(_prose, context),
        validation=_spread(text("prose", "validation").windows(context), prose.windows),
        test=pair,
        aside=topics,
    )
    return Bench("prose", base, task, prose.sizes, prose.steps, prose.batch_size)


def _prose(context: int, seed: int) -> Data:
    """The training prose, which is the same for every draw: a draw settles its order."""
    return text("prose").windows(context)


def _rows(pair: Data, rows: Sequence[int]) -> Data:
    return pair[0][list(rows)], pair[1][list(rows)]


def _spread(pair: Data, count: int) -> Data:
    """So many windows, evenly spread over all."""
    rows = torch.linspace(0, len(pair[1]) - 1, min(count, len(pair[1]))).long()
    return pair[0][rows], pair[1][rows]


@lru_cache(maxsize=2)
def _language_base(how: GptRecipe | None, config: DecoderConfig, device: str) -> LanguageModel:
    return pretrained_gpt() if how is None else pretrain(how, config, device, progress=False)
