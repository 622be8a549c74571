"""A language model that counts: what has followed the last two tokens so far, and how often.

It is the oldest rival of a network, and on a text full of stock phrases a strong one. What it has
counted after two tokens is mixed with what it has counted after one, and so on down to all tokens
alike; the less often a pair has been seen, and the more different tokens have followed it, the more
is left to the shorter one (Witten and Bell's rule).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

Counts = dict[tuple[int, ...], Counter[int]]


class Counted:
    """Counts of the tokens that follow up to ``order`` − 1 others.

    Args:
        ids: The text to count, token numbers below ``vocab``.
        order: 3 looks at two tokens before the one to be guessed.
    """

    def __init__(self, ids: Sequence[int], vocab: int, order: int = 3) -> None:
        if order < 1:
            raise ValueError(f"order must be 1 at least, but is {order}")
        self.vocab = vocab
        self.counts: list[Counts] = [defaultdict(Counter) for _ in range(order)]
        for i, token in enumerate(ids):
            for before in range(min(i, order - 1) + 1):
                self.counts[before][tuple(ids[i - before : i])][token] += 1
        self.totals = [{key: found.total() for key, found in one.items()} for one in self.counts]

    def probability(self, before: Sequence[int], token: int) -> float:
        """That of a token after others."""
        found = 1 / self.vocab
        for length in range(min(len(before), len(self.counts) - 1) + 1):
            key = tuple(before[len(before) - length :])
            seen = self.counts[length].get(key)
            if seen is None:
                break
            total, kinds = self.totals[length][key], len(seen)
            found = (seen[token] + kinds * found) / (total + kinds)
        return found

    def bits(self, ids: Sequence[int]) -> float:
        """What a text costs in all, token by token."""
        order = len(self.counts)
        chances = (self.probability(ids[max(0, i + 1 - order) : i], t) for i, t in enumerate(ids))
        return sum(-math.log2(chance) for chance in chances)
