"""Speed and memory of minilora beside PEFT, loralib and full fine-tuning: ``make bench``.

It prints tables and judges nothing: a figure depends on the machine and on what else runs there.
All arms of a table do the same work and take turns. A ratio is the median of the ratios within
the rounds; behind it stands the range from the first quartile to the third. One section alone,
with threads that sleep while they wait, as ``make`` has them:

    OMP_WAIT_POLICY=PASSIVE python tests/bench/bench.py --section step --repeats 25
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import bench_arms as arms
import torch
from bench_measure import (
    MIB,
    Clock,
    aim,
    alternate,
    milliseconds,
    peak_bytes,
    ratios,
    show,
    spread,
    timed,
)
from bench_sweep import sweeps
from bench_tools import tools
from torch import Tensor, nn

import minilora
from minilora.lab.measuring import saved_bytes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# (arm, other arm, at most so many times as long)
AIMS = [
    (arms.MINI, arms.FLOOR, 1.20),
    (arms.MINI, arms.PEFT, 0.88),
    (arms.MINI_DROPOUT, arms.PEFT_DROPOUT, 0.88),
]
FEW = 5  # rounds of the sections whose runs change a model and need a fresh one each


def step(size: arms.Size, device: str, repeats: int, clock: Clock, fused: bool) -> None:
    """A training step in every arm, and the memory that it takes."""
    # The arms with dropout need more memory, and what they leave allocated would spare the others
    # page faults that they have when they run by themselves. Hence last, and in tables apart.
    for group, peft_arm in ((arms.ARMS, arms.PEFT), (arms.DROPOUT_ARMS, arms.PEFT_DROPOUT)):
        for dtype in DTYPES:
            base, x = stack_and_input(size, device, dtype)
            models = {arm: arms.build(arm, base, size) for arm in arms.available(group)}
            steps = {arm: arms.training_step(arm, m, x, fused) for arm, m in models.items()}
            times = alternate(steps, repeats, device, clock=clock)
            x.requires_grad_()
            others = [arm for arm in (arms.FLOOR, arms.FULL, peft_arm) if arm in models]
            header = ["arm", "ms", *(f"× {arm}" for arm in others), "saved MiB", "state MiB"]
            rows = []
            for arm, model in models.items():
                kept = saved_bytes(partial(arms.forward, arm, model, x), model)
                # A gradient and AdamW's two moments for every parameter that is trained.
                state = 3 * sum(p.numel() * p.element_size() for p in arms.trained(model))
                counts = [kept, state]
                if device == "cuda":
                    counts.append(peak_bytes(steps[arm]))
                compared = [spread(ratios(times, arm, other)) for other in others]
                megabytes = [f"{count / MIB:.1f}" for count in counts]
                rows.append([arm, milliseconds(times[arm]), *compared, *megabytes])
            if device == "cuda":
                header.append("peak MiB")
            adamw = "fused AdamW" if fused else "AdamW"
            show(
                f"step: forward, backward and {adamw} on {device}, {dtype} base: "
                f"{size.blocks} blocks, x {size.batch}×{size.tokens}×{size.width}, r={size.r}",
                header,
                rows,
            )
            for arm, other, limit in AIMS:
                if arm in models and other in models:
                    aim(f"{arm} / {other}", statistics.median(ratios(times, arm, other)), limit)


def wrap(size: arms.Size, repeats: int) -> None:
    """Seconds to put adapters on a model of many linear layers, and to take them off again."""
    base = arms.many_linears(size)
    ways: dict[str, tuple[Callable[..., nn.Module], Callable[..., object] | None]] = {
        "a bare loop": (arms.add_bare, None),
        "minilora": (arms.add_minilora, minilora.remove_lora),
    }
    if arms.HAS_PEFT:
        ways["PEFT"] = (arms.add_peft, arms.unload_peft)
    adding: dict[str, list[float]] = {name: [] for name in ways}
    removing: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1 + min(repeats, FEW)):
        for name, (add, remove) in ways.items():
            seconds, model = timed(partial(add, copy.deepcopy(base), size))
            if turn:  # the first round warms up
                adding[name].append(seconds)
            if turn and remove is not None:
                removing[name].append(timed(partial(remove, model))[0])
    rows = [
        [name, milliseconds(adding[name]), milliseconds(removing[name]) if removing[name] else "–"]
        for name in ways
    ]
    count = sum(isinstance(module, nn.Linear) for module in base.modules())
    show(f"wrap: {count:,} linear layers", ["how", "add, ms", "remove, ms"], rows)
    aim("minilora, seconds to add", statistics.median(adding["minilora"]), 0.1)


def saved(size: arms.Size, device: str) -> None:
    """Bytes that autograd keeps for the backward pass of linear layers on one shared x."""
    shape = size.batch * size.tokens, size.width
    everything = arms.available(arms.ARMS + arms.DROPOUT_ARMS[1:])  # both begin with the floor
    groups = {"one Linear": arms.NAMES[:1], "q, k, v": arms.NAMES[:3]}
    for dtype in DTYPES:
        x = torch.randn(shape, device=device, dtype=DTYPES[dtype], requires_grad=True)
        bytes_of_x = x.numel() * x.element_size()
        kept: dict[tuple[str, str], int] = {}
        for title, names in groups.items():
            base = arms.Side(size.width, names).to(device, DTYPES[dtype])
            for arm in everything:
                model = arms.build(arm, base, size, names)
                kept[arm, title] = saved_bytes(partial(arms.forward, arm, model, x), model)
        rows = [
            [arm, *(cell for t in groups for cell in in_copies(kept[arm, t], bytes_of_x))]
            for arm in everything
        ]
        show(
            f"saved for the backward pass on {device}, {dtype} base: "
            f"x {shape[0]}×{shape[1]} = {bytes_of_x:,} bytes",
            ["arm", *(cell for title in groups for cell in (f"{title}, bytes", "copies of x"))],
            rows,
        )
        # Beside x: for every layer the (N, r) product and, in x's type, A and B.
        narrow = size.r * (shape[0] + 2 * shape[1]) * x.element_size()
        limit = 1 + len(groups["q, k, v"]) * narrow / bytes_of_x
        aim("minilora on q, k, v, copies of x", kept[arms.MINI, "q, k, v"] / bytes_of_x, limit)


def in_copies(kept: int, bytes_of_x: int) -> tuple[str, str]:
    return f"{kept:,}", f"{kept / bytes_of_x:.2f}"


def inference(size: arms.Size, device: str, repeats: int, clock: Clock) -> None:
    """The forward pass of the base, of the adapted model, and of the merged one."""
    for dtype in DTYPES:
        base, _ = stack_and_input(size, device, dtype)
        adapted = arms.build(arms.MINI, base, size)
        with torch.no_grad():
            for parameter in minilora.lora_parameters(adapted):
                parameter.normal_(std=0.02)
        models = {
            "base": base,
            "minilora": adapted,
            "minilora, merged": minilora.merge(copy.deepcopy(adapted)),
            "minilora, removed": minilora.remove_lora(copy.deepcopy(adapted), keep_update=True),
        }
        if arms.HAS_PEFT:
            models["PEFT"] = arms.build(arms.PEFT, base, size)
            models["PEFT, merged"] = arms.merge_peft(arms.build(arms.PEFT, base, size))
        header, rows, aims = ["model"], [[name] for name in models], []
        for batch, tokens, calls in (
            (1, 1, 20),
            (1, size.tokens, 4),
            (size.batch, size.tokens, 1),
        ):
            x = torch.randn(batch, tokens, size.width, device=device, dtype=DTYPES[dtype])
            runs = {name: partial(model.eval(), x) for name, model in models.items()}
            with torch.inference_mode():
                times = alternate(runs, repeats, device, calls=calls, clock=clock)
            header += [f"{batch}×{tokens}, ms", "× base"]
            for row in rows:
                row += [milliseconds(times[row[0]]), spread(ratios(times, row[0], "base"))]
            ratio = statistics.median(ratios(times, "minilora, merged", "base"))
            aims.append((f"merged / base, {batch}×{tokens}", ratio))
        show(f"inference on {device}, {dtype}, width {size.width}", header, rows)
        for what, ratio in aims:
            aim(what, ratio, 1.02)


def files(size: arms.Size, repeats: int) -> None:
    """Seconds to save the adapter of ``step``'s model, and to load it onto a fresh base."""
    base, _ = stack_and_input(size, "cpu", "float32")
    ways: dict[str, tuple[nn.Module, Callable[..., object], Callable[..., object]]] = {
        "minilora": (arms.build(arms.MINI, base, size), minilora.save, minilora.load)
    }
    if arms.HAS_PEFT:
        ways["PEFT"] = (arms.build(arms.PEFT, base, size), arms.save_peft, arms.load_peft)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(1 + min(repeats, FEW)):
            for name, (model, save, load) in ways.items():
                there = Path(folder, name, str(turn))
                saving, _ = timed(partial(save, model, there))
                loading, _ = timed(partial(load, copy.deepcopy(base), there))
                times[name].append((saving, loading))
    rows = [[name, *map(milliseconds, zip(*times[name][1:]))] for name in ways]
    show("files: the adapter of step's model", ["how", "save, ms", "load, ms"], rows)


def stack_and_input(size: arms.Size, device: str, dtype: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    base = arms.stack(size).to(device, DTYPES[dtype])
    return base, torch.randn(size.batch, size.tokens, size.width).to(device, DTYPES[dtype])


SECTIONS = ("step", "wrap", "saved", "inference", "files", "sweeps", "tools")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print the tables that it asks for."""
    parser = argparse.ArgumentParser(description="Speed and memory of minilora, in tables.")
    parser.add_argument("--section", choices=[*SECTIONS, "all"], default="all")
    parser.add_argument("--repeats", type=int, default=15, help="rounds that count (15)")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (2)")
    parser.add_argument("--device", choices=["cpu", "cuda", "auto"], default="auto")
    parser.add_argument(
        "--clock",
        choices=["wall", "process"],
        default="wall",
        help=(
            "process counts the CPU seconds of this process alone, for step and inference on a "
            "busy machine; use one thread, and OMP_WAIT_POLICY=PASSIVE, so that waiting is free"
        ),
    )
    parser.add_argument("--width", type=int, help=f"of the stack ({arms.Size.width})")
    parser.add_argument("--tokens", type=int, help=f"in a sequence ({arms.Size.tokens})")
    parser.add_argument("--fused", action="store_true", help="AdamW in its fused form")
    parser.add_argument("--quick", action="store_true", help="toy size: does everything run?")
    options = parser.parse_args(arguments)
    if options.repeats < 1 or options.threads < 1:
        parser.error("--repeats and --threads must be at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; use --device cpu")

    size = arms.TOY if options.quick else arms.Size()
    size = replace(size, width=options.width or size.width, tokens=options.tokens or size.tokens)
    repeats = min(options.repeats, 2) if options.quick else options.repeats
    wanted = SECTIONS if options.section == "all" else (options.section,)
    devices = ["cpu", "cuda"] if options.device == "auto" else [options.device]
    if options.device == "auto" and not torch.cuda.is_available():
        devices.remove("cuda")
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # numbers near zero can slow a CPU down twentyfold
    warnings.simplefilter("ignore", UserWarning)

    print(describe(devices, options.clock))
    print("A and B are float32 on a bfloat16 base, except loralib's, which are bfloat16.")
    if options.quick:
        print("Toy size: the figures say nothing.")
    for device in devices:
        use_process = options.clock == "process" and device == "cpu"  # which knows of no GPU
        clock = time.process_time if use_process else time.perf_counter
        if "step" in wanted:
            step(size, device, repeats, clock, options.fused)
        if "saved" in wanted:
            saved(size, device)
        if "inference" in wanted:
            inference(size, device, repeats, clock)
        if "sweeps" in wanted:
            sweeps(device, min(repeats, FEW), options.threads, options.quick)
    if "wrap" in wanted:
        wrap(size, repeats)
    if "files" in wanted:
        files(size, repeats)
    if "tools" in wanted:
        tools(repeats, options.quick)


def describe(devices: Sequence[str], clock: str) -> str:
    """One line: devices, versions, threads, clock, and how busy the machine was before."""
    names = [f"cpu ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)"]
    names += [torch.cuda.get_device_name()] if "cuda" in devices else []
    # torch's own word also names its build, which its distribution's version may leave out.
    there = {"peft": arms.HAS_PEFT, "loralib": arms.HAS_LORALIB}
    versions = [f"torch {torch.__version__}"]
    versions += [f"{library} {version(library)}" for library, found in there.items() if found]
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    return " · ".join([*names, *versions, f"{clock} clock", load])


if __name__ == "__main__":
    main()
