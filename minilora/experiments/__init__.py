"""The book's experiments: one definition each, run small in a chapter and large on a GPU.

``python -m minilora.experiments list`` names them. A chapter calls the same ``run`` as the command
line, and draws the recording of the large run beside its own where there is one.
"""

from minilora.experiments.recording import (
    Quantity,
    Recording,
    Row,
    check_recording,
    is_stale,
    load_recording,
    not_recorded,
    read_recording,
    write_recording,
)

#: Every experiment: a folder of this package, with ``EXPERIMENT``, ``PROFILES`` and ``run``.
NAMES = (
    "rank",
    "bases",
    "rates",
    "placement",
    "memory",
    "docstrings",
    "language",
    "images",
    "quantized",
    "family",
    "mixing",
    "traffic",
    "limits",
)

__all__ = [
    "NAMES",
    "Quantity",
    "Recording",
    "Row",
    "check_recording",
    "is_stale",
    "load_recording",
    "not_recorded",
    "read_recording",
    "write_recording",
]
