"""Memory and time of a training step: full fine-tuning, LoRA, PEFT's LoRA and QLoRA.

A randomly initialised stack of transformer blocks takes training steps on random tokens. Bytes and
operations are predicted by `minilora.lab.predicting` and measured; seconds are measured alone. On a
card the arms are run one after the other, so that each has the memory for itself; on the CPU they
take turns.
"""

from __future__ import annotations

import copy
import gc
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import minilora
from minilora import LoRAConfig
from minilora.experiments.memory_arms import HAS_PEFT, Arm, Training
from minilora.experiments.recording import (
    Quantity,
    Recording,
    source_of,
    write_recording,
)
from minilora.lab.decoder import DecoderConfig
from minilora.lab.measuring import peak_bytes, saved_bytes, take_turns, watch
from minilora.lab.predicting import FLOOR, FULL, LORA, LORA_QV, QLORA, Step, model_bytes
from minilora.lab.provenance import commit, device_name, now, versions
from minilora.lab.sweep import Cell, grid, sweep
from minilora.lab.training import fit, one_thread, set_seed
from minilora.lab.transformer import BLOCK_LINEARS, TransformerClassifier, TransformerConfig


@dataclass(frozen=True)
class Profile:
    """The size of a run.

    Every arm trains a stack of ``size`` on ``sequences`` × ``tokens`` tokens, and is timed
    ``rounds`` times. Full fine-tuning, LoRA and the floor are timed on stacks of several ``widths``
    as well, which are ``narrow`` otherwise, on ``narrow_sequences`` as long as its context. A
    forward pass is timed on one token, and on a whole step's. Small runs, of ``cells_steps`` steps
    each on ``cells_batches`` pictures, are timed one after the other and as one sweep, for each
    number of them in ``cells``.
    """

    name: str
    size: DecoderConfig
    sequences: int
    tokens: int
    dtype: str
    r: int
    rounds: int
    widths: tuple[int, ...]
    narrow: DecoderConfig
    narrow_sequences: int
    narrow_rounds: int
    cells: tuple[int, ...]
    cells_batches: tuple[int, ...]
    cells_steps: int
    peft: bool = False  # whether PEFT takes part, where it is installed


PROFILES = {
    "cpu": Profile(
        name="cpu",
        size=DecoderConfig(width=384, layers=4, heads=6, vocab=4096, context=128),
        sequences=4,
        tokens=128,
        dtype="float32",
        r=8,
        rounds=7,
        widths=(32, 64, 128, 256, 512),
        narrow=DecoderConfig(width=32, layers=4, heads=2, vocab=256, context=64),
        narrow_sequences=4,
        narrow_rounds=7,
        cells=(1, 4, 16),
        cells_batches=(2, 32),
        cells_steps=5,
    ),
    # 1.04 billion parameters.
    "gpu": Profile(
        name="gpu",
        size=DecoderConfig(width=2048, layers=18, heads=16, vocab=32768, context=1024),
        sequences=4,
        tokens=1024,
        dtype="bfloat16",
        r=16,
        rounds=20,
        widths=(128, 256, 512, 1024, 2048, 4096),
        narrow=DecoderConfig(width=128, layers=4, heads=2, vocab=1024, context=1024),
        narrow_sequences=4,
        narrow_rounds=30,
        cells=(1, 4, 16, 64),
        cells_batches=(2, 32),
        cells_steps=10,
        peft=True,
    ),
    # In half precision, so that the code of the gpu profile is run.
    "smoke": Profile(
        name="smoke",
        size=DecoderConfig(width=32, layers=2, heads=2, vocab=400, context=16),
        sequences=2,
        tokens=16,
        dtype="bfloat16",
        r=2,
        rounds=2,
        widths=(16, 32),
        narrow=DecoderConfig(width=16, layers=1, heads=2, vocab=50, context=16),
        narrow_sequences=1,
        narrow_rounds=2,
        cells=(1, 2),
        cells_batches=(2, 3),
        cells_steps=1,
    ),
}


def arms(profile: Profile) -> list[Arm]:
    """Every way to train that is weighed and timed."""
    r, half = profile.r, profile.dtype != "float32"
    lora, textbook = replace(LORA, r=r), replace(LORA, r=r, textbook=True)
    found = [
        Arm("full", "full", FULL),
        Arm("LoRA", "lora", lora),
        Arm("LoRA on Q, V", "lora", replace(LORA_QV, r=r)),
        Arm("QLoRA", "lora", replace(QLORA, r=r)),
        Arm("LoRA, textbook form", "lora", textbook),
        Arm("floor", "floor", FLOOR),
        Arm("full, checkpointing", "full", FULL, checkpointing=True),
        Arm("LoRA, checkpointing", "lora", lora, checkpointing=True),
    ]
    if half:
        found.append(Arm("full, master weights", "full", replace(FULL, masters=True)))
        if profile.peft and HAS_PEFT:
            found.append(Arm("LoRA by PEFT", "lora", textbook, peft=True))
    return found


def weigh(training: Training, start: int) -> dict[str, tuple[str, float, float | None]]:
    """{what: (unit, measured, predicted)} of one training step.

    ``start`` are the bytes that the card held before the model was made.
    """
    model, step = training.model, training.predicted
    expected, cuda = step.bytes(), training.device == "cuda"
    for _ in range(2 if cuda else 1):  # the optimizer makes its state in the first step
        training.step()
    weights, state = model_bytes(model).weights, training.optimizer_bytes()
    seen = watch(training.step)
    peak = weights + state + seen.peak
    if cuda:
        peak = torch.cuda.memory_allocated() - start + peak_bytes(training.step, "cuda")
    kept = saved_bytes(training.loss, model)
    training.backward()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    model.zero_grad()
    return {
        "weights": ("bytes", weights, expected.weights),
        "gradients": ("bytes", gradients, expected.gradients),
        "optimizer": ("bytes", state, expected.optimizer),
        "activations": ("bytes", kept, expected.activations + expected.logits),
        "peak": ("bytes", peak, step.peak()),
        "flops": ("flops", seen.flops, None if step.checkpointing else step.flops()),
        "calls": ("calls", seen.calls, None),
    }


def run(
    profile: str | Profile = "cpu",
    *,
    jobs: int | None = None,
    device: str | None = None,
    out: Path | str | None = None,
    progress: bool = False,
) -> Recording:
    """Run the whole experiment; with ``out``, leave ``memory.PROFILE.json`` in that folder.

    The gpu profile needs a CUDA card; the others run on the CPU unless told otherwise. ``jobs`` is
    there for the command line: runs that are timed do not share the machine.
    """
    size = PROFILES[profile] if isinstance(profile, str) else profile
    device = device or ("cuda" if size.name == "gpu" else "cpu")
    started = time.perf_counter()
    found: list[Quantity] = []
    with attention_without_tables(device):
        for part in (
            bytes_of_arms,
            seconds_of_arms,
            seconds_of_widths,
            seconds_of_inference,
            seconds_of_cells,
        ):
            found += part(size, device)
            if progress:
                spent = time.perf_counter() - started
                print(f"memory: {part.__name__}, {spent:.0f} s", file=sys.stderr, flush=True)
    peaks = [int(one.measured) for one in found if one.what == "peak"]
    recording = Recording(
        name="memory",
        profile=size.name,
        settings=asdict(size),
        rows=[],
        source=source_of("memory"),
        device=device_name(torch.device(device)),
        versions=versions() | ({"peft": version("peft")} if size.peft and HAS_PEFT else {}),
        date=now(),
        commit=commit(),
        seconds=time.perf_counter() - started,
        peak_bytes=max(peaks),
        quantities=found,
    )
    if out is not None:
        write_recording(recording, out)
    return recording


def attention_without_tables(device: str) -> AbstractContextManager[Any]:
    """Keep CUDA to the two forms of attention that save no table of T × T, and what they save."""
    if device != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])


def make(arm: Arm, profile: Profile, device: str) -> Training:
    """The arm at the profile's size."""
    dtype = getattr(torch, profile.dtype)
    return Training(arm, profile.size, profile.sequences, profile.tokens, dtype, device)


def steps(profile: Profile, device: str) -> dict[str, Step]:
    """{arm: the step whose bytes and operations are predicted}."""
    size, work = profile.size, (profile.sequences, profile.tokens)
    dtype = getattr(torch, profile.dtype)
    return {
        arm.name: Step(size, arm.method, *work, dtype, arm.checkpointing, device)
        for arm in arms(profile)
    }


def bytes_of_arms(profile: Profile, device: str) -> list[Quantity]:
    """What every arm holds, and how much arithmetic and how many calls a step is."""
    if device == "cuda":  # libraries take their workspace at the first product, and keep it
        small = PROFILES["smoke"]
        for arm in arms(replace(small, dtype=profile.dtype)):
            make(arm, replace(small, dtype=profile.dtype), device).step()
    found = []
    for arm in arms(profile):
        start = held_on_card(device)
        seen = weigh(make(arm, profile, device), start)
        for what, (unit, measured, predicted) in seen.items():
            width = profile.size.width
            found.append(Quantity(arm.name, arm.kind, what, width, 0, unit, measured, predicted))
    return found


def held_on_card(device: str) -> int:
    """Bytes allocated on the card once everything that can be freed is."""
    gc.collect()
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def seconds_of_arms(profile: Profile, device: str) -> list[Quantity]:
    """Seconds of a step of every arm."""
    compared, width = arms(profile), profile.size.width
    groups = [[arm] for arm in compared] if device == "cuda" else [compared]
    found = []
    for group in groups:
        held_on_card(device)
        trainings = [make(arm, profile, device) for arm in group]
        found += timed(trainings, "step", width, profile.rounds, device)
        del trainings  # before the next are made
    return found


def timed(
    trainings: list[Training], what: str, size: int, rounds: int, device: str
) -> list[Quantity]:
    """The seconds of the steps of some trainings that take turns."""
    runs = {one.arm.name: one.step for one in trainings}
    kinds = {one.arm.name: one.arm.kind for one in trainings}
    return in_turn(runs, kinds, what, size, rounds, device)


def in_turn(
    runs: dict[str, Callable[[], Any]],
    kinds: dict[str, str],
    what: str,
    size: int,
    rounds: int,
    device: str,
) -> list[Quantity]:
    """The seconds of some runs that take turns."""
    spent = take_turns(runs, rounds, device, warm_ups=1 if device == "cpu" else 3)
    return [
        Quantity(name, kinds[name], what, size, repeat, "seconds", seconds)
        for name, values in spent.items()
        for repeat, seconds in enumerate(values)
    ]


def seconds_of_widths(profile: Profile, device: str) -> list[Quantity]:
    """Full fine-tuning, LoRA and the floor, on stacks from narrow to wide."""
    dtype = getattr(torch, profile.dtype)
    work = profile.narrow_sequences, profile.narrow.context, dtype, device
    compared = [arm for arm in arms(profile) if arm.name in ("full", "LoRA", "floor")]
    found = []
    for width in profile.widths:
        size = replace(profile.narrow, width=width, heads=max(1, width // 64))
        held_on_card(device)
        trainings = [Training(arm, size, *work) for arm in compared]
        # A step of a narrow stack is over at once, and a disturbance shows.
        rounds = profile.narrow_rounds * max(1, 128 // width)
        found += timed(trainings, "narrow step", width, rounds, device)
        for one in trainings:
            seen, arm = watch(one.step), one.arm
            for unit, measured, predicted in (
                ("flops", seen.flops, one.predicted.flops()),
                ("calls", seen.calls, None),
            ):
                what = f"narrow {unit}"
                found.append(
                    Quantity(arm.name, arm.kind, what, width, 0, unit, measured, predicted)
                )
        del trainings, one
    return found


def seconds_of_inference(profile: Profile, device: str) -> list[Quantity]:
    """The forward pass of the base, of the adapted model and of the merged one."""
    arm = next(arm for arm in arms(profile) if arm.name == "LoRA")
    held_on_card(device)
    adapted = make(arm, profile, device).model
    base = make(replace(arm, kind="floor", method=FLOOR), profile, device).model
    merged = minilora.merge(make(arm, profile, device).model, keep_base=False)
    models = {"base": base, "LoRA": adapted, "LoRA, merged": merged}
    kinds = {"base": "base", "LoRA": "lora", "LoRA, merged": "lora"}
    found = []
    for ids in (torch.zeros(1, 1), torch.zeros(profile.sequences, profile.tokens)):
        ids = ids.long().to(device)
        runs = {name: forward_of(model.eval(), ids) for name, model in models.items()}
        found += in_turn(runs, kinds, "forward", ids.numel(), profile.narrow_rounds, device)
    return found


def forward_of(model: nn.Module, ids: Tensor) -> Callable[[], Any]:
    """A forward pass without gradients."""

    def forward() -> None:
        with torch.inference_mode():
            model(ids)

    return forward


def seconds_of_cells(profile: Profile, device: str) -> list[Quantity]:
    """Several small runs over one base: one after the other, and in one pass of a sweep."""
    held_on_card(device)
    # The size of the transformers that the other experiments adapt; time does not depend on data.
    base = TransformerClassifier(TransformerConfig(image_size=(8, 16), patch_size=4)).to(device)
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(320, 1, 8, 16, generator=generator), torch.arange(320) % 10
    config = LoRAConfig(r=profile.r, alpha=8, targets=list(BLOCK_LINEARS))
    found = []
    for batch, count in product(profile.cells_batches, profile.cells):
        cells = grid(config, lr=[1e-3], seed=range(count))
        settings: dict[str, Any] = {
            "steps": profile.cells_steps,
            "batch_size": batch,
            "progress": False,
        }
        runs: dict[str, Callable[[], Any]] = {
            "one by one": partial(one_by_one, base, cells, data, **settings),
            "in one pass": partial(sweep, base, cells, data, at_once=count, **settings),
        }
        with one_thread():
            kinds = dict.fromkeys(runs, "lora")
            found += in_turn(runs, kinds, f"runs of {batch} a step", count, 3, device)
    return found


def one_by_one(
    base: TransformerClassifier,
    cells: Sequence[Cell],
    data: tuple[Tensor, Tensor],
    **settings: Any,
) -> None:
    """Train each cell by itself, as one would without `minilora.lab.sweep`."""
    for cell in cells:
        model = copy.deepcopy(base)
        set_seed(cell.seed)
        minilora.add_lora(model, cell.config)
        device = next(base.parameters()).device
        fit(model, *data, lr=cell.lr, seed=cell.seed, device=device, **settings)


# --- reading a recording --------------------------------------------------------------------


def quantities(
    recording: Recording, what: str, arm: str | None = None, size: int | None = None
) -> list[Quantity]:
    """The measurements of one thing; ValueError where there is none."""
    found = [
        one
        for one in recording.quantities
        if one.what == what and arm in (None, one.arm) and size in (None, one.size)
    ]
    if not found:
        known = sorted({(one.what, one.arm) for one in recording.quantities})
        raise ValueError(f"no {what!r} of {arm!r} at {size}; there are {known}")
    return found


def ratios(recording: Recording, what: str, arm: str, other: str, size: int) -> list[float]:
    """Seconds of ``arm`` ÷ seconds of ``other``, round by round, at one size."""
    pair = [quantities(recording, what, one, size) for one in (arm, other)]
    return [a.measured / b.measured for a, b in zip(*pair, strict=True)]


def table(recording: Recording) -> str:
    """A line for each arm: the peak, predicted and measured, in GiB, and the time of a step."""
    width = int(recording.settings["size"]["width"])
    names = list(dict.fromkeys(one.arm for one in quantities(recording, "peak")))
    lines = [f"{'':<22}{'predicted':>11}{'measured':>10}  GiB {'seconds':>10}{'÷ full':>9}"]
    for name in names:
        (peak,) = quantities(recording, "peak", name)
        seconds = [one.measured for one in quantities(recording, "step", name)]
        share = median(ratios(recording, "step", name, "full", width))
        lines.append(
            f"{name:<22}{(peak.predicted or 0) / 2**30:>11.3f}{peak.measured / 2**30:>10.3f}"
            f"{median(seconds):>15.3f}{share:>9.2f}"
        )
    return "\n".join(lines)
