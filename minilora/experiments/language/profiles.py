"""The sizes of the language experiment, and the base and the arms of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from minilora.experiments.language.arms import MATRICES, OWN, LanguageArm, adapter
from minilora.experiments.language.facts import Facts
from minilora.experiments.running import Profile
from minilora.experiments.tuning import Tuning
from minilora.lab.decoder import DecoderConfig
from minilora.lab.language import GPT, GptRecipe, LanguageModel, pretrain, pretrained_gpt


@dataclass(frozen=True)
class LanguageProfile(Profile):
    """The size of a run.

    Attributes:
        model: The sizes of the base, and ``base`` how it is pretrained; None for the shipped one.
        ranks: Those of the adapters.
        rates: The middles of the rates that are tried at first, for adapters and by the names of
            what else is trained.
        windows: How many windows of prose, and of code, a run is judged by where it is not tested.
        nulls: The arms that are held against random moves, and whose updates are turned down.
        strengths: The factors, in hundredths, that finished updates are multiplied by.
        watched: The arms of part "steps", each with the rates that it is trained at.
        every: After so many steps it is looked at how far they are.
    """

    model: DecoderConfig
    base: GptRecipe | None
    ranks: tuple[int, ...]
    alpha: float
    steps: int
    batch_size: int
    rates: dict[str, float]
    tuning: Tuning
    windows: int
    nulls: tuple[str, ...]
    strengths: tuple[int, ...]
    watched: dict[str, tuple[float, ...]]
    watched_steps: int
    every: int
    facts: Facts

    @property
    def labels(self) -> int:
        """Tokens of prose in a step, which stand in the rows' field of that name."""
        return self.batch_size * self.model.context


MIDDLES = {"LoRA": 1.6e-2, MATRICES: 4e-3, "the head": 8e-3, "everything": 4e-3}

LAPTOP = LanguageProfile(
    name="laptop",
    model=GPT,
    base=None,
    ranks=(1, 4, 16, 64),
    alpha=8.0,
    steps=150,
    batch_size=4,
    rates=MIDDLES,
    tuning=Tuning(2, 1, (100, 101, 102), (0, 1, 2), glance=1, ladder="doubles"),
    windows=64,
    nulls=("LoRA r=1", "LoRA r=16", MATRICES),
    strengths=(20, 40, 60, 80, 120),
    watched={
        "LoRA r=1": (8e-3, 4e-3),
        "LoRA r=16": (8e-3, 4e-3),
        MATRICES: (2e-3, 1e-3),
    },
    watched_steps=240,
    every=15,
    facts=Facts(
        counts=(128,),
        ranks=(1, 2, 4, 8),
        steps=1200,
        alpha=8.0,
        lr=0.128,
        tuning=Tuning(1, 1, (100, 101, 102), (0, 1, 2), glance=1, ladder="doubles"),
    ),
)

PROFILES = {
    "cpu": replace(
        LAPTOP,
        name="cpu",
        ranks=(1, 16),
        steps=100,
        tuning=Tuning(1, 1, (100,), (0,), ladder="doubles"),
        nulls=("LoRA r=16",),
        watched={"LoRA r=1": (8e-3,), MATRICES: (2e-3,)},
        watched_steps=60,
        facts=replace(LAPTOP.facts, counts=(64,), ranks=(1, 4), steps=300),
    ),
    "laptop": LAPTOP,
    "gpu": replace(
        LAPTOP,
        name="gpu",
        model=DecoderConfig(width=384, layers=6, heads=6, vocab=1024, context=128),
        base=GptRecipe(steps=3000, batch_size=64, lr=1e-3),
        ranks=(1, 4, 16, 64, 192),
        steps=400,
        batch_size=8,
        rates=MIDDLES | {"LoRA": 8e-3, MATRICES: 1e-3, "everything": 1e-3},
        tuning=Tuning(2, 1, (100, 101, 102), (0, 1, 2, 3, 4), ladder="doubles"),
        windows=128,
        watched_steps=640,
        facts=replace(LAPTOP.facts, counts=(512, 2048), ranks=(1, 2, 4, 8, 16)),
    ),
    "smoke": replace(
        LAPTOP,
        name="smoke",
        model=DecoderConfig(width=8, layers=1, heads=1, vocab=1024, context=16),
        base=GptRecipe(steps=2, batch_size=2),
        ranks=(1, 2),
        steps=3,
        batch_size=2,
        tuning=Tuning(1, 1, (100,), (0, 1), ladder="doubles"),
        windows=4,
        nulls=("LoRA r=1", MATRICES),
        strengths=(50,),
        watched={"LoRA r=1": (4e-3,)},
        watched_steps=4,
        every=2,
        facts=Facts((8,), (1, 2), 3, 8.0, 3.2e-2, Tuning(1, 1, (100,), (0,), ladder="doubles")),
    ),
}


def base_of(profile: LanguageProfile, device: str = "cpu") -> LanguageModel:
    """The model that knows code, on the CPU: the shipped one, or one that is pretrained now."""
    return _base(profile.base, profile.model, device)


@lru_cache(maxsize=2)
def _base(how: GptRecipe | None, config: DecoderConfig, device: str) -> LanguageModel:
    return pretrained_gpt() if how is None else pretrain(how, config, device, progress=False)


def arms(profile: LanguageProfile) -> list[LanguageArm]:
    """What part "ranks" compares, each at the middle of the rates that are tried at first."""
    return [adapter(r, profile.rates["LoRA"]) for r in profile.ranks] + [
        LanguageArm(name, profile.rates[name]) for name in OWN
    ]
