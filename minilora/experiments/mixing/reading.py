"""What the recording of the mixing experiment says: all settings that were tried."""

from __future__ import annotations

import numpy as np

from minilora.experiments.mixing.rules import Rule, described
from minilora.experiments.recording import Recording


def tried(recording: Recording, rule: Rule) -> dict[float, dict[float, float]]:
    """{share of entries: {strength: bits a byte}}: means of both texts and of the tuning draws."""
    rows = [row for row in recording.rows if (row.stage, row.arm) == ("tune", rule.name)]
    return {
        density: {
            strength: float(
                np.mean([r.log_loss for r in rows if r.setting == described(strength, density)])
                / np.log(2)
            )
            for strength in rule.strengths
        }
        for density in rule.densities
    }
