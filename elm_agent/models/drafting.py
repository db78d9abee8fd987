"""What a row may draw next, guessed from completions that were drawn before: no second model, only counting.

A guess costs little to check, because a pass over a few more positions reads the same weights. Only what the row
itself draws from the exact logits counts, see ``decoding``. Knows token ids; knows nothing of networks or text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

_LONGEST = 4  # tokens that are looked back at; the longest of them that was seen before decides
_SHARE = 0.4  # a guess goes on while it has been right this often, all its tokens together
_START = -1  # stands before the first token


class Drafts:
    """Which token followed which in earlier completions of one question."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], Counter[int]] = {}

    def add(self, tokens: Sequence[int]) -> None:
        """Take in one whole completion."""
        whole = (_START, *tokens)
        for place in range(1, len(whole)):
            for length in range(1, min(_LONGEST, place) + 1):
                self._after.setdefault(whole[place - length : place], Counter())[whole[place]] += 1

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """At most so many tokens that a completion that begins with ``tokens`` is likely to go on with."""
        recent = [_START, *tokens][-_LONGEST:]
        guess: list[int] = []
        share = 1.0
        while len(guess) < most and (seen := self._seen(recent)) is not None:
            token, times = seen.most_common(1)[0]
            share *= times / seen.total()
            if share < _SHARE:
                break
            guess.append(token)
            recent = [*recent, token][-_LONGEST:]
        return guess

    def _seen(self, recent: Sequence[int]) -> Counter[int] | None:
        endings = (tuple(recent[first:]) for first in range(len(recent)))  # the longest first
        return next((self._after[ending] for ending in endings if ending in self._after), None)
