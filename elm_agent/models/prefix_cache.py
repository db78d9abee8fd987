"""Keys and values of rows that were read: a row that begins as another one did goes on from there.

A task's template begins all of its questions, a memory and that template all questions that are read with it. Rows
are compared by what is read, embedding by embedding, so whoever goes on from something would have read the very same.
Knows tensors; knows nothing of networks, text or memories.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_FEWEST = 8  # positions that are worth going on from


@dataclass(frozen=True, slots=True)
class _Known:
    embeds_TE: torch.Tensor
    states_SHTD: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.embeds_TE.nbytes + self.states_SHTD.nbytes


class PrefixCache:
    """Rows that take ``most_bytes`` together; those used least recently go first.

    Keys and values of a row are one tensor (S, H, T, D): of each layer its keys and then its values.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._rows: list[_Known] = []  # used least recently first

    def find(self, embeds_TE: torch.Tensor) -> torch.Tensor | None:
        """Keys and values (S, H, P, D) of the longest known beginning of a row; its last position is always left."""
        shared = [_shared(row.embeds_TE, embeds_TE[:-1]) for row in self._rows]
        if (longest := max(shared, default=0)) < _FEWEST:
            return None
        best = self._rows.pop(shared.index(longest))
        self._rows.append(best)
        return best.states_SHTD[:, :, :longest]

    def keep(self, embeds_TE: torch.Tensor, states_SHTD: torch.Tensor) -> None:
        """Copy a row that was read."""
        self._rows.append(_Known(embeds_TE.clone(), states_SHTD.clone()))
        taken = sum(row.nbytes for row in self._rows)
        while taken > self._most_bytes:
            taken -= self._rows.pop(0).nbytes


def _shared(one_TE: torch.Tensor, other_TE: torch.Tensor) -> int:
    """How many positions both begin with."""
    positions = min(len(one_TE), len(other_TE))
    if positions == 0 or not torch.equal(one_TE[0], other_TE[0]):  # as most do: a memory's rows begin with it
        return 0
    same_T = (one_TE[:positions] == other_TE[:positions]).all(dim=1)
    return int(same_T.long().cumprod(dim=0).sum())
