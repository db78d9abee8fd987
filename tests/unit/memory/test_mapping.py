"""The map's plane is that of a whole singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest

from elm_agent.memory.mapping import principal_plane


def slow_plane(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centred = rows.astype(np.float64) - rows.astype(np.float64).mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    return left[:, :2] * values[:2], values[:2] ** 2 / (values**2).sum()


@pytest.mark.parametrize(("count", "width"), [(200, 64), (60, 300), (2, 5)])
def test_the_plane_is_that_of_a_whole_decomposition(count: int, width: int) -> None:
    rng = np.random.default_rng(count)
    rows = rng.standard_normal((count, width)) * 10 * 0.8 ** np.arange(width)
    scores, shares = principal_plane(rows.astype(np.float32))
    expected, expected_shares = slow_plane(rows.astype(np.float32))
    assert shares == pytest.approx(tuple(expected_shares), abs=1e-6)
    for mine, theirs in zip(scores.T, expected.T, strict=True):
        assert min(np.abs(mine - theirs).max(), np.abs(mine + theirs).max()) < 1e-3 * np.abs(expected).max()


def test_the_same_rows_have_the_same_map() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32)
    first, second = principal_plane(rows)[0], principal_plane(rows)[0]
    assert np.array_equal(first, second)
    peaks = first[np.abs(first).argmax(axis=0), [0, 1]]
    assert (peaks > 0).all()


@pytest.mark.parametrize(
    "rows", [np.zeros((0, 0)), np.zeros((1, 4)), np.ones((5, 4)), np.eye(1), np.arange(6.0).reshape(6, 1)]
)
def test_too_little_to_lay_out_is_no_error(rows: np.ndarray) -> None:
    scores, shares = principal_plane(rows.astype(np.float32))
    assert scores.shape == (len(rows), 2)
    assert np.isfinite(scores).all()
    assert all(0 <= share <= 1 + 1e-9 for share in shares)
