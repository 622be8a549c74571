"""A second text for the small language model: the names that Unicode gives to its characters.

Every Python carries the names of Unicode 3.2, whichever version it uses itself, so that the text is
the same everywhere. A document is a stretch of 256 places, with a name on each line::

    LATIN SMALL LETTER N WITH TILDE
    LATIN SMALL LETTER O WITH GRAVE
"""

from __future__ import annotations

import functools
import unicodedata

import torch

from minilora.lab import corpus
from minilora.lab.language import Text, text, tokenizer

STRETCH = 256
#: Names that follow from a number or from a rule, thousands of them.
BY_RULE = ("CJK ", "HANGUL SYLLABLE")
#: The share of the names that is held out to choose by, and as much again to test on.
HELD_OUT = 0.15


def character_names() -> dict[str, str]:
    """{stretch: its names, one on each line}, of the characters with numbers of four digits."""
    old = unicodedata.ucd_3_2_0
    documents = {}
    for first in range(0, 0x10000, STRETCH):
        names = [old.name(chr(place), "") for place in range(first, first + STRETCH)]
        kept = [name for name in names if name and not name.startswith(BY_RULE)]
        if kept:
            documents[f"U+{first:04X}"] = "\n".join(kept)
    return documents


@functools.cache
def names_text(which: str = "train") -> Text:
    """The names as token numbers, as `minilora.lab.language.text` has code and prose."""
    if which not in corpus.SPLITS:
        raise ValueError(f"there are {corpus.SPLITS}, but not {which!r}")
    documents = corpus.split(character_names(), HELD_OUT)[which]
    coder = tokenizer()
    ids = tuple(torch.tensor(coder.encode(one + "\n\n")) for one in documents.values())
    return Text(tuple(documents), ids, sum(coder.bytes_of(one.tolist()) for one in ids))


def text_of(task: str, which: str = "train") -> Text:
    """The text of a task: "prose", "code" or "names"."""
    return names_text(which) if task == "names" else text(task, which)
