"""Completions read as a tree: the same log-probabilities and the same gradient as one row at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from elm_agent.models.network import Network
from elm_agent.models.tree import branches, tree_of

PROMPT = [11, 12, 13, 14, 15]
ROWS = [[3, 4, 5, 6], [3, 4, 5, 6], [3, 4, 7], [8], [3, 4], [8, 4, 5]]
CPU = torch.device("cpu")


def test_what_rows_begin_with_is_read_once() -> None:
    tree = tree_of([[3, 4, 5], [3, 4, 7], [3]], 9, CPU)
    assert tree.inputs_N.tolist() == [9, 3, 4]
    assert tree.depths_N.tolist() == [0, 1, 2]
    assert tree.seen_NN.tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert list(zip(tree.after_P.tolist(), tree.tokens_P.tolist(), strict=True)) == [(0, 3), (1, 4), (2, 5), (2, 7)]
    assert tree.places_R.tolist() == [0, 1, 2, 0, 1, 3, 0]


def test_equal_tokens_after_other_beginnings_are_not_the_same() -> None:
    tree = tree_of([[3, 5, 6], [4, 5, 6]], 9, CPU)
    assert tree.inputs_N.tolist() == [9, 3, 5, 4, 5]
    assert tree.seen_NN[4].tolist() == [True, False, False, True, True]
    assert len(tree.tokens_P) == 6


def test_parts_keep_like_rows_together_within_the_budget() -> None:
    assert branches(ROWS, 100) == [[4, 0, 1, 2, 3, 5]]
    assert branches(ROWS, 5) == [[4, 0, 1, 2], [3, 5]]  # 2 + 2 + 0 + 1 tokens, 1 + 2
    assert branches([[1, 2, 3], [1, 2, 3], [4, 5, 6]], 2) == [[0, 1], [2]]  # a row is never cut


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "gpt2"])
def test_a_tree_has_the_numbers_and_the_gradient_of_rows_one_by_one(
    tiny_network: Callable[[str], Network], family: str
) -> None:
    network = tiny_network(family)
    assert network.reads_trees(network.read([network.embed(PROMPT)])[0], 4) == (family != "gpt2")
    weights_BT = torch.rand(len(ROWS), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def pulled(groups: list[list[int]]) -> tuple[list[float], torch.Tensor]:
        embeds_TE = network.embed(PROMPT[:-1]).clone().requires_grad_(True)
        prefix, _ = network.read([embeds_TE])
        found: dict[int, list[float]] = {}
        loss = torch.zeros((), dtype=torch.float64)
        for group in groups:
            tokens_BT = torch.zeros(len(group), 4, dtype=torch.long)
            for place, index in enumerate(group):
                tokens_BT[place, : len(ROWS[index])] = torch.tensor(ROWS[index])
            mask_BT = torch.arange(4)[None] < torch.tensor([len(ROWS[index]) for index in group])[:, None]
            chosen_BT = network.logprobs(prefix, PROMPT[-1], tokens_BT, mask_BT, 0.7)
            assert not chosen_BT[~mask_BT].any()
            loss = loss + (chosen_BT * weights_BT[group]).sum()
            found |= {index: row[: len(ROWS[index])].tolist() for index, row in zip(group, chosen_BT, strict=True)}
        (gradient_TE,) = torch.autograd.grad(loss, embeds_TE)
        return [number for index in range(len(ROWS)) for number in found[index]], gradient_TE

    together, gradient_TE = pulled([[2, 0, 5, 1, 3, 4]])
    alone, expected_TE = pulled([[index] for index in range(len(ROWS))])
    assert together == pytest.approx(alone, abs=1e-7)  # GPT-2's rotary-free positions, Gemma's float32 norms
    assert float(expected_TE.norm()) > 1e-6
    assert float((gradient_TE - expected_TE).norm() / expected_TE.norm()) < 1e-6


def test_layers_that_see_less_than_a_row_are_given_rows(
    tiny_network: Callable[[str], Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny_network("mistral")
    prefix, _ = network.read([network.embed(PROMPT[:-1])])
    monkeypatch.setattr(network.model.config, "sliding_window", 8)
    narrow = Network(network.model)
    assert narrow.reads_trees(prefix, 4)
    assert not narrow.reads_trees(prefix, 5)
