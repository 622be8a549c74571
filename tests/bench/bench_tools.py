"""The tools on adapter folders: time and memory beside the full SVD and beside PEFT.

Adapters and bases are random numbers in files: what the tools do depends on shapes alone. Each
command runs in a process of its own, whose largest resident memory is the operating system's
figure, with torch and the pages of the files that it has read in it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import bench_arms as arms
import torch
from bench_measure import MIB, alternate, milliseconds, ratios, show, spread, timed
from torch import nn

from minilora.shards import Entry, write_adapter, write_tensors
from minilora.stored import singular_values
from minilora.surgery import add

CHILD = """
import resource, sys, time
start = time.perf_counter()
from minilora.__main__ import main
code = main(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"\\n{code} {time.perf_counter() - start} {peak * (1 if sys.platform == 'darwin' else 1024)}")
"""


@dataclass(frozen=True)
class Shape:
    """A decoder's matrices: LLaMA's seven, of 7 billion parameters unless said otherwise."""

    width: int = 4096
    hidden: int = 11008
    layers: int = 32
    r: int = 64

    def linears(self) -> Iterator[tuple[str, int, int]]:
        """(path, out, in) of every adapted matrix."""
        w, h = self.width, self.hidden
        sizes = {"q_proj": (w, w), "k_proj": (w, w), "v_proj": (w, w), "o_proj": (w, w)}
        sizes |= {"gate_proj": (h, w), "up_proj": (h, w), "down_proj": (w, h)}
        for number in range(self.layers):
            for name, (out, into) in sizes.items():
                yield f"model.layers.{number}.{name}", out, into


def tools(repeats: int, quick: bool) -> None:
    """All tables; ``quick`` at toy size."""
    spectra(Shape(64, 96, 2, 4) if quick else Shape(), min(repeats, 3))
    with tempfile.TemporaryDirectory() as folder:
        commands(Path(folder), Shape(64, 96, 2, 4) if quick else Shape())
    with tempfile.TemporaryDirectory() as folder:
        sums(Path(folder), Shape(64, 96, 2, 4) if quick else Shape(1024, 2752, 8, 16), repeats)


def spectra(shape: Shape, repeats: int) -> None:
    """The singular values of one layer's update, from the factors and from the product."""
    torch.manual_seed(0)
    A, B = torch.randn(shape.r, shape.width), torch.randn(shape.width, shape.r)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "minilora, from the factors": partial(singular_values, A, B),
        "SVD of the product": lambda: torch.linalg.svdvals(B @ A),
    }
    times = alternate(ways, repeats, "cpu", warm_ups=1)
    apart = (ways["minilora, from the factors"]() - list(ways.values())[1]()[: shape.r]).abs().max()
    full = "SVD of the product"
    rows = [[w, milliseconds(times[w]), spread(ratios(times, full, w))] for w in ways]
    show(
        f"tools: spectrum of {shape.width} × {shape.width}, r = {shape.r}",
        ["how", "ms", "speed-up"],
        rows,
    )
    largest = float(ways["minilora, from the factors"]()[0])
    print(f"  largest difference: {float(apart) / largest:.1e} of the largest value")


def commands(folder: Path, shape: Shape) -> None:
    """``inspect`` and ``resize`` on an adapter of that shape, ``merge`` into five eighths of it."""
    adapter, base, part = folder / "adapter", folder / "base", folder / "part"
    below = replace(shape, layers=max(1, shape.layers * 5 // 8))
    _random_adapter(adapter, shape, torch.float32, 0)
    rows = [
        _row(adapter, "inspect", adapter),
        _row(adapter, "resize", adapter, folder / "small", "--rank", "8"),
        _row(adapter, "resize", adapter, folder / "share", "--energy", "0.5"),
    ]
    shutil.rmtree(adapter)
    _random_adapter(part, below, torch.float32, 0)
    _random_base(base, below, torch.float16)
    rows.append(_row(base, "merge", base, part, folder / "merged"))
    show(
        f"tools: {shape.layers * 7} layers of a model of 7 billion parameters' shapes, "
        f"r = {shape.r}; merge: {below.layers * 7}",
        ["command", "files, MiB", "s", "largest memory, MiB"],
        rows,
    )


def _row(read: Path, *words: object) -> list[str]:
    seconds, peak = _child(*map(str, words))
    size = sum(file.stat().st_size for file in read.glob("*.safetensors"))
    what = " ".join(str(word) for word in words if not isinstance(word, Path))
    return [f"minilora {what}", f"{size / MIB:.0f}", f"{seconds:.1f}", f"{peak / MIB:.0f}"]


def _child(*words: str) -> tuple[float, int]:
    done = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True)
    last = done.stdout.splitlines()[-1:]
    if not last or not last[0].startswith("0 "):
        raise RuntimeError(f"minilora {' '.join(words)} failed: {done.stderr[-500:]}")
    _, seconds, peak = last[0].split()
    return float(seconds), int(peak)


def _random_adapter(folder: Path, shape: Shape, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    entries: dict[str, Entry] = {}
    for path, out, into in shape.linears():
        for name, size in (("A", (shape.r, into)), ("B", (out, shape.r))):
            make = partial(_noise, size, generator, dtype)
            entries[f"base_model.model.{path}.lora_{name}.weight"] = Entry(dtype, size, make)
    targets = sorted({path.rpartition(".")[2] for path, _, _ in shape.linears()})
    config = {"peft_type": "LORA", "r": shape.r, "lora_alpha": shape.r, "target_modules": targets}
    write_adapter(folder, config, entries)


def _random_base(folder: Path, shape: Shape, dtype: torch.dtype) -> None:
    """One file, larger than the memory that a merge may take."""
    generator = torch.Generator().manual_seed(9)
    entries = {
        f"{path}.weight": Entry(dtype, (out, into), partial(_noise, (out, into), generator, dtype))
        for path, out, into in shape.linears()
    }
    folder.mkdir()
    with (folder / "model.safetensors").open("xb") as file:
        write_tensors(file, entries, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def _noise(
    size: tuple[int, int], generator: torch.Generator, dtype: torch.dtype
) -> list[torch.Tensor]:
    return [(torch.randn(size, generator=generator) * 0.02).to(dtype)]


# --- sums -----------------------------------------------------------------------------------


def sums(folder: Path, shape: Shape, repeats: int) -> None:
    """The weighted sum of two adapters, from files to a file, beside PEFT on the same files.

    PEFT works on a model that is in memory; building it is not counted.
    """
    for name, seed in (("a", 1), ("b", 2)):
        _random_adapter(folder / name, shape, torch.float32, seed)
    ours = {str(folder / "a"): 0.7, str(folder / "b"): 0.3}
    cases = [("exact", None), ("cut to r", shape.r)]
    rows = []
    for name, rank in cases:
        seconds = [
            timed(partial(add, ours, folder / f"ours{turn}", rank))[0] for turn in range(FEW_TURNS)
        ]
        rows.append([f"minilora, {name}", f"{sorted(seconds)[len(seconds) // 2]:.2f}"])
        if arms.HAS_PEFT:
            rows.append([f"PEFT, {name}", f"{_peft_sum(folder, shape, rank):.2f}"])
    show(
        f"tools: sum of two adapters, {shape.layers * 7} layers of width {shape.width}, "
        f"r = {shape.r}",
        ["how", "s"],
        rows,
    )


FEW_TURNS = 3


def _peft_sum(folder: Path, shape: Shape, rank: int | None) -> float:
    """Seconds to load both adapters, combine them and save the sum."""
    import peft

    model = nn.Module()
    for path, out, into in shape.linears():
        place = model
        *parents, last = path.split(".")
        for part in parents:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        place.add_module(last, nn.Linear(into, out, bias=False))
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.PeftModel.from_pretrained(model, str(folder / "a"), adapter_name="a")
        adapted.load_adapter(str(folder / "b"), adapter_name="b")
        kind = "cat" if rank is None else "svd"
        more = {} if rank is None else {"svd_rank": rank}
        adapted.add_weighted_adapter(["a", "b"], [0.7, 0.3], "both", combination_type=kind, **more)
        adapted.save_pretrained(str(folder / "theirs"), selected_adapters=["both"])
    return time.perf_counter() - start
