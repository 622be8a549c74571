"""The numbers of the pictures that move: a function for each that needs some, by its name.

A function gets the page that shows the picture, and returns what ``Moving.data.NAME`` is to be in
the browser. It takes its numbers from the package, from a recording that the package ships, or from
the run that the page shows; none is typed here.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minilora.experiments import rates as lr
from minilora.experiments.images.reading import shares
from minilora.experiments.rank.figures import METHODS, NAME_SIDES
from minilora.experiments.recording import (
    Recording,
    Row,
    file_name,
    is_stale,
    load_recording,
    read_recording,
)
from minilora.experiments.summaries import BESIDE, final_rows
from minilora.lab.decoder import DecoderConfig
from minilora.quantize import NF4_LEVELS, normal_float_levels

ROOT = Path(__file__).resolve().parents[2]


class Missing(Exception):
    """There are no numbers for a picture; the message says which, and what to do."""


@dataclass(frozen=True)
class Page:
    """A page that shows a picture.

    Attributes:
        name: As Sphinx names it.
        text: All its words, outputs included.
        kept: Where runs that fit the stored outputs are kept beside them.
        notebook: The page as it was executed, where it was.
    """

    name: str
    text: str
    kept: Path
    notebook: dict | None = None

    def glued(self, name: str) -> Any:
        """What a cell has kept as JSON: ``glue(name, json.dumps(value))``.

        Raises:
            Missing: No cell has.
        """
        for cell in (self.notebook or {}).get("cells", []):
            for output in cell.get("outputs", []):
                if output.get("metadata", {}).get("scrapbook", {}).get("name") == name:
                    (text,) = output["data"].values()
                    return json.loads(ast.literal_eval("".join(text)))
        raise Missing(f"no executed cell of the page has kept {name!r}")

    def run(self, name: str, part: str | None = None, profile: str = "cpu") -> Recording:
        """The recording of the run whose results this page shows.

        An executed page leaves its runs in the folder ``MINILORA_RUNS``. A page whose outputs were
        stored earlier may show another run than the one that lies there now. It prints how many
        results its run had, and the seconds it took, which tells the two apart.

        Raises:
            Missing: There is none.
        """
        file = file_name(name, profile, part)
        runs = Path(os.environ.get("MINILORA_RUNS", ROOT / "build" / "runs"))
        for folder in (runs, self.kept):
            if (folder / file).is_file():
                found = read_recording(folder / file)
                shown = f"{len(found.rows)} results in {found.seconds:.0f} s"
                if shown in self.text and not is_stale(found):
                    if folder != self.kept:
                        self.kept.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(folder / file, self.kept / file)
                    return found
        raise Missing(
            f"no {file} of the run that the page shows, in {runs} or beside the stored outputs; "
            "delete the folder build/executed, and the pages are executed anew"
        )


# --- Chapter 11 -----------------------------------------------------------------------------


def memory(page: Page) -> dict[str, Any]:
    """Sizes of GPTs to begin with."""
    sizes = ((768, 12, 12), (2048, 24, 16), (4096, 32, 32), (5120, 40, 40), (8192, 80, 64))
    found = [DecoderConfig()]
    found += [DecoderConfig(w, n, heads, vocab=32_000, context=2048) for w, n, heads in sizes]
    return {"models": [asdict(one) | {"parameters": one.parameters} for one in found]}


# --- Chapter 6 ------------------------------------------------------------------------------


def spectra(page: Page) -> dict[str, Any]:
    """Of each kind of run: singular values, and how near the leading directions are to old ones.

    ``names`` and ``before`` are of the matrices as they were, (18, 48) singular values. ``after``
    are those of the first run; ``near`` and ``turned`` are cosines of each run, (3, 18, 10), as
    trained and with the change's directions drawn at random.
    """
    return page.glued("nearly-spectra")


# --- Chapter 8 ------------------------------------------------------------------------------


def rank(page: Page) -> dict[str, Any]:
    """Every arm of chapter 8's run, with each run's accuracy and loss on test data.

    ``t`` is Student's quantile for the 95% interval of n differences, by n; ``matrices`` counts the
    numbers of the adapted matrices.
    """
    from scipy.stats import t  # scikit-learn brings it

    run = page.run("rank")
    model = run.settings["sums"]["model"]
    sets = []
    for labels in sorted({row.labels for row in run.rows if row.stage == "final"}, reverse=True):
        arms = [_arm(run, name, labels) for name in _names(run.rows, labels)]
        if any(one["kind"] == "lora" for one in arms):
            sets.append({"labels": labels, "steps": run.settings["steps"], "arms": arms})
    counts = {len(one["accuracy"]) for each in sets for one in each["arms"]}
    counts |= {len(one["sheets"]) for each in sets for one in each["arms"]}
    return {
        "sets": sets,
        "methods": METHODS,
        "matrices": model["layers"] * (4 + 2 * model["ffn_factor"]) * model["width"] ** 2,
        "t": {n: float(t.ppf(0.975, n - 1)) for n in range(2, max(counts) + 1)},
    }


def _names(rows: Iterable[Row], labels: int) -> list[str]:
    kinds = {*NAME_SIDES, *METHODS}
    return list(
        dict.fromkeys(
            row.arm
            for row in rows
            if (row.stage, row.labels) == ("final", labels)
            and row.kind not in BESIDE
            and (row.kind in kinds or row.arm in kinds)
        )
    )


def _arm(run: Recording, name: str, labels: int) -> dict[str, Any]:
    rows = final_rows(run, name, labels)
    sheets: dict[int, list[float]] = {}
    for row in run.rows:
        arm, _, sheet = row.arm.rpartition(", sheet ")
        if (arm, row.labels, row.kind) == (name, labels, "sheet"):
            sheets.setdefault(int(sheet), []).append(row.accuracy or 0.0)
    return {
        "arm": name,
        "kind": "neighbours" if rows[0].kind == "halves" else rows[0].kind,
        "r": rows[0].r,
        "parameters": rows[0].parameters,
        "lr": rows[0].lr,
        "seeds": [row.seed for row in rows],
        "accuracy": [row.accuracy for row in rows],
        "log_loss": [row.log_loss for row in rows],
        "sheets": [float(np.mean(values)) for _, values in sorted(sheets.items())],
    }


# --- Chapter 9 ------------------------------------------------------------------------------


def rates(page: Page) -> dict[str, Any]:
    """Chapter 9's curves of validation loss against the learning rate, under each rule."""
    adam, scaling = page.run("rates", "adam"), page.run("rates", "scaling")
    rows = adam.rows + scaling.rows
    profile = lr.PROFILES[adam.profile]
    start = _untouched(page, rows)
    panels = [("AdamW", rule, lr.arm_of, profile.ranks) for rule in lr.RULES]
    panels += [("SGD", rule, lr.sgd_arm_of, profile.sgd_ranks) for rule in list(lr.RULES)[:2]]
    found = [
        {
            "optimizer": optimizer,
            "rule": rule,
            "arms": [{"r": r, **_curve(rows, name(profile.alpha, rule, r), start)} for r in ranks],
        }
        for optimizer, rule, name, ranks in panels
    ]
    full = {"r": None, **_curve(rows, "full fine-tuning", start)}
    found[0]["arms"].append(full)  # type: ignore[attr-defined]
    return {"start": start, "alpha": profile.alpha, "panels": found}


def _untouched(page: Page, rows: Iterable[Row]) -> float:
    """The loss of the base as it is, which the page prints to two places."""
    found = re.search(r"the base as it is: (\d+\.\d\d)\b", page.text)
    if found is None:
        raise Missing("the page does not print the loss of the base as it is")
    start = float(found[1])
    if any(abs((row.train_loss or 9) - start) < 0.006 for row in rows):
        raise Missing("whether a run is broken needs the loss of the base to more places")
    return start


def _curve(rows: Iterable[Row], arm: str, start: float) -> dict[str, Any]:
    rows = list(rows)
    tried = lr.by_rate(rows, arm)
    return {
        "arm": arm,
        "best": lr.best_rate(rows, arm),
        "sound": lr.highest_sound(rows, arm, start),
        "tried": [
            {
                "lr": rate,
                "losses": [row.log_loss for row in runs],
                "broken": sum(lr.broken(row, start) for row in runs),
            }
            for rate, runs in tried.items()
        ],
    }


# --- Chapter 14 -----------------------------------------------------------------------------


def strength(page: Page) -> dict[str, Any]:
    """Content and style of each seed at each strength: the recording that chapter 14 reads."""
    run = load_recording("images", "laptop")
    strengths = run.settings["strengths"]
    return {
        "strengths": strengths,
        "styles": [
            {
                "name": style,
                "content": [shares(run, f"{style}, strength {one:g}") for one in strengths],
                "style": [shares(run, f"{style}, strength {one:g}", "style") for one in strengths],
            }
            for style in run.settings["strong_styles"]
        ],
    }


# --- Chapter 15 -----------------------------------------------------------------------------


def levels(page: Page) -> dict[str, Any]:
    """The levels of the normal floats of four, three and two bits."""
    tables = {4: NF4_LEVELS, 3: normal_float_levels(3), 2: normal_float_levels(2)}
    return {"formats": [{"bits": n, "levels": table.tolist()} for n, table in tables.items()]}
