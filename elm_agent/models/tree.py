"""Completions of one prompt as a tree: what they begin with in common is one branch, and is read once.

Knows token ids and indices; knows nothing of networks or training. The same mathematics as row by row, in another
order of sums: a position sees its own row's beginning and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Tree:
    """N positions to be read after a prompt; P tokens that are asked for after one of them, each pair once.

    ``inputs_N``: token ids, int64; the first is the prompt's last token. ``depths_N``: how many come before each.
    ``seen_NN``: bool, what each sees: itself and all that it follows. ``after_P``: which position a token follows.
    ``places_R``: for every token of every row, one row after the other, which of P it is.
    """

    inputs_N: torch.Tensor
    depths_N: torch.Tensor
    seen_NN: torch.Tensor
    after_P: torch.Tensor
    tokens_P: torch.Tensor
    places_R: torch.Tensor


def tree_of(rows: Sequence[Sequence[int]], last_id: int, device: torch.device) -> Tree:
    """The tree of completions (token ids, none empty) of a prompt that ends with ``last_id``."""
    inputs, parents = [last_id], [-1]
    children: dict[tuple[int, int], int] = {}  # (position, the token after it): the position that reads it
    asked: dict[tuple[int, int], int] = {}  # (position, the token after it): which of P
    places: list[int] = []
    for row in rows:
        position = 0
        for index, token in enumerate(row):
            if index:
                edge = (position, row[index - 1])
                if edge not in children:
                    children[edge] = len(inputs)
                    inputs.append(row[index - 1])
                    parents.append(position)
                position = children[edge]
            places.append(asked.setdefault((position, token), len(asked)))
    seen_NN = torch.eye(len(inputs), dtype=torch.bool)
    for position, parent in enumerate(parents):
        if parent >= 0:
            seen_NN[position] |= seen_NN[parent]  # parents come first
    after, tokens = zip(*asked, strict=True)
    return Tree(
        inputs_N=torch.tensor(inputs, device=device),
        depths_N=(seen_NN.sum(dim=1) - 1).to(device),
        seen_NN=seen_NN.to(device),
        after_P=torch.tensor(after, device=device),
        tokens_P=torch.tensor(tokens, device=device),
        places_R=torch.tensor(places, device=device),
    )


def branches(rows: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """Indices of rows in parts whose trees ask for at most ``budget`` tokens, or one row: like rows together."""
    parts: list[list[int]] = []
    left = 0
    for index in sorted(range(len(rows)), key=lambda index: list(rows[index])):
        # In this order nobody before has more in common with a row than the one next to it.
        new = len(rows[index]) - (_common(rows[parts[-1][-1]], rows[index]) if parts else 0)
        if parts and new <= left:
            parts[-1].append(index)
            left -= new
        else:
            parts.append([index])
            left = max(budget - len(rows[index]), 0)
    return parts


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of what both begin with."""
    pairs = zip(left, right, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(left), len(right)))
