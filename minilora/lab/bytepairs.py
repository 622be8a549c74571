"""Text to token numbers and back: byte pairs, joined where they occur most often.

Every byte is a token to begin with. Then the pair of neighbours that occurs most often becomes a
token of its own, and so on, as often as there is room for: "s", "e", "l", "f" become "se", "lf" and
in the end "self" (arXiv 1508.07909, on bytes). A text is first cut into words, numbers, signs and
breaks, and no token reaches over such a cut.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

#: A break of the line with what it is indented by; a word, a digit or signs, with a space before.
PIECES = re.compile(r"\n *| ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]+|\s")

Pair = tuple[int, int]


def learn_pairs(texts: Iterable[str], vocab: int) -> list[Pair]:
    """The pairs that become tokens 256, 257 … ``vocab`` − 1, those that were joined first first.

    Of pairs that occur equally often the smaller numbers come first, so that the same texts give
    the same tokens.
    """
    if vocab < 256:
        raise ValueError(f"vocab must be 256 at least, one token for each byte, but is {vocab}")
    counts = Counter(piece for text in texts for piece in PIECES.findall(text))
    words = [(list(piece.encode()), count) for piece, count in counts.items()]
    often: Counter[Pair] = Counter()
    homes: defaultdict[Pair, set[int]] = defaultdict(set)  # in which words a pair has been seen
    for at, (word, count) in enumerate(words):
        for pair in pairwise(word):
            often[pair] += count
            homes[pair].add(at)
    pairs: list[Pair] = []
    while len(pairs) < vocab - 256 and often:
        best = max(often, key=lambda pair: (often[pair], -pair[0], -pair[1]))
        pairs.append(best)
        for at in homes.pop(best):
            word, count = words[at]
            for pair in pairwise(word):
                often[pair] -= count
            word[:] = _joined(word, best, 255 + len(pairs))
            for pair in pairwise(word):
                often[pair] += count
                homes[pair].add(at)
        often = +often  # what no longer occurs is dropped
    return pairs


def _joined(word: Sequence[int], pair: Pair, token: int) -> list[int]:
    """The word with every such pair replaced by one token, from the left."""
    found: list[int] = []
    i = 0
    while i < len(word):
        if i + 1 < len(word) and (word[i], word[i + 1]) == pair:
            found.append(token)
            i += 2
        else:
            found.append(word[i])
            i += 1
    return found


class BytePairs:
    """A tokenizer made of pairs, as `learn_pairs` finds them.

    ``tokens[i]`` are the bytes of token i.
    """

    def __init__(self, pairs: Iterable[Sequence[int]]) -> None:
        self.tokens = [bytes([byte]) for byte in range(256)]
        self.ranks: dict[Pair, int] = {}
        for left, right in pairs:
            self.ranks[int(left), int(right)] = len(self.tokens)
            self.tokens.append(self.tokens[left] + self.tokens[right])
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """The text's token numbers."""
        found: list[int] = []
        for piece in PIECES.findall(text):
            if piece not in self._known:
                self._known[piece] = self._encode(piece)
            found += self._known[piece]
        return found

    def _encode(self, piece: str) -> list[int]:
        word = list(piece.encode())
        while len(word) > 1:
            # The pair that was joined first when the tokens were made is joined first here.
            first = min(pairwise(word), key=lambda pair: self.ranks.get(pair, len(self.tokens)))
            if first not in self.ranks:
                break
            word = _joined(word, first, self.ranks[first])
        return word

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token numbers; U+FFFD stands for bytes that make no letter."""
        return b"".join(self.tokens[int(i)] for i in ids).decode(errors="replace")

    def bytes_of(self, ids: Iterable[int]) -> int:
        """How many bytes of text some tokens stand for."""
        return sum(len(self.tokens[int(i)]) for i in ids)
