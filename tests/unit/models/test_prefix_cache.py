"""Rows that were read, found again by those that begin alike."""

from __future__ import annotations

import pytest
import torch

from elm_agent.models.prefix_cache import PrefixCache


def row_of(*words: int) -> torch.Tensor:
    """One embedding for each word."""
    return torch.tensor(words, dtype=torch.float32)[:, None].repeat(1, 3)


def states_of(row_TE: torch.Tensor) -> torch.Tensor:
    """Keys and values (2, 1, T, 1) that tell which row they are of, and the position."""
    return (row_TE[:, 0] * 100 + torch.arange(len(row_TE)))[None, None, :, None].repeat(2, 1, 1, 1)


def kept(*rows: torch.Tensor, most_bytes: int = 2**20) -> PrefixCache:
    cache = PrefixCache(most_bytes)
    for row in rows:
        cache.keep(row, states_of(row))
    return cache


TEMPLATE = tuple(range(1, 11))


def test_a_row_goes_on_from_the_longest_beginning_that_it_shares() -> None:
    cache = kept(row_of(*TEMPLATE, 20, 21), row_of(*TEMPLATE, 30, 31), row_of(50, *TEMPLATE))
    wanted = row_of(*TEMPLATE, 30, 32, 33)
    found = cache.find(wanted)
    assert found is not None
    torch.testing.assert_close(found, states_of(wanted)[:, :, :11])


def test_the_last_position_is_always_read() -> None:
    row = row_of(*TEMPLATE)
    found = kept(row).find(row)
    assert found is not None
    assert found.shape[2] == len(row) - 1


@pytest.mark.parametrize("words", [(0, *TEMPLATE), (*TEMPLATE[:7], 90, 91), (1,)])
def test_rows_that_begin_otherwise_or_share_little_find_nothing(words: tuple[int, ...]) -> None:
    assert kept(row_of(*TEMPLATE, 20)).find(row_of(*words)) is None
    assert PrefixCache(2**20).find(row_of(*words)) is None


def test_one_number_makes_another_row() -> None:
    row = row_of(*TEMPLATE)
    other = row.clone()
    other[0, 1] = torch.nextafter(other[0, 1], torch.tensor(2.0))
    assert kept(row).find(other) is None
    row[3] = float("nan")
    assert kept(row).find(row) is None


def test_what_was_used_least_recently_goes_first() -> None:
    rows = [row_of(first, *TEMPLATE) for first in (100, 200, 300)]
    each = rows[0].nbytes + states_of(rows[0]).nbytes
    cache = kept(*rows[:2], most_bytes=2 * each)
    assert cache.find(rows[0]) is not None
    cache.keep(rows[2], states_of(rows[2]))
    assert [cache.find(row) is not None for row in rows] == [True, False, True]
    cache.keep(long := row_of(*range(400, 500)), states_of(long))  # more than there is room for
    assert cache.find(long) is None


def test_it_keeps_copies() -> None:
    row = row_of(*TEMPLATE)
    states = states_of(row)
    cache = PrefixCache(2**20)
    cache.keep(row, states)
    states.zero_()
    found = cache.find(row.clone())
    row.zero_()
    assert found is not None
    assert bool((found > 0).all())
    assert cache.find(row_of(*TEMPLATE)) is not None
