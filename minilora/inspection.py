"""What an adapter's folder holds, layer by layer, and in sentences what is wrong with it.

    report = inspect("adapter")            # no model is needed; with base=…, more is said
    print(report)
    report.broken                          # whether anything keeps it from working
    [finding.text for finding in report.findings]

Of each layer's update ΔW = s · B A it gives the Frobenius norm, the effective rank, and how many
directions hold 90 and 99% of the sum of squares. With the base: the norm beside that of the weight,
what merging in bfloat16 would lose, and intruder directions (arXiv 2410.21228) beside those of a
random update with the same singular values.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilora.bases import Base, Tally, merged_blocks, open_base, updated_blocks
from minilora.diagnosis import Finding, Reading, broken, findings, shown
from minilora.folder import CONFIG_FILE, FLOATS, TENSOR_FILE, AdapterError, check_home
from minilora.foreign import ForeignFile, recognise
from minilora.shards import bar
from minilora.stored import StoredAdapter, StoredLayer, open_adapter, singular_values
from minilora.svd import effective_rank, rank_for_share

LEADING, LIMIT = 10, 0.6  # of the leading singular vectors, those below that cosine are intruders
LARGEST = 2**21  # numbers of a weight up to which intruders are looked for unasked


@dataclass(frozen=True)
class Report:
    """What ``inspect`` found. ``str()`` writes it out.

    Attributes:
        place: The folder or file.
        kind: "LoRA", "DoRA", the name of another format, or "unreadable".
        facts: {name: value} of the whole: rank, alpha, factor, layers, parameters, bytes.
        layers: A reading for each layer.
        findings: Sentences, what is broken first.
    """

    place: str
    kind: str
    facts: dict[str, Any]
    layers: tuple[Reading, ...]
    findings: tuple[Finding, ...]

    @property
    def broken(self) -> bool:
        return any(finding.level == "broken" for finding in self.findings)

    @property
    def verdict(self) -> str:
        """The first thing that is wrong, in a line, or that nothing is."""
        first = self.findings[0]
        if first.level == "note":
            return "sound"
        text = first.text if len(first.text) <= 70 else f"{first.text[:69]}…"
        return f"{first.level}: {text}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as numbers, strings, lists and dicts, for JSON: NaN becomes None."""
        whole = {**asdict(self), "broken": self.broken}
        cleaned: dict[str, Any] = _plain(whole)
        return cleaned

    def __str__(self) -> str:
        return self.text()

    def text(self, table: bool = True) -> str:
        """The facts, the table of the layers if wanted, and the sentences."""
        lines = [f"{self.place}: {self.kind}"]
        lines += [f"  {name}: {value}" for name, value in self.facts.items()]
        if self.layers and table:
            lines += ["", *_table(self.layers)]
        lines.append("")
        for finding in self.findings:
            lines += textwrap.wrap(
                f"{finding.level.upper():8} {finding.text}", 100, subsequent_indent=" " * 9,
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
        return "\n".join(map(shown, lines))


def inspect(
    adapter: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    *,
    intruders: bool | None = None,
    progress: bool = False,
) -> Report:
    """Read an adapter's folder and say what it is and what is wrong with it.

    Args:
        adapter: The folder, or a safetensors file of another program.
        base: The base model's folder, or one safetensors file of it.
        intruders: Look for intruder directions, which takes an SVD of each weight. None: in
            weights of up to two million numbers.
        progress: Show a bar.

    Raises:
        AdapterError: There is no such place, or the base does not fit.
    """
    place = Path(adapter)
    check_home(place)
    if not place.exists():
        raise AdapterError(f"{place} does not exist")
    if place.name == TENSOR_FILE and (place.parent / CONFIG_FILE).is_file():
        place = place.parent
    try:
        found = open_adapter(place)
    except AdapterError as error:
        return _unreadable(place, error)
    opened = None if base is None else open_base(Path(base), found.layers)
    shown_bar = bar(len(found.layers), progress, "layer")
    readings = []
    for layer in found.layers.values():
        readings.append(_read(found, layer, opened, intruders))
        shown_bar.update()
    kind = "DoRA" if found.settings.get("use_dora") else "LoRA"
    said = findings(found, readings, opened)
    return Report(str(place), kind, _facts(found, readings), tuple(readings), tuple(said))


def _unreadable(place: Path, error: AdapterError) -> Report:
    """A report on what is no sound PEFT folder: another program's format, or damage."""
    other: ForeignFile | None = None
    with suppress(AdapterError):
        other = recognise(place)
    if other is None:
        text = f"{error}. Copy or download it again" if "damaged" in str(error) else str(error)
        return Report(str(place), "unreadable", {}, (), (broken("unreadable", f"{text}."),))
    facts: dict[str, Any] = {"file": other.file.name, "bytes": f"{other.tensors.bytes:,}"}
    if other.format is None:
        text = f"{other}." if other.file.name != TENSOR_FILE else f"{error}."
        return Report(str(place), "no adapter", facts, (), (broken("unreadable", text),))
    facts["keys such as"] = ", ".join(other.some)
    if other.format.name.startswith("PEFT"):
        text = f"{error}; the factors are there, under PEFT's names: {other.format.advice}."
        finding = broken("other-format", text)
    else:
        finding = broken("other-format", f"PEFT cannot load it: this is {other}.")
    return Report(str(place), other.format.name, facts, (), (finding,))


def _facts(found: StoredAdapter, readings: Sequence[Reading]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, label in (
        ("base_model_name_or_path", "base"),
        ("target_modules", "targets"),
        ("modules_to_save", "trained whole"),
    ):
        value = found.settings.get(name)
        if isinstance(value, list):
            short = sorted({str(v).rpartition(".")[2] for v in value})
            value = ", ".join(short)
        if value:
            facts[label] = value
    ranks = sorted({reading.r for reading in readings})
    scales = sorted({reading.scale for reading in readings})
    facts["rank"] = _span(ranks)
    facts["alpha"] = found.settings.get("lora_alpha", "not said")
    root = "√" if found.settings.get("use_rslora") else ""
    facts["factor"] = f"{_span(scales)} (alpha / {root}r)"
    if len(scales) == len(ranks) == 1 and ranks[0] > 1 and not root:
        r, usual = ranks[0], scales[0]
        facts["factor"] += (
            f"; read as alpha / √r {usual * r**0.5:.3g}, as a bare alpha {usual * r:g}"
        )
    facts["layers"] = len(readings)
    facts["parameters"] = f"{sum(reading.parameters for reading in readings):,}"
    facts["bytes"] = f"{found.tensors.bytes:,}"
    return facts


def _span(values: list[Any]) -> str:
    if not values:
        return "none"
    ends = f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
    return ends


# --- one layer ------------------------------------------------------------------------------


def _read(
    found: StoredAdapter, layer: StoredLayer, base: Base | None, intruders: bool | None
) -> Reading:
    scale = 1.0 if math.isnan(layer.scale) else layer.scale
    spectra: list[Tensor] = []
    finite, sizes = True, [0.0, 0.0]
    for A, B in found.factors(layer.path):
        sizes = [max(sizes[0], _rms(A)), max(sizes[1], _rms(B))]
        finite = finite and bool(torch.isfinite(A).all() and torch.isfinite(B).all())
        if finite:
            spectra.append(singular_values(A, B, scale))
    s = torch.cat(spectra).sort(descending=True).values if finite else torch.zeros(1)
    s = torch.where(s > s[0] * 1e-12, s, 0.0)  # what rounding made of zeros
    reading = Reading(
        path=layer.path,
        kind=layer.kind,
        shape=layer.shape,
        r=layer.r,
        scale=layer.scale,
        dtype=found.tensors.stored[layer.keys["A"]].dtype,
        parameters=sum(found.tensors.stored[key].size for key in layer.keys.values()),
        experts=layer.experts,
        rms_A=sizes[0],
        rms_B=sizes[1],
        norm=float(s.square().sum().sqrt()) if finite else float("nan"),
        effective=effective_rank(s) if finite else float("nan"),
        r90=rank_for_share(s, 0.9),
        r99=rank_for_share(s, 0.99),
        values=tuple(s.tolist()) if finite else (),
    )
    if base is None or layer.kind == "experts" or not finite:
        return reading
    return _beside(reading, found, layer, base, s, intruders)


def _beside(
    reading: Reading,
    found: StoredAdapter,
    layer: StoredLayer,
    base: Base,
    s: Tensor,
    intruders: bool | None,
) -> Reading:
    """The reading with what the base's weight adds to it."""
    name = base.weight_of(layer.path)
    weight = base.tensors[name]
    if weight.dtype not in FLOATS:
        raise AdapterError(
            f"{name!r} of the base holds {weight.dtype}: it is quantized; give the folder of the "
            "weights before that"
        )
    turned = base.turned(layer, found)
    A, B = next(found.factors(layer.path))
    scale = 1.0 if math.isnan(layer.scale) else layer.scale
    tally = Tally()
    weight = weight.to(torch.bfloat16)  # as a model that is used in bfloat16 holds it
    for _ in merged_blocks(weight, A, B, scale, turned, torch.bfloat16, tally):
        pass
    reading = replace(reading, weight_norm=tally.weight**0.5, lost_in_bf16=tally.share_lost)
    wanted = intruders if intruders is not None else weight.numel() <= LARGEST
    if not wanted or not reading.norm:
        return reading
    own, chance = _intruders(weight, A, B, scale, turned, s)
    return replace(reading, intruders=own, intruders_of_chance=chance)


def _rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())


def _intruders(
    weight: Tensor, A: Tensor, B: Tensor, scale: float, turned: bool, s: Tensor
) -> tuple[int, int]:
    """How many intruders the update makes, and a random one with the same singular values."""
    blocks = list(updated_blocks(weight, A, B, scale, turned))
    before = torch.cat([old for _, old, _ in blocks])
    update = torch.cat([new for _, _, new in blocks])
    known = torch.linalg.svd(before, full_matrices=False).U
    k = len(s)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, k, generator=generator)).Q for n in before.shape)
    null = (left * s.float()) @ right.T
    return _strange(known, before + update), _strange(known, before + null)


def _strange(known: Tensor, after: Tensor) -> int:
    leading = torch.linalg.svd(after, full_matrices=False).U[:, :LEADING]
    return int(((leading.T @ known).abs().amax(dim=1) < LIMIT).sum())


# --- the table ------------------------------------------------------------------------------


def table_rows(readings: Sequence[Reading]) -> list[list[str]]:
    """The table of the layers, its header first."""
    based = any(reading.weight_norm is not None for reading in readings)
    header = ["layer", "shape", "r", "factor", "‖ΔW‖", "eff. rank", "r 90%", "r 99%"]
    header += ["‖ΔW‖/‖W‖", "lost in bf16", "intruders"] * based
    rows = [header]
    for reading in readings:
        out, into = reading.shape
        times = f"{reading.experts} × " if reading.experts > 1 else ""
        row = [
            reading.path, f"{times}{out}×{into}", str(reading.r), f"{reading.scale:g}",
            f"{reading.norm:.3g}", f"{reading.effective:.1f}", str(reading.r90), str(reading.r99),
        ]  # fmt: skip
        if based:
            relative, lost = reading.relative, reading.lost_in_bf16
            row.append("" if relative is None else percent(relative))
            row.append("" if lost is None else f"{lost:.0%}")
            chance = reading.intruders_of_chance
            row.append("" if chance is None else f"{reading.intruders} ({chance} by chance)")
        rows.append(row)
    return rows


def percent(share: float) -> str:
    """Two digits, however small the share is."""
    return f"{share:.0%}" if share >= 0.1 else f"{100 * share:.2g}%"


def _table(readings: Sequence[Reading]) -> Iterator[str]:
    rows = table_rows(readings)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join(cells).rstrip()
        if number == 0:
            yield "  ".join("-" * width for width in widths)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
