"""Keys and values of rows in flight, written in place: a row may come or go at any token and copies nobody else's.

Knows tensors and positions; knows nothing of networks, tokens or requests.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

_ROOM = 64  # positions by which room is made at least


class Slots:
    """A key-value store with one row to a slot: slots 0 to ``rows - 1`` are in use, position 0 comes first in each.

    Per layer keys and values of shape (slots, key heads, positions, head width). Room grows by half when it runs
    out, so that long limits cost nothing until they are used, and never past what rows may need.
    """

    def __init__(self) -> None:
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.lengths_B = torch.empty(0, dtype=torch.long)
        self._most = self._reach = 0  # positions: of the longest row at its end; that any row has written so far

    @property
    def rows(self) -> int:
        return int(self.lengths_B.shape[0])

    def add(
        self,
        states: Sequence[tuple[torch.Tensor, torch.Tensor]],
        mask_BL: torch.Tensor,
        *,
        most: int = sys.maxsize,
        slots: int = 0,
    ) -> None:
        """Append rows: keys and values (B, H, L, D) of each layer, of which the last positions of a row are real.

        ``mask_BL``: bool, False at the pads on the left, which are dropped. ``most``: positions of the longest of
        them at its end. ``slots``: how many may come to be in use.
        """
        self._most = max(self._most, most)
        lengths = mask_BL.sum(dim=1).tolist()
        first, padded = self.rows, mask_BL.shape[1]
        self.lengths_B = torch.cat([self.lengths_B.to(mask_BL.device), mask_BL.sum(dim=1)])
        self._reach = max(self._reach, *lengths)
        self._reserve(states, max(self.rows, slots), max(lengths))
        for layer, (keys, values) in enumerate(states):
            for row, length in enumerate(lengths):
                self.keys[layer][first + row, :, :length] = keys[row, :, padded - length :]
                self.values[layer][first + row, :, :length] = values[row, :, padded - length :]

    def keep(self, rows: Sequence[int]) -> None:
        """Free all other slots. Those kept move together in this order; one that is named several times is copied."""
        if len(rows) > self.rows:
            self.widen(len(rows))
        moves = [(slot, row) for slot, row in enumerate(rows) if slot != row]
        to_M, from_M = torch.tensor(moves, dtype=torch.long, device=self.lengths_B.device).view(-1, 2).T
        for states in (*self.keys, *self.values):
            reached = states[:, :, : self._reach]
            if moves:
                reached.index_copy_(0, to_M, reached[from_M])
            reached[len(rows) : self.rows] = 0  # it may be NaN, see _enlarged
        self.lengths_B = self.lengths_B[list(rows)]

    def forget(self, counts: Sequence[int]) -> None:
        """Drop the last so many positions of each row."""
        self.lengths_B = self.lengths_B - torch.tensor(list(counts), device=self.lengths_B.device)

    def grow(self, more: int = 1) -> int:
        """Make room for so many more positions in every row, and return how many the longest row then has."""
        longest = int(self.lengths_B.max()) + more
        self._reach = max(self._reach, longest)
        self._reserve(list(zip(self.keys, self.values, strict=True)), self.rows, longest)
        return longest

    def widen(self, slots: int) -> None:
        """Make room for so many slots, in use or not."""
        self._reserve(list(zip(self.keys, self.values, strict=True)), slots, self.keys[0].shape[2])

    def _reserve(self, like: Sequence[tuple[torch.Tensor, torch.Tensor]], rows: int, positions: int) -> None:
        if not self.keys:
            self.keys = [keys.new_zeros(0, keys.shape[1], 0, keys.shape[3]) for keys, _ in like]
            self.values = [values.new_zeros(0, values.shape[1], 0, values.shape[3]) for _, values in like]
        slots, room = self.keys[0].shape[0], self.keys[0].shape[2]
        if rows <= slots and positions <= room:
            return
        if positions > room:
            room = max(positions, min(max(positions + _ROOM, room * 3 // 2), self._most))
        for store in (self.keys, self.values):
            for layer, states in enumerate(store):  # one by one, so that little is there twice
                store[layer] = _enlarged(states, max(slots, rows), room)


def _enlarged(states: torch.Tensor, slots: int, room: int) -> torch.Tensor:
    # Zeros, not garbage: a masked position has weight 0, and 0 times NaN would still be NaN.
    larger = states.new_zeros(slots, states.shape[1], room, states.shape[3])
    larger[: states.shape[0], :, : states.shape[2]] = states
    return larger
