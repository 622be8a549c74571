"""What a run leaves behind, and what a page may read: a JSON file that is checked both ways."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from minilora.folder import replace_file
from minilora.lab.provenance import source_hash, sources

RECORDED = Path(__file__).parent / "recorded"
SCHEMA = 1  # raise it when a field changes its meaning

#: What a row's accuracy was measured on. Tuning sees validation data only.
STAGES = {"tune": "validation", "final": "test"}

UNITS = ("bytes", "seconds", "flops", "calls", "nats", "share")


@dataclass(frozen=True)
class Row:
    """One training run, or one classical baseline, with what came out of it.

    ``accuracy`` and ``log_loss`` (nats; None for a method that gives no probabilities) are on
    validation data where ``stage`` is "tune", and on test data where it is "final".
    ``parameters`` are the trainable ones, counted on the model; None for a method that has none.
    ``setting`` is a classical method's own knob, as in "k=3", or what else tells runs of an arm
    apart. A run that diverged has no numbers.
    """

    stage: str
    arm: str
    kind: str
    labels: int
    seed: int
    r: int | None = None
    lr: float | None = None
    setting: str | None = None
    parameters: int | None = None
    accuracy: float | None = None
    log_loss: float | None = None
    train_loss: float | None = None
    seconds: float = 0.0
    diverged: bool = False


@dataclass(frozen=True)
class Quantity:
    """One measurement of bytes, seconds, operations or calls, beside what was predicted for it.

    ``size`` is what an experiment varies, such as a width, and ``repeat`` counts measurements of
    the same thing. ``predicted`` is None where nothing was.
    """

    arm: str
    kind: str
    what: str
    size: int
    repeat: int
    unit: str
    measured: float
    predicted: float | None = None


@dataclass(frozen=True)
class Recording:
    """A finished experiment: its settings, every raw row, and where and when it was run.

    An experiment leaves ``rows``, ``quantities`` or both. ``part`` names the part of which this is
    the recording; None for the whole experiment. ``seconds`` are those of the calls that finished
    the parts, and ``peak_bytes`` what PyTorch's allocator has held at most on a card, in this
    process, since the part began or last measured a peak of its own; off a card, the largest
    process so far.
    """

    name: str
    profile: str
    settings: dict[str, Any]
    rows: list[Row]
    source: str
    device: str
    versions: dict[str, str]
    date: str
    commit: str | None
    seconds: float
    peak_bytes: int | None
    schema: int = field(default=SCHEMA)
    quantities: list[Quantity] = field(default_factory=list)
    part: str | None = None

    @property
    def where(self) -> str:
        """Profile, device and date, as they stand under a figure; whether the code has changed."""
        changed = ", by code that has changed since" if is_stale(self) else ""
        return f"profile {self.profile}, {self.device}, {self.date[:10]}{changed}"


def file_name(name: str, profile: str, part: str | None = None) -> str:
    """That of a recording: ``NAME.PROFILE.json``, or ``NAME-PART.PROFILE.json`` of one part."""
    return f"{name}.{profile}.json" if part is None else f"{name}-{part}.{profile}.json"


def write_recording(recording: Recording, folder: Path | str) -> Path:
    """Check a recording and write its file, whole or not at all; see `file_name`."""
    check_recording(asdict(recording))
    path = Path(folder) / file_name(recording.name, recording.profile, recording.part)
    text = json.dumps(_rounded(asdict(recording)), indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode())
    return path


def keep_run(recording: Recording) -> None:
    """Leave a run in the folder that ``MINILORA_RUNS`` names, if it names one.

    The build sets it, so that the tests can hold the sentences of a page against the run that the
    page has shown.
    """
    folder = os.environ.get("MINILORA_RUNS")
    if folder:
        write_recording(recording, folder)


def together(recordings: Sequence[Recording], part: str | None = None) -> Recording:
    """One recording of the rows and quantities of several, which are parts of one experiment.

    ``part`` is what it is a recording of; None if that is the whole.

    Raises:
        ValueError: They are not of one size, or not of the same code on the same machine.
    """
    first = recordings[0]
    for one in recordings:
        if not same_work(one, first):
            raise ValueError(
                f"{first.name}: the parts {first.part} and {one.part} are not of one run: "
                "size, code, machine or versions differ"
            )
    peaks = [one.peak_bytes for one in recordings if one.peak_bytes is not None]
    return replace(
        first,
        rows=[row for one in recordings for row in one.rows],
        quantities=[q for one in recordings for q in one.quantities],
        date=max(one.date for one in recordings),
        commit=first.commit if len({one.commit for one in recordings}) == 1 else None,
        seconds=sum(one.seconds for one in recordings),
        peak_bytes=max(peaks, default=None),
        part=part,
    )


def same_work(a: Recording, b: Recording) -> bool:
    """Whether two recordings are of the same size, code, machine and versions."""
    return all(
        json.dumps(_rounded(getattr(a, key))) == json.dumps(_rounded(getattr(b, key)))
        for key in ("name", "profile", "settings", "source", "device", "versions")
    )


def read_recording(path: Path | str) -> Recording:
    """Read a recording and check it; ValueError says what is wrong with it."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    check_recording(content)
    rows = [Row(**row) for row in content.pop("rows")]
    quantities = [Quantity(**one) for one in content.pop("quantities", [])]
    return Recording(rows=rows, quantities=quantities, **content)


def load_recording(
    name: str,
    profile: str = "gpu",
    folder: Path | str = RECORDED,
    *,
    parts: Sequence[str] | None = None,
) -> Any:
    """The recording of an experiment, or None where there is none: then say `not_recorded`.

    While an experiment is not finished, each finished part has a recording of its own. Whoever
    names ``parts`` can do with these alone.
    """
    if parts is not None:
        paths = [Path(folder) / file_name(name, profile, part) for part in parts]
        if all(path.exists() for path in paths):
            found = [read_recording(path) for path in paths]
            if all(same_work(one, found[0]) for one in found):
                return together(found, "-".join(parts))
    path = Path(folder) / file_name(name, profile)
    return read_recording(path) if path.exists() else None


def not_recorded(name: str, profile: str = "gpu") -> str:
    """What a page says where a recording is missing."""
    where = "On a machine with a CUDA card, run" if profile == "gpu" else "Any computer can, with"
    return (
        f"Not recorded yet. {where}\n"
        f"  python -m minilora.experiments run {name} --profile {profile}"
    )


@functools.cache
def source_of(experiment: str) -> str:
    """A hash of all code that an experiment rests on, by its name.

    Taken once: what is changed later on the disk is not what this process runs.
    """
    return source_hash(sources(f"minilora.experiments.{experiment}"))


def is_stale(recording: Recording) -> bool:
    """Whether the code that the experiment rests on has changed since the recording was made."""
    return recording.source != source_of(recording.name)


def check_recording(content: Any) -> None:
    """Raise ValueError unless this (from JSON, or ``asdict``) is a sound recording."""
    _fields(content, Recording, "the recording", optional={"quantities", "part"})
    if content["schema"] != SCHEMA:
        raise ValueError(f"schema {content['schema']} is not the {SCHEMA} that this code reads")
    types: dict[str, type] = {
        "name": str,
        "profile": str,
        "settings": dict,
        "rows": list,
        "source": str,
    }
    types |= {"device": str, "versions": dict, "date": str, "seconds": float}
    for key, kind in types.items():
        _typed(content[key], kind, key)
    if len(content["source"]) != 64:
        raise ValueError("source must be a SHA-256 in hex")
    datetime.fromisoformat(content["date"])
    for key in ("python", "torch", "numpy"):
        if key not in content["versions"]:
            raise ValueError(f"versions must name {key}")
    _typed(content.get("quantities", []), list, "quantities")
    if content.get("part") is not None:
        _typed(content["part"], str, "part")
    if not content["rows"] and not content.get("quantities"):
        raise ValueError("a recording without rows or quantities records nothing")
    seen = set()
    for number, row in enumerate(content["rows"]):
        _check_row(row, f"row {number}")
        run = tuple(row[part] for part in ("stage", "arm", "labels", "seed", "lr", "setting"))
        if run in seen:
            raise ValueError(f"row {number} repeats {run}")
        seen.add(run)
    seen = set()
    for number, one in enumerate(content.get("quantities", [])):
        _check_quantity(one, f"quantity {number}")
        what = tuple(one[part] for part in ("arm", "what", "size", "repeat"))
        if what in seen:
            raise ValueError(f"quantity {number} repeats {what}")
        seen.add(what)


def _check_row(row: Any, where: str) -> None:
    _fields(row, Row, where)
    for key, kind in {"arm": str, "kind": str, "labels": int, "seed": int}.items():
        _typed(row[key], kind, f"{where}: {key}")
    _typed(row["diverged"], bool, f"{where}: diverged")
    if row["stage"] not in STAGES:
        raise ValueError(f"{where}: stage must be one of {sorted(STAGES)}, but is {row['stage']!r}")
    for key in ("accuracy", "log_loss", "train_loss", "lr", "seconds"):
        value = row[key]
        if value is not None and not (_number(value) and math.isfinite(value) and value >= 0):
            raise ValueError(f"{where}: {key} must be a number ≥ 0 or null, but is {value!r}")
    if row["diverged"]:
        return
    if row["accuracy"] is None or row["accuracy"] > 1:
        raise ValueError(f"{where}: accuracy must be from 0 to 1, but is {row['accuracy']!r}")
    if row["lr"] is not None and not (row["parameters"] or 0) > 0:
        raise ValueError(f"{where}: a trained arm must count its trainable parameters")


def _check_quantity(one: Any, where: str) -> None:
    _fields(one, Quantity, where)
    types: dict[str, type] = {"arm": str, "kind": str, "what": str, "size": int, "repeat": int}
    for key, kind in types.items():
        _typed(one[key], kind, f"{where}: {key}")
    if one["unit"] not in UNITS:
        raise ValueError(f"{where}: unit must be one of {UNITS}, but is {one['unit']!r}")
    for key in ("measured", "predicted"):
        value = one[key]
        if value is None and key == "predicted":
            continue
        if not (_number(value) and math.isfinite(value) and value >= 0):
            raise ValueError(f"{where}: {key} must be a number ≥ 0, but is {value!r}")


def _fields(content: Any, of: type, where: str, optional: Collection[str] = ()) -> None:
    """Exactly the fields of a dataclass: none missing but the optional ones, and none more."""
    if not isinstance(content, dict):
        raise ValueError(f"{where} must be an object, but is a {type(content).__name__}")
    expected = {part.name for part in fields(of)}
    if missing := expected - content.keys() - set(optional):
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}")
    if more := content.keys() - expected:
        raise ValueError(f"{where} has the unknown {', '.join(sorted(more))}")


def _typed(value: Any, kind: type, where: str) -> None:
    fits = _number(value) if kind is float else type(value) is kind
    if not fits:
        raise ValueError(f"{where} must be {kind.__name__}, but is {value!r}")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rounded(value: Any) -> Any:
    """Floats to six significant digits: what a reader can use, and a file half as long."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value
