"""The sizes of the memory experiment."""

from __future__ import annotations

from dataclasses import dataclass

from minilora.experiments.running import Profile
from minilora.lab.decoder import DecoderConfig


@dataclass(frozen=True)
class Narrow:
    """The smaller decoders, of several widths, that full fine-tuning, LoRA and the floor train.

    On ``sequences`` as long as the context of ``model``, which says all but the width and heads.
    """

    widths: tuple[int, ...]
    model: DecoderConfig
    sequences: int
    rounds: int


@dataclass(frozen=True)
class Sweeps:
    """Small runs, one after the other and as one sweep: so many, of so many pictures a step."""

    counts: tuple[int, ...]
    batches: tuple[int, ...]
    steps: int


@dataclass(frozen=True)
class MemoryProfile(Profile):
    """The size of a run.

    Every arm trains a decoder of ``model``'s sizes on ``sequences`` × ``tokens`` tokens, and is
    timed ``rounds`` times. A forward pass is timed on one token, and on a whole step's.
    """

    model: DecoderConfig
    sequences: int
    tokens: int
    dtype: str
    r: int
    rounds: int
    narrow: Narrow
    sweeps: Sweeps
    peft: bool = False  # whether PEFT takes part, where it is installed


PROFILES = {
    "cpu": MemoryProfile(
        name="cpu",
        model=DecoderConfig(width=384, layers=4, heads=6, vocab=4096, context=128),
        sequences=4,
        tokens=128,
        dtype="float32",
        r=8,
        rounds=15,
        narrow=Narrow(
            widths=(32, 64, 128, 256, 512),
            model=DecoderConfig(width=32, layers=4, heads=2, vocab=256, context=64),
            sequences=4,
            rounds=7,
        ),
        sweeps=Sweeps(counts=(1, 4, 16), batches=(2, 32), steps=5),
    ),
    # 1.04 billion parameters.
    "gpu": MemoryProfile(
        name="gpu",
        model=DecoderConfig(width=2048, layers=18, heads=16, vocab=32768, context=1024),
        sequences=4,
        tokens=1024,
        dtype="bfloat16",
        r=16,
        rounds=20,
        narrow=Narrow(
            widths=(128, 256, 512, 1024, 2048, 4096),
            model=DecoderConfig(width=128, layers=4, heads=2, vocab=1024, context=1024),
            sequences=4,
            rounds=30,
        ),
        sweeps=Sweeps(counts=(1, 8, 64), batches=(2, 32), steps=10),
        peft=True,
    ),
    # In half precision and with PEFT, so that the code of the gpu profile is run.
    "smoke": MemoryProfile(
        name="smoke",
        model=DecoderConfig(width=32, layers=2, heads=2, vocab=400, context=16),
        sequences=2,
        tokens=16,
        dtype="bfloat16",
        r=2,
        rounds=2,
        narrow=Narrow(
            widths=(16, 32),
            model=DecoderConfig(width=16, layers=1, heads=2, vocab=50, context=16),
            sequences=1,
            rounds=2,
        ),
        sweeps=Sweeps(counts=(1, 2), batches=(2, 3), steps=1),
        peft=True,
    ),
}
