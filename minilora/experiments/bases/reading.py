"""What a recording of the bases says, base by base."""

from __future__ import annotations

from dataclasses import replace

from minilora.experiments.bases.experiment import FULL
from minilora.experiments.recording import Recording
from minilora.experiments.summaries import Paired, paired


def differences(recording: Recording, arm: str, reference: str = FULL) -> dict[str, Paired]:
    """{base: arm − reference in test accuracy, over the draws that test}."""
    rows_of: dict[str, list] = {}
    for row in recording.rows:
        rows_of.setdefault(str(row.setting), []).append(row)
    return {
        base: paired(replace(recording, rows=rows), arm, reference)
        for base, rows in rows_of.items()
    }
