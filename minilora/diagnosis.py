"""Sentences about an adapter: what is broken, what is worth a warning, what is worth knowing.

Each finding has a level. *broken*: it cannot work as it was meant, or does nothing. *warning*: it
works, and something is probably not as you think. *note*: worth knowing before you use it.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from minilora.bases import Base
from minilora.stored import UNREAD, StoredAdapter, layer_number

LEVELS = ("broken", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """A sentence. ``code`` names its kind, for programs; ``level`` is one of ``LEVELS``."""

    level: str
    code: str
    text: str


def broken(code: str, text: str) -> Finding:
    return Finding("broken", code, text)


@dataclass(frozen=True)
class Reading:
    """What was measured of one layer.

    Attributes:
        norm: ‖ΔW‖ in Frobenius norm; NaN where the factors hold NaN or infinity.
        effective: The effective rank of ΔW. ``r90``, ``r99``: how many directions hold that share
            of its sum of squares. ``values``: its singular values, of all experts together.
        rms_A: Root mean square of A's numbers. ``rms_B``: of B's.
        weight_norm: ‖W₀‖, where the base was given. ``lost_in_bf16``: share of ΔW that is rounded
            away when it is merged in bfloat16.
        intruders: Of the ten leading directions, how many the base has not; and
            ``intruders_of_chance``, with a random update that has the same singular values.
    """

    path: str
    kind: str
    shape: tuple[int, int]
    r: int
    scale: float
    dtype: str
    parameters: int
    experts: int
    rms_A: float
    rms_B: float
    norm: float
    effective: float
    r90: int
    r99: int
    values: tuple[float, ...]
    weight_norm: float | None = None
    lost_in_bf16: float | None = None
    intruders: int | None = None
    intruders_of_chance: int | None = None

    @property
    def relative(self) -> float | None:
        """‖ΔW‖ / ‖W₀‖, or None without the base."""
        return self.norm / self.weight_norm if self.weight_norm else None


def findings(
    adapter: StoredAdapter, readings: Sequence[Reading], base: Base | None
) -> list[Finding]:
    """Everything there is to say about an adapter, what is broken first."""
    said = [
        *(broken("config", f"{_sentence(fault)}.") for fault in adapter.faults),
        *_numbers(readings),
        *_training(readings),
        *_keys(adapter),
        *_gaps(readings),
        *_factor(adapter, readings),
        *_strength(readings),
        *_spare_rank(readings),
        *_merging(readings),
        *_new_directions(readings),
        *_rest(adapter),
        *_settings(adapter, base),
    ]
    if not any(finding.level == "broken" for finding in said):
        what = "Nothing is broken" if any(f.level == "warning" for f in said) else "It looks sound"
        end = "" if base else "; with --base, more can be said"
        said.append(Finding("note", "sound", f"{what}{end}."))
    return sorted(said, key=lambda finding: LEVELS.index(finding.level))


def _sentence(text: str) -> str:
    """A fault as a sentence: names of files, settings and modules keep their letters."""
    return (text[:1].upper() + text[1:] if text.startswith("the ") else text).rstrip(".")


def shown(text: str) -> str:
    """Text for a terminal: names in a file may be anything, and what would steer it is shown."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def some(paths: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    paths = list(paths)
    rest = len(paths) - most
    return ", ".join(paths[:most]) + (f" and {rest} more" if rest > 0 else "")


# --- broken ---------------------------------------------------------------------------------


def _numbers(readings: Sequence[Reading]) -> Iterator[Finding]:
    bad = [reading.path for reading in readings if math.isnan(reading.norm)]
    if bad:
        yield broken(
            "not-finite",
            f"{len(bad)} of {len(readings)} layers hold NaN or infinity ({some(bad)}): training "
            "diverged. Train again at a lower rate, or take an earlier checkpoint.",
        )


def _training(readings: Sequence[Reading]) -> Iterator[Finding]:
    """Which layers never moved, and whether B is far from what training would make it."""
    sound = [reading for reading in readings if not math.isnan(reading.norm)]
    idle = [reading for reading in sound if reading.norm == 0]
    if sound and len(idle) == len(sound):
        zero = "B" if any(reading.rms_A for reading in sound) else "A, and B with it,"
        if sound[0].kind == "embedding":
            zero = "one of the factors"
        yield broken(
            "never-trained",
            f"{zero} is zero in every layer, so the adapter changes nothing: it was never trained, "
            "or saved before training, or the optimizer did not hold its parameters.",
        )
    elif idle:
        live = len(sound) - len(idle)
        yield Finding(
            "warning",
            "partly-trained",
            f"Only {live} of {len(sound)} layers were trained; B is zero in "
            f"{some(_grouped(r.path for r in idle))}. These layers had no gradient, were never "
            "called, or were left out of the optimizer.",
        )
    moved = [r for r in sound if r.norm > 0 and r.kind != "embedding"]
    timid = [r for r in moved if r.rms_B < 0.01 * r.rms_A]
    if moved and len(timid) > len(moved) / 2:
        ratio = statistics.median(r.rms_B / r.rms_A for r in timid)
        yield Finding(
            "warning",
            "hardly-trained",
            f"B has hardly left zero: its numbers are {ratio:.1g} times the size of A's in the "
            f"median. Training took few steps, or its rate was far too low.",
        )


def _keys(adapter: StoredAdapter) -> Iterator[Finding]:
    if adapter.odd_keys:
        yield broken("keys", f"{adapter.odd_keys}.")


# --- warnings -------------------------------------------------------------------------------


def _grouped(paths: Iterable[str]) -> list[str]:
    """Paths with runs of block numbers drawn together: ``layers.{0-3,7}.q_proj``."""
    kinds: dict[str, list[int]] = defaultdict(list)
    plain: list[str] = []
    for path in paths:
        number = layer_number(path)
        if number is None:
            plain.append(path)
        else:
            kinds[re.sub(r"(^|\.)\d+(\.|$)", r"\1{}\2", path, count=1)].append(number)
    return plain + [name.replace("{}", _runs(numbers)) for name, numbers in kinds.items()]


def _runs(numbers: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
    return text if len(runs) == 1 and runs[0][0] == runs[0][1] else f"{{{text}}}"


def _gaps(readings: Sequence[Reading]) -> Iterator[Finding]:
    """Kinds of layer that some blocks lack and most have."""
    kinds: dict[str, set[int]] = defaultdict(set)
    for reading in readings:
        number = layer_number(reading.path)
        if number is not None:
            kinds[re.sub(r"(^|\.)\d+(\.|$)", r"\1{}\2", reading.path, count=1)].add(number)
    every = set().union(*kinds.values()) if kinds else set()
    for kind, numbers in kinds.items():
        missing = every - numbers
        if missing and len(missing) <= len(every) / 2 and len(every) > 2:
            yield Finding(
                "warning",
                "gap",
                f"{kind.replace('{}', '*')} is adapted in {len(numbers)} of {len(every)} blocks, "
                f"not in {_runs(missing).strip('{}')}. Was that meant, or is part "
                "of the file lost?",
            )


def _strength(readings: Sequence[Reading]) -> Iterator[Finding]:
    norms = [r.norm for r in readings if r.norm > 0]
    if len(norms) > 3:
        usual = statistics.median(norms)
        wild = [r for r in readings if r.norm > 20 * usual]
        if wild:
            yield Finding(
                "warning",
                "outlier",
                f"The update of {some(r.path for r in wild)} is {wild[0].norm / usual:.0f} times "
                "as large as the median layer's: training was unstable there, or a weight was "
                "overwritten.",
            )
    relative = [r for r in readings if r.relative is not None and r.norm > 0]
    strong = [r for r in relative if (r.relative or 0) > 1]
    if len(strong) > len(relative) / 2 or any((r.relative or 0) > 5 for r in strong):
        worst = max(strong, key=lambda r: r.relative or 0)
        yield Finding(
            "warning",
            "too-strong",
            f"In {len(strong)} of {len(relative)} layers the update is larger than the weight "
            f"itself (up to {worst.relative:.1f} times, {worst.path}): the rate was too high, or "
            "the base is another one.",
        )
    weak = [r for r in relative if (r.relative or 0) < 1e-5]
    if relative and len(weak) == len(relative):
        yield Finding(
            "warning",
            "too-weak",
            "The update is smaller than a hundred-thousandth of the weight in every layer: it "
            "will hardly show.",
        )


def _merging(readings: Sequence[Reading]) -> Iterator[Finding]:
    known = [r for r in readings if r.lost_in_bf16 is not None]
    lost = [r for r in known if (r.lost_in_bf16 or 0) > 0.5]
    if lost:
        worst = max(r.lost_in_bf16 or 0 for r in lost)
        yield Finding(
            "warning",
            "rounded-away",
            f"Merged into a base in bfloat16, more than half of the update would be rounded away "
            f"in {len(lost)} of {len(known)} layers (up to {min(worst, 1):.0%}). Keep it unmerged, "
            "or merge into float32 weights.",
        )


# --- notes ----------------------------------------------------------------------------------


def _factor(adapter: StoredAdapter, readings: Sequence[Reading]) -> Iterator[Finding]:
    """What other readings of α would make of it."""
    if adapter.config is None or not readings:
        return
    r, alpha = adapter.config.r, adapter.config.alpha
    patterns = [n for n in ("rank_pattern", "alpha_pattern") if adapter.settings.get(n)]
    if not patterns and adapter.config.scaling == "rslora" and r > 1:
        yield Finding(
            "note",
            "factor",
            f"use_rslora multiplies the update by alpha / √r = {alpha / r**0.5:.3g}; a program "
            f"that ignores that setting would make it {r**0.5:.3g} times weaker.",
        )
    scales = {reading.scale for reading in readings}
    if patterns and len(scales) > 1:
        yield Finding(
            "note",
            "patterns",
            "The layers have different factors, by "
            + " and ".join(
                [*patterns, "use_rslora"] if adapter.settings.get("use_rslora") else patterns
            )
            + "; a program that ignores such a setting computes something else. minilora resize "
            "--energy 1 writes one factor for all.",
        )


def _spare_rank(readings: Sequence[Reading]) -> Iterator[Finding]:
    live = [r for r in readings if r.norm > 0]
    if not live:
        return
    r = statistics.median_low(reading.r for reading in live)
    held = statistics.median_high(reading.r99 for reading in live)
    if r >= 4 and held <= r / 2:
        kept = sum(x.r99 * sum(x.shape) for x in live) / sum(x.r * sum(x.shape) for x in live)
        yield Finding(
            "note",
            "spare-rank",
            f"Of rank {r:g}, {held:g} directions hold 99% of the update's sum of squares in the "
            f"median layer: minilora resize --energy 0.99 would keep {kept:.0%} of the numbers. "
            "Measure before you trust it: what the task needs is not what is large.",
        )


def _new_directions(readings: Sequence[Reading]) -> Iterator[Finding]:
    looked = [r for r in readings if r.intruders is not None]
    if looked:
        count = sum(r.intruders or 0 for r in looked)
        chance = sum(r.intruders_of_chance or 0 for r in looked)
        more = count > 1.2 * chance + len(looked) / 2
        what = "more than its size alone explains" if more else "what its size alone explains"
        yield Finding(
            "note",
            "intruders",
            f"Of the {10 * len(looked)} leading directions after merging, {count} are none of the "
            f"base's (intruders: every cosine below 0.6), and {chance} would be with a random "
            f"update of the same singular values: {what}.",
        )


def _rest(adapter: StoredAdapter) -> Iterator[Finding]:
    """Tensors that are no factors, where they are many bytes."""
    sizes = {key: adapter.tensors.stored[key].size for key in adapter.others}
    rest = sum(sizes.values())
    whole = sum(stored.size for stored in adapter.tensors.stored.values())
    if sizes and rest > whole / 2:
        largest = max(sizes, key=lambda key: sizes[key])
        yield Finding(
            "note",
            "whole-tensors",
            f"{rest / whole:.0%} of the numbers are no factors but {len(sizes)} whole tensors; the "
            f"largest is {adapter.others[largest]}. PEFT adds embeddings where the vocabulary was "
            "resized or where they are targets.",
        )


def _settings(adapter: StoredAdapter, base: Base | None) -> Iterator[Finding]:
    settings = adapter.settings
    init = settings.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(
        ("pissa", "olora", "corda", "loftq", "lora_ga")
    ):
        yield Finding(
            "warning",
            "changed-base",
            f"init_lora_weights is {init!r}, which changes the base's weights before training: on "
            "the untouched base these factors are not the update. PEFT can save it converted "
            "(path_initial_model_for_weight_conversion).",
        )
    if settings.get("use_dora"):
        yield Finding(
            "note",
            "dora",
            "DoRA: the table shows the update before its columns get their trained lengths.",
        )
    if settings.get("target_parameters"):
        yield Finding(
            "note",
            "experts",
            "target_parameters adapts the experts of a mixture; many servers do not read it.",
        )
    unread = [name for name in UNREAD if settings.get(name)]
    if unread:
        yield Finding("warning", "unread", f"{some(unread)}: set, and not read by this program.")
    named = str(settings.get("base_model_name_or_path") or "")
    if not named:
        yield Finding("note", "no-base-named", "The config does not name the base model.")
    elif base is not None and Path(named).name != base.folder.resolve().name:
        text = f"The config names {named} as its base; it was read beside {base.folder}."
        yield Finding("note", "other-base", text)
